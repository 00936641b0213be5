"""What happens to sites, nodes and management tokens."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, Unpack

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Max, Q, QuerySet
from django.utils import timezone

from sites_app import tokens
from sites_app.alarms import (
    LOGGED_EACH,
    NODE_CERTIFICATE,
    NODE_DEAF,
    NODE_OUT_OF_SYNC,
    NODE_SILENT,
    AlarmKey,
    AlarmText,
    alarms_settle,
    node_alarms_end,
)
from sites_app.documents import node_documents_render, nodes_documents_render
from sites_app.events import nodes_publish_health, nodes_publish_presence
from sites_app.models import Alarm, ManagementToken, Node, Site
from sites_app.presence import HEARTBEAT_LIMIT_S, central_now, presence_read
from sites_app.publishing import node_farewell
from smartgrid import live
from smartgrid.bulk import rows_update
from smartgrid.errors import Conflict, Invalid, NotFound, SgmError, refusal_of_many
from smartgrid.integrity import conflicts, rows_store, store

log = structlog.stdlib.get_logger(__name__)

# How long a node is offline, or without what it should have, before somebody should look.
SILENT_AFTER = timedelta(seconds=60)
OUT_OF_SYNC_AFTER = timedelta(minutes=5)
# Four pings unanswered, two more than make a node unwell.
DEAF_AFTER_S = 180.0
# A node renews when a third of its certificate's life is left; this is well behind that.
CERTIFICATE_ENDS_WITHIN = timedelta(days=14)


class SiteChanges(TypedDict, total=False):
    site_tag: str
    name: str
    meta_data: dict[str, Any]
    curtailment_time_limit: int
    cyclic_write_timeout: int
    # None: as many requests as come.
    setpoint_throttle_s: int | None
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


class NewNode(NodeFields):
    """One of many nodes to be made."""

    site: Site


def site_create(**fields: Unpack[SiteFields]) -> Site:
    """Make a site. `Invalid` for a field out of range, `Conflict` where the tenant has the tag already."""
    site = Site(**fields)
    store(site)
    log.info("site_created", site=site.site_tag)
    return site


def sites_create(items: Sequence[SiteFields]) -> list[Site]:
    """Make all of these sites or none: the error names each that is refused by its place (`17.site_tag`)."""
    sites = [Site(**fields) for fields in items]
    with transaction.atomic():
        if refused := rows_store(sites):
            raise refusal_of_many(refused)
    log.info("sites_created", sites=len(sites))
    return sites


def site_update(*, site: Site, **changes: Unpack[SiteChanges]) -> Site:
    """Change a site; its nodes learn of a new limit through their configuration.

    A refused change, zero seconds for a watchdog among them, leaves everything as it was.
    """
    with transaction.atomic():
        found = Site.objects.select_for_update().filter(pk=site.pk).first()
        if found is None:
            raise NotFound("No such site.")
        site = found
        _apply(site, changes)
        store(site)
        nodes_documents_render(nodes=site.nodes.all())
    log.info("site_changed", site=site.site_tag, fields=sorted(changes))
    return site


def site_replace(*, site: Site, **fields: Unpack[SiteChanges]) -> Site:
    """Change a site to be as these fields say, and otherwise as one that is made anew."""
    return site_update(site=site, **_completed(Site, SiteChanges.__optional_keys__, fields))


def _completed(model: type[Site | Node], names: Iterable[str], fields: Mapping[str, Any]) -> Any:
    """These fields, and the defaults of those which are not given; what has none is not added."""
    columns = {field.name: field for field in model._meta.concrete_fields}  # noqa: SLF001 - Django's documented name
    # Null, of a field that may be null, is its default.
    optional = [name for name in names if columns[name].has_default() or columns[name].null]
    return {**{name: columns[name].get_default() for name in optional}, **fields}


# What keeps a site from being deleted, for people. Apps above this one say so; nothing here knows them.
SiteKeeper = Callable[[Site], list[str]]

_site_keepers: dict[str, SiteKeeper] = {}
# Of many that keep something, as many are named.
KEEPERS_NAMED = 5


def site_keeper_register(*, name: str, kept_by: SiteKeeper) -> None:
    """Let an app keep sites from being deleted for as long as it names a reason."""
    _site_keepers[name] = kept_by


def site_delete(*, site: Site, by: str = "") -> None:
    """Forget a site of which nothing is left: no node, no token that opens it, no schedule, no history.

    `Conflict` names what there is. What was done and measured at a site is a record: it goes when its time
    is over, never because somebody deletes the site.
    """
    try:
        with transaction.atomic():
            # With the key: whoever makes something of the site waits, and then finds it gone.
            locked = Site.objects.select_for_update().filter(pk=site.pk).first()
            if locked is None:
                raise NotFound("No such site.")
            kept = [
                *_site_kept_by(locked),
                *(why for by_app in _site_keepers.values() for why in by_app(locked)),
            ]
            if kept:
                raise Conflict(
                    f"{locked.site_tag} cannot be deleted: it still has {', '.join(kept)}.", code="in_use"
                )
            locked.delete()
    except IntegrityError as error:
        raise Conflict(
            f"{site.site_tag} cannot be deleted: something of it is stored.", code="in_use"
        ) from error
    log.warning("site_deleted", site=site.site_tag, by=by)


def _site_kept_by(site: Site) -> list[str]:
    nodes = list(site.nodes.order_by("name").values_list("name", flat=True)[: KEEPERS_NAMED + 1])
    tokens_of = site.management_tokens.order_by("name").values_list("name", flat=True)
    return [
        *some_named("the node", nodes),
        *some_named("the management token", list(tokens_of[: KEEPERS_NAMED + 1])),
    ]


def some_named(what: str, names: Sequence[str]) -> list[str]:
    """Each of these, for people; of more than a few, the first and that there are more."""
    named = [f"{what} {name}" for name in names[:KEEPERS_NAMED]]
    return [*named, "and more"] if len(names) > KEEPERS_NAMED else named


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
        if not _sites_lock([site.pk]):
            raise NotFound("No such site.", errors={"site": ["No such site."]})
        node = Node(site=site, tenant_tag=site.tenant_tag, **fields)
        store(node)
        node_documents_render(node=node)
    log.info("node_created", site=site.site_tag, node=node.name)
    return node


def nodes_create(items: Sequence[NewNode]) -> list[Node]:
    """Make all of these nodes or none, as `node_create` does.

    The error names each that is refused by its place in `items` (`17.name`).
    """
    with transaction.atomic():
        there = _sites_lock(fields["site"].pk for fields in items)
        absent: dict[int, SgmError] = {
            place: NotFound("No such site.", errors={"site": ["No such site."]})
            for place, fields in enumerate(items)
            if fields["site"].pk not in there
        }
        if absent:
            raise refusal_of_many(absent)
        nodes = [Node(tenant_tag=fields["site"].tenant_tag, **fields) for fields in items]
        if refused := rows_store(nodes, trusted=["site"]):
            raise refusal_of_many(refused)
        nodes_documents_render(nodes=nodes)
    log.info("nodes_created", nodes=len(nodes))
    return nodes


def _sites_lock(keys: Iterable[uuid.UUID]) -> set[uuid.UUID]:
    """Hold these sites for this transaction, in the order all do: those that there are."""
    rows = Site.objects.select_for_update(no_key=True).filter(pk__in=set(keys)).order_by("pk")
    return set(rows.values_list("pk", flat=True))


def node_update(
    *, node: Node, site: Site | None = None, by: str = "", **changes: Unpack[NodeChanges]
) -> Node:
    """Change a node. `site`: where it is to be; at another than now it moves first, by `by` (`node_move`)."""
    with transaction.atomic():
        if site is not None:
            node = node_move(node=node, site=site, by=by)
        node = _node_lock(node)
        _apply(node, changes)
        store(node)
        node_documents_render(node=node)
    log.info("node_changed", node=node.name, fields=sorted(changes))
    return node


def node_replace(*, node: Node, site: Site, by: str = "", **fields: Unpack[NodeChanges]) -> Node:
    """Change a node to be as these fields say, and otherwise as one that is made anew (`node_update`)."""
    completed = _completed(Node, NodeChanges.__optional_keys__, fields)
    return node_update(node=node, site=site, by=by, **completed)


def _node_lock(node: Node) -> Node:
    """The node as it is now, for this transaction alone; `NotFound` where it is deleted."""
    found = Node.objects.select_for_update().filter(pk=node.pk).first()
    if found is None:
        raise NotFound("No such node.")
    return found


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
        if site.pk not in sites:
            raise NotFound("No such site.", errors={"site": ["No such site."]})
        node = _node_lock(node)
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
        _sites_lock([node.site_id])
        node = _node_lock(node)
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
    """Make a token which opens these sites, in this order; its value is drawn unless one is given."""
    value = tokens.value_draw() if value is None else _free_value(value)
    # A site that goes meanwhile is found out at the commit.
    with conflicts("management token"):
        token = ManagementToken(
            id=token_id or uuid.uuid4(),
            name=name,
            digest=tokens.digest(value),
            encrypted=tokens.encrypt(value),
        )
        store(token)
        _token_sites_set(token, sites)
    log.info("management_access_issued", id=str(token.pk), name=name)
    return token


def _free_value(value: str) -> str:
    """A value that is no token's yet: under the other key (`tokens.digests`) it would not be noticed."""
    if ManagementToken.objects.filter(digest__in=tokens.digests(tokens.value_check(value))).exists():
        raise Conflict("This management token exists.", code="duplicate")
    return value


def token_update(*, token: ManagementToken, name: str, sites: Iterable[Site]) -> ManagementToken:
    """Give a token another name and other sites, in this order; its value stays.

    `NotFound` where somebody ended it meanwhile.
    """
    with conflicts("management token"):
        locked = ManagementToken.objects.select_for_update().filter(pk=token.pk).first()
        if locked is None:
            raise NotFound("No such token.")
        locked.name = name
        store(locked)
        _token_sites_set(locked, sites)
    log.info("management_access_changed", id=str(locked.pk), name=name)
    return locked


@transaction.atomic
def token_rotate(*, token: ManagementToken) -> ManagementToken:
    """Give a token a new value, drawn here; from the commit on the present one opens nothing."""
    value = tokens.value_draw()
    locked = ManagementToken.objects.select_for_update().filter(pk=token.pk).first()
    if locked is None:
        raise NotFound("No such token.")
    locked.digest, locked.encrypted = tokens.digest(value), tokens.encrypt(value)
    locked.save(update_fields=["digest", "encrypted"])
    log.info("management_access_rotated", id=str(locked.pk), name=locked.name)
    return locked


def _token_sites_set(token: ManagementToken, sites: Iterable[Site]) -> None:
    """Let a token open these sites and no others; the order of the rows is the order they are shown in."""
    wanted = list(dict.fromkeys(site.pk for site in sites))
    opens = ManagementToken.sites.through.objects
    # Rows that say the same stay: a token of thousands of sites may only get another name.
    if list(opens.filter(managementtoken=token).order_by("pk").values_list("site_id", flat=True)) == wanted:
        return
    opens.filter(managementtoken=token).delete()
    opens.bulk_create(
        ManagementToken.sites.through(managementtoken_id=token.pk, site_id=site_id) for site_id in wanted
    )


def token_revoke(*, token: ManagementToken) -> None:
    """End a token: from the commit on it opens nothing. `NotFound` where it has ended already."""
    token_id = str(token.pk)
    _, ended = ManagementToken.objects.filter(pk=token.pk).delete()
    if not ended.get(ManagementToken._meta.label):  # noqa: SLF001 - Django's documented name for it
        raise NotFound("No such token.")
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
        told: dict[uuid.UUID, Node] = {}
        for change in wanted:
            node = nodes.get(change.node_id)
            before = None if node is None else (node.online, node.session)
            if node is None or not _presence_apply(node, change):
                continue
            changed[node.pk] = node
            if (node.online, node.session) != before:
                node.presence_changed_at = now
                came_or_went.append(change)
                told[node.pk] = node
        rows_update(
            Node,
            fields=["online", "session", "boot", "presence_changed_at"],
            rows=[
                (node.pk, node.online, node.session, node.boot, node.presence_changed_at)
                for node in changed.values()
            ],
        )
        nodes_publish_presence(told.values())
    # Of very many at once, which is central's own trouble, the first and their number.
    for change in came_or_went[:LOGGED_EACH]:
        event = "node_online" if change.online else "node_offline"
        log.info(event, node=str(change.node_id), session=change.session)
    if len(came_or_went) > LOGGED_EACH:
        log.warning("many_nodes_came_or_went", nodes=len(came_or_went))
    return came_or_went


def _presence_rows(changes: Iterable[PresenceChange]) -> QuerySet[Node]:
    nodes = Node.objects.filter(pk__in={change.node_id for change in changes})
    return nodes.only("online", "session", "boot", "presence_changed_at", "name", "site_id")


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
    fell_silent, came_back = nodes_presence_record(silent), nodes_presence_record(heard)
    if settings.SGM_EVENTS_KEPT and is_judge:
        nodes_publish_health({pk: presence[pk].is_healthy(now=now) for pk, _, _ in nodes})
    return len(fell_silent), len(came_back)


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


def nodes_downlink_judge() -> tuple[int, int]:
    """Raise an alarm for nodes whose heartbeats come and which answer no ping; clear the rest.

    How many of each. `LiveUnavailable` where Redis does not answer: then nothing is known, nothing changed.
    """
    nodes = {node.pk: node for node in Node.objects.filter(online=True).only("site_id", "name")}
    presence = presence_read(nodes)
    now = central_now()
    if live.known_since(at=now) > now - DEAF_AFTER_S:
        # A Redis that came up empty a moment ago has heard of no answer yet.
        return 0, 0
    since = dict(Node.objects.filter(online=True).values_list("pk", "presence_changed_at"))
    wanted: dict[AlarmKey, AlarmText] = {}
    for pk, node in nodes.items():
        changed = since.get(pk)
        heard_at = max(presence[pk].pong_at, changed.timestamp() if changed is not None else 0.0)
        if presence[pk].is_heard(now=now) and now - heard_at > DEAF_AFTER_S:
            moment = datetime.fromtimestamp(heard_at, UTC)
            detail = f"Heartbeats arrive; no ping was answered since {_stamp(moment)}."
            wanted[AlarmKey(NODE_DEAF, node.site_id, pk)] = AlarmText(detail, node.name)
    return alarms_settle(among=Alarm.objects.filter(code=NODE_DEAF, by_node=False), wanted=wanted)


def certificates_judge(*, now: datetime) -> tuple[int, int]:
    """Raise an alarm for nodes whose last good certificate ends within 14 days; clear the rest.

    Judged by what was issued, not by what the node says: one that is gone cannot warn of its own.
    """
    last = Node.objects.filter(certificates__revoked_at=None).annotate(ends=Max("certificates__not_after"))
    wanted: dict[AlarmKey, AlarmText] = {}
    for node in last.filter(ends__lte=now + CERTIFICATE_ENDS_WITHIN).only("site_id", "name"):
        verb = "ended" if node.ends <= now else "ends"
        detail = f"Its newest certificate {verb} {_stamp(node.ends)}."
        wanted[AlarmKey(NODE_CERTIFICATE, node.site_id, node.pk)] = AlarmText(detail, node.name)
    return alarms_settle(among=Alarm.objects.filter(code=NODE_CERTIFICATE, by_node=False), wanted=wanted)


def _since(field: str, moment: datetime, *, now: datetime) -> Q:
    """The field is not after this moment; or in the future, because central's clock was set back."""
    return Q(**{f"{field}__lte": moment}) | Q(**{f"{field}__gt": now + timedelta(seconds=5)})


def _stamp(moment: datetime | None) -> str:
    assert moment is not None
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
