"""`python -m smartgrid.demo.seed`: tables, fleet, issuer and tokens of the demo. May run any number of times.

What the demo's users have changed since stays as they left it. Only the ports of the simulated devices and
the sites' time limit follow the present start.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import django
from django.core.management import call_command

from smartgrid.demo.fleet import (
    DEVICES,
    GUIDE_DEVICE_TYPES,
    IOTHUB,
    LOOPS,
    SITE_A,
    SITES,
    TENANT,
    DemoDevice,
    DemoLoop,
    DemoSite,
)
from smartgrid.demo.services import ADMIN_USERNAME
from smartgrid.demo.state import read_json, write_private
from smartgrid.env import env_int, env_secret

if TYPE_CHECKING:
    from sites_app.models import Node

SITE_TOKEN_ID = uuid.UUID("d8e9f01a-2b3c-4d5e-6f7a-8b9c0d1e2f3a")
SITE_TOKEN_NAME = "Production Site Token"
CLIENT_NAME = "demo"


def demo_fleet_ensure(*, time_limit_s: int, ports: dict[str, int], devices_password: str) -> dict[str, str]:
    """See that the demo's sites, nodes, devices and loops exist; the protocol of each profile in use.

    Device types come from the profiles; those which the guide names have the guide's ids.
    """
    from devices_app.models import DeviceType  # noqa: PLC0415 - models need Django set up

    _guide_device_types_ensure()
    call_command("sync_device_types", verbosity=0)
    for site in SITES:
        node = _site_ensure(site, time_limit_s=time_limit_s)
        for device in DEVICES:
            if device.site is site:
                _device_ensure(device, node=node, address=device.address(ports, password=devices_password))
    for loop in LOOPS:
        _loop_ensure(loop)
    return dict(DeviceType.objects.values_list("profile", "protocol"))


def _guide_device_types_ensure() -> None:
    from devices_app.models import DeviceType  # noqa: PLC0415
    from devices_app.services import device_type_create  # noqa: PLC0415
    from edge.profiles.loader import load_all  # noqa: PLC0415

    profiles = {profile.name: profile for profile in load_all().values()}
    for name, guide_id in GUIDE_DEVICE_TYPES.items():
        if not DeviceType.objects.filter(profile=name).exists():
            profile = profiles[name]
            # The rest of its fields come with the synchronisation, as for every other type.
            device_type_create(
                id=uuid.UUID(guide_id),
                name=profile.title,
                profile=name,
                category=str(profile.category),
                protocol=str(profile.protocol),
            )


def _site_ensure(site: DemoSite, *, time_limit_s: int) -> Node:
    from sites_app.models import Node, Site  # noqa: PLC0415
    from sites_app.services import node_create, site_create, site_update  # noqa: PLC0415

    row = Site.objects.filter(pk=site.id).first()
    if row is None:
        row = site_create(
            id=uuid.UUID(site.id),
            tenant_tag=TENANT,
            site_tag=site.tag,
            name=site.name,
            curtailment_time_limit=time_limit_s,
            time_zone="Europe/Amsterdam",
        )
    elif row.curtailment_time_limit != time_limit_s:
        row = site_update(site=row, curtailment_time_limit=time_limit_s)
    node = Node.objects.filter(pk=site.node_id).first()
    return node or node_create(site=row, id=uuid.UUID(site.node_id), name=site.node_name, iothub=IOTHUB)


def _device_ensure(device: DemoDevice, *, node: Node, address: dict[str, Any]) -> None:
    from devices_app.models import Device, DeviceType, RetiringDevice  # noqa: PLC0415
    from devices_app.retirement import device_abandon  # noqa: PLC0415
    from devices_app.services import device_create, device_update  # noqa: PLC0415

    row = Device.objects.filter(pk=device.id).first()
    if row is None:
        owner = Device.objects.filter(site=node.site, device_tag=device.controlled_by).first()
        device_create(
            node=node,
            device_type=DeviceType.objects.get(profile=device.profile),
            id=uuid.UUID(device.id),
            device_tag=device.tag,
            category=device.category,
            default_value=device.default_value,
            peak_power_kw=device.nameplate_kw,
            measured_only=device.measured_only,
            controlled_by=owner,
            **address,
        )
        return
    # A password is drawn once, and what devices say for themselves may have been changed since.
    where = {name: value for name, value in address.items() if name not in ("password", "parameters")}
    if any(getattr(row, name) != value for name, value in where.items()):
        device_update(device=row, **where)
        for left in RetiringDevice.objects.filter(device=row, abandoned_at=None):
            device_abandon(
                retiring=left,
                tag=left.device_tag,
                by="demo",
                why="the simulated device ended with its process",
            )


def _loop_ensure(loop: DemoLoop) -> None:
    from devices_app.loops import loop_create  # noqa: PLC0415
    from devices_app.models import ClosedLoop, Device  # noqa: PLC0415
    from sites_app.models import Site  # noqa: PLC0415

    if ClosedLoop.objects.filter(pk=loop.id).exists():
        return
    site = Site.objects.get(pk=loop.site.id)
    here = Device.objects.filter(site=site)
    loop_create(
        id=uuid.UUID(loop.id),
        site=site,
        loop_tag=loop.tag,
        meter=here.get(device_tag=loop.meter),
        members=list(here.filter(device_tag__in=loop.members)),
        setpoint_kw=loop.setpoint_kw,
        by="demo",
    )


def demo_access_ensure(
    *, key: Path, client_id: str, client_secret: str, site_token: str, admin_password: str
) -> None:
    """See that the issuer has its key and the demo's client, and that token and console user exist."""
    from django.contrib.auth.models import User  # noqa: PLC0415

    from sites_app.models import ManagementToken, Site  # noqa: PLC0415
    from sites_app.services import token_issue  # noqa: PLC0415
    from smartgrid.issuer import issuer_client_create  # noqa: PLC0415
    from smartgrid.issuer_keys import issuer_key_create  # noqa: PLC0415

    issuer_key_create(key)
    issuer_client_create(name=CLIENT_NAME, client_id=client_id, client_secret=client_secret)
    if not ManagementToken.objects.filter(pk=SITE_TOKEN_ID).exists():
        token_issue(
            token_id=SITE_TOKEN_ID,
            name=SITE_TOKEN_NAME,
            sites=[Site.objects.get(pk=SITE_A.id)],
            value=site_token,
        )
    if not User.objects.filter(username=ADMIN_USERNAME).exists():
        User.objects.create_superuser(ADMIN_USERNAME, password=admin_password)


def main() -> None:
    django.setup()
    var = Path(os.environ["SGM_VAR"])
    call_command("migrate", verbosity=0, interactive=False)
    # The supervisor has chosen the ports before it started us; they are read, not chosen again.
    protocols = demo_fleet_ensure(
        time_limit_s=env_int("SGM_TIME_LIMIT", default=60, minimum=1, maximum=3600),
        ports=read_json(var / "ports.json"),
        devices_password=env_secret("SGM_DEMO_DEVICES_PASSWORD"),
    )
    demo_access_ensure(
        key=Path(os.environ["SGM_ISSUER_KEY_FILE"]),
        client_id=env_secret("SGM_DEMO_CLIENT_ID"),
        client_secret=env_secret("SGM_DEMO_CLIENT_SECRET"),
        site_token=env_secret("SGM_DEMO_SITE_TOKEN"),
        admin_password=env_secret("SGM_DEMO_ADMIN_PASSWORD"),
    )
    write_private(var / "seeded.json", json.dumps({"protocols": protocols}))


if __name__ == "__main__":
    main()
