"""What the contract suites hold each device type to, for their cases and for the documents.

They run every profile against a simulated device of its kind: its driver by every way of reaching it
(`tests/drivers/test_driver_contract.py`), and a node with it (`tests/runtime/test_every_profile.py`). Which
of their claims concern a profile follows from what the profile says.
"""

from __future__ import annotations

from enum import StrEnum

from edge.profiles.model import Profile
from edge.profiles.points import Protocol


class Claim(StrEnum):
    """One thing that the suites make sure of; the text is what it promises."""

    IDENTITY = "identity"
    RATED_POWER = "rated power"
    READINGS = "readings"
    POWER = "power"
    MEASURED_ONLY = "measured only"
    SETPOINT = "setpoint"
    READ_BACK = "read-back"
    WEAR = "wear"
    REPEATED = "repeated"
    OWED = "owed"
    STANDING = "standing limit"
    OWNER = "owner"
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
    Claim.REPEATED: "its setpoint is written again and again where that wears nothing, and nowhere else",
    Claim.OWED: "what could not be written, and the end of a hold, is written once it is back, within 1 s",
    Claim.STANDING: "a limit that somebody else has set is logged with its value before it is overwritten",
    Claim.OWNER: "behind another's control point, or as the second on its own, it is never written",
    Claim.RESTART: "after a restart what is volatile is forgotten and what is stored is kept; it obeys again",
    Claim.OWN_FALLBACK: "kept alive it does not act by itself; once all of ours is gone it does, in time",
    Claim.PACE: "the pauses and sessions it allows are kept, over reconnections too",
    Claim.FAULTS: "whatever is wrong with it, no reading is wrong, and all is well again afterwards",
}


def contract_of(profile: Profile) -> tuple[Claim, ...]:
    """The claims that the suites make of a device of this type.

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
        Claim.REPEATED: limit is not None,
        Claim.OWED: limit is not None and not profile.protocol.is_inside,
        Claim.STANDING: limit is not None and limit.readback is not None and not profile.protocol.is_inside,
        Claim.OWNER: limit is not None and not profile.protocol.is_inside,
        Claim.RESTART: limit is not None,
        Claim.OWN_FALLBACK: limit is not None and limit.fallback is not None,
        Claim.PACE: True,
        # What has no wire has nothing that breaks on it.
        Claim.FAULTS: not profile.protocol.is_inside,
    }
    return tuple(claim for claim in Claim if holds[claim])
