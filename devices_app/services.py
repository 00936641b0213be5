"""What happens to device types and devices; each change reaches the node through its `config`."""

from __future__ import annotations

import copy
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Required, TypedDict, Unpack

import structlog
from django.db import transaction

from devices_app.address import address_check, control_point_of, device_profile
from devices_app.choices import BoundOrigin, ValueKind
from devices_app.config import CONFIG
from devices_app.events import COLUMNS, DeviceHolds, devices_publish
from devices_app.loops import device_change_check, device_leave_check
from devices_app.models import Device, DeviceBound, DeviceType
from devices_app.retirement import (
    Place,
    TakenPlaces,
    place_free_check,
    places_lock,
    retirement_begin,
    waits_at,
)
from devices_app.selectors import device_unfit, devices_unfit
from edge.profiles import model as profiles
from edge.wire.messages import Reported
from sites_app.documents import node_documents_render, nodes_documents_render, nodes_render_later
from sites_app.models import Node
from sites_app.tokens import encrypt
from smartgrid.bulk import Condition, rows_update_returning
from smartgrid.errors import Conflict, Invalid, NotFound, SgmError, refusal_of_many
from smartgrid.folding import Update
from smartgrid.integrity import check, rows_store, store

log = structlog.stdlib.get_logger(__name__)


# How the name of a profile begins that somebody wrote for himself: none that comes with the software does.
OWN = "own_"


class DeviceTypeFields(TypedDict, total=False):
    id: uuid.UUID
    category: str
    protocol: str
    value_kind: str | None
    min_value: float
    max_value: float
    default_value: float
    lifetime: str
    verified_on_hardware: bool
    profile_body: dict[str, Any]


class DeviceOptions(TypedDict, total=False):
    """Bounds and category which are not given are the type's."""

    category: str
    min_value: float
    max_value: float
    default_value: float
    peak_power_kw: float | None
    meta_data: dict[str, Any]
    include_in_curtailment: bool
    measured_only: bool
    modbus_server_host: str | None
    modbus_server_port: int | None
    modbus_id: int | None
    protocol: str | None
    serial_port: str | None
    baud_rate: int | None
    parity: str | None
    stop_bits: int | None
    url: str | None
    username: str
    password: str
    parameters: dict[str, float | str]
    lifetime: str | None
    telemetry_s: float
    controlled_by: Device | None
    ramp_pct_per_min: float | None
    accept_wear: bool
    arm_fallback: bool
    default_confirmed: bool


class DeviceFields(DeviceOptions, total=False):
    id: uuid.UUID


class NewDevice(DeviceFields, total=False):
    """One of many devices to be made. `controlled_by_id` may be another of them, by the id it is given."""

    node: Required[Node]
    device_type: Required[DeviceType]
    device_tag: Required[str]
    controlled_by_id: uuid.UUID | None


class DeviceChanges(DeviceOptions, total=False):
    device_tag: str
    device_type: DeviceType


def device_type_create(*, name: str, profile: str, **fields: Unpack[DeviceTypeFields]) -> DeviceType:
    device_type = DeviceType(name=name, profile=profile, **fields)
    store(device_type)
    log.info("device_type_created", device_type=name, profile=profile)
    return device_type


def device_type_update(
    *, device_type: DeviceType, name: str | None = None, **fields: Unpack[DeviceTypeFields]
) -> DeviceType:
    """Change a type; nodes with devices of it get the new profile soon after, and devices keep their bounds.

    Devices that are controlled through another register from now on are retired from the former one. One
    whose parameters no longer fit stays as it is, and so it does at its node, which refuses what it cannot
    use: `devices_unfit` tells of it.
    """
    with transaction.atomic():
        # Without the key: a device that is just changed to this type holds its site already.
        locked = DeviceType.objects.select_for_update(no_key=True).filter(pk=device_type.pk).first()
        if locked is None:
            raise NotFound("No such device type.")
        device_type = locked
        changes: dict[str, Any] = dict(fields)
        if name is not None:
            changes["name"] = name
        changed = {field: value for field, value in changes.items() if getattr(device_type, field) != value}
        if not changed:
            return device_type
        places_lock(device_type.devices.values_list("site_id", flat=True))
        devices = list(device_type.devices.select_related("node", "device_type").order_by("pk"))
        before = {device.pk: (Place.of(device), device.measured_only) for device in devices}
        for field, value in changed.items():
            setattr(device_type, field, value)
        store(device_type)
        left: list[tuple[Device, Place, str]] = []
        replaced: set[uuid.UUID] = set()
        for device in devices:
            device.device_type = device_type
            if unfit := device_unfit(device):
                log.warning("device_does_not_fit_its_type", device=device.device_tag, reason=unfit)
                continue
            _control_point_set(device)
            place, measured_only = before[device.pk]
            reason = _config_id_renew(device, place)
            if reason or (device.control_point, device.measured_only) != (place.control_point, measured_only):
                device.waits = waits_at(device)
                store(device)
                replaced.add(device.node_id)
            if reason:
                left.append((device, place, reason))
        nodes_documents_render(nodes=Node.objects.filter(pk__in=replaced), only=[CONFIG])
        # A profile may be a whole fleet's: nobody waits in this transaction for a thousand nodes.
        nodes_render_later(nodes={device.node_id for device in devices} - replaced)
        for device, place, reason in left:
            retirement_begin(place=place, reason=reason, device=device)
    log.info("device_type_changed", device_type=device_type.name, fields=sorted(changed))
    return device_type


def device_create(
    *, node: Node, device_type: DeviceType, device_tag: str, by: str = "", **fields: Unpack[DeviceFields]
) -> Device:
    """Add a device to a node, and to the node's configuration; `by`: who does it, where that is recorded.

    `Invalid` for a field out of range; `Conflict` where the site has the tag already, or where another device
    of the site is controlled through the same register (rule 22). So it is while one that had them is still
    being retired: code `retiring` (rule 20).
    """
    with transaction.atomic():
        places_lock([node.site_id])
        _node_check(node)
        device = _device_new(node=node, device_type=device_type, device_tag=device_tag, fields=fields)
        _wear_acceptance_audit(device, accepted_before=False, by=by)
        _device_store(device)
        node_documents_render(node=node, only=[CONFIG])
    log.info("device_created", node=node.name, device=device.device_tag, device_type=device_type.name)
    return device


def devices_create(items: Sequence[NewDevice], *, by: str = "") -> list[Device]:
    """Add all of these devices or none, as `device_create` does, in their order.

    The error names each that is refused by its place in `items` (`17.device_tag`). However many they are,
    what their checks ask the database is asked once, and each node is rendered once.
    """
    with transaction.atomic():
        places_lock(fields["node"].site_id for fields in items)
        taken = TakenPlaces.of(fields["node"].site_id for fields in items)
        refused = _moved_nodes(items)
        drafts = {
            place: _device_new(
                node=fields["node"],
                device_type=fields["device_type"],
                device_tag=fields["device_tag"],
                fields={name: value for name, value in fields.items() if name not in _OF_NEW},
            )
            for place, fields in enumerate(items)
            if place not in refused
        }
        refused |= _owners_set(drafts, items)
        devices: dict[int, Device] = {}
        left_out = {drafts[place].pk for place in refused if place in drafts}
        for place in _owners_first(drafts):
            # Nothing is known of a device whose owner is refused: it may be in a circle.
            if place in refused or drafts[place].controlled_by_id in left_out:
                left_out.add(drafts[place].pk)
                continue
            try:
                _wear_acceptance_audit(drafts[place], accepted_before=False, by=by)
                _device_check(drafts[place], taken=taken)
                devices[place] = drafts[place]
            except SgmError as error:
                refused[place] = error
                left_out.add(drafts[place].pk)
        places = list(devices)
        found = rows_store(list(devices.values()), trusted=("site", "node", "device_type", "controlled_by"))
        refused |= {places[number]: error for number, error in found.items()}
        if refused:
            raise refusal_of_many(refused)
        nodes_documents_render(nodes={fields["node"] for fields in items}, only=[CONFIG])
    log.info("devices_created", devices=len(items), by=by)
    return [devices[place] for place in range(len(items))]


# What is said of a new device beside its fields.
_OF_NEW = frozenset({"node", "device_type", "device_tag", "controlled_by_id"})


def _moved_nodes(items: Sequence[NewDevice]) -> dict[int, SgmError]:
    """The places of devices whose nodes are gone, or moved to other sites, since they were read."""
    there = Node.objects.filter(pk__in={fields["node"].pk for fields in items})
    sites = dict(there.values_list("pk", "site_id"))
    return {
        place: _moved(fields["node"])
        for place, fields in enumerate(items)
        if sites.get(fields["node"].pk) != fields["node"].site_id
    }


def _owners_set(drafts: Mapping[int, Device], items: Sequence[NewDevice]) -> dict[int, SgmError]:
    """Give new devices those they are to be controlled by, new or stored; the places that name an absent."""
    new = {device.pk: device for device in drafts.values()}
    wanted = {place: items[place].get("controlled_by_id") for place in drafts}
    stored = (
        Device.objects.select_related("device_type")
        .filter(pk__in={key for key in wanted.values() if key is not None} - new.keys())
        .in_bulk()
    )
    absent: dict[int, SgmError] = {}
    for place, key in wanted.items():
        if key is None:
            continue
        if (owner := new.get(key) or stored.get(key)) is None:
            absent[place] = NotFound("No such device.", errors={"controlled_by": ["No such device."]})
        else:
            drafts[place].controlled_by = owner
    return absent


def _owners_first(drafts: Mapping[int, Device]) -> list[int]:
    """The places of new devices so that each comes after the one it is controlled by; circles come last."""
    places = {device.pk: place for place, device in drafts.items()}
    ordered: dict[int, None] = {}
    for place in drafts:
        chain: list[int] = []
        at: int | None = place
        while at is not None and at not in ordered and at not in chain:
            chain.append(at)
            owner = drafts[at].controlled_by_id
            at = None if owner is None else places.get(owner)
        ordered |= dict.fromkeys(reversed(chain))
    return list(ordered)


def device_replace(*, device: Device, node: Node, by: str = "", **fields: Unpack[DeviceChanges]) -> Device:
    """Change a device to be as these fields say, and otherwise as one that is made anew (`device_update`).

    Its tag and its type must be among them. Its password stays unless one is given: nobody can read it to say
    it again.
    """
    columns = {field.name: field for field in Device._meta.concrete_fields}  # noqa: SLF001 - Django's documented name
    defaults = {
        name: columns[name].get_default() for name in DeviceOptions.__optional_keys__ if name in columns
    } | _of_type(fields["device_type"])
    changes: Any = defaults | fields
    return device_update(device=device, node=node, by=by, **changes)


def device_update(
    *, device: Device, node: Node | None = None, by: str = "", **changes: Unpack[DeviceChanges]
) -> Device:
    """Change a device at its node; `by`: who does it, where that is recorded.

    With another tag, address or profile it is another device to its node, which first retires the former one
    (rule 20): its hold ends. Errors as for `device_create`; `Conflict` too where it would no longer be
    controllable and controls others. `node`: where it is to be; errors also as for `device_move`.
    """
    with transaction.atomic():
        device = _device_lock(device)
        before, accepted_before = Place.of(device), device.accept_wear
        for field in changes:
            if field not in DeviceChanges.__optional_keys__:
                raise Invalid.field(field, "cannot be changed")
        if node is not None and node.pk != device.node_id:
            _move_check(device, node)
            device.node = node
        for field, value in _stored(changes).items():
            setattr(device, field, value)
        _wear_acceptance_audit(device, accepted_before=accepted_before, by=by)
        _device_change(device, before)
    log.info("device_changed", device=device.device_tag, fields=sorted(changes))
    return device


def device_move(*, device: Device, node: Node) -> Device:
    """Hand a device over to another node of its site, which leaves it alone until the former let go of it.

    `Invalid` for a node of another site: there it is another device. `Conflict` where it is controlled by, or
    controls, one that stays.
    """
    with transaction.atomic():
        device = _device_lock(device)
        if node.pk == device.node_id:
            return device
        _move_check(device, node)
        before = Place.of(device)
        device.node = node
        _device_change(device, before)
    log.info("device_moved", device=device.device_tag, node=node.name, before=before.node.name)
    return device


def device_draft(
    *,
    node: Node,
    device_type: DeviceType,
    device_tag: str,
    device: Device | None = None,
    **fields: Unpack[DeviceFields],
) -> Device:
    """A device as it would be created, or as `device` would be changed to; nothing of it is stored.

    Errors as for `device_create`, `device_update` and `device_move`: whoever asks before he saves is told the
    same, unless somebody else is quicker.
    """
    if device is None:
        drafted = _device_new(node=node, device_type=device_type, device_tag=device_tag, fields=fields)
    else:
        stored = Device.objects.select_related("device_type", "node").get(pk=device.pk)
        drafted = copy.copy(stored)
        if node.pk != stored.node_id:
            _move_check(stored, node)
        drafted.node, drafted.device_type, drafted.device_tag = node, device_type, device_tag
        for field, value in _stored(fields).items():
            setattr(drafted, field, value)
    _device_check(drafted)
    if device is not None:
        device_change_check(drafted)
    check(drafted)
    return drafted


def _device_new(*, node: Node, device_type: DeviceType, device_tag: str, fields: Mapping[str, Any]) -> Device:
    return Device(
        site_id=node.site_id,
        node=node,
        device_type=device_type,
        device_tag=device_tag,
        **{**_of_type(device_type), **_stored(fields)},
    )


def _of_type(device_type: DeviceType) -> DeviceFields:
    """What a device has of its type where it says nothing else."""
    return {
        "category": device_type.category,
        "min_value": device_type.min_value,
        "max_value": device_type.max_value,
        "default_value": device_type.default_value,
    }


def _move_check(device: Device, node: Node) -> None:
    if node.site_id != device.site_id:
        raise Invalid.field("node", "a device stays at its site; delete it here and create it there")
    _node_check(node)
    _controls_none_check(device, "cannot move")
    device_leave_check(device, "cannot move")


def device_delete(*, device: Device, by: str = "") -> Node:
    """Take a device from its node. Its tag and control point stay taken until the node has retired it.

    The node that has yet to. What it controls must be changed first, and a closed loop that needs it:
    `Conflict`.
    """
    with transaction.atomic():
        device = _device_lock(device)
        _controls_none_check(device, "cannot be deleted")
        device_leave_check(device, "cannot be deleted")
        place = Place.of(device)
        device.delete()
        node_documents_render(node=place.node, only=[CONFIG])
        retirement_begin(place=place, reason="deleted", device=None)
    log.info("device_deleted", node=place.node.name, device=place.tag, by=by)
    return place.node


def device_bound_set(
    *,
    device: Device,
    origin: str,
    by: str,
    minimum: float | None = None,
    maximum: float | None = None,
    reason: str = "",
) -> DeviceBound:
    """Let an authority limit a device, in the unit of its value, instead of its former limits there.

    The bounds of all authorities and the device's own intersect; the node applies them in its next cycle, to
    running holds too (rule 21). `Invalid` where neither side is limited, or for a number that is none.
    """
    with transaction.atomic():
        device = _device_lock(device)
        bound = DeviceBound.objects.filter(device=device, origin=origin).first()
        bound = bound or DeviceBound(device=device, origin=origin)
        bound.minimum, bound.maximum, bound.reason = minimum, maximum, reason
        store(bound)
        node_documents_render(node=device.node, only=[CONFIG])
    log.info(
        "device_bound_set",
        device=device.device_tag,
        origin=origin,
        minimum=minimum,
        maximum=maximum,
        reason=reason,
        by=by,
    )
    return bound


def device_bound_drop(*, device: Device, origin: str, by: str) -> bool:
    """Take an authority's limits from a device; False where it had none."""
    with transaction.atomic():
        device = _device_lock(device)
        dropped, _ = DeviceBound.objects.filter(device=device, origin=origin).delete()
        node_documents_render(node=device.node, only=[CONFIG])
    if dropped:
        log.info("device_bound_dropped", device=device.device_tag, origin=BoundOrigin(origin), by=by)
    return bool(dropped)


def device_values_confirm(
    *,
    node_id: uuid.UUID,
    values: Mapping[str, float],
    sequence: int,
    is_first_word: bool = False,
    asked_at: datetime | None = None,
) -> None:
    """Record the values (device tag -> value) a node's devices confirmed under the command of this sequence.

    A device for which a later command has confirmed another is left alone; so is, with `is_first_word`, one
    of which something was recorded under this very sequence: the first word about a command is its answer,
    and the node's log goes on to tell how its hold ended.

    `asked_at`: when the command was asked for, where the word may come late: it says nothing about a device
    that was made since under the same tag.
    """
    if not values:
        return
    if len(values) > 1:
        # In one order for all, so that two requests for the same devices do not wait for each other.
        ordered = Device.objects.filter(node_id=node_id, device_tag__in=values).order_by("pk")
        list(ordered.select_for_update(no_key=True).values_list("pk", flat=True))
    # Sequences are whole numbers: one below this one, or up to it.
    before = sequence if is_first_word else sequence + 1
    for value in sorted(set(values.values())):
        where: list[Condition] = [
            ("node", "=", node_id),
            ("device_tag", "in", [tag for tag in values if values[tag] == value]),
            ("value_sequence", "<", before),
        ]
        if asked_at is not None:
            where.append(("created_at", "<=", asked_at))
        changed = rows_update_returning(
            Device,
            changes={"value": value, "value_sequence": sequence},
            where=where,
            returning=COLUMNS,
        )
        devices_publish(DeviceHolds(*row) for row in changed)


def device_value_confirming(*, node_id: uuid.UUID, tag: str, value: float, sequence: int) -> Update:
    """The write by which `device_values_confirm` records the first word about a command to one device.

    For who writes more in the same round trip; what it tells is for `device_values_tell`.
    """
    return Update(
        Device,
        where=[("node", "=", node_id), ("device_tag", "=", tag), ("value_sequence", "<", sequence)],
        changes={"value": value, "value_sequence": sequence},
        returning=COLUMNS,
    )


def device_values_tell(rows: Iterable[Sequence[Any]]) -> None:
    """Tell listeners of devices by what `device_value_confirming` told of them."""
    devices_publish(DeviceHolds(*row) for row in rows)


def _stored(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as their rows have them: a password only encrypted, parameters a map even where none is said."""
    stored = dict(fields)
    if "parameters" in stored:
        stored["parameters"] = stored["parameters"] or {}
    if "password" in stored:
        password = stored.pop("password")
        stored["password_encrypted"] = encrypt(password) if password else ""
    return stored


def _node_check(node: Node) -> None:
    """Refuse a node that has moved to another site, or was deleted, before its site was locked."""
    if not Node.objects.filter(pk=node.pk, site=node.site_id).exists():
        raise _moved(node)


def _moved(node: Node) -> Conflict:
    text = f"{node.name} is no longer a node of this site."
    return Conflict(text, code="moved", errors={"node": [text]})


def device_values_follow(reports: Iterable[tuple[uuid.UUID, Reported]]) -> None:
    """Record what nodes say their devices hold, schedules and defaults among it.

    A device is left alone where a later command than the node had accepted when it said so has confirmed
    another value.
    """
    said = {node_id: reported for node_id, reported in reports if reported.values}
    if not said:
        return
    # Mostly many at once, as a slot of one schedule begins.
    changed: dict[tuple[float, int], list[uuid.UUID]] = defaultdict(list)
    devices = Device.objects.filter(node_id__in=said).order_by("pk")
    for pk, node_id, tag, value, sequence in devices.values_list(
        "pk", "node_id", "device_tag", "value", "value_sequence"
    ):
        reported = said[node_id]
        now = reported.values.get(tag)
        if now is not None and now != value and sequence <= reported.sequences.get(tag, 0):
            changed[now, sequence].append(pk)
    for (now, sequence), keys in sorted(changed.items()):
        followed = rows_update_returning(
            Device,
            changes={"value": now},
            where=[("id", "in", keys), ("value_sequence", "=", sequence)],
            returning=COLUMNS,
        )
        devices_publish(DeviceHolds(*row) for row in followed)


def _device_lock(device: Device) -> Device:
    """The device as it is now, for this transaction alone; `NotFound` where it is deleted."""
    places_lock([device.site_id])
    # `of`: the type is shared by a fleet and need not wait.
    rows = Device.objects.select_for_update(of=("self",)).select_related("device_type", "node")
    found = rows.filter(pk=device.pk).first()
    if found is None:
        raise NotFound("No such device.")
    return found


def _device_change(device: Device, before: Place) -> None:
    """Store a changed device, tell its node, and its former node where it moved; retire what it left."""
    reason = _device_store(device, before=before)
    device_change_check(device)
    node_documents_render(node=before.node, only=[CONFIG])
    if reason:
        # What it holds at its new place nobody has said yet.
        holds = DeviceHolds(
            device.pk, device.device_tag, device.site_id, device.node_id, device.category, device.value
        )
        devices_publish([holds])
        retirement_begin(place=before, reason=reason, device=device)
        device.refresh_from_db(fields=["waits"])
    if device.node_id != before.node.pk:
        # After its former place is known to be retiring, so that it is configured to wait for it.
        node_documents_render(node=device.node, only=[CONFIG])


def _config_id_renew(device: Device, before: Place) -> str:
    """Make it another device to its node if it left its place: why, or empty where it did not.

    What the former confirmed is not what this one holds.
    """
    reason = before.left_for(Place.of(device))
    if reason:
        device.config_id = uuid.uuid4()
        device.value = None
    return reason


def _wear_acceptance_audit(device: Device, *, accepted_before: bool, by: str) -> None:
    if device.accept_wear == accepted_before:
        return
    if not by.strip():
        raise Invalid.field("accept_wear", "cannot be changed without saying who does it")
    event = "device_wear_accepted" if device.accept_wear else "device_wear_no_longer_accepted"
    log.warning(event, device=device.device_tag, by=by)


def _controls_none_check(device: Device, what: str) -> None:
    tags = list(device.controls.order_by("device_tag").values_list("device_tag", flat=True))
    if tags:
        raise Conflict(f"{device.device_tag} {what}: it controls {', '.join(tags)}.", code="controls_others")


def _owner_check(device: Device, *, is_held: bool) -> None:
    """A device is controlled through another of its node, and that one through itself: proxies alone chain.

    Behind a proxy a device keeps its control point and follows; behind any other it is only measured.
    `is_held`: the other was read under the lock of its site, if it is stored at all.
    """
    owner = device.controlled_by
    if owner is None:
        return
    if not is_held:
        owner = Device.objects.select_related("device_type").filter(pk=owner.pk).first()
    if owner is None or owner.node_id != device.node_id:
        raise Invalid.field("controlled_by", "must be a device of the same node")
    if owner.pk == device.pk:
        raise Invalid.field("controlled_by", "a device cannot be controlled by itself")
    if owner.measured_only:
        raise Invalid.field("controlled_by", f"{owner.device_tag} is only measured itself")
    if owner.is_proxy:
        _follower_check(device, owner)
    else:
        device.measured_only = True


def _follower_check(device: Device, owner: Device) -> None:
    """Refuse a device that cannot follow this proxy, which may follow others itself."""
    if device.measured_only or not device.device_type.has_limit:
        raise Invalid.field(
            "controlled_by", f"{device.device_tag} is only measured, and cannot follow {owner.device_tag}"
        )
    if (why := _why_not_follow(device, owner)) is not None:
        raise Invalid.field("controlled_by", why)
    chain, above = [owner.device_tag], owner.controlled_by
    while above is not None:
        chain.append(above.device_tag)
        if above.pk == device.pk:
            raise Invalid.field("controlled_by", f"it controls itself through {' < '.join(chain)}")
        above = above.controlled_by


def _why_not_follow(device: Device, owner: Device) -> str | None:
    kind, asked = device.device_type.value_kind, owner.device_type.value_kind
    if kind is None or asked is None or profiles.ValueKind(kind).can_take(profiles.ValueKind(asked)):
        return None
    return f"the {kind} of {device.device_tag} cannot follow the {asked} of {owner.device_tag}"


def _followers_check(device: Device) -> None:
    """Refuse a change of what a device is where those it controls could not go on behind it."""
    for child in device.controls.select_related("device_type").order_by("device_tag"):
        why = _why_not_follow(child, device) if device.is_proxy and not child.measured_only else None
        if device.is_proxy == child.measured_only:
            what = "only measured behind it" if child.measured_only else "not to be measured only"
            why = f"{child.device_tag} is {what}"
        if why is not None:
            raise Conflict(f"{device.device_tag} cannot be of this type: {why}.", code="controls_others")


def _default_check(device: Device) -> None:
    """A signed setpoint other than 0 charges or discharges although nobody asked (design, Quantities)."""
    kind = device.device_type.value_kind
    if kind == ValueKind.SIGNED_SETPOINT and device.default_value != 0 and not device.default_confirmed:
        raise Invalid.field(
            "default_value",
            "a signed setpoint has the default 0; another needs an engineer's word, default_confirmed",
        )


def _device_store(device: Device, *, before: Place | None = None) -> str:
    """Check and store a device; why it has left `before`, or empty where it has not."""
    _device_check(device)
    reason = _config_id_renew(device, before) if before is not None else ""
    device.waits = waits_at(device)
    store(device)
    return reason


def _device_check(device: Device, *, taken: TakenPlaces | None = None) -> None:
    """Refuse a device that could not be what it says, or whose place is taken; complete what follows.

    `taken`: of a new one, which controls none yet, and whose owner was read under the lock of its site.
    """
    device.lifetime = device.lifetime or None
    address_check(device)
    # Also of one that is only measured: its node reads it by them.
    device_profile(device)
    _owner_check(device, is_held=taken is not None)
    _default_check(device)
    if taken is not None:
        _control_point_set(device)
        taken.free_check(device)
        return
    _followers_check(device)
    _control_point_set(device)
    if device.measured_only:
        _controls_none_check(device, "cannot be measured only")
    place_free_check(device)


def _control_point_set(device: Device) -> None:
    """Find by which register this device is controlled; a type without one can only be measured."""
    device_type = device.device_type
    if device_type.profile_body and not device_type.has_limit:
        device.measured_only = True
    device.control_point = None if device.measured_only else control_point_of(device)


class DeviceTypeSync(TypedDict):
    """What a synchronisation with the profiles did, by type name."""

    created: list[str]
    updated: list[str]
    unchanged: list[str]
    without_profile: list[str]
    # Devices that say what their type's profile does not take: tag, node, and why.
    unfit: list[str]


def device_types_sync(profiles: dict[str, tuple[str, DeviceTypeFields]]) -> DeviceTypeSync:
    """Bring the types in line with the profiles: name -> (title, what the profile says).

    A profile without a type gets one under its title. Types keep their id, name and lifetime; a type whose
    profile is gone stays, since devices may use it, and is reported.
    """
    done: DeviceTypeSync = {
        "created": [],
        "updated": [],
        "unchanged": [],
        "without_profile": [],
        "unfit": [],
    }
    with transaction.atomic():
        for profile, (title, fields) in sorted(profiles.items()):
            rows = list(DeviceType.objects.filter(profile=profile).order_by("name"))
            if not rows:
                done["created"].append(device_type_create(name=title, profile=profile, **fields).name)
            for row in rows:
                same = all(getattr(row, field) == value for field, value in fields.items())
                device_type_update(device_type=row, **fields)
                done["unchanged" if same else "updated"].append(row.name)
                done["unfit"] += [
                    f"{device.device_tag} of {device.node.name}: {why}" for device, why in devices_unfit(row)
                ]
        orphans = DeviceType.objects.exclude(profile__in=profiles).exclude(profile__startswith=OWN)
        orphans = orphans.order_by("name")
        done["without_profile"] = list(orphans.values_list("name", flat=True))
    for name in done["without_profile"]:
        log.warning("device_type_without_profile", device_type=name)
    return done
