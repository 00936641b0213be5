"""Celery tasks of control: fetch, call, return."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from celery import shared_task

from control_app.dispatch import dispatcher, order_decode, question_decode
from control_app.pings import nodes_ping
from control_app.probes import probe_send
from control_app.repeats import keys_forget
from control_app.retention import logs_retain as log_lines_retain
from control_app.services import requests_settle
from control_app.watching import commands_watch
from devices_app.probes import probes_settle


@shared_task(name="control_app.tasks.dispatch_command")  # type: ignore[untyped-decorator]
def dispatch_command(order: dict[str, Any]) -> None:
    """Send one command; the claim of its row makes a second run harmless."""
    dispatcher().dispatch(order_decode(order))


@shared_task(name="control_app.tasks.ask_node")  # type: ignore[untyped-decorator]
def ask_node(question: dict[str, Any]) -> None:
    """Ask a node something; a second run asks again, which changes nothing."""
    dispatcher().ask(question_decode(question))


@shared_task(name="control_app.tasks.settle_requests")  # type: ignore[untyped-decorator]
def settle_requests() -> None:
    """Close requests whose view did not live to do so, and probes that nobody looked at any more."""
    requests_settle()
    probes_settle()


@shared_task(name="control_app.tasks.send_probe")  # type: ignore[untyped-decorator]
def send_probe(probe_id: str) -> None:
    """Send a probe; the claim of its row makes a second run harmless."""
    probe_send(dispatcher(), UUID(probe_id))


@shared_task(name="control_app.tasks.ping_nodes")  # type: ignore[untyped-decorator]
def ping_nodes(node_ids: list[str] | None = None) -> None:
    """Ask every reachable node for a sign that it hears us, and tell it what its clock is judged by."""
    nodes_ping(dispatcher(), node_ids=node_ids)


@shared_task(name="control_app.tasks.logs_retain")  # type: ignore[untyped-decorator]
def logs_retain() -> None:
    """Delete log lines that are older than they are to be kept, and let go of old Idempotency-Keys."""
    log_lines_retain(now=datetime.now(UTC))
    keys_forget(now=datetime.now(UTC))


@shared_task(name="control_app.tasks.watch_commands")  # type: ignore[untyped-decorator]
def watch_commands() -> None:
    """Raise alarms for commands that were not answered or not confirmed, and clear them."""
    commands_watch(now=datetime.now(UTC))
