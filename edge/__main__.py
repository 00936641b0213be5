"""`python -m edge SUBCOMMAND`: what runs at a site."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import cast

# Subcommand -> module with `main(argv) -> int`, and what it does. Imported only when called: a node does not
# load the simulators.
SUBCOMMANDS = {
    "node": ("edge.runtime.node", "run one node: arbitration, its devices and its link"),
    "enroll": ("edge.runtime.enroll", "make this computer a node, with a one-time token"),
    "guard": ("edge.runtime.guard", "watch one node, and take its place while it cannot work"),
    "explain": (
        "edge.runtime.explain",
        "say why a device was held where it was, at any time of the last 24 h",
    ),
    "profiles": ("edge.profiles.command", "check, list, show and document device types"),
    "probe": ("edge.runtime.probe", "look at a device without writing to it, before it is controlled"),
    "simulate": ("edge.simulators.fleet", "simulate devices on real sockets"),
}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="edge",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:10} {purpose}" for name, (_, purpose) in SUBCOMMANDS.items()),
    )
    parser.add_argument("subcommand", choices=SUBCOMMANDS)
    arguments = parser.parse_args(argv[:1])
    module, _ = SUBCOMMANDS[arguments.subcommand]
    run = cast("Callable[[Sequence[str]], int]", importlib.import_module(module).main)
    return run(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
