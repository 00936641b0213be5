"""Devices that do not show their setpoint: that they follow it is judged by the power they give (rule 12)."""

from __future__ import annotations

from dataclasses import dataclass

from edge.profiles.model import Profile, ValueKind
from edge.runtime.night import POWER

# Inverters ramp to a new limit, and some take minutes (device register reference, section 3).
PATIENCE_S = 300.0
# Of the nameplate: what a limit that is obeyed may be overshot by.
MARGIN = 0.05


@dataclass(slots=True)
class Obedience:
    """What is known of one device. `over_since_s`: since when it gives more than its limit, on the boot-time
    clock; None while it does not. `is_doubted`: for longer than a ramp takes, which was told.
    """

    nameplate_kw: float
    over_since_s: float | None = None
    is_doubted: bool = False

    def heard(self, power_kw: float, *, limit_pct: float, now_s: float) -> bool:
        """Take note of its power under this limit; tell whether that changes what is to be thought of it."""
        if power_kw <= (limit_pct / 100 + MARGIN) * self.nameplate_kw:
            was_doubted, self.is_doubted, self.over_since_s = self.is_doubted, False, None
            return was_doubted
        if self.over_since_s is None:
            self.over_since_s = now_s
        if self.is_doubted or now_s - self.over_since_s < PATIENCE_S:
            return False
        self.is_doubted = True
        return True


def obedience_of(
    before: Obedience | None, profile: Profile, *, nameplate_kw: float | None
) -> Obedience | None:
    """What is known from now on; None where the setpoint is read back, or the power says nothing of it."""
    limit = profile.limit
    if (
        limit is None
        or limit.readback is not None
        or profile.protocol.is_inside
        or profile.value_kind is not ValueKind.ACTIVE_POWER_LIMIT_PCT
        or POWER not in profile.telemetry
        or nameplate_kw is None
    ):
        return None
    return before if before is not None and before.nameplate_kw == nameplate_kw else Obedience(nameplate_kw)
