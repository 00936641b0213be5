"""What tests of the fleet and of a site begin with: people who look, devices that were commanded and measured."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone

from control_app.models import CommandState, ControlCommand, ControlRequest, Kind, Status
from devices_app import telemetry
from devices_app.models import Device
from devices_app.telemetry import ReceivedReadings, readings_record
from edge.wire.messages import TelemetryPoint
from sites_app.models import Site, SiteScope
from tests.control_app.conftest import live_forget


@pytest.fixture
def no_redis(settings) -> Iterator[None]:
    """Nobody listens there."""
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    live_forget()
    yield
    live_forget()


@pytest.fixture(autouse=True)
def process() -> None:
    """As a process that has just begun."""
    telemetry._remembered.clear()
    telemetry._days_there.clear()
    telemetry._warned.clear()


def client_as(role: str, *sites: Site) -> Client:
    """Somebody of this role who sees these sites, and no others."""
    user = User.objects.create_user(f"{role.lower()}-{User.objects.count()}", is_staff=True)
    user.groups.add(Group.objects.get(name=role))
    SiteScope.objects.create(user=user).sites.set(sites)
    client = Client()
    client.force_login(user)
    return client


def client_of_all_sites(role: str) -> Client:
    user = User.objects.create_user(f"{role.lower()}-{User.objects.count()}", is_staff=True)
    user.groups.add(Group.objects.get(name=role))
    SiteScope.objects.create(user=user, all_sites=True)
    client = Client()
    client.force_login(user)
    return client


def commanded(
    *devices: Device,
    value: float | None = 40,
    at: datetime | None = None,
    holds_s: float | None = 55,
    code: str | None = None,
) -> ControlCommand:
    """A command that these devices of one node confirmed, or refused with `code`; `value` None: a release."""
    asked = at or timezone.now()
    node = devices[0].node
    request = ControlRequest.objects.create(
        created_at=asked,
        kind=Kind.CURTAIL if value is not None else Kind.RELEASE,
        site=node.site,
        category=devices[0].category,
        value=value,
        client_id="test-client",
        deadline=asked + timedelta(seconds=8),
        status=Status.SUCCESS,
        result={"updated": {device.device_tag: None for device in devices}, "not_updated": {}},
    )
    result = {"value": value, "holds_s": holds_s, "code": code}
    told = {key: given for key, given in result.items() if given is not None}
    command = ControlCommand.objects.create(
        request=request,
        node=node,
        epoch=node.epoch,
        values={device.device_tag: value for device in devices},
        deadline=request.deadline,
        state=CommandState.DONE,
        result={device.device_tag: told for device in devices},
    )
    if code is None and value is not None:
        for device in devices:
            device.value, device.value_sequence = value, command.sequence
            device.save(update_fields=["value", "value_sequence"])
    return command


def measured(device: Device, *readings: tuple[datetime, float]) -> None:
    """Powers of a device, kW towards the grid, as its node sent them."""
    points = [
        TelemetryPoint(
            t=at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            key="P_kW",
            value=kw,
            unit="kW",
            device=device.device_tag,
        )
        for at, kw in readings
    ]
    readings_record([ReceivedReadings(str(device.node_id), points, max(at for at, _ in readings))])
