"""The life of a site, shuffled by hypothesis: every rule is something the world can do to a node."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge.core.commands import WriteClass
from edge.core.schedule import slot_key
from tests.simulation.connection import Connection, Inverter, Meter
from tests.simulation.devices import Trouble
from tests.simulation.link import FINE, STORM
from tests.simulation.world import A_MORNING, World, profile

PLAIN, WEARING, SLOW_1, SLOW_2 = "INVERTER_01", "INVERTER_02", "BATTERY_01", "BATTERY_02"
TAGS = (PLAIN, WEARING, SLOW_1, SLOW_2)
QUICK = profile()
# Its budget is a question of its own: here it is as good as endless.
PERSISTENT = profile(write_class=WriteClass.PERSISTENT, writes_per_day=10_000)
PAUSING = profile(gap_s=0.2)
KINDS = {PLAIN: QUICK, WEARING: PERSISTENT, SLOW_1: PAUSING, SLOW_2: PAUSING}
PLACES: dict[str, dict[str, Any]] = {
    PLAIN: {"port": 1},
    WEARING: {"port": 2},
    SLOW_1: {"port": 3, "unit": 1, "category": "battery"},
    SLOW_2: {"port": 3, "unit": 2, "category": "battery"},
}
SPARE_PORT = 4
METER, METER_PORT = "METER_01", 9
# Those that a loop may command: one that writes to memory that wears may not (rule 13).
MEMBERS = (PLAIN, SLOW_1, SLOW_2)
# Shares of these limits among one, two or three members lie on the steps of their registers.
# Slow ones: a life at a second's period would take as long as three others.
LOOPS: tuple[dict[str, Any], ...] = (
    {"export_limit_kw": 54.0, "fallback_pct": 20.0, "time_step_s": 2.0},
    {"export_limit_kw": 36.0, "setpoint_kw": 90.0, "time_step_s": 5.0, "stale_after_s": 12.0},
    {
        "setpoint_kw": 60.0,
        "fallback_pct": 10.0,
        "mode": "track",
        "time_step_s": 5.0,
        "max_rate_pct_per_s": 5.0,
    },
    {"export_limit_kw": 0.0, "fallback_pct": 60.0, "time_step_s": 10.0, "stale_after_s": 20.0},
)

values = st.sampled_from([0.0, 10.0, 30.0, 50.0, 80.0, 100.0])
holds = st.sampled_from([1.0, 2.0, 5.0, 30.0, 60.0, 200.0])
tags = st.sampled_from(TAGS)
some_tags = st.lists(tags, min_size=1, max_size=3, unique=True)
# From "in the middle of an exchange" to "longer than any hold".
moments = st.sampled_from([0.001, 0.003, 0.006, 0.3, 1.0, 1.1, 2.5, 10.0, 31.0, 61.0])
# Around the end of a hold: before it, at it, within the second it may take, after it.
beyonds = st.sampled_from([-0.3, 0.0, 0.004, 0.5, 1.02, 1.5])
# What the site takes, and how long a meter is silent: in time, around the moment it grows stale, for long.
loads = st.sampled_from([0.0, 10.0, 60.0, 150.0])
silences = st.sampled_from([1.5, 9.9, 10.2, 12.0, 21.0, 30.0])
blinks = st.sampled_from([0.0, 0.001, 0.003, 0.005, 0.007, 0.012, 0.3])


def memory() -> str | None:
    """Where a database costs no disk, on machines that have such a place."""
    shared = Path("/dev/shm")  # noqa: S108 - a folder of a name of its own is made in it
    return str(shared) if shared.is_dir() else None


class Site(RuleBasedStateMachine):
    """One node with four devices on three lines, and a fifth that one of them may be exchanged for.

    In one life of three, three of them and a meter make a closed loop.
    """

    steps = 0  # of all runs of this process

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="simulation-", dir=memory()))
        self.world = World(self.directory, begin=A_MORNING + timedelta(minutes=13, seconds=30))
        self.was_removed: dict[str, dict[str, Any]] = {}
        self.removed_loops: list[dict[str, Any]] = []

    def teardown(self) -> None:
        try:
            self.all_ends_well()
        finally:
            self.world.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    def all_ends_well(self) -> None:
        """Everything heals, nobody asks for anything: within minutes all is as the rules have it."""
        world = self.world
        world.check()
        self.heal()
        world.run(1.0)
        world.publish_anew()
        world.run(320.0)
        for store in {store for store, _ in world.central.entries}:
            numbers = sorted(number for whose, number in world.central.entries if whose == store)
            assert numbers == list(range(1, len(numbers) + 1)), "the control log has a gap"
        for tag in world.oracle.specs:
            found = world.device_of(tag)
            if found is not None and not found.was_set_by_hand and world.oracle.unchanged_for_s(tag) > 10:
                assert world.is_settled(tag), f"{tag} should be judged by now"
        world.check()
        self.request_is_kept_and_ends()

    def request_is_kept_and_ends(self) -> None:
        """After all that happened: a request is carried out, and over within a second of its end."""
        world = self.world
        world.site["curtailment_time_limit_s"] = 30.0
        world.configure()
        world.run(6.0)
        world.check()
        world.setpoint(hold_s=200.0, **dict.fromkeys(TAGS, 33.0))
        for seconds in (3.0, 26.9, 0.2, 1.0, 1.5):
            world.run(seconds)
            world.check()

    @initialize(
        slots=st.lists(st.one_of(st.none(), values), min_size=3, max_size=3),
        seed=st.integers(0, 3),
        number=st.integers(-2 * len(LOOPS), len(LOOPS) - 1),
    )
    def begin(self, slots: list[float | None], seed: int, number: int) -> None:
        loop = LOOPS[number] if number >= 0 else None
        world = self.world
        world.rng.seed(seed)
        if loop is not None:
            world.connection = Connection(world.loop.time)
            world.add_meter(METER, port=METER_PORT)
            plain = {"id": "loop-1", "tag": "GRID", "meter": METER, "members": list(MEMBERS)}
            world.loops = [{**plain, **loop}]
        for tag in TAGS:
            world.add(tag, KINDS[tag], **PLACES[tag])
        # Nothing but read-backs and changes is ever written there: what went wrong once stays.
        world.raw[SLOW_2]["lifetime"] = "singular"
        world.build(QUICK, port=SPARE_PORT)
        if loop is not None:
            self.put_panels_on(PLACES[PLAIN]["port"])
        world.configure()
        self.put_schedule("inverter", slots)
        world.start()
        world.run(2.0)

    def put_schedule(self, category: str, slots: list[float | None]) -> None:
        """These values for the quarter hour of now and those after it; on the days they lie in."""
        begin = self.world.utc()
        by_day: dict[Any, dict[str, float | None]] = {}
        for number, value in enumerate(slots):
            moment = begin + number * timedelta(minutes=15)
            by_day.setdefault(moment.date(), {})[slot_key(moment)] = value
        for day, of_day in by_day.items():
            self.world.schedule(day, of_day, category=category)

    # --- requests -----------------------------------------------------------------------------------

    @rule(tags=some_tags, value=values, hold_s=holds, later=blinks)
    def request(self, tags: list[str], value: float, hold_s: float, later: float) -> None:
        self.world.setpoint(hold_s=hold_s, **dict.fromkeys(tags, value))
        self.world.run(later)

    @rule(tags=some_tags, value=values, hold_s=st.sampled_from([1.0, 4.0, 20.0]), beyond=beyonds)
    def request_that_nobody_renews(self, tags: list[str], value: float, hold_s: float, beyond: float) -> None:
        self.world.setpoint(hold_s=hold_s, **dict.fromkeys(tags, value))
        self.world.run(hold_s + beyond)

    @rule(tags=some_tags, value=values, hold_s=st.sampled_from([4.0, 20.0]), beyond=beyonds)
    def request_that_is_renewed_in_time(
        self, tags: list[str], value: float, hold_s: float, beyond: float
    ) -> None:
        for _ in range(3):
            self.world.setpoint(hold_s=hold_s, **dict.fromkeys(tags, value))
            self.world.run(hold_s - 1.0)
        self.world.check()
        self.world.run(1.0 + beyond)

    @rule(tags=some_tags, first=values, second=values, back=st.integers(1, 3), later=blinks)
    def request_is_overtaken_by_a_later_one(
        self, tags: list[str], first: float, second: float, back: int, later: float
    ) -> None:
        """Two requests on their way: the one sent first arrives last."""
        number = self.world.central.sequence + back + 1
        self.world.central.sequence = number
        self.world.command(dict.fromkeys(tags, second), hold_s=30.0, sequence=number)
        self.world.run(later)
        self.world.command(dict.fromkeys(tags, first), hold_s=60.0, sequence=number - back)
        self.world.run(0.02)

    @rule(tags=some_tags, value=values, limit_s=st.sampled_from([2.0, 5.0]))
    def time_limit_is_lowered_under_a_hold(self, tags: list[str], value: float, limit_s: float) -> None:
        self.world.setpoint(hold_s=60.0, **dict.fromkeys(tags, value))
        self.world.run(1.0)
        self.world.site["curtailment_time_limit_s"] = limit_s
        self.world.configure()
        self.world.run(limit_s + 1.1)
        self.world.check()
        self.world.site["curtailment_time_limit_s"] = 60.0
        self.world.configure()

    @rule(tag=tags, value=values, leaves=st.sampled_from(["removed", "excluded"]))
    def device_leaves_under_a_hold(self, tag: str, value: float, leaves: str) -> None:
        self.world.setpoint(hold_s=60.0, **{tag: value})
        self.world.run(1.5)
        if leaves == "excluded":
            self.edit(tag, {"excluded": True})
        elif tag in self.world.raw:
            self.was_removed[tag] = self.world.raw.pop(tag)
            self.world.configure()
        self.world.run(12.0)

    @rule(tag=tags, value=values)
    def retained_request_is_found_at_the_next_connect(self, tag: str, value: float) -> None:
        self.world.broker.cut()
        self.world.command({tag: value}, hold_s=60.0, retain=True)
        self.world.run(0.1)
        self.world.broker.mend()
        self.world.run(3.0)

    @rule(tag=tags, value=st.sampled_from([-5.0, 100.5, 101.0]))
    def request_beyond_the_range(self, tag: str, value: float) -> None:
        self.world.setpoint(**{tag: value})

    @precondition(lambda self: self.world.central.sent)
    @rule(number=st.integers(0, 20), later=blinks)
    def send_an_earlier_command_again(self, number: int, later: float) -> None:
        self.world.send_again(number % len(self.world.central.sent))
        self.world.run(later)

    @rule(tag=tags, value=values, back=st.integers(1, 5))
    def request_with_an_older_number(self, tag: str, value: float, back: int) -> None:
        sequence = max(1, self.world.central.sequence - back)
        self.world.command({tag: value}, hold_s=60.0, sequence=sequence)

    @rule(tag=tags, value=values)
    def request_of_an_older_epoch(self, tag: str, value: float) -> None:
        self.world.command({tag: value}, hold_s=60.0, epoch=self.world.central.epoch - 1)

    @rule(tag=tags, value=values, retain=st.booleans())
    def request_with_a_token_of_nobody(self, tag: str, value: float, retain: bool) -> None:
        self.world.command({tag: value}, hold_s=60.0, fresh="made-up", retain=retain)

    @rule(tags=some_tags, later=blinks)
    def release(self, tags: list[str], later: float) -> None:
        self.world.release(*tags)
        self.world.run(later)

    # --- closed loops -------------------------------------------------------------------------------

    @property
    def has_loop(self) -> bool:
        return self.world.connection is not None

    @property
    def meter(self) -> Meter:
        meter = self.world.devices["plant", METER_PORT, 1]
        assert isinstance(meter, Meter)
        return meter

    def put_panels_on(self, port: int) -> None:
        """Of the two inverters that may be the plain one, one has sun; the one whose memory wears is elsewhere."""
        assert self.world.connection is not None
        for inverter in self.world.connection.inverters:
            assert inverter.port is not None
            if inverter.port.port in (PLACES[PLAIN]["port"], SPARE_PORT):
                inverter.sun = float(inverter.port.port == port)
            elif inverter.port.port == PLACES[WEARING]["port"]:
                inverter.sun = 0.0

    @precondition(lambda self: self.has_loop)
    @rule(seconds=silences, how=st.sampled_from(["silent", "refuse", "mute", "no number", "absurd"]))
    def meter_says_nothing_for(self, seconds: float, how: str) -> None:
        if how == "no number":
            self.meter.is_broken = True
        elif how == "absurd":
            self.meter.says = 1e30
        else:
            self.meter.fall_ill(Trouble(how))
        self.world.run(seconds)
        self.world.check()
        self.heal_meter()
        self.world.run(0.1)

    @precondition(lambda self: self.has_loop)
    @rule()
    def meter_falls_silent(self) -> None:
        self.meter.is_broken = True

    def heal_meter(self) -> None:
        self.meter.fall_ill(Trouble.NONE)
        self.meter.is_broken, self.meter.says = False, None

    @precondition(lambda self: self.has_loop)
    @rule(kw=loads, wander_kw=st.sampled_from([0.0, 0.0, 2.0]), seconds=moments)
    def load_changes(self, kw: float, wander_kw: float, seconds: float) -> None:
        assert self.world.connection is not None
        self.world.connection.set_load(kw, wander_kw=wander_kw)
        self.world.run(seconds)

    @precondition(lambda self: self.has_loop)
    @rule(tag=st.sampled_from(MEMBERS), sun=st.sampled_from([0.05, 0.3, 1.0]))
    def cloud_comes_or_goes(self, tag: str, sun: float) -> None:
        device = self.world.device_of(tag)
        if device is not None:
            assert isinstance(device, Inverter)
            device.sun = sun

    @precondition(lambda self: self.has_loop)
    @rule(value=values, hold_s=st.sampled_from([4.0, 20.0]), beyond=beyonds)
    def request_to_all_members(self, value: float, hold_s: float, beyond: float) -> None:
        self.world.setpoint(hold_s=hold_s, **dict.fromkeys(MEMBERS, value))
        self.world.run(hold_s + beyond)

    @precondition(lambda self: self.has_loop)
    @rule()
    def site_is_left_alone(self) -> None:
        self.heal()
        self.world.run(20.0)
        self.world.check()
        self.world.run(40.0)

    @precondition(lambda self: self.world.loops)
    @rule(changes=st.sampled_from([
        {"export_limit_kw": 36.0},
        {"export_limit_kw": None},
        {"export_limit_kw": 54.0, "fallback_pct": None},
        {"fallback_pct": 80.0},
        {"setpoint_kw": 20.0},
        {"setpoint_kw": None, "mode": "track"},
        {"max_rate_pct_per_s": 5.0},
        {"time_step_s": 1.0, "stale_after_s": 3.0},
        {"time_step_s": 5.0, "stale_after_s": 10.0},
        {"time_step_s": 5.0, "stale_after_s": 5.0},  # refused: each reading would be stale by the next
        {"members": [PLAIN, SLOW_2]},
        {"members": list(MEMBERS)},
    ]))  # fmt: skip
    def loop_is_edited(self, changes: Mapping[str, Any]) -> None:
        self.world.loops[0].update(changes)
        self.world.configure()
        self.world.run(0.1)

    @precondition(lambda self: self.has_loop)
    @rule(what=st.sampled_from(["loop", "meter"]))
    def loop_or_its_meter_is_removed_or_returns(self, what: str) -> None:
        if what == "meter":
            self.remove_or_return(METER)
        elif self.world.loops:
            self.removed_loops, self.world.loops = self.world.loops, []
        else:
            self.world.loops, self.removed_loops = self.removed_loops, []
        self.world.configure()

    # --- time ---------------------------------------------------------------------------------------

    @rule(seconds=moments)
    def wait(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule()
    def all_is_well_for_a_while(self) -> None:
        """Or nothing would ever get through: most of what may happen is bad."""
        self.heal()
        self.world.kernel_knows_time(vouches=True)
        self.world.run(12.0)

    def heal(self) -> None:
        world = self.world
        for device in world.devices.values():
            device.fall_ill(Trouble.NONE)
        world.broker.mend()
        world.broker.down = world.broker.up = FINE
        for tag in list(self.was_removed):
            world.raw[tag] = self.was_removed.pop(tag)
        for raw in world.raw.values():
            raw["excluded"] = False
        if self.has_loop:
            self.heal_meter()
            world.loops = world.loops or self.removed_loops
            self.removed_loops = []
            # A period at which it can be used, and not so short that the rest of its life takes for ever.
            loop = world.loops[0]
            loop["time_step_s"] = max(loop["time_step_s"], 2.0)
            loop["stale_after_s"] = max(loop.get("stale_after_s", 0.0), 2 * loop["time_step_s"] + 1.0)
        world.configure()

    @rule()
    def clock_is_stepped_while_nobody_vouches_for_it(self) -> None:
        self.world.kernel_knows_time(vouches=False)
        self.world.run(1.2)
        self.world.set_wall_clock(450.0)
        self.world.run(870.0)
        self.world.check()
        self.world.run(60.0)

    @rule(beyond=st.sampled_from([-0.5, 0.0, 0.01, 1.2]))
    def wait_for_the_quarter_hour(self, beyond: float) -> None:
        utc = self.world.utc()
        start = utc.replace(minute=utc.minute // 15 * 15, second=0, microsecond=0)
        self.world.run_to(start + timedelta(minutes=15, seconds=beyond))

    @rule(by_s=st.sampled_from([-86400.0, -900.0, 2.0, 450.0, 7200.0]))
    def wall_clock_is_set(self, by_s: float) -> None:
        self.world.set_wall_clock(by_s)
        self.world.run(1.2)

    @rule()
    def kernel_loses_or_finds_the_time(self) -> None:
        self.world.kernel_knows_time(vouches=not self.world.kernel_vouches)
        self.world.run(1.2)

    # --- desired state ------------------------------------------------------------------------------

    @rule(
        category=st.sampled_from(["inverter", "battery"]),
        slots=st.lists(st.one_of(st.none(), values), min_size=1, max_size=3),
    )
    def schedule_is_edited(self, category: str, slots: list[float | None]) -> None:
        self.put_schedule(category, slots)

    @rule(category=st.sampled_from(["inverter", "battery"]))
    def schedule_is_deleted(self, category: str) -> None:
        self.world.unschedule(self.world.utc().date(), category=category)

    @rule(limit_s=st.sampled_from([1.0, 5.0, 60.0, 3600.0, 0.0, 3601.0]))
    def time_limit_is_changed(self, limit_s: float) -> None:
        self.world.site["curtailment_time_limit_s"] = limit_s
        self.world.configure()
        if not 1 <= limit_s <= 3600:
            # Nobody leaves it at that: it would stop every other change as well.
            self.world.run(0.5)
            self.world.site["curtailment_time_limit_s"] = 60.0

    @rule(tag=tags, changes=st.sampled_from([
        {"min_value": 0.0, "max_value": 100.0, "default_value": 100.0},
        {"min_value": 20.0, "max_value": 90.0, "default_value": 60.0},
        {"max_value": 50.0, "default_value": 100.0},  # refused: the default is out of range
        {"bounds": [{"origin": "grid", "maximum": 40.0}]},
        {"bounds": [{"origin": "grid", "maximum": 70.0}, {"origin": "owner", "minimum": 80.0}]},
        {"bounds": []},
        {"lifetime": "singular"},
        {"lifetime": "cyclic"},
        {"excluded": True},
        {"excluded": False},
    ]))  # fmt: skip
    def device_is_edited(self, tag: str, changes: Mapping[str, Any]) -> None:
        self.edit(tag, changes)

    def edit(self, tag: str, changes: Mapping[str, Any]) -> None:
        raw = self.world.raw.get(tag)
        if raw is not None:
            raw.update(changes)
            self.world.configure()

    @rule(tag=tags)
    def device_is_removed_or_returns(self, tag: str) -> None:
        self.remove_or_return(tag)
        self.world.configure()

    def remove_or_return(self, tag: str) -> None:
        if tag in self.world.raw:
            self.was_removed[tag] = self.world.raw.pop(tag)
        else:
            self.world.raw[tag] = self.was_removed.pop(tag)

    @rule()
    def device_moves_to_another_endpoint(self) -> None:
        raw = self.world.raw.get(PLAIN)
        if raw is not None:
            raw["port"] = SPARE_PORT if raw["port"] != SPARE_PORT else PLACES[PLAIN]["port"]
            if self.has_loop:
                self.put_panels_on(raw["port"])
            self.world.configure()

    # --- the link -----------------------------------------------------------------------------------

    @rule()
    def link_is_cut_or_mended(self) -> None:
        if self.world.broker.is_cut:
            self.world.broker.mend()
        else:
            self.world.broker.cut()

    @rule()
    def weather_changes(self) -> None:
        weather = STORM if self.world.broker.down is FINE else FINE
        self.world.broker.down = self.world.broker.up = weather

    @rule()
    def broker_forgets_what_it_retained(self) -> None:
        self.world.broker.retained.clear()
        self.world.publish_anew()

    @rule()
    def central_is_restored_from_a_backup(self) -> None:
        self.world.restore_central()

    # --- devices ------------------------------------------------------------------------------------

    @rule(tag=tags, trouble=st.sampled_from([trouble for trouble in Trouble if trouble is not Trouble.NONE]))
    def device_falls_ill(self, tag: str, trouble: Trouble) -> None:
        device = self.world.device_of(tag)
        if device is not None:
            device.fall_ill(trouble)

    @rule()
    def all_devices_heal(self) -> None:
        for device in self.world.devices.values():
            device.fall_ill(Trouble.NONE)

    @rule(tag=tags)
    def device_restarts(self, tag: str) -> None:
        device = self.world.device_of(tag)
        if device is not None:
            device.restart()

    @rule(tag=tags, value=values)
    def somebody_sets_a_device_by_hand(self, tag: str, value: float) -> None:
        device = self.world.device_of(tag)
        if device is not None:
            device.turn_knob(value)

    # --- processes ----------------------------------------------------------------------------------

    @rule(away_s=st.sampled_from([0.0, 0.5, 10.0, 70.0]))
    def process_is_killed_and_starts_again(self, away_s: float) -> None:
        self.world.kill()
        self.world.run(away_s)
        self.world.start()
        self.world.run(0.01)

    @rule(dead_s=st.sampled_from([0.0, 0.01, 3.2]), guarded_s=st.sampled_from([0.004, 0.3, 5.0, 70.0]))
    def guard_takes_over_and_yields(self, dead_s: float, guarded_s: float) -> None:
        self.world.kill()
        self.world.run(dead_s)
        self.world.guard()
        self.world.run(guarded_s)
        self.world.check()
        self.world.yield_to_node()
        self.world.run(0.01)

    @rule(off_s=st.sampled_from([1.0, 20.0]))
    def machine_reboots(self, off_s: float) -> None:
        self.world.reboot(off_s=off_s)
        self.world.run(0.01)

    # --- what holds after every step ----------------------------------------------------------------

    @invariant()
    def all_is_as_the_rules_have_it(self) -> None:
        Site.steps += 1
        self.world.check()


def silence() -> None:
    """What the node would log of a shuffled life is no use to anybody."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
