"""A node: everything it is made of, put together, in one task group.

When any part dies, the process does, with a non-zero exit: nothing may go on writing without its watchdog.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from edge.drivers.registry import DRIVERS, Drivers
from edge.runtime import config
from edge.runtime.alarms import Alarms
from edge.runtime.clock import Clock, HostClock, trusts_host
from edge.runtime.cycle import Cycle
from edge.runtime.documents import CONFIG, Desired
from edge.runtime.fleet import Fleet
from edge.runtime.link import Link, OpenSession
from edge.runtime.logs import configure_logging
from edge.runtime.store import Store
from edge.wire.messages import Document
from edge.wire.session import Broker, broker_from_url, open_session
from edge.wire.topics import NodeTopics

log = structlog.get_logger()

EXIT_BUS_TAKEN = 75  # EX_TEMPFAIL: another process may talk to these devices


class BusTaken(Exception):  # noqa: N818 - states the fault
    """Another process holds the bus lock of this state directory."""


@contextmanager
def bus_lock(state: Path) -> Iterator[None]:
    """Hold the right to use this node's devices and store; a dead process frees it at once."""
    state.mkdir(parents=True, exist_ok=True)
    handle = os.open(state / "bus.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusTaken(f"{state} is in use by another node process") from error
        yield
    finally:
        os.close(handle)


class Stopped(Exception):  # noqa: N818 - not an error: somebody asked
    """Ends the task group in an orderly way."""


async def run_node(
    *,
    broker: Broker,
    topics: NodeTopics,
    state: Path,
    clock: Clock,
    stop: asyncio.Event,
    drivers: Drivers = DRIVERS,
    open_session: OpenSession = open_session,
) -> None:
    """Run a node until `stop` is set.

    All it knows of the world comes through `clock`, `drivers` and `open_session`: on simulated ones the same
    node lives a day in seconds.
    """
    store = Store(state)
    try:
        async with asyncio.TaskGroup() as tasks:
            _build(
                broker=broker,
                topics=topics,
                store=store,
                clock=clock,
                tasks=tasks,
                drivers=drivers,
                open_session=open_session,
            )
            tasks.create_task(_stop_on(stop), name="stop")
    except* Stopped:
        log.info("node stops")
    finally:
        store.close()


async def _stop_on(stop: asyncio.Event) -> None:
    await stop.wait()
    raise Stopped


def _build(
    *,
    broker: Broker,
    topics: NodeTopics,
    store: Store,
    clock: Clock,
    tasks: asyncio.TaskGroup,
    drivers: Drivers,
    open_session: OpenSession,
) -> None:
    def logged() -> None:
        link.logged()

    def changed() -> None:
        link.changed()

    alarms = Alarms(clock, changed)
    cycle = Cycle(clock=clock, store=store, logged=logged, alarms=alarms)
    fleet = Fleet(cycle=cycle, clock=clock, store=store, tasks=tasks, drivers=drivers, changed=changed)
    cycle.left = fleet.retired

    def apply(documents: dict[str, Document], name: str) -> None:
        if name == CONFIG:
            fleet.apply(config.plan(documents[CONFIG].body))
        elif name in documents:
            config.schedule_body(documents[name])
        cycle.set_schedules(config.schedules(documents))

    desired = Desired(store, apply, changed)
    link = Link(
        broker=broker,
        topics=topics,
        clock=clock,
        store=store,
        cycle=cycle,
        desired=desired,
        fleet=fleet,
        alarms=alarms,
        tasks=tasks,
        open_session=open_session,
    )
    # From the disk first: the devices are controlled before anybody is asked for permission to connect.
    desired.load()
    tasks.create_task(cycle.run(), name="cycle")
    tasks.create_task(link.run(), name="link")


def main(argv: Sequence[str]) -> int:
    """`python -m edge node`: run one node in the foreground."""
    parser = argparse.ArgumentParser(prog="python -m edge node", description=main.__doc__)
    parser.add_argument("--node", required=True, help="the node's UUID")
    parser.add_argument("--tenant", required=True, help="the tenant's slug")
    parser.add_argument("--state", required=True, type=Path, help="the node's state directory")
    parser.add_argument("--broker", required=True, help="mqtt://host:port")
    parser.add_argument("--username", help="default: the node's UUID")
    parser.add_argument("--password-file", type=Path, help="file with the broker password")
    parser.add_argument(
        "--split-connections",
        action="store_true",
        help="publish and subscribe on separate connections (for a broker without TCP_NODELAY)",
    )
    options = parser.parse_args(argv)
    configure_logging()
    password = options.password_file.read_text(encoding="utf-8").strip() if options.password_file else None
    try:
        broker = broker_from_url(
            options.broker,
            username=options.username or options.node,
            password=password,
            split=options.split_connections,
        )
        topics = NodeTopics(options.tenant, options.node)
    except ValueError as error:
        parser.error(str(error))
    structlog.contextvars.bind_contextvars(node=options.node)
    try:
        with bus_lock(options.state):
            asyncio.run(_main(broker, topics, options.state))
    except BusTaken as error:
        print(f"{error}; stop it first", file=sys.stderr)  # noqa: T201 - said to whoever started us
        return EXIT_BUS_TAKEN
    return 0


async def _main(broker: Broker, topics: NodeTopics, state: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    clock = HostClock(trust_host=trusts_host())
    await run_node(broker=broker, topics=topics, state=state, clock=clock, stop=stop)
