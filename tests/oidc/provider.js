// An OpenID provider for tests: oidc-provider, with client credentials and signed access tokens.
//
//     node provider.js PORT CLIENT_ID CLIENT_SECRET [CALLBACK AFTER_LOGOUT]
//
// CALLBACK: where people who log in are sent back to; then the client `console` has the code flow with PKCE, and
// the secret of the other one. Whoever comes with `login_hint` is that person: a JSON object of claims.
//
// Listens on the loopback address. Standard input takes a line a wish, standard output gives a line an answer:
// `{"ready": KID}` at the start, and for the wish `rotate` `{"rotated": KID}`, the key that signs from then on.
// The former keys stay published. Ends with its standard input. It keeps everything in memory.

import { createServer } from 'node:http';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { createInterface } from 'node:readline';
import Provider, { errors } from 'oidc-provider';

const [port, clientId, clientSecret, callback, afterLogout] = process.argv.slice(2);

// Resource (RFC 8707) -> what the API of that name wants its tokens to be for.
const AUDIENCES = {
  'https://grid.example/v1': 'curtailment-api',
  'https://billing.example/': 'billing-api',
};

const keys = [];

// Subject -> claims of whoever has logged in.
const people = new Map();

function keyAdd() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  keys.unshift({ ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'RS256' });
  return keys[0].kid;
}

function providerBuild() {
  const provider = new Provider(`http://127.0.0.1:${port}`, {
    jwks: { keys },
    clients: [
      {
        client_id: clientId,
        client_secret: clientSecret,
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
      },
      ...(callback
        ? [
            {
              client_id: 'console',
              client_secret: clientSecret,
              grant_types: ['authorization_code'],
              redirect_uris: [callback],
              post_logout_redirect_uris: [afterLogout],
              response_types: ['code'],
            },
          ]
        : []),
    ],
    claims: { openid: ['sub'], profile: ['preferred_username', 'groups', 'sites'], email: ['email'] },
    pkce: { required: () => true },
    findAccount: (_context, id) => ({
      accountId: id,
      claims: () => people.get(id),
    }),
    // Nobody is asked anything: the person is who `login_hint` says, and agrees.
    interactions: { url: (_context, interaction) => `/interaction/${interaction.uid}` },
    ttl: { ClientCredentials: 600 },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo(_context, resource) {
          if (!(resource in AUDIENCES)) throw new errors.InvalidTarget();
          return {
            audience: AUDIENCES[resource],
            scope: '',
            accessTokenFormat: 'jwt',
            jwt: { sign: { alg: 'RS256' } },
          };
        },
      },
    },
  });
  const answers = provider.callback();
  return {
    callback: () => async (request, response) => {
      if (!request.url.startsWith('/interaction/')) return answers(request, response);
      const { params } = await provider.interactionDetails(request, response);
      const person = JSON.parse(params.login_hint);
      const accountId = person.sub;
      people.set(accountId, person);
      const grant = new provider.Grant({ accountId, clientId: params.client_id });
      grant.addOIDCScope('openid profile email');
      const result = { login: { accountId }, consent: { grantId: await grant.save() } };
      return provider.interactionFinished(request, response, result, { mergeWithLastSubmission: false });
    },
  };
}

const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);

const first = keyAdd();
let answer = providerBuild().callback();
const server = createServer((request, response) => answer(request, response));
server.listen(Number(port), '127.0.0.1', () => say({ ready: first }));

createInterface({ input: process.stdin })
  .on('line', (wish) => {
    if (wish !== 'rotate') throw new Error(`no such wish: ${wish}`);
    const kid = keyAdd();
    answer = providerBuild().callback();
    say({ rotated: kid });
  })
  .on('close', () => process.exit(0));
