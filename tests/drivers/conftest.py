from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from edge.drivers.modbus import ModbusDriver, ModbusSession
from edge.profiles.loader import load_all
from edge.profiles.model import Profile
from edge.simulators.modbus import SimulatedDevice
from edge.plant import Site

NAMEPLATE_KW = 60.0
PROFILES = load_all()


@dataclass
class SharedClock:
    """Time that both the driver and the device live in; a driver that waits moves it."""

    now_s: float = 1000.0
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now_s += seconds

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Bench:
    """One device on the bench: simulated, with a session and a driver to it."""

    clock: SharedClock
    device: SimulatedDevice
    session: ModbusSession
    driver: ModbusDriver


BenchFactory = Callable[..., Awaitable[Bench]]


@pytest.fixture
def clock() -> SharedClock:
    return SharedClock()


@pytest.fixture
async def bench(clock: SharedClock) -> AsyncIterator[BenchFactory]:
    """Set up a bench by profile; the session is not connected unless asked."""
    async with AsyncExitStack() as stack:

        async def build(
            profile: Profile | str, *, connect: bool = True, timeout_s: float = 2.0, unit: int | None = None
        ) -> Bench:
            if isinstance(profile, str):
                profile = PROFILES[profile]
            device = SimulatedDevice(
                profile=profile,
                unit=profile.default_unit,
                nameplate_kw=NAMEPLATE_KW,
                site=Site(peak_load_kw=20.0, started_at=clock()),
                clock=clock,
            )
            await device.start()
            stack.push_async_callback(device.stop)
            session = ModbusSession(
                host=device.host,
                port=device.port,
                timeout_s=timeout_s,
                min_gap_s=profile.min_gap_ms / 1000,
                clock=clock,
                sleep=clock.sleep,
            )
            stack.push_async_callback(session.aclose)
            driver = ModbusDriver(
                session=session,
                profile=profile,
                unit=profile.default_unit if unit is None else unit,
                nameplate_kw=NAMEPLATE_KW,
            )
            if connect:
                await session.connect()
            return Bench(clock=clock, device=device, session=session, driver=driver)

        yield build
