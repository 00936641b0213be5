"""Commands whose end nobody told, or which the device did not confirm: alarms for as long as that stands."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db.models import Q

from control_app.models import CommandState, ControlCommand
from devices_app.models import Device
from edge.wire.messages import Code
from sites_app.alarms import COMMAND_UNANSWERED, SETPOINT_NOT_HELD, AlarmKey, AlarmText, alarms_settle
from sites_app.models import Alarm

# Beyond its deadline a command gets so long: nodes tell of what came late within seconds.
GRACE = timedelta(seconds=10)
# What happened before is history: the device has long been at its fallback.
LOOKED_BACK = timedelta(hours=1)
_UNHELD = frozenset({Code.READBACK_MISMATCH, Code.WRITE_FAILED})
_OPEN = (CommandState.SENT, CommandState.UNKNOWN)


def commands_watch(*, now: datetime) -> tuple[int, int]:
    """Raise alarms by the newest command to each device, and clear those that it or time has ended.

    How many of each. Not answered: sent, its deadline over, and no word about it. Not held: the node says
    that the device read back another value, or could not be written. What the device has confirmed under a
    later command ends either.
    """
    rows = ControlCommand.objects.filter(
        Q(state=CommandState.DONE) | Q(state__in=_OPEN, deadline__lte=now - GRACE),
        deadline__gt=now - LOOKED_BACK,
    )
    newest: dict[tuple[object, str], ControlCommand] = {}
    for command in (
        rows.select_related("node")
        .only("sequence", "state", "values", "result", "deadline", "node__name", "node__site_id")
        .order_by("sequence")
    ):
        for tag in command.values:
            newest[command.node_id, tag] = command
    wanted: dict[AlarmKey, AlarmText] = {}
    troubled = {place: told for place, command in newest.items() if (told := _trouble(command, place[1]))}
    devices = Device.objects.filter(
        node__in={node for node, _ in troubled}, device_tag__in={tag for _, tag in troubled}
    )
    confirmed = (
        {
            (node, tag): sequence
            for node, tag, sequence in devices.values_list("node_id", "device_tag", "value_sequence")
        }
        if troubled
        else {}
    )
    for place, (code, detail) in troubled.items():
        command = newest[place]
        # A device that is gone has no alarm.
        if place not in confirmed or confirmed[place] >= command.sequence:
            continue
        key = AlarmKey(code, command.node.site_id, command.node_id, subject=place[1])
        wanted[key] = AlarmText(detail, command.node.name)
    among = Alarm.objects.filter(code__in=[COMMAND_UNANSWERED, SETPOINT_NOT_HELD], by_node=False)
    return alarms_settle(among=among, wanted=wanted)


def _trouble(command: ControlCommand, tag: str) -> tuple[str, str] | None:
    """The alarm that this command is worth for this device, and what it says."""
    value = command.values[tag]
    asked = "to let go" if value is None else f"to hold {value:g}"
    result = (command.result or {}).get(tag)
    if command.state in _OPEN and result is None:
        return (
            COMMAND_UNANSWERED,
            f"It was asked {asked} until {command.deadline:%Y-%m-%d %H:%M:%S} UTC; no answer.",
        )
    if result is None or result.get("code") not in _UNHELD:
        return None
    read = result.get("readback")
    found = "" if read is None else f", it reads {read:g}"
    return (
        SETPOINT_NOT_HELD,
        f"It was asked {asked}{found}: {result['code']}, {result.get('detail', '')}".rstrip(", "),
    )
