"""What to do next about a device that did not follow, for the operator who reads why."""

from __future__ import annotations

from edge.wire.messages import Code

_NEXT: dict[str, str] = {
    Code.NODE_OFFLINE: "Look at the node: its power, its link. Send the request again once it is online.",
    Code.NOT_SENT: "Nothing was written. Send the request again.",
    Code.NOT_DELIVERED: "The node never had it, so nothing was written. Send the request again.",
    Code.UNKNOWN: "It may have been written. Watch the device's power; its node's log will tell.",
    Code.NO_ANSWER: "Ask again. If the node stays silent, look at its alarms and its version.",
    Code.BUSY: "The node has more to do than it can. Send the request again in some seconds.",
    Code.STALE: "It came too late to be safe. Send it again; if that fails too, look at the node's link.",
    Code.OLD_EPOCH: "The node's identity has changed meanwhile. Send the request again.",
    Code.RETAINED: "The broker repeated an old command. Send the request again; tell who runs the broker.",
    Code.SUPERSEDED: "A newer request holds the device. Look at its last commands before you send another.",
    Code.RANGE: "Ask for a value that the device may take, or choose only devices that may take this one.",
    Code.EXCLUDED: "An engineer took the device out of curtailment. Ask for it to be included, or leave it.",
    Code.OWNED_BY: "Ask the device that controls it instead.",
    Code.UNKNOWN_DEVICE: "Check tag and category. If both are right, see whether the node knows it.",
    Code.RETIRING: "Wait until the former node has let go, or have an engineer look at the retiring device.",
    Code.STORE_FAILED: "The device stays as it was. Have the node's disk looked at: it cannot be written.",
    Code.WEAR: "No writes are left today. Wait until 00:00 UTC, or have an engineer accept the wear.",
    Code.WRITE_FAILED: "The device did not take it. Look at its last errors, then send the request again.",
    Code.READBACK_MISMATCH: "The device holds something else. Look at its own limits and at local control.",
    Code.NO_NAMEPLATE: "Ask in percent, or have an engineer enter its peak power.",
    Code.UNIT: "Ask in the unit of the device's type.",
    Code.SETPOINT_THROTTLED: "Wait as long as it says, or ask for a value nearer to zero.",
}
_OTHERWISE = "Look at the device's page and its last errors."


def advice(reason: str) -> str:
    """What to do next about a reason of `not_updated`, which begins with its code."""
    return _NEXT.get(reason.split(":", 1)[0].strip(), _OTHERWISE)
