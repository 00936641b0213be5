"""`python -m smartgrid.demo` runs the demo until Ctrl-C; `... reset` forgets all that it kept."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys

from smartgrid.demo.leash import PR_SET_PDEATHSIG
from smartgrid.demo.options import DemoError, demo_options
from smartgrid.demo.run import EXIT_OK, Demo, say
from smartgrid.demo.state import demo_lock, reset

EXIT_USAGE = 2


def main() -> int:
    if sys.argv[1:] not in ([], ["reset"]):
        print("usage: python -m smartgrid.demo [reset]", file=sys.stderr)
        return EXIT_USAGE
    try:
        options = demo_options()
        if sys.argv[1:] == ["reset"]:
            with demo_lock(options.var):
                reset(options.var)
            say(f"{options.var} is as new; `make demo` starts afresh.")
            return EXIT_OK
        end_with_make()
        with demo_lock(options.var):
            return asyncio.run(Demo(options=options).run())
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        # Pressed before there was anything to end.
        return EXIT_OK


def end_with_make() -> None:
    """Where make started us, stop in good order also when make itself is killed."""
    if sys.platform == "linux" and "MAKELEVEL" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
