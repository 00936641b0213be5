"""Probes of devices by their nodes: asked for, answered, and kept (`edge.drivers.probe` says what they are).

Whoever sends one is registered by the app that owns the sending; its answers are left in Redis under
`answers_key`, and taken from there by whoever looks next, or by beat. A probe whose answers got lost is one
that was not answered, and is asked for anew.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
import structlog
from django.db import IntegrityError, transaction
from django.utils import timezone

from devices_app.config import candidate_render
from devices_app.models import PROBE_UNDER_WAY, Device, Probe, ProbeState
from edge.wire import codec
from edge.wire.codec import WireError
from edge.wire.messages import CommandAnswer, Stage
from smartgrid import live
from smartgrid.errors import Conflict

log = structlog.stdlib.get_logger(__name__)

# A node takes 30 s at most; the rest is for the way there and back.
ANSWER_WITHIN_S = 45.0
# Beat looks every ten seconds.
ANSWERS_KEPT_S = 120.0
AT_ONCE = 100

Sender = Callable[[UUID], None]
_sender: list[Sender] = []


def probe_sender_register(send: Sender) -> None:
    """Let probes be sent by this, which is called with the key of each once it is stored."""
    _sender[:] = [send]


def answers_key(probe_id: UUID | str) -> str:
    return f"sgm:probe:{UUID(str(probe_id))}"


def probe_ask(*, by: str, device: Device | None = None, draft: Device | None = None) -> Probe:
    """Have a device probed by its node, as it is configured, or as `draft` has it (`device_draft`).

    A draft of a device that says nothing new is the device itself. `Conflict` while the node is probing
    another one.
    """
    if device is not None and draft is not None and _is_as_configured(device, draft):
        draft = None
    subject = draft or device
    assert subject is not None
    now = timezone.now()
    _overdue_close(now=now, node_id=subject.node_id)
    probe = Probe(
        node_id=subject.node_id,
        device=device,
        device_tag=subject.device_tag,
        device_type=subject.device_type,
        candidate=None if draft is None else candidate_render(draft),
        password_encrypted="" if draft is None else draft.password_encrypted,
        asked_at=now,
        asked_by=by,
        deadline=now + timedelta(seconds=ANSWER_WITHIN_S),
    )
    try:
        with transaction.atomic():
            probe.save(force_insert=True)
    except IntegrityError as error:
        running = Probe.objects.filter(node_id=subject.node_id, state__in=PROBE_UNDER_WAY).first()
        what = "another device" if running is None else f"{running.device_tag}, for {running.asked_by}"
        raise Conflict(
            f"{subject.node.name} is probing {what}. It probes one at a time: try again in a minute.",
            code="probe_under_way",
        ) from error
    log.info("probe_asked", node=subject.node.name, device=subject.device_tag, by=by)
    transaction.on_commit(lambda: _send(probe.pk))
    return probe


def _is_as_configured(device: Device, draft: Device) -> bool:
    same_login = device.password_encrypted == draft.password_encrypted
    same_place = device.node_id == draft.node_id
    return same_login and same_place and candidate_render(device) == candidate_render(draft)


def _send(probe_id: UUID) -> None:
    for send in _sender:
        send(probe_id)


def probe_claim(*, probe_id: UUID) -> Probe | None:
    """The probe, for the one who is to send it; None where it is not to be sent, or somebody does already."""
    rows = Probe.objects.filter(pk=probe_id, state=ProbeState.QUEUED, deadline__gt=timezone.now())
    if not rows.update(state=ProbeState.SENT):
        return None
    return Probe.objects.select_related("node__site", "device", "device_type").get(pk=probe_id)


def probe_close(*, probe_id: UUID, state: ProbeState, detail: str) -> bool:
    """End a probe without a report; False where it has ended already."""
    open_ones = Probe.objects.filter(pk=probe_id, state__in=PROBE_UNDER_WAY)
    return bool(open_ones.update(state=state, detail=detail, password_encrypted=""))


def probe_settle(*, probe_id: UUID) -> Probe:
    """The probe as it is now, after taking in what was answered."""
    if Probe.objects.filter(pk=probe_id, state__in=PROBE_UNDER_WAY).exists():
        _settle(probe_id, now=timezone.now())
    return Probe.objects.select_related("node", "device", "device_type").get(pk=probe_id)


def probes_settle() -> None:
    """Take in the answers of all probes that are under way, and close those that got none."""
    now = timezone.now()
    for probe_id in Probe.objects.filter(state__in=PROBE_UNDER_WAY).values_list("pk", flat=True)[:AT_ONCE]:
        _settle(probe_id, now=now)


def _settle(probe_id: UUID, *, now: datetime) -> None:
    try:
        answers = live.list_read(answers_key(probe_id))
    except live.LiveUnavailable as error:
        log.warning("probe_answers_not_read", probe=str(probe_id), error=str(error))
        answers = []
    for text in answers:
        try:
            answer = codec.decode(CommandAnswer, text.encode())
        except WireError as error:
            log.warning("probe_answer_not_understood", probe=str(probe_id), error=str(error))
            continue
        if answer.stage is Stage.DONE and answer.probe is not None:
            _report_record(probe_id, answer)
            return
        if answer.stage is Stage.REFUSED:
            probe_close(probe_id=probe_id, state=ProbeState.REFUSED, detail=f"{answer.code}: {answer.detail}")
            return
    _overdue_close(now=now, pk=probe_id)


def _report_record(probe_id: UUID, answer: CommandAnswer) -> None:
    open_ones = Probe.objects.filter(pk=probe_id, state__in=PROBE_UNDER_WAY)
    open_ones.update(state=ProbeState.DONE, report=msgspec.to_builtins(answer.probe), password_encrypted="")


def _overdue_close(*, now: datetime, **which: UUID) -> None:
    """Nobody waits for an answer any longer."""
    Probe.objects.filter(state=ProbeState.QUEUED, deadline__lte=now, **which).update(
        state=ProbeState.NOT_SENT,
        detail="no worker took it up in time: look after the worker and its queue",
        password_encrypted="",
    )
    Probe.objects.filter(state=ProbeState.SENT, deadline__lte=now, **which).update(
        state=ProbeState.NO_ANSWER,
        detail=(
            f"The node did not answer within {ANSWER_WITHIN_S:.0f} s. See whether it is online and what it"
            " last reported; a node of a version before this one knows no probes."
        ),
        password_encrypted="",
    )
