"""What `bench.sync` puts into the database: sites of one node and two devices, and a week of schedules.

Import it only where Django is set up. In bulk, for the services take minutes for ten thousand sites; rows are
copies of what the services made for the first site.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from django.core.management import call_command
from django.db import connection, models, transaction

from bench.sync_servers import TENANT, NodeIdentity
from devices_app.config import CONFIG, node_config_render
from devices_app.models import Device, DeviceType
from devices_app.services import device_create
from edge.wire import codec
from edge.wire.codec import body_digest
from edge.wire.messages import Manifest, ManifestEntry
from edge.wire.topics import NodeTopics
from schedules_app.models import Schedule
from sites_app.documents import nodes_sync_on_commit
from sites_app.models import Node, NodeDocument, Site
from sites_app.services import node_create, site_create

CATEGORIES = {"inverter": "generic_modbus", "battery": "generic_modbus_battery"}
DAYS = 7
SLOTS = tuple(f"{hour:02d}:{minute:02d}" for hour in range(24) for minute in (0, 15, 30, 45))
# The broker keeps a schedule until two days after its own (design, section 4).
KEPT_AFTER = timedelta(days=3)
AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class Place:
    """One site with its node."""

    site_id: uuid.UUID
    node_id: uuid.UUID
    config: dict[str, Any]


def device_tag(number: int) -> str:
    return f"inverter_{number:05d}"


def fleet_create(nodes: Sequence[NodeIdentity]) -> list[Place]:
    """Tables, device types, and for each of these nodes a site, a node and two devices; no documents yet."""
    call_command("migrate", verbosity=0, interactive=False)
    call_command("sync_device_types", stdout=io.StringIO())
    types = {name: DeviceType.objects.get(profile=profile) for name, profile in CATEGORIES.items()}
    with transaction.atomic():
        site = site_create(tenant_tag=TENANT, site_tag="pattern", name="Pattern")
        node = node_create(site=site, name="pattern")
        devices = [
            device_create(
                node=node,
                device_type=types[category],
                device_tag=category,
                modbus_server_host="192.0.2.10",
                modbus_server_port=502,
                modbus_id=unit,
                peak_power_kw=100.0,
            )
            for unit, category in enumerate(CATEGORIES, start=1)
        ]
        config = node_config_render(node)
        places = _copies(nodes, site, node, devices, config)
        for device in devices:
            device.delete()
        node.delete()
        site.delete()
    return places


def _copies(
    nodes: Sequence[NodeIdentity], site: Site, node: Node, devices: list[Device], config: dict[str, Any]
) -> list[Place]:
    places: list[Place] = []
    sites: list[Site] = []
    made_nodes: list[Node] = []
    made_devices: list[Device] = []
    for number, identity in enumerate(nodes):
        own_site = row_copy(site, pk=uuid.uuid4(), site_tag=f"site_{number:05d}")
        own_node = row_copy(
            node,
            pk=uuid.UUID(identity.id),
            site=own_site,
            name=f"node-{number:05d}",
            manifest_version=0,
        )
        body = copy.deepcopy(config)
        body["site"] |= {"id": str(own_site.pk), "tag": own_site.site_tag}
        for device in devices:
            tag = identity.device if device.category == "inverter" else f"{device.category}_{number:05d}"
            made = row_copy(
                device, pk=uuid.uuid4(), site=own_site, node=own_node, device_tag=tag, config_id=uuid.uuid4()
            )
            made_devices.append(made)
            said = next(each for each in body["devices"] if each["tag"] == device.device_tag)
            said |= {"id": str(made.config_id), "tag": tag}
        body["devices"].sort(key=lambda each: str(each["tag"]))
        sites.append(own_site)
        made_nodes.append(own_node)
        places.append(Place(site_id=own_site.pk, node_id=own_node.pk, config=body))
    Site.objects.bulk_create(sites, batch_size=AT_ONCE)
    Node.objects.bulk_create(made_nodes, batch_size=AT_ONCE)
    Device.objects.bulk_create(made_devices, batch_size=AT_ONCE)
    return places


def row_copy(row: Any, **changes: Any) -> Any:
    """A row like this one, not stored yet."""
    made = copy.copy(row)
    made._state = copy.copy(row._state)  # noqa: SLF001 - a row of its own, not the one it was copied from
    made._state.adding = True  # noqa: SLF001
    made._state.fields_cache = dict(row._state.fields_cache)  # noqa: SLF001
    for field, value in changes.items():
        setattr(made, field, value)
    return made


def first_day() -> date:
    """Tomorrow, so that no day ends while the benchmark runs."""
    return datetime.now(UTC).date() + timedelta(days=1)


def slots_draw(random_source: random.Random) -> dict[str, float | None]:
    return {slot: float(random_source.randrange(101)) for slot in SLOTS}


def bodies(place: Place, *, first: date) -> Iterator[tuple[str, dict[str, Any], Schedule | None]]:
    """The documents of a node, name and body, each with its schedule; the same ones each time."""
    draw = random.Random(place.node_id.int)
    yield CONFIG, place.config, None
    for day, category in itertools.product(range(DAYS), CATEGORIES):
        on = first + timedelta(days=day)
        slots = slots_draw(draw)
        body = {"date": str(on), "category": category, "slots": slots}
        schedule = Schedule(site_id=place.site_id, category=category, valid_on=on, schedule=slots)
        yield schedule.document_name, body, schedule


def messages(place: Place, *, first: date) -> list[tuple[bytes, bytes]]:
    """What the broker holds for this node when all is published: topic and payload, the manifest last."""
    topics = NodeTopics(TENANT, str(place.node_id))
    found = []
    docs: dict[str, ManifestEntry] = {}
    for name, body, _ in bodies(place, first=first):
        document = codec.document(body, epoch=1, version=1)
        docs[name] = ManifestEntry(v=document.version, sha256=document.sha256)
        found.append((topics.document(name).encode(), codec.encode(document)))
    manifest = Manifest(epoch=1, version=1, docs=docs)
    found.append((topics.document("manifest").encode(), codec.encode(manifest)))
    return found


def documents_create(places: Sequence[Place], *, first: date) -> None:
    """Put down every schedule and every document, version 1, and have the nodes synchronised on commit.

    The caller's transaction: its commit is the moment from which a first synchronisation counts.
    """
    now = datetime.now(UTC)
    for start in range(0, len(places), AT_ONCE // 10):
        schedules: list[Schedule] = []
        documents: list[NodeDocument] = []
        for place in places[start : start + AT_ONCE // 10]:
            for name, body, schedule in bodies(place, first=first):
                expires_at = None
                if schedule is not None:
                    schedules.append(schedule)
                    expires_at = datetime.combine(schedule.valid_on, time(), UTC) + KEPT_AFTER
                documents.append(
                    NodeDocument(
                        node_id=place.node_id,
                        name=name,
                        version=1,
                        sha256=body_digest(body),
                        body=body,
                        changed_at=now,
                        expires_at=expires_at,
                    )
                )
        copy_in(schedules)
        copy_in(documents)
    nodes = Node.objects.filter(pk__in=[place.node_id for place in places])
    # In the order in which everybody locks them: what they report goes on.
    list(nodes.select_for_update(no_key=True).order_by("pk").values_list("pk"))
    nodes.update(manifest_version=1, out_of_sync_since=now)
    nodes_sync_on_commit([place.node_id for place in places])


def copy_in(rows: Sequence[models.Model]) -> None:
    """Store these rows, all of one model, by COPY: Django's bulk_create takes four times as long."""
    options = rows[0]._meta  # noqa: SLF001 - Django's documented name for it
    filled = [field for field in options.concrete_fields if getattr(rows[0], field.attname) is not None]
    is_json = [(field.attname, isinstance(field, models.JSONField)) for field in filled]
    columns = ", ".join(connection.ops.quote_name(str(field.column)) for field in filled)
    table = connection.ops.quote_name(options.db_table)
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copying:
        for row in rows:
            values = ((getattr(row, name), as_text) for name, as_text in is_json)
            copying.write_row([json.dumps(value) if as_text else value for value, as_text in values])


def tables_analyze() -> None:
    """As autovacuum would within a minute: plans made for empty tables are not what is measured."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
