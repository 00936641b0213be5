"""What happens to sites, nodes and management tokens."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, Unpack

import structlog
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from sites_app import tokens
from sites_app.alarms import (
    LOGGED_EACH,
    NODE_OUT_OF_SYNC,
    NODE_SILENT,
    AlarmKey,
    AlarmText,
    alarms_settle,
    node_alarms_end,
)
from sites_app.documents import node_documents_render, nodes_documents_render
from sites_app.models import Alarm, ManagementToken, Node, Site
from sites_app.presence import HEARTBEAT_LIMIT_S, central_now, presence_read
from sites_app.publishing import node_farewell
from smartgrid import live
from smartgrid.bulk import rows_update
from smartgrid.errors import Conflict, Invalid
from smartgrid.integrity import store

log = structlog.stdlib.get_logger(__name__)

# How long a node is offline, or without what it should have, before somebody should look.
SILENT_AFTER = timedelta(seconds=60)
OUT_OF_SYNC_AFTER = timedelta(minutes=5)


class SiteChanges(TypedDict, total=False):
    site_tag: str
    name: str
    meta_data: dict[str, Any]
    curtailment_time_limit: int
    cyclic_write_timeout: int
    time_zone: str


class NodeChanges(TypedDict, total=False):
    name: str
    meta_data: dict[str, Any]
    curtail_in_batch: bool
    iothub: str
    configuration: dict[str, Any]


class SiteFields(SiteChanges, total=False):
    id: uuid.UUID
    tenant_tag: str


class NodeFields(NodeChanges, total=False):
    id: uuid.UUID


def site_create(**fields: Unpack[SiteFields]) -> Site:
    """Make a site. `Invalid` for a field out of range, `Conflict` where the tenant has the tag already."""
    site = Site(**fields)
    store(site)
    log.info("site_created", site=site.site_tag)
    return site


def site_update(*, site: Site, **changes: Unpack[SiteChanges]) -> Site:
    """Change a site; its nodes learn of a new limit through their configuration.

    A refused change, zero seconds for a watchdog among them, leaves everything as it was.
    """
    with transaction.atomic():
        site = Site.objects.select_for_update().get(pk=site.pk)
        _apply(site, changes)
        store(site)
        nodes_documents_render(nodes=site.nodes.all())
    log.info("site_changed", site=site.site_tag, fields=sorted(changes))
    return site


# What keeps a node from being deleted, for people. Apps above this one say so; nothing here knows them.
NodeKeeper = Callable[[Node], list[str]]

_node_keepers: dict[str, NodeKeeper] = {}


def node_keeper_register(*, name: str, kept_by: NodeKeeper) -> None:
    """Let an app keep nodes from being deleted for as long as it names a reason."""
    _node_keepers[name] = kept_by


def node_create(*, site: Site, **fields: Unpack[NodeFields]) -> Node:
    """Make a node of this site, with the documents it should have from the start."""
    with transaction.atomic():
        # Before anything is rendered: whoever puts a document down for the nodes of the site does the same,
        # so that of two at once the later sees what the earlier was about.
        list(Site.objects.select_for_update(no_key=True).filter(pk=site.pk).values_list("pk"))
        node = Node(site=site, tenant_tag=site.tenant_tag, **fields)
        store(node)
        node_documents_render(node=node)
    log.info("node_created", site=site.site_tag, node=node.name)
    return node


def node_update(*, node: Node, **changes: Unpack[NodeChanges]) -> Node:
    with transaction.atomic():
        node = Node.objects.select_for_update().get(pk=node.pk)
        _apply(node, changes)
        store(node)
        node_documents_render(node=node)
    log.info("node_changed", node=node.name, fields=sorted(changes))
    return node


def node_move(*, node: Node, site: Site, by: str = "") -> Node:
    """Give a node to another site: it gets that one's configuration and schedules instead of the former's.

    `Invalid` for a site of another tenant, whose topics the node may not have; `Conflict` names the devices
    that are still there: a device belongs to its site, and is retired before its node leaves.
    """
    with transaction.atomic():
        # Both sites first, as whoever adds a device or a schedule to either does.
        locked = Site.objects.select_for_update(no_key=True).filter(pk__in=[node.site_id, site.pk])
        sites = {found.pk: found for found in locked.order_by("pk")}
        former = node.site_id
        node = Node.objects.select_for_update().get(pk=node.pk)
        if node.site_id != former:
            raise Conflict(f"{node.name} has just been moved by somebody else.", code="moved")
        if site.pk == former:
            return node
        if sites[site.pk].tenant_tag != node.tenant_tag:
            raise Invalid.field(
                "site", "is of another tenant: enrol the node there under an identity of its own"
            )
        kept = [why for kept_by in _node_keepers.values() for why in kept_by(node)]
        if kept:
            raise Conflict(f"{node.name} cannot be moved: it still has {', '.join(kept)}.", code="in_use")
        node_alarms_end(node=node)
        node.site = sites[site.pk]
        store(node)
        node_documents_render(node=node)
    log.warning("node_moved", node=node.name, before=sites[former].site_tag, site=node.site.site_tag, by=by)
    return node


def node_delete(*, node: Node, by: str = "") -> None:
    """Forget a node, once nothing keeps it: its devices are retired, or abandoned by name (rule 20).

    `Conflict` names what does. A node that is deleted and comes back finds its last desired state at the
    broker, which has no devices and names those it must forget.
    """
    with transaction.atomic():
        # Its site first, as whoever adds a device to the node does.
        Site.objects.select_for_update(no_key=True).get(pk=node.site_id)
        node = Node.objects.select_for_update().get(pk=node.pk)
        kept = [why for kept_by in _node_keepers.values() for why in kept_by(node)]
        if kept:
            raise Conflict(f"{node.name} cannot be deleted: it still has {', '.join(kept)}.", code="in_use")
        name = node.name
        node_alarms_end(node=node)
        node_farewell(node=node)
        node.delete()
    log.warning("node_deleted", node=name, by=by)


def token_issue(
    *, name: str, sites: Iterable[Site], value: str | None = None, token_id: uuid.UUID | None = None
) -> ManagementToken:
    """Make a token which opens these sites; its value is drawn unless one is given."""
    value = tokens.value_draw() if value is None else tokens.value_check(value)
    with transaction.atomic():
        token = ManagementToken(
            id=token_id or uuid.uuid4(),
            name=name,
            digest=tokens.digest(value),
            encrypted=tokens.encrypt(value),
        )
        store(token)
        token.sites.set(sites)
    log.info("management_access_issued", id=str(token.pk), name=name)
    return token


def token_update(*, token: ManagementToken, name: str, sites: Iterable[Site]) -> ManagementToken:
    """Give a token another name and other sites; its value stays."""
    with transaction.atomic():
        token = ManagementToken.objects.select_for_update().get(pk=token.pk)
        token.name = name
        store(token)
        token.sites.set(sites)
    log.info("management_access_changed", id=str(token.pk), name=name)
    return token


def token_revoke(*, token: ManagementToken) -> None:
    """End a token: from the commit on it opens nothing."""
    token_id = str(token.pk)
    token.delete()
    log.info("management_access_revoked", id=token_id)


def _apply(row: Site | Node, changes: SiteChanges | NodeChanges) -> None:
    allowed = (SiteChanges if isinstance(row, Site) else NodeChanges).__optional_keys__
    for field, value in changes.items():
        if field not in allowed:
            raise Invalid.field(field, "cannot be changed")
        setattr(row, field, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceChange:
    """A node came or went. `boot`: None where nobody said it."""

    node_id: uuid.UUID
    online: bool
    session: str
    boot: str | None = None


def node_presence_record(*, node_id: uuid.UUID, online: bool, session: str, boot: str) -> bool:
    """Note that a node came or went. False where that was known: the database holds transitions only.

    An offline message of a former session tells nothing about the present one.
    """
    change = PresenceChange(node_id=node_id, online=online, session=session, boot=boot)
    return bool(nodes_presence_record([change]))


def nodes_presence_record(changes: Sequence[PresenceChange]) -> list[PresenceChange]:
    """Note which nodes came and went, in this order, as `node_presence_record` does. The transitions."""
    # Nearly always all is known, and nobody need wait for these rows.
    known = {node.pk: node for node in _presence_rows(changes)}
    wanted = [change for change in changes if change.node_id in known]
    if not any(_presence_apply(known[change.node_id], change) for change in wanted):
        return []
    now = timezone.now()
    came_or_went: list[PresenceChange] = []
    with transaction.atomic():
        locked = _presence_rows(wanted).select_for_update(no_key=True)
        nodes = {node.pk: node for node in locked.order_by("pk")}
        changed: dict[uuid.UUID, Node] = {}
        for change in wanted:
            node = nodes.get(change.node_id)
            before = None if node is None else (node.online, node.session)
            if node is None or not _presence_apply(node, change):
                continue
            changed[node.pk] = node
            if (node.online, node.session) != before:
                node.presence_changed_at = now
                came_or_went.append(change)
        rows_update(
            Node,
            fields=["online", "session", "boot", "presence_changed_at"],
            rows=[
                (node.pk, node.online, node.session, node.boot, node.presence_changed_at)
                for node in changed.values()
            ],
        )
    # Of very many at once, which is central's own trouble, the first and their number.
    for change in came_or_went[:LOGGED_EACH]:
        event = "node_online" if change.online else "node_offline"
        log.info(event, node=str(change.node_id), session=change.session)
    if len(came_or_went) > LOGGED_EACH:
        log.warning("many_nodes_came_or_went", nodes=len(came_or_went))
    return came_or_went


def _presence_rows(changes: Iterable[PresenceChange]) -> QuerySet[Node]:
    nodes = Node.objects.filter(pk__in={change.node_id for change in changes})
    return nodes.only("online", "session", "boot", "presence_changed_at")


def _presence_apply(node: Node, change: PresenceChange) -> bool:
    """Bring the row in memory up to a change; whether that changed anything."""
    before = (node.online, node.session, node.boot)
    if change.online:
        node.online, node.session = True, change.session
        if change.boot is not None:
            node.boot = change.boot
    elif node.session == change.session:
        node.online = False
    return (node.online, node.session, node.boot) != before


def nodes_presence_settle() -> tuple[int, int]:
    """Note as offline the nodes whose heartbeats have stopped, whatever their will said, and as online those
    that are heard again without a new birth: how many fell silent, how many came back.

    `LiveUnavailable` where Redis does not answer: then nothing is known, and nothing changed.
    """
    nodes = list(Node.objects.values_list("pk", "online", "session"))
    presence = presence_read(pk for pk, _, _ in nodes)
    now = central_now()
    # A Redis that came up empty a moment ago has heard of nobody yet.
    is_judge = live.known_since(at=now) <= now - HEARTBEAT_LIMIT_S
    silent = [
        PresenceChange(node_id=pk, online=False, session=session)
        for pk, online, session in nodes
        if online and now - presence[pk].hb_at >= HEARTBEAT_LIMIT_S and (is_judge or presence[pk].hb_at)
    ]
    heard = [
        PresenceChange(node_id=pk, online=True, session=presence[pk].session)
        for pk, online, session in nodes
        if presence[pk].is_heard(now=now) and (not online or session != presence[pk].session)
    ]
    return len(nodes_presence_record(silent)), len(nodes_presence_record(heard))


def nodes_alarms_judge(*, now: datetime) -> tuple[int, int]:
    """Raise and clear central's own alarms about nodes: how many of each.

    Silent: gone for more than a minute; a node that was never there yet raises nothing. Out of sync:
    reachable, and without what it should have for more than five minutes.
    """
    wanted: dict[AlarmKey, AlarmText] = {}
    nodes = Node.objects.only("site_id", "name", "presence_changed_at", "out_of_sync_since")
    for node in nodes.filter(_since("presence_changed_at", now - SILENT_AFTER, now=now), online=False):
        detail = f"Offline since {_stamp(node.presence_changed_at)}."
        wanted[AlarmKey(NODE_SILENT, node.site_id, node.pk)] = AlarmText(detail, node.name)
    for node in nodes.filter(_since("out_of_sync_since", now - OUT_OF_SYNC_AFTER, now=now), online=True):
        detail = f"Has not had all that it should have since {_stamp(node.out_of_sync_since)}."
        wanted[AlarmKey(NODE_OUT_OF_SYNC, node.site_id, node.pk)] = AlarmText(detail, node.name)
    among = Alarm.objects.filter(code__in=[NODE_SILENT, NODE_OUT_OF_SYNC], by_node=False)
    return alarms_settle(among=among, wanted=wanted)


def _since(field: str, moment: datetime, *, now: datetime) -> Q:
    """The field is not after this moment; or in the future, because central's clock was set back."""
    return Q(**{f"{field}__lte": moment}) | Q(**{f"{field}__gt": now + timedelta(seconds=5)})


def _stamp(moment: datetime | None) -> str:
    assert moment is not None
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
