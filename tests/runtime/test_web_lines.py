"""Rule 19 over HTTP, in real time: what a write is owed while a server is away, and when it is back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from edge.drivers.registry import DRIVERS
from edge.profiles.loader import load_all
from edge.profiles.points import Protocol
from edge.runtime.bus import Bus
from edge.runtime.config import Endpoint
from edge.simulators.device import Fault
from edge.simulators.http_json import SimulatedHttp
from edge.simulators.web import SimulatedServer
from edge.simulators.xml_da import SimulatedXmlDa
from edge.wire.messages import Code
from tests.runtime.lines import NAMEPLATE_KW, Lines, running

# In real time: not for a suite that shares its machine with others.
pytestmark = pytest.mark.long

PROFILES = load_all()
SERVERS: dict[str, type[SimulatedServer]] = {
    "xml_da_wind_turbine": SimulatedXmlDa,
    "generic_http_inverter": SimulatedHttp,
}
LOGIN: dict[str, Any] = {"username": "grid", "password": "pw"}
TIMEOUT_S = 0.4


class Stage:
    """A bus to one server, and the device behind it."""

    def __init__(self, server: SimulatedServer, lines: Lines) -> None:
        self.server, self.lines = server, lines
        profile = server.profile
        endpoint = Endpoint(profile.protocol, url=server.url, **LOGIN)
        self.bus = Bus(name=server.url, clock=lines.clock, listener=lines, min_gap_s=0.0)
        constructors = DRIVERS[profile.protocol]
        session = constructors.session(
            **endpoint.arguments,
            timeout_s=TIMEOUT_S,
            min_gap_s=0.0,
            clock=lines.clock.boottime_s,
            sleep=self.bus.gap,
        )
        self.bus.attach(session)
        watched: Any = server
        lines.watch("one", watched)
        driver = constructors.driver(session=session, profile=profile, unit=1, nameplate_kw=NAMEPLATE_KW)
        self.bus.add("one", driver, poll_s=0.2, tolerance=1.0, settable=True)
        lines.buses["one"] = self.bus

    async def run(self) -> None:
        self.lines.run(self.bus)
        await self.lines.until(lambda: bool(self.lines.polls.get("one")))


@pytest.fixture(params=sorted(SERVERS))
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    profile = msgspec.structs.replace(PROFILES[request.param], timeout_ms=int(1000 * TIMEOUT_S))
    assert profile.protocol in (Protocol.XML_DA, Protocol.HTTP)
    async with running() as (lines, stack):
        server = SERVERS[request.param](
            profile=profile, nameplate_kw=NAMEPLATE_KW, clock=lines.clock.boottime_s, **LOGIN
        )
        await server.start()
        stack.push_async_callback(server.stop)
        yield Stage(server, lines)


async def test_a_setpoint_is_written_and_confirmed_by_what_is_read_back(stage):
    await stage.run()

    ticket = stage.bus.write("one", 37, verify=False)
    await stage.lines.until(lambda: ticket in stage.lines.outcomes)

    assert stage.lines.outcomes[ticket].code is None
    assert stage.lines.outcomes[ticket].readback == pytest.approx(37)
    assert stage.server.limit_in_force == pytest.approx(37)


@pytest.mark.parametrize("death", [Fault.REFUSE, Fault.SILENT, Fault.DROP, Fault.HALF_FRAME])
async def test_a_server_that_returns_has_what_is_owed_to_it_at_once_and_nothing_else(stage, death):
    await stage.run()
    await stage.server.set_fault(death)
    old = stage.bus.write("one", 30, verify=False)
    await stage.lines.until(lambda: old in stage.lines.outcomes)
    assert (stage.lines.outcomes[old].code, stage.lines.outcomes[old].still_trying) == (
        Code.WRITE_FAILED,
        True,
    )
    new = stage.bus.write("one", 70, verify=False)
    await stage.lines.until(lambda: new in stage.lines.outcomes)
    del stage.lines.outcomes[new]

    await stage.server.set_fault(Fault.NONE)

    assert await stage.lines.until(lambda: new in stage.lines.outcomes) < 3.0
    assert stage.lines.outcomes[new].code is None
    assert stage.server.limit_in_force == pytest.approx(70)


async def test_an_ignored_write_is_never_confirmed(stage):
    await stage.run()
    await stage.server.set_fault(Fault.IGNORE_WRITES)

    ticket = stage.bus.write("one", 37, verify=False)
    await stage.lines.until(lambda: ticket in stage.lines.outcomes)

    assert stage.lines.outcomes[ticket].code is Code.READBACK_MISMATCH
