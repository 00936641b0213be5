"""`sgm tokens list`, `create`, `update` and `delete`, for root."""

from __future__ import annotations

from typing import Annotated

import typer

from sgm.cli.exits import NOT_DONE, OK
from sgm.cli.names import site_tags
from sgm.cli.output import NOTHING
from sgm.cli.session import Session, command
from sgm.client import Client
from sgm.errors import Ambiguous, NotFound
from sgm.models import ManagementToken

app = typer.Typer(help="Management tokens, for who has a root token.", no_args_is_help=True)

TOKEN = Annotated[str, typer.Argument(help="The token's id or name.")]
SITES = Annotated[list[str] | None, typer.Option("--site", help="A site it opens; may be given again.")]
REVEALED = 8


def listing(
    session: Session,
    *,
    show: Annotated[bool, typer.Option("--show", help="Show the tokens themselves.")] = False,
) -> int:
    """List management tokens and the sites they open."""
    found = list(session.client.tokens())
    if session.output.as_json:
        session.output.json([one.raw for one in found])
        return OK
    names = site_tags(session.client, {site for one in found for site in one.sites})
    rows = [
        [one.name, _shown(one, whole=show), ", ".join(names.get(site, site) for site in one.sites), one.id]
        for one in found
    ]
    session.output.table(("NAME", "TOKEN", "SITES", "ID"), rows, empty="There is no management token.")
    return OK


def _shown(token: ManagementToken, *, whole: bool) -> str:
    if token.token is None:
        return NOTHING
    return token.token if whole else f"{token.token[:REVEALED]}..."


def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="What it is for.")],
    *,
    site: SITES = None,
) -> int:
    """Create a management token and show it."""
    ids = [session.client.site_find(one).id for one in site or []]
    made = session.client.token_create(name=name, sites=ids)
    if session.output.as_json:
        session.output.json(made.raw)
    else:
        session.output.line(f"{made.name}: {made.token}  {made.id}")
    return OK


def update(
    session: Session,
    token: TOKEN,
    *,
    name: Annotated[str | None, typer.Option("--name", help="Another name.")] = None,
    site: SITES = None,
) -> int:
    """Give a management token another name or other sites; what is not named stays."""
    found = _find(session.client, token)
    ids = [session.client.site_find(one).id for one in site] if site else list(found.sites)
    made = session.client.token_update(found.id, name=name or found.name, sites=ids)
    if session.output.as_json:
        session.output.json(made.raw)
    else:
        session.output.line(f"{made.name}: opens {len(made.sites)} sites.")
    return OK


def delete(
    session: Session,
    token: TOKEN,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> int:
    """Delete a management token: whoever uses it loses access at once."""
    found = _find(session.client, token)
    if not session.confirm(f"Delete {found.name}? Whoever uses it loses access at once.", yes=yes):
        return NOT_DONE
    session.client.token_delete(found.id)
    if session.output.as_json:
        session.output.json({"deleted": found.id})
    else:
        session.output.line(f"{found.name}: deleted.")
    return OK


def _find(client: Client, text: str) -> ManagementToken:
    found = [one for one in client.tokens() if text in (one.id, one.name)]
    if not found:
        raise NotFound(f"There is no management token {text!r}.", status=404, code="not_found")
    if len(found) > 1:
        raise Ambiguous(
            f"{len(found)} management tokens are called {text!r}: use an id of `sgm tokens list`."
        )
    return found[0]


for _name, _function in (("list", listing), ("create", create), ("update", update), ("delete", delete)):
    command(app, _name)(_function)
