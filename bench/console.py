"""`make bench-console`: how long the server takes for the console's fleet page with 200 sites.

Every device was measured just now, a fifth of the sites are held by direct requests, some have alarms and
silent nodes. The page and its live parts are asked for one after the other, in this process, and go through
all of Django as a browser's request does; PostgreSQL and Redis are real ones beside it.
"""

from __future__ import annotations

import os
import statistics
import time
import uuid
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

from bench.record import Figure, Run, percentile, spread
from tests.servers import postgres_server, redis_server

SITES = 200
DEVICES_A_SITE = 10
HELD_EVERY = 5
# Control requests that are over, as a month of a fleet leaves behind.
OLD_COMMANDS = 20_000
COUNT, WARM_UP = 40, 5
PAGE_P95_MS = 300.0
ASKED = {
    "fleet_page": "/admin/",
    "part_overview": "/admin/?part=overview",
    "part_attention": "/admin/?part=attention",
    "part_sites": "/admin/?part=sites",
}


def main() -> None:
    with ExitStack() as stack:
        os.environ["SGM_DATABASE_URL"] = stack.enter_context(postgres_server())
        os.environ["SGM_REDIS_URL"] = stack.enter_context(redis_server())
        os.environ["DJANGO_SETTINGS_MODULE"] = "smartgrid.settings"
        os.environ["SGM_SECRET_KEY"] = "only for this benchmark, and long enough to keep the checks content"
        os.environ["SGM_TOKEN_HASH_KEY"] = "only for this benchmark"
        os.environ["SGM_ALLOWED_HOSTS"] = "testserver"
        os.environ["SGM_LOG_LEVEL"] = "ERROR"
        import django  # noqa: PLC0415 - settings must stand first
        from django.core.management import call_command  # noqa: PLC0415

        django.setup()
        call_command("migrate", verbosity=0)
        print("Making the fleet ...", flush=True)
        _fleet()
        _measure()


def _measure() -> None:
    from django.contrib.auth.models import Group, User  # noqa: PLC0415
    from django.test import Client  # noqa: PLC0415

    from sites_app.models import SiteScope  # noqa: PLC0415

    run = Run(name="console", broker="none", database="PostgreSQL")
    run.notes["fleet"] = (
        f"{SITES} sites, {SITES * DEVICES_A_SITE:,} devices, {OLD_COMMANDS:,} commands that are over"
    )
    user = User.objects.create_user("operator", is_staff=True)
    user.groups.add(Group.objects.get(name="Operator"))
    SiteScope.objects.create(user=user, all_sites=True)
    client = Client()
    client.force_login(user)
    for name, address in ASKED.items():
        took: list[float] = []
        used: list[float] = []
        for number in range(WARM_UP + COUNT):
            _held()
            began, used_before = time.perf_counter(), time.process_time()
            response = client.get(address)
            if number >= WARM_UP:
                took.append((time.perf_counter() - began) * 1e3)
                used.append((time.process_time() - used_before) * 1e3)
            assert response.status_code == 200, response.status_code
        p95 = percentile(took, 0.95)
        is_page = name == "fleet_page"
        if is_page:
            assert response.content.count(b'<th scope="row">') == SITES
        run.figures[f"{name}_p95_ms"] = Figure(
            value=round(p95, 1),
            unit="ms",
            n=COUNT,
            goal=f"< {PAGE_P95_MS:g}" if is_page else None,
            met=p95 < PAGE_P95_MS if is_page else None,
        )
        # Whoever else uses the machine adds nothing to this one.
        run.figures[f"{name}_cpu_ms"] = Figure(value=round(statistics.median(used), 1), unit="ms", n=COUNT)
        run.notes[name] = spread(took)
        run.notes[f"{name}_bytes"] = len(response.content)
    run.write()
    run.print_table()


def _held() -> None:
    """As long as it takes to measure, the holds go on."""
    from control_app.models import ControlRequest  # noqa: PLC0415

    ControlRequest.objects.filter(client_id="held").update(created_at=datetime.now(UTC))


def _fleet() -> None:
    from bench.sync_database import copy_in, row_copy, tables_analyze  # noqa: PLC0415
    from control_app.models import CommandState, ControlCommand, ControlRequest, Status  # noqa: PLC0415
    from devices_app.models import Device  # noqa: PLC0415
    from devices_app.telemetry import STAMP, latest_key  # noqa: PLC0415
    from sites_app.models import Alarm, AlarmSeverity, Node, Site  # noqa: PLC0415
    from smartgrid import live  # noqa: PLC0415
    from tests.factories import device_make, node_make, site_make  # noqa: PLC0415

    site, now = site_make(curtailment_time_limit=600), datetime.now(UTC)
    node = node_make(site=site)
    device = device_make(node=node, peak_power_kw=100)
    sites = [row_copy(site, pk=uuid.uuid4(), site_tag=f"park_{number:03}") for number in range(SITES)]
    nodes = [
        row_copy(node, pk=uuid.uuid4(), site=own, name=f"node-{number:03}", online=number % 20 != 0)
        for number, own in enumerate(sites)
    ]
    requests: list[ControlRequest] = []
    commands: list[ControlCommand] = []
    devices: list[Device] = []

    def command(number: int, *, client_id: str, at: datetime, tags: list[str]) -> None:
        own = nodes[number % SITES]
        request = ControlRequest(
            created_at=at,
            site_id=own.site_id,
            category="inverter",
            value=40,
            client_id=client_id,
            deadline=at + timedelta(seconds=8),
            status=Status.SUCCESS,
            result={"updated": dict.fromkeys(tags), "not_updated": {}},
        )
        requests.append(request)
        commands.append(
            ControlCommand(
                sequence=len(commands) + 1,
                request=request,
                node=own,
                epoch=1,
                values=dict.fromkeys(tags, 40.0),
                deadline=request.deadline,
                state=CommandState.DONE,
                result={tag: {"value": 40.0, "holds_s": 599.0} for tag in tags},
            )
        )

    tags = [f"INV_{place:02}" for place in range(DEVICES_A_SITE)]
    for number in range(OLD_COMMANDS):
        command(number, client_id="old", at=now - timedelta(days=1, minutes=number), tags=tags)
    for number in range(SITES):
        is_held = number % HELD_EVERY == 0
        if is_held:
            command(number, client_id="held", at=now, tags=tags)
        sequence = len(commands) if is_held else number + 1
        devices += [
            row_copy(
                device,
                pk=uuid.uuid4(),
                site_id=sites[number].pk,
                node=nodes[number],
                device_tag=tag,
                config_id=uuid.uuid4(),
                control_point=f"modbus:{number}:{tag}",
                value=40.0,
                value_sequence=sequence,
            )
            for tag in tags
        ]
    alarms = [
        Alarm(code="not_followed", severity=AlarmSeverity.ERROR, site=own, subject=tags[0])
        for own in sites[::7]
    ]
    device.delete()
    node.delete()
    site.delete()
    Site.objects.bulk_create(sites)
    Node.objects.bulk_create(nodes)
    copy_in(requests)
    copy_in(commands)
    Device.objects.bulk_create(devices)
    Alarm.objects.bulk_create(alarms)
    tables_analyze()
    stamp = now.strftime(STAMP)
    live.hashes_newest_write(
        {
            latest_key(own.pk): {
                f"{one.pk}/P_kW": (stamp, '{"value": 38.25, "unit": "kW"}')
                for one in devices
                if one.site_id == own.pk
            }
            for own in sites
        },
        expires_s=3600,
    )


if __name__ == "__main__":
    main()
