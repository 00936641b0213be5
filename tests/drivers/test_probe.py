"""A probe: what it says of a device, right or wrong, and that it writes nothing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge.drivers.probe import probe
from edge.profiles.loader import load_all
from edge.profiles.model import OwnFallback, Profile, Step
from edge.simulators.device import Fault
from edge.wire.messages import ProbeLine, ProbeReport, Verdict
from tests.drivers.benches import BENCHES, NAMEPLATE_KW, PROFILES, cases, on_bench, ways_of

SMA, GENERIC, SUNGROW = "sma_stp60_im20", "generic_modbus", "sungrow_sg110cx"
OK, WARNING, FAILED = Verdict.OK, Verdict.WARNING, Verdict.FAILED


async def report_on(bench: Any, *, nameplate_kw: float | None = NAMEPLATE_KW) -> ProbeReport:
    profile = bench.device.profile
    looked = await probe(bench.driver, profile, nameplate_kw, clock=bench.clock)
    return looked.report(where="here", at="2026-01-01T00:00:00Z", took_s=0.0)


def of(report: ProbeReport, part: str, point: str = "") -> ProbeLine:
    """The first line of this part, or that about this point."""
    return next(
        line for line in report.lines if line.part == part and (not point or point in (line.point, line.name))
    )


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=str(case), marks=[pytest.mark.services] if BENCHES[case.way].services else [])
        for case in cases()
        if case.way == ways_of(case.profile)[0]
    ],
)
async def test_probe_of_the_right_device_fails_nothing_and_writes_nothing(case):
    async with on_bench(case) as bench:
        report = await report_on(bench)

        assert [line for line in report.lines if line.verdict is FAILED] == []
        assert bench.device.writes is None or bench.device.writes.total() == 0
        assert bench.device.gap_violations == []
    keys = {line.key: line for line in report.lines if line.key}
    assert set(keys) == set(case.profile.telemetry)
    assert [key for key, line in keys.items() if line.value is None] == []


async def test_device_of_another_type_fails_with_what_was_expected_and_what_to_do(bench):
    bench = await bench(SMA)
    bench.device.registers.set("own_unit", 126)

    line = of(await report_on(bench), "identity", "own_unit")

    assert (line.verdict, line.value, line.expected) == (FAILED, 126, "125")
    assert "unit 125" in line.detail


async def test_profile_that_cannot_recognise_its_device_says_so(bench):
    assert of(await report_on(await bench(GENERIC)), "identity").verdict is WARNING


@pytest.mark.parametrize(
    ("rated_kw", "verdict", "detail"),
    [
        (60, OK, ""),
        (65, OK, ""),
        (50, FAILED, "more than 10 % apart"),
        (600, FAILED, "factor 10?"),
        (6, FAILED, "factor 10?"),
    ],
)
async def test_rated_power_is_compared_with_the_configured_one(bench, rated_kw, verdict, detail):
    bench = await bench(SMA)
    bench.device.registers.set("rated_power", rated_kw)

    line = of(await report_on(bench), "rated power")

    assert (line.verdict, line.value, line.expected) == (verdict, rated_kw, "60 kW")
    assert line.detail.startswith(detail)


def two_words_wide(profile: Profile) -> Profile:
    """A profile whose rated power is two registers, in watts."""
    rating = msgspec.structs.replace(
        profile.registers["rated_power"], address=41000, type="u32", scale_point=None, scale=0.001, nan=None
    )
    return msgspec.structs.replace(profile, points={**profile.points, "rated_power": rating})


async def test_words_that_come_the_other_way_around_are_recognised(bench):
    bench = await bench(two_words_wide(PROFILES[SMA]))
    words = bench.device.registers.words["holding"]
    words[41000], words[41001] = words[41001], words[41000]

    line = of(await report_on(bench), "rated power")

    assert line.verdict is FAILED
    assert line.detail.startswith("word order?")


async def test_rated_power_without_one_to_compare_with_is_only_told(bench):
    line = of(await report_on(await bench(SMA), nameplate_kw=None), "rated power")
    assert (line.verdict, line.value) == (WARNING, 60)


async def test_limit_that_stands_is_told_and_left_alone(bench):
    bench = await bench(SMA)
    bench.device.registers.set("limit_pct", 40)

    report = await report_on(bench)

    line = of(report, "limit", "in force")
    assert (line.verdict, line.value, line.unit) == (WARNING, 40, "%")
    assert of(report, "limit", "limit_pct").value == 40
    assert bench.device.limit_in_force == 40


async def test_switch_that_is_not_set_fails_with_what_to_do(bench):
    bench = await bench(SMA)
    bench.device.registers.set("limit_enabled", 0)

    report = await report_on(bench)

    line = of(report, "switches", "limit_enabled")
    assert (line.verdict, line.value, line.expected) == (FAILED, 0, "1")
    assert "have the limitation by Modbus enabled" in line.detail
    # What is switched off limits nothing.
    assert of(report, "limit", "in force").detail == "no limit stands"


def with_own_fallback(**changes: Any) -> Profile:
    profile = load_all()[GENERIC]
    spare = msgspec.structs.replace(profile.registers["limit_target"], access="read_write", scale=1.0)
    points = {
        **profile.points,
        "revert_s": msgspec.structs.replace(spare, name="RvrtTms", address=60, unit="s", example=0),
        "revert_pct": msgspec.structs.replace(spare, name="RvrtPct", address=61, unit="%", example=30),
    }
    given: dict[str, Any] = {
        "timeout_s": 60,
        "arm": (Step(point="revert_s", value="$timeout"), Step(point="revert_pct", value="$fallback")),
        "keep_alive": (Step(point="limit_target", value="$value"),),
        "keep_alive_class": "volatile",
    }
    assert profile.limit is not None
    limit = msgspec.structs.replace(profile.limit, fallback=OwnFallback(**{**given, **changes}))
    return msgspec.structs.replace(profile, points=points, limit=limit)


async def test_own_fallback_is_shown_against_what_it_would_be_armed_with(bench):
    bench = await bench(with_own_fallback())

    report = await report_on(bench)

    assert "takes the value that it is armed with" in of(report, "own fallback").detail
    assert of(report, "own fallback", "revert_s").expected == "would be armed with 60"
    line = of(report, "own fallback", "revert_pct")
    assert (line.value, line.expected) == (30, "would be armed with 100")
    assert bench.device.alive_at is None
    assert bench.device.writes.total() == 0


async def test_own_fallback_that_wears_its_register_is_worth_a_look(bench):
    report = await report_on(await bench(with_own_fallback(keep_alive_class="persistent")))
    assert of(report, "own fallback").verdict is WARNING


async def test_preset_of_the_installer_that_is_not_the_default_is_worth_a_look(bench):
    preset = with_own_fallback(takes="preset", preset="revert_pct", arm=())
    line = of(await report_on(await bench(preset)), "own fallback", "revert_pct")
    assert (line.verdict, line.value, line.expected) == (WARNING, 30, "100")


async def test_value_that_is_none_is_told_as_none(bench):
    bench = await bench(GENERIC)
    bench.device.shown["power"] = None

    line = of(await report_on(bench), "telemetry", "power")

    assert (line.verdict, line.value, line.detail) == (WARNING, None, "no value")


async def test_point_that_the_device_refuses_keeps_no_other_from_being_read(bench):
    bench = await bench(SUNGROW)
    lacking, other = sorted(set(PROFILES[SUNGROW].telemetry.values()))[:2]
    bench.device.registers.remove(lacking)

    report = await report_on(bench)

    line = of(report, "telemetry", lacking)
    assert (line.verdict, line.value) == (WARNING, None)
    assert "refused" in line.detail
    assert of(report, "telemetry", other).value is not None


async def test_power_far_above_the_configured_one_is_worth_a_look(bench):
    bench = await bench(GENERIC)
    bench.device.shown["power"] = 600.0
    assert of(await report_on(bench), "telemetry", "power").verdict is WARNING


async def test_device_that_falls_silent_ends_the_probe_and_what_came_before_is_told(bench):
    bench = await bench(SMA, timeout_s=0.2)
    await bench.device.set_fault(Fault.SILENT)

    report = await report_on(bench)

    line = of(report, "answers")
    assert (report.verdict, line.verdict) == (FAILED, FAILED)
    assert "no answer" in line.detail
    assert of(report, "telemetry", "power").detail == "not asked any more"
