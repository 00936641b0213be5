"""One run of `sgm`: its shared options, its client, and what it prints."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from sgm.cli.exits import OK
from sgm.cli.output import Output, clean
from sgm.client import Client
from sgm.errors import SgmError
from sgm.repeats import Patience
from sgm.settings import Settings, settings_load

P = ParamSpec("P")
PANEL = "Of every command"
# Shorter than this a pause is nobody's business.
TOLD_FROM_S = 1.0

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.", rich_help_panel=PANEL)]
Utc = Annotated[bool, typer.Option("--utc", help="Show times in UTC.", rich_help_panel=PANEL)]
Profile = Annotated[
    str | None, typer.Option("--profile", help="The profile that `sgm login` kept.", rich_help_panel=PANEL)
]
Demo = Annotated[
    Path | None,
    typer.Option("--demo", help="A running demo's description: var/demo.json.", rich_help_panel=PANEL),
]
_SHARED: tuple[tuple[str, Any, Any], ...] = (
    ("as_json", AsJson, False),
    ("utc", Utc, False),
    ("profile", Profile, None),
    ("demo", Demo, None),
)


@dataclass(slots=True)
class Session:
    output: Output
    profile: str | None = None
    demo: Path | None = None
    _clients: list[Client] = field(default_factory=list)

    @property
    def client(self) -> Client:
        """The client, made when it is first needed."""
        if not self._clients:
            self._clients.append(Client(self.settings(), patience=lambda: Patience(told=self._told)))
        return self._clients[0]

    def listener(self) -> Client:
        """A client of its own and without a word, for a thread that ends with the process."""
        return Client(self.settings())

    def settings(self) -> Settings:
        return settings_load(profile=self.profile, demo=self.demo)

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def _told(self, why: str, pause_s: float) -> None:
        if pause_s >= TOLD_FROM_S:
            self.output.note(f"{why} Trying again in {pause_s:.0f} s ...")

    def confirm(self, question: str, *, yes: bool) -> bool:
        """Ask where somebody can answer; a program has decided already."""
        if yes or not self.output.may_ask:
            return True
        return typer.confirm(clean(question))


class Ended(Exception):  # noqa: N818 - states what is the case
    """A command ended with this exit code; an error, if there was one, is still to be told."""

    def __init__(self, code: int, *, error: SgmError | None = None, output: Output | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.error = error
        self.output = output


def command(
    app: typer.Typer, name: str, *, hidden: bool = False
) -> Callable[[Callable[Concatenate[Session, P], int]], Callable[..., None]]:
    """Make a function with a session a command that takes the shared options too, in any place.

    It returns its exit code.
    """

    def register(function: Callable[Concatenate[Session, P], int]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(**given: Any) -> None:
            as_json, utc, profile, demo = (given.pop(shared) for shared, _, _ in _SHARED)
            output = Output(as_json=as_json, utc=utc)
            session = Session(output=output, profile=profile, demo=demo)
            try:
                code = function(session, **given)  # type: ignore[call-arg] # typer has read the signature
            except SgmError as error:
                raise Ended(0, error=error, output=output) from error
            except BrokenPipeError as error:
                # Whoever read has seen enough; what is still buffered must not fail at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise Ended(OK) from error
            finally:
                session.close()
            raise Ended(code)

        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for name, hint, default in _SHARED
        ]
        run.__signature__ = signature.replace(parameters=own + shared)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in own + shared}
        app.command(name, hidden=hidden)(run)
        return run

    return register
