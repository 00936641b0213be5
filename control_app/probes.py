"""Sending probes: from the row to the node, with the node's own freshness token."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import structlog
from kombu.exceptions import OperationalError

from devices_app.models import Probe, ProbeState
from devices_app.probes import probe_claim, probe_close
from edge.wire.messages import ProbeCommand
from edge.wire.topics import NodeTopics
from sites_app.node_link import LinkUnavailable, SendUnconfirmed
from sites_app.presence import central_now, presence_read
from sites_app.tokens import decrypt
from smartgrid.live import LiveUnavailable

if TYPE_CHECKING:
    from control_app.dispatch import Dispatcher

log = structlog.stdlib.get_logger(__name__)


def probe_queue(probe_id: UUID) -> None:
    """Have a worker send this probe; where the queue does not answer it is closed as not sent."""
    from control_app.tasks import send_probe  # noqa: PLC0415 - tasks import this module

    try:
        send_probe.delay(str(probe_id))
    except OperationalError as error:
        log.warning("probe_not_queued", probe=str(probe_id), error=str(error))
        detail = "the queue does not answer: look after Redis"
        probe_close(probe_id=probe_id, state=ProbeState.NOT_SENT, detail=detail)


def probe_send(dispatcher: Dispatcher, probe_id: UUID) -> None:
    """Send a probe, if it is still wanted and its node is there."""
    probe = probe_claim(probe_id=probe_id)
    if probe is None:
        log.info("probe_not_claimed", probe=str(probe_id))
        return
    node = probe.node
    try:
        known, now = presence_read([node.pk])[node.pk], central_now()
        if not known.is_reachable(now=now):
            why = f"{node.name} is not online: {known.why_not(now=now)}"
            probe_close(probe_id=probe_id, state=ProbeState.NOT_SENT, detail=why)
            return
        topics = NodeTopics(node.tenant_tag, str(node.pk))
        dispatcher.probe(topics, probe_command(probe, fresh=known.fresh), fresh_at=known.fresh_at)
    except (LiveUnavailable, LinkUnavailable) as error:
        probe_close(probe_id=probe_id, state=ProbeState.NOT_SENT, detail=error.detail)
    except SendUnconfirmed as error:
        # It may have arrived: its answer, or its deadline, will tell.
        log.warning("probe_unconfirmed", probe=str(probe_id), error=error.detail)


def probe_command(probe: Probe, *, fresh: str) -> ProbeCommand:
    """What the node is told; needs `node`, `device` and `device_type` loaded."""
    device, candidate, body = "", None, None
    if probe.candidate is None:
        # Gone since: the node will say that it knows none of an empty name.
        device = str(probe.device.config_id) if probe.device is not None else str(probe.pk)
    else:
        candidate = dict(probe.candidate)
        if probe.password_encrypted:
            candidate["password"] = decrypt(probe.password_encrypted)
        body = probe.device_type.profile_body if probe.device_type is not None else None
    return ProbeCommand(
        id=str(probe.pk),
        epoch=probe.node.epoch,
        fresh=fresh,
        device=device,
        candidate=candidate,
        profile=body,
    )
