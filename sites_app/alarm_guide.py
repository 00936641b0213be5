"""What each alarm means and what to do next: one table, for the console and for notices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Guide:
    """`title` in a few words; `means`: what is the case; `do`: the next step, as a sentence."""

    title: str
    means: str
    do: str


ALARM_GUIDE: Mapping[str, Guide] = {
    # --- what central notices
    "node_silent": Guide(
        "Node is silent",
        "Central has heard no heartbeat of the node for more than a minute. The node keeps its schedules and"
        " closed loops by itself; direct requests do not reach it.",
        "Check power and network at the site, then the service sgm-node on its computer.",
    ),
    "node_deaf": Guide(
        "Node does not answer",
        "Heartbeats of the node arrive, but it has not answered central's pings:"
        " what is sent may not reach it.",
        "Look at the node's link and the broker's permissions; restart sgm-node if it goes on.",
    ),
    "node_out_of_sync": Guide(
        "Node lacks its configuration",
        "The node is there, and has not had for five minutes all that it should have.",
        "Open the node's page and see which documents it lacks or cannot use.",
    ),
    "node_certificate": Guide(
        "Node's certificate ends soon",
        "The newest certificate of the node ends within 14 days, or has ended, and no newer one was issued.",
        "See that the node reaches SGM_ENROL_URL; else enrol it anew on its page.",
    ),
    "slot_not_confirmed": Guide(
        "Schedule is not confirmed",
        "A slot runs, or begins within five minutes, and the node has not confirmed that it has it.",
        "See whether the node is there; if it refuses the schedule, correct the schedule it names.",
    ),
    "device_silent": Guide(
        "Device is not heard",
        "The node is there, and nothing was measured of this device for longer than it may be quiet.",
        "Check the device's power, its network and its address; probe it from its form.",
    ),
    "command_unanswered": Guide(
        "Command was not answered",
        "The node was sent a command for this device and has not said what became of it.",
        "Ask for the reason of the device's value, and repeat the request if it is still wanted.",
    ),
    "setpoint_not_held": Guide(
        "Device does not hold its setpoint",
        "The last command for this device was not confirmed: it read back another value,"
        " or could not be written.",
        "Check that remote control is enabled in the device, then repeat or release the request.",
    ),
    # --- what nodes report of themselves
    "clock_unsynced": Guide(
        "Node's clock is not confirmed",
        "Nothing has confirmed the node's clock since it started, or it was set by more than 5 s. After"
        " 15 min schedules give way to defaults; direct requests do not.",
        "Let NTP run on the node's host, or see why it does not answer central's pings.",
    ),
    "clock_holdover": Guide(
        "Node's clock runs on its own",
        "Nothing has confirmed the clock for about a week. Schedules may change half a minute early or late.",
        "Let NTP run on the node's host, or see why it does not answer central's pings.",
    ),
    "store_failed": Guide(
        "Node cannot write to its disk",
        "The disk is full, read-only or broken. New direct requests are refused, all else goes on.",
        "Make room on the disk or replace it; the alarm ends by itself.",
    ),
    "outbox_dropped": Guide(
        "Node lost entries of its log",
        "The disk failed, or central was gone for so long that entries had to go.",
        "Look after the node's disk and link; the control log names the gap.",
    ),
    "certificate": Guide(
        "Node cannot renew its certificate",
        "Less than a sixth of its life is left, and it was not renewed; the detail says why.",
        "See that the node reaches SGM_ENROL_URL; else enrol it anew on its page.",
    ),
    "loop_refused": Guide(
        "Closed loop cannot be used",
        "The node refuses the closed loop. Its connection limit holds as a fixed bound meanwhile.",
        "Correct the loop as the detail says.",
    ),
    # --- what nodes report of their devices
    "wear": Guide(
        "Device is written too often",
        "80 % of the writes that its memory allows in a day are spent.",
        "Send fewer changes to this device, or set a throttle at its site.",
    ),
    "no_own_fallback": Guide(
        "Device's own fallback is not armed",
        "The device could go to a safe value by itself if the node is lost, and would not.",
        "Arm it as the detail says, or accept it in the device's form.",
    ),
    "limit_not_held": Guide(
        "Connection limit is not safe",
        "The device's own fallback would let go of a limit at the point of connection.",
        "Change the fallback in the device, or leave it out of the closed loop.",
    ),
    "loop_stale": Guide(
        "Closed loop has no fresh reading",
        "The meter of the loop is silent; the members are at their fallback.",
        "Check the meter, its line and its address.",
    ),
    "meter_sign": Guide(
        "Meter counts the wrong way",
        "The meter shows the opposite of what the loop's members do; the loop is at its fallback.",
        "Turn the meter's direction, at the meter or in its form.",
    ),
    "not_followed": Guide(
        "Device gives more than it was limited to",
        "It shows no setpoint that could be read back, and its power stays above the limit.",
        "Check that remote control is enabled in the device.",
    ),
    "unresponsive": Guide(
        "Device does not follow its closed loop",
        "It does less than it is commanded, beyond what missing sun explains.",
        "Check the device for faults and that remote control is enabled in it.",
    ),
}

# A node of a later version may know of more.
UNKNOWN = Guide(
    "Alarm of the node",
    "This version of central has no description of this alarm.",
    "Read its detail, and update central: the node may be newer.",
)


def guide_to(code: str) -> Guide:
    """What to say of this alarm; also of one that nobody has described yet."""
    return ALARM_GUIDE.get(code, UNKNOWN)
