"""What happens to device types and devices; each change reaches the node through its `config`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

import structlog
from django.db import transaction

from devices_app.models import Device, DeviceType
from sites_app.documents import node_documents_render
from sites_app.models import Node
from smartgrid.errors import Invalid
from smartgrid.integrity import store

log = structlog.stdlib.get_logger(__name__)


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
    lifetime: str | None
    telemetry_s: float


class DeviceFields(DeviceOptions, total=False):
    id: uuid.UUID


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
    """Change a type; nodes with devices of it get the new profile, and devices keep their own bounds."""
    with transaction.atomic():
        device_type = DeviceType.objects.select_for_update().get(pk=device_type.pk)
        changes: dict[str, Any] = dict(fields)
        if name is not None:
            changes["name"] = name
        changed = {field: value for field, value in changes.items() if getattr(device_type, field) != value}
        if not changed:
            return device_type
        for field, value in changed.items():
            setattr(device_type, field, value)
        store(device_type)
        for device in device_type.devices.select_related("device_type"):
            before = (device.control_point, device.measured_only)
            _control_point_set(device)
            if (device.control_point, device.measured_only) != before:
                store(device)
        for node in Node.objects.filter(devices__device_type=device_type).distinct().order_by("pk"):
            node_documents_render(node=node)
    log.info("device_type_changed", device_type=device_type.name, fields=sorted(changed))
    return device_type


def device_create(
    *, node: Node, device_type: DeviceType, device_tag: str, **fields: Unpack[DeviceFields]
) -> Device:
    """Add a device to a node, and to the node's configuration.

    `Invalid` for a field out of range; `Conflict` where the site has the tag already, or where another device
    of the site is controlled through the same register (rule 22).
    """
    defaults: DeviceFields = {
        "category": device_type.category,
        "min_value": device_type.min_value,
        "max_value": device_type.max_value,
        "default_value": device_type.default_value,
    }
    with transaction.atomic():
        device = Device(
            site_id=node.site_id,
            node=node,
            device_type=device_type,
            device_tag=device_tag,
            **{**defaults, **fields},
        )
        _device_store(device)
        node_documents_render(node=node)
    log.info("device_created", node=node.name, device=device.device_tag, device_type=device_type.name)
    return device


def device_update(*, device: Device, **changes: Unpack[DeviceChanges]) -> Device:
    """Change a device where it stands: its node is for life, its site is the node's."""
    with transaction.atomic():
        # `of`: the type is shared by a fleet and need not wait.
        device = (
            Device.objects.select_for_update(of=("self",))
            .select_related("device_type", "node")
            .get(pk=device.pk)
        )
        for field, value in changes.items():
            if field not in DeviceChanges.__optional_keys__:
                raise Invalid.field(field, "cannot be changed")
            setattr(device, field, value)
        _device_store(device)
        node_documents_render(node=device.node)
    log.info("device_changed", device=device.device_tag, fields=sorted(changes))
    return device


def device_values_confirm(
    *, node_id: uuid.UUID, values: Mapping[str, float], sequence: int, is_first_word: bool = False
) -> None:
    """Record the values (device tag -> value) a node's devices confirmed under the command of this sequence.

    A device for which a later command has confirmed another is left alone; so is, with `is_first_word`, one
    of which something was recorded under this very sequence: the first word about a command is its answer,
    and the node's log goes on to tell how its hold ended.
    """
    if not values:
        return
    devices = Device.objects.all()
    if len(values) > 1:
        # In one order for all, so that two requests for the same devices do not wait for each other.
        ordered = devices.filter(node_id=node_id, device_tag__in=values).order_by("pk")
        list(ordered.select_for_update(no_key=True).values_list("pk", flat=True))
    # Sequences are whole numbers: one below this one, or up to it.
    before = sequence if is_first_word else sequence + 1
    for value in sorted(set(values.values())):
        tags = [tag for tag in values if values[tag] == value]
        devices.filter(node_id=node_id, device_tag__in=tags, value_sequence__lt=before).update(
            value=value, value_sequence=sequence
        )


def _device_store(device: Device) -> None:
    device.modbus_server_host = (device.modbus_server_host or "").strip().lower() or None
    device.lifetime = device.lifetime or None
    if device.device_type.speaks_modbus and not (
        device.modbus_server_host and device.modbus_server_port and device.modbus_id is not None
    ):
        raise Invalid(
            "A Modbus device needs modbus_server_host, modbus_server_port and modbus_id.",
            errors={
                field: ["This field is required for a Modbus device."]
                for field in ("modbus_server_host", "modbus_server_port", "modbus_id")
                if getattr(device, field) in (None, "")
            },
        )
    _control_point_set(device)
    store(device)


def _control_point_set(device: Device) -> None:
    """Find by which register this device is controlled; a type without one can only be measured."""
    device_type = device.device_type
    if device_type.profile_body and not device_type.has_limit:
        device.measured_only = True
    device.control_point = None if device.measured_only else _control_point(device)


def _control_point(device: Device) -> str | None:
    body = device.device_type.profile_body
    limit = body.get("limit") or {}
    register = limit.get("register")
    if not device.device_type.speaks_modbus or not register:
        return None
    # Two profiles may name one register differently: where the profile has the address, that counts.
    point = body.get("points", {}).get(register, {})
    if "address" in point:
        register = f"{point.get('table', 'holding')}:{point['address']}"
    return f"{device.modbus_server_host}:{device.modbus_server_port}/{device.modbus_id}/{register}"


class DeviceTypeSync(TypedDict):
    """What a synchronisation with the profiles did, by type name."""

    created: list[str]
    updated: list[str]
    unchanged: list[str]
    without_profile: list[str]


def device_types_sync(profiles: dict[str, tuple[str, DeviceTypeFields]]) -> DeviceTypeSync:
    """Bring the types in line with the profiles: name -> (title, what the profile says).

    A profile without a type gets one under its title. Types keep their id, name and lifetime; a type whose
    profile is gone stays, since devices may use it, and is reported.
    """
    done: DeviceTypeSync = {"created": [], "updated": [], "unchanged": [], "without_profile": []}
    with transaction.atomic():
        for profile, (title, fields) in sorted(profiles.items()):
            rows = list(DeviceType.objects.filter(profile=profile).order_by("name"))
            if not rows:
                done["created"].append(device_type_create(name=title, profile=profile, **fields).name)
            for row in rows:
                same = all(getattr(row, field) == value for field, value in fields.items())
                device_type_update(device_type=row, **fields)
                done["unchanged" if same else "updated"].append(row.name)
        orphans = DeviceType.objects.exclude(profile__in=profiles).order_by("name")
        done["without_profile"] = list(orphans.values_list("name", flat=True))
    for name in done["without_profile"]:
        log.warning("device_type_without_profile", device_type=name)
    return done
