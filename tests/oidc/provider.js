// An OpenID provider for tests: oidc-provider, with client credentials and signed access tokens.
//
//     node provider.js PORT CLIENT_ID CLIENT_SECRET
//
// Listens on the loopback address. Standard input takes a line a wish, standard output gives a line an answer:
// `{"ready": KID}` at the start, and for the wish `rotate` `{"rotated": KID}`, the key that signs from then on.
// The former keys stay published. Ends with its standard input. It keeps everything in memory.

import { createServer } from 'node:http';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { createInterface } from 'node:readline';
import Provider, { errors } from 'oidc-provider';

const [port, clientId, clientSecret] = process.argv.slice(2);

// Resource (RFC 8707) -> what the API of that name wants its tokens to be for.
const AUDIENCES = {
  'https://grid.example/v1': 'curtailment-api',
  'https://billing.example/': 'billing-api',
};

const keys = [];

function keyAdd() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  keys.unshift({ ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'RS256' });
  return keys[0].kid;
}

function providerBuild() {
  return new Provider(`http://127.0.0.1:${port}`, {
    jwks: { keys },
    clients: [
      {
        client_id: clientId,
        client_secret: clientSecret,
        grant_types: ['client_credentials'],
        redirect_uris: [],
        response_types: [],
      },
    ],
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
