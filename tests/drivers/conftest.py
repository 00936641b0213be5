from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from edge.profiles.model import Profile
from tests.drivers.benches import PROFILES, Bench, Order, SharedClock, modbus_tcp

BenchFactory = Callable[..., Awaitable[Bench]]


@pytest.fixture
def clock() -> SharedClock:
    return SharedClock()


@pytest.fixture
async def bench(clock: SharedClock) -> AsyncIterator[BenchFactory]:
    """Set up a Modbus device by profile; the session is not connected unless asked."""
    async with AsyncExitStack() as stack:

        async def build(
            profile: Profile | str, *, connect: bool = True, timeout_s: float = 2.0, unit: int | None = None
        ) -> Bench:
            if isinstance(profile, str):
                profile = PROFILES[profile]
            made = await modbus_tcp(stack, Order(profile, clock, timeout_s, unit))
            if connect:
                await made.reconnect()
            return made

        yield build
