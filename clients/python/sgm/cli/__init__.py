"""`sgm` on the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (sgm/cli/exits.py)."""
    # Here, so that the library loads neither typer nor rich.
    from sgm.cli.app import run  # noqa: PLC0415

    return run(sys.argv[1:] if arguments is None else arguments)
