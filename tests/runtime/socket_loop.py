"""Virtual time for a program that speaks to itself over real sockets."""

from __future__ import annotations

import selectors
from collections.abc import Callable

from tests.simulation.loop import TURN_S, Deadlock, VirtualLoop

# On the loopback what one end has sent is with the other when the call returns, but for what the kernel puts
# off: so long, in real time, nothing may have been heard before time jumps. The selector knows no less.
QUIET_S = 0.001
# With no timer at all only a socket can go on.
FORLORN_S = 1.0


class _Patient(selectors.DefaultSelector):
    """Waits for the sockets in real time, which does not count; once they are quiet, time jumps."""

    def __init__(self, passed: Callable[[float], None]) -> None:
        super().__init__()
        self._passed = passed

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        heard = super().select(0)
        if not heard and timeout is None:
            heard = super().select(FORLORN_S)
            if not heard:
                raise Deadlock("every task waits for another one")
        elif not heard and timeout is not None and timeout > 0:
            heard = super().select(QUIET_S)
            if not heard:
                self._passed(timeout)
        self._passed(TURN_S)
        return heard


class SocketLoop(VirtualLoop):
    """A `VirtualLoop` with sockets, both ends of which are in this loop.

    However busy the machine is, no answer comes late: work takes no time but a microsecond each turn. That
    the kernel is quicker than `QUIET_S` is all that is left to chance.
    """

    def __init__(self, *, start_s: float = 0.0) -> None:
        super().__init__(start_s=start_s, selector=_Patient)
