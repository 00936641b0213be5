"""The devices, requests and schedules these tests tell their stories with."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from edge.core.arbitration import Decision, DeviceSettings, DeviceState, admit, decide, written
from edge.core.commands import DirectRequest, WriteClass
from edge.core.image import EMPTY, ProcessImage
from edge.core.instant import Instant
from edge.core.schedule import Schedule, slot_key

INVERTER = DeviceSettings(
    tag="INVERTER_01",
    category="inverter",
    minimum=0.0,
    maximum=100.0,
    default_value=100.0,
    time_limit_s=60.0,
    write_class=WriteClass.VOLATILE,
    period_s=300.0,
    tolerance=0.5,
)


def device(*, schedule: Schedule | None = None, **changes: Any) -> DeviceState:
    state = DeviceState(replace(INVERTER, **changes))
    return state if schedule is None else replace(state, schedule=schedule)


def slots(values: dict[str, float]) -> Schedule:
    """A schedule for 2026-03-02, the day on which the clock of these tests begins."""
    return Schedule({datetime(2026, 3, 2, tzinfo=UTC).date(): values})


def slot_now_and_next(now: Instant, first: float, second: float) -> Schedule:
    return slots({slot_key(now.utc): first, slot_key(now.utc + timedelta(minutes=15)): second})


def request(value: float, *, sequence: int = 1, epoch: int = 1, hold_s: float = 60.0) -> DirectRequest:
    return DirectRequest((epoch, sequence), f"req-{epoch}-{sequence}", value, hold_s)


def held(state: DeviceState, value: float, now: Instant, **changes: Any) -> DeviceState:
    """The device after a request for this value was admitted."""
    state, refusal = admit(state, request(value, **changes), now)
    assert refusal is None
    return state


def settled(state: DeviceState, now: Instant, image: ProcessImage = EMPTY) -> tuple[DeviceState, Decision]:
    """Decide, write what is due, and have the device confirm it."""
    state, decision = decide(state, image, now)
    if decision.write is not None and decision.value is not None:
        state = written(state, decision.value, now, confirmed=True)
    return state, decision


def value_of(state: DeviceState, now: Instant, image: ProcessImage = EMPTY) -> float | None:
    return decide(state, image, now)[1].value
