"""Who else may be at a broker, or in its place: devices made by hand, and brokers that are none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiomqtt

Answer = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass
class Peer:
    """Somebody at the broker: says what a test wants, and notes all that comes on the topics it asked for."""

    client: aiomqtt.Client
    heard: list[aiomqtt.Message] = field(default_factory=list)
    # Called with each command, taken apart.
    on_command: Answer | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def say(self, topic: str, payload: object, *, retain: bool = False) -> None:
        body = payload if isinstance(payload, str | bytes) else json.dumps(payload)
        await self.client.publish(topic, body, qos=1, retain=retain)

    async def listen(self) -> None:
        async for message in self.client.messages:
            self.heard.append(message)
            self.news.set()
            if self.on_command is not None and not message.retain:
                await self.on_command(json.loads(bytes(message.payload)))
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    # On Python 3.11 the library swallows a cancellation that meets an acknowledgement.
                    return

    async def hears(self, count: int) -> aiomqtt.Message:
        """The message of this number, once it is there."""
        async with asyncio.timeout(5):
            while len(self.heard) < count:
                self.news.clear()
                await self.news.wait()
        return self.heard[count - 1]


@asynccontextmanager
async def peer(url: str, *topics: str, **options: Any) -> AsyncIterator[Peer]:
    """Come to the broker and listen to these topics."""
    parts = urlsplit(url)
    async with aiomqtt.Client(
        parts.hostname or "", parts.port or 0, protocol=aiomqtt.ProtocolVersion.V5, **options
    ) as client:
        one = Peer(client)
        if topics:
            await client.subscribe([(topic, 1) for topic in topics])
        task = asyncio.create_task(one.listen())
        try:
            yield one
        finally:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error


@dataclass
class OldBroker:
    """What little of a broker of MQTT 3.1.1 a session needs, from its standard: who knows no other version.

    `refuses`: how it meets MQTT 5: `connack` is the answer of 3.1.1 (3.2.2.3), `hang_up` none, `mqtt5` the answer
    of MQTT 5 (3.2.2.2). `published` are its clients' messages: flags, topic, payload.
    """

    refuses: str
    state: tuple[str, bytes]
    greetings: list[int] = field(default_factory=list)
    published: list[tuple[int, str, bytes]] = field(default_factory=list)
    ack_topic: str = ""
    port: int = 0
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                kind, body = await _packet(reader)
                answer = self._answer(kind, body)
                if answer is None:
                    return
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    def _answer(self, kind: int, body: bytes) -> bytes | None:
        match kind >> 4:
            case 1:
                version = body[6]
                self.greetings.append(version)
                if version == 5:
                    return {"connack": b"\x20\x02\x00\x01", "mqtt5": b"\x20\x03\x00\x84\x00"}.get(
                        self.refuses
                    )
                return b"\x20\x02\x00\x00"
            case 3:
                return self._published(kind, body)
            case 8:
                # One code for each topic: length, text and QoS of each follow the packet's number.
                count, at = 0, 2
                while at < len(body):
                    at += 2 + int.from_bytes(body[at : at + 2], "big") + 1
                    count += 1
                topic, payload = self.state
                said = len(topic).to_bytes(2, "big") + topic.encode() + payload
                return bytes([0x90, 2 + count]) + body[:2] + b"\x01" * count + _framed(0x30, said)
            case 10:
                return b"\xb0\x02" + body[:2]
            case 12:
                return b"\xd0\x00"
            case 14:
                return None
        return b""

    def _published(self, kind: int, body: bytes) -> bytes:
        length = int.from_bytes(body[:2], "big")
        topic, payload = body[2 : 2 + length].decode(), body[4 + length :]
        self.published.append((kind & 0x0F, topic, payload))
        answer = b"\x40\x02" + body[2 + length : 4 + length]
        if self.ack_topic:
            ack = json.dumps({"id": json.loads(payload)["id"], "accepted": True}).encode()
            said = len(self.ack_topic).to_bytes(2, "big") + self.ack_topic.encode() + ack
            answer += _framed(0x30, said)
        return answer


def _framed(kind: int, body: bytes) -> bytes:
    length, left = b"", len(body)
    while True:
        left, digit = divmod(left, 128) if left >= 128 else (0, left)
        length += bytes([digit | (0x80 if left else 0)])
        if not left:
            return bytes([kind]) + length + body


async def _packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    kind = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        digit = (await reader.readexactly(1))[0]
        length |= (digit & 0x7F) << shift
        shift += 7
        if not digit & 0x80:
            return kind, await reader.readexactly(length)
