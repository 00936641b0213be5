"""Becomes a command that ends when the process which started it ends, however that happens.

    python -I -S leash.py SIGNAL SUPERVISOR COMMAND [ARGUMENT ...]

Run as a file of its own, not as a module: it stands between the supervisor and every process of the demo,
so it imports next to nothing. The process id stays the same, since the command takes this process's place.
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    death_signal, supervisor, *command = sys.argv[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # Killed between its fork and our prctl, the supervisor would never be mourned.
    if os.getppid() != int(supervisor):
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606 - the argument list is the supervisor's own


if __name__ == "__main__":
    main()
