"""Whether nodes are there and well, as listeners hear of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import UUID

from django.utils import timezone

from sites_app.models import Alarm, AlarmStep, Node
from smartgrid import live
from smartgrid.api.fields import timestamp
from smartgrid.events import Event, Kind, events_publish

# Redis: the nodes that were last told to be healthy, and one member that keeps an empty set from being none.
TOLD_HEALTHY = "sgm:events:healthy"
_NOBODY = "-"


def nodes_publish_presence(nodes: Iterable[Node]) -> None:
    """Tell that these have come or gone, once that is committed."""
    at = timestamp(timezone.now())
    events_publish(Event(Kind.NODE, node.site_id, _body(node, at)) for node in nodes)


def nodes_publish_health(healthy: Mapping[UUID, bool]) -> None:
    """Tell which of these nodes are healthy now and were not, and the other way round; all nodes are given.

    What was last told is kept in Redis: where that is gone, so are all listeners' places, and nothing is
    told. Told twice where a process dies between telling and keeping. `LiveUnavailable` where it does not
    answer.
    """
    told = live.set_read(TOLD_HEALTHY)
    now = {str(node_id) for node_id, is_healthy in healthy.items() if is_healthy}
    changed = {UUID(node_id) for node_id in now ^ (told - {_NOBODY})} if told else set()
    if changed:
        at = timestamp(timezone.now())
        nodes = Node.objects.filter(pk__in=changed).only("name", "site_id", "online")
        events_publish(
            Event(Kind.NODE, node.site_id, _body(node, at) | {"healthy": healthy.get(node.pk, False)})
            for node in nodes
        )
    if changed or not told:
        live.set_write(TOLD_HEALTHY, add=[*(now - told), _NOBODY], remove=list(told - now - {_NOBODY}))


def alarms_publish(alarms: Iterable[Alarm], step: AlarmStep) -> None:
    """Tell that these alarms were raised, acknowledged or cleared, once that is committed."""
    at = timestamp(timezone.now())
    events_publish(Event(Kind.ALARM, alarm.site_id, _alarm_body(alarm, step, at)) for alarm in alarms)


def _alarm_body(alarm: Alarm, step: AlarmStep, at: str) -> dict[str, object]:
    return {
        "id": alarm.pk,
        "code": alarm.code,
        "severity": alarm.severity,
        "site_id": alarm.site_id,
        "node_id": alarm.node_id,
        "polaris_node_name": alarm.node_name,
        "subject": alarm.subject,
        "detail": alarm.detail,
        "state": step.value,
        "at": at,
    }


def _body(node: Node, at: str) -> dict[str, object]:
    return {
        "id": node.pk,
        "polaris_node_name": node.name,
        "site_id": node.site_id,
        "online": node.online,
        "at": at,
    }
