"""The smallest valid objects, made by the services; and the story most tests begin with."""

from __future__ import annotations

import itertools
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Unpack

from django.utils import timezone
from rest_framework.test import APIClient

from control_app.models import (
    CommandState,
    ControlCommand,
    ControlLog,
    ControlRequest,
    DeviceErrorLog,
    Status,
)
from devices_app.loops import LoopFields, loop_create
from devices_app.models import ClosedLoop, Device, DeviceType
from devices_app.services import DeviceFields, DeviceTypeFields, device_create, device_type_create
from edge.profiles.loader import load_bodies
from edge.wire.messages import DIGEST_LENGTH, AppliedDocument, Reported
from sites_app.documents import manifest_for
from sites_app.models import Alarm, AlarmSeverity, ManagementToken, Node, Site
from sites_app.reports import ReceivedReport, RecordedReport, reports_record
from sites_app.services import (
    NodeFields,
    SiteFields,
    node_create,
    node_presence_record,
    site_create,
    token_issue,
)
from smartgrid.api.principal import ApiClient, Principal

_numbers = itertools.count(1)

ROOT = Principal(client_id="test-client", token_id=None, is_root=True)


def site_make(**fields: Unpack[SiteFields]) -> Site:
    number = next(_numbers)
    given: SiteFields = {"site_tag": f"site_{number}", "name": f"Site {number}"}
    given.update(fields)
    return site_create(**given)


def node_make(*, site: Site | None = None, **fields: Unpack[NodeFields]) -> Node:
    given: NodeFields = {"name": f"node-{next(_numbers)}"}
    given.update(fields)
    return node_create(site=site or site_make(), **given)


def profile_body_make(*, name: str = "test_inverter", limit: str | None = "limit") -> dict[str, Any]:
    """A whole profile: its limit at register 32, under the name `limit`; None: it is only measured."""
    fact = {"source": "test", "confidence": "unverified", "type": "u16"}
    body: dict[str, Any] = {
        "name": name,
        "title": f"Test {name}",
        "maker": "Test",
        "model": name,
        "category": "inverter" if limit else "meter",
        "protocol": "modbus_tcp",
        "verified_on_hardware": False,
        "source": "test",
        "points": {"power": {"name": "W", "address": 51, "unit": "kW", **fact}},
        "telemetry": {"P_kW": "power"},
    }
    if limit is not None:
        body["value_kind"] = "active_power_limit_pct"
        body["points"][limit] = {"name": "WMaxLimPct", "address": 32, "access": "read_write", **fact}
        body["limit"] = {
            "register": limit,
            "write_class": "volatile",
            "tolerance": 0.5,
            "set": [{"point": limit, "value": "$value"}],
            "readback": limit,
        }
    return body


def device_type_make(
    *, name: str | None = None, profile: str = "test_inverter", **fields: Unpack[DeviceTypeFields]
) -> DeviceType:
    given: DeviceTypeFields = {
        "category": "inverter",
        "protocol": "modbus_tcp",
        "value_kind": "active_power_limit_pct",
        "profile_body": profile_body_make(name=profile),
    }
    given.update(fields)
    return device_type_create(name=name or f"Type {next(_numbers)}", profile=profile, **given)


def meter_type_make() -> DeviceType:
    return device_type_make(
        profile="test_meter",
        category="meter",
        value_kind=None,
        profile_body=profile_body_make(name="test_meter", limit=None),
    )


def proxy_type_make() -> DeviceType:
    """The type of all proxies: its devices are nothing but those which they control."""
    known = DeviceType.objects.filter(profile="proxy_device").first()
    return known or device_type_make(
        profile="proxy_device",
        category="park",
        protocol="proxy",
        profile_body=load_bodies()["proxy_device"],
    )


def rtu_type_make(**changes: Any) -> DeviceType:
    """Registers over TCP that can be reached over a line too."""
    body = {**profile_body_make(name="both_ways"), "also": ["modbus_rtu"], **changes}
    return device_type_make(profile="both_ways", profile_body=body)


def url_type_make(protocol: str) -> DeviceType:
    fact = {"source": "test", "confidence": "unverified"}
    points: dict[str, Any] = {
        "mqtt": {"name": "power", "topic": "power", "unit": "kW", **fact},
        "http": {"name": "power", "read_path": "/power", "unit": "kW", **fact},
    }
    body = {
        **profile_body_make(name=protocol, limit=None),
        "protocol": protocol,
        "points": {"power": points[protocol]},
    }
    return device_type_make(
        profile=protocol, protocol=protocol, category="meter", value_kind=None, profile_body=body
    )


def device_make(
    *,
    node: Node | None = None,
    device_type: DeviceType | None = None,
    device_tag: str | None = None,
    **fields: Unpack[DeviceFields],
) -> Device:
    """A device at an address of its own; the nodes of a test share one type unless it gives others."""
    number = next(_numbers)
    given: DeviceFields = {
        "modbus_server_host": "192.0.2.1",
        "modbus_server_port": 10_000 + number,
        "modbus_id": 1,
    }
    given.update(fields)
    return device_create(
        node=node or node_make(),
        device_type=device_type
        or DeviceType.objects.filter(category="inverter").first()
        or device_type_make(),
        device_tag=device_tag or f"DEVICE_{number:02}",
        **given,
    )


def meter_make(*, node: Node | None = None, device_tag: str | None = None) -> Device:
    """A meter of its own type, shared by a test's meters."""
    kind = DeviceType.objects.filter(profile="test_meter").first() or meter_type_make()
    return device_make(node=node, device_type=kind, device_tag=device_tag)


def loop_make(
    *, meter: Device | None = None, loop_tag: str | None = None, **fields: Unpack[LoopFields]
) -> ClosedLoop:
    """A loop of this meter; with a member of 60 kW at its node unless members or a category are given."""
    meter = meter or meter_make()
    if "members" not in fields and "category" not in fields:
        fields["members"] = [device_make(node=meter.node, peak_power_kw=60)]
    return loop_create(
        site=meter.site, loop_tag=loop_tag or f"LOOP_{next(_numbers):02}", meter=meter, by="test", **fields
    )


def node_online(node: Node, *, session: str = "session-1", boot: str = "boot-1") -> None:
    """Let central have heard the node's birth."""
    node_presence_record(node_id=node.pk, online=True, session=session, boot=boot)


def report_make(node: Node, **fields: Any) -> Reported:
    """What a node says in the session of `node_online` that has applied all it should have."""
    manifest = manifest_for(node)
    given: dict[str, Any] = {
        "session": "session-1",
        "boot": "boot-1",
        "store": "store-1",
        "epoch": manifest.epoch,
        "manifest_version": manifest.version,
        "at": "2026-11-23T00:00:00Z",
        "clock": "trusted",
        "documents": {
            name: AppliedDocument(v=entry.v, status="applied", digest=entry.sha256[:DIGEST_LENGTH])
            for name, entry in manifest.docs.items()
        },
    }
    given.update(fields)
    return Reported(**given)


def report_record(
    node: Node, reported: Reported | None = None, *, at: datetime | None = None, retained: bool = False
) -> list[RecordedReport]:
    """Let central hear a report of this node: that it has all it should have, unless another is given."""
    said = reported or report_make(node)
    return reports_record([ReceivedReport(str(node.pk), said, at or timezone.now(), retained)])


def token_make(*sites: Site, name: str | None = None) -> ManagementToken:
    return token_issue(name=name or f"Token {next(_numbers)}", sites=sites)


def principal_of_token(token: ManagementToken) -> Principal:
    return Principal(client_id="test-client", token_id=token.pk, is_root=False)


def control_request_make(
    *,
    site: Site | None = None,
    value: float = 50,
    deadline_in_s: float = 8,
    result: dict[str, Any] | None = None,
    status: Status | None = None,
) -> ControlRequest:
    """A request under way, or closed with this result and status."""
    deadline = timezone.now() + timedelta(seconds=deadline_in_s)
    return ControlRequest.objects.create(
        created_at=deadline - timedelta(seconds=8),
        site=site or site_make(),
        category="inverter",
        value=value,
        client_id="test-client",
        deadline=deadline,
        status=status,
        result=result,
    )


def control_command_make(
    *devices: Device,
    request: ControlRequest | None = None,
    state: CommandState = CommandState.SENT,
    value: float = 50,
) -> ControlCommand:
    """A command to these devices, which are of one node."""
    node = devices[0].node
    request = request or control_request_make(site=node.site, value=value)
    return ControlCommand.objects.create(
        request=request,
        node=node,
        epoch=node.epoch,
        values={device.device_tag: value for device in devices},
        deadline=request.deadline,
        state=state,
    )


def control_log_make(
    *, site: Site, at: datetime | None = None, value: float = 50, **fields: Any
) -> ControlLog:
    given: dict[str, Any] = {
        "status": Status.SUCCESS,
        "category": "inverter",
        "result": {"updated": {"SMA_STP60_01": None}, "not_updated": {}},
    }
    given.update(fields)
    return ControlLog.objects.create(site=site, created_at=at or timezone.now(), value=value, **given)


def device_error_make(
    *, device: Device, at: datetime | None = None, error: str = "no answer"
) -> DeviceErrorLog:
    return DeviceErrorLog.objects.create(
        device=device,
        site=device.site,
        device_tag=device.device_tag,
        timestamp=at or timezone.now(),
        error=error,
    )


def alarm_make(*, site: Site, is_over: bool = True) -> Alarm:
    now = timezone.now()
    return Alarm.objects.create(
        code="test", severity=AlarmSeverity.WARNING, site=site, cleared_at=now if is_over else None
    )


def client_of(principal: Principal) -> APIClient:
    """A client behind both credentials; those have tests of their own."""
    client = APIClient()
    client.force_authenticate(user=ApiClient(principal), token=principal)  # type: ignore[arg-type]
    return client


@dataclass(frozen=True, slots=True)
class Story:
    """Two sites with a node and a device each, a token for each of them, and one which must see nothing."""

    site_a: Site
    site_b: Site
    node_a: Node
    node_b: Node
    device_a: Device
    device_b: Device
    token_a: ManagementToken
    token_b: ManagementToken
    token_nothing: ManagementToken

    @property
    def root(self) -> APIClient:
        return client_of(ROOT)

    @property
    def holder_a(self) -> APIClient:
        return client_of(principal_of_token(self.token_a))

    @property
    def holder_b(self) -> APIClient:
        return client_of(principal_of_token(self.token_b))

    @property
    def holder_of_nothing(self) -> APIClient:
        return client_of(principal_of_token(self.token_nothing))


def story_make(*, node_ids: tuple[uuid.UUID, uuid.UUID] | None = None) -> Story:
    """`node_ids`: where the nodes must be known to a broker already."""
    id_a, id_b = node_ids or (uuid.uuid4(), uuid.uuid4())
    site_a = site_make(site_tag="solarpanel_site_a", name="Solar Panel Site A", curtailment_time_limit=60)
    site_b = site_make(site_tag="solarpanel_site_b", name="Solar Panel Site B", curtailment_time_limit=90)
    node_a = node_make(site=site_a, id=id_a, name="node-01", iothub="iothub-euw-polaris-engineering")
    node_b = node_make(site=site_b, id=id_b, name="node-02", iothub="iothub-euw-polaris-engineering")
    return Story(
        site_a=site_a,
        site_b=site_b,
        node_a=node_a,
        node_b=node_b,
        device_a=device_make(
            node=node_a,
            device_tag="SMA_STP60_01",
            peak_power_kw=60,
            modbus_server_host="192.168.1.100",
            modbus_server_port=502,
        ),
        device_b=device_make(node=node_b, device_tag="GENERIC_PV_01", peak_power_kw=100.5),
        token_a=token_make(site_a, name="Token of A"),
        token_b=token_make(site_b, name="Token of B"),
        token_nothing=token_make(name="Token of nothing"),
    )
