"""Celery tasks: fetch, call, return. Each may run twice without harm."""

from __future__ import annotations

from datetime import timedelta

from celery import shared_task
from django.conf import settings
from django.utils import timezone

from sites_app.alarms import alarms_forget
from sites_app.publishing import messages_publish, node_publish
from sites_app.services import nodes_alarms_judge, nodes_presence_settle
from smartgrid.errors import Unavailable


# What the broker did not take is tried again after 1, 2, 4, ... s; beyond that, the node's next report tells.
@shared_task(  # type: ignore[untyped-decorator]
    name="sites_app.tasks.publish_desired",
    autoretry_for=(Unavailable,),
    max_retries=6,
    retry_backoff=1,
    retry_jitter=True,
)
def publish_desired(node_id: str, names: list[str] | None = None) -> None:
    # Here, so that a web process which only queues this task does not load the broker's client.
    from sites_app.node_link import node_link  # noqa: PLC0415

    node_publish(node_id=node_id, names=names, link=node_link())


@shared_task(  # type: ignore[untyped-decorator]
    name="sites_app.tasks.publish_farewell",
    autoretry_for=(Unavailable,),
    max_retries=6,
    retry_backoff=1,
    retry_jitter=True,
)
def publish_farewell(tenant: str, node_id: str, messages: list[tuple[str, str]]) -> None:
    from sites_app.node_link import node_link  # noqa: PLC0415

    messages_publish(tenant=tenant, node_id=node_id, messages=dict(messages), link=node_link())


@shared_task(name="sites_app.tasks.mark_silent_nodes")  # type: ignore[untyped-decorator]
def mark_silent_nodes() -> None:
    """Note as offline which nodes have fallen silent, and as online which are heard again."""
    nodes_presence_settle()


@shared_task(name="sites_app.tasks.judge_alarms")  # type: ignore[untyped-decorator]
def judge_alarms() -> None:
    """Raise alarms for nodes that stay silent or do not have what they should, and clear them."""
    nodes_alarms_judge(now=timezone.now())


@shared_task(name="sites_app.tasks.forget_alarms")  # type: ignore[untyped-decorator]
def forget_alarms() -> None:
    """Delete alarms that were cleared long ago (`SGM_ALARM_HISTORY_DAYS`)."""
    alarms_forget(before=timezone.now() - timedelta(days=settings.SGM_ALARM_HISTORY_DAYS))
