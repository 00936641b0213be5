"""Which devices a request reaches, and why the others are not: decided before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from django.db.models import QuerySet

from control_app.models import Unit
from devices_app.models import Device
from devices_app.selectors import devices_visible_to, retiring_by_tag
from edge.profiles.model import ValueKind
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
    throttle_s: int | None
    owned_by: str | None
    waits_for_control_point: bool
    protocol: str
    nameplate_kw: float | None
    value_kind: str | None

    @property
    def is_proxy(self) -> bool:
        return self.protocol == Protocol.PROXY


IS_EXCLUDED = "include_in_curtailment is off for this device"
NO_NAMEPLATE = "peak_power_kw is not set, so its share of kW is unknown"
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
    "site__setpoint_throttle_s",
    "controlled_by__device_tag",
    "waits",
    "device_type__protocol",
    "peak_power_kw",
    "device_type__value_kind",
)


@dataclass(frozen=True, slots=True)
class Targets:
    """Devices to command by node, and the reason for each device that is not commanded.

    `values`: what each that is commanded is to be held at, in the unit of its type; None: it is released.
    """

    site_id: UUID
    by_node: dict[UUID, list[Target]]
    values: dict[str, float | None]
    refused: dict[str, str]


def reason(code: Code, detail: str) -> str:
    """As `not_updated` tells it: the code for programs, then a sentence for people."""
    return f"{code}: {detail}"


def targets_select(
    *,
    principal: Principal,
    site_id: UUID,
    category: str | None,
    device_tags: Sequence[str] | None,
    value: float | None,
    unit: Unit = Unit.PERCENT,
) -> Targets:
    """Choose the devices of a request, in one query, and one more for each tier of proxies among them.

    `category` None: of all categories. `value` None: they are to be released, whatever their range. A value
    in kW is that of all devices together, each of which has its share by its nameplate. `NotFound` for a site
    out of sight, or without a device of this category; `Invalid` where the value is outside the range of
    every device it could reach, or none takes kW. Outside some: those answer `range`.
    """
    found = _of_category(devices_visible_to(principal).filter(site_id=site_id), category)
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
            device_tags is None or not _of_category(site.devices.all(), category).exists()
        ):
            raise NotFound(f"This site has no {_device_of(category)}.")
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
    if value is None:
        reached = controllable
    elif unit is Unit.KW:
        sharing, share = _shared(controllable, value, refused)
        asked = f"{value:g} kW, {share:g} % of nameplate,"
        value, reached = (
            share,
            _in_range(sharing, share, refused, asked=asked, share=f"its share is {share:g}, "),
        )
    else:
        reached = _in_range(controllable, value, refused, asked=f"{value:g}")
    by_node: dict[UUID, list[Target]] = {}
    for device in reached:
        by_node.setdefault(device.node_id, []).append(device)
    proxies = [device.tag for device in reached if device.is_proxy]
    return Targets(
        site_id=site_id,
        by_node=by_node,
        values={device.tag: value for device in reached},
        refused=_passed_over(proxies, site_id=site_id) | refused,
    )


def _shared(
    controllable: Sequence[Target], value_kw: float, refused: dict[str, str]
) -> tuple[list[Target], float]:
    """Those that kW can be asked of, and the percent of nameplate at which they together give this power.

    In proportion to their nameplates, so it is the same percent for each. One that cannot be reached keeps
    its share: no other gets more because it is silent. Those that take no kW are added to `refused`.
    """
    sharing: list[Target] = []
    total_kw = 0.0
    for device in controllable:
        if device.value_kind is None or not ValueKind(device.value_kind).is_power:
            refused[device.tag] = reason(Code.UNIT, "its value is an operating mode, and no power")
        elif device.nameplate_kw is None:
            refused[device.tag] = reason(Code.NO_NAMEPLATE, NO_NAMEPLATE)
        else:
            sharing.append(device)
            total_kw += device.nameplate_kw
    if controllable and all(refused.get(device.tag, "").startswith(Code.UNIT) for device in controllable):
        raise Invalid.field("unit", "the values of these devices are operating modes, and no power")
    if not sharing:
        return [], value_kw
    # To a millionth of a percent, so that all they can do is not a rounding error more than that.
    return sharing, round(100 * value_kw / total_kw, 6)


def _in_range(
    controllable: Sequence[Target], value: float, refused: dict[str, str], *, asked: str, share: str = ""
) -> list[Target]:
    """Those that may be held at this value, `asked` for in these words; the others are added to `refused`."""
    in_range = [device for device in controllable if device.minimum <= value <= device.maximum]
    if controllable and not in_range:
        low = min(device.minimum for device in controllable)
        high = max(device.maximum for device in controllable)
        raise Invalid.field("value", f"{asked} is outside the range of every device, {low:g} to {high:g}")
    for device in controllable:
        if device not in in_range:
            detail = f"allowed is {device.minimum:g} to {device.maximum:g}"
            refused[device.tag] = reason(Code.RANGE, share + detail)
    return in_range


def _of_category(devices: QuerySet[Device], category: str | None) -> QuerySet[Device]:
    return devices if category is None else devices.filter(category=category)


def _device_of(category: str | None) -> str:
    return "device" if category is None else f"device of category {category!r}"


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


def _unknown(tags: Iterable[str], *, site_id: UUID, category: str | None) -> dict[str, str]:
    """Why there is no device of these tags: it never was, or is just going."""
    retiring = retiring_by_tag(site_id=site_id, tags=tags)
    return {
        tag: reason(Code.RETIRING, f"{retiring[tag]} has yet to return it to its default and forget it")
        if tag in retiring
        else reason(Code.UNKNOWN_DEVICE, f"no {_device_of(category)} has this tag here")
        for tag in tags
    }


def offline_nodes(targets: Targets, presence: Mapping[UUID, NodePresence], *, now: float) -> dict[UUID, str]:
    """Nodes that are known not to listen, and why: their devices are answered at once, nothing queues."""
    return {
        node_id: presence[node_id].why_not(now=now)
        for node_id in targets.by_node
        if not presence[node_id].is_reachable(now=now)
    }
