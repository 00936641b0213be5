"""Fifty nodes that send heartbeats and never answer, and requests to them, beside a live node."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from bench.record import ROOT
from bench.system import SITE_B, Client, System
from edge.wire import codec
from edge.wire.messages import Heartbeat, Presence
from edge.wire.session import Broker, open_session
from edge.wire.topics import NodeTopics
from smartgrid.demo.broker import password_line

NODES = 50
REQUESTS = 300
BLOCK = 50
HEARTBEAT_S = 2.0


@dataclass
class Result:
    nodes: int
    under_way: int
    alone_ms: list[float] = field(default_factory=list)
    beside_ms: list[float] = field(default_factory=list)
    answered_unknown: int = 0


def silent_nodes(system: System) -> Result:
    """Blocks of requests to the live node, in turn without and with fifty under way to silent ones."""
    fleet = _create(system)
    result = Result(nodes=len(fleet), under_way=len(fleet))
    client = Client(system.demo)
    values = itertools.cycle(range(20, 80))
    with _heartbeats(system, [node for node, _ in fleet]):
        for _ in range(60):
            client.curtail(next(values))
        for _ in range(REQUESTS // BLOCK):
            result.alone_ms += [_timed(client, next(values)) for _ in range(BLOCK)]
            with _under_way(system, fleet, client.token, result):
                result.beside_ms += [_timed(client, next(values)) for _ in range(BLOCK)]
    client.close()
    return result


def _timed(client: Client, value: float) -> float:
    began = time.monotonic()
    answer = client.curtail(value)
    assert answer["status"] == "success", answer
    return (time.monotonic() - began) * 1e3


@contextmanager
def _under_way(
    system: System, fleet: list[tuple[NodeTopics, str]], token: str, result: Result
) -> Iterator[None]:
    """One request to each silent node, sent and not answered while the block runs."""
    sent = threading.Barrier(len(fleet) + 1)

    def ask(tag: str) -> None:
        silent = Client(system.demo, token=token)
        sent.wait()
        answer = silent.curtail(50, site=SITE_B, tags=(tag,))
        if answer["result"]["not_updated"][tag].startswith("unknown"):
            result.answered_unknown += 1
        silent.close()

    threads = [threading.Thread(target=ask, args=(tag,)) for _, tag in fleet]
    for thread in threads:
        thread.start()
    sent.wait()
    # Until they all wait: what is measured is their waiting, not the burst of their arrival.
    time.sleep(1.5)
    yield
    for thread in threads:
        thread.join()


def _create(system: System) -> list[tuple[NodeTopics, str]]:
    """Nodes with one device each at the live node's site, made in a process of their own."""
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "smartgrid.settings",
        "SGM_SECRET_KEY": secrets.token_hex(32),
        "SGM_DATABASE_URL": system.demo["database_url"],
        "SGM_REDIS_URL": system.demo["redis_url"],
    }
    done = subprocess.run(
        [sys.executable, "-m", "bench.silent_fleet", str(NODES)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [(NodeTopics(tenant, node), tag) for tenant, node, tag in json.loads(done.stdout)]


@contextmanager
def _heartbeats(system: System, nodes: list[NodeTopics]) -> Iterator[None]:
    """The silent nodes' sign of life, each under its own identity and session."""
    broker = _let_in(system, nodes)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    born = threading.Semaphore(0)

    async def one(topics: NodeTopics) -> None:
        session_id = uuid.uuid4().hex
        own = Broker(broker.host, broker.port, topics.node, broker.password)
        async with open_session(own, identifier=f"silent-{topics.node}") as session:
            birth = Presence(online=True, session=session_id, boot="bench", fresh=secrets.token_hex(6))
            await session.publish(topics.presence, codec.encode(birth), retain=True)
            born.release()
            for number in itertools.count(1):
                beat = Heartbeat(
                    session=session_id, seq=number, mono_ms=0, wall="", fresh=secrets.token_hex(6)
                )
                await session.publish(topics.heartbeat, codec.encode(beat), qos=0)
                try:
                    await asyncio.wait_for(stop.wait(), HEARTBEAT_S)
                except TimeoutError:
                    continue
                return

    async def every() -> None:
        await asyncio.gather(*(one(topics) for topics in nodes))

    thread = threading.Thread(target=loop.run_until_complete, args=(every(),), daemon=True)
    thread.start()
    for _ in nodes:
        assert born.acquire(timeout=30), "a silent node did not reach the broker"
    time.sleep(1.0)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=20)


def _let_in(system: System, nodes: list[NodeTopics]) -> Broker:
    """Add the silent nodes to the broker's users, with one password, and let it read them again."""
    password = secrets.token_hex(16)
    with (system.var / "broker" / "passwords").open("a", encoding="ascii") as users:
        users.writelines(password_line(topics.node, password) + "\n" for topics in nodes)
    os.kill(system.demo["processes"]["broker"], signal.SIGHUP)
    address = urlsplit(system.demo["mqtt_url"])
    assert address.hostname is not None
    assert address.port is not None
    return Broker(address.hostname, address.port, None, password)
