"""One suite for every driver and profile: what the runtime relies on.

Each profile by every way of reaching its devices (`tests.drivers.benches`), over real sockets and ports; and once
more without any, because the drivers of the simulated site keep the same contract.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable

import pytest

from edge.drivers.errors import DeviceRefused, DeviceUnreachable, DriverError
from edge.drivers.registry import DRIVERS
from edge.profiles.check import UNIT_BY_SUFFIX
from edge.profiles.model import Profile
from edge.profiles.points import Protocol
from edge.simulators.device import Fault
from tests.drivers.benches import (
    BENCHES,
    NAMEPLATE_KW,
    PROFILES,
    Bench,
    Case,
    cases,
    falls_back_to,
    on_bench,
    setpoints,
    ways_of,
)

CASES = cases()
CONTROLLABLE = [case for case in CASES if case.profile.controllable]
MEASURED = [case for case in CASES if not case.profile.controllable]
# A line that breaks concerns its session, and what is read over it the profile: each session meets each kind of
# reading, and each profile one session. All of them by all ways would only wait for more timeouts.
KINDS_OF_READING = {
    "generic_modbus": "few registers",
    "generic_sunspec_123": "a walk over models",
    "sungrow_sg110cx": "pauses between commands",
    "sg_ready_heat_pump": "coils",
    "eastron_sdm630": "several blocks, and nothing written",
}
BREAKABLE = [
    case
    for case in CASES
    if case.way in ("memory", ways_of(case.profile)[0]) or case.profile.name in KINDS_OF_READING
]
# Sessions fail in the same way under a write as under a poll: once for each profile will do.
FIRST_WAYS = [case for case in CONTROLLABLE if case.way in ("memory", ways_of(case.profile)[0])]
FALLING_BACK = [case for case in CONTROLLABLE if case.profile.limit and case.profile.limit.fallback]
# What a device of whatever kind can have; each bench says which of them are for its own.
BREAKING = (Fault.REFUSE, Fault.SILENT, Fault.DELAY, Fault.DROP, Fault.HALF_FRAME, Fault.WRONG_UNIT)
# What readings can be, by the end of their canonical key.
PLAUSIBLE = {
    "_kW": (-2 * NAMEPLATE_KW, 2 * NAMEPLATE_KW),
    "_kvar": (-2 * NAMEPLATE_KW, 2 * NAMEPLATE_KW),
    "_kWh": (0, 1e9),
    "_pct": (-100, 200),
    "_degC": (-60, 150),
    "_m/s": (0, 60),
    "_Hz": (45, 66),
    "_V": (0, 40_000),
    "_A": (-2000, 2000),
    "_rpm": (0, 10_000),
    "_h": (0, 1e7),
    "_W/m2": (0, 1600),
    "_state": (0, 0xFFFF),
    "_mode": (0, 0xFFFF),
    "_code": (0, 0xFFFFFFFF),
    "_count": (0, 0xFFFFFFFF),
}
# Some count in steps of 100 W, and a battery moves a little between the commands of a poll.
POWER_TOLERANCE_KW = 0.2
# A fault that leaves a command without an answer costs its timeout.
SHORT_S = 0.08
# Behind a serial device server, the network's allowance comes on top of it; twice that, and nobody could tell a
# late answer from the next one.
LATE_S = 0.3


def each(of: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [pytest.param(one, id=str(one), marks=marks(one)) for one in of])


def marks(case: Case) -> list[pytest.MarkDecorator]:
    return [pytest.mark.services] if BENCHES[case.way].services else []


def costs(case: Case) -> list[pytest.MarkDecorator]:
    """On lines each fault costs its timeouts: nothing for the quick suite."""
    return [pytest.mark.long] if BENCHES[case.way].protocol is Protocol.MODBUS_RTU else []


def tolerance(profile: Profile) -> float:
    assert profile.limit is not None
    return profile.limit.tolerance


def is_readable(profile: Profile) -> bool:
    return profile.limit is not None and profile.limit.readback is not None


def usual(profile: Profile) -> float:
    """A setpoint that limits."""
    return setpoints(profile)[1]


async def assert_obeys(bench: Bench, case: Case, setpoint: float) -> None:
    """Write a setpoint; the device takes it, and says so where it can."""
    await bench.driver.write(setpoint)

    assert bench.device.limit_in_force == pytest.approx(setpoint, abs=tolerance(case.profile))
    found = await bench.driver.read_setpoint()
    if is_readable(case.profile):
        assert found == pytest.approx(setpoint, abs=tolerance(case.profile))
    else:
        assert found is None


def test_for_every_unit_it_is_known_what_a_reading_can_be():
    assert PLAUSIBLE.keys() == UNIT_BY_SUFFIX.keys()


def test_every_protocol_that_a_node_speaks_is_on_a_bench():
    assert DRIVERS.keys() == {way.protocol for way in BENCHES.values()}


@pytest.mark.parametrize("way", ["tcp", "serial", "rtu_over_tcp"])
def test_every_session_of_several_kinds_of_reading_meets_them_all_broken(way):
    assert {case.profile.name for case in BREAKABLE if case.way == way} >= KINDS_OF_READING.keys()


def test_every_profile_that_a_node_can_reach_is_on_a_bench():
    reached = {(case.profile.name, BENCHES[case.way].protocol) for case in CASES}
    wanted = {
        (profile.name, protocol)
        for profile in PROFILES.values()
        for protocol in profile.protocols
        if protocol in DRIVERS
    }

    assert reached == wanted


# --- who it is ----------------------------------------------------------------------------------------------


@each(CASES)
async def test_the_right_device_is_recognised(case):
    async with on_bench(case) as bench:
        await bench.driver.identify()


@each([case for case in CASES if case.profile.identity.checks])
async def test_a_device_of_another_type_is_not_controlled(case):
    async with on_bench(case) as bench:
        check = case.profile.identity.checks[-1]
        bench.device.put(check.point, "other" if case.profile.points[check.point].is_text else 7)

        with pytest.raises(DeviceRefused, match=f"{check.point}.* reads .*, expected "):
            await bench.driver.identify()


@each([case for case in CASES if case.profile.identity.nameplate])
async def test_a_nameplate_more_than_a_tenth_off_is_refused(case):
    async with on_bench(case) as bench:
        for rated_kw in (50, 6):
            bench.device.put(case.profile.identity.nameplate, rated_kw)

            with pytest.raises(DeviceRefused, match=rf"is rated {rated_kw:g}\S* kW, configured are 60 kW"):
                await bench.driver.identify()


# --- what it tells ------------------------------------------------------------------------------------------


@each(CASES)
async def test_readings_come_under_their_canonical_keys_and_are_plausible(case):
    async with on_bench(case) as bench:
        readings = (await bench.driver.poll()).readings

        assert set(readings) == set(case.profile.telemetry) == set(bench.driver.telemetry_units)
        for key, value in readings.items():
            low, high = next(span for suffix, span in PLAUSIBLE.items() if key.endswith(suffix))
            assert value is not None, key
            assert low <= value <= high, key


@each([case for case in CASES if "P_kW" in case.profile.telemetry])
async def test_power_is_what_the_machine_gives_towards_the_grid(case):
    async with on_bench(case) as bench:
        if case.profile.controllable:
            # At its default a battery with a setpoint stands still.
            await bench.driver.write(usual(case.profile))
            bench.clock.advance(5)
        readings = (await bench.driver.poll()).readings

        assert readings["P_kW"] == pytest.approx(bench.device.machine.power_kw, abs=POWER_TOLERANCE_KW)
        assert readings["P_kW"] != 0


@each(CASES)
async def test_a_value_that_the_device_has_not_is_none_and_never_zero(case):
    async with on_bench(case) as bench:
        for key, name in case.profile.telemetry.items():
            try:
                bench.device.put(name, None)
            except ValueError:
                # It has no way to say so.
                continue
            bench.device.shown[name] = None

            readings = (await bench.driver.poll()).readings

            assert readings[key] is None, key
            del bench.device.shown[name]


@each(CASES)
async def test_a_poll_takes_the_commands_it_says(case):
    async with on_bench(case) as bench:
        await bench.driver.poll()
        said, before = bench.driver.commands_per_poll, bench.device.commands

        await bench.driver.poll()

        assert bench.device.commands - before == said


@each(MEASURED)
async def test_a_meter_takes_no_setpoint_and_brings_none(case):
    async with on_bench(case) as bench:
        with pytest.raises(DeviceRefused, match="only measured"):
            await bench.driver.write(37)
        assert bench.driver.commands_per_write == 0
        assert (await bench.driver.poll()).readback is None


# --- what it is told ----------------------------------------------------------------------------------------


@each(CONTROLLABLE)
async def test_every_setpoint_written_is_the_setpoint_in_force_until_it_is_released(case):
    async with on_bench(case) as bench:
        for setpoint in setpoints(case.profile):
            await assert_obeys(bench, case, setpoint)

        await bench.driver.write(case.profile.max_value)

        assert bench.device.limit_in_force == pytest.approx(
            case.profile.max_value, abs=tolerance(case.profile)
        )


@each([case for case in CONTROLLABLE if is_readable(case.profile)])
async def test_a_poll_brings_the_setpoint_in_force(case):
    async with on_bench(case) as bench:
        for setpoint in setpoints(case.profile):
            await bench.driver.write(setpoint)

            result = await bench.driver.poll()

            assert result.readback == pytest.approx(setpoint, abs=tolerance(case.profile))
            assert result.readback == await bench.driver.read_setpoint()


@each(CONTROLLABLE)
async def test_a_setpoint_outside_the_profile_is_refused_and_not_clamped(case):
    profile = case.profile
    async with on_bench(case) as bench:
        for beyond in (profile.min_value - 1, profile.max_value + 1, math.nan, math.inf):
            with pytest.raises(DeviceRefused, match=rf"is outside {profile.min_value:g} to"):
                await bench.driver.write(beyond)
        assert not any(bench.driver.take_writes().values())


@each(CONTROLLABLE)
async def test_a_write_takes_the_commands_it_says(case):
    async with on_bench(case) as bench:
        await bench.driver.write(setpoints(case.profile)[-1])
        for setpoint in setpoints(case.profile):
            before = bench.device.commands

            await bench.driver.write(setpoint)

            assert bench.device.commands - before <= bench.driver.commands_per_write


@each(CONTROLLABLE)
async def test_every_write_is_counted_by_the_register_it_went_to(case):
    async with on_bench(case) as bench:
        before = dict(bench.device.writes) if isinstance(bench.device.writes, dict) else {}
        await bench.driver.write(usual(case.profile))

        sent = bench.driver.take_writes()

        assert sent
        assert bench.driver.take_writes() == {}
        if isinstance(bench.device.writes, dict):
            for name, count in bench.device.writes.items():
                assert sent[name] == count - before.get(name, 0)


# --- pauses, sessions, restarts -----------------------------------------------------------------------------


@each(CASES)
async def test_pauses_and_sessions_are_kept_over_all_commands_and_reconnects(case):
    async with on_bench(case) as bench:
        await bench.driver.identify()
        await bench.driver.poll()
        if case.profile.controllable:
            await bench.driver.write(usual(case.profile))
            await bench.driver.read_setpoint()
        await bench.reconnect()
        await bench.driver.poll()

        assert bench.device.gap_violations == []
        assert getattr(bench.device, "sessions_refused", 0) == 0
        if case.profile.min_gap_ms:
            assert bench.session.next_command_at == bench.clock() + case.profile.min_gap_ms / 1000


@each(CONTROLLABLE)
async def test_a_device_that_restarts_forgets_what_is_volatile_and_obeys_again(case):
    profile, limit = case.profile, case.profile.limit
    assert limit is not None
    async with on_bench(case) as bench:
        fresh = bench.device.limit_in_force
        await assert_obeys(bench, case, usual(profile))
        check = limit.volatile_when
        forgets = limit.write_class == "volatile" and (
            check is None or check.holds(bench.device.get(check.point))
        )

        await bench.restart()

        await bench.reconnect()
        expected = fresh if forgets else usual(profile)
        assert bench.device.limit_in_force == pytest.approx(expected, abs=tolerance(profile))
        await bench.driver.identify()
        await assert_obeys(bench, case, setpoints(profile)[-1])


# --- its own fallback ---------------------------------------------------------------------------------------


@each(FALLING_BACK)
async def test_a_device_releases_itself_once_everything_of_ours_is_gone(case):
    profile = case.profile
    assert profile.limit is not None
    own = profile.limit.fallback
    assert own is not None
    async with on_bench(case) as bench:
        await bench.driver.identify()
        mine, wanted = setpoints(profile)[0], setpoints(profile)[-1]
        await bench.driver.write(mine)
        await bench.driver.arm_fallback(wanted)
        await bench.driver.keep_alive(mine)
        for _ in range(6):
            # Kept alive every third of its time, as the runtime does, it does not act.
            bench.clock.advance(own.timeout_s / 3)
            await bench.driver.keep_alive(mine)
            assert bench.device.limit_in_force == pytest.approx(mine, abs=tolerance(profile))

        await bench.session.aclose()
        bench.clock.advance(own.timeout_s * 1.01 + 1)

        if own.takes == "preset" and own.preset is None:
            # Only its installer knows what it takes.
            return
        assert bench.device.limit_in_force == pytest.approx(
            falls_back_to(profile, bench.device, armed_with=wanted), abs=tolerance(profile)
        )


@each([case for case in CONTROLLABLE if case not in FALLING_BACK])
async def test_a_device_without_a_fallback_of_its_own_is_never_armed(case):
    async with on_bench(case) as bench:
        for ask in (bench.driver.arm_fallback, bench.driver.keep_alive):
            with pytest.raises(DeviceRefused, match="no fallback of its own"):
                await ask(usual(case.profile))
        assert not any(bench.driver.take_writes().values())


# --- faults: never a wrong reading, and all is well again afterwards ------------------------------------------


def suffering(*faults: Fault, of: list[Case] = CASES) -> pytest.MarkDecorator:
    pairs = [
        pytest.param(case, fault, id=f"{case}-{fault.value}", marks=[*marks(case), *costs(case)])
        for case in of
        for fault in faults
        if fault in BENCHES[case.way].faults
    ]
    return pytest.mark.parametrize(("case", "fault"), pairs)


async def assert_well(bench: Bench, case: Case) -> None:
    """The same session and driver serve the device as if nothing had been, once they have looked anew."""
    await bench.suffer(Fault.NONE)

    async def look() -> None:
        await bench.driver.identify()
        await assert_serves(bench, case)

    await tried(bench, look)


async def tried(bench: Bench, ask: Callable[[], Awaitable[object]]) -> None:
    """Ask again where there is no answer, as the runtime does.

    On a busy machine even a sound device may be too slow for a patience this short.
    """
    for tries_left in reversed(range(20)):
        try:
            if not bench.session.connected:
                await bench.reconnect()
            await ask()
        except DeviceUnreachable:
            if not tries_left:
                raise
        else:
            return


async def assert_serves(bench: Bench, case: Case) -> None:
    # A machine whose limit has changed is on its way; then it is there.
    bench.clock.advance(30)
    readings = (await bench.driver.poll()).readings
    assert all(value is not None for value in readings.values())
    if "P_kW" in readings:
        assert readings["P_kW"] == pytest.approx(bench.device.machine.power_kw, abs=POWER_TOLERANCE_KW)
    if case.profile.controllable:
        await assert_obeys(bench, case, usual(case.profile))


async def assert_tells_nothing_wrong(bench: Bench) -> None:
    """A poll fails, or brings what the machine gives and nothing that is not so."""
    truth = bench.device.machine.power_kw
    try:
        readings = (await bench.driver.poll()).readings
    except DriverError:
        return
    for key, value in readings.items():
        low, high = next(span for suffix, span in PLAUSIBLE.items() if key.endswith(suffix))
        assert value is None or low <= value <= high, key
    if readings.get("P_kW") is not None:
        assert readings["P_kW"] == pytest.approx(truth, abs=POWER_TOLERANCE_KW)


def late_s(fault: Fault) -> float:
    """For how long the answers of before may still come."""
    return LATE_S if fault is Fault.DELAY else 0.0


@suffering(*BREAKING, of=BREAKABLE)
async def test_a_device_that_gives_no_right_answer_is_unreachable_until_it_does(case, fault):
    async with on_bench(case, connect=False, timeout_s=SHORT_S) as bench:
        await tried(bench, bench.driver.poll)
        await bench.suffer(fault, delay_s=LATE_S)

        with pytest.raises(DeviceUnreachable):
            await bench.driver.poll()

        bench.clock.let_late_answers_come(within_s=late_s(fault))
        await assert_well(bench, case)


@suffering(*BREAKING, of=FIRST_WAYS)
async def test_a_write_without_a_right_answer_is_never_taken_for_one_that_was_confirmed(case, fault):
    async with on_bench(case, connect=False, timeout_s=SHORT_S) as bench:
        await tried(bench, lambda: bench.driver.write(setpoints(case.profile)[-1]))
        await bench.suffer(fault, delay_s=LATE_S)

        with pytest.raises(DeviceUnreachable):
            await bench.driver.write(usual(case.profile))

        bench.clock.let_late_answers_come(within_s=late_s(fault))
        await assert_well(bench, case)


@suffering(Fault.GARBAGE, of=BREAKABLE)
async def test_garbage_is_no_reading(case, fault):
    async with on_bench(case, connect=False, timeout_s=SHORT_S) as bench:
        await tried(bench, bench.driver.poll)
        await bench.suffer(fault)

        for _ in range(3):
            await assert_tells_nothing_wrong(bench)
            if not bench.session.connected:
                await bench.reconnect()

        await assert_well(bench, case)


@suffering(Fault.REFUSE, of=BREAKABLE)
async def test_a_device_that_is_gone_takes_no_connection(case, fault):
    async with on_bench(case, connect=False) as bench:
        await bench.suffer(fault)

        with pytest.raises(DeviceUnreachable, match=r"no connection to .*: .*"):
            await bench.reconnect()

        assert not bench.session.connected
        await assert_well(bench, case)


@suffering(Fault.WRITE_EXCEPTION, of=CONTROLLABLE)
async def test_a_device_that_refuses_a_write_says_why_and_is_still_read(case, fault):
    async with on_bench(case) as bench:
        await bench.suffer(fault)

        with pytest.raises(DeviceRefused, match=r"refused|\(.*\)"):
            await bench.driver.write(usual(case.profile))

        assert bench.session.connected
        await assert_tells_nothing_wrong(bench)
        await assert_well(bench, case)


@suffering(Fault.IGNORE_WRITES, of=CONTROLLABLE)
async def test_an_acknowledged_but_ignored_write_shows_in_the_readback(case, fault):
    profile = case.profile
    async with on_bench(case) as bench:
        before, wanted = bench.device.limit_in_force, usual(profile)
        await bench.suffer(fault)

        try:
            await bench.driver.write(wanted)
        except DeviceRefused:
            # One that looks after each step whether it was taken notices by itself.
            pass
        else:
            found = await bench.driver.read_setpoint()
            if is_readable(profile):
                assert found is None or abs(found - wanted) > tolerance(profile)
        assert bench.device.limit_in_force == pytest.approx(before)

        await assert_well(bench, case)


@suffering(Fault.STALE_READBACK, of=[case for case in CONTROLLABLE if is_readable(case.profile)])
async def test_a_readback_from_before_is_not_taken_for_a_confirmation(case, fault):
    profile = case.profile
    async with on_bench(case) as bench:
        await bench.driver.write(setpoints(profile)[-1])
        await bench.suffer(fault)
        wanted = usual(profile)

        await bench.driver.write(wanted)

        found = await bench.driver.read_setpoint()
        assert found is None or abs(found - wanted) > tolerance(profile)
        await assert_well(bench, case)
