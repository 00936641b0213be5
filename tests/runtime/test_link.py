"""A node on a real broker: what it answers, what it refuses, and what it sends until it is acknowledged."""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.core.instant import Instant
from edge.profiles.reading import profile_to_builtins
from edge.runtime.clock import Host, HostClock, wall
from edge.runtime.node import run_node
from edge.runtime.store import Store
from edge.runtime.uploader import PACE, Pace
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from edge.wire import codec
from edge.wire.messages import (
    DIGEST_LENGTH,
    Code,
    CommandAnswer,
    LogBatch,
    LogEntry,
    PingClosing,
    PingCommand,
    Presence,
    ReleaseCommand,
    Reported,
    Stream,
    TelemetryBatch,
)
from edge.wire.session import Broker as Address
from edge.wire.topics import NodeTopics
from smartgrid.demo.state import free_port
from tests.runtime.central import Central, central_for
from tests.runtime.plant import NAMEPLATE_KW, SITE, profile
from tests.servers import Broker

A = "INVERTER_01"
LIMIT = "limit_target"


class ShiftedClock(HostClock):
    """The host's clock, which a test may put forward."""

    shift_s = 0.0

    def boottime_s(self) -> float:
        return super().boottime_s() + self.shift_s

    def now(self) -> Instant:
        now = super().now()
        return Instant(now.utc, now.boottime_s + self.shift_s)


class Rig:
    """One node with one device, and central at the other end of the broker."""

    def __init__(
        self, central: Central, device: SimulatedDevice, clock: ShiftedClock, directory: Path
    ) -> None:
        self.central = central
        self.device = device
        self.clock = clock
        self.directory = directory
        self.pace = PACE
        self.is_offline = False
        self.start: Callable[[], None] = lambda: None
        self.task: asyncio.Task[None] | None = None
        self.stop = asyncio.Event()

    @property
    def body(self) -> dict[str, Any]:
        kind = self.device.profile
        return {
            "site": dict(SITE),
            "devices": [
                {
                    "id": A,
                    "tag": A,
                    "category": "inverter",
                    "profile": kind.name,
                    "host": self.device.host,
                    "port": self.device.port,
                    "unit": 1,
                    "nameplate_kw": NAMEPLATE_KW,
                }
            ],
            "profiles": {kind.name: profile_to_builtins(kind)},
        }

    async def end(self) -> None:
        self.stop.set()
        if self.task is not None:
            await self.task
        self.task = None
        self.stop.clear()


@asynccontextmanager
async def rigged(broker: Broker, directory: Path, clock: ShiftedClock | None = None) -> AsyncIterator[Rig]:
    node = str(uuid.uuid4())
    topics = NodeTopics("tenant", node)
    address = Address(broker.host, broker.port, node, broker.add_user(node))
    device = SimulatedDevice(profile=profile(), unit=1, nameplate_kw=NAMEPLATE_KW)
    await device.start()
    clock = clock or ShiftedClock(trust_host=True)
    async with central_for(broker, topics) as central:
        rig = Rig(central, device, clock, directory)
        nowhere = replace(address, port=free_port())

        def start() -> None:
            rig.task = asyncio.create_task(
                run_node(
                    broker=nowhere if rig.is_offline else address,
                    topics=topics,
                    state=directory,
                    clock=clock,
                    stop=rig.stop,
                    pace=rig.pace,
                )
            )

        rig.start = start
        try:
            yield rig
        finally:
            await rig.end()
            await device.stop()


@pytest.fixture
async def rig(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    """A node that has its configuration, and reports a change sooner than every ten seconds."""
    monkeypatch.setattr("edge.runtime.link.REPORT_PERIOD_S", 0.2)
    async with rigged(broker, tmp_path) as rig:
        rig.start()
        await rig.central.configured(rig.body)
        yield rig


async def test_birth_is_presence_then_report(rig):
    presence = await rig.central.expect(Presence, lambda presence: presence.online)
    reported = await rig.central.expect(Reported)
    assert (presence.session, presence.boot) == (reported.session, rig.clock.boot_id)
    assert presence.fresh


async def test_node_that_is_stopped_says_good_bye(rig):
    await rig.central.expect(Presence, lambda presence: presence.online)
    await rig.end()

    await rig.central.expect(Presence, lambda presence: not presence.online)


async def test_node_ends_whatever_it_is_doing_when_it_is_stopped(rig):
    for moment in range(8):
        command = await rig.central.setpoint(INVERTER_01=30 + moment)
        await rig.central.expect_answer(command, "accepted" if moment % 2 else "done")
        async with asyncio.timeout(5):
            await rig.end()
        rig.central.heard.clear()
        rig.start()


async def test_command_is_accepted_then_done_then_logged_and_its_sequence_reported(rig):
    command = await rig.central.setpoint(INVERTER_01=30, sequence=41)

    assert (await rig.central.expect_answer(command, "accepted")).devices == {}
    done = await rig.central.expect_answer(command, "done")
    assert done.devices[A].readback == 30
    assert rig.device.limit_in_force == 30
    entry = await rig.central.expect_entry(lambda entry: entry.kind == "result")
    assert (entry.command_id, entry.sequence, entry.value) == (command, 41, 30.0)


async def test_same_command_again_repeats_its_answer_and_writes_nothing(rig):
    command = await rig.central.setpoint(INVERTER_01=30, command_id="twice")
    first = await rig.central.expect_answer(command, "done")
    writes = rig.device.writes[LIMIT]
    # Its token is stale by now, which a repeated answer does not ask.
    rig.clock.shift_s += 20
    rig.central.heard.clear()

    await rig.central.setpoint(INVERTER_01=70, command_id="twice", fresh="another")

    assert await rig.central.expect(CommandAnswer) == first
    assert rig.device.writes[LIMIT] == writes


async def test_command_that_was_overheard_is_worth_nothing_under_another_id(rig):
    token = await rig.central.token()
    command = await rig.central.setpoint(INVERTER_01=30, sequence=41, fresh=token)
    await rig.central.expect_answer(command, "done")
    writes = rig.device.writes[LIMIT]

    # Its token is still fresh, its sequence is not new.
    replayed = await rig.central.setpoint(INVERTER_01=70, sequence=41, fresh=token)

    assert (await rig.central.expect_answer(replayed, "done")).devices[A].code == Code.SUPERSEDED
    assert rig.device.writes[LIMIT] == writes


async def test_token_older_than_fifteen_seconds_is_stale_and_answered_with_a_fresh_one(rig):
    token = await rig.central.token()
    rig.clock.shift_s += 16

    command = await rig.central.setpoint(INVERTER_01=30, fresh=token)
    refusal = await rig.central.expect_answer(command, "refused")
    assert refusal.code == Code.STALE

    # Not remembered: the same id may come again with the fresh token.
    await rig.central.setpoint(INVERTER_01=30, command_id=command, fresh=refusal.fresh)
    assert (await rig.central.expect_answer(command, "done")).devices[A].ok


async def test_token_of_nobody_is_stale(rig):
    command = await rig.central.setpoint(INVERTER_01=30, fresh="made-up")

    assert (await rig.central.expect_answer(command, "refused")).code == Code.STALE
    assert rig.device.writes[LIMIT] == 0


async def test_older_sequence_wrong_range_and_unknown_device_are_refused_in_the_answer(rig):
    await rig.central.expect_answer(await rig.central.setpoint(INVERTER_01=30, sequence=50), "done")

    command = await rig.central.setpoint(INVERTER_01=101, INVERTER_99=5, sequence=49)
    done = await rig.central.expect_answer(command, "done")
    assert done.devices[A].code == Code.SUPERSEDED  # the sequence is judged before the range
    assert done.devices["INVERTER_99"].code == Code.UNKNOWN_DEVICE
    command = await rig.central.setpoint(INVERTER_01=101, sequence=51)
    assert (await rig.central.expect_answer(command, "done")).devices[A].code == Code.RANGE
    assert rig.device.limit_in_force == 30


async def release(
    rig: Rig, *tags: str, command_id: str = "release", sequence: int = 99, fresh: str | None = None
) -> str:
    command = ReleaseCommand(
        id=command_id,
        epoch=1,
        sequence=sequence,
        fresh=await rig.central.token() if fresh is None else fresh,
        request_id="r",
        category="inverter",
        devices=tags or (A,),
        reason="it is over",
    )
    await rig.central.send("release", command)
    return command_id


async def test_release_ends_a_hold_at_once(rig):
    await rig.central.expect_answer(await rig.central.setpoint(INVERTER_01=30), "done")
    await release(rig)

    assert (await rig.central.expect_answer("release", "done")).devices[A].readback == 100


async def test_release_is_logged_as_a_result_with_its_reason_and_is_no_lapse(rig):
    await rig.central.expect_answer(await rig.central.setpoint(INVERTER_01=30), "done")
    await release(rig)

    entry = await rig.central.expect_entry(lambda entry: entry.command_id == "release")
    assert (entry.kind, entry.value, entry.reason, entry.sequence) == ("result", None, "it is over", 99)
    assert entry.devices[A].value == 100
    assert not [entry for entry in rig.central.entries if entry.kind == "watchdog"]


async def test_release_of_what_nothing_holds_is_confirmed_and_writes_nothing(rig):
    await rig.central.expect_answer(await rig.central.setpoint(INVERTER_01=30), "done")
    await rig.central.expect_answer(await release(rig), "done")
    writes = rig.device.writes[LIMIT]

    again = await rig.central.expect_answer(await release(rig, command_id="again", sequence=100), "done")

    assert again.devices[A].ok
    assert rig.device.writes[LIMIT] == writes


async def test_release_that_comes_twice_repeats_its_answer_and_ends_no_later_hold(rig):
    await rig.central.expect_answer(await release(rig), "done")
    await rig.central.expect_answer(await rig.central.setpoint(INVERTER_01=30, sequence=101), "done")
    answers = len(rig.central.all(CommandAnswer))

    await release(rig)

    await rig.central.expect(
        CommandAnswer, lambda _: [a.id for a in rig.central.all(CommandAnswer)[answers:]] == ["release"]
    )
    assert rig.device.limit_in_force == 30


async def test_release_that_a_later_request_has_overtaken_ends_nothing(rig):
    await rig.central.expect_answer(await rig.central.setpoint(INVERTER_01=30, sequence=101), "done")

    late = await rig.central.expect_answer(await release(rig, A, "INVERTER_99"), "done")

    assert late.devices[A].code == Code.SUPERSEDED
    assert late.devices["INVERTER_99"].code == Code.UNKNOWN_DEVICE
    assert rig.device.limit_in_force == 30


async def test_release_with_a_token_of_nobody_is_stale(rig):
    await rig.central.expect_answer(await rig.central.setpoint(INVERTER_01=30), "done")
    refusal = await rig.central.expect_answer(await release(rig, fresh="made-up"), "refused")
    assert refusal.code == Code.STALE
    assert rig.device.limit_in_force == 30


async def test_command_of_an_older_epoch_is_refused_before_anything_else_is_looked_at(rig):
    await rig.central.put_manifest(epoch=2)
    await rig.central.expect(Reported, lambda report: report.epoch == 2)

    command = await rig.central.setpoint(INVERTER_01=30, fresh="made-up")

    assert (await rig.central.expect_answer(command, "refused")).code == Code.OLD_EPOCH


async def test_retained_command_is_never_carried_out(broker, tmp_path):
    async with rigged(broker, tmp_path) as rig:
        command = await rig.central.setpoint(INVERTER_01=30, fresh="made-up", epoch=0, retain=True)
        rig.start()

        assert (await rig.central.expect_answer(command, "refused")).code == Code.RETAINED


async def test_ping_needs_no_token_and_brings_one_with_four_times(rig):
    await rig.central.send("ping", PingCommand(id="ping", epoch=1, sent_wall="2026-03-02T10:00:00.000000Z"))
    pong = await rig.central.expect_answer("ping", "done")
    assert pong.sent_wall == "2026-03-02T10:00:00.000000Z"
    assert pong.received_wall is not None
    assert pong.answered_wall is not None
    assert pong.received_wall <= pong.answered_wall

    command = await rig.central.setpoint(INVERTER_01=30, fresh=pong.fresh)
    assert (await rig.central.expect_answer(command, "done")).devices[A].ok


async def test_too_many_commands_at_once_are_busy(rig, monkeypatch):
    monkeypatch.setattr("edge.runtime.link.MAX_UNDER_WAY", 1)
    await rig.device.set_fault(Fault.IGNORE_WRITES)  # its answer takes three tries
    first = await rig.central.setpoint(INVERTER_01=30)
    await rig.central.expect_answer(first, "accepted")

    second = await rig.central.setpoint(INVERTER_01=40)
    assert (await rig.central.expect_answer(second, "refused")).code == Code.BUSY
    await rig.central.expect_answer(first, "done")
    third = await rig.central.setpoint(INVERTER_01=50)
    await rig.central.expect_answer(third, "accepted")


async def test_answer_goes_nowhere_but_to_a_topic_of_the_node(rig):
    elsewhere = f"{rig.central.topics.base}/log"
    command = await rig.central.setpoint(INVERTER_01=30, response_topic=elsewhere)

    entry = await rig.central.expect_entry(lambda entry: entry.command_id == command)
    assert entry.devices[A].ok
    assert rig.central.all(CommandAnswer) == []
    assert all(batch.first for batch in rig.central.all(LogBatch))


async def test_bytes_that_mean_nothing_do_no_harm(rig):
    topics = rig.central.topics
    deep = b'{"v":1,"body":' + b"[" * 3000 + b"]" * 3000 + b"}"
    for name in ("config", "schedule/2026-03-02/inverter", "manifest", "nothing"):
        for payload in (b"", b"\xff\xfe", b"{}", b'{"v":99}', b'{"v":1}', deep):
            await rig.central.worker.publish(topics.document(name), payload)
    for payload in (b"", b"\xff\xfe", b"{}", b'{"v":1,"op":"dance"}', deep):
        await rig.central.worker.publish(topics.command("setpoint"), payload)
        await rig.central.inbox.publish(topics.log_ack, payload)

    command = await rig.central.setpoint(INVERTER_01=30)
    assert (await rig.central.expect_answer(command, "done")).devices[A].ok


async def test_bad_time_limit_is_refused_and_the_previous_one_stays(rig):
    body = rig.body
    body["site"]["curtailment_time_limit_s"] = 0
    await rig.central.put("config", body, version=2)
    await rig.central.put_manifest()

    report = await rig.central.expect(
        Reported,
        lambda report: "config" in report.documents and report.documents["config"].status == "failed",
    )
    assert "curtailment_time_limit" in report.documents["config"].error
    command = await rig.central.setpoint(INVERTER_01=30)
    done = await rig.central.expect_answer(command, "done")
    assert 55 < (done.devices[A].holds_s or 0) <= 60


def documents(report: Reported) -> dict[str, tuple[int, str, str]]:
    return {name: (each.v, each.status, each.digest) for name, each in report.documents.items()}


def days(count: int) -> list[str]:
    return [f"schedule/2026-{3 + number // 28:02d}-{1 + number % 28:02d}/inverter" for number in range(count)]


def day_body(name: str, value: float) -> dict[str, Any]:
    return {"date": name.split("/")[1], "category": "inverter", "slots": {"10:00": value}}


async def test_one_change_of_an_idle_node_is_reported_at_once_whatever_it_reported_before(
    broker, tmp_path, monkeypatch
):
    """Between the birth or a report that nothing asked for and the change, no ten seconds need to pass."""
    monkeypatch.setattr("edge.runtime.link.REPORT_ANYWAY_S", 0.3)
    async with rigged(broker, tmp_path) as rig:
        rig.start()
        await rig.central.expect(Reported)
        await rig.central.expect(Reported, lambda report: report is not rig.central.all(Reported)[0])
        name = days(1)[0]
        doc = await rig.central.put(name, day_body(name, 50.0), version=1)
        await rig.central.put_manifest()

        report = await rig.central.expect(Reported, lambda report: report.documents)
        assert documents(report) == {name: (1, "applied", doc.sha256[:DIGEST_LENGTH])}
        assert report.manifest_version == 1
        # It says so by the node's own clock: what the machine of this test adds is not the node's.
        applied_ms = int((tmp_path / "documents" / f"{name.replace('/', '~')}.json").stat().st_mtime * 1000)
        reported_ms = datetime.fromisoformat(report.at).timestamp() * 1000
        assert -1 <= reported_ms - applied_ms < 100


def with_documents(count: int) -> Callable[[Reported], bool]:
    return lambda report: len(report.documents) == count


async def test_changes_that_follow_each_other_are_reported_at_once_three_times_and_then_each_period(
    broker, tmp_path, monkeypatch
):
    monkeypatch.setattr("edge.runtime.link.REPORT_PERIOD_S", 2.0)
    async with rigged(broker, tmp_path) as rig:
        rig.start()
        await rig.central.expect(Reported)
        for number, name in enumerate(days(3), start=1):
            await rig.central.put(name, day_body(name, 50.0), version=number)
            await rig.central.put_manifest()
            await rig.central.expect(Reported, with_documents(number))
        third = rig.central.all(Reported)[-1]
        name = days(4)[3]
        await rig.central.put(name, day_body(name, 50.0), version=4)
        await rig.central.put_manifest()
        fourth = await rig.central.expect(Reported, with_documents(4))
        first = rig.central.all(Reported)[1]
        assert third.mono_ms - first.mono_ms < 2_000
        # What was left over of three, and a fourth of them earned since.
        assert fourth.mono_ms - first.mono_ms > 1_900


async def test_value_of_a_slot_is_reported_though_nobody_asked(rig):
    name = f"schedule/{datetime.now(UTC).date()}/inverter"
    slots = {f"{hour:02d}:{minute:02d}": 40.0 for hour in range(24) for minute in (0, 15, 30, 45)}
    body = {"date": name.split("/")[1], "category": "inverter", "slots": slots}
    await rig.central.put(name, body, version=2)
    await rig.central.put_manifest()

    await rig.central.expect(Reported, lambda report: report.values == {A: 40.0})
    assert rig.device.limit_in_force == 40


async def test_documents_that_arrive_together_are_one_or_two_reports(broker, tmp_path):
    async with rigged(broker, tmp_path) as rig:
        rig.start()
        await rig.central.expect(Reported)
        before = len(rig.central.all(Reported))
        for name in days(40):
            await rig.central.put(name, day_body(name, 50.0), version=1)
        await rig.central.put_manifest()

        report = await rig.central.expect(Reported, lambda report: len(report.documents) == 40)
        assert {each.status for each in report.documents.values()} == {"applied"}
        assert len(rig.central.all(Reported)) - before <= 2


async def test_reports_of_one_boot_are_in_the_order_of_their_clock(rig):
    await rig.central.expect_answer(await rig.central.setpoint(INVERTER_01=30), "done")
    await rig.central.expect(Reported, lambda report: report.sequences)
    times = [report.mono_ms for report in rig.central.all(Reported)]
    assert len(times) >= 2
    assert times == sorted(set(times))
    assert abs(times[-1] - rig.clock.boottime_s() * 1000) < 10_000


async def test_node_moved_to_another_site_drops_its_schedules_and_retires_its_devices(rig):
    """Also a device that moves with it: what holds it was asked by those whom it no longer belongs to."""
    name = f"schedule/{rig.clock.now().utc.date()}/inverter"
    await rig.central.put(name, day_body(name, 50.0), version=2)
    await rig.central.put_manifest()
    await rig.central.expect(Reported, lambda report: name in report.documents)
    await rig.central.expect_answer(await rig.central.setpoint(INVERTER_01=30), "done")
    body = rig.body
    body["site"] |= {"id": "site-2", "tag": "site_b"}
    del rig.central.documents[name]
    await rig.central.put("config", body, version=rig.central.manifest_version + 1)
    await rig.central.put_manifest()

    entry = await rig.central.expect_entry(lambda entry: entry.kind == "retired")
    assert (entry.value, list(entry.devices), rig.device.limit_in_force) == (100, [A], 100)
    report = await rig.central.expect(
        Reported, lambda report: report.documents.keys() == {"config"} and not report.retiring
    )
    assert report.devices_refused == {}
    command = await rig.central.setpoint(INVERTER_01=40)
    assert (await rig.central.expect_answer(command, "done")).devices[A].ok


async def test_command_from_before_an_older_image_was_put_back_is_refused(rig, tmp_path, tmp_path_factory):
    """Its memory of commands and sequences is as old as the image; the tokens are of the process alone."""
    image = tmp_path_factory.mktemp("image") / "state"
    await rig.end()
    shutil.copytree(tmp_path, image)
    rig.central.heard.clear()
    rig.start()
    token = await rig.central.token()
    command = await rig.central.setpoint(INVERTER_01=30, command_id="once", sequence=70)
    await rig.central.expect_answer(command, "done")
    await rig.end()
    shutil.rmtree(tmp_path)
    shutil.copytree(image, tmp_path)
    rig.central.heard.clear()
    rig.start()
    await rig.central.expect(Reported)
    writes = rig.device.writes[LIMIT]

    await rig.central.setpoint(INVERTER_01=30, command_id="once", sequence=70, fresh=token)
    assert (await rig.central.expect_answer("once", "refused")).code == Code.STALE
    assert rig.device.writes[LIMIT] == writes
    # Central's sequence was never put back, so what it sends next is newer for this node.
    command = await rig.central.setpoint(INVERTER_01=50, sequence=71)
    assert (await rig.central.expect_answer(command, "done")).devices[A].ok


async def test_reports_of_many_changes_are_gathered(rig):
    await rig.central.expect(Reported)
    before = len(rig.central.all(Reported))
    for value in range(20, 40):
        await rig.central.expect_answer(await rig.central.setpoint(INVERTER_01=value), "done")
    last = rig.central.sequence
    await rig.central.expect(Reported, lambda report: report.sequences.get(A) == last)

    assert len(rig.central.all(Reported)) - before <= 4


async def test_outbox_is_resent_in_order_until_it_is_acknowledged(rig):
    rig.central.acknowledges = False
    for value in (30, 40, 50):
        await rig.central.expect_answer(await rig.central.setpoint(INVERTER_01=value), "done")
    await rig.central.expect(LogBatch)
    await rig.end()
    rig.central.heard.clear()
    rig.start()

    batch = await rig.central.expect(LogBatch)
    assert [entry.seq for entry in batch.entries] == list(range(1, batch.last + 1))
    results = [entry.value for entry in batch.entries if entry.kind == "result"]
    assert results == [30.0, 40.0, 50.0]

    # Acknowledged by halves: what is not covered comes again, what is covered does not.
    await rig.central.acknowledge(msgspec.structs.replace(batch, last=batch.last - 1))
    await rig.end()
    rig.central.heard.clear()
    rig.start()
    again = await rig.central.expect(LogBatch)
    assert again.first == again.last == batch.last


async def test_acknowledgement_of_another_store_or_beyond_what_was_sent_deletes_nothing(rig):
    rig.central.acknowledges = False
    command = await rig.central.setpoint(INVERTER_01=30)
    batch = await rig.central.expect(
        LogBatch, lambda batch: any(entry.command_id == command for entry in batch.entries)
    )
    await rig.central.acknowledge(msgspec.structs.replace(batch, store="another", last=10**6))
    await rig.end()
    rig.central.heard.clear()
    rig.start()
    assert (await rig.central.expect(LogBatch)).last == batch.last

    await rig.central.acknowledge(msgspec.structs.replace(batch, last=10**6))
    rig.central.heard.clear()
    command = await rig.central.setpoint(INVERTER_01=60)
    entry = await rig.central.expect_entry(lambda entry: entry.command_id == command)
    # What this process writes has a name of its own, whatever central thinks to have of the former one.
    assert entry.seq == 1
    assert {batch.store for batch in rig.central.all(LogBatch)}.isdisjoint({batch.store})


async def test_readings_reach_central(rig):
    tele = await rig.central.expect(TelemetryBatch)
    assert {(point.device, point.key, point.unit) for point in tele.points} == {(A, "P_kW", "kW")}


async def test_schedule_without_its_manifest_waits_and_with_it_is_applied(rig):
    today = rig.clock.now().utc.date()
    slots = {f"{hour:02d}:{minute:02d}": 80.0 for hour in range(24) for minute in (0, 15, 30, 45)}
    name = f"schedule/{today}/inverter"
    doc = await rig.central.put(name, {"date": str(today), "category": "inverter", "slots": slots}, version=5)
    command = await rig.central.setpoint(INVERTER_01=30, hold_s=1.0)
    await rig.central.expect_answer(command, "done")
    await rig.central.put_manifest()
    entry = await rig.central.expect_entry(lambda entry: entry.kind == "watchdog")

    assert (entry.value, rig.device.limit_in_force) == (80.0, 80)
    assert codec.is_intact(doc)


# --- a backlog, and what may not wait for it ----------------------------------------------------------


def fill(directory: Path, count: int) -> None:
    """Leave a backlog as an earlier process would have."""
    store = Store(directory)
    with store.transaction():
        for number in range(count):
            store.append(
                Stream.CONTROL, LogEntry(seq=0, at=wall(datetime.now(UTC)), kind="old", reason=str(number))
            )
    store.close()


async def test_backlog_drains_whole_and_in_order_while_live_commands_are_answered(
    broker, tmp_path, monkeypatch
):
    monkeypatch.setattr("edge.runtime.link.REPORT_PERIOD_S", 0.2)
    count = 5000
    async with rigged(broker, tmp_path) as rig:
        fill(tmp_path, count)
        rig.pace = Pace(jitter_s=0.0, entries_per_s=5000.0, bytes_per_s=1e7)
        rig.start()
        await rig.central.configured(rig.body)
        await rig.central.expect(LogBatch)
        command = await rig.central.setpoint(INVERTER_01=30)
        await rig.central.expect_answer(command, "done")
        assert rig.central.all(LogBatch)[-1].last < count
        entry = await rig.central.expect_entry(lambda entry: entry.command_id == command, within_s=30)

        batches = rig.central.all(LogBatch)
        numbers = [(batch.store, each.seq) for batch in batches for each in batch.entries]
        assert [number for _, number in numbers] == [*range(1, count + 1), *range(1, entry.seq + 1)]
        assert len({store for store, _ in numbers}) == 2
        assert all(
            (batch.first, batch.last) == (batch.entries[0].seq, batch.entries[-1].seq) for batch in batches
        )
        old = [each.reason for batch in batches for each in batch.entries if each.kind == "old"]
        assert old == [str(number) for number in range(count)]


async def test_readings_of_the_time_without_a_link_come_behind_the_control_entries(
    broker, tmp_path, monkeypatch
):
    monkeypatch.setattr("edge.runtime.link.REPORT_PERIOD_S", 0.2)
    monkeypatch.setattr("edge.runtime.link.KEEP_EVERY_S", 0.2)
    monkeypatch.setattr("edge.runtime.telemetry.KEEP_EVERY_S", 0.2)
    async with rigged(broker, tmp_path) as rig:
        rig.start()
        await rig.central.configured(rig.body)
        await rig.end()
        rig.central.heard.clear()
        rig.is_offline = True
        rig.start()
        looking = Store(tmp_path)
        async with asyncio.timeout(20):
            while len(looking.waiting(Stream.TELEMETRY, limit=10, max_bytes=10**6)) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)  # another task writes them, and tells nobody
        await rig.end()
        fill(tmp_path, 1)
        rig.is_offline, rig.pace = False, Pace(jitter_s=0.0)
        rig.start()

        kept = await rig.central.expect(LogBatch, lambda batch: batch.stream == "telemetry")
        assert rig.central.all(LogBatch)[0].stream == "control"
        assert {(point.device, point.key) for entry in kept.entries for point in entry.points} == {
            (A, "P_kW")
        }
        assert [entry.seq for entry in kept.entries] == list(range(1, kept.last + 1))
        async with asyncio.timeout(10):
            while not looking.outbox.is_empty(Stream.TELEMETRY):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        looking.close()


# --- the clock ---------------------------------------------------------------------------------------


async def test_node_with_a_wrong_clock_learns_the_time_from_pings_that_close_each_other(
    broker, tmp_path, monkeypatch
):
    monkeypatch.setattr("edge.runtime.link.REPORT_PERIOD_S", 0.2)

    def an_hour_late() -> float:
        return time.time() - 3600

    host = Host(an_hour_late, lambda: time.clock_gettime(time.CLOCK_BOOTTIME), lambda: None)
    async with rigged(broker, tmp_path, ShiftedClock(trust_host=False, host=host)) as rig:
        rig.start()
        await rig.central.configured(rig.body)
        lost = await rig.central.expect(Reported, lambda report: report.alarms)
        assert (lost.clock, lost.clock_bound_s) == ("unsynced", None)
        assert [alarm.code for alarm in lost.alarms] == ["clock_unsynced"]

        closing: PingClosing | None = None
        for number in range(3):
            ping = f"ping-{number}"
            await rig.central.send(
                "ping",
                PingCommand(id=ping, epoch=1, sent_wall=wall(datetime.now(UTC)), closing=closing),
            )
            await rig.central.expect_answer(ping, "done")
            closing = PingClosing(id=ping, heard_wall=wall(datetime.now(UTC)))

        found = await rig.central.expect(Reported, lambda report: report.clock == "trusted")
        assert found.alarms == ()
        assert found.clock_bound_s is not None
        assert found.clock_bound_s < 2
        assert abs(datetime.fromisoformat(found.at) - datetime.now(UTC)) < timedelta(seconds=30)
        entry = await rig.central.expect_entry(
            lambda entry: entry.kind == "clock" and entry.reason.startswith("trusted")
        )
        assert abs(datetime.fromisoformat(entry.at) - datetime.now(UTC)) < timedelta(seconds=30)
