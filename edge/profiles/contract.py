"""What the driver contract suite holds each device type to, for the suite's cases and for the documents.

The suite (`tests/drivers/test_driver_contract.py`) runs every profile against a simulated device of its kind,
by every way of reaching it. Which of its claims concern a profile follows from what the profile says.
"""

from __future__ import annotations

from enum import StrEnum

from edge.profiles.model import Profile
from edge.profiles.points import Protocol


class Claim(StrEnum):
    """One thing that the suite makes sure of; the text is what it promises."""

    IDENTITY = "identity"
    RATED_POWER = "rated power"
    READINGS = "readings"
    POWER = "power"
    MEASURED_ONLY = "measured only"
    SETPOINT = "setpoint"
    READ_BACK = "read-back"
    WEAR = "wear"
    RESTART = "restart"
    OWN_FALLBACK = "own fallback"
    PACE = "pace"
    FAULTS = "faults"

    @property
    def promise(self) -> str:
        return _PROMISES[self]


_PROMISES = {
    Claim.IDENTITY: "a device of another type is not controlled",
    Claim.RATED_POWER: "a device whose rated power is more than a tenth off is not controlled",
    Claim.READINGS: "every reading comes under its key and is plausible; what the device has not is no zero",
    Claim.POWER: "its power is what the machine gives, positive towards the grid",
    Claim.MEASURED_ONLY: "it takes no setpoint, and nothing is written to it",
    Claim.SETPOINT: "every setpoint written is in force, and is released; one outside its range is refused",
    Claim.READ_BACK: "the setpoint in force is read back; an ignored write and an old read-back are noticed",
    Claim.WEAR: "every write is counted by the register it goes to, and none takes more commands than said",
    Claim.RESTART: "after a restart what is volatile is forgotten and what is stored is kept; it obeys again",
    Claim.OWN_FALLBACK: "kept alive it does not act by itself; once all of ours is gone it does, in time",
    Claim.PACE: "the pauses and sessions it allows are kept, over reconnections too",
    Claim.FAULTS: "whatever is wrong with it, no reading is wrong, and all is well again afterwards",
}


def contract_of(profile: Profile) -> tuple[Claim, ...]:
    """The claims that the suite makes of a device of this type.

    None of a proxy, which has no driver: `tests/runtime/test_proxy.py` is its suite.
    """
    if profile.protocol is Protocol.PROXY:
        return ()
    limit = profile.limit
    holds = {
        Claim.IDENTITY: bool(profile.identity.checks),
        Claim.RATED_POWER: profile.identity.nameplate is not None,
        Claim.READINGS: True,
        Claim.POWER: "P_kW" in profile.telemetry,
        Claim.MEASURED_ONLY: limit is None,
        Claim.SETPOINT: limit is not None,
        Claim.READ_BACK: limit is not None and limit.readback is not None,
        Claim.WEAR: limit is not None,
        Claim.RESTART: limit is not None,
        Claim.OWN_FALLBACK: limit is not None and limit.fallback is not None,
        Claim.PACE: True,
        # What has no wire has nothing that breaks on it.
        Claim.FAULTS: not profile.protocol.is_inside,
    }
    return tuple(claim for claim in Claim if holds[claim])
