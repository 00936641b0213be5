"""When a value is written, by what the register's wear allows."""

from __future__ import annotations

from typing import Any

import pytest

from edge.core.commands import Lifetime, WriteClass
from edge.core.cyclic import (
    Armed,
    InForce,
    KeepAlive,
    KeepAliveDue,
    WriteReason,
    keep_alive_due,
    write_due,
)

CONFIRMED = InForce(30.0, at_boottime_s=1000.0, confirmed=True)
UNCONFIRMED = InForce(30.0, at_boottime_s=1000.0, confirmed=False)
WEARING = [WriteClass.PERSISTENT, WriteClass.UNKNOWN]


def due(value: float = 30.0, **changes: Any) -> WriteReason | None:
    """Whether 30 is written 10 s after it was, to a volatile register repeated every 300 s."""
    facts: dict[str, Any] = {
        "in_force": CONFIRMED,
        "readback": 30.0,
        "tolerance": 0.5,
        "lifetime": Lifetime.CYCLIC,
        "write_class": WriteClass.VOLATILE,
        "may_repeat": True,
        "period_s": 300.0,
        "now_boottime_s": 1010.0,
    }
    return write_due(value, **{**facts, **changes})


@pytest.mark.parametrize("write_class", WriteClass)
@pytest.mark.parametrize("lifetime", Lifetime)
def test_changed_value_is_written_at_once_whatever_it_wears(write_class, lifetime):
    assert due(40.0, write_class=write_class, lifetime=lifetime) is WriteReason.CHANGED


@pytest.mark.parametrize("write_class", WriteClass)
@pytest.mark.parametrize("lifetime", Lifetime)
def test_unconfirmed_write_is_owed_whatever_it_wears(write_class, lifetime):
    assert due(in_force=UNCONFIRMED, write_class=write_class, lifetime=lifetime) is WriteReason.OWED


@pytest.mark.parametrize(
    ("readback", "reason"),
    [
        (30.0, None),
        (30.5, None),
        (29.5, None),
        (30.6, WriteReason.FOUND),
        (100.0, WriteReason.FOUND),
        (None, WriteReason.FOUND),
    ],
)
@pytest.mark.parametrize("write_class", WriteClass)
def test_first_contact_writes_only_what_the_device_does_not_hold(readback, reason, write_class):
    assert due(in_force=None, readback=readback, write_class=write_class) is reason


@pytest.mark.parametrize(("passed_s", "reason"), [(299.9, None), (300.0, WriteReason.REPEATED)])
@pytest.mark.parametrize("readback", [30.0, 80.0, None])
def test_volatile_register_is_written_again_every_period(passed_s, reason, readback):
    assert due(now_boottime_s=1000.0 + passed_s, readback=readback) is reason


@pytest.mark.parametrize("write_class", WEARING)
@pytest.mark.parametrize("readback", [30.0, 30.4, None])
def test_register_that_wears_is_not_written_to_repeat_a_value(write_class, readback):
    assert due(now_boottime_s=1e6, readback=readback, write_class=write_class) is None


@pytest.mark.parametrize("write_class", WEARING)
@pytest.mark.parametrize(("passed_s", "reason"), [(299.9, None), (300.0, WriteReason.DRIFTED)])
def test_register_that_wears_is_written_when_its_readback_differs_at_its_turn(write_class, passed_s, reason):
    assert due(now_boottime_s=1000.0 + passed_s, readback=31.0, write_class=write_class) is reason


@pytest.mark.parametrize("write_class", WriteClass)
@pytest.mark.parametrize("readback", [30.0, 80.0, None])
def test_singular_value_is_not_written_again(write_class, readback):
    assert (
        due(now_boottime_s=1e6, readback=readback, write_class=write_class, lifetime=Lifetime.SINGULAR)
        is None
    )


FALLBACK = KeepAlive(100.0, timeout_s=60.0)


@pytest.mark.parametrize(
    ("armed", "reason"),
    [
        (None, KeepAliveDue.ARM),
        (Armed(FALLBACK, at_boottime_s=1000.0), None),
        (Armed(FALLBACK, at_boottime_s=980.1), None),
        (Armed(FALLBACK, at_boottime_s=980.0), KeepAliveDue.REFRESH),
        (Armed(KeepAlive(50.0, 60.0), at_boottime_s=1000.0), KeepAliveDue.ARM),
        (Armed(KeepAlive(100.0, 600.0), at_boottime_s=1000.0), KeepAliveDue.ARM),
    ],
)
def test_own_fallback_is_armed_once_and_refreshed_at_a_third_of_its_timeout(armed, reason):
    assert keep_alive_due(FALLBACK, armed=armed, now_boottime_s=1000.0) is reason


@pytest.mark.parametrize("armed", [None, Armed(FALLBACK, at_boottime_s=0.0)])
def test_device_without_a_fallback_of_its_own_is_never_armed(armed):
    assert keep_alive_due(None, armed=armed, now_boottime_s=1000.0) is None


@pytest.mark.parametrize("write_class", WEARING)
def test_register_that_wears_is_left_to_drift_where_only_its_release_is_left_of_the_day(write_class):
    assert due(now_boottime_s=1e6, readback=80.0, write_class=write_class, may_repeat=False) is None


@pytest.mark.parametrize("write_class", WriteClass)
def test_budget_withholds_no_change_no_first_write_and_nothing_owed(write_class):
    def spent(value: float = 30.0, **changes: Any) -> WriteReason | None:
        return due(value, write_class=write_class, may_repeat=False, **changes)

    assert spent(40.0) is WriteReason.CHANGED
    assert spent(in_force=UNCONFIRMED) is WriteReason.OWED
    assert spent(in_force=None, readback=80.0) is WriteReason.FOUND
