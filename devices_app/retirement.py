"""Retirement (design, rule 20): what left a node's configuration, until the node has let go of it.

A device that is deleted, moved, or changes tag, address, profile or register goes on, if at all, under
another `config_id`; the former one is kept as a `RetiringDevice`. Its tag and control point stay taken until
the node reports a configuration without it and no longer lists it, or until somebody abandons it by name.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from django.db import transaction
from django.utils import timezone

from devices_app.address import address_of
from devices_app.config import CONFIG
from devices_app.models import Device, RetiringDevice
from devices_app.selectors import retiring_waited_for, waits_for_control_point
from edge.wire.messages import Reported
from sites_app.documents import node_documents_render
from sites_app.models import Node, Site
from smartgrid.errors import Conflict, Invalid, NotFound
from smartgrid.integrity import store

log = structlog.stdlib.get_logger(__name__)

APPLIED = "applied"


@dataclass(frozen=True, slots=True)
class Place:
    """Where and as what a node knows a device."""

    node: Node
    config_id: uuid.UUID
    tag: str
    profile: str
    address: tuple[Any, ...]
    control_point: str | None

    @classmethod
    def of(cls, device: Device) -> Place:
        """Needs `node` and `device_type` loaded."""
        kind = device.device_type
        return cls(
            node=device.node,
            config_id=device.config_id,
            tag=device.device_tag,
            profile=kind.profile,
            address=address_of(device),
            control_point=device.control_point,
        )

    def left_for(self, other: Place) -> str:
        """Why a device now at `other` has left this place, for people; empty where it has not."""
        if self.node.pk != other.node.pk:
            return f"moved to {other.node.name}"
        if self.tag != other.tag:
            return f"renamed to {other.tag}"
        if self.address != other.address:
            return "address changed"
        if self.profile != other.profile:
            return "profile changed"
        # Nothing was written where there was no control point, so to gain one leaves nothing behind.
        if self.control_point is not None and self.control_point != other.control_point:
            return "control point changed" if other.control_point else "only measured from now on"
        return ""


def places_lock(site_ids: Iterable[uuid.UUID]) -> None:
    """Let one transaction at a time take or free tags and control points of these sites.

    Taken before any lock of a node or device of theirs. (SQLite: its transactions come one by one.)
    """
    sites = Site.objects.filter(pk__in=set(site_ids)).order_by("pk")
    # Without the key: rows that refer to the site may come and go meanwhile.
    list(sites.select_for_update(no_key=True).values_list("pk", flat=True))


@dataclass(frozen=True, slots=True)
class TakenPlaces:
    """What is still being retired from in some sites, for whoever asks for many devices."""

    by_tag: Mapping[tuple[uuid.UUID, str], RetiringDevice]
    by_control_point: Mapping[tuple[uuid.UUID, str | None], RetiringDevice]

    @classmethod
    def of(cls, site_ids: Iterable[uuid.UUID]) -> TakenPlaces:
        """As it is now. Call under `places_lock` of these sites, or it may be otherwise a moment later."""
        rows = list(retiring_waited_for().filter(site_id__in=set(site_ids)).select_related("node"))
        return cls(
            by_tag={(row.site_id, row.device_tag): row for row in rows},
            by_control_point={(row.site_id, row.control_point): row for row in rows if row.control_point},
        )

    def free_check(self, device: Device) -> None:
        """`place_free_check` of a device that is new, and so has left nothing behind itself."""
        if found := self.by_tag.get((device.site_id, device.device_tag)):
            raise _still_taken("device_tag", f"The tag {device.device_tag}", found)
        if found := self.by_control_point.get((device.site_id, device.control_point)):
            raise _still_taken("control_point", f"The control point {device.control_point}", found)


def place_free_check(device: Device) -> None:
    """Refuse a tag or control point that something else is still being retired from: `Conflict`, `retiring`.

    What the device itself left behind does not stand in its way: its node waits with the new where it must,
    and another node is told to (`config`). Call under `places_lock`.
    """
    taken = retiring_waited_for().filter(site_id=device.site_id).exclude(device_id=device.pk)
    found = taken.filter(device_tag=device.device_tag).select_related("node").first()
    if found is not None:
        raise _still_taken("device_tag", f"The tag {device.device_tag}", found)
    if device.control_point is None:
        return
    found = taken.filter(control_point=device.control_point).select_related("node").first()
    if found is not None:
        raise _still_taken("control_point", f"The control point {device.control_point}", found)


def _still_taken(field: str, what: str, row: RetiringDevice) -> Conflict:
    text = (
        f"{what} is taken: {row.device_tag} ({row.reason}) has been retiring at {row.node.name} since"
        f" {row.since:%Y-%m-%d %H:%M}Z. It is free once the node has returned the device to its default;"
        " if that will never be, abandon it by name."
    )
    return Conflict(text, code="retiring", errors={field: [text]})


def retirement_begin(*, place: Place, reason: str, device: Device | None) -> RetiringDevice:
    """Keep what was left behind at `place`, whose node is rendered without it already.

    `device`: the one that goes on elsewhere or as another; None where it is deleted.
    """
    row = RetiringDevice(
        site_id=place.node.site_id,
        node=place.node,
        device=device,
        config_id=place.config_id,
        device_tag=place.tag,
        control_point=place.control_point,
        gone_from_version=place.node.documents.get(name=CONFIG).version,
        reason=reason,
    )
    store(row)
    _waits_refresh(site_id=row.site_id, control_points=[row.control_point])
    log.info("device_retiring", node=place.node.name, device=place.tag, reason=reason)
    return row


def nodes_retiring(nodes: Iterable[Node]) -> set[uuid.UUID]:
    """Those of these nodes that have yet to let go of a device."""
    rows = RetiringDevice.objects.filter(node__in=list(nodes))
    return set(rows.values_list("node_id", flat=True))


def retired_record(*, node: Node, reported: Reported) -> int:
    """Close what a node's report shows it has let go of; how many. Late and repeated reports do no harm.

    Only the present session's word counts, in the present epoch, and only about a configuration that this
    database knows: after a restore a node may run one with a higher version and the device still in it.
    """
    applied = reported.documents.get(CONFIG)
    if (
        (reported.session, reported.boot, reported.epoch) != (node.session, node.boot, node.epoch)
        or applied is None
        or applied.status != APPLIED
        or applied.v > node.manifest_version
    ):
        return 0
    rows = RetiringDevice.objects.filter(node=node, gone_from_version__lte=applied.v)
    if not any(_is_let_go(row, reported) for row in rows):
        return 0
    with transaction.atomic():
        places_lock([node.site_id])
        closed = [row for row in rows.all() if _is_let_go(row, reported)]
        RetiringDevice.objects.filter(pk__in=[row.pk for row in closed]).delete()
        _render_after(node=node, rows=closed)
    for row in closed:
        log.info(
            "device_retired",
            node=node.name,
            device=row.device_tag,
            after_s=round((timezone.now() - row.since).total_seconds()),
            abandoned_by=row.abandoned_by,
        )
    return len(closed)


def _is_let_go(row: RetiringDevice, reported: Reported) -> bool:
    # A device that cannot be used as it is configured now goes on, under its tag, as it was before.
    return str(row.config_id) not in reported.retiring and row.device_tag not in reported.devices_refused


def device_abandon(*, retiring: RetiringDevice, tag: str, by: str, why: str) -> RetiringDevice:
    """Wait no longer for a node to let go of a device, whatever that still holds: its place is free at once.

    The caller repeats the tag. `Invalid` where it is another, or where nobody or no reason is named;
    `NotFound` where the node has let go meanwhile; `Conflict` where it is abandoned already.
    """
    if tag != retiring.device_tag:
        raise Invalid.field("tag", f"repeat the tag, {retiring.device_tag}, to abandon the device")
    if not by.strip() or not why.strip():
        raise Invalid.field("why", "say who abandons the device, and why")
    with transaction.atomic():
        places_lock([retiring.site_id])
        row = RetiringDevice.objects.select_related("node").filter(pk=retiring.pk).first()
        if row is None:
            raise NotFound(f"{tag} is retired: its node has let go of it.")
        if row.is_abandoned:
            raise Conflict(f"{tag} is abandoned already, by {row.abandoned_by}.", code="abandoned")
        row.abandoned_at, row.abandoned_by, row.abandoned_why = timezone.now(), by.strip(), why.strip()
        store(row)
        _render_after(node=row.node, rows=[row])
    log.warning(
        "device_abandoned", node=row.node.name, device=tag, control_point=row.control_point, by=by, why=why
    )
    return row


def waits_at(device: Device) -> bool:
    """Tell whether another node has yet to let go of this device's control point, as it is now."""
    rows = retiring_waited_for().filter(site_id=device.site_id, control_point=device.control_point)
    return device.control_point is not None and rows.exclude(node=device.node_id).exists()


def _waits_refresh(*, site_id: uuid.UUID, control_points: Iterable[str | None]) -> None:
    devices = Device.objects.filter(site_id=site_id, control_point__in=set(control_points) - {None})
    devices.update(waits=waits_for_control_point())


def _render_after(*, node: Node, rows: Iterable[RetiringDevice]) -> None:
    """Tell the node itself, and the nodes whose devices waited for one of these control points."""
    freed = {row.control_point for row in rows if row.control_point is not None}
    _waits_refresh(site_id=node.site_id, control_points=freed)
    waiting = Node.objects.filter(site_id=node.site_id, devices__control_point__in=freed)
    nodes = {found.pk: found for found in [node, *waiting]}
    for pk in sorted(nodes):
        node_documents_render(node=nodes[pk], only=[CONFIG])


def node_kept_by(node: Node) -> list[str]:
    """What keeps a node from being deleted, for people."""
    devices = node.devices.order_by("device_tag").values_list("device_tag", flat=True)
    retiring = retiring_waited_for().filter(node=node).order_by("device_tag")
    return [
        *(f"the device {tag}" for tag in devices),
        *(f"{tag}, still retiring" for tag in retiring.values_list("device_tag", flat=True)),
    ]


def site_kept_by(site: Site) -> list[str]:
    """What was measured at a site keeps it from being deleted; its devices are of its nodes, which do too."""
    return ["what was measured there"] if site.series.exists() else []
