"""What becomes of a hold, told from devices and logs in whatever order they come."""

from __future__ import annotations

from sgm.cli.watch import GRACE_S, Watch
from sgm.decoding import decode
from sgm.models import ControlLog, Device
from tests.client.test_client import log_of
from tests.client.test_commands import device_of

LIMIT_S = 60.0


def watch_of(*tags: str) -> Watch:
    return Watch(tags=tags or ("A",), category="inverter", value=50, limit_s=LIMIT_S)


def line_of(line_id: str, *tags: str, value: float | None = 50, watchdog: bool = False) -> ControlLog:
    result = {"updated": dict.fromkeys(tags or ("A",)), "not_updated": {}}
    return decode(ControlLog, log_of(id=line_id, value=value, watchdog=watchdog, result=result))


def device_at(value: float | None, tag: str = "A") -> Device:
    return decode(Device, device_of(tag, value=value))


def ended(watch: Watch) -> dict[str, str]:
    return {tag: held.ended for tag, held in watch.held.items()}


def test_lapse_after_our_request_ends_the_hold():
    watch = watch_of()
    watch.take_logs([line_of("1")])
    assert ended(watch) == {"A": ""}
    watch.take_logs([line_of("2", value=100, watchdog=True), line_of("1")])
    assert ended(watch) == {"A": "lapsed"}
    assert watch.is_over(after_s=1)


def test_lapse_of_an_earlier_request_is_not_ours():
    watch = watch_of()
    watch.take_logs([line_of("3"), line_of("2", value=100, watchdog=True), line_of("1")])
    assert ended(watch) == {"A": ""}


def test_lapse_that_was_logged_before_the_first_look_counts():
    watch = watch_of()
    watch.take_logs([line_of("2", value=100, watchdog=True), line_of("1")])
    assert ended(watch) == {"A": "lapsed"}


def test_our_line_may_come_after_the_first_look():
    watch = watch_of()
    watch.take_logs([line_of("1", value=100, watchdog=True)])
    assert ended(watch) == {"A": ""}


def test_release_and_another_request_are_told_apart():
    watch = watch_of("A", "B")
    own = line_of("1", "A", "B")
    watch.take_logs([own])
    watch.take_logs([line_of("3", "B", value=30), line_of("2", "A", value=None), own])
    assert ended(watch) == {"A": "released", "B": "taken over by another request"}


def test_line_of_other_devices_ends_nothing():
    watch = watch_of()
    watch.take_logs([line_of("1")])
    watch.take_logs([line_of("2", "B", value=100, watchdog=True), line_of("1")])
    assert ended(watch) == {"A": ""}


def test_same_line_twice_is_told_once():
    watch = watch_of()
    watch.take_logs([line_of("1")])
    lapse = [line_of("2", value=100, watchdog=True), line_of("1")]
    assert [len(watch.take_logs(lapse)), len(watch.take_logs(lapse))] == [1, 0]


def test_watch_ends_where_nothing_is_heard_any_more():
    watch = watch_of()
    assert not watch.is_over(after_s=LIMIT_S + GRACE_S)
    assert watch.is_over(after_s=LIMIT_S + GRACE_S + 1)
    assert [held.tag for held in watch.open] == ["A"]


def test_value_that_moves_under_a_hold_is_not_told_as_held():
    watch = watch_of()
    (held,) = watch.take_devices([device_at(50), device_at(80, "B")])
    assert held.told(left_s=12) == "held, 12 s left"
    assert watch.take_devices([device_at(50)]) == []
    watch.take_devices([device_at(100)])
    assert held.told(left_s=1) == "moving, 1 s left"
