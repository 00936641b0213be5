"""Which devices a request reaches, and why the others are not: decided before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from devices_app.models import Device
from devices_app.selectors import devices_visible_to, retiring_by_tag
from edge.profiles.points import Protocol
from edge.wire.messages import Code
from sites_app.presence import NodePresence
from sites_app.selectors import site_get
from smartgrid.api.principal import Principal
from smartgrid.errors import Invalid, NotFound


@dataclass(frozen=True, slots=True)
class Target:
    """What a request needs to know of a device, its node and its site.

    Read as plain values: a node's row also carries its last report, which may be long, and making model
    objects would cost a request more than its query.
    """

    tag: str
    is_included: bool
    is_measured_only: bool
    minimum: float
    maximum: float
    node_id: UUID
    tenant: str
    epoch: int
    in_batch: bool
    site_id: UUID
    time_limit_s: int
    owned_by: str | None
    waits_for_control_point: bool
    protocol: str

    @property
    def is_proxy(self) -> bool:
        return self.protocol == Protocol.PROXY


IS_EXCLUDED = "include_in_curtailment is off for this device"
IS_WAITING = "another node has yet to let go of its control point"
# In the order of `Target`.
COLUMNS = (
    "device_tag",
    "include_in_curtailment",
    "measured_only",
    "min_value",
    "max_value",
    "node_id",
    "node__tenant_tag",
    "node__epoch",
    "node__curtail_in_batch",
    "site_id",
    "site__curtailment_time_limit",
    "controlled_by__device_tag",
    "waits",
    "device_type__protocol",
)


@dataclass(frozen=True, slots=True)
class Targets:
    """Devices to command by node, and the reason for each device that is not commanded."""

    site_id: UUID
    by_node: dict[UUID, list[Target]]
    refused: dict[str, str]


def reason(code: Code, detail: str) -> str:
    """As `not_updated` tells it: the code for programs, then a sentence for people."""
    return f"{code}: {detail}"


def targets_select(
    *,
    principal: Principal,
    site_id: UUID,
    category: str,
    device_tags: Sequence[str] | None,
    value: float,
) -> Targets:
    """Choose the devices of a request, in one query, and one more for each tier of proxies among them.

    `NotFound` for a site out of sight, or without a device of this category; `Invalid` where the value is
    outside the range of every device it could reach. Outside some: those answer `range`.
    """
    found = devices_visible_to(principal).filter(site_id=site_id, category=category)
    if device_tags is not None:
        found = found.filter(device_tag__in=device_tags)
    devices = {row[0]: Target(*row) for row in found.order_by("device_tag").values_list(*COLUMNS)}
    refused: dict[str, str] = {}
    if not devices:
        site = site_get(principal=principal, site_id=site_id)
    unknown = [tag for tag in device_tags or () if tag not in devices]
    if unknown:
        refused = _unknown(unknown, site_id=site_id, category=category)
    if not devices:
        is_any_retiring = any(why.startswith(Code.RETIRING) for why in refused.values())
        if not is_any_retiring and (
            device_tags is None or not site.devices.filter(category=category).exists()
        ):
            raise NotFound(f"This site has no device of category {category!r}.")
    controllable: list[Target] = []
    for device in _chosen(devices, device_tags):
        if device.owned_by is not None:
            refused[device.tag] = reason(Code.OWNED_BY, f"{device.owned_by} controls this device")
        elif not device.is_included:
            refused[device.tag] = reason(Code.EXCLUDED, IS_EXCLUDED)
        elif device.is_measured_only:
            detail = "this device is only measured"
            refused[device.tag] = reason(Code.EXCLUDED, detail)
        elif device.waits_for_control_point:
            refused[device.tag] = reason(Code.RETIRING, IS_WAITING)
        else:
            controllable.append(device)
    in_range = [device for device in controllable if device.minimum <= value <= device.maximum]
    if controllable and not in_range:
        low = min(device.minimum for device in controllable)
        high = max(device.maximum for device in controllable)
        raise Invalid.field("value", f"{value:g} is outside the range of every device, {low:g} to {high:g}")
    for device in controllable:
        if device not in in_range:
            detail = f"allowed is {device.minimum:g} to {device.maximum:g}"
            refused[device.tag] = reason(Code.RANGE, detail)
    by_node: dict[UUID, list[Target]] = {}
    for device in in_range:
        by_node.setdefault(device.node_id, []).append(device)
    proxies = [device.tag for device in in_range if device.is_proxy]
    return Targets(site_id, by_node, _passed_over(proxies, site_id=site_id) | refused)


def _passed_over(proxies: Sequence[str], *, site_id: UUID) -> dict[str, str]:
    """The devices behind these proxies that a setpoint is not passed on to, and why (rule 22)."""
    found: dict[str, str] = {}
    while proxies:
        children = Device.objects.filter(
            site_id=site_id, controlled_by__device_tag__in=proxies, measured_only=False
        ).values_list("device_tag", "include_in_curtailment", "waits", "device_type__protocol")
        proxies = []
        for tag, is_included, waits, protocol in children.order_by("device_tag"):
            if not is_included:
                found[tag] = reason(Code.EXCLUDED, IS_EXCLUDED)
            elif waits:
                found[tag] = reason(Code.RETIRING, IS_WAITING)
            elif protocol == Protocol.PROXY:
                proxies.append(tag)
    return found


def _chosen(devices: Mapping[str, Target], tags: Iterable[str] | None) -> list[Target]:
    if tags is None:
        # What is only measured, or follows a proxy, is not asked for by a category; where nothing else is
        # there, it is named.
        controlled = [
            device for device in devices.values() if not device.is_measured_only and device.owned_by is None
        ]
        return controlled or list(devices.values())
    return list({tag: devices[tag] for tag in tags if tag in devices}.values())


def _unknown(tags: Iterable[str], *, site_id: UUID, category: str) -> dict[str, str]:
    """Why there is no device of these tags: it never was, or is just going."""
    retiring = retiring_by_tag(site_id=site_id, tags=tags)
    return {
        tag: reason(Code.RETIRING, f"{retiring[tag]} has yet to return it to its default and forget it")
        if tag in retiring
        else reason(Code.UNKNOWN_DEVICE, f"no device of category {category!r} has this tag here")
        for tag in tags
    }


def offline_nodes(targets: Targets, presence: Mapping[UUID, NodePresence], *, now: float) -> dict[UUID, str]:
    """Nodes that are known not to listen, and why: their devices are answered at once, nothing queues."""
    return {
        node_id: presence[node_id].why_not(now=now)
        for node_id in targets.by_node
        if not presence[node_id].is_reachable(now=now)
    }
