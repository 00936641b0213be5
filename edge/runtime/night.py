"""Devices that live by the sun: at night they fall silent, or give no values, and that is no fault."""

from __future__ import annotations

from dataclasses import dataclass

# Of its nameplate: a device that gave less than this when it was last heard had no sun.
DARK_SHARE = 0.01
# Who has slept for longer is not asleep: no night between the polar circles is, dusk and dawn and a dark
# morning included.
LONGEST_NIGHT_S = 20 * 3600.0
# The reading that tells whether there is sun.
POWER = "P_kW"


@dataclass(slots=True)
class Sleep:
    """What is known of the sleep of one device.

    `dark_kw`: below this it has no sun. `power_kw`: what it gave when it was last heard, None while that is
    not known. `since_s`: when it fell asleep, on the boot-time clock; None while it is awake.
    """

    dark_kw: float
    power_kw: float | None = None
    since_s: float | None = None

    @property
    def is_asleep(self) -> bool:
        return self.since_s is not None

    def heard(self, power_kw: float) -> bool:
        """Take note of its power; tell whether that has woken it."""
        was_asleep = self.is_asleep
        self.power_kw, self.since_s = power_kw, None
        return was_asleep

    def may_sleep(self, *held_pct: float | None) -> bool:
        """Tell whether it may have fallen asleep, when it has just fallen silent.

        `held_pct`: what it was limited to, as far as known. Who was limited to next to nothing gave next to
        nothing because of that, and is missed.
        """
        if self.power_kw is None or abs(self.power_kw) >= self.dark_kw:
            return False
        return not any(value is not None and abs(value) <= 100 * DARK_SHARE for value in held_pct)

    def is_overdue(self, now_s: float) -> bool:
        """Tell whether it should long have woken."""
        return self.since_s is not None and now_s - self.since_s > LONGEST_NIGHT_S


def sleep_of(before: Sleep | None, *, sleeps: bool, nameplate_kw: float | None) -> Sleep | None:
    """What is known of a device's sleep from now on; None where it never sleeps, or its size is unknown."""
    if not sleeps or nameplate_kw is None:
        return None
    dark_kw = DARK_SHARE * nameplate_kw
    return before if before is not None and before.dark_kw == dark_kw else Sleep(dark_kw)
