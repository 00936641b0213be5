"""`python -m edge node | simulate`: the processes of the edge side."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

# Subcommand -> module with `main(argv) -> exit code`; imported only when asked for, so that each process
# carries no more than it needs.
COMMANDS = {
    "node": "edge.runtime.node",
    "simulate": "edge.simulators.modbus",
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m edge {{{' | '.join(COMMANDS)}}} ...", file=sys.stderr)  # noqa: T201
        return 2
    run: Callable[[list[str]], int] = import_module(COMMANDS[argv[0]]).main
    return run(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
