"""Every device type under a node: what the rules of control promise, held over its own protocol.

The driver contract suite (`tests/drivers/test_driver_contract.py`) proves the drivers; here the cycle, the bus and
the arbitration are in between, on a clock that is turned. A proxy has a suite of its own, `test_proxy`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge.core.commands import WriteClass
from edge.profiles.model import OwnFallback
from edge.profiles.summary import fallback_consents
from edge.runtime.obedience import PATIENCE_S
from edge.simulators.device import Fault
from edge.wire.messages import Code
from tests.drivers.benches import NAMEPLATE_KW, PROFILES, falls_back_to, setpoints
from tests.runtime.every import (
    CONTROLLABLE,
    ON_A_WIRE,
    OTHER,
    PATIENT_MS,
    READABLE,
    SHORT_MS,
    TAG,
    Stage,
    each,
    stage,
)
from tests.servers import device_broker

FALLING_BACK = [case for case in ON_A_WIRE if case.profile.limit and case.profile.limit.fallback]
BUDGETED = [
    case
    for case in CONTROLLABLE
    if case.profile.limit and case.profile.limit.write_class is WriteClass.PERSISTENT
]
RECOGNISED = [case for case in ON_A_WIRE if case.profile.identity.checks or case.profile.identity.nameplate]
PROXY = PROFILES["proxy_device"]
FOLLOWING = [
    case
    for case in ON_A_WIRE
    if case.profile.value_kind and PROXY.value_kind and case.profile.value_kind.can_take(PROXY.value_kind)
]
WRITE_PERIOD_S = 10.0
LONG_HOLD_S = 3600.0
SHORT_HOLD_S = 10.0
# Each second of a silence costs a timeout of real time.
LAST_SECONDS_S = 0.7


@pytest.fixture(scope="module")
def shared_broker(request) -> Iterator[str]:
    with device_broker() as broker:
        yield broker.url


@pytest.fixture
def broker_url(request, case) -> str:
    """Of the one broker of this module, for those who need one."""
    return request.getfixturevalue("shared_broker") if case.way == "mqtt" else ""


def own_fallback(of: Stage) -> OwnFallback:
    own = of.limit.fallback
    assert own is not None
    return own


# --- a hold and its end ---------------------------------------------------------------------------------------


@each(CONTROLLABLE)
async def test_setpoint_is_in_force_within_a_second_and_so_is_the_default_once_it_lapses(
    case, tmp_path, broker_url
):
    async with stage(case, tmp_path, broker_url) as site:
        await site.begin()
        answer = site.hold(site.usual)

        await site.within_a_second(lambda: site.is_at(site.usual))

        await site.plant.run(30, answer.done)
        assert answer.result().ok, answer.result().reason
        await site.plant.run(site.hold_left_s)
        assert site.is_at(site.usual)
        await site.within_a_second(lambda: site.is_at(site.default))
        await site.plant.run(30, lambda: site.plant.logged("watchdog"))
        (entry,) = site.plant.logged("watchdog")
        assert (entry.value, entry.devices[TAG].ok) == (site.default, True)


# --- rules 11 and 19: what failed stays owed, and is paid within a second -----------------------------------------


@each(ON_A_WIRE, Fault.REFUSE)
async def test_hold_that_could_not_be_written_is_owed_until_the_device_is_back(
    case, fault, tmp_path, broker_url
):
    async with stage(case, tmp_path, broker_url) as site:
        await site.begin()
        await site.suffer(fault)

        result = await site.held(site.usual)

        assert result.code == Code.WRITE_FAILED
        assert "still trying until" in result.detail
        await site.plant.run(10)
        await site.recover()
        await site.within_a_second(lambda: site.is_at(site.usual))
        await site.plant.run(30, lambda: TAG in site.plant.cycle.values)
        assert site.plant.cycle.values[TAG] == site.usual


@each(ON_A_WIRE, Fault.SILENT)
async def test_lapse_is_owed_until_a_device_that_was_away_confirms_its_default(
    case, fault, tmp_path, broker_url
):
    async with stage(case, tmp_path, broker_url, patience_ms=SHORT_MS) as site:
        await site.begin()
        assert (await site.held(site.usual, hold_s=SHORT_HOLD_S)).ok
        await site.plant.run(site.hold_left_s - LAST_SECONDS_S)
        await site.suffer(fault)

        await site.plant.run(2 * LAST_SECONDS_S)

        state = site.plant.cycle.units[TAG].state
        assert (state.hold, state.lapse is not None) == (None, True)
        assert not any(entry.devices[TAG].ok for entry in site.plant.logged("watchdog"))
        await site.recover()
        await site.within_a_second(lambda: site.is_at(site.default))
        await site.plant.run(30, lambda: site.plant.cycle.units[TAG].state.lapse is None)
        assert site.plant.logged("watchdog")[-1].devices[TAG].ok


@each(READABLE, Fault.SILENT)
async def test_write_that_was_not_confirmed_is_owed_though_the_device_may_have_taken_it(
    case, fault, tmp_path, broker_url
):
    async with stage(case, tmp_path, broker_url, patience_ms=SHORT_MS) as site:
        await site.begin()
        site.device.on_write = lambda: site.device.break_down(fault, delay_s=0)

        result = await site.held(site.usual)

        assert result.code == Code.WRITE_FAILED
        site.device.on_write = None
        site.device.set_by_hand(site.another)
        await site.recover()
        await site.within_a_second(lambda: site.is_at(site.usual))


@each(ON_A_WIRE, Fault.WRITE_EXCEPTION)
async def test_write_that_a_device_refuses_is_tried_again_until_it_is_taken(
    case, fault, tmp_path, broker_url
):
    async with stage(case, tmp_path, broker_url) as site:
        await site.begin()
        await site.suffer(fault)

        result = await site.held(site.usual, hold_s=60)

        assert result.code == Code.WRITE_FAILED
        assert "still trying until" in result.detail
        await site.recover()
        await site.plant.run(15, lambda: site.is_at(site.usual))


# --- rule 12: what is written is read back ----------------------------------------------------------------------


@each(READABLE, Fault.IGNORE_WRITES, Fault.STALE_READBACK)
async def test_readback_that_differs_is_a_mismatch_after_three_tries(case, fault, tmp_path, broker_url):
    async with stage(
        case, tmp_path, broker_url, patience_ms=SHORT_MS if case.way == "mqtt" else PATIENT_MS
    ) as site:
        await site.begin()
        before = site.sent
        await site.suffer(fault)

        result = await site.held(site.usual)

        assert result.code in (Code.READBACK_MISMATCH, Code.WRITE_FAILED), result.reason
        if result.code == Code.WRITE_FAILED:
            # Some of its steps wait for the device to say that it has taken them.
            assert any(step.until is not None for step in site.limit.set)
        else:
            assert site.sent - before == 3
        assert result.readback is None or abs(result.readback - site.usual) > site.limit.tolerance
        errors = [entry.devices[TAG].detail for entry in site.plant.logged("device_error")]
        assert any(result.code in error for error in errors)


@each([case for case in ON_A_WIRE if case not in READABLE], Fault.IGNORE_WRITES)
async def test_device_that_shows_no_setpoint_and_gives_more_for_minutes_is_told_of(
    case, fault, tmp_path, broker_url
):
    async with stage(case, tmp_path, broker_url) as site:
        site.plant.site["curtailment_time_limit_s"] = LONG_HOLD_S
        await site.begin()
        await site.suffer(fault)
        # Nothing says otherwise so far.
        assert (await site.held(site.usual, hold_s=LONG_HOLD_S)).ok
        await site.plant.run(PATIENCE_S - 5)
        assert site.alarms("not_followed") == []

        await site.plant.run(10)

        (told,) = site.alarms("not_followed")
        assert told == "it was set to 37 % and gives 60 kW after 300 s"
        (entry,) = site.plant.logged("device_error")
        assert entry.devices[TAG].detail == f"readback_mismatch: {told}"
        # It is written again in any case, and obeys at last.
        await site.recover()
        await site.plant.run(400, lambda: site.is_at(site.usual))
        await site.plant.run(60, lambda: not site.alarms("not_followed"))


# --- rule 13: who may be written again, and how often ----------------------------------------------------------


@each(CONTROLLABLE)
async def test_setpoint_is_repeated_where_that_costs_nothing_and_nowhere_else(case, tmp_path, broker_url):
    async with stage(case, tmp_path, broker_url) as site:
        site.plant.site["cyclic_write_timeout_s"] = WRITE_PERIOD_S
        await site.begin()
        assert (await site.held(site.usual)).ok
        before = site.sent

        await site.plant.run(3 * WRITE_PERIOD_S + 5)

        assert site.is_at(site.usual)
        if site.wears:
            assert site.sent == before
        else:
            assert site.sent >= before + 3


@each(READABLE)
async def test_setpoint_that_somebody_else_has_changed_is_written_again_at_the_next_turn(
    case, tmp_path, broker_url
):
    async with stage(case, tmp_path, broker_url) as site:
        site.plant.site["cyclic_write_timeout_s"] = WRITE_PERIOD_S
        await site.begin()
        assert (await site.held(site.usual)).ok
        before = site.sent
        site.device.set_by_hand(site.another)
        assert not site.is_at(site.usual)

        await site.plant.run(2 * WRITE_PERIOD_S, lambda: site.is_at(site.usual) and site.sent > before)


@each(BUDGETED)
async def test_hold_is_refused_once_the_days_budget_covers_its_release_only(case, tmp_path, broker_url):
    async with stage(case, tmp_path, broker_url) as site:
        await site.begin()
        wanted = [site.usual, site.another]
        for number in range(100):
            command = site.command({TAG: wanted[number % 2]})
            if command.refused:
                break
            await site.plant.run(30, command.waiting[TAG].done)
            assert command.waiting[TAG].result().ok

        assert command.refused[TAG].code == Code.WEAR
        unit = site.plant.cycle.units[TAG]
        assert unit.settings.writes_per_day is not None
        assert unit.state.spent_today < unit.settings.writes_per_day
        answer = site.plant.release(TAG)[TAG]
        await site.plant.run(30, answer.done)
        assert answer.result().ok
        assert site.is_at(site.default)


# --- rule 14: the device's own fallback ----------------------------------------------------------------------------


@each(FALLING_BACK)
async def test_own_fallback_is_armed_once_all_that_is_needed_is_agreed_to_and_else_it_is_told_that_it_is_not(
    case, tmp_path, broker_url
):
    async with stage(case, tmp_path, broker_url) as site:
        own = own_fallback(site)
        beyond = {name for step in (*own.arm, *own.keep_alive) for name in step.writes} - {
            name
            for step in (*site.limit.once, *site.limit.set, *(site.limit.release or ()))
            for name in step.writes
        }
        wants = fallback_consents(site.profile)
        await site.begin()
        await site.plant.run(5)

        assert (site.device.alive_at is not None) == (not wants)
        told = site.alarms("no_own_fallback")
        if wants:
            consent, why = next(iter(wants.items()))
            assert told == [f"no own fallback: {why}, {consent} is off"]
            assert not any(site.device.writes[name] for name in beyond)
        else:
            assert told == []
            assert own.always_armed or own.takes == "value"
            assert own.keep_alive_class is WriteClass.VOLATILE
        site.devices[TAG] |= {"accept_wear": True, "arm_fallback": True}
        site.apply()
        await site.plant.run(10, lambda: site.device.alive_at is not None)
        await site.plant.run(1)
        assert site.alarms("no_own_fallback") == []


@each(FALLING_BACK)
async def test_device_obeys_while_it_is_kept_alive_and_releases_itself_once_all_of_ours_is_gone(
    case, tmp_path, broker_url
):
    async with stage(case, tmp_path, broker_url) as site:
        own = own_fallback(site)
        site.plant.site["curtailment_time_limit_s"] = LONG_HOLD_S
        default = setpoints(case.profile)[-1]
        # The sign of life is apart from polls, from the cyclic writer and from the lifetime.
        await site.begin(
            accept_wear=True,
            arm_fallback=True,
            poll_s=60.0,
            lifetime="singular",
            default_value=default,
        )
        assert (await site.held(site.usual, hold_s=LONG_HOLD_S)).ok
        await site.plant.run(1.5 * own.timeout_s)
        assert site.is_at(site.usual)
        for _ in range(2):
            # Once more after it has fallen back, though all that arms it stands there already.
            site.hold(site.usual, hold_s=LONG_HOLD_S)
            await site.plant.run(60, lambda: TAG in site.plant.cycle.values)
            assert site.is_at(site.usual)

            # In which nothing of the node runs.
            site.clock.advance(1.01 * own.timeout_s + 1)

            if own.takes == "preset" and own.preset is None:
                # Only its installer knows what it takes.
                return
            expected = falls_back_to(site.profile, site.device, armed_with=default)
            assert site.in_force == pytest.approx(expected, abs=site.limit.tolerance)


# --- rule 18: it is read before it is written ----------------------------------------------------------------------


@each(READABLE)
async def test_limit_that_somebody_else_has_set_is_logged_before_it_is_overwritten(
    case, tmp_path, broker_url
):
    async with stage(case, tmp_path, broker_url) as site:
        await site.add()
        site.device.set_by_hand(site.usual)
        logged_by_then: list[int] = []
        site.device.on_write = lambda: logged_by_then.append(len(site.plant.logged("standing")))
        site.apply()

        await site.plant.run(30, lambda: site.is_at(site.default))

        (entry,) = site.plant.logged("standing")
        assert entry.value == pytest.approx(site.usual, abs=site.limit.tolerance)
        assert set(logged_by_then) == {1}


@each(READABLE)
async def test_device_that_holds_what_is_wanted_is_not_written(case, tmp_path, broker_url):
    async with stage(case, tmp_path, broker_url) as site:
        await site.add(lifetime="singular")
        site.device.set_by_hand(site.default)
        site.apply()

        await site.plant.run(10, lambda: TAG in site.plant.cycle.values)
        await site.plant.run(5)

        assert site.plant.cycle.values[TAG] == site.default
        # Of some, the setpoint itself is the sign of life.
        own = site.limit.fallback
        kept = {name for step in (own.keep_alive if own else ()) for name in step.writes}
        assert site.target in kept or site.device.writes[site.target] == 0
        assert site.plant.logged("standing") == []


# --- rule 22, and whom a node does not know: what is not ours is not written ----------------------------------------


def written(site: Stage, tag: str = TAG) -> dict[str, int]:
    return {name: count for name, count in site.simulated[tag].writes.items() if count}


@each(RECOGNISED)
async def test_device_of_another_type_or_size_is_never_written(case, tmp_path, broker_url):
    async with stage(case, tmp_path, broker_url) as site:
        await site.add(accept_wear=True, arm_fallback=True)
        identity = case.profile.identity
        if identity.checks:
            point = identity.checks[-1].point
            site.device.put(point, "other" if case.profile.points[point].is_text else 7)
        else:
            assert identity.nameplate is not None
            site.device.put(identity.nameplate, NAMEPLATE_KW / 2)
        site.apply()

        result = await site.held(site.usual)
        await site.plant.run(90)

        assert result.code == Code.WRITE_FAILED
        assert "expected" in result.detail or "is rated" in result.detail
        assert written(site) == {}


@each(ON_A_WIRE)
async def test_device_behind_the_control_point_of_another_is_measured_and_never_written(
    case, tmp_path, broker_url
):
    async with stage(case, tmp_path, broker_url) as site:
        await site.add(owned_by="LOGGER_01", accept_wear=True, arm_fallback=True)
        site.device.set_by_hand(site.usual)
        site.apply()

        refused = site.command({TAG: site.another}).refused[TAG]
        await site.plant.run(30)

        assert (refused.code, "LOGGER_01" in refused.detail) == (Code.OWNED_BY, True)
        assert written(site) == {}
        assert site.is_at(site.usual)
        assert site.plant.cycle.units[TAG].reachable


@each(ON_A_WIRE)
async def test_second_device_on_a_control_point_is_refused_and_the_first_goes_on(case, tmp_path, broker_url):
    async with stage(case, tmp_path, broker_url) as site:
        await site.begin()
        site.devices[OTHER] = {**site.devices[TAG], "id": OTHER, "tag": OTHER}

        plan = site.apply()

        assert plan.refused == {OTHER: f"its control point is that of {TAG}"}
        assert site.command({OTHER: site.usual}).refused[OTHER].code == Code.UNKNOWN_DEVICE
        assert (await site.held(site.usual)).ok


@each(FOLLOWING)
async def test_device_behind_a_proxy_takes_its_value_and_no_request_of_its_own(case, tmp_path, broker_url):
    async with stage(case, tmp_path, broker_url) as site:
        site.add_proxy(PROXY)
        await site.begin(owned_by=PROXY.name)

        refused = site.command({TAG: site.another}).refused[TAG]
        site.command({PROXY.name: site.usual})

        assert (refused.code, PROXY.name in refused.detail) == (Code.OWNED_BY, True)
        await site.within_a_second(lambda: site.is_at(site.usual))


# --- rule 20: what leaves is left as if nobody had been there -------------------------------------------------------


@each(ON_A_WIRE)
async def test_device_that_leaves_goes_back_to_its_default(case, tmp_path, broker_url):
    async with stage(case, tmp_path, broker_url) as site:
        await site.begin()
        assert (await site.held(site.usual)).ok
        default = site.default
        del site.devices[TAG]

        site.apply()

        await site.plant.run(30, lambda: site.plant.logged("retired"))
        (entry,) = site.plant.logged("retired")
        assert entry.value == pytest.approx(default, abs=site.limit.tolerance)
        assert site.is_at(default)
        assert site.plant.cycle.leaving == {}
