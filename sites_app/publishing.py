"""From the documents a node should have to the broker's retained messages.

What the broker holds is recorded after it took it over, so a publisher that dies in between leaves work to be
done twice, never work that is taken for done. Two publishers may overtake each other between database and
broker. Each therefore looks again when it records: what changed meanwhile it marks as not published, and has
it published again, so that the last to publish leaves the newest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import F, Q, QuerySet, TextField
from django.db.models.functions import Cast
from django.utils import timezone

from edge.wire.codec import body_digest, encode, raw
from edge.wire.messages import Document, Manifest, ManifestEntry
from edge.wire.topics import NodeTopics
from sites_app.documents import MANIFEST, manifest_for, nodes_sync_on_commit
from sites_app.models import DocumentStatus, Farewell, Node, NodeDocument
from smartgrid.bulk import rows_update

log = structlog.stdlib.get_logger(__name__)

# As many messages leave together: some megabytes at most, and half a second of the broker's time.
MESSAGES_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class DesiredMessage:
    """One retained message of a node's desired state; an empty payload takes the one of that name away.

    `expiry_s`: when the broker may forget it; None: never.
    """

    topics: NodeTopics
    name: str
    payload: bytes
    expiry_s: int | None = None


class DesiredStateLink(Protocol):
    """As much of the node link as is needed here."""

    def put_desired(self, messages: Sequence[DesiredMessage]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Row:
    """A document as the manifest lists it, or a tombstone."""

    pk: int
    name: str
    version: int
    sha256: str
    dropped: bool
    is_wanted: bool


@dataclass(frozen=True, slots=True)
class _Content:
    """What a document says. Its body goes as the database has it: nobody here needs to read it."""

    version: int
    sha256: str
    body: str
    expires_at: datetime | None

    def payload(self, *, epoch: int) -> bytes:
        body: Any = raw(self.body.encode())
        return encode(Document(epoch=epoch, version=self.version, sha256=self.sha256, body=body))

    def expiry_s(self, now: datetime) -> int | None:
        if self.expires_at is None:
            return None
        return max(1, round((self.expires_at - now).total_seconds()))


def _contents(keys: Iterable[int]) -> dict[int, _Content]:
    rows = NodeDocument.objects.filter(pk__in=list(keys)).annotate(text=Cast("body", TextField()))
    found = rows.values_list("pk", "version", "sha256", "text", "expires_at")
    return {pk: _Content(*content) for pk, *content in found}


@dataclass(slots=True)
class _Plan:
    """What one node's publication was made from."""

    pk: UUID
    tenant: str
    epoch: int
    version: int
    is_wanted: bool
    rows: list[_Row] = field(default_factory=list)

    @property
    def wanted(self) -> list[_Row]:
        return [row for row in self.rows if row.is_wanted]

    @property
    def manifest(self) -> Manifest:
        listed = sorted((row.name, row) for row in self.rows if not row.dropped)
        docs = {name: ManifestEntry(v=row.version, sha256=row.sha256) for name, row in listed}
        return Manifest(epoch=self.epoch, version=self.version, docs=docs)


def nodes_unpublished() -> QuerySet[Node]:
    """The nodes of which the broker is not recorded to hold all that they should have.

    A manifest is recorded with its documents, in one transaction: it alone tells.
    """
    return Node.objects.exclude(published_epoch=F("epoch"), published_version=F("manifest_version"))


def documents_unpublished() -> Q:
    """Of `NodeDocument`: what the broker is not recorded to hold, tombstones that it was not told of too."""
    return ~Q(published_version=F("version")) | ~Q(published_epoch=F("node__epoch")) | Q(dropped=True)


def nodes_publish(*, node_ids: Iterable[str | UUID], link: DesiredStateLink, again: bool = False) -> int:
    """Publish what the broker is not recorded to hold of these nodes, and record it; how many messages.

    A dropped document is published as an empty message, the manifest comes last. `again`: what a node has
    not answered for is published anew, and its manifest, whatever is recorded. A node that changed meanwhile
    is queued once more.

    Errors as of `put_desired`; what was recorded until then stays so.
    """
    published = 0
    for some in _together(_plans(sorted({UUID(str(node_id)) for node_id in node_ids}), again=again)):
        messages = _messages(some)
        if messages is None:
            nodes_sync_on_commit([plan.pk for plan in some])
            continue
        link.put_desired(messages)
        published += len(messages)
        _record(some)
    return published


def _plans(nodes: Sequence[UUID], *, again: bool) -> list[_Plan]:
    """Those of these nodes of which something is to be published, and what.

    Nodes and documents in one statement, hence as of one moment: a manifest must not list what its version
    does not have yet.
    """
    plans: dict[UUID, _Plan] = {}
    rows = Node.objects.filter(pk__in=nodes).values_list(
        "pk",
        "tenant_tag",
        "epoch",
        "manifest_version",
        "published_epoch",
        "published_version",
        "documents__pk",
        "documents__name",
        "documents__version",
        "documents__sha256",
        "documents__dropped",
        "documents__published_epoch",
        "documents__published_version",
        "documents__status",
    )
    for (
        pk,
        tenant,
        epoch,
        version,
        has_epoch,
        has_version,
        document,
        name,
        v,
        sha256,
        dropped,
        document_epoch,
        document_version,
        status,
    ) in rows.order_by("pk", "documents__name"):
        plan = plans.get(pk)
        if plan is None:
            is_wanted = again or (has_epoch, has_version) != (epoch, version)
            plan = plans[pk] = _Plan(pk, tenant, epoch, version, is_wanted)
        if document is None:
            continue  # type: ignore[unreachable]  # a node may have none yet: it is an outer join
        is_wanted = (
            dropped
            or (document_epoch, document_version) != (epoch, v)
            or (again and status in {DocumentStatus.PENDING, DocumentStatus.CONFLICT})
        )
        plan.rows.append(_Row(document, name, v, sha256, dropped, is_wanted))
        plan.is_wanted |= is_wanted
    return [plan for plan in plans.values() if plan.is_wanted]


def _together(plans: Iterable[_Plan]) -> Iterator[list[_Plan]]:
    """Nodes whose messages leave together."""
    some: list[_Plan] = []
    messages = 0
    for plan in plans:
        some.append(plan)
        messages += len(plan.wanted) + 1
        if messages >= MESSAGES_AT_ONCE:
            yield some
            some, messages = [], 0
    if some:
        yield some


def _messages(plans: Sequence[_Plan]) -> list[DesiredMessage] | None:
    """What these nodes are to be told; None where a document changed since the plan was made."""
    keys = [row.pk for plan in plans for row in plan.wanted if not row.dropped]
    documents = _contents(keys)
    now = timezone.now()
    messages = []
    for plan in plans:
        topics = NodeTopics(plan.tenant, str(plan.pk))
        for row in plan.wanted:
            if row.dropped:
                messages.append(DesiredMessage(topics, row.name, b""))
                continue
            content = documents.get(row.pk)
            if content is None or content.version != row.version:
                return None
            payload = content.payload(epoch=plan.epoch)
            messages.append(DesiredMessage(topics, row.name, payload, content.expiry_s(now)))
        # The manifest last, so that a node which reads it finds what it lists.
        messages.append(DesiredMessage(topics, MANIFEST, encode(plan.manifest)))
    return messages


def _record(plans: Sequence[_Plan]) -> None:
    """Record what the broker took over, and queue once more what changed meanwhile.

    Of that, another publisher may have published and recorded what is newer, and been overtaken by this one:
    whatever is recorded of it is not to be believed.
    """
    now = timezone.now()
    told: list[tuple[Any, ...]] = []
    doubtful: list[int] = []
    gone: list[int] = []
    rows: list[tuple[Any, ...]] = []
    changed: list[UUID] = []
    with transaction.atomic():
        nodes = Node.objects.select_for_update(no_key=True).filter(pk__in=[plan.pk for plan in plans])
        held = {
            pk: (epoch, version)
            for pk, epoch, version in nodes.order_by("pk").values_list("pk", "epoch", "manifest_version")
        }
        keys = [row.pk for plan in plans for row in plan.wanted]
        found = dict(NodeDocument.objects.filter(pk__in=keys).values_list("pk", "version"))
        # Of a node that is deleted, its farewell says the last word.
        for plan in (plan for plan in plans if plan.pk in held):
            lost = set()
            for row in plan.wanted:
                if found.get(row.pk) == row.version:
                    if row.dropped:
                        gone.append(row.pk)
                    else:
                        told.append((row.pk, plan.epoch, row.version))
                elif row.pk in found:
                    doubtful.append(row.pk)
                elif not row.dropped:
                    lost.add(row.name)
            if lost:
                doubtful += _lost_again(plan.pk, lost, version=held[plan.pk][1])
            if lost or held[plan.pk] != (plan.epoch, plan.version):
                changed.append(plan.pk)
                rows.append((plan.pk, 0, 0, now))
            else:
                rows.append((plan.pk, plan.epoch, plan.version, now))
        rows_update(NodeDocument, fields=["published_epoch", "published_version"], rows=told)
        NodeDocument.objects.filter(pk__in=doubtful).update(published_epoch=0, published_version=0)
        NodeDocument.objects.filter(pk__in=gone).delete()
        rows_update(Node, fields=["published_epoch", "published_version", "published_at"], rows=rows)
        nodes_sync_on_commit(changed)


def _lost_again(node_id: UUID, names: set[str], *, version: int) -> list[int]:
    """The rows of documents of which the broker may hold what this publisher found and which went meanwhile.

    One that was put down again has a row of its own; of the others, the broker is told once more.
    """
    renewed = dict(NodeDocument.objects.filter(node=node_id, name__in=names).values_list("name", "pk"))
    tombstones = [
        NodeDocument(
            node_id=node_id, name=name, version=version, sha256=body_digest({}), body={}, dropped=True
        )
        for name in sorted(names - renewed.keys())
    ]
    NodeDocument.objects.bulk_create(tombstones)
    return list(renewed.values())


def nodes_publish_anew(*, nodes: Iterable[UUID]) -> int:
    """Take nothing for published of these nodes, and have all of it published; how many nodes.

    For a broker that lost what it held, and an operator who doubts it.
    """
    keys = sorted(nodes)
    with transaction.atomic():
        locked = Node.objects.select_for_update(no_key=True).filter(pk__in=keys).order_by("pk")
        keys = list(locked.values_list("pk", flat=True))
        NodeDocument.objects.filter(node__in=keys).update(published_epoch=0, published_version=0)
        Node.objects.filter(pk__in=keys).update(published_epoch=0, published_version=0)
        nodes_sync_on_commit(keys)
    return len(keys)


def node_messages(node: Node) -> dict[str, str]:
    """All that a node should have, name -> JSON, as it is now; the manifest last, as it is published."""
    manifest = manifest_for(node)
    documents = NodeDocument.objects.filter(node=node, dropped=False).order_by("name")
    names = dict(documents.values_list("pk", "name"))
    contents = _contents(names)
    messages = {name: contents[pk].payload(epoch=manifest.epoch).decode() for pk, name in names.items()}
    return messages | {MANIFEST: encode(manifest).decode()}


def node_farewell(*, node: Node) -> Farewell:
    """Keep what a node should have, for the transaction that deletes it: it is published after the commit.

    What was queued before finds no row to read from, and the broker would keep an older state.
    """
    from sites_app.syncing import farewells_queue  # noqa: PLC0415 - tasks import this module

    row = Farewell.objects.create(
        tenant_tag=node.tenant_tag, node_id=node.pk, messages=list(node_messages(node).items())
    )
    transaction.on_commit(farewells_queue)
    return row


def farewells_publish(*, link: DesiredStateLink) -> int:
    """Publish what deleted nodes should have had last, and forget it; how many nodes.

    A node that was made again under its former id is told by its own documents.
    """
    farewells = list(Farewell.objects.order_by("pk"))
    back = set(Node.objects.filter(pk__in=[row.node_id for row in farewells]).values_list("pk", flat=True))
    for row in farewells:
        if row.node_id not in back:
            topics = NodeTopics(row.tenant_tag, str(row.node_id))
            link.put_desired([DesiredMessage(topics, name, text.encode()) for name, text in row.messages])
        row.delete()
    return len(farewells)
