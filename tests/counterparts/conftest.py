from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest

from edge.drivers.modbus import ModbusDriver, ModbusSession
from edge.profiles.loader import DATA, load_body
from edge.profiles.reading import profile_from_builtins
from tests.counterparts.server import Counterpart, Line, listening

Drive = Callable[..., Awaitable[ModbusDriver]]


class Clock:
    """Time that passes when somebody waits: the makers' pauses are kept, and cost nothing."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture(scope="session")
def line() -> Iterator[Line]:
    with listening() as line:
        yield line


@pytest.fixture
async def drive(line: Line) -> AsyncIterator[Drive]:
    """Our driver of a profile, connected to a counterpart by the profile's own unit."""
    async with AsyncExitStack() as stack:

        async def build(
            name: str,
            counterpart: Counterpart,
            *,
            nameplate_kw: float | None,
            parameters: Mapping[str, Any] | None = None,
        ) -> ModbusDriver:
            (file,) = DATA.glob(f"*/{name}.yaml")
            profile = profile_from_builtins(load_body(file), parameters or {})
            line.put(counterpart)
            clock = Clock()
            session = ModbusSession(
                host="127.0.0.1",
                port=line.port,
                timeout_s=2.0,
                min_gap_s=profile.min_gap_ms / 1000,
                clock=clock,
                sleep=clock.sleep,
            )
            stack.push_async_callback(session.aclose)
            await session.connect()
            return ModbusDriver(
                session=session, profile=profile, unit=profile.default_unit, nameplate_kw=nameplate_kw
            )

        yield build
