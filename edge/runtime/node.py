"""A node: everything it is made of, put together, in one task group.

When any part dies, the process does, with a non-zero exit: nothing may go on writing without its watchdog.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from edge.core.clock import Trust
from edge.drivers.registry import DRIVERS, Drivers
from edge.runtime.clock import Clock, HostClock, SteeredClock, trusts_host
from edge.runtime.control import Watchers, build_control
from edge.runtime.database import StoreFailed
from edge.runtime.documents import CONFIG
from edge.runtime.garbage import Collector
from edge.runtime.link import Link
from edge.runtime.logs import configure_logging
from edge.runtime.reasons import Reasons
from edge.runtime.session import OpenSession
from edge.runtime.signs import BUS_LOCK, BUS_WANTED, Holder, Patience, Phase, Role, Sign, SignedLock, is_alive
from edge.runtime.store import Store
from edge.runtime.systemd import ServiceManager
from edge.runtime.uploader import PACE, Pace
from edge.wire.session import Broker, broker_from_url, open_session
from edge.wire.topics import NodeTopics

if TYPE_CHECKING:
    # Where there is no certificate, nothing of the library that reads it.
    from edge.runtime.identity import Identity

log = structlog.get_logger()

EXIT_FAILED = 1
EXIT_BUS_TAKEN = 75  # EX_TEMPFAIL: another process may talk to these devices
# How often a node that waits for the guard looks, and shows that it is alive.
LOOK_S = 0.05
# A holder without a sign is between two steps of taking or freeing the lock, or is not one of ours.
UNSIGNED_S = 5.0


class BusTaken(Exception):  # noqa: N818 - states the fault
    """Another process holds the bus lock of this state directory."""


@asynccontextmanager
async def bus_lock(state: Path, *, clock: Clock) -> AsyncIterator[SignedLock]:
    """Hold the right to use this node's devices and store; a dead process frees it at once.

    Waits while the guard holds it, which yields between two writes. `BusTaken` where another node does;
    `OSError` where the directory cannot be written.
    """
    bus = SignedLock(state / BUS_LOCK, role=Role.NODE, clock=clock)
    try:
        if not bus.writable:
            raise PermissionError(f"{state} cannot be written")
        if not bus.take(Phase.LOADING):
            await _ask_the_guard(bus, state, clock)
        yield bus
    finally:
        bus.close()


async def _ask_the_guard(bus: SignedLock, state: Path, clock: Clock) -> None:
    """Wait until the guard yields; one that is stalled is ended, as it would end a stalled node."""
    taken = f"{state} is in use by another node process"
    wanted = SignedLock(state / BUS_WANTED, role=Role.NODE, clock=clock)
    try:
        if not wanted.take(Phase.WAITING):
            raise BusTaken(f"{taken}, which waits for the guard")
        patience = Patience()
        said = False
        while not bus.take(Phase.LOADING):
            wanted.stamp(Phase.WAITING)
            sign, now_s = bus.read(), clock.boottime_s()
            if sign is None or not is_alive(sign):
                if patience.silent_s(sign, now_s=now_s) > UNSIGNED_S:
                    raise BusTaken(f"{state} is in use by a process that does not say who it is")
            elif sign.role is Role.NODE:
                raise BusTaken(taken)
            elif patience.has_ended(sign, now_s=now_s):
                _end_stalled(sign, bus)
            elif not said:
                log.info("node waits for the guard to yield", guard=sign.pid)
                said = True
            await clock.sleep(LOOK_S)
        wanted.release()
    finally:
        wanted.close()


def _end_stalled(sign: Sign, bus: SignedLock) -> None:
    holder = Holder.of(sign)
    if holder is None:
        return
    try:
        if bus.read() == sign:
            log.error("the guard is stalled: killed", guard=sign.pid)
            holder.kill()
    finally:
        holder.close()


class Stopped(Exception):  # noqa: N818 - not an error: somebody asked
    """Ends the task group in an orderly way."""


async def run_node(
    *,
    broker: Broker,
    topics: NodeTopics,
    state: Path,
    clock: SteeredClock,
    stop: asyncio.Event,
    drivers: Drivers = DRIVERS,
    open_session: OpenSession = open_session,
    pace: Pace = PACE,
    loading: Callable[[], None] = lambda: None,
    alive: Callable[[], None] = lambda: None,
    identity: Identity | None = None,
) -> None:
    """Run a node until `stop` is set; `pace`: how fast its outbox may leave.

    `identity`: that of an enrolled node, whose certificate is kept good.

    All it knows of the world comes through `clock`, `drivers` and `open_session`: on simulated ones the same
    node lives a day in seconds. `loading` is called before a configuration is put into force, `alive` once
    every turn of the write cycle.
    """
    store = Store(state)
    reasons = Reasons(state, clock=clock, who="node")
    try:
        async with asyncio.TaskGroup() as tasks:
            _build(
                broker=broker,
                topics=topics,
                store=store,
                reasons=reasons,
                clock=clock,
                tasks=tasks,
                drivers=drivers,
                open_session=open_session,
                pace=pace,
                loading=loading,
                alive=alive,
                identity=identity,
            )
            tasks.create_task(_stop_on(stop), name="stop")
    except* Stopped:
        log.info("node stops")
    finally:
        reasons.close()
        store.close()


async def _stop_on(stop: asyncio.Event) -> None:
    await stop.wait()
    raise Stopped


def _build(
    *,
    broker: Broker,
    topics: NodeTopics,
    store: Store,
    reasons: Reasons,
    clock: SteeredClock,
    tasks: asyncio.TaskGroup,
    drivers: Drivers,
    open_session: OpenSession,
    pace: Pace,
    loading: Callable[[], None],
    alive: Callable[[], None],
    identity: Identity | None,
) -> None:
    def logged() -> None:
        link.logged()

    def changed() -> None:
        link.changed()

    def stood() -> None:
        link.stood()

    control = build_control(
        clock=clock,
        store=store,
        tasks=tasks,
        watchers=Watchers(loading=loading, alive=alive, logged=logged, changed=changed, stood=stood),
        drivers=drivers,
        reasons=reasons,
    )
    link = Link(
        broker=broker,
        topics=topics,
        clock=clock,
        store=store,
        cycle=control.cycle,
        desired=control.desired,
        fleet=control.fleet,
        alarms=control.alarms,
        tasks=tasks,
        open_session=open_session,
        pace=pace,
        reasons=reasons,
    )
    # From the disk first: the devices are controlled before anybody is asked for permission to connect.
    control.start()
    tasks.create_task(link.run(), name="link")
    if identity is not None:
        from edge.runtime.renewal import Renewal  # noqa: PLC0415 - 8 MB for who has no certificate

        def asked() -> str | None:
            config = control.desired.applied.get(CONFIG)
            found = None if config is None else config.body.get("renew_certificates_before")
            return found if isinstance(found, str) else None

        renewal = Renewal(
            identity=identity,
            state=store.directory,
            clock=clock,
            alarms=control.alarms,
            connection=link,
            asked=asked,
        )
        tasks.create_task(renewal.run(), name="renewal")


def main(argv: Sequence[str]) -> int:
    """`python -m edge node`: run one node in the foreground."""
    parser = argparse.ArgumentParser(prog="python -m edge node", description=main.__doc__)
    parser.add_argument("--state", required=True, type=Path, help="the node's state directory")
    parser.add_argument("--node", help="the node's UUID; default: as it was enrolled")
    parser.add_argument("--tenant", help="the tenant's slug; default: as it was enrolled")
    parser.add_argument("--broker", help="mqtt://host:port; default: as it was enrolled")
    parser.add_argument("--username", help="default: the node's UUID")
    parser.add_argument("--password-file", type=Path, help="file with the broker password")
    parser.add_argument(
        "--split-connections",
        action="store_true",
        help="publish and subscribe on separate connections (for a broker without TCP_NODELAY)",
    )
    options = parser.parse_args(argv)
    configure_logging()
    clock = HostClock(trust_host=trusts_host())
    if options.node is None and options.tenant is None and options.broker is None:
        identity, broker, topics = _enrolled(options.state, clock, parser)
    elif None in (options.node, options.tenant, options.broker):
        parser.error("--node, --tenant and --broker belong together; an enrolled node needs none of them")
    else:
        identity = None
        broker, topics = _by_password(options, parser)
    structlog.contextvars.bind_contextvars(node=topics.node)
    try:
        asyncio.run(_main(broker, topics, options.state, clock, identity))
    except BusTaken as error:
        print(f"{error}; stop it first", file=sys.stderr)  # noqa: T201 - said to whoever started us
        return EXIT_BUS_TAKEN
    except (OSError, StoreFailed) as error:
        # Of the state directory: what a task of the running node raises comes as a group.
        log.error("the node cannot work", state=str(options.state), error=str(error))  # noqa: TRY400
        return EXIT_FAILED
    return 0


def _enrolled(
    state: Path, clock: SteeredClock, parser: argparse.ArgumentParser
) -> tuple[Identity, Broker, NodeTopics]:
    """What an enrolment left on disk."""
    from edge.runtime.identity import IdentityUnusable, broker_followed, identity_read  # noqa: PLC0415

    def is_dated() -> bool:
        return clock.standing().trust is not Trust.UNSYNCED

    try:
        identity = identity_read(state)
        return (
            identity,
            broker_followed(identity, state, is_dated=is_dated),
            NodeTopics(identity.tenant, identity.node),
        )
    except (IdentityUnusable, ValueError) as error:
        parser.error(str(error))


def _by_password(options: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[Broker, NodeTopics]:
    """What the command line says of a node that has a password."""
    try:
        password = (
            options.password_file.read_text(encoding="utf-8").strip() if options.password_file else None
        )
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--password-file {options.password_file}: {error}")
    try:
        broker = broker_from_url(
            options.broker,
            username=options.username or options.node,
            password=password,
            split=options.split_connections,
        )
        return broker, NodeTopics(options.tenant, options.node)
    except ValueError as error:
        parser.error(str(error))


async def _main(
    broker: Broker, topics: NodeTopics, state: Path, clock: HostClock, identity: Identity | None
) -> None:
    manager = ServiceManager(clock=clock.boottime_s)
    try:
        manager.status("waits for the bus")
        async with bus_lock(state, clock=clock) as bus:
            stop = asyncio.Event()
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)

            collector = Collector()

            def loading() -> None:
                bus.stamp(Phase.LOADING)
                collector.loading()

            def alive() -> None:
                collector.turned()
                bus.stamp(Phase.RUNNING)
                manager.ready()
                manager.alive()

            manager.status("controls its devices")
            await run_node(
                broker=broker,
                topics=topics,
                state=state,
                clock=clock,
                stop=stop,
                loading=loading,
                alive=alive,
                identity=identity,
            )
            manager.stopping()
    finally:
        manager.close()
