"""The guard: a second process beside each node, which keeps the node's word when the node cannot.

It waits for the bus lock. A dead node frees it at once; one whose write cycle has stalled is killed. Then the
guard runs the same cycle over the same store, without a link, until a node asks for the bus (ADR 0008).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog

from edge.drivers.registry import DRIVERS, Drivers
from edge.runtime.clock import HostClock, SteeredClock, trusts_host
from edge.runtime.control import Watchers, build_control
from edge.runtime.database import StoreFailed
from edge.runtime.fleet import Fleet
from edge.runtime.logs import configure_logging
from edge.runtime.reasons import Reasons
from edge.runtime.signs import (
    BUS_LOCK,
    BUS_WANTED,
    GUARD_LOCK,
    Holder,
    Patience,
    Phase,
    Role,
    Sign,
    SignedLock,
    is_alive,
)
from edge.runtime.store import Store
from edge.runtime.systemd import ServiceManager

log = structlog.get_logger()

EXIT_FAILED = 1
EXIT_GUARDED = 75  # EX_TEMPFAIL: another guard watches this node
# Where a copy of the store is kept while its disk takes no writes.
MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it
LOOK_S = 0.2
# How often a guard at work looks whether a node wants the bus.
YIELD_LOOK_S = 0.05
# A write under way, its gap and its read-back are given this long; then the line is broken off.
YIELD_S = 10.0
# A node that waits shows itself twenty times a second; one that was stopped meanwhile is not yielded to.
WANTED_S = 1.0
# A closed transport lets go of its socket in one of the next passes of the event loop.
PASSES_TO_CLOSE = 3


class AlreadyGuarded(Exception):  # noqa: N818 - states the fault
    """Another guard watches this state directory."""


class _Yielded(Exception):  # noqa: N818 - not an error: a node asked, or somebody asked the guard to stop
    """Ends the guard's control in an orderly way."""


class Guard:
    """Watches one node's state directory, and takes its node's place while there is none."""

    def __init__(
        self,
        *,
        state: Path,
        clock: SteeredClock,
        manager: ServiceManager,
        stop: asyncio.Event,
        drivers: Drivers = DRIVERS,
    ) -> None:
        self._state = state
        self._clock = clock
        self._manager = manager
        self._stop = stop
        self._drivers = drivers
        self._wake = asyncio.Event()
        self._bus = SignedLock(state / BUS_LOCK, role=Role.GUARD, clock=clock)
        self._wanted = SignedLock(state / BUS_WANTED, role=Role.GUARD, clock=clock)
        self._holder: Holder | None = None
        self._complained: Sign | None = None

    async def run(self) -> None:
        """Watch, take over, yield, and watch again until `stop` is set."""
        try:
            while await self._watch():
                log.warning("guard takes over", state=str(self._state))
                self._manager.status("controls the devices in the node's place")
                try:
                    await self._stand_in()
                finally:
                    self._bus.release()
                log.warning("guard yields", state=str(self._state))
        finally:
            self._forget_holder()
            self._bus.close()
            self._wanted.close()

    # --- watching -----------------------------------------------------------------------------------

    async def _watch(self) -> bool:
        """Wait for the bus; False where the guard was asked to stop instead."""
        self._manager.status("watches the node")
        patience = Patience()
        while not self._stop.is_set():
            # A free bus is left to a node that asks for it.
            if not self._is_wanted() and self._bus.take(Phase.LOADING):
                self._forget_holder()
                return True
            sign, now_s = self._bus.read(), self._clock.boottime_s()
            self._follow(sign)
            if sign is None:
                patience.silent_s(None, now_s=now_s)
            elif patience.has_ended(sign, now_s=now_s):
                self._end_stalled(sign)
            self._manager.ready()
            self._manager.alive()
            self._wake.clear()
            await self._clock.wait(self._wake, LOOK_S)
        return False

    def _is_wanted(self) -> bool:
        """Tell whether a node waits for the bus, now and not some time ago."""
        sign = self._wanted.read()
        return (
            sign is not None
            and sign.phase is Phase.WAITING
            and sign.boot == self._clock.boot_id
            and abs(self._clock.boottime_s() - sign.stamp_s) <= WANTED_S
            and is_alive(sign)
        )

    def _follow(self, sign: Sign | None) -> None:
        """Keep a hand on the process behind the sign: its death wakes the watch at once."""
        if self._holder is not None and (sign is None or not _same_process(self._holder.sign, sign)):
            self._forget_holder()
        if self._holder is None and sign is not None and sign.pid != os.getpid():
            self._holder = Holder.of(sign)
            if self._holder is not None:
                asyncio.get_running_loop().add_reader(self._holder.pidfd, self._holder_died)

    def _holder_died(self) -> None:
        self._forget_holder()
        self._wake.set()

    def _forget_holder(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            asyncio.get_running_loop().remove_reader(holder.pidfd)
            holder.close()

    def _end_stalled(self, sign: Sign) -> None:
        """Kill the holder of the bus; nobody else, whatever became of its process id."""
        if self._holder is None:
            self._complain(sign, "the bus is held by a process that is not to be seen from here")
            return
        if sign.phase is not Phase.LOADING:
            what = "the node's write cycle does not turn: killed"
        else:
            what = "the node does not come to its first turn: killed"
        try:
            self._holder.kill()
        except PermissionError:
            what = "the node is stalled and belongs to another user: it cannot be ended"
        self._complain(sign, what)

    def _complain(self, sign: Sign, what: str) -> None:
        if sign != self._complained:
            self._complained = sign
            log.error(what, pid=sign.pid, phase=sign.phase.value, last_turn_s=sign.stamp_s)

    # --- standing in --------------------------------------------------------------------------------

    async def _stand_in(self) -> None:
        """Control the devices from the disk until a node asks for the bus, or the guard is to stop."""
        with self._store() as store:
            await stand_in(
                store=store,
                clock=self._clock,
                drivers=self._drivers,
                watchers=Watchers(loading=self._loading, alive=self._alive),
                wanted=self._until_wanted,
            )
        for _ in range(PASSES_TO_CLOSE):
            await asyncio.sleep(0)

    @contextmanager
    def _store(self) -> Iterator[Store]:
        """The node's store; a copy in memory where its disk takes no writes any more.

        Holds end and schedules go on from the copy, and what is logged there stays at the site's log.
        """
        with ExitStack() as stack:
            store = None
            if self._bus.writable:
                try:
                    store = Store(self._state)
                except (OSError, StoreFailed) as error:
                    log.error("the store cannot be used", error=str(error))  # noqa: TRY400
            if store is None:
                copy = stack.enter_context(_copy_of(self._state))
                log.error("guarding on a copy in memory: central will not hear of it", copy=str(copy))
                store = Store(copy)
            stack.callback(store.close)
            yield store

    def _loading(self) -> None:
        self._bus.stamp(Phase.LOADING)

    def _alive(self) -> None:
        self._bus.stamp(Phase.RUNNING)
        self._manager.ready()
        self._manager.alive()

    async def _until_wanted(self) -> None:
        while not (self._stop.is_set() or self._is_wanted()):
            await self._clock.sleep(YIELD_LOOK_S)


async def stand_in(
    *,
    store: Store,
    clock: SteeredClock,
    drivers: Drivers,
    watchers: Watchers,
    wanted: Callable[[], Awaitable[None]],
) -> None:
    """Control the devices from what is on disk until `wanted` returns; then let go between two writes."""
    reasons = Reasons(store.directory, clock=clock, who="guard")
    try:
        async with asyncio.TaskGroup() as tasks:
            control = build_control(
                clock=clock,
                store=store,
                tasks=tasks,
                watchers=watchers,
                reasons=reasons,
                drivers=drivers,
                written_by="guard",
                runs_loops=False,
            )
            control.start()
            tasks.create_task(_yield_after(wanted, control.fleet), name="until wanted")
    except* _Yielded:
        pass
    finally:
        reasons.close()


async def _yield_after(wanted: Callable[[], Awaitable[None]], fleet: Fleet) -> None:
    await wanted()
    await fleet.finish(within_s=YIELD_S)
    raise _Yielded


def _same_process(one: Sign, other: Sign) -> bool:
    return (one.pid, one.started_ticks) == (other.pid, other.started_ticks)


@contextmanager
def _copy_of(state: Path) -> Iterator[Path]:
    """What can be read of a state directory, in memory, for as long as the block runs."""
    memory = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="sgm-guard-", dir=memory) as name:
        copy = Path(name)
        for source in [*state.glob("node.sqlite3*"), *state.glob("*.json"), *state.glob("documents/*.json")]:
            target = copy / source.relative_to(state)
            target.parent.mkdir(exist_ok=True)
            try:
                shutil.copyfile(source, target)
            except OSError as error:
                log.error("file cannot be read", path=str(source), error=str(error))  # noqa: TRY400
        yield copy


async def run_guard(
    *, state: Path, clock: SteeredClock, stop: asyncio.Event, drivers: Drivers = DRIVERS
) -> None:
    """Guard this state directory until `stop` is set.

    `AlreadyGuarded` where another guard does; `StoreFailed` where there is nothing to guard, and nothing can
    be made.
    """
    manager = ServiceManager(clock=clock.boottime_s)
    alone: SignedLock | None = None
    try:
        try:
            alone = SignedLock(state / GUARD_LOCK, role=Role.GUARD, clock=clock)
            guard = Guard(state=state, clock=clock, manager=manager, stop=stop, drivers=drivers)
        except OSError as error:
            raise StoreFailed(f"{state} cannot be used: {error}") from error
        if not alone.take(Phase.RUNNING):
            raise AlreadyGuarded(f"another guard watches {state}")
        await guard.run()
        manager.stopping()
    finally:
        manager.close()
        if alone is not None:
            alone.close()


def main(argv: Sequence[str]) -> int:
    """`python -m edge guard`: watch one node, and take its place while it cannot work."""
    parser = argparse.ArgumentParser(prog="python -m edge guard", description=main.__doc__)
    parser.add_argument("--state", required=True, type=Path, help="the node's state directory")
    parser.add_argument("--node", help="the node's UUID, for the log")
    options = parser.parse_args(argv)
    configure_logging()
    structlog.contextvars.bind_contextvars(
        process="guard", **({"node": options.node} if options.node else {})
    )
    try:
        asyncio.run(_main(options.state))
    except AlreadyGuarded as error:
        print(f"{error}; stop it first", file=sys.stderr)  # noqa: T201 - said to whoever started us
        return EXIT_GUARDED
    except StoreFailed as error:
        log.error("the guard cannot work", error=str(error))  # noqa: TRY400 - the text says all
        return EXIT_FAILED
    return 0


async def _main(state: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run_guard(state=state, clock=HostClock(trust_host=trusts_host()), stop=stop)
