"""`sgm login` and `logout`: the profiles that hold address and credentials."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from sgm.cli.exits import OK
from sgm.cli.output import clean
from sgm.cli.session import Session, command
from sgm.client import Client
from sgm.errors import ConfigurationError
from sgm.settings import (
    DEFAULT_PROFILE,
    Settings,
    config_file,
    profile_forget,
    profile_read,
    profile_write,
    profiles_read,
    settings_load,
)

_ASKED = (
    ("api_url", "Address of the API, with /v1", False),
    ("client_id", "Client id", False),
    ("client_secret", "Client secret", True),
    ("management_token", "Management token", True),
)


def register(app: typer.Typer) -> None:
    command(app, "login")(login)
    command(app, "configure", hidden=True)(login)
    command(app, "logout")(logout)


def login(
    session: Session,
    *,
    api_url: Annotated[str | None, typer.Option("--api-url", help="https://.../v1")] = None,
    token_url: Annotated[
        str | None, typer.Option("--token-url", help="Where bearer tokens are issued.")
    ] = None,
    audience: Annotated[str | None, typer.Option("--audience", help="The API's name at the issuer.")] = None,
    client_id: Annotated[str | None, typer.Option("--client-id", help="Your client's id there.")] = None,
) -> int:
    """Ask for address and credentials, try them, and keep them in a profile.

    What stands in the environment (SGM_CLIENT_SECRET, SGM_MANAGEMENT_TOKEN, ...) is not asked for.
    """
    given = {"api_url": api_url, "token_url": token_url, "audience": audience, "client_id": client_id}
    settings = _settings(session, given)
    with Client(settings) as client:
        client.ping()
        sites = sum(1 for _ in client.sites())
    name, file = session.profile or DEFAULT_PROFILE, config_file(os.environ)
    try:
        profile_write(file, name, settings)
    except OSError as error:
        raise ConfigurationError(f"{file}: {error.strerror}") from error
    if session.output.as_json:
        session.output.json({"profile": name, "file": str(file), "sites": sites})
    else:
        session.output.line(f"{settings.api_url} opens {sites} sites. Kept as profile {name} in {file}.")
    return OK


def _settings(session: Session, given: dict[str, str | None]) -> Settings:
    if session.demo is not None:
        return settings_load(demo=session.demo)
    known: dict[str, str | None] = {name: os.environ.get(f"SGM_{name.upper()}") for name in (*given, *_NAMES)}
    answers = known | {name: value for name, value in given.items() if value}
    for name, question, is_secret in _ASKED:
        if not answers.get(name):
            if not session.output.may_ask:
                raise ConfigurationError(f"Nobody can be asked for {name} here: set SGM_{name.upper()}.")
            answers[name] = typer.prompt(question, hide_input=is_secret)
    return settings_load(environment={"SGM_ALLOW_HTTP": os.environ.get("SGM_ALLOW_HTTP", "")}, given=answers)


_NAMES = tuple(name for name, _, _ in _ASKED)


def logout(session: Session) -> int:
    """Forget a profile and its bearer token."""
    name, file = session.profile or DEFAULT_PROFILE, config_file(os.environ)
    if name in profiles_read(file):
        profile_read(file, name)
        with Client(settings_load(profile=name, environment=os.environ)) as client:
            client.token_forget()
    was_there = profile_forget(file, name)
    if session.output.as_json:
        session.output.json({"profile": name, "was_there": was_there})
    else:
        session.output.line(
            clean(f"Profile {name} is forgotten." if was_there else f"There was no profile {name}.")
        )
    return OK
