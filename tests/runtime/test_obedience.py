"""Whether a device that does not show its setpoint follows it, as far as its power tells."""

from __future__ import annotations

from edge.runtime.obedience import PATIENCE_S, Obedience, obedience_of
from tests.runtime.plant import PROFILES

NAMEPLATE_KW = 60.0


def test_device_that_ramps_down_within_its_time_is_not_doubted():
    obedience = Obedience(NAMEPLATE_KW)
    for second in range(int(PATIENCE_S) - 1):
        assert not obedience.heard(60 - second / 10, limit_pct=50, now_s=1000 + second)
    assert not obedience.heard(31, limit_pct=50, now_s=1000 + PATIENCE_S)
    assert not obedience.is_doubted


def test_device_that_gives_more_for_too_long_is_doubted_once_and_until_it_gives_less():
    obedience = Obedience(NAMEPLATE_KW)
    told = [obedience.heard(60, limit_pct=50, now_s=1000 + second) for second in range(900)]
    assert told.index(True) == PATIENCE_S
    assert told.count(True) == 1
    assert obedience.heard(30, limit_pct=50, now_s=2000)
    assert not obedience.is_doubted
    assert not obedience.heard(30, limit_pct=50, now_s=2001)


def test_cloud_begins_the_time_anew():
    obedience = Obedience(NAMEPLATE_KW)
    obedience.heard(60, limit_pct=50, now_s=1000)
    obedience.heard(10, limit_pct=50, now_s=1200)
    assert not obedience.heard(60, limit_pct=50, now_s=1000 + PATIENCE_S)


def test_only_devices_whose_setpoint_is_not_read_back_are_judged_by_their_power():
    judged = {
        name
        for name, profile in PROFILES.items()
        if obedience_of(None, profile, nameplate_kw=NAMEPLATE_KW) is not None
    }
    unreadable = {name for name, profile in PROFILES.items() if profile.limit and not profile.limit.readback}
    assert judged == unreadable - {"proxy_device"}
    assert obedience_of(None, PROFILES["sma_inverter"], nameplate_kw=None) is None
