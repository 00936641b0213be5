"""Which closed loops of a configuration can be used, and what the others are refused with."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from edge.core.arbitration import in_bounds
from edge.core.closed_loop import Mode
from edge.core.commands import WriteClass
from edge.core.cyclic import KeepAlive
from edge.core.loop.terms import LOOP_RANGES
from edge.core.quantities import Bound
from edge.profiles.model import FALLBACK, TIMEOUT, Profile
from edge.profiles.reading import profile_from_builtins, profile_to_builtins
from edge.runtime import config
from edge.runtime.fleet import BEFORE_METER_S, poll_phase_s, polls
from edge.runtime.loop_plan import LoopPlan, plan_loops
from tests.runtime.loop_site import METER, A, B
from tests.runtime.plant import PROFILES, SITE, profile
from tests.simulation.world import meter_profile

PARK = "PARK_01"


class Body:
    """A configuration of two inverters and a meter, to be changed."""

    def __init__(self) -> None:
        self.profiles: dict[str, Profile] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.loops: list[dict[str, Any]] = []
        self.device(A, nameplate_kw=60.0)
        self.device(B, nameplate_kw=40.0)
        self.device(METER, meter_profile(), category="meter", measured_only=True)
        self.loop()

    def device(self, tag: str, kind: Profile | None = None, **changes: Any) -> None:
        kind = kind or profile()
        self.profiles[f"{kind.name}-{tag}"] = kind
        self.devices[tag] = {
            "id": tag,
            "tag": tag,
            "category": "inverter",
            "profile": f"{kind.name}-{tag}",
            "host": f"host-{tag.lower().replace('_', '-')}",
            "port": 502,
            "unit": 1,
            **changes,
        }

    def behind_a_proxy(self, *tags: str) -> None:
        self.profiles["proxy_device"] = PROFILES["proxy_device"]
        self.devices[PARK] = {"id": PARK, "tag": PARK, "category": "inverter", "profile": "proxy_device"}
        for tag in tags:
            self.devices[tag]["owned_by"] = PARK

    def loop(self, **changes: Any) -> None:
        self.loops.append({"id": "1", "tag": "GRID", "meter": METER, "members": [A, B], **changes})

    def plan(self) -> LoopPlan:
        body = {
            "site": SITE,
            "devices": list(self.devices.values()),
            "profiles": {name: profile_to_builtins(kind) for name, kind in self.profiles.items()},
            "loops": self.loops,
        }
        found = config.plan(body)
        return plan_loops(found.loops, found.devices, unusable=found.refused)


@pytest.fixture
def body() -> Body:
    return Body()


def limited(**changes: Any) -> Profile:
    limit = profile().limit
    assert limit is not None
    return profile(limit=msgspec.structs.replace(limit, **changes))


def with_fallback(takes: str) -> Profile:
    """A profile whose device changes its setpoint by itself when nobody gives it a sign of life."""
    raw = profile_to_builtins(profile())
    point = {"source": "of this test", "confidence": "verified", "type": "u16", "access": "read_write"}
    raw["points"]["own_value"] = {**point, "name": "fallback", "address": 60, "scale": 0.01, "unit": "%"}
    raw["points"]["own_timeout"] = {**point, "name": "timeout", "address": 61, "unit": "s"}
    arm = FALLBACK if takes == "value" else 1
    raw["limit"]["fallback"] = {
        "timeout_s": 30.0,
        "arm": [{"point": "own_value", "value": arm}],
        "keep_alive": [{"point": "own_timeout", "value": TIMEOUT}],
        "keep_alive_class": "volatile",
        "takes": takes,
    }
    return profile_from_builtins(raw)


def test_loop_of_the_configuration_is_planned_with_its_members_as_their_registers_take_values(body):
    body.device(A, limited(tolerance=0.5), nameplate_kw=60.0, bounds=[{"origin": "owner", "maximum": 80.0}])
    body.loops = []
    body.loop(mode="track", kp=0.5, setpoint_kw=30.0, export_limit_kw=40.0)
    found = body.plan()
    assert found.refused == {}
    loop = found.loops["GRID"]
    first, second = loop.settings.members
    assert (first.tag, first.nominal_kw, first.maximum, first.resolution_pct) == (A, 60.0, 80.0, 1.0)
    assert (second.tag, second.nominal_kw, second.maximum, second.resolution_pct) == (B, 40.0, 100.0, 0.2)
    assert (loop.settings.mode, loop.settings.kp, loop.setpoint_kw) == (Mode.TRACK, 0.5, 30.0)
    assert loop.static_bound(A) == Bound("connection limit 40 kW of export", maximum=40.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kp": float("nan")}, "kp nan: expected 0 to 10"),
        ({"ki": -0.1}, "ki -0.1: expected 0 to 10"),
        ({"kd": float("inf")}, "kd inf: expected 0 to 60"),
        ({"max_rate_pct_per_s": 0.0}, "max_rate_pct_per_s 0: expected 0.1 to 1000"),
        ({"deadband_kw": -1.0}, "deadband_kw -1: expected 0 to 1e+06"),
        ({"fallback_pct": 120.0}, "fallback_pct 120: expected -100 to 100"),
        ({"time_step_s": 0.1}, "time_step_s 0.1: expected 0.2 to 60"),
        ({"stale_after_s": 301.0}, "stale_after_s 301: expected 1 to 300"),
        ({"time_step_s": 12.0}, "stale_after_s 10: expected more than time_step_s, 12"),
        ({"export_limit_kw": -1.0}, "export_limit_kw -1: expected 0 to 1e+06"),
        ({"setpoint_kw": float("nan")}, "setpoint_kw nan: expected -1e+06 to 1e+06"),
        ({"mode": "hold"}, "mode 'hold': expected limit or track"),
        ({"tag": "  "}, "expected 1 to 64 characters"),
        ({"kp": "much"}, "Expected `float`"),
        ({"members": []}, "members: expected at least one, each named once"),
        ({"members": [A, A]}, "members: expected at least one, each named once"),
        ({"members": [A, METER]}, "meter METER_01 is among the members"),
        ({"meter": "METER_02"}, "meter METER_02 is not a device of this node"),
        ({"members": [A, "INVERTER_09"]}, "member INVERTER_09 is not a device of this node"),
        ({"stale_after_s": 1.5, "time_step_s": 1.0}, "stale_after_s 1.5: expected at least 2, since meter"),
    ],
)
def test_loop_with_a_number_or_a_name_that_cannot_be_is_refused_in_words(body, changes, words):
    body.loops = []
    body.loop(**changes)
    found = body.plan()
    (told,) = found.refused.values()
    assert words in told
    assert found.loops == {}


def test_loop_is_refused_alone(body):
    body.loop(tag="OTHER", id="2", meter="METER_02")
    found = body.plan()
    assert set(found.loops) == {"GRID"}
    assert set(found.refused) == {"OTHER"}


DEVICES = Body().plan().devices
numbers = st.one_of(st.floats(), st.integers(-10, 200), st.none(), st.booleans(), st.just("1"))
names = st.sampled_from([A, B, METER, PARK, "", "\n", "x" * 70, 7, None])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "id": names,
                "tag": st.one_of(names, st.just("GRID")),
                "meter": st.one_of(st.just(METER), names),
                "members": st.one_of(st.lists(names, max_size=3), names),
                "mode": st.one_of(st.sampled_from(["limit", "track"]), names),
                **dict.fromkeys(LOOP_RANGES, numbers),
            },
        ),
        max_size=3,
    )
)
def test_whatever_a_configuration_says_of_loops_each_is_used_or_refused(raw):
    found = plan_loops(raw, DEVICES, unusable={})
    assert len(found.loops) <= len(raw)
    assert bool(found.loops or found.refused) == bool(raw)
    for loop in found.loops.values():
        assert loop.settings.stale_after_s > loop.settings.time_step_s
        assert set(loop.devices) <= {A, B}
    assert all(found.refused.values())
    for planned in found.devices.values():
        assert planned.settings.minimum <= in_bounds(planned.settings, 100.0) <= planned.settings.maximum


def test_second_loop_of_a_tag_meter_or_member_is_refused(body):
    body.device("METER_02", meter_profile(), category="meter")
    body.device("INVERTER_03", nameplate_kw=30.0)
    body.loop(id="2", members=["INVERTER_03"])
    body.loop(id="3", tag="METERS", members=["INVERTER_03"])
    body.loop(id="4", tag="MEMBERS", meter="METER_02", members=["INVERTER_03", B])
    refused = body.plan().refused
    assert refused == {
        "GRID": "a second loop has this tag: give it one of its own",
        "METERS": "meter METER_01 is that of loop GRID: one power, one loop",
        "MEMBERS": "member INVERTER_02 is one of loop GRID already",
    }
    body.loops = body.loops[:1]
    body.loop(tag="TWIN", meter="METER_02", members=["INVERTER_03"])
    assert body.plan().refused == {"TWIN": "a second loop has this id, '1'"}


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (meter_profile(), {}, f"member {B} has no setpoint: it is measured only"),
        (None, {"measured_only": True}, f"member {B} has no setpoint: it is measured only"),
        (None, {"owned_by": "LOGGER_01"}, f"member {B} is controlled by LOGGER_01: name that one"),
        (PROFILES["generic_modbus_battery"], {"nameplate_kw": 50.0}, "takes power_cap_pct: expected"),
        (None, {"nameplate_kw": None}, f"the nominal power of {B} is not known: set its nameplate_kw"),
        (profile(min_gap_ms=1000), {"nameplate_kw": 40.0}, "time_step_s 1: expected at least 2, since"),
        (limited(write_class="persistent"), {"nameplate_kw": 40.0}, f"the setpoint of {B} is persistent"),
        (limited(write_class="unknown"), {"nameplate_kw": 40.0}, "set time_step_s to 60 or accept_wear"),
    ],
)
def test_member_that_can_be_none_refuses_the_loop_and_says_what_to_do(body, kind, changes, words):
    body.device(B, kind, **changes)
    (told,) = body.plan().refused.values()
    assert words in told


def test_unknown_endurance_is_accepted_by_an_engineer_or_at_a_slow_period(body):
    body.device(B, limited(write_class="unknown"), nameplate_kw=40.0, accept_wear=True)
    (_, member) = body.plan().loops["GRID"].settings.members
    assert not member.answers_readings
    body.device(B, limited(write_class="unknown"), nameplate_kw=40.0)
    body.loops = []
    body.loop(time_step_s=60.0, stale_after_s=180.0)
    assert "GRID" in body.plan().loops


def test_persistent_register_is_refused_whoever_accepts_its_wear(body):
    body.device(B, limited(write_class="persistent"), nameplate_kw=40.0, accept_wear=True)
    assert "is persistent" in body.plan().refused["GRID"]


def test_excluded_and_unusable_members_are_left_out(body):
    body.device(B, nameplate_kw=40.0, excluded=True)
    assert list(body.plan().loops["GRID"].devices) == [A]
    body.device(B, nameplate_kw=40.0, min_value=50.0, max_value=10.0)
    assert list(body.plan().loops["GRID"].devices) == [A]
    body.devices[A]["excluded"] = True
    assert "all are excluded" in body.plan().refused["GRID"]


def test_meter_that_measures_no_power_or_cannot_be_used_refuses_the_loop(body):
    body.device(METER, meter_profile(telemetry={}), category="meter")
    assert "measures no active power (P_kW)" in body.plan().refused["GRID"]
    body.device(METER, meter_profile(), category="meter", port=0)
    assert "meter METER_01 cannot be used itself: port 0" in body.plan().refused["GRID"]


def test_meter_whose_word_its_broker_keeps_is_of_unknown_age_and_none(body):
    plain = PROFILES["generic_mqtt_meter"]
    power = msgspec.structs.replace(plain.points["power"], kept=True)
    kept = msgspec.structs.replace(plain, points={**plain.points, "power": power})
    body.device(METER, kept, category="meter", url="mqtt://broker:1883")
    assert body.plan().refused["GRID"].endswith("(kept): nobody knows how old it is")


def test_proxy_is_one_member_with_its_childrens_power(body):
    body.behind_a_proxy(A, B)
    body.loops = []
    body.loop(members=[PARK])
    loop = body.plan().loops["GRID"]
    (member,) = loop.settings.members
    assert (member.tag, member.nominal_kw) == (PARK, 100.0)
    assert loop.devices == {PARK: (A, B)}


def test_proxy_whose_children_do_not_say_their_power_has_its_own(body):
    body.behind_a_proxy(A, B)
    body.devices[B]["nameplate_kw"] = None
    body.loops = []
    body.loop(members=[PARK])
    assert "the nominal power of INVERTER_02 is not known" in body.plan().refused["GRID"]
    body.devices[PARK]["nameplate_kw"] = 90.0
    assert body.plan().loops["GRID"].settings.nominal_kw == 90.0


def test_pauses_of_all_on_one_line_add_up(body):
    slow = profile(min_gap_ms=250)
    for unit, tag in enumerate((A, B), start=1):
        body.device(tag, slow, host="logger", unit=unit, nameplate_kw=40.0)
    assert body.plan().refused == {}
    body.device(METER, meter_profile(min_gap_ms=250), category="meter", host="logger", unit=3)
    assert (
        "expected at least 1.25, since the pauses between commands at logger:502"
        in body.plan().refused["GRID"]
    )


def test_child_of_a_proxy_is_no_member_and_its_wear_is_the_proxys(body):
    body.behind_a_proxy(A, B)
    assert f"member {A} takes its value from {PARK}: name that one" in body.plan().refused["GRID"]
    body.loops = []
    body.loop(members=[PARK])
    body.device(B, limited(write_class="persistent"), nameplate_kw=40.0, owned_by=PARK)
    assert f"the setpoint of {B} is persistent" in body.plan().refused["GRID"]
    body.loops = []
    body.loop(members=[PARK], meter=PARK)
    assert "among the members" in body.plan().refused["GRID"]


def test_meter_and_members_are_polled_together_and_the_members_a_moment_before(body):
    body.devices[A]["poll_s"] = 30.0
    body.devices[METER]["poll_s"] = 5.0
    devices = body.plan().devices
    meter_s, meter_phase_s = polls(devices[METER])
    assert (meter_s, meter_phase_s) == (1.0, poll_phase_s(METER, 1.0))
    for tag in (A, B):
        poll_s, phase_s = polls(devices[tag])
        assert poll_s == 1.0
        assert (meter_phase_s - phase_s) % 1.0 == pytest.approx(BEFORE_METER_S)
    body.loops = []
    assert polls(body.plan().devices[A]) == (30.0, poll_phase_s(A, 30.0))


def test_meter_that_speaks_unasked_is_heard_within_a_fifth_of_a_second(body):
    body.device(METER, PROFILES["generic_mqtt_meter"], category="meter", url="mqtt://broker:1883")
    found = body.plan()
    assert found.refused == {}
    assert polls(found.devices[METER])[0] == 0.2
    assert polls(found.devices[A])[0] == 1.0


# --- what stays of a loop that cannot be used -----------------------------------------------------


def bounds_of(found: LoopPlan) -> dict[str, tuple[float, float]]:
    """What each device is left by bounds of other origin than its own."""
    return {
        tag: (planned.settings.bounds[-1].minimum, planned.settings.bounds[-1].maximum)
        for tag, planned in found.devices.items()
        if planned.settings.bounds != planned.own_bounds
    }


def test_connection_limit_of_a_loop_that_is_refused_bounds_its_members_by_nominal_power(body):
    body.loops = []
    body.loop(export_limit_kw=40.0, import_limit_kw=10, kp=float("nan"))
    found = body.plan()
    # (An inverter imports nothing in any case.)
    assert bounds_of(found) == {A: (0.0, 40.0), B: (0.0, 40.0)}
    assert found.refused == {
        "GRID": "kp nan: expected 0 to 10; its connection limit of 40 kW of export and 10 kW of import bounds"
        f" {A}, {B} meanwhile by nominal power"
    }
    (bound,) = found.devices[A].settings.bounds
    assert bound.origin == "connection limit 40 kW of export and 10 kW of import"


@pytest.mark.parametrize(
    "changes",
    [
        {"meter": "METER_07"},
        {"meter": None},
        {"id": None},
        {"tag": ""},
        {"mode": "hold"},
        {"time_step_s": "fast"},
        {"stale_after_s": 1.5},
        {"members": [A, B, A]},
        {"members": (A, B, METER, 7, None)},
    ],
)
def test_limit_stays_whatever_a_loop_is_refused_for(body, changes):
    body.loops = []
    body.loop(export_limit_kw=40.0, **changes)
    found = body.plan()
    assert found.loops == {}
    assert bounds_of(found) == {A: (-math.inf, 40.0), B: (-math.inf, 40.0)}


def test_members_that_no_limit_can_bound_are_named_and_the_others_share_it(body):
    body.device("CAR_01", PROFILES["generic_modbus_battery"], nameplate_kw=50.0)
    body.device("UNRATED_01", nameplate_kw=None)
    body.device("EXCLUDED_01", nameplate_kw=50.0, excluded=True)
    body.loops = []
    body.loop(export_limit_kw=40.0, members=[A, "CAR_01", "UNRATED_01", "EXCLUDED_01", "INVERTER_09"])
    found = body.plan()
    ((tag, (_, most)),) = bounds_of(found).items()
    assert (tag, round(most, 6)) == (A, 66.6)
    assert found.refused["GRID"].endswith(
        f"; its connection limit of 40 kW of export bounds {A} meanwhile by nominal power; its connection"
        " limit of 40 kW of export cannot bound CAR_01, UNRATED_01, EXCLUDED_01, INVERTER_09"
    )


def test_limit_over_nobody_who_is_here_is_said_to_bound_nobody(body):
    body.loops = []
    body.loop(export_limit_kw=40.0, members=None)
    assert (
        body.plan().refused["GRID"].endswith("its connection limit of 40 kW of export cannot bound anybody")
    )


@pytest.mark.parametrize("value", ["40 kW", float("nan"), -1.0, True, 10**400])
def test_limit_that_is_no_power_bounds_nobody_and_is_said_to(body, value):
    body.loops = []
    body.loop(export_limit_kw=value, import_limit_kw=None)
    found = body.plan()
    assert bounds_of(found) == {}
    assert "its export limit" in found.refused["GRID"]
    assert found.refused["GRID"].endswith("is no power and bounds nobody")


def test_second_loop_of_a_member_bounds_it_beside_the_first(body):
    body.device("METER_02", meter_profile(), category="meter")
    body.device("INVERTER_03", nameplate_kw=40.0)
    body.loop(id="2", tag="OTHER", meter="METER_02", members=[B, "INVERTER_03"], export_limit_kw=20.0)
    found = body.plan()
    assert bounds_of(found) == {B: (-math.inf, 25.0), "INVERTER_03": (-math.inf, 25.0)}
    # The first knows what is left of it, and asks the rest of others.
    assert [member.maximum for member in found.loops["GRID"].settings.members] == [100.0, 25.0]


def test_limit_of_a_refused_loop_bounds_a_proxy_and_all_behind_it(body):
    body.behind_a_proxy(A, B)
    body.loops = []
    body.loop(members=[PARK], export_limit_kw=40.0, meter="METER_07")
    assert bounds_of(body.plan()) == dict.fromkeys((PARK, A, B), (-math.inf, 40.0))


def test_bounds_of_a_refused_loop_end_with_the_refusal_and_the_devices_own_stay(body):
    body.device(A, nameplate_kw=60.0, bounds=[{"origin": "owner", "maximum": 80.0}])
    body.loops = []
    body.loop(export_limit_kw=40.0, meter="METER_07")
    refused = body.plan()
    assert [bound.maximum for bound in refused.devices[A].settings.bounds] == [80.0, 40.0]
    # As a device that goes on as it was is planned again.
    again = plan_loops([{**body.loops[0], "meter": METER}], refused.devices, unusable={})
    assert set(again.loops) == {"GRID"}
    assert bounds_of(again) == {}
    assert [bound.maximum for bound in again.devices[A].settings.bounds] == [80.0]


def test_own_fallback_under_the_limit_of_a_refused_loop_is_no_more_than_the_limit_leaves(body):
    body.device(A, with_fallback("value"), nameplate_kw=60.0, default_value=70.0)
    body.loops = []
    body.loop(export_limit_kw=40.0, meter="METER_07")
    own = body.plan().devices[A].settings.keep_alive
    assert own is not None
    assert own.value == 40.0


# --- rule 14 --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({}, 70.0),  # no connection limit, so its default
        ({"fallback_pct": 20.0}, 70.0),
        ({"export_limit_kw": 40.0, "fallback_pct": 20.0}, 20.0),
        ({"export_limit_kw": 40.0, "fallback_pct": 90.0}, 40.0),  # 40 of 100 kW
        ({"export_limit_kw": 40.0}, 40.0),
        ({"export_limit_kw": 33.35}, 33.2),  # towards safety on the register's steps of 0.2 %
    ],
)
def test_own_fallback_of_a_member_under_a_connection_limit_is_its_share_of_the_loops(body, settings, value):
    body.device(A, with_fallback("value"), nameplate_kw=60.0, default_value=70.0)
    body.loops = []
    body.loop(**settings)
    found = body.plan()
    own = found.devices[A].settings.keep_alive
    assert own is not None
    assert (own.value, own.timeout_s) == (pytest.approx(value), 30.0)
    assert found.loops["GRID"].not_held == {}
    # Taken out of the loop it is its default again.
    again = plan_loops([], found.devices, unusable={})
    assert again.devices[A].settings.keep_alive == KeepAlive(70.0, 30.0)


@pytest.mark.parametrize(
    ("takes", "armed", "warns"),
    [("release", True, True), ("release", False, True), ("stop", False, True), ("stop", True, False)],
)
def test_own_fallback_that_would_let_go_of_a_connection_limit_is_warned_of(body, takes, armed, warns):
    body.device(A, with_fallback(takes), nameplate_kw=60.0, arm_fallback=armed)
    assert body.plan().loops["GRID"].not_held == {}
    body.loops = []
    body.loop(export_limit_kw=40.0)
    told = body.plan().loops["GRID"].not_held
    assert (A in told) is warns
    assert all(why.startswith("limit not held if the node dies") for why in told.values())


def test_write_class_says_whether_a_member_answers_readings(body):
    members = body.plan().loops["GRID"].settings.members
    assert [member.answers_readings for member in members] == [True, True]
    assert body.plan().devices[A].settings.write_class is WriteClass.VOLATILE
