"""A node's clock on a host: asked, judged, kept over a restart, and told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge.core.clock import Trust
from edge.runtime.alarms import Alarms
from edge.runtime.clock import Host, HostClock, kernel_error_s, wall
from edge.runtime.store import Store
from edge.runtime.timekeeper import OPEN_PINGS, Timekeeper
from edge.wire.messages import LogEntry, PingClosing, PingCommand, Stream

UTC_AT_BOOT = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
HOUR = 3600.0


class SimulatedHost:
    """A host whose wall clock is wrong by `off_s`, and whose kernel may vouch for it."""

    def __init__(self, *, off_s: float = 0.0, kernel_error_s: float | None = None) -> None:
        self.boottime_s = 1000.0
        self.off_s = off_s
        self.kernel_error_s = kernel_error_s

    @property
    def utc(self) -> datetime:
        """The true one."""
        return UTC_AT_BOOT + timedelta(seconds=self.boottime_s)

    @property
    def host(self) -> Host:
        return Host(
            wall_s=lambda: self.utc.timestamp() + self.off_s,
            boottime_s=lambda: self.boottime_s,
            kernel_error_s=lambda: self.kernel_error_s,
        )


class Node:
    """The part of a node that keeps time, and central's pings to it."""

    def __init__(self, host: SimulatedHost, directory: Path) -> None:
        self.host = host
        self.store = Store(directory)
        self.clock = HostClock(trust_host=False, host=host.host)
        confirmed = self.store.clock(boot=self.clock.boot_id)
        if confirmed is not None:
            self.clock.resume(confirmed)
        self.reports = 0
        self.alarms = Alarms(self.clock, self._changed)
        self.timekeeper = Timekeeper(
            clock=self.clock, store=self.store, alarms=self.alarms, logged=lambda: None
        )
        self.closing: PingClosing | None = None
        self.pings = 0

    def _changed(self) -> None:
        self.reports += 1

    def tick(self, *, after_s: float = 1.0) -> Trust:
        self.host.boottime_s += after_s
        self.timekeeper.tick()
        return self.clock.standing().trust

    def ping(self, *, after_s: float = 30.0, delay_s: float = 0.01, times: int = 1) -> None:
        """A ping arrives, which took as long as its answer will; it closes the one before."""
        self.host.boottime_s += after_s
        self.pings += 1
        ping_id = f"ping-{self.pings}"
        sent = self.host.utc
        self.host.boottime_s += delay_s
        ping = PingCommand(id=ping_id, epoch=1, sent_wall=sent.isoformat(), closing=self.closing)
        for _ in range(times):
            received_s = self.host.boottime_s
            self.timekeeper.pinged(ping, received_s=received_s, answered_s=received_s)
        self.host.boottime_s += delay_s
        self.closing = PingClosing(id=ping_id, heard_wall=wall(self.host.utc))

    @property
    def logged(self) -> list[LogEntry]:
        return self.store.waiting(Stream.CONTROL, limit=1000, max_bytes=10**6)

    @property
    def alarmed(self) -> list[str]:
        return [alarm.code for alarm in self.alarms.standing]


@pytest.fixture
def make(tmp_path: Path):
    nodes: list[Node] = []

    def node(host: SimulatedHost) -> Node:
        nodes.append(Node(host, tmp_path))
        return nodes[-1]

    yield node
    for each in nodes:
        each.store.close()


# --- asking the host ---------------------------------------------------------------------------------


def test_kernel_is_asked_and_answers_with_an_error_or_not_at_all():
    error_s = kernel_error_s()
    assert error_s is None or 0 <= error_s < 17  # beyond 16 s the kernel itself calls it unsynchronised


def test_host_that_is_to_be_trusted_is_whatever_its_kernel_says():
    host = SimulatedHost(off_s=-20 * 365 * 24 * HOUR)
    clock = HostClock(trust_host=True, host=host.host)
    host.off_s += HOUR
    assert clock.standing().trust is Trust.TRUSTED
    assert clock.quality().untrusted_since_s is None
    assert clock.now().utc == host.utc + timedelta(seconds=host.off_s)


def test_step_is_seen_before_the_next_decision():
    """The cycle asks for the moment, then for its quality: a step between two looks shows in both."""
    host = SimulatedHost(kernel_error_s=0.01)
    clock = HostClock(trust_host=False, host=host.host)
    host.kernel_error_s = None
    host.boottime_s += 0.1
    host.off_s = HOUR
    now = clock.now()
    assert clock.quality().untrusted_since_s == host.boottime_s
    assert now.utc == host.utc


def test_kernel_that_is_synchronised_later_is_noticed_within_a_second():
    host = SimulatedHost(off_s=-HOUR)
    clock = HostClock(trust_host=False, host=host.host)
    assert clock.quality().untrusted_since_s == 1000.0
    host.boottime_s += 1.0
    host.off_s, host.kernel_error_s = 0.0, 0.01
    assert clock.now().utc == host.utc
    assert clock.quality().untrusted_since_s is None


def test_utc_stands_still_over_a_leap_second():
    host = SimulatedHost(kernel_error_s=0.01)
    clock = HostClock(trust_host=False, host=host.host)
    before = clock.now().utc
    host.boottime_s += 0.4
    host.off_s -= 1.0
    assert clock.now().utc == before
    host.boottime_s += 0.7
    assert clock.now().utc == before + timedelta(seconds=0.1)


# --- exchanges with central --------------------------------------------------------------------------


def test_two_exchanges_put_a_wrong_clock_right(make):
    node = make(SimulatedHost(off_s=-HOUR))
    node.ping()
    node.ping()
    assert node.clock.standing().trust is Trust.UNSYNCED
    node.ping()

    standing = node.clock.standing()
    assert standing.trust is Trust.TRUSTED
    assert standing.bound_s is not None
    assert standing.bound_s < 0.1
    assert abs(node.clock.now().utc - node.host.utc) < timedelta(milliseconds=20)
    assert node.alarmed == []


def test_closing_that_comes_again_does_not_agree_with_itself(make):
    node = make(SimulatedHost())
    node.ping()
    first = node.closing
    for _ in range(4):
        node.ping()
        node.closing = first
    assert node.clock.standing().trust is Trust.UNSYNCED


def test_ping_that_came_twice_measures_nothing(make):
    node = make(SimulatedHost())
    for _ in range(5):
        node.ping(times=2)
    assert node.clock.standing().trust is Trust.UNSYNCED


def test_slow_path_measures_nothing(make):
    node = make(SimulatedHost())
    for _ in range(5):
        node.ping(delay_s=1.1)
    assert node.clock.standing().trust is Trust.UNSYNCED


@pytest.mark.parametrize("moment", ["", "yesterday", "2026-03-02T10:00:00", "0001-01-01T00:00:00+14:00"])
def test_moments_that_are_none_do_no_harm(make, moment):
    node = make(SimulatedHost())
    node.ping()
    assert node.closing is not None
    node.timekeeper.pinged(
        PingCommand(
            id="odd", epoch=1, sent_wall=moment, closing=PingClosing(id=node.closing.id, heard_wall=moment)
        ),
        received_s=2000.0,
        answered_s=2000.0,
    )
    assert node.clock.standing().trust is Trust.UNSYNCED


def test_pings_that_are_never_closed_are_forgotten(make):
    node = make(SimulatedHost())
    node.ping()
    first = node.closing
    for _ in range(OPEN_PINGS):
        node.closing = None
        node.ping()
    node.closing = first
    node.ping()
    node.ping()
    assert node.clock.standing().trust is Trust.UNSYNCED
    assert len(node.timekeeper._open) <= OPEN_PINGS


# --- over a restart ----------------------------------------------------------------------------------


def test_restart_of_the_process_keeps_what_was_confirmed_since_boot(make):
    host = SimulatedHost(off_s=-HOUR)
    before = make(host)
    for _ in range(3):
        before.ping()
    host.boottime_s += 2 * HOUR

    after = make(host)
    assert after.clock.standing().trust is Trust.HOLDOVER
    assert abs(after.clock.now().utc - host.utc) < timedelta(milliseconds=20)
    assert after.clock.quality().untrusted_since_s is None


def test_other_process_takes_up_what_is_news_and_nothing_older(make):
    """The guard runs for weeks beside the node, and takes over every now and then."""
    host = SimulatedHost(kernel_error_s=0.01)
    node = make(host)
    node.tick()
    first = node.clock.reference
    node.tick(after_s=1000)
    second = node.clock.reference
    host.kernel_error_s = None
    guard = HostClock(trust_host=False, host=host.host)
    assert guard.standing().trust is Trust.UNSYNCED
    for reference in (first, second, first):
        assert reference is not None
        guard.resume(reference)
    assert guard.reference == second
    assert guard.standing().trust is Trust.TRUSTED


def test_reboot_begins_anew(make):
    host = SimulatedHost(kernel_error_s=0.01)
    make(host).tick()
    host.kernel_error_s = None
    node = make(host)
    assert node.store.clock(boot="another boot") is None
    assert node.store.clock(boot=node.clock.boot_id) is not None


def test_step_between_two_processes_is_seen(make):
    host = SimulatedHost(kernel_error_s=0.01)
    make(host).tick()
    host.kernel_error_s = None
    host.off_s = HOUR
    assert make(host).clock.standing().trust is Trust.UNSYNCED


def test_steady_clock_is_written_to_disk_now_and_then_only(make):
    node = make(SimulatedHost(kernel_error_s=0.01))
    written = set()
    for _ in range(3600):
        node.tick()
        kept = node.store.clock(boot=node.clock.boot_id)
        assert kept is not None
        written.add(kept.at_boottime_s)
    assert len(written) <= 5


def test_damaged_memory_of_the_clock_is_none(make):
    host = SimulatedHost(kernel_error_s=0.01)
    node = make(host)
    node.tick()
    node.store._set_meta("clock", "nonsense")
    host.kernel_error_s = None
    assert make(host).clock.standing().trust is Trust.UNSYNCED


# --- told ---------------------------------------------------------------------------------------------


def told(entries: list[LogEntry]) -> Iterator[str]:
    for entry in entries:
        assert entry.kind == "clock"
        yield entry.reason.partition(",")[0]


def test_each_change_of_standing_is_one_entry_in_the_log(make):
    node = make(SimulatedHost(kernel_error_s=0.01))
    node.tick()
    node.host.kernel_error_s = None
    for _ in range(3):
        node.tick(after_s=600)
    node.host.off_s = HOUR
    for _ in range(3):
        node.tick()
    node.host.off_s, node.host.kernel_error_s = 0.0, 0.01
    for _ in range(3):
        node.tick()
    assert list(told(node.logged)) == ["holdover", "unsynced", "trusted"]


def test_unsynced_clock_is_an_alarm_until_something_confirms_it(make):
    node = make(SimulatedHost())
    node.tick()
    assert node.alarmed == ["clock_unsynced"]
    assert node.reports == 1
    node.host.kernel_error_s = 0.01
    node.tick()
    assert node.alarmed == []
    assert node.reports == 2


def test_holdover_is_an_alarm_above_thirty_seconds(make):
    node = make(SimulatedHost(kernel_error_s=0.01))
    node.tick()
    node.host.kernel_error_s = None
    node.tick(after_s=6.9 * 24 * HOUR)
    assert node.alarmed == []
    for _ in range(5):
        node.tick(after_s=0.2 * 24 * HOUR)
    assert node.alarmed == ["clock_holdover"]
    assert node.reports == 1
    node.tick(after_s=23 * 24 * HOUR)
    assert node.alarmed == ["clock_unsynced"]
