"""What a control request would do, asked of the nodes that would carry it out: nothing of it is done."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from django.conf import settings

from control_app.dispatch import Note
from control_app.models import Unit
from control_app.questions import Asking, nodes_ask
from control_app.services import ControlResult
from control_app.targets import Target, Targets, offline_nodes, reason, targets_select
from edge.wire.messages import Code, DevicePreview, DeviceResult, PreviewCommand, Stage
from sites_app.presence import central_now, presence_read
from smartgrid import live
from smartgrid.api.principal import Principal
from smartgrid.errors import DispatchUnavailable


@dataclass(frozen=True, slots=True)
class ControlPreview:
    """The answer a request would get, as far as that can be told, and what it would do to each device."""

    result: ControlResult
    devices: dict[str, DevicePreview]


def category_preview(
    *,
    principal: Principal,
    site_id: UUID,
    category: str,
    value: float,
    device_tags: Sequence[str] | None,
    unit: Unit = Unit.PERCENT,
) -> ControlPreview:
    """What `category_curtail` would do with this request now; errors as there.

    `updated` are the devices that would take the value: whether they then confirm it, nobody can tell.
    """
    until = time.monotonic() + settings.SGM_REQUEST_DEADLINE_S
    targets = targets_select(
        principal=principal,
        site_id=site_id,
        category=category,
        device_tags=device_tags,
        value=value,
        unit=unit,
    )
    try:
        presence = presence_read(targets.by_node)
    except live.LiveUnavailable as error:
        raise DispatchUnavailable("Nodes cannot be asked now: Redis does not answer.") from error
    offline = offline_nodes(targets, presence, now=central_now())
    asking = [
        _asking(node_id, devices, targets=targets, category=category)
        for node_id, devices in targets.by_node.items()
        if node_id not in offline
    ]
    notes = nodes_ask(asking, until=until)
    unsent = [
        note.not_sent for one in asking if (note := notes.get(one.command_id)) is not None and note.not_sent
    ]
    if asking and len(unsent) == len(asking):
        raise DispatchUnavailable(f"The nodes could not be asked: {unsent[0]}.")
    not_updated = dict(targets.refused)
    for node_id, why_not in offline.items():
        not_updated |= {device.tag: reason(Code.NODE_OFFLINE, why_not) for device in targets.by_node[node_id]}
    updated: dict[str, None] = {}
    found: dict[str, DevicePreview] = {}
    for one in asking:
        tags = [device.tag for device in targets.by_node[one.node_id]]
        told = _told(notes.get(one.command_id), tags)
        if isinstance(told, str):
            not_updated |= dict.fromkeys(tags, told)
            continue
        found |= told
        for tag in tags:
            device = told.get(tag)
            if device is None:
                not_updated[tag] = reason(Code.NO_ANSWER, "the node says nothing of this device")
            elif device.code is not None:
                not_updated[tag] = DeviceResult(code=device.code, detail=device.detail).reason
            else:
                updated[tag] = None
    return ControlPreview(ControlResult(updated, not_updated), found)


def _asking(node_id: UUID, devices: Sequence[Target], *, targets: Targets, category: str) -> Asking:
    values = {device.tag: targets.values[device.tag] for device in devices}
    command = PreviewCommand(
        id=uuid.uuid4().hex,
        epoch=devices[0].epoch,
        category=category,
        values={tag: value for tag, value in values.items() if value is not None},
        hold_s=float(devices[0].time_limit_s),
    )
    return Asking(devices[0].tenant, node_id, "preview", command.id, command)


def _told(note: Note | None, tags: Sequence[str]) -> Mapping[str, DevicePreview] | str:
    """What a node says of the devices it was asked about and of those behind them; or why it does not."""
    if note is None:
        detail = (
            f"the node gave no answer within {settings.SGM_REQUEST_DEADLINE_S:g} s; it may be of a version"
            " that knows no dry run"
        )
        return reason(Code.NO_ANSWER, detail)
    if note.answer is None:
        return reason(Code.NOT_SENT, note.not_sent or note.lost)
    if note.answer.stage is Stage.REFUSED or note.answer.previews is None:
        return DeviceResult(code=note.answer.code or Code.NO_ANSWER, detail=note.answer.detail).reason
    return {tag: told for tag, told in note.answer.previews.items() if tag in tags or told.through}
