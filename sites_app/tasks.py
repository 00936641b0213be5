"""Celery tasks: fetch, call, return. Each may run twice without harm."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from celery import shared_task
from django.conf import settings
from django.utils import timezone

from sites_app.alarm_notices import deliveries_send
from sites_app.alarms import alarms_forget
from sites_app.documents import nodes_due_render
from sites_app.publishing import farewells_publish, nodes_publish
from sites_app.reports import reports_compare
from sites_app.services import (
    certificates_judge,
    nodes_alarms_judge,
    nodes_downlink_judge,
    nodes_presence_settle,
)
from sites_app.syncing import nodes_sync_begins, sweep
from sites_app.token_use import token_uses_keep
from smartgrid.errors import Unavailable


# What the broker did not take is tried again after 1, 2, 4 s; beyond that the sweep finds it.
@shared_task(  # type: ignore[untyped-decorator]
    name="sites_app.tasks.sync_nodes",
    autoretry_for=(Unavailable,),
    max_retries=3,
    retry_backoff=1,
    retry_jitter=True,
)
def sync_nodes(node_ids: list[str], *, again: bool = False) -> None:
    # Here, so that a web process which only queues this task does not load the broker's client.
    from sites_app.node_link import node_link  # noqa: PLC0415

    nodes_sync_begins(node_ids)
    nodes_due_render(nodes=map(UUID, node_ids))
    nodes_publish(node_ids=node_ids, link=node_link(), again=again)


@shared_task(  # type: ignore[untyped-decorator]
    name="sites_app.tasks.sync_farewells",
    autoretry_for=(Unavailable,),
    max_retries=3,
    retry_backoff=1,
    retry_jitter=True,
)
def sync_farewells() -> None:
    from sites_app.node_link import node_link  # noqa: PLC0415

    farewells_publish(link=node_link())


@shared_task(name="sites_app.tasks.sync_sweep")  # type: ignore[untyped-decorator]
def sync_sweep() -> None:
    """Publish what nodes lack and nobody else has sent, as the database knows it."""
    sweep()


@shared_task(name="sites_app.tasks.compare_reports")  # type: ignore[untyped-decorator]
def compare_reports() -> None:
    """Compare all that nodes last reported with all that they should run."""
    reports_compare()


@shared_task(name="sites_app.tasks.mark_silent_nodes")  # type: ignore[untyped-decorator]
def mark_silent_nodes() -> None:
    """Note as offline which nodes have fallen silent, and as online which are heard again."""
    nodes_presence_settle()


@shared_task(name="sites_app.tasks.judge_alarms")  # type: ignore[untyped-decorator]
def judge_alarms() -> None:
    """Raise alarms for nodes that stay silent or do not have what they should, and clear them."""
    nodes_alarms_judge(now=timezone.now())


@shared_task(name="sites_app.tasks.judge_downlinks")  # type: ignore[untyped-decorator]
def judge_downlinks() -> None:
    """Raise alarms for nodes that are heard and do not hear us, and clear them."""
    nodes_downlink_judge()


@shared_task(name="sites_app.tasks.judge_certificates")  # type: ignore[untyped-decorator]
def judge_certificates() -> None:
    """Raise alarms for nodes whose certificate is near its end, and clear them."""
    certificates_judge(now=timezone.now())


@shared_task(name="sites_app.tasks.send_notices")  # type: ignore[untyped-decorator]
def send_notices() -> None:
    """Send what alarm routes are to be told of."""
    deliveries_send(now=timezone.now())


@shared_task(name="sites_app.tasks.enforce_revocations")  # type: ignore[untyped-decorator]
def enforce_revocations() -> None:
    """Tell the broker which certificates it must refuse, and end what they opened (`SGM_CA_DIR`)."""
    if not settings.SGM_CA_DIR:
        return
    # Here, so that a web process which only queues tasks does not load the broker's client.
    from sites_app.revocation import revocations_enforce  # noqa: PLC0415

    revocations_enforce(now=timezone.now())


@shared_task(name="sites_app.tasks.forget_alarms")  # type: ignore[untyped-decorator]
def forget_alarms() -> None:
    """Delete alarms that were cleared long ago (`SGM_ALARM_HISTORY_DAYS`)."""
    alarms_forget(before=timezone.now() - timedelta(days=settings.SGM_ALARM_HISTORY_DAYS))


@shared_task(name="sites_app.tasks.keep_token_uses")  # type: ignore[untyped-decorator]
def keep_token_uses() -> None:
    """Note in the database when each management token was last used."""
    token_uses_keep()
