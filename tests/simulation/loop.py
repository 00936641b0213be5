"""An event loop whose time is a number: where nothing is ready, it jumps to the next timer."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(Exception):  # noqa: N818 - states the fault
    """Everybody waits, and nothing will ever happen."""


class Spinning(Exception):  # noqa: N818 - states the fault
    """Somebody is always ready, and so time stands still."""


# More turns than any world takes within one instant.
MANY_TURNS = 20_000
# What one turn of the loop takes: about what it does on a real machine.
TURN_S = 1e-6


class _Jump(selectors.BaseSelector):
    """Stands where the kernel would tell of sockets. There are none: waiting is what makes time pass."""

    def __init__(self, passed: Callable[[float], None]) -> None:
        self._passed = passed
        self._turns = 0
        self._keys: dict[Any, selectors.SelectorKey] = {}

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("every task waits for another one")
        self._turns = 0 if timeout > 0 else self._turns + 1
        # Work takes time too. Without it, who waits for a moment that rounding puts just ahead would wait for
        # ever: nothing moves the clock while somebody looks at it.
        self._passed(timeout + TURN_S)
        if self._turns > MANY_TURNS:
            self._turns = 0
            raise Spinning("nothing but work, and no time passes")
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        # The loop's own pipe, by which signals and threads would wake it.
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        key = self._keys[fileobj] = selectors.SelectorKey(fileobj, number, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._keys.pop(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes while everybody waits, and then at once; each turn of the loop takes a microsecond.

    Equal programs take equal turns: callbacks run in the order in which they were asked for, timers in the
    order of their moments, and there are neither sockets nor threads whose speed could matter. What a
    program hands to a thread is done on the spot.
    """

    def __init__(
        self,
        *,
        start_s: float = 0.0,
        selector: Callable[[Callable[[float], None]], selectors.BaseSelector] = _Jump,
    ) -> None:
        """`selector`: what waits in place of the kernel; it is given what to call with the seconds waited."""
        self._moment_s = start_s
        super().__init__(selector(self._pass))

    def time(self) -> float:
        return self._moment_s

    def _pass(self, seconds: float) -> None:
        self._moment_s += seconds

    def skip(self, seconds: float) -> None:
        """Let time jump ahead under all timers, as a machine does that was suspended."""
        self._pass(seconds)

    def run_in_executor(  # type: ignore[override]
        self,
        executor: object,  # noqa: ARG002 - the base class's
        func: Callable[..., T],
        *args: Any,
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whoever waits for it gets it, as from a thread
            future.set_exception(error)
        return future

    def elapse(self, seconds: float) -> None:
        """Run everything that happens within these seconds."""
        self.run_until_complete(asyncio.sleep(seconds))

    def finish(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        """Cancel these and run until they have ended."""
        waiting = list(tasks)
        for task in waiting:
            task.cancel()
        if waiting:
            self.run_until_complete(asyncio.wait(waiting))
