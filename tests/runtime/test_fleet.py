"""Lines and devices as a configuration wants them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as replace_struct

from edge.profiles.points import Protocol
from edge.profiles.reading import profile_to_builtins
from edge.runtime.config import Endpoint, Planned, Profiles, pace_of, planned_device
from edge.runtime.fleet import LINE_STEP_S, PHASE_STEP_S, poll_phase_s
from edge.wire.messages import SiteConfig
from tests.runtime.plant import profile, running_plant

SITE = SiteConfig(id="site-1", tag="site_a", curtailment_time_limit_s=60.0, cyclic_write_timeout_s=300.0)


def test_polls_of_many_devices_are_spread_over_their_period():
    phases = Counter(poll_phase_s(f"INVERTER_{number:04}", 1.0) for number in range(1000))

    assert len(phases) == 1.0 / PHASE_STEP_S
    # Even to the eye: 50 each on average, and no moment with twice as many.
    assert max(phases.values()) < 100


@pytest.mark.parametrize("poll_s", [0.1, 0.13, 1.0, 10.0, 900.0])
def test_a_phase_lies_in_the_period(poll_s):
    assert all(0 <= poll_phase_s(f"INVERTER_{number:02}", poll_s) < poll_s for number in range(50))


def test_a_phase_is_the_same_on_every_start():
    # Of the tag alone: what `hash` gives differs from process to process.
    assert poll_phase_s("INVERTER_01", 1.0) == pytest.approx(0.95)
    assert poll_phase_s("INVERTER_02", 1.0) == pytest.approx(0.05)


def test_a_period_shorter_than_the_step_has_one_phase():
    assert {poll_phase_s(f"INVERTER_{number}", PHASE_STEP_S / 10) for number in range(50)} == {0.0}


async def test_new_lines_connect_one_after_the_other(tmp_path: Path):
    async with running_plant(tmp_path) as plant:
        tags = [f"INVERTER_{number:02}" for number in range(5)]
        for tag in tags:
            await plant.add(tag)
        plant.apply()
        seen = []
        for connected in range(1, len(tags) + 1):

            def reached() -> bool:
                return sum(device.commands > 0 for device in plant.simulated.values()) >= connected  # noqa: B023

            seen.append(await plant.run(1.0, reached))

        # A write wanted at the start does not bring them together again.
        assert seen[1:] == pytest.approx([LINE_STEP_S] * 4, abs=1e-4)


async def test_a_line_is_opened_anew_for_another_connect_delay_and_kept_for_the_same(tmp_path: Path):
    async with running_plant(tmp_path) as plant:
        device = await plant.add("INVERTER_01", profile(connect_delay_ms=1000))
        plant.apply()
        await plant.run(3, lambda: device.commands)
        (line,) = plant.fleet._lines.values()

        plant.apply()
        assert list(plant.fleet._lines.values()) == [line]

        plant.configure("INVERTER_01", profile(connect_delay_ms=2000), port=device.port)
        plant.apply()
        await plant.run(5)
        (other,) = plant.fleet._lines.values()
        assert other.session is not line.session
        assert device.gap_violations == []


def planned(**changes: object) -> Planned:
    device = {
        "id": "1",
        "tag": "A",
        "category": "battery",
        "profile": "any",
        "port": 502,
        "unit": 1,
        **changes,
    }
    return planned_device(device, SITE, Profiles({"any": profile_to_builtins(profile())}))


def test_a_new_password_is_another_pace_and_shown_to_nobody():
    one = planned(host="10.0.0.7")
    other = replace(one, endpoint=replace(one.endpoint, password="of today"))

    assert pace_of([one]) == pace_of([one])
    assert pace_of([one]) != pace_of([other])
    assert "of today" not in repr(pace_of([other]))


def test_devices_that_share_a_line_share_the_strictest_of_each_pause():
    quick, slow = planned(host="10.0.0.7"), planned(host="10.0.0.7", unit=2)
    slow = replace(slow, profile=profile(min_gap_ms=250, timeout_ms=3000, connect_delay_ms=700))

    pace = pace_of([quick, slow])

    assert (pace.gap_s, pace.timeout_s, pace.connect_delay_s) == (0.25, 3.0, 0.7)
    assert pace.arguments["connect_delay_s"] == 0.7


@pytest.mark.parametrize(
    ("changes", "timeout_s"),
    [({}, 0.5), ({"timeout_ms": 300}, 0.3), ({"line_timeout_ms": 900}, 0.9)],
)
def test_on_a_line_a_device_may_think_for_half_a_second_unless_its_profile_says_more(changes, timeout_s):
    kind = profile(**{"timeout_ms": 2000, "also": (Protocol.MODBUS_RTU,), **changes})
    over_tcp = planned(host="10.0.0.7")

    assert pace_of([replace(over_tcp, profile=kind)]).timeout_s == kind.timeout_ms / 1000
    on_line = replace(over_tcp, profile=kind, endpoint=Endpoint(Protocol.MODBUS_RTU, "10.0.0.7", 502))
    assert pace_of([on_line]).timeout_s == timeout_s
    # A profile of a serial device means what it says.
    own = replace(on_line, profile=replace_struct(kind, protocol=Protocol.MODBUS_RTU, also=()))
    assert pace_of([own]).timeout_s == kind.timeout_ms / 1000
