"""The commands of `sgm`, and how an end of any kind becomes an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from sgm.cli import control, fleet, login, loops, schedules, tokens
from sgm.cli.exits import INTERRUPTED, NOT_DONE, USAGE, exit_code_of
from sgm.cli.output import Output
from sgm.cli.session import Ended

HELP = """Look at, control and plan a fleet through the Smart Grid Manager API.

Exit codes: 0 done, 1 done in part or not at all, 2 usage, 3 credentials, 4 not found, 5 unavailable.
"""

app = typer.Typer(name="sgm", help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None)
for part in (login, fleet, loops, control):
    part.register(app)
app.add_typer(schedules.app, name="schedule")
app.add_typer(loops.app, name="loop")
app.add_typer(tokens.app, name="tokens")


def run(arguments: Sequence[str]) -> int:
    """Run a command; whatever happens, the exit code says which kind of end it was."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A name that the terminal's alphabet lacks must not be the end of a command.
            stream.reconfigure(errors="backslashreplace")
    try:
        found: Any = get_command(app)(args=list(arguments), prog_name="sgm", standalone_mode=False)
    except Ended as end:
        if end.error is None:
            return end.code
        (end.output or Output()).error(end.error)
        return exit_code_of(end.error)
    except typer.Abort:
        return NOT_DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except TyperException as error:
        # Typer's own words about a misspelt command or option.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return USAGE
    return found if isinstance(found, int) else 0
