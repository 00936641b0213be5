"""What a node should have: its documents, the manifest which lists them, and who renders them.

Every app owns a name space of documents (`config`, `schedule/`), registers at start-up how to render it, and
puts its documents down here. Nothing here knows those apps: a service which makes a node or changes a site
calls `nodes_documents_render`, and each renderer is asked for what is its own.

Every change locks its nodes first, in the order of their keys, then their documents: whoever judges a report
or records a publication does the same, so that none of them confirms what has just been changed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import structlog
from django.db import transaction
from django.db.models import DateTimeField, F, FilteredRelation, OuterRef, Q, Subquery, Value
from django.db.models.functions import Coalesce
from django.utils import timezone

from edge.wire.codec import body_digest
from edge.wire.messages import Manifest, ManifestEntry
from sites_app.models import DocumentStatus, Node, NodeDocument
from smartgrid.kept import KeptQuery

log = structlog.stdlib.get_logger(__name__)

MANIFEST = "manifest"

# A transaction over as many nodes takes little longer than over one, and nobody waits long for it.
RENDERED_TOGETHER = 10

# Document name -> body: all the documents of a name space which this node should have.
Renderer = Callable[[Node], dict[str, dict[str, Any]]]
# Until when the broker must keep a document of this name; None: for ever.
Expiry = Callable[[str], datetime | None]


@dataclass(frozen=True, slots=True)
class _NameSpace:
    prefix: str
    render: Renderer
    expires_at: Expiry

    def owns(self, name: str) -> bool:
        return name.startswith(self.prefix) if self.prefix.endswith("/") else name == self.prefix


_name_spaces: dict[str, _NameSpace] = {}


@dataclass(frozen=True, slots=True)
class _Content:
    """What a document should say."""

    body: dict[str, Any]
    sha256: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class _Stored:
    """As much of a stored document as tells whether it must change."""

    pk: int
    sha256: str
    dropped: bool


def renderer_register(*, prefix: str, render: Renderer, expires_at: Expiry = lambda _name: None) -> None:
    """Make `render` the source of the document `prefix`, or of all below it where it ends in a slash."""
    _name_spaces[prefix] = _NameSpace(prefix=prefix, render=render, expires_at=expires_at)


def node_documents_render(*, node: Node, only: Collection[str] | None = None) -> None:
    """`nodes_documents_render` of a single node."""
    nodes_documents_render(nodes=[node], only=only)


def nodes_documents_render(*, nodes: Iterable[Node], only: Collection[str] | None = None) -> None:
    """Bring the documents of these nodes in line with what the apps render now; drop what none renders.

    `only`: the prefixes of the name spaces that may have changed, where that is known.
    """
    spaces = [space for prefix, space in _name_spaces.items() if only is None or prefix in only]
    with transaction.atomic():
        # Before anything is read: of two renderings at once the later must see what the earlier was about.
        versions = _lock(node.pk for node in nodes)
        by_key = Node.objects.in_bulk(list(versions))
        stored: dict[UUID, dict[str, _Stored]] = {pk: {} for pk in versions}
        rows = NodeDocument.objects.filter(node__in=versions)
        for document, node_id, name, sha256, dropped in rows.values_list(
            "pk", "node_id", "name", "sha256", "dropped"
        ):
            stored[node_id][name] = _Stored(document, sha256, dropped)
        wanted: dict[UUID, dict[str, _Content]] = {}
        unwanted: dict[UUID, set[str]] = {}
        for pk in versions:
            wanted[pk] = {
                name: _Content(body, body_digest(body), space.expires_at(name))
                for space in spaces
                for name, body in space.render(by_key[pk]).items()
            }
            unwanted[pk] = {
                name
                for name in stored[pk].keys() - wanted[pk].keys()
                if any(space.owns(name) for space in spaces)
            }
        _change(versions=versions, stored=stored, wanted=wanted, unwanted=unwanted)
        if only is None:
            Node.objects.filter(pk__in=versions, render_due_since__isnull=False).update(render_due_since=None)


def nodes_render_later(*, nodes: Iterable[UUID]) -> None:
    """Have these nodes rendered soon after the commit, a few in a transaction.

    For a change that is about a whole fleet. The request is in the database: it is kept whatever dies.
    """
    keys = sorted(set(nodes))
    with transaction.atomic():
        _lock(keys)
        Node.objects.filter(pk__in=keys, render_due_since__isnull=True).update(
            render_due_since=timezone.now()
        )
        nodes_sync_on_commit(keys)


def nodes_due_render(*, nodes: Iterable[UUID]) -> int:
    """Render those of these nodes that wait for it; how many."""
    due = list(Node.objects.filter(pk__in=list(nodes), render_due_since__isnull=False).order_by("pk"))
    for start in range(0, len(due), RENDERED_TOGETHER):
        nodes_documents_render(nodes=due[start : start + RENDERED_TOGETHER])
    return len(due)


def documents_put(
    *,
    nodes: Iterable[Node | UUID],
    name: str,
    body: dict[str, Any],
    expires_at: datetime | None = None,
) -> int:
    """Let these nodes have this document; how many of them had another or none.

    The same body again changes nothing and publishes nothing. Otherwise the version of the node's manifest
    rises by one and is the document's version, nothing is known of it any longer, and after the commit both
    are published. `expires_at`: when the broker may forget it; None: never.
    """
    if name == MANIFEST:
        raise ValueError("the manifest is made, not put down")
    content = _Content(body, body_digest(body), expires_at)
    with transaction.atomic():
        versions = _lock(map(_key, nodes))
        stored = _stored(versions, [name])
        wanted = {pk: {name: content} for pk in versions}
        return _change(versions=versions, stored=stored, wanted=wanted, unwanted={})


def documents_drop(*, nodes: Iterable[Node | UUID], names: Collection[str]) -> int:
    """Take these documents from these nodes: a manifest without them. How many nodes had any of them."""
    with transaction.atomic():
        versions = _lock(map(_key, nodes))
        stored = _stored(versions, names)
        return _change(
            versions=versions, stored=stored, wanted={}, unwanted={pk: frozenset(names) for pk in versions}
        )


def node_document_put(
    *, node: Node, name: str, body: dict[str, Any], expires_at: datetime | None = None
) -> NodeDocument:
    """`documents_put` for a single node; its document."""
    documents_put(nodes=[node], name=name, body=body, expires_at=expires_at)
    return NodeDocument.objects.get(node=node, name=name)


def node_document_drop(*, node: Node, name: str) -> bool:
    """`documents_drop` for a single node and document. False where there was none."""
    return bool(documents_drop(nodes=[node], names=[name]))


def manifest_for(node: Node) -> Manifest:
    """All that this node should have now, read afresh."""
    # One statement, hence one moment: a manifest must not list what its version does not have yet.
    rows = Node.objects.filter(pk=node.pk).values_list(
        "epoch",
        "manifest_version",
        "documents__name",
        "documents__version",
        "documents__sha256",
        "documents__dropped",
    )
    found = list(rows)
    if not found:
        raise Node.DoesNotExist
    docs = {row[2]: ManifestEntry(v=row[3], sha256=row[4]) for row in found if row[2] and not row[5]}
    return Manifest(epoch=found[0][0], version=found[0][1], docs=dict(sorted(docs.items())))


class DocumentState(NamedTuple):
    """What is known of a document at one node; `status` is one of `DocumentStatus`.

    `at` is when the node last said something new about this content; None where it has not answered for it
    yet, or where it does not have the document to answer for (`version` 0).
    """

    status: str
    version: int
    at: datetime | None
    error: str


def document_states(documents: Iterable[tuple[UUID, str]]) -> list[dict[str, DocumentState]]:
    """Of each of these documents, a site and a name: its state at every node of the site, by the node's name.

    One query, whatever is asked for.
    """
    asked = list(documents)
    # By number: a UUID's hash is made in Python, which a page of a hundred feels.
    by_site: dict[int, dict[str, dict[str, DocumentState]]] = {}
    found = [by_site.setdefault(site.int, {}).setdefault(name, {}) for site, name in asked]
    sites, names = list({site.int: site for site, _ in asked}.values()), sorted({name for _, name in asked})
    for site, node, name, status, version, at, error in _STATES.rows(sites, names):
        of_site = by_site[site.int]
        is_there = name in of_site
        if is_there:
            of_site[name][node] = DocumentState(status, version, at, error)
        if not is_there or len(of_site) > 1:
            for states in of_site.values():
                states.setdefault(node, _MISSING)
    return found


_MISSING = DocumentState(DocumentStatus.PENDING.value, 0, None, "")
_STATES = KeptQuery(
    lambda sites, names: (
        Node.objects.filter(site__pk__among=sites)
        .annotate(
            told=FilteredRelation(
                "documents", condition=Q(documents__name__among=names, documents__dropped=False)
            )
        )
        .order_by("name", "pk")
        .values_list(
            "site_id",
            "name",
            "told__name",
            "told__status",
            "told__version",
            "told__answered_at",
            "told__error",
        )
    ),
    list,
    list,
)


def nodes_sync_on_commit(nodes: Iterable[Node | UUID]) -> None:
    """Have what the broker lacks of these nodes published, once the change is committed.

    A change is not undone because nobody could be told: what is lost here the sweep finds.
    """
    from sites_app.syncing import nodes_sync_queue  # noqa: PLC0415 - tasks import this module

    keys = sorted({str(_key(node)) for node in nodes})
    if keys:
        transaction.on_commit(lambda: nodes_sync_queue(keys))


def _key(node: Node | UUID) -> UUID:
    return node.pk if isinstance(node, Node) else node


def _lock(nodes: Iterable[UUID]) -> dict[UUID, int]:
    """Let one writer at a time change these nodes' documents (SQLite: its transactions already are).

    Without the key, so that nobody who sends a node a command waits for that. The versions of the manifests.
    """
    rows = Node.objects.select_for_update(no_key=True).filter(pk__in=list(nodes)).order_by("pk")
    return dict(rows.values_list("pk", "manifest_version"))


def _stored(nodes: Iterable[UUID], names: Collection[str]) -> dict[UUID, dict[str, _Stored]]:
    stored: dict[UUID, dict[str, _Stored]] = {pk: {} for pk in nodes}
    rows = NodeDocument.objects.filter(node__in=stored, name__in=names)
    for pk, node_id, name, sha256, dropped in rows.values_list("pk", "node_id", "name", "sha256", "dropped"):
        stored[node_id][name] = _Stored(pk, sha256, dropped)
    return stored


def _change(
    *,
    versions: Mapping[UUID, int],
    stored: Mapping[UUID, Mapping[str, _Stored]],
    wanted: Mapping[UUID, Mapping[str, _Content]],
    unwanted: Mapping[UUID, Collection[str]],
) -> int:
    """Bring the stored documents of locked nodes in line; how many nodes that changed."""
    now = timezone.now()
    changed: set[UUID] = set()
    new: list[NodeDocument] = []
    # Nodes mostly get the same: one statement for each content, however many nodes.
    altered: dict[str, tuple[_Content, list[int]]] = {}
    dropped: list[int] = []
    for node_id, contents in wanted.items():
        for name, content in contents.items():
            row = stored[node_id].get(name)
            if row is None:
                new.append(
                    NodeDocument(
                        node_id=node_id,
                        name=name,
                        version=versions[node_id] + 1,
                        sha256=content.sha256,
                        body=content.body,
                        changed_at=now,
                        expires_at=content.expires_at,
                    )
                )
            elif row.dropped or row.sha256 != content.sha256:
                altered.setdefault(f"{name} {content.sha256}", (content, []))[1].append(row.pk)
            else:
                continue
            changed.add(node_id)
    for node_id, names in unwanted.items():
        rows = [row for name in names if (row := stored[node_id].get(name)) and not row.dropped]
        dropped += [row.pk for row in rows]
        if rows:
            changed.add(node_id)
    if not changed:
        return 0
    Node.objects.filter(pk__in=changed).update(
        manifest_version=F("manifest_version") + 1,
        # Its last report was about something else.
        out_of_sync_since=Coalesce("out_of_sync_since", Value(now, output_field=DateTimeField())),
    )
    NodeDocument.objects.bulk_create(new, batch_size=500)
    version = Subquery(Node.objects.filter(pk=OuterRef("node_id")).values("manifest_version")[:1])
    unanswered: dict[str, Any] = {
        "version": version,
        "changed_at": now,
        "status": DocumentStatus.PENDING,
        "answered_version": 0,
        "answered_at": None,
        "error": "",
    }
    for content, keys in altered.values():
        NodeDocument.objects.filter(pk__in=keys).update(
            sha256=content.sha256,
            body=content.body,
            expires_at=content.expires_at,
            dropped=False,
            **unanswered,
        )
    if dropped:
        NodeDocument.objects.filter(pk__in=dropped).update(dropped=True, **unanswered)
    nodes_sync_on_commit(changed)
    return len(changed)
