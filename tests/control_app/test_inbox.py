"""What nodes send unasked: taken once, and never in the way of what comes behind it."""

from __future__ import annotations

import dataclasses
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from django.db import connection, connections
from django.utils import timezone

from control_app import inbox
from control_app.management.commands.run_inbox import Arrived, Inbox
from control_app.models import (
    CommandState,
    ControlCommand,
    ControlLog,
    ControlRequest,
    DeviceErrorLog,
    NodeEvent,
    NodeStream,
    Status,
)
from control_app.node_logs import ReceivedLog
from devices_app.models import Device, TelemetryReading
from devices_app.services import device_delete
from edge.wire import codec
from edge.wire.messages import (
    NEVER_SENT,
    DeviceResult,
    Gap,
    Heartbeat,
    LogBatch,
    LogEntry,
    Presence,
    Reported,
    TelemetryBatch,
    TelemetryPoint,
)
from edge.wire.session import Incoming
from edge.wire.topics import NodeTopics
from sites_app.documents import manifest_for
from sites_app.models import Node
from sites_app.presence import presence_read
from sites_app.reports import ReceivedReport
from sites_app.tenants import KnownTenants
from smartgrid.errors import Conflict
from tests.factories import (
    control_command_make,
    control_request_make,
    device_make,
    node_make,
    node_online,
    report_make,
    story_make,
)

pytestmark = pytest.mark.django_db

TAG = "SMA_STP60_01"
UNKNOWN = {"updated": {}, "not_updated": {TAG: "unknown: no confirmation within 8 s"}}


@pytest.fixture
def story():
    return story_make()


def wall(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def entry(seq: int, *, kind: str = "watchdog", **fields) -> LogEntry:
    given: dict[str, Any] = {
        "at": wall(timezone.now()),
        "category": "inverter",
        "value": 100.0,
        "reason": "lapse",
        "devices": {TAG: DeviceResult(value=100.0, readback=100.0)},
    } | fields
    return LogEntry(seq=seq, kind=kind, **given)


def batch(*entries: LogEntry, store: str = "store-1") -> LogBatch:
    return LogBatch(
        stream="control",
        store=store,
        first=entries[0].seq,
        last=entries[-1].seq,
        entries=list(entries),
    )


def take(story, *entries: LogEntry, **options) -> int:
    last = log_taken(story.node_a.pk, batch(*entries, **options))
    assert last is not None
    return last


def log_taken(node_id: uuid.UUID, sent: LogBatch) -> int | None:
    """What is acknowledged of a batch; None where nothing is."""
    acks = inbox.on_logs([ReceivedLog(str(node_id), sent, timezone.now())])
    return acks[0][1].last if acks else None


def values_logged() -> list[float | None]:
    return list(ControlLog.objects.order_by("value").values_list("value", flat=True))


def answer_of_the_request() -> dict[str, Any]:
    return ControlRequest.objects.get().result or {}


def unknown_command(story, *, deadline_ago_s: float = 60) -> ControlCommand:
    request = control_request_make(
        site=story.site_a, deadline_in_s=-deadline_ago_s, status=Status.FAILED, result=UNKNOWN
    )
    # The device was there when it was asked.
    Device.objects.update(created_at=request.created_at - timedelta(days=1))
    return control_command_make(story.device_a, request=request, state=CommandState.UNKNOWN)


def result_of(command: ControlCommand, seq: int, **fields) -> LogEntry:
    given: dict[str, Any] = {
        "kind": "result",
        "command_id": str(command.id),
        "sequence": command.sequence,
        "value": 50.0,
        "devices": {TAG: DeviceResult(value=50.0, readback=50.0)},
    } | fields
    return entry(seq, **given)


# --- the log, exactly once ----------------------------------------------------------------------------------------------


def test_lapse_is_a_line_of_the_control_log_and_the_devices_value(story):
    command = control_command_make(story.device_a, state=CommandState.DONE)
    at = timezone.now()
    assert take(story, entry(1, at=wall(at), sequence=command.sequence)) == 1
    line = ControlLog.objects.get()
    assert (line.watchdog, line.value, line.status) == (True, 100, Status.SUCCESS)
    assert (line.site, line.node, line.request) == (story.site_a, story.node_a, command.request)
    assert line.result == {"updated": {TAG: None}, "not_updated": {}}
    assert line.created_at == at
    assert Device.objects.get(pk=story.device_a.pk).value == 100


def test_batch_that_comes_twice_is_taken_once(story):
    entries = entry(1), entry(2)
    assert take(story, *entries) == 2
    assert take(story, *entries) == 2
    assert ControlLog.objects.count() == 2


def test_stream_that_has_no_place_here_is_not_acknowledged_so_that_the_node_keeps_it(story):
    batch = LogBatch(stream="poems", store="store-1", first=1, last=1, entries=[entry(1)])
    assert log_taken(story.node_a.pk, batch) is None
    assert not NodeStream.objects.exists()


@pytest.mark.parametrize("kind", ["clock", "gap"])
def test_what_a_node_says_of_itself_is_acknowledged(story, kind):
    batch = LogBatch(stream="control", store="store-1", first=1, last=1, entries=[entry(1, kind=kind)])
    assert log_taken(story.node_a.pk, batch) == 1


def test_of_an_overlapping_batch_only_the_new_entries_are_taken(story):
    second = entry(2, value=2)
    take(story, entry(1, value=1), second)
    assert take(story, second, entry(3, value=3)) == 3
    assert values_logged() == [1, 2, 3]


def test_older_batch_behind_a_newer_one_adds_nothing_and_learns_where_the_stream_is(story):
    take(story, entry(1), entry(2), entry(3))
    assert take(story, entry(1)) == 3
    assert ControlLog.objects.count() == 3


def test_stream_goes_on_behind_entries_that_this_database_has_lost(story, caplog):
    assert take(story, entry(7), entry(8)) == 8
    assert ControlLog.objects.count() == 2
    assert "log_entries_missing" in caplog.text


def test_replaced_store_begins_its_numbers_anew(story):
    take(story, entry(1), entry(2))
    assert take(story, entry(1), store="store-2") == 1
    assert ControlLog.objects.count() == 3


def test_unknown_node_is_not_acknowledged(story):
    assert log_taken(uuid.uuid4(), batch(entry(1))) is None
    assert not NodeStream.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_two_inboxes_take_a_batch_once_between_them():
    story = story_make()
    entries = [entry(seq, value=seq) for seq in range(1, 21)]
    barrier = threading.Barrier(2)
    acknowledged: list[int] = []

    def one_inbox() -> None:
        barrier.wait(5)
        try:
            acknowledged.append(take(story, *entries))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=one_inbox) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert acknowledged == [20, 20]
    assert values_logged() == list(range(1, 21))


# --- a node whose disk is an older one, put back (ADR 0017) -----------------------------------------------------------


def test_node_that_goes_another_way_is_told_so_and_nothing_of_that_is_taken_under_old_numbers(story, caplog):
    take(story, entry(1, value=1), entry(2, value=2))
    assert take(story, entry(2, value=22), entry(3, value=33)) == NEVER_SENT
    assert values_logged() == [1, 2]
    assert "log_stream_forked" in caplog.text


def test_node_that_goes_another_way_below_the_position_learns_it_from_that(story):
    take(story, *(entry(seq, value=seq) for seq in range(1, 6)))
    assert take(story, entry(3, value=33)) == 5
    assert values_logged() == [1, 2, 3, 4, 5]


def test_gap_in_the_place_of_what_had_to_make_room_is_not_another_way(story):
    take(story, entry(1, value=1), entry(2, value=2))
    gap = Gap(since="2026-11-20T00:00:00Z", until="2026-11-20T00:00:01Z", entries=2)
    assert take(story, entry(2, kind="gap", gap=gap), entry(3, value=3)) == 3
    assert values_logged() == [1, 2, 3]


def test_of_what_comes_again_under_a_new_store_nothing_is_doubled_and_nothing_new_is_lost(story):
    error = {TAG: DeviceResult(code="device_error", detail="no answer")}
    known = [
        entry(1, value=1),
        entry(2, kind="device_error", devices=error),
        entry(3, kind="clock", reason="stepped by 7 s"),
        entry(4, kind="retired", value=None, reason="confirmed"),
    ]
    take(story, *known)
    take(story, entry(1, value=55))
    # Of its other life, from before central hears of the new store too.
    between = entry(5, value=55)
    again = [
        msgspec.structs.replace(one, seq=seq) for seq, one in enumerate([*known[1:], known[0], between], 1)
    ]
    assert take(story, *again, store="store-2") == 5
    assert take(story, *again, store="store-2") == 5
    assert take(story, entry(6, value=66), store="store-2") == 6
    assert sorted(value for value in values_logged() if value is not None) == [1, 55, 66]
    assert ControlLog.objects.count() == 4
    assert DeviceErrorLog.objects.count() == 1
    assert NodeEvent.objects.count() == 1


def test_result_under_a_new_store_is_known_by_its_command(story):
    command = unknown_command(story)
    take(story, result_of(command, 1))
    take(story, result_of(command, 1), store="store-2")
    assert ControlLog.objects.count() == 1


ODD = {
    "unknown kind": {"kind": "poem"},
    "unknown kind with NUL": {"kind": "po\x00em", "reason": "a\x00b", "category": "a\x00b"},
    "unknown kind too long": {"kind": "x" * 5000, "reason": "y" * 50_000},
    "retirement of nothing": {"kind": "retired", "devices": {}, "value": None},
    "unknown device": {"kind": "device_error", "devices": {"NO_SUCH": DeviceResult(code="x", detail="y")}},
    "no devices": {"devices": {}},
    "standing limit without a value": {"kind": "standing", "devices": {TAG: DeviceResult()}},
    "no moment": {"at": ""},
    "a moment that is none": {"at": "yesterday"},
    "a moment beyond all time zones": {"at": "0001-01-01T00:00:00+14:00"},
    "a moment without a zone": {"at": "2026-01-01T00:00:00"},
    "a category too long": {"category": "x" * 5000},
    "a reason too long": {"reason": "x" * 5000},
    "NUL in a reason": {"reason": "a\x00b"},
    "NUL in an error": {"kind": "device_error", "devices": {TAG: DeviceResult(code="x", detail="a\x00b")}},
    "NUL in a result": {"devices": {TAG: DeviceResult(code="x", detail="a\x00b")}},
    "a sequence beyond the database": {"sequence": 2**80},
    "a negative sequence": {"sequence": -1},
    "a command that is no id": {"kind": "result", "command_id": "no id", "sequence": 1},
    "a result of nothing": {"kind": "result"},
}


def kept(story, *entries: LogEntry) -> int | None:
    """What is acknowledged of the stream of readings from a time without a link."""
    return log_taken(story.node_a.pk, msgspec.structs.replace(batch(*entries), stream="telemetry"))


def points_of(seq: int, *values: float) -> LogEntry:
    at = timezone.now() - timedelta(minutes=10)
    points = tuple(
        TelemetryPoint(t=wall(at + timedelta(minutes=number)), key="P_kW", value=value, unit="kW", device=TAG)
        for number, value in enumerate(values)
    )
    return LogEntry(seq=seq, at=wall(at), kind="points", points=points)


def readings() -> list[float]:
    return list(TelemetryReading.objects.order_by("at").values_list("value", flat=True))


def test_readings_from_a_time_without_a_link_are_kept_once_and_acknowledged(story, live_redis):
    sent = [points_of(1, 30.0, 31.0), points_of(2, 32.0)]
    assert kept(story, *sent) == 2
    assert kept(story, *sent) == 2
    assert sorted(readings()) == [30.0, 31.0, 32.0]


def test_gap_in_the_readings_is_an_event_of_the_node(story, live_redis):
    gap = Gap(since="2026-11-20T00:00:00Z", until="2026-11-21T00:00:00Z", entries=7)
    assert kept(story, LogEntry(seq=1, at="", kind="gap", gap=gap), points_of(2, 30.0)) == 2
    assert "7 entries from" in NodeEvent.objects.get().reason
    assert readings() == [30.0]


# --- many nodes at once -----------------------------------------------------------------------------------------------


def received(node: Node, *entries: LogEntry) -> ReceivedLog:
    return ReceivedLog(str(node.pk), batch(*entries), timezone.now())


def test_batches_of_many_nodes_are_acknowledged_each_on_its_own(story):
    sent = [received(story.node_a, entry(1), entry(2)), received(story.node_b, entry(1))]
    acks = {topics.node: ack.last for topics, ack in inbox.on_logs(sent)}
    assert acks == {str(story.node_a.pk): 2, str(story.node_b.pk): 1}
    assert ControlLog.objects.count() == 3


def test_batch_that_comes_twice_at_once_is_taken_once_and_acknowledged_once(story):
    sent = received(story.node_a, entry(1))
    assert [ack.last for _, ack in inbox.on_logs([sent, sent])] == [1]
    assert ControlLog.objects.count() == 1


def test_many_batches_cost_no_more_queries_than_one(story, django_assert_max_num_queries):
    nodes = [node_make(site=story.site_a) for _ in range(20)]
    inbox.on_logs([received(node, entry(1)) for node in nodes])
    with django_assert_max_num_queries(8):
        inbox.on_logs([received(node, entry(2)) for node in nodes])
    assert ControlLog.objects.count() == 40


@pytest.mark.parametrize("fields", ODD.values(), ids=ODD.keys())
def test_odd_entry_of_one_node_costs_its_neighbours_nothing(story, fields):
    sent = [received(story.node_a, entry(1, **fields)), received(story.node_b, entry(1, value=77))]
    assert [ack.last for _, ack in inbox.on_logs(sent)] == [1, 1]
    assert ControlLog.objects.filter(value=77, node=story.node_b).count() == 1


@pytest.mark.parametrize(
    "fields", [{"store": "s" * 65}, {"store": "a\x00b"}, {"last": 2**63}, {"first": -1}], ids=str
)
def test_batch_that_no_column_can_hold_is_left_with_its_node(story, fields):
    odd = msgspec.structs.replace(batch(entry(1)), **fields)
    sent = [ReceivedLog(str(story.node_a.pk), odd, timezone.now()), received(story.node_b, entry(1))]
    assert [topics.node for topics, _ in inbox.on_logs(sent)] == [str(story.node_b.pk)]


# --- entries that are odd -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", ODD.values(), ids=ODD.keys())
def test_odd_entry_does_not_hold_up_those_behind_it(story, fields):
    assert take(story, entry(1, **fields), entry(2, value=77)) == 2
    assert ControlLog.objects.filter(value=77).count() == 1


def test_long_reason_is_cut_and_its_line_kept(story):
    take(story, entry(1, reason="x" * 5000, category="y" * 5000))
    line = ControlLog.objects.get()
    assert (len(line.reason), len(line.category)) == (500, 64)


@pytest.mark.parametrize("years", [-20, 20])
def test_moment_that_cannot_be_right_is_the_time_of_receipt(story, years):
    before = timezone.now()
    take(story, entry(1, at=wall(before + timedelta(days=365 * years))))
    assert before <= ControlLog.objects.get().created_at <= timezone.now()


def test_errors_of_devices_are_logged_by_device(story):
    take(
        story,
        entry(1, kind="device_error", devices={TAG: DeviceResult(code="device_error", detail="no answer")}),
        entry(2, kind="standing", devices={TAG: DeviceResult(value=30)}),
    )
    assert list(DeviceErrorLog.objects.order_by("pk").values_list("device__device_tag", "error")) == [
        (TAG, "no answer"),
        (TAG, "holds 30 at first contact, which this node did not set"),
    ]


def test_end_of_a_retirement_is_a_line_of_the_control_log(story):
    device_delete(device=story.device_a)
    take(story, entry(1, kind="retired", reason="confirmed"))
    line = ControlLog.objects.get()
    assert (line.watchdog, line.value, line.reason) == (False, 100, "retired: confirmed")
    assert line.result == {"updated": {TAG: None}, "not_updated": {}}


@pytest.mark.parametrize("kind", ["clock", "poem"])
def test_entry_without_a_table_of_its_own_is_kept_as_it_came_and_once(story, kind):
    sent = entry(1, kind=kind, reason="stepped by 7 s")
    take(story, sent)
    take(story, sent)
    event = NodeEvent.objects.get()
    assert (event.node, event.kind, event.reason) == (story.node_a, kind, "stepped by 7 s")
    assert msgspec.json.decode(event.entry, type=LogEntry) == sent
    assert not ControlLog.objects.exists()


def test_gap_in_a_stream_is_told(story):
    gap = Gap(since="2026-11-20T00:00:00Z", until="2026-11-21T00:00:00Z", entries=1234)
    take(story, entry(1, kind="gap", gap=gap, reason=""))
    assert NodeEvent.objects.get().reason == (
        "1234 entries from 2026-11-20T00:00:00Z to 2026-11-21T00:00:00Z are missing"
    )


def test_error_of_a_device_that_is_gone_is_kept_with_its_node(story):
    device_delete(device=story.device_a)
    take(story, entry(1, kind="device_error", devices={TAG: DeviceResult(code="x", detail="no answer")}))
    assert not DeviceErrorLog.objects.exists()
    assert "no answer" in NodeEvent.objects.get().entry


def test_errors_of_a_device_outlive_it(story):
    error = {TAG: DeviceResult(code="device_error", detail="no answer")}
    take(story, entry(1, kind="device_error", devices=error))
    device_delete(device=story.device_a)
    body = story.root.get("/v1/device-error-logs").json()
    assert body[str(story.site_a.pk)]["devices"][TAG]["total_errors"] == 1


def test_late_result_is_not_the_value_of_a_device_made_since_under_the_tag(story):
    command = unknown_command(story)
    device_delete(device=story.device_a)
    node_online(story.node_a)
    on_reported(story, **retired_there(story))
    again = device_make(node=story.node_a, device_tag=TAG)
    take(story, result_of(command, 1), entry(2, sequence=command.sequence))
    assert Device.objects.get(pk=again.pk).value is None
    assert ControlCommand.objects.get().state == CommandState.DONE


def test_node_cannot_speak_of_another_nodes_devices_or_commands(story):
    foreign = control_command_make(story.device_b, state=CommandState.UNKNOWN)
    error = {"GENERIC_PV_01": DeviceResult(code="x", detail="forged")}
    value = {"GENERIC_PV_01": DeviceResult(value=1)}
    take(
        story,
        entry(1, kind="device_error", devices=error),
        result_of(foreign, 2, devices=value),
        entry(3, sequence=foreign.sequence, devices=value),
    )
    assert not DeviceErrorLog.objects.exists()
    assert ControlCommand.objects.get().state == CommandState.UNKNOWN
    assert ControlLog.objects.get().request is None
    assert Device.objects.get(pk=story.device_b.pk).value is None


# --- results ----------------------------------------------------------------------------------------------------------------


def test_result_of_an_unknown_command_corrects_the_answer(story):
    command = unknown_command(story)
    take(story, result_of(command, 1))
    assert ControlCommand.objects.get().state == CommandState.DONE
    assert ControlRequest.objects.get().status == Status.SUCCESS
    assert ControlLog.objects.get().watchdog is False
    assert Device.objects.get(pk=story.device_a.pk).value == 50


def test_result_that_is_known_already_adds_no_line(story):
    command = control_command_make(story.device_a, state=CommandState.DONE)
    take(story, result_of(command, 1))
    assert not ControlLog.objects.exists()


def test_value_never_goes_back_to_an_older_sequence(story):
    older = control_command_make(story.device_a, state=CommandState.SENT)
    newer = control_command_make(story.device_a, state=CommandState.SENT)
    take(
        story,
        result_of(newer, 1, devices={TAG: DeviceResult(value=20)}),
        result_of(older, 2, devices={TAG: DeviceResult(value=80)}),
        entry(3, sequence=older.sequence),
    )
    assert Device.objects.get(pk=story.device_a.pk).value == 20


def test_result_that_the_view_has_recorded_writes_nothing_but_the_position(
    story, django_assert_max_num_queries
):
    commands = [control_command_make(story.device_a, state=CommandState.DONE) for _ in range(3)]
    with django_assert_max_num_queries(20) as queries:
        take(story, *(result_of(command, seq) for seq, command in enumerate(commands, start=1)))
    written = [
        query["sql"] for query in queries.captured_queries if query["sql"].startswith(("UPDATE", "INSERT"))
    ]
    assert [sql.split('"')[1] for sql in written] == ["control_app_nodestream"] * 2  # made, then moved once


def test_unconfirmed_device_keeps_its_value(story):
    command = unknown_command(story)
    take(story, result_of(command, 1, devices={TAG: DeviceResult(code="write_failed", value=50)}))
    assert Device.objects.get(pk=story.device_a.pk).value is None
    assert answer_of_the_request()["not_updated"] == {TAG: "write_failed"}


def test_result_takes_the_same_locks_in_the_same_order_as_the_view(story, django_assert_max_num_queries):
    """Command, request, device: two that learn of one result wait for each other, and do not deadlock."""
    command = unknown_command(story)
    with django_assert_max_num_queries(25) as queries:
        take(story, result_of(command, 1))
    tables = [
        query["sql"].split('"')[1] for query in queries.captured_queries if query["sql"].startswith("UPDATE")
    ]
    assert tables == [
        "control_app_nodestream",
        "control_app_controlcommand",
        "control_app_controlrequest",
        "devices_app_device",
        "control_app_nodestream",
    ]


# --- reports ----------------------------------------------------------------------------------------------------------------


def report(story, **fields) -> Reported:
    manifest = manifest_for(story.node_a)
    given: dict[str, Any] = {
        "session": "s",
        "boot": "b",
        "store": "store-1",
        "epoch": manifest.epoch,
        "manifest_version": manifest.version,
        "at": wall(timezone.now()),
        "clock": "trusted",
    } | fields
    return Reported(**given)


def on_reported(story, *, retained: bool = False, after_s: float = 0, **fields) -> None:
    received = timezone.now() + timedelta(seconds=after_s)
    reported = report(story, **fields)
    inbox.on_reports([ReceivedReport(str(story.node_a.pk), reported, received, retained)])


def test_report_that_shows_no_acceptance_settles_the_unknown_as_not_delivered(story):
    command = unknown_command(story)
    on_reported(story, sequences={TAG: command.sequence - 1})
    assert ControlCommand.objects.get().state == CommandState.NOT_DELIVERED
    why = answer_of_the_request()["not_updated"][TAG]
    assert why == "not_delivered: the node never accepted it"
    assert ControlLog.objects.get().status == Status.FAILED


def test_report_that_shows_acceptance_leaves_it_to_the_log(story):
    command = unknown_command(story)
    on_reported(story, sequences={TAG: command.sequence})
    assert ControlCommand.objects.get().state == CommandState.UNKNOWN


def test_report_settles_nothing_that_could_still_be_accepted(story):
    unknown_command(story, deadline_ago_s=5)
    on_reported(story)
    assert ControlCommand.objects.get().state == CommandState.UNKNOWN
    on_reported(story, after_s=6)
    assert ControlCommand.objects.get().state == CommandState.NOT_DELIVERED


def test_retained_report_settles_nothing(story):
    unknown_command(story)
    on_reported(story, retained=True)
    assert ControlCommand.objects.get().state == CommandState.UNKNOWN


def retired_there(story, **fields) -> dict[str, Any]:
    """What a report of `node_online`'s session says when its node has let go of everything that left."""
    said = report_make(story.node_a, **fields)
    return {
        "session": said.session,
        "boot": said.boot,
        "documents": said.documents,
        "retiring": said.retiring,
    }


@pytest.mark.parametrize("retained", [False, True])
def test_report_frees_the_place_of_a_device_that_its_node_let_go_of(story, retained):
    device_delete(device=story.device_a)
    node_online(story.node_a)
    listed = {str(story.device_a.config_id): f"{TAG}: no answer"}
    on_reported(story, retained=retained, **retired_there(story, retiring=listed))
    with pytest.raises(Conflict):
        device_make(node=story.node_a, device_tag=TAG)
    on_reported(story, retained=retained, **retired_there(story))
    assert device_make(node=story.node_a, device_tag=TAG)


def test_log_outranks_what_a_report_seemed_to_prove(story):
    command = unknown_command(story)
    on_reported(story)
    take(story, result_of(command, 1))
    assert ControlCommand.objects.get().state == CommandState.DONE
    assert ControlRequest.objects.get().status == Status.SUCCESS


def test_report_of_an_unknown_node_is_passed_over(story):
    inbox.on_reports([ReceivedReport(str(uuid.uuid4()), report(story), timezone.now(), retained=False)])


# --- the process --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def process(live_redis):
    return Inbox()


def incoming(
    node: str, leaf: str, payload: bytes, *, retain: bool = False, tenant: str = "tenant-123"
) -> Arrived:
    return Arrived.now(Incoming(f"sgm/v1/{tenant}/{node}/{leaf}", payload, retain, None, None))


def beat_of(session: str) -> bytes:
    return codec.encode(Heartbeat(session=session, seq=1, mono_ms=0, wall="", fresh="token"))


def test_heartbeat_makes_a_node_reachable(story, process):
    process.take([incoming(str(story.node_a.pk), "hb", beat_of("s1"))])
    known = presence_read([story.node_a.pk])[story.node_a.pk]
    assert (known.session, known.fresh) == ("s1", "token")
    assert known.is_reachable(now=timezone.now().timestamp())


@pytest.mark.parametrize("node", ["no-uuid", "5f27ec202c4f42c2bb85d309ca009be6", "A" * 64])
@pytest.mark.parametrize("leaf", ["hb", "presence", "reported", "log", "tele"])
def test_branch_of_no_node_is_passed_over(process, caplog, node, leaf):
    process.take([incoming(node, leaf, beat_of("s1"))])
    assert "message_of_no_node" in caplog.text


@pytest.mark.parametrize("leaf", ["hb", "presence", "reported", "log", "tele", "poem"])
@pytest.mark.parametrize("payload", [b"", b"{", b"null", b'{"v": 2}', b'{"v": 1}', b"[" * 5000, b"\xff"])
def test_what_cannot_be_read_does_not_end_the_process(story, process, leaf, payload):
    process.take([incoming(str(story.node_a.pk), leaf, payload)])


def test_node_unknown_to_central_does_not_end_the_process(process):
    node, presence = str(uuid.uuid4()), Presence(online=True, session="s", boot="b")
    points = [TelemetryPoint(t="", key="P_kW", value=1.0, device=TAG)]
    for leaf, message in (
        ("presence", presence),
        ("log", batch(entry(1))),
        ("tele", TelemetryBatch(points=points)),
    ):
        process.take([incoming(node, leaf, codec.encode(message))])
    assert not NodeStream.objects.exists()


def test_birth_that_no_inbox_heard_is_learnt_from_the_retained_one(story, process):
    birth = codec.encode(Presence(online=True, session="s1", boot="b1", fresh="old token"))
    process.take([incoming(str(story.node_a.pk), "presence", birth, retain=True)])
    node = Node.objects.get(pk=story.node_a.pk)
    assert (node.online, node.session) == (True, "s1")
    known = presence_read([node.pk])[node.pk]
    assert known.fresh == ""
    assert not known.is_reachable(now=timezone.now().timestamp())


def test_will_of_a_former_session_changes_nothing(story, process):
    name = str(story.node_a.pk)
    for online, session in ((True, "s1"), (True, "s2"), (False, "s1")):
        presence = Presence(online=online, session=session, boot="b")
        process.take([incoming(name, "presence", codec.encode(presence))])
    assert Node.objects.get(pk=story.node_a.pk).online is True


def test_heartbeat_of_a_session_nobody_knew_of_is_a_birth(story, process):
    process.take([incoming(str(story.node_a.pk), "hb", beat_of("s7"))])
    node = Node.objects.get(pk=story.node_a.pk)
    assert (node.online, node.session) == (True, "s7")


def test_report_of_a_session_nobody_knew_of_is_a_birth(story, process):
    message = codec.encode(report(story, session="s7", boot="b7"))
    process.take([incoming(str(story.node_a.pk), "reported", message)])
    node = Node.objects.get(pk=story.node_a.pk)
    assert (node.online, node.session, node.boot) == (True, "s7", "b7")


def test_heartbeat_that_waited_for_longer_than_its_token_is_worth_changes_nothing(story, process):
    late = incoming(str(story.node_a.pk), "hb", beat_of("s1"))
    process.take([dataclasses.replace(late, monotonic_s=late.monotonic_s - 15.1)])
    assert presence_read([story.node_a.pk])[story.node_a.pk].session == ""


def test_heartbeat_that_waited_is_dated_by_its_receipt(story, process):
    late = incoming(str(story.node_a.pk), "hb", beat_of("s1"))
    process.take([dataclasses.replace(late, monotonic_s=late.monotonic_s - 14, at=late.at - 14)])
    known = presence_read([story.node_a.pk])[story.node_a.pk]
    assert known.fresh_at == pytest.approx(late.at - 14, abs=0.001)


def test_message_under_another_tenants_name_is_passed_over_and_told_once_a_minute(story, process, caplog):
    forged = incoming(str(story.node_a.pk), "hb", beat_of("s1"), tenant="another")
    process.take([forged, forged])
    process.take([forged])
    assert presence_read([story.node_a.pk])[story.node_a.pk].session == ""
    assert caplog.text.count("message_under_wrong_tenant") == 1


def test_node_made_after_its_first_message_is_known_in_time(story, caplog):
    now = [0.0]
    tenants = KnownTenants(clock=lambda: now[0])
    late = uuid.uuid4()
    topics = NodeTopics("tenant-123", str(late))
    tenants.load([topics.node])
    assert not tenants.is_right(topics)
    node_make(site=story.site_a, id=late)
    now[0] += 5.0
    tenants.load([topics.node])
    assert tenants.is_right(topics)


def test_odd_message_costs_its_neighbours_nothing(story, process):
    too_long = codec.encode(Presence(online=True, session="x" * 500, boot="b"))
    birth = codec.encode(Presence(online=True, session="s1", boot="b"))
    process.take(
        [
            incoming(str(story.node_a.pk), "presence", too_long),
            incoming(str(story.node_b.pk), "presence", birth),
        ]
    )
    assert Node.objects.get(pk=story.node_b.pk).online is True


def test_entry_that_cannot_be_read_is_kept_as_an_event_and_the_log_goes_on(story, process, caplog):
    sent = json.loads(codec.encode(batch(entry(1), entry(2, value=77), entry(3))))
    sent["entries"][0]["value"] = "much"
    sent["entries"][2] = "no entry at all"
    process.take([incoming(str(story.node_a.pk), "log", json.dumps(sent).encode())])
    assert NodeStream.objects.get().last == 3
    assert values_logged() == [77]
    events = NodeEvent.objects.order_by("pk")
    assert [event.kind for event in events] == ["unreadable", "unreadable"]
    assert "much" in events[0].entry
    assert "no entry at all" in events[1].entry


def test_beyond_the_backlog_what_comes_again_is_let_go_and_counted(story, process, caplog, monkeypatch):
    monkeypatch.setattr("control_app.management.commands.run_inbox.BACKLOG", 2)
    name, waiting = str(story.node_a.pk), process._waiting
    birth = codec.encode(Presence(online=True, session="s1", boot="b"))
    for leaf, payload in (
        ("hb", beat_of("s1")),
        ("hb", b""),
        ("hb", b""),
        ("tele", b""),
        ("presence", birth),
    ):
        waiting.put(incoming(name, leaf, payload))
    taken = waiting.take(within_s=0)
    assert [arrived.topic.rpartition("/")[2] for arrived in taken or []] == ["hb", "hb", "presence"]
    assert caplog.text.count("inbox_overloaded") == 1
    assert "'dropped': 2" in caplog.text


@pytest.mark.django_db(transaction=True)
def test_telemetry_and_births_the_database_did_not_take_are_taken_when_it_is_back(live_redis, monkeypatch):
    process, story = Inbox(), story_make()
    monkeypatch.setattr("control_app.management.commands.run_inbox.RETRY_S", 0.0)
    name = str(story.node_a.pk)
    process.take([incoming(name, "hb", beat_of("s1"))])
    Node.objects.update(online=False)
    point = TelemetryPoint(t=wall(timezone.now()), key="P_kW", value=30.0, unit="kW", device=TAG)
    birth = codec.encode(Presence(online=True, session="s2", boot="b"))
    with table_away("sites_app_node"):
        process.take(
            [
                incoming(name, "tele", codec.encode(TelemetryBatch(points=[point]))),
                incoming(name, "presence", birth),
            ]
        )
    assert readings() == []
    process.take([])
    assert readings() == [30.0]
    assert Node.objects.get(pk=story.node_a.pk).session == "s2"


@contextmanager
def table_away(name: str) -> Iterator[None]:
    table_rename(name, "elsewhere")
    try:
        yield
    finally:
        table_rename("elsewhere", name)


def test_telemetry_of_a_device_of_another_node_is_left_out(story, process):
    device_make(node=node_make(site=story.site_a), device_tag="INV_02")
    points = [
        TelemetryPoint(t="", key="P_kW", value=30.0, device=TAG),
        TelemetryPoint(t="", key="P_kW", value=500.0, device="INV_02"),
    ]
    telemetry = codec.encode(TelemetryBatch(points=points))
    process.take([incoming(str(story.node_a.pk), "tele", telemetry)])
    metrics = story.root.get(f"/v1/sites/{story.site_a.pk}").json()["metrics"]
    assert [(metric["key"], metric["value"]) for metric in metrics] == [("P_Actual_kW", 30)]


@pytest.mark.django_db(transaction=True)
def test_batch_that_could_not_be_committed_is_not_acknowledged_and_taken_when_it_comes_again(
    live_redis, broker, settings
):
    settings.SGM_MQTT_HOST, settings.SGM_MQTT_PORT = broker.host, broker.port
    settings.SGM_MQTT_INBOX_PASSWORD = broker.passwords["central-inbox"]
    process, story = Inbox(), story_make()
    message = incoming(str(story.node_a.pk), "log", codec.encode(batch(entry(1))))
    table_rename("control_app_nodestream", "elsewhere")
    try:
        process.take([message])
    finally:
        table_rename("elsewhere", "control_app_nodestream")
    assert not ControlLog.objects.exists()
    process.take([message])
    assert NodeStream.objects.get().last == 1


def table_rename(name: str, to: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {name} RENAME TO {to}")
