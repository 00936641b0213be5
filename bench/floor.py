"""The floor: a minimal program for each leg of a control request, measured beside the product.

A no-op DRF view, an empty Celery round trip, an MQTT QoS 1 request and answer, a bare pymodbus write and
read-back. Each in processes of its own, with the product's servers and options, so that what is above the
floor is ours.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pymodbus.client import AsyncModbusTcpClient

from bench.record import ROOT
from edge.wire.session import Broker, Session, open_session
from smartgrid.demo.broker import on_path
from smartgrid.demo.services import program
from smartgrid.demo.state import free_port

START_S = 30.0
LIMIT_REGISTER = 32
IN_FORCE_REGISTER = 50


@contextmanager
def _process(argv: tuple[str, ...], log: Path, **environment: str) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, cwd=ROOT, stdout=output, stderr=output, env={**os.environ, **environment}
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


def _listening(port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


class Floor:
    """The four legs, each a call that returns how long it took in milliseconds."""

    def __init__(self, stack: ExitStack, var: Path, redis_url: str) -> None:
        self._var = var
        self._web = self._start_web(stack)
        self._task = self._start_celery(stack, redis_url)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        stack.callback(self._loop.call_soon_threadsafe, self._loop.stop)
        broker_port = self._start_broker(stack)
        device_port = self._start_device(stack)
        self._answered: asyncio.Queue[bytes] = asyncio.Queue()
        self._session: Session | None = None
        ready = threading.Event()
        self._run_soon(self._keep_session(broker_port, ready))
        ready.wait(START_S)
        self._modbus = self._await(self._open_modbus(device_port))
        stack.callback(self._loop.call_soon_threadsafe, self._modbus.close)

    def _run_soon(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _await(self, coroutine: Any) -> Any:
        return self._run_soon(coroutine).result(START_S)

    # --- start --------------------------------------------------------------------------------------

    def _start_web(self, stack: ExitStack) -> http.client.HTTPConnection:
        port = free_port()
        argv = (
            *program("granian"),
            *("--interface", "wsgi", "--host", "127.0.0.1", "--port", str(port)),
            *("--workers", "1", "--blocking-threads", "200", "--backlog", "1024", "--backpressure", "1024"),
            "bench.noop_web:application",
        )
        stack.enter_context(_process(argv, self._var / "floor-web.log"))
        _listening(port)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.connect()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _start_celery(self, stack: ExitStack, redis_url: str) -> Any:
        os.environ["FLOOR_REDIS"] = redis_url
        argv = (
            *program("celery"),
            *("-A", "bench.noop_celery", "worker", "-P", "threads", "-c", "16", "-Q", "floor"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "warning"),
        )
        stack.enter_context(_process(argv, self._var / "floor-celery.log", FLOOR_REDIS=redis_url))
        from bench.noop_celery import noop  # noqa: PLC0415 - reads the address when imported

        noop.delay().get(timeout=START_S)
        return noop

    def _start_broker(self, stack: ExitStack) -> int:
        mosquitto = on_path("mosquitto")
        if mosquitto is None:
            raise SystemExit("the floor needs mosquitto: apt-get install mosquitto")
        port = free_port()
        config = self._var / "floor-mosquitto.conf"
        config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nuser root\n"
        )
        stack.enter_context(_process((mosquitto, "-c", str(config)), self._var / "floor-broker.log"))
        _listening(port)
        argv = (sys.executable, "-m", "bench.noop_node", f"mqtt://127.0.0.1:{port}")
        stack.enter_context(_process(argv, self._var / "floor-node.log"))
        return port

    def _start_device(self, stack: ExitStack) -> int:
        port = free_port()
        device = {
            "tag": "FLOOR",
            "profile": "generic_modbus",
            "port": port,
            "observe_port": free_port(),
            "unit": 1,
            "nameplate_kw": 50,
        }
        fleet = self._var / "floor-fleet.json"
        fleet.write_text(json.dumps({"devices": [device]}))
        argv = (sys.executable, "-m", "edge", "simulate", str(fleet))
        stack.enter_context(_process(argv, self._var / "floor-device.log"))
        _listening(port)
        return port

    async def _keep_session(self, port: int, ready: threading.Event) -> None:
        async with open_session(Broker("127.0.0.1", port), identifier="floor-central") as session:
            await session.subscribe("floor/rsp")
            self._session = session
            ready.set()
            async for message in session.messages():
                self._answered.put_nowait(message.payload)

    @staticmethod
    async def _open_modbus(port: int) -> AsyncModbusTcpClient:
        client = AsyncModbusTcpClient("127.0.0.1", port=port, timeout=5)
        await client.connect()
        return client

    # --- the legs -----------------------------------------------------------------------------------

    def web_ms(self) -> float:
        body = json.dumps({"value": 50, "category": "inverter"})
        began = time.perf_counter()
        self._web.request("PUT", "/noop", body, {"Content-Type": "application/json"})
        self._web.getresponse().read()
        return (time.perf_counter() - began) * 1e3

    def celery_ms(self) -> float:
        began = time.perf_counter()
        self._task.delay().get(timeout=10)
        return (time.perf_counter() - began) * 1e3

    def mqtt_ms(self) -> float:
        """Timed in the loop itself: crossing into its thread is no part of the leg."""
        return float(self._await(self._mqtt_ms()))

    async def _mqtt_ms(self) -> float:
        assert self._session is not None
        began = time.perf_counter()
        await self._session.publish("floor/cmd", b"x" * 300)
        async with asyncio.timeout(5):
            await self._answered.get()
        return (time.perf_counter() - began) * 1e3

    def modbus_ms(self, value: float) -> float:
        return float(self._await(self._modbus_ms(value)))

    async def _modbus_ms(self, value: float) -> float:
        began = time.perf_counter()
        await self._modbus.write_register(LIMIT_REGISTER, round(value * 100), device_id=1)
        answer = await self._modbus.read_holding_registers(IN_FORCE_REGISTER, count=1, device_id=1)
        assert answer.registers == [round(value * 100)]
        return (time.perf_counter() - began) * 1e3


@contextmanager
def running_floor(var: Path, *, redis_url: str) -> Iterator[Floor]:
    with ExitStack() as stack:
        yield Floor(stack, var, redis_url)
