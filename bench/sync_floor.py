"""The floor of a first synchronisation: the same documents from a bare publisher to the same fleet."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import mqtt
from bench.sync_servers import NodeIdentity, broker_start, fleet_process
from edge.wire.messages import KEEP_ALIVE_S
from edge.wire.topics import CENTRAL_RIGHTS

# So many are on their way at most, as the broker's own configuration has it.
IN_FLIGHT = 1000
PUBLISHER = "central-worker"


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Seconds from the first publish: until the broker had taken over all, and until all nodes had all."""

    acknowledged_s: float
    complete_s: float
    messages: int
    megabytes: float


class _Publisher(asyncio.Protocol):
    """Publishes all, retained, at QoS 1, with a bounded number on their way."""

    def __init__(self, messages: Sequence[tuple[bytes, bytes]], password: str) -> None:
        self._messages = messages
        self._password = password
        self._reader = mqtt.Reader()
        self._next = 0
        self._on_way = 0
        loop = asyncio.get_running_loop()
        self.connected: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[float] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(
            mqtt.connect(
                client="floor",
                username=PUBLISHER,
                password=self._password,
                keep_alive_s=KEEP_ALIVE_S,
                session_expiry_s=0,
            )
        )

    def data_received(self, data: bytes) -> None:
        for packet in self._reader.feed(data):
            assert isinstance(packet, mqtt.Acknowledged)
            assert not packet.is_refused, packet
            if packet.kind == mqtt.CONNACK:
                self.connected.set_result(None)
            else:
                self._on_way -= 1
        if self.connected.done():
            self.go_on()

    def go_on(self) -> None:
        packets = []
        while self._on_way < IN_FLIGHT and self._next < len(self._messages):
            topic, payload = self._messages[self._next]
            packets.append(mqtt.publish(topic, payload, packet=self._next % 0xFFFF + 1, retain=True))
            self._next += 1
            self._on_way += 1
        if packets:
            self._transport.write(b"".join(packets))
        elif self._on_way == 0 and not self.done.done():
            self.done.set_result(time.time())


def measure(var: Path, *, nodes: list[NodeIdentity], messages: Sequence[tuple[bytes, bytes]]) -> Floor:
    """Publish (topic, payload) to these nodes, all connected; on a broker and a fleet of its own."""
    var.mkdir(parents=True, exist_ok=True)
    passwords = {user: secrets.token_hex(24) for user in CENTRAL_RIGHTS}
    port, broker = broker_start(var / "broker", passwords=passwords, nodes=nodes)
    try:
        with fleet_process(var, port=port, nodes=nodes) as fleet:
            fleet.ask("connect")
            began, acknowledged = asyncio.run(_publish(port, passwords[PUBLISHER], messages))
            state = fleet.until_all("complete", within_s=120)
    finally:
        broker.kill()
        broker.wait(timeout=20)
    return Floor(
        acknowledged_s=acknowledged - began,
        complete_s=state["last_complete_at"] - began,
        messages=len(messages),
        megabytes=sum(len(payload) for _, payload in messages) / 1e6,
    )


async def _publish(port: int, password: str, messages: Sequence[tuple[bytes, bytes]]) -> tuple[float, float]:
    loop = asyncio.get_running_loop()
    transport, publisher = await loop.create_connection(
        lambda: _Publisher(messages, password), "127.0.0.1", port
    )
    async with asyncio.timeout(120):
        await publisher.connected
        began = time.time()
        publisher.go_on()
        acknowledged = await publisher.done
    transport.write(mqtt.GOOD_BYE)
    transport.close()
    return began, acknowledged
