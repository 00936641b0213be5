"""A node: whether it is there and well, what it has, and its identity: enrol it, shut it out."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import Http404, HttpResponseBase
from django.urls import reverse
from django.utils import timezone

from control_app.models import NodeEvent, NodeStream
from devices_app.selectors import node_devices_visible_to
from sites_app import identity
from sites_app.alarm_guide import guide_to
from sites_app.enrolment_command import enrolment_commands
from sites_app.models import Node
from sites_app.node_view import node_certificates, node_documents, node_heard, node_reported
from sites_app.revocation import revocations_enforce
from sites_app.selectors import alarms_visible_to, nodes_visible_to
from smartgrid.console.audit import noted
from smartgrid.console.pages import page, show
from smartgrid.console.people import principal_at
from smartgrid.console.roles import ENROL
from smartgrid.errors import SgmError

EVENTS_SHOWN = 20
DEVICES_SHOWN = 200


def _node(request: HttpRequest, node_id: UUID) -> Node:
    node = nodes_visible_to(principal_at(request)).select_related("site").filter(pk=node_id).first()
    if node is None:
        raise Http404("No such node.")
    return node


@page("node/<uuid:node_id>/", name="console_node", permission="sites_app.view_node")
def node(request: HttpRequest, node_id: UUID) -> HttpResponseBase:
    row, now, user = _node(request, node_id), timezone.now(), request.user
    principal = principal_at(request)
    devices = (
        node_devices_visible_to(principal, row.site_id, row.pk)
        if user.has_perm("devices_app.view_device")
        else None
    )
    alarms = (
        alarms_visible_to(principal).filter(node=row, cleared_at=None)
        if user.has_perm("sites_app.view_alarm")
        else []
    )
    sees_events = user.has_perm("control_app.view_nodeevent")
    context: dict[str, Any] = {
        "node": row,
        "now": now,
        "heard": node_heard(row, now=now),
        "reported": node_reported(row),
        "documents": node_documents(row),
        "certificates": node_certificates(row, now=now),
        "sees_certificates": user.has_perm("sites_app.view_nodecertificate"),
        "devices": None if devices is None else list(devices.select_related("device_type")[:DEVICES_SHOWN]),
        "alarms": [(alarm, guide_to(alarm.code)) for alarm in alarms],
        "events": list(NodeEvent.objects.filter(node=row).order_by("-at", "-pk")[:EVENTS_SHOWN])
        if sees_events
        else None,
        "streams": list(NodeStream.objects.filter(node=row).order_by("stream", "-since")),
        "may_enrol": user.has_perm(ENROL),
        "may_change": user.has_perm("sites_app.change_node"),
    }
    return show(
        request,
        "console/node.html",
        title=f"Node {row.name}",
        context=context,
        parts={"state": "console/parts/node.html"},
    )


@page("node/<uuid:node_id>/enrol", name="console_node_enrol", permission=ENROL, methods=("POST",))
def enrol(request: HttpRequest, node_id: UUID) -> HttpResponseBase:
    """A one-time token, shown in the answer to the very request that drew it: nothing keeps it."""
    row, now = _node(request, node_id), timezone.now()
    try:
        commands = enrolment_commands(node=row, now=now, by=request.user.get_username())
    except SgmError as refusal:
        messages.error(request, str(refusal))
        return _back(row)
    noted(request, "enrol", row, expires_at=commands.expires_at.isoformat())
    response: HttpResponse = show(
        request,
        "console/node_enrol.html",
        title=f"Enrol node {row.name}",
        context={"node": row, "commands": commands},
    )
    response["Pragma"] = "no-cache"
    response["Referrer-Policy"] = "no-referrer"
    return response


@page("node/<uuid:node_id>/revoke", name="console_node_revoke", permission=ENROL, methods=("GET", "POST"))
def revoke(request: HttpRequest, node_id: UUID) -> HttpResponseBase:
    """Shut the node out; nobody does so by a slip of the hand: its name is typed again."""
    row, now, error = _node(request, node_id), timezone.now(), ""
    if request.method == "POST":
        reason = request.POST.get("reason", "").strip()
        if request.POST.get("name", "").strip() != row.name:
            error = f"Type the node's name to revoke its certificates: {row.name}"
        elif not reason:
            error = "Say why: it is kept with the certificates."
        else:
            with transaction.atomic():
                ended = identity.node_revoke(node=row, now=now, reason=reason, by=request.user.get_username())
                noted(request, "revoke", row, reason=reason, certificates=ended)
            _tell_shut_out(request, row)
            return _back(row)
    return show(
        request,
        "console/node_revoke.html",
        title=f"Revoke the certificates of {row.name}",
        context={"node": row, "error": error, "given": request.POST.get("reason", "")},
        status=400 if error else 200,
    )


def _tell_shut_out(request: HttpRequest, row: Node) -> None:
    try:
        done = revocations_enforce(now=timezone.now())
    except (SgmError, OSError) as failed:
        messages.warning(
            request,
            f"The certificates of {row.name} are revoked, and the broker could not be told yet: {failed}",
        )
        return
    if str(row.pk) in done.waiting:
        messages.warning(
            request,
            f"The certificates of {row.name} are revoked. It is not certain yet that it is shut out:"
            f" {done.why}. It is tried again each minute.",
        )
        return
    messages.success(request, f"{row.name} is shut out: the broker refuses its certificates.")


def _back(row: Node) -> HttpResponseRedirect:
    return HttpResponseRedirect(reverse("admin:console_node", args=[row.pk]))
