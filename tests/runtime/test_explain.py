"""Why this value, then? The answer on the command line and over the link, whatever the clocks did."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge.core.schedule import Schedule
from edge.runtime.clock import HostClock
from edge.runtime.explain import OutOfReach, UnknownTag, explanation, main
from edge.runtime.reasons import FILE, Ring
from edge.simulators.device import Fault
from edge.wire.messages import Code, ExplainCommand, Explanation
from edge.wire.moments import parse_at
from tests.clock import A_MORNING
from tests.runtime.plant import Plant, TurnedClock, running_plant
from tests.runtime.site import PROJECT, Site, running_site, until
from tests.runtime.test_link import Rig, rigged
from tests.servers import Broker

A, B = "INVERTER_01", "METER_01"
WITHIN_S = 10.0


def after(seconds: float) -> datetime:
    """So long after the clock of these tests began."""
    return A_MORNING + timedelta(seconds=seconds)


async def asked(plant: Plant, tag: str = A, *, at: datetime | None = None) -> Explanation:
    assert plant.reasons is not None
    now = plant.clock.now().utc
    return await plant.reasons.read(lambda ring: explanation(ring, tag, at=at, now=now), within_s=WITHIN_S)


def asked_on_disk(directory: Path, *, at: datetime | None, now: datetime, tag: str = A) -> Explanation:
    ring = Ring.read_only(directory / FILE)
    try:
        return explanation(ring, tag, at=at, now=now)
    finally:
        ring.close()


# --- the answer -----------------------------------------------------------------------------------


async def test_hold_is_explained_with_its_chain_and_its_confirmation_long_after_it_lapsed(tmp_path):
    async with running_plant(tmp_path, keeps_reasons=True) as plant:
        await plant.add(A)
        plant.apply()
        await plant.run(5)
        plant.setpoint(INVERTER_01=30)
        await plant.run(3600)

        found = await asked(plant, at=after(30))
        assert found.decision.text.startswith(
            f"{A} at 30 by direct request request-1, until 2026-03-02T10:01:05Z"
        )
        assert "; under it default 100; bounds: device 0 to 100; it held until" in found.decision.text
        assert (found.decision.value, found.decision.source, found.decision.who) == (30, "direct", "node")
        (written,) = found.written
        assert (written.value, written.code, written.readback) == (30, None, 30)
        assert [entry.value for entry in found.before if entry.kind == "decision"] == [100]
        lapsed = next(entry for entry in found.after if entry.kind == "decision")
        assert lapsed.because == "request request-1 has ended: time_limit"
        assert found.notes == []

        later = await asked(plant, at=after(1800))
        assert (later.decision.value, later.decision.because) == (100, lapsed.because)
        assert (await asked(plant)).decision == later.decision


async def test_write_that_fails_is_said_with_why_and_with_its_end(tmp_path):
    async with running_plant(tmp_path, keeps_reasons=True) as plant:
        device = await plant.add(A)
        plant.apply()
        await plant.run(5)
        await device.set_fault(Fault.REFUSE)
        plant.setpoint(INVERTER_01=30)
        await plant.run(10)
        await device.set_fault(Fault.NONE)
        await plant.run(20)

        failed, confirmed = (await asked(plant, at=after(8))).written
        assert failed.code == Code.WRITE_FAILED
        assert failed.text.startswith("30 not confirmed: write_failed: ")
        assert (confirmed.code, confirmed.readback) == (None, 30)


async def test_decision_that_left_nothing_to_write_says_when_its_value_was_confirmed(tmp_path):
    async with running_plant(tmp_path, keeps_reasons=True) as plant:
        await plant.add(A)
        plant.schedules = {"inverter": Schedule({A_MORNING.date(): {"10:00": 80.0}})}
        plant.apply()
        await plant.run(5)
        plant.schedules = {}
        plant.raw[A]["default_value"] = 80
        plant.apply()
        await plant.run(5)

        found = await asked(plant)
        assert (found.decision.value, found.decision.source) == (80, "default")
        assert found.written == []
        (note,) = found.notes
        assert note.startswith(
            "nothing was written for this decision: the device held the value already; before it"
        )
        assert note.endswith("80 confirmed, read back 80")


async def test_device_that_is_only_measured_is_explained_too(tmp_path):
    async with running_plant(tmp_path, keeps_reasons=True) as plant:
        await plant.add(B, measured_only=True)
        plant.apply()
        await plant.run(5)
        found = await asked(plant, B)
        assert found.decision.value is None
        assert found.decision.text.startswith(f"{B} is not controlled: ")


async def test_unknown_device_is_answered_with_those_the_ring_knows(tmp_path):
    async with running_plant(tmp_path, keeps_reasons=True) as plant:
        await plant.add(A)
        plant.apply()
        await plant.run(5)
        with pytest.raises(UnknownTag, match=f"known are: {A}$"):
            await asked(plant, "INVERTER_77")


async def test_time_the_ring_does_not_reach_is_answered_with_how_far_it_reaches(tmp_path):
    async with running_plant(tmp_path, keeps_reasons=True) as plant:
        await plant.add(A)
        plant.apply()
        await plant.run(5)
        with pytest.raises(
            OutOfReach, match=r"too long ago: the ring reaches back to 2026-03-02T10:00:00.000Z"
        ):
            await asked(plant, at=after(-3600))
        with pytest.raises(OutOfReach, match="still to come"):
            await asked(plant, at=after(3600))


async def test_device_that_came_later_was_not_on_the_node_before(tmp_path):
    async with running_plant(tmp_path, keeps_reasons=True) as plant:
        await plant.add(A)
        plant.apply()
        await plant.run(60)
        await plant.add(B)
        plant.apply()
        await plant.run(5)
        with pytest.raises(OutOfReach, match="was not on this node yet"):
            await asked(plant, B, at=after(30))


async def test_device_that_leaves_is_explained_to_its_last_write_and_beyond(tmp_path):
    async with running_plant(tmp_path, keeps_reasons=True) as plant:
        await plant.add(A)
        await plant.add(B)
        plant.apply()
        await plant.run(5)
        plant.setpoint(INVERTER_01=40)
        await plant.run(5)
        del plant.raw[A]
        plant.apply()
        await plant.run(10)

        found = await asked(plant)
        assert (found.decision.kind, found.decision.text) == ("gone", f"{A} left this node")
        assert any("back at its default" in entry.because for entry in found.before)
        assert any((entry.kind, entry.value, entry.code) == ("outcome", 100, None) for entry in found.before)


async def test_answer_fits_into_one_message_whatever_happened(tmp_path):
    async with running_plant(tmp_path, keeps_reasons=True) as plant:
        await plant.add(A)
        plant.apply()
        for second in range(200):
            plant.setpoint(INVERTER_01=second % 100)
            await plant.run(1)
            plant.clock.jump_wall(-10)
        found = await asked(plant)
        assert len(found.before) <= 4
        assert len(found.written) <= 6
        assert len(found.notes) <= 7


# --- clocks, gaps and those who ran ---------------------------------------------------------------


async def held_twice_at_the_same_wall_time(plant: Plant) -> None:
    """40 from 10:00:05, 20 from 10:01:00; at 10:01:30 the wall clock is set back to 10:00:30."""
    plant.site["curtailment_time_limit_s"] = 3600
    await plant.add(A)
    plant.apply()
    await plant.run(5)
    plant.setpoint(INVERTER_01=40, hold_s=3600)
    await plant.run(55)
    plant.setpoint(INVERTER_01=20, hold_s=3600)
    await plant.run(30)
    plant.clock.jump_wall(-60)
    await plant.run(60)


async def test_time_that_came_twice_is_answered_for_the_last_and_the_step_is_said(tmp_path):
    async with running_plant(tmp_path, keeps_reasons=True) as plant:
        await held_twice_at_the_same_wall_time(plant)
        found = await asked(plant, at=after(45))
        assert found.decision.value == 20
        assert any("2 times" in note for note in found.notes)
        assert any("was set by -60.0 s" in note for note in found.notes)
        # Before the step it came once.
        assert (await asked(plant, at=after(20))).decision.value == 40


async def test_time_that_never_came_is_answered_with_what_held_until_the_step(tmp_path):
    async with running_plant(tmp_path, keeps_reasons=True) as plant:
        await plant.add(A)
        plant.apply()
        await plant.run(5)
        plant.setpoint(INVERTER_01=40)
        await plant.run(30)
        plant.clock.jump_wall(7200)
        await plant.run(60)
        found = await asked(plant, at=after(3600))
        assert found.decision.value == 40
        assert any("never showed" in note for note in found.notes)


async def test_time_in_which_no_process_ran_is_said_to_be_one(tmp_path):
    clock = TurnedClock()
    for _ in range(2):
        async with running_plant(tmp_path, clock=clock, keeps_reasons=True) as plant:
            await plant.add(A)
            plant.apply()
            await plant.run(5)
        clock.advance(600)
    found = asked_on_disk(tmp_path, at=after(300), now=clock.now().utc)
    (note,) = [note for note in found.notes if "nobody may have" in note]
    assert "the node was last seen at 2026-03-02T10:00:0" in note
    assert "a node began at 2026-03-02T10:10:0" in note
    assert any(
        "no process controls" in note for note in asked_on_disk(tmp_path, at=None, now=clock.now().utc).notes
    )
    assert not any(
        "nobody" in note for note in asked_on_disk(tmp_path, at=after(3), now=clock.now().utc).notes
    )


async def test_time_before_a_reboot_is_answered_from_the_boot_it_belongs_to(tmp_path):
    clock = TurnedClock()
    async with running_plant(tmp_path, clock=clock, keeps_reasons=True) as plant:
        await plant.add(A)
        plant.apply()
        await plant.run(5)
        plant.setpoint(INVERTER_01=40)
        await plant.run(30)
    clock.reboot(off_s=300)
    clock.boot_id = "boot-2"
    # A computer without a battery for its clock begins in 1970, until it is told the time.
    clock.jump_wall(-(A_MORNING - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    async with running_plant(tmp_path, clock=clock, keeps_reasons=True) as plant:
        await plant.add(A)
        plant.apply()
        await plant.run(20)
        clock.jump_wall((A_MORNING - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
        await plant.run(20)
        assert (await asked(plant, at=after(20))).decision.value == 40
        assert (await asked(plant, at=clock.now().utc)).decision.value == 100
        assert any("nobody may have" in note for note in (await asked(plant, at=after(200))).notes)


# --- how a time is given --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-03-02T09:53:00Z", -420),
        ("2026-03-02T10:53:00+01:00", -420),
        ("2026-03-02 09:53", -420),
        ("-10m", -600),
        ("-90s", -90),
        ("-1.5h", -5400),
        ("-1d", -86400),
    ],
)
def test_time_is_understood_as_people_give_it(text, seconds):
    assert parse_at(text, now=A_MORNING) == after(seconds)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "10m", "-10", "-10w", "2026-13-01", "25:00", "-" + "9" * 99 + "d", "-999999d"]
)
def test_time_that_is_none_is_refused_with_what_is_expected(text):
    with pytest.raises(ValueError, match="expected a time like"):
        parse_at(text, now=A_MORNING)


# --- on the command line --------------------------------------------------------------------------


@pytest.fixture
async def state(tmp_path: Path) -> Path:
    """The state directory of a node that held a device at 30 a moment ago by the host's clock."""
    host = HostClock(trust_host=True).now()
    clock = TurnedClock()
    clock.jump_wall((host.utc - clock.now().utc).total_seconds() - 60)
    async with running_plant(tmp_path, clock=clock, keeps_reasons=True) as plant:
        await plant.add(A)
        plant.apply()
        await plant.run(5)
        plant.setpoint(INVERTER_01=30)
        await plant.run(40)
    return tmp_path


async def test_operator_reads_why_and_what_was_confirmed(state, capsys):
    assert main([A, "--at", "-30s", "--state", str(state)]) == 0
    out = capsys.readouterr().out
    assert f"{A} at 30 by direct request request-1, until " in out
    assert "; under it default 100; bounds: device 0 to 100" in out
    assert "30 confirmed, read back 30" in out
    assert "The ring reaches back to " in out


async def test_answer_as_json_is_that_of_the_link(state, capsys):
    assert main([A, "--json", "--at=-30s", "--state", str(state)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["decision"]["value"], found["written"][0]["readback"]) == (30, 30)


async def test_every_question_without_an_answer_has_its_exit_code_and_says_why(state, capsys):
    def said(*argv: str) -> tuple[int, str]:
        code = main(list(argv))
        return code, capsys.readouterr().err

    code, why = said("INVERTER_77", "--state", str(state))
    assert (code, why) == (3, f"no device 'INVERTER_77' in the ring of reasons; known are: {A}\n")
    code, why = said(A, "--at", "-2h", "--state", str(state))
    assert (code, "the ring reaches back to" in why) == (4, True)
    code, why = said(A, "--state", str(state / "documents"))
    assert (code, "no ring of reasons yet" in why) == (66, True)
    code, why = said(A, "--state", str(state / "nowhere"))
    assert (code, "is not there" in why) == (66, True)
    (state / FILE).write_bytes(b"not a database, " * 100)
    code, why = said(A, "--state", str(state))
    assert (code, "cannot be read" in why) == (66, True)
    with pytest.raises(SystemExit, match="2"):
        main([A, "--at", "yesterday", "--state", str(state)])


async def explained_by_a_process(directory: Path, *argv: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edge", "explain", A, "--state", str(directory), *argv),
        cwd=PROJECT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running_site(tmp_path, tags=(A,)) as site:
        site.put_on_disk()
        yield site


async def said(directory: Path, words: str) -> str:
    """The answer of the command line, as soon as it has these words in it."""
    async with asyncio.timeout(20):
        while True:
            code, out, _ = await explained_by_a_process(directory)
            if code == 0 and words in out:
                return out


@pytest.mark.services
async def test_ring_of_a_running_node_is_read_beside_it_and_that_of_a_killed_one_too(site):
    node = site.start()
    running = await said(site.state, "confirmed, read back 100")
    assert f"{A} at 100 by default; bounds: device 0 to 100" in running
    assert "no process controls" not in running
    assert node.poll() is None

    node.kill()
    node.wait()
    code, out, _ = await explained_by_a_process(site.state, "--json")
    assert code == 0
    assert json.loads(out)["decision"]["value"] == 100


@pytest.mark.services
async def test_what_the_guard_did_in_a_dead_nodes_place_is_said_in_its_name(site):
    site.hold(30, for_s=6)
    node = site.start()
    held = await said(site.state, "confirmed, read back 30")
    assert "by direct request request-7, until " in held
    guard = site.guard()
    node.kill()
    node.wait()

    await until(lambda: site.holds(guard), within_s=20)
    fallen_back = await said(site.state, "because request request-7 has ended: time_limit")
    assert "guard  INVERTER_01 at 100 by default" in fallen_back
    assert "node   INVERTER_01 at 30 by direct request request-7" in fallen_back


# --- over the link --------------------------------------------------------------------------------


@pytest.fixture
async def rig(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr("edge.runtime.link.REPORT_PERIOD_S", 0.2)
    async with rigged(broker, tmp_path) as rig:
        rig.start()
        await rig.central.configured(rig.body)
        yield rig


async def explained(rig: Rig, *, stage: str = "done", device: str = A, at: str | None = None, epoch: int = 1):
    command = ExplainCommand(id=uuid.uuid4().hex, epoch=epoch, device=device, at=at)
    await rig.central.send("explain", command)
    return await rig.central.expect_answer(command.id, stage)


async def test_central_asks_why_without_a_token_and_reads_the_chain(rig):
    command = await rig.central.setpoint(INVERTER_01=30)
    await rig.central.expect_answer(command, "done")
    answer = await explained(rig)
    assert answer.explanation.decision.value == 30
    assert "; under it default 100; bounds: device 0 to 100" in answer.explanation.decision.text
    assert answer.explanation.written[0].readback == 30


async def test_question_without_an_answer_is_refused_and_ends_nothing(rig):
    unknown = await explained(rig, stage="refused", device="INVERTER_77")
    assert (unknown.code, A in unknown.detail) == (Code.UNKNOWN_DEVICE, True)
    assert (await explained(rig, stage="refused", at="yesterday")).code == Code.RANGE
    assert (await explained(rig, stage="refused", at="-999999d")).code == Code.RANGE
    assert (await explained(rig, stage="refused", at="2001-01-01T00:00:00Z")).code == Code.RANGE
    assert (await explained(rig, stage="refused", epoch=0)).code == Code.OLD_EPOCH
    assert (await explained(rig)).explanation is not None


async def test_retained_question_is_not_answered(rig):
    command = ExplainCommand(id="retained", epoch=1, device=A)
    await rig.central.send("explain", command, retain=True)
    await rig.end()
    rig.central.heard.clear()
    rig.start()
    answer = await asyncio.wait_for(rig.central.expect_answer("retained", "refused"), WITHIN_S)
    assert answer.code == Code.RETAINED
