"""A virtual clock over whole years of quarter hours: central and edge agree on each."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
import time_machine

from devices_app.models import Device
from edge.core.arbitration import DeviceState, decide
from edge.core.commands import Source
from edge.core.image import ProcessImage
from edge.core.instant import Instant
from edge.core.schedule import SLOT, slot_key, value_at
from edge.profiles.loader import load_all
from edge.profiles.reading import profile_to_builtins
from edge.runtime import config
from edge.wire import codec
from edge.wire.messages import Document, Manifest
from schedules_app.models import Schedule
from schedules_app.selectors import schedule_between, value_in_force
from schedules_app.services import schedules_roll
from schedules_app.window import DAYS_AHEAD
from sites_app.documents import manifest_for
from tests.factories import device_make, device_type_make, node_make, site_make

pytestmark = pytest.mark.django_db

ZONES = ["Europe/Amsterdam", "Australia/Lord_Howe", "America/St_Johns", "Pacific/Apia"]
DEFAULT = 100


def slots_on(day: date, *, shift: int) -> dict[str, float | None]:
    """A schedule unlike that of any day near it, with slots that are null and slots that are not there."""
    slots: dict[str, float | None] = {}
    for number in range(96):
        mark = day.toordinal() * 37 + number * 7 + shift
        if mark % 11 == 0:
            continue
        slots[f"{number // 4:02d}:{number % 4 * 15:02d}"] = None if mark % 13 == 0 else mark % 101
    return slots


def node_documents(node):
    """What the node has on its disk once it has taken its retained messages, from their bytes."""
    manifest = codec.decode(Manifest, codec.encode(manifest_for(node)))
    documents = {}
    for row in node.documents.filter(name__in=manifest.docs):
        sent = Document(epoch=node.epoch, version=row.version, sha256=row.sha256, body=row.body)
        document = codec.decode(Document, codec.encode(sent))
        assert codec.is_intact(document)
        assert manifest.docs[row.name].sha256 == document.sha256
        documents[row.name] = document
    return documents


@pytest.mark.parametrize(("year", "zones", "quarter_hours"), [(2027, ["UTC"], 35_040), (2028, ZONES, 35_136)])
def test_central_and_edge_agree_on_every_quarter_hour_of_the_year(year, zones, quarter_hours):
    profile = load_all()["generic_modbus"]
    device_type = device_type_make(profile="generic_modbus", profile_body=profile_to_builtins(profile))
    first, end = date(year, 1, 1), date(year + 1, 1, 1)
    days = [first + timedelta(days=number) for number in range((end - first).days)]
    nodes = {}
    for shift, zone in enumerate(zones):
        site = site_make(time_zone=zone)
        nodes[site] = device_make(node=node_make(site=site), device_type=device_type).node
        Schedule.objects.bulk_create(
            Schedule(site=site, category="inverter", valid_on=day, schedule=slots_on(day, shift=shift))
            for day in days
        )
    seen = dict.fromkeys(nodes, 0)
    # The beat is away for weeks, and comes back before what it has put down is used up.
    for start in range(0, len(days), DAYS_AHEAD):
        stretch = days[start : start + DAYS_AHEAD]
        with time_machine.travel(datetime.combine(stretch[0], datetime.min.time(), tzinfo=UTC), tick=False):
            schedules_roll()
        for site, node in nodes.items():
            central = schedule_between(site=site, category="inverter", first=stretch[0], last=stretch[-1])
            seen[site] += agreed_slots(node_documents(node), central, stretch)
    assert set(seen.values()) == {quarter_hours}
    for site in nodes:
        for day in (first, date(year, 3, 28), date(year, 10, 31), date(year, 12, 31), days[59]):
            at = datetime.combine(day, datetime.min.time(), tzinfo=UTC) + timedelta(hours=23, minutes=59)
            shift = list(nodes).index(site)
            assert value_in_force(site=site, category="inverter", at=at) == slots_on(day, shift=shift).get(
                "23:45"
            )
    assert Device.objects.count() == len(zones)


def agreed_slots(documents, central, days) -> int:
    """Have the edge decide in each slot of these days, at its first or its last moment; how many slots."""
    (planned,) = config.plan(documents["config"].body).devices.values()
    schedule = config.schedules(documents)["inverter"]
    state = DeviceState(planned.settings, schedule=schedule)
    moment = datetime.combine(days[0], datetime.min.time(), tzinfo=UTC)
    slots = 0
    while moment.date() <= days[-1]:
        scheduled = value_at(central, moment)
        expected = (DEFAULT, Source.DEFAULT) if scheduled is None else (scheduled, Source.SCHEDULE)
        # Either of them, and the other one the day after.
        is_first = (slots + slots // 96) % 2 == 0
        utc = moment if is_first else moment + SLOT - timedelta(microseconds=1)
        state, decision = decide(state, ProcessImage(), Instant(utc, utc.timestamp()))
        assert (decision.value, decision.source) == expected, (utc, slot_key(utc))
        assert decision.until_utc == moment + SLOT
        moment += SLOT
        slots += 1
    return slots
