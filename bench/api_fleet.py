"""What `bench.api` puts into the database: sites, nodes, devices, schedules, logs and tokens of a fleet.

Import it only where Django is set up. In bulk: rows are copies of what the services made for the first site.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from django.core.management import call_command
from django.db import models, transaction

from bench.sync_database import copy_in, row_copy, tables_analyze
from control_app.models import ControlLog, DeviceErrorLog, Status
from devices_app.models import Device, DeviceType
from devices_app.services import device_create
from schedules_app.models import Schedule
from sites_app.models import DocumentStatus, Node, NodeDocument, Site
from sites_app.services import node_create, site_create, token_issue

SITES, NODES, DEVICES = 10_000, 12_000, 100_000
LOGS, ERRORS, DAYS = 200_000, 500, 3
CATEGORIES = ("inverter", "battery", "ev_charger", "wind_turbine")
TYPES = {
    "inverter": "generic_modbus",
    "battery": "generic_modbus_battery",
    "ev_charger": "generic_modbus",
    "wind_turbine": "generic_modbus",
}
AT_ONCE = 5000
# A token for some sites, one for many, and the one whose list of tokens is asked for.
TOKENS = 100
FEW, MANY = 20, 1000

M = TypeVar("M", bound=models.Model)


@dataclass(frozen=True, kw_only=True)
class ApiFleet:
    """What requests are made of: an object of each kind, and tokens."""

    site: uuid.UUID
    node: uuid.UUID
    device: uuid.UUID
    token: uuid.UUID
    day: str
    few: str
    many: str


def fleet_create() -> ApiFleet:
    """Tables, types and the whole fleet."""
    call_command("migrate", verbosity=0, interactive=False)
    call_command("sync_device_types", stdout=io.StringIO())
    with transaction.atomic():
        site = site_create(site_tag="pattern", name="Pattern", meta_data={"region": "north"})
        node = node_create(site=site, name="pattern", iothub="iothub-euw")
        patterns = [
            device_create(
                node=node,
                device_type=DeviceType.objects.filter(profile=TYPES[category])[0],
                device_tag=f"{category}_pattern",
                category=category,
                modbus_server_host="192.0.2.10",
                modbus_server_port=502,
                modbus_id=unit,
                peak_power_kw=100.0,
            )
            for unit, category in enumerate(CATEGORIES, start=1)
        ]
        sites = _stored(SITES, lambda number: row_copy(site, pk=uuid.uuid4(), site_tag=f"site_{number:05d}"))
        nodes = _stored(
            NODES,
            lambda number: row_copy(
                node,
                pk=uuid.uuid4(),
                site=sites[number % SITES],
                name=f"node-{number:05d}",
                manifest_version=0,
                last_reported=None,
            ),
        )
        per_node = DEVICES // NODES + 1

        def device(number: int) -> Device:
            owner = nodes[number % NODES]
            which = number // NODES
            pattern = patterns[which % len(patterns)]
            made: Device = row_copy(
                pattern,
                pk=uuid.uuid4(),
                site_id=owner.site_id,
                node=owner,
                device_tag=f"{pattern.category}_{number:06d}",
                config_id=uuid.uuid4(),
                control_point=f"modbus:{number}",
                value=float(number % 101),
            )
            return made

        devices = _stored(DEVICES, device)
        assert per_node * NODES >= DEVICES
        tokens = [
            token_issue(name="few", sites=sites[:FEW]),
            token_issue(name="many", sites=sites[:MANY]),
            *(
                token_issue(name=f"token {number}", sites=sites[number : number + 5])
                for number in range(TOKENS)
            ),
        ]
        _days(sites, nodes)
        _logs(sites, devices)
        for row in patterns:
            row.delete()
        node.documents.all().delete()
        node.delete()
        site.delete()
    tables_analyze()
    from sites_app.selectors import token_value  # noqa: PLC0415 - beside its only use

    return ApiFleet(
        site=sites[5].pk,
        node=nodes[5].pk,
        device=devices[5].pk,
        token=tokens[0].pk,
        day=str(datetime.now(UTC).date()),
        few=token_value(tokens[0]),
        many=token_value(tokens[1]),
    )


def _stored(count: int, make: Callable[[int], M]) -> list[M]:
    rows = [make(number) for number in range(count)]
    for start in range(0, count, AT_ONCE):
        copy_in(rows[start : start + AT_ONCE])
    return rows


def _days(sites: Sequence[Site], nodes: Sequence[Node]) -> None:
    """Three days of inverters for each site, which all nodes have."""
    slots = {f"{hour:02d}:{minute:02d}": 60.0 for hour in range(24) for minute in (0, 30)}
    today = datetime.now(UTC).date()
    made = [
        Schedule(
            site=site,
            category="inverter",
            valid_on=today + timedelta(days=day),
            schedule=slots,
            is_listed=True,
        )
        for day in range(DAYS)
        for site in sites
    ]
    _stored(len(made), made.__getitem__)
    now = datetime.now(UTC)
    by_site: dict[uuid.UUID, list[Schedule]] = {}
    for schedule in made:
        by_site.setdefault(schedule.site_id, []).append(schedule)
    documents = [
        NodeDocument(
            node=node,
            name=schedule.document_name,
            version=1,
            sha256="0" * 64,
            body={},
            published_epoch=1,
            published_version=1,
            status=DocumentStatus.APPLIED,
            answered_version=1,
            answered_at=now,
        )
        for node in nodes
        for schedule in by_site[node.site_id]
    ]
    _stored(len(documents), documents.__getitem__)


def _logs(sites: Sequence[Site], devices: Sequence[Device]) -> None:
    now = datetime.now(UTC)
    _stored(
        LOGS,
        lambda number: ControlLog(
            created_at=now - timedelta(seconds=number),
            site=sites[number % len(sites)],
            status=Status.SUCCESS,
            category="inverter",
            watchdog=bool(number % 2),
            value=50.0,
            result={"updated": {f"inverter_{number % 1000:06d}": None}, "not_updated": {}},
        ),
    )
    errors = [
        DeviceErrorLog(
            id=number + 1,
            timestamp=now - timedelta(minutes=number),
            site_id=devices[number].site_id,
            device=devices[number],
            device_tag=devices[number].device_tag,
            error="write_failed: no answer",
        )
        for number in range(ERRORS)
    ]
    copy_in(errors)


def main() -> None:
    """Make the fleet and print what `bench.api` needs to know of it."""
    print(json.dumps({key: str(value) for key, value in asdict(fleet_create()).items()}))
