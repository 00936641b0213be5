"""The document `config`: what a node must know about its site, its devices and their profiles."""

from __future__ import annotations

from typing import Any

import msgspec

from devices_app.loop_members import Membership, loops_of, memberships
from devices_app.models import ClosedLoop, Device
from edge.wire.messages import BoundConfig, DeviceConfig, LoopConfig, NodeConfig, SiteConfig
from sites_app.documents import renderer_register
from sites_app.models import Node
from sites_app.tokens import decrypt
from smartgrid.api.fields import timestamp

CONFIG = "config"


def register() -> None:
    renderer_register(prefix=CONFIG, render=lambda node: {CONFIG: node_config_render(node)})


def node_config_render(node: Node) -> dict[str, Any]:
    """The body of `desired/config`; equal rows give an equal body, hence an equal digest."""
    # Afresh: whoever asks for the rendering may have read the node before it changed.
    node = Node.objects.select_related("site").get(pk=node.pk)
    site, renew = node.site, node.renew_certificates_before
    rows = node.devices.select_related("device_type", "controlled_by").prefetch_related("bounds")
    devices = list(rows.order_by("device_tag"))
    abandoned = node.retiring_devices.filter(abandoned_at__isnull=False)
    config = NodeConfig(
        site=SiteConfig(
            id=str(site.pk),
            tag=site.site_tag,
            curtailment_time_limit_s=site.curtailment_time_limit,
            cyclic_write_timeout_s=site.cyclic_write_timeout,
            time_zone=site.time_zone,
        ),
        devices=[msgspec.to_builtins(_device_config(device)) for device in devices],
        profiles={device.device_type.profile: device.device_type.profile_body for device in devices},
        loops=_loops(node, devices),
        abandoned=tuple(
            sorted(str(config_id) for config_id in abandoned.values_list("config_id", flat=True))
        ),
        renew_certificates_before=None if renew is None else timestamp(renew),
    )
    body: dict[str, Any] = msgspec.to_builtins(config)
    return body


def _loops(node: Node, devices: list[Device]) -> tuple[dict[str, Any], ...]:
    """What the node's loops are, with the members they have at this moment."""
    loops = list(loops_of([node.pk]))
    # Of all of them: what one that is off names is no member of another.
    members = memberships(loops, devices) if loops else {}
    return tuple(msgspec.to_builtins(_loop_config(loop, members[loop.pk])) for loop in loops if loop.enabled)


def _loop_config(loop: ClosedLoop, members: Membership) -> LoopConfig:
    return LoopConfig(
        id=str(loop.pk),
        tag=loop.loop_tag,
        meter=loop.meter.device_tag,
        members=tuple(device.device_tag for device in members.members),
        mode=loop.mode,
        setpoint_kw=loop.setpoint_kw,
        feed_forward=loop.feed_forward,
        kp=loop.kp,
        ki=loop.ki,
        kd=loop.kd,
        max_rate_pct_per_s=loop.max_rate_pct_per_s,
        deadband_kw=loop.deadband_kw,
        fallback_pct=loop.fallback_pct,
        time_step_s=loop.time_step_s,
        stale_after_s=loop.stale_after_s,
        export_limit_kw=loop.export_limit_kw,
        import_limit_kw=loop.import_limit_kw,
        storage_first=loop.storage_first,
    )


def candidate_render(device: Device) -> dict[str, Any]:
    """A device as its node would have it configured, saved or not, but for its password."""
    return msgspec.to_builtins(  # type: ignore[no-any-return]
        msgspec.structs.replace(_device_config(device), password="")
    )


def _device_config(device: Device) -> DeviceConfig:
    return DeviceConfig(
        id=str(device.config_id),
        tag=device.device_tag,
        category=device.category,
        profile=device.device_type.profile,
        host=device.modbus_server_host or "",
        port=device.modbus_server_port or 0,
        unit=device.modbus_id or 0,
        serial_port=device.serial_port or "",
        baud_rate=device.baud_rate,
        parity=device.parity,
        stop_bits=device.stop_bits,
        url=device.url or "",
        username=device.username,
        password=decrypt(device.password_encrypted) if device.password_encrypted else "",
        protocol=device.protocol or "",
        parameters=device.parameters,
        min_value=device.min_value,
        max_value=device.max_value,
        default_value=device.default_value,
        nameplate_kw=device.peak_power_kw,
        excluded=device.waits or not device.include_in_curtailment,
        measured_only=device.measured_only,
        lifetime=device.effective_lifetime,
        telemetry_s=device.telemetry_s,
        owned_by=device.controlled_by.device_tag if device.controlled_by else None,
        bounds=tuple(
            BoundConfig(origin=bound.origin, minimum=bound.minimum, maximum=bound.maximum)
            for bound in sorted(device.bounds.all(), key=lambda bound: bound.origin)
        ),
        ramp_pct_per_min=device.ramp_pct_per_min,
        accept_wear=device.accept_wear,
        arm_fallback=device.arm_fallback,
    )
