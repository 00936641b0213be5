"""A preview says what a setpoint would do, and does nothing: what it says is what the setpoint then does."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.core.commands import Order
from edge.core.schedule import Schedule
from edge.profiles.model import Profile
from edge.wire.messages import Code, DevicePreview, PreviewCommand
from tests.runtime.plant import PROFILES, Plant, profile, running_plant
from tests.runtime.test_link import LIMIT, Rig, rigged
from tests.servers import Broker

A, B, PARK = "INVERTER_01", "INVERTER_02", "PARK_01"
AFTER_ALL: Order = (1, 2**62)


def preview(plant: Plant, value: float, *, tag: str = A, hold_s: float = 60.0) -> DevicePreview:
    return plant.cycle.preview(tag, value, order=AFTER_ALL, hold_s=hold_s)[tag]


async def ready(plant: Plant, *tags: str, kind: Profile | None = None, **changes: Any) -> None:
    for tag in tags or (A,):
        await plant.add(tag, kind, **changes)
    plant.apply()
    await plant.run(3)


async def held(plant: Plant, value: float, *, tag: str = A) -> None:
    answer = plant.hold({tag: value})[tag]
    await plant.run(8, answer.done)
    assert answer.result().ok


def wearing(*, per_day: int) -> Profile:
    limit = profile().limit
    assert limit is not None
    limit = msgspec.structs.replace(limit, write_class="persistent", writes_per_day=per_day)
    return msgspec.structs.replace(profile(), limit=limit, timeout_ms=5000)


def states(plant: Plant) -> dict[str, Any]:
    return {
        tag: (unit.state, unit.image, unit.decision, unit.ticket, list(unit.waiters), unit.kept)
        for tag, unit in plant.cycle.units.items()
    }


# --- what it says ---------------------------------------------------------------------------------


async def test_preview_tells_value_source_end_and_what_is_in_force_now(tmp_path):
    async with running_plant(tmp_path) as plant:
        await ready(plant)
        told = preview(plant, 30)
        assert (told.code, told.value, told.target, told.wish) == (None, 30, 30, 30)
        assert (told.source, told.holds_s, told.write) == ("direct", 60, "changed")
        assert (told.in_force, told.reachable) == (100, True)
        assert told.reason == (
            f"{A} at 30 by direct, until 2026-03-02T10:01:03Z; under it default 100; bounds: device 0 to 100"
        )
        assert told.in_force_reason == f"{A} at 100 by default; bounds: device 0 to 100"


async def test_value_that_the_device_holds_is_not_written_again(tmp_path):
    async with running_plant(tmp_path) as plant:
        await ready(plant)
        await held(plant, 30)
        told = preview(plant, 30)
        assert (told.value, told.write, told.in_force) == (30, "", 30)
        assert told.wear is not None
        assert (told.wear.now, told.wear.release) == (0, 1)


async def test_bound_is_named_with_what_it_leaves(tmp_path):
    async with running_plant(tmp_path) as plant:
        await ready(plant, bounds=[{"origin": "grid_operator", "maximum": 40.0}])
        told = preview(plant, 70)
        assert (told.value, told.wish, told.bounded_by) == (40, 70, "grid_operator")
        # It stands at the bound already, and its release changes nothing either.
        assert told.wear is not None
        assert (told.write, told.wear.now, told.wear.release) == ("", 0, 0)


async def test_first_step_of_a_ramp_is_told_from_where_it_leads(tmp_path):
    async with running_plant(tmp_path) as plant:
        await ready(plant, ramp_pct_per_min=600.0)
        told = preview(plant, 30)
        assert (told.value, told.target) == (90, 30)
        assert "on its ramp to 30" in told.reason


async def test_hold_is_no_longer_than_the_sites_limit(tmp_path):
    async with running_plant(tmp_path) as plant:
        await ready(plant)
        limit_s = plant.site["curtailment_time_limit_s"]
        assert preview(plant, 30, hold_s=3600).holds_s == limit_s
        assert preview(plant, 30, hold_s=5).holds_s == 5


async def test_what_the_device_would_fall_back_to_is_in_the_reason(tmp_path):
    async with running_plant(tmp_path) as plant:
        plant.schedules = {"inverter": Schedule({datetime(2026, 3, 2, tzinfo=UTC).date(): {"10:00": 70.0}})}
        await ready(plant)
        told = preview(plant, 30)
        assert "; under it schedule 70 until 2026-03-02T10:15:00Z; under it default 100;" in told.reason
        assert "at 70 by schedule" in told.in_force_reason


@pytest.mark.parametrize("value", [-1.0, 101.0, float("nan")])
async def test_value_out_of_range_is_refused_in_the_words_of_a_request(tmp_path, value):
    async with running_plant(tmp_path) as plant:
        await ready(plant)
        told = preview(plant, value)
        assert (told.code, told.value, told.in_force) == (Code.RANGE, None, 100)
        assert told.detail == plant.command(INVERTER_01=value).refused[A].detail


async def test_spent_budget_is_told_with_its_count(tmp_path):
    async with running_plant(tmp_path) as plant:
        await ready(plant, kind=wearing(per_day=4))
        for value in (10, 20):
            await held(plant, value)
        fits = preview(plant, 30)
        assert fits.wear is not None
        assert (fits.code, fits.wear.wears, fits.wear.write_class) == (None, True, "persistent")
        assert (fits.wear.now, fits.wear.release, fits.wear.today, fits.wear.per_day) == (1, 1, 2, 4)
        await held(plant, 30)
        told = preview(plant, 40)
        assert told.code == Code.WEAR
        assert told.detail.startswith("3 of 4 writes of today are spent")
        assert told.wear is not None
        assert (told.wear.now, told.wear.today) == (0, 3)


async def test_devices_nobody_may_hold_are_told_why(tmp_path):
    async with running_plant(tmp_path) as plant:
        await ready(plant, excluded=True)
        assert preview(plant, 30).code == Code.EXCLUDED
        assert preview(plant, 30, tag="INVERTER_99").code == Code.UNKNOWN_DEVICE


async def test_write_that_is_under_way_is_not_told_a_second_time(tmp_path):
    async with running_plant(tmp_path) as plant:
        await ready(plant)
        plant.hold({A: 30})
        assert preview(plant, 30).write == ""
        assert preview(plant, 40).write == "changed"
        # (What it was last written is what the pending write will replace.)
        assert preview(plant, 100).write == "changed"


async def test_proxys_children_are_told_with_it(tmp_path):
    async with running_plant(tmp_path) as plant:
        plant.configure(PARK, PROFILES["proxy_device"], category="park", nameplate_kw=None)
        await ready(plant, A, B, owned_by=PARK)
        plant.raw[A]["min_value"] = 60.0
        plant.raw[B]["excluded"] = True
        plant.apply()
        await plant.run(2)
        told = plant.cycle.preview(PARK, 40, order=AFTER_ALL, hold_s=60)
        assert sorted(told) == [A, PARK]
        assert (told[PARK].value, told[PARK].wear) == (40, None)
        assert told[PARK].detail == f"without {B} (excluded)"
        assert (told[A].value, told[A].through, told[A].source) == (60, PARK, "direct")
        assert told[A].bounded_by == "device"
        assert preview(plant, 40, tag=A).code == Code.OWNED_BY


async def test_childs_spent_budget_refuses_the_proxy_and_names_the_child(tmp_path):
    async with running_plant(tmp_path) as plant:
        plant.configure(PARK, PROFILES["proxy_device"], category="park", nameplate_kw=None)
        await ready(plant, A, kind=wearing(per_day=2), owned_by=PARK)
        await held(plant, 40, tag=PARK)
        told = preview(plant, 50, tag=PARK)
        assert told.code == Code.WEAR
        assert told.detail.startswith(f"{A}: 1 of 2 writes of today are spent")


# --- it changes nothing ---------------------------------------------------------------------------


async def test_preview_leaves_every_device_and_the_disk_as_they_were(tmp_path):
    async with running_plant(tmp_path) as plant:
        await ready(plant, A, B, ramp_pct_per_min=60.0)
        await held(plant, 50)
        before, kept = states(plant), plant.store.devices()
        for value in (0, 30, 50, 100, 200):
            preview(plant, value)
        assert states(plant) == before
        assert plant.store.devices() == kept
        writes = plant.simulated[A].writes[LIMIT]
        await plant.run(0.5)
        assert plant.cycle.units[A].state.hold == before[A][0].hold
        assert plant.simulated[A].writes[LIMIT] == writes


# --- what it says is what is done -----------------------------------------------------------------


async def _something_happens(plant: Plant, dice: random.Random) -> None:
    match dice.randrange(5):
        case 0:
            plant.hold({dice.choice([A, B]): dice.choice([0.0, 30.0, 60.0, 100.0])})
        case 1:
            plant.release(dice.choice([A, B]))
        case 2:
            tag = dice.choice([A, B])
            plant.raw[tag]["bounds"] = [{"origin": "owner", "maximum": float(dice.choice([20, 50, 90]))}]
            plant.apply()
        case 3:
            plant.set_by_another(dice.choice([A, B]), float(dice.choice([10, 80])))
        case _:
            pass
    await plant.run(dice.choice([0.0, 0.5, 3.0, 70.0]))


@pytest.mark.parametrize("seed", range(6))
async def test_request_does_what_its_preview_said(tmp_path, seed):
    dice = random.Random(seed)
    async with running_plant(tmp_path) as plant:
        await plant.add(A, wearing(per_day=9))
        await plant.add(B, ramp_pct_per_min=600.0)
        plant.apply()
        await plant.run(3)
        for _ in range(12):
            await _something_happens(plant, dice)
            tag, value = dice.choice([A, B]), dice.choice([0.0, 30.0, 60.0, 100.0, 120.0])
            unit = plant.cycle.units[tag]
            told, ticket = preview(plant, value, tag=tag), unit.ticket
            done = plant.command(hold_s=60.0, sequence=None, **{tag: value})
            if told.code is not None:
                assert done.refused[tag].code == told.code
                assert done.refused[tag].detail == told.detail
                continue
            decision = unit.decision
            assert decision is not None
            assert decision.source is not None
            assert (decision.value, decision.target, decision.bounded_by) == (
                told.value,
                told.target,
                told.bounded_by,
            )
            assert decision.source.label == told.source
            is_asked_to_write = unit.ticket != ticket and unit.ticket is not None
            if told.write:
                assert is_asked_to_write
                assert unit.ticket_value == told.value


# --- over the link --------------------------------------------------------------------------------


@pytest.fixture
async def rig(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr("edge.runtime.link.REPORT_PERIOD_S", 0.2)
    async with rigged(broker, tmp_path) as rig:
        rig.start()
        await rig.central.configured(rig.body)
        yield rig


async def previewed(rig: Rig, *, stage: str = "done", epoch: int = 1, **values: float) -> Any:
    command = PreviewCommand(
        id=uuid.uuid4().hex, epoch=epoch, category="inverter", values=values, hold_s=60.0
    )
    await rig.central.send("preview", command)
    return await rig.central.expect_answer(command.id, stage)


async def test_central_asks_without_a_token_and_a_sequence_and_hears_of_each_device(rig):
    answer = await previewed(rig, INVERTER_01=30, INVERTER_99=30)
    assert answer.previews[A].value == 30
    assert answer.previews["INVERTER_99"].code == Code.UNKNOWN_DEVICE
    assert answer.devices == {}
    assert rig.device.writes[LIMIT] == 0
    assert not [entry for entry in rig.central.entries if entry.kind == "result"]
    # Nothing of it is in the way of the request itself.
    command = await rig.central.setpoint(INVERTER_01=30, sequence=1)
    assert (await rig.central.expect_answer(command, "done")).devices[A].ok


async def test_preview_of_an_older_epoch_is_refused_and_too_many_at_once_are_busy(rig, monkeypatch):
    assert (await previewed(rig, stage="refused", epoch=0, INVERTER_01=30)).code == Code.OLD_EPOCH
    monkeypatch.setattr("edge.runtime.link.MAX_PREVIEWING", 0)
    assert (await previewed(rig, stage="refused", INVERTER_01=30)).code == Code.BUSY
