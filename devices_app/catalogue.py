"""Which device types there are: those whose profiles come with the software, and an operator's own ones."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypedDict, Unpack

import structlog
from django.db import IntegrityError, connection, transaction

from devices_app.choices import Lifetime
from devices_app.models import DeviceType
from devices_app.services import OWN, DeviceTypeFields, device_type_create, device_type_update
from edge.profiles.errors import ProfileError
from edge.profiles.loader import load_all, load_bodies, profile_judge
from edge.profiles.model import Profile
from sites_app.services import some_named
from smartgrid.errors import REFUSED_SHOWN, Conflict, Invalid, NotFound, SgmError, refusal_of_many

log = structlog.stdlib.get_logger(__name__)

# Any number of our own: PostgreSQL's advisory locks are one space for the whole database.
_NAMING = 0x53474D05
# An own profile is called so, and none that comes with the software, today or in a later version: nodes know
# profiles by name. (Python's `$`, by which profiles judge their own name, lets a line end there.)
_OWN_NAME = re.compile(rf"{OWN}[a-z0-9_]{{1,{64 - len(OWN)}}}")


class TypeChanges(TypedDict, total=False):
    """What can be said of a type. The rest is its profile's to say."""

    name: str
    lifetime: str
    profile_body: dict[str, Any]


class NewType(TypeChanges, total=False):
    """Either `profile`, the name of one that comes with the software, or an own `profile_body`."""

    id: uuid.UUID
    profile: str


@cache
def shipped_types() -> Mapping[str, tuple[str, DeviceTypeFields]]:
    """Profile name -> title, and what the profile says of its type; of all that come with this version."""
    bodies = load_bodies()
    return {
        profile.name: (profile.title, _fields_of(profile, bodies[profile.name]))
        for profile in load_all().values()
    }


def _fields_of(profile: Profile, body: dict[str, Any]) -> DeviceTypeFields:
    return {
        "category": str(profile.category),
        "protocol": str(profile.protocol),
        "value_kind": None if profile.value_kind is None else str(profile.value_kind),
        "min_value": profile.min_value,
        "max_value": profile.max_value,
        "default_value": profile.default_value,
        "verified_on_hardware": profile.verified_on_hardware,
        "profile_body": body,
    }


def device_type_add(**wanted: Unpack[NewType]) -> DeviceType:
    """Make a type of a profile that comes with the software, or of an own one.

    `Invalid` names what an own profile lacks, as the checks of all profiles do; `Conflict` where the type's
    name is taken, or the own profile's: nodes know profiles by name, so one name is one profile.
    """
    profile, body = wanted.get("profile"), wanted.get("profile_body")
    with transaction.atomic():
        if body is not None and profile is None:
            judged = _judged(body)
            profile, fields = judged.name, _fields_of(judged, body)
            _naming_lock()
            _name_free_check(profile)
        elif profile is not None and body is None:
            fields = _shipped(profile)
        else:
            raise Invalid.field("profile", "give this or profile_body, one of them")
        if "id" in wanted:
            fields["id"] = wanted["id"]
        if "lifetime" in wanted:
            fields["lifetime"] = wanted["lifetime"]
        return device_type_create(name=wanted["name"], profile=profile, **fields)


def _shipped(profile: str) -> DeviceTypeFields:
    if profile not in shipped_types():
        raise Invalid.field("profile", "no such profile comes with the software")
    _, fields = shipped_types()[profile]
    alike = DeviceType.objects.filter(profile=profile)
    if any(row.profile_body != fields["profile_body"] for row in alike):
        text = f"The types of {profile} are of another version of the software: run sync_device_types."
        raise Conflict(text, code="stale", errors={"profile": [text]})
    return fields.copy()


def device_types_add(items: Sequence[NewType]) -> list[DeviceType]:
    """Make all of these types or none: the error names each that is refused by its place (`17.name`)."""
    made: list[DeviceType] = []
    refused: dict[int, SgmError] = {}
    with transaction.atomic():
        for place, wanted in enumerate(items):
            try:
                made.append(device_type_add(**wanted))
            except SgmError as error:
                refused[place] = error
            if len(refused) >= REFUSED_SHOWN:
                break
        if refused:
            raise refusal_of_many(refused)
    return made


def device_type_change(*, device_type: DeviceType, **changes: Unpack[TypeChanges]) -> DeviceType:
    """Change a type, and an own profile under the name it has; nodes get it soon (`device_type_update`).

    `Invalid` for a profile that comes with the software: it changes with that.
    """
    fields: DeviceTypeFields = {}
    if "lifetime" in changes:
        fields["lifetime"] = changes["lifetime"]
    body = changes.get("profile_body")
    if body is not None and body != device_type.profile_body:
        if device_type.profile in shipped_types():
            raise Invalid.field(
                "profile_body",
                f"{device_type.profile} comes with the software; make a type of an own profile",
            )
        judged = _judged(body)
        if judged.name != device_type.profile:
            raise Invalid.field("profile_body", f"name: a type keeps its profile's, {device_type.profile}")
        fields |= _fields_of(judged, body)
    return device_type_update(device_type=device_type, name=changes.get("name"), **fields)


def device_type_replace(*, device_type: DeviceType, **fields: Unpack[TypeChanges]) -> DeviceType:
    """Change a type to be as these fields say, its lifetime otherwise as a new one's; its profile stays."""
    fields.setdefault("lifetime", Lifetime.CYCLIC)
    return device_type_change(device_type=device_type, **fields)


def device_type_delete(*, device_type: DeviceType, by: str = "") -> None:
    """Forget a type that no device is of; `Conflict` names devices.

    The type of a profile that comes with the software is made anew by the next `sync_device_types`.
    """
    in_use = f"{device_type.name} cannot be deleted: it still has "
    try:
        with transaction.atomic():
            locked = DeviceType.objects.select_for_update().filter(pk=device_type.pk).first()
            if locked is None:
                raise NotFound("No such device type.")
            tags = list(locked.devices.order_by("device_tag").values_list("device_tag", flat=True)[:6])
            if tags:
                raise Conflict(f"{in_use}{', '.join(some_named('the device', tags))}.", code="in_use")
            locked.delete()
    except IntegrityError as error:
        raise Conflict(f"{in_use}a device.", code="in_use") from error
    log.warning("device_type_deleted", device_type=device_type.name, profile=device_type.profile, by=by)


def _judged(body: dict[str, Any]) -> Profile:
    try:
        profile = profile_judge(body)
    except ProfileError as error:
        raise Invalid.field("profile_body", f"{error.key}: {error.expectation}") from error
    if not _OWN_NAME.fullmatch(profile.name):
        raise Invalid.field("profile_body", f"name: expected {OWN} and more of a-z, 0-9 and _, 64 at most")
    return profile


def _naming_lock() -> None:
    """Let one transaction at a time look whether a profile's name is free. (SQLite: they come one by one.)"""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_NAMING])


def _name_free_check(profile: str) -> None:
    found = DeviceType.objects.filter(profile=profile).first()
    if found is not None:
        text = f"The profile {profile} is that of {found.name}: give yours another name."
        raise Conflict(text, code="duplicate", errors={"profile_body": [text]})
