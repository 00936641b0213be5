"""What a node should have: its documents, the manifest which lists them, and who renders them.

Every app owns a name space of documents (`config`, `schedule/`), registers at start-up how to render it, and
puts its documents down here. Nothing here knows those apps: a service which makes a node or changes a site
calls `node_documents_render`, and each renderer is asked for what is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from django.db import transaction
from django.db.models import F

from edge.wire.codec import body_digest
from edge.wire.messages import Manifest, ManifestEntry
from sites_app.models import Node, NodeDocument

log = structlog.stdlib.get_logger(__name__)

MANIFEST = "manifest"

# Document name -> body: all the documents of a name space which this node should have.
Renderer = Callable[[Node], dict[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class _NameSpace:
    prefix: str
    render: Renderer

    def owns(self, name: str) -> bool:
        return name.startswith(self.prefix) if self.prefix.endswith("/") else name == self.prefix


_name_spaces: dict[str, _NameSpace] = {}


def renderer_register(*, prefix: str, render: Renderer) -> None:
    """Make `render` the source of the document `prefix`, or of all below it where it ends in a slash."""
    _name_spaces[prefix] = _NameSpace(prefix=prefix, render=render)


def node_documents_render(*, node: Node) -> None:
    """Bring all documents of a node in line with what the apps render now; what none renders is dropped."""
    with transaction.atomic():
        # Before anything is read: of two renderings at once the later must see what the earlier was about.
        _lock(node)
        stored = set(node.documents.values_list("name", flat=True))
        for space in _name_spaces.values():
            bodies = space.render(node)
            for name, body in bodies.items():
                node_document_put(node=node, name=name, body=body)
            for name in stored - set(bodies):
                if space.owns(name):
                    node_document_drop(node=node, name=name)


def node_document_put(*, node: Node, name: str, body: dict[str, Any]) -> NodeDocument:
    """Let this node have this document. The same body again changes nothing and publishes nothing.

    Otherwise the manifest's version rises by one and is the document's version, and after the commit the
    document and the manifest are published.
    """
    if name == MANIFEST:
        raise ValueError("the manifest is made, not put down")
    sha256 = body_digest(body)
    with transaction.atomic():
        _lock(node)
        document = NodeDocument.objects.filter(node=node, name=name).first()
        if document is not None and document.sha256 == sha256:
            return document
        version = _version_raise(node)
        document, _ = NodeDocument.objects.update_or_create(
            node=node, name=name, defaults={"version": version, "sha256": sha256, "body": body}
        )
        publish_on_commit(node=node, names=[name])
    return document


def node_document_drop(*, node: Node, name: str) -> bool:
    """Take this document from the node: a manifest without it. False where there was none."""
    with transaction.atomic():
        _lock(node)
        deleted, _ = NodeDocument.objects.filter(node=node, name=name).delete()
        if not deleted:
            return False
        _version_raise(node)
        publish_on_commit(node=node, names=[name])
    return True


def manifest_for(node: Node) -> Manifest:
    """All that this node should have now, read afresh."""
    epoch, version = Node.objects.values_list("epoch", "manifest_version").get(pk=node.pk)
    documents = NodeDocument.objects.filter(node=node).values_list("name", "version", "sha256")
    return Manifest(
        epoch=epoch,
        version=version,
        docs={name: ManifestEntry(v=v, sha256=sha256) for name, v, sha256 in documents.order_by("name")},
    )


def publish_on_commit(*, node: Node, names: list[str] | None) -> None:
    """Publish these documents (None: all) and the manifest, once the change is committed.

    A change is not undone because nobody could be told: what is lost here the periodic comparison of
    `reported` with the manifest finds.
    """
    from kombu.exceptions import OperationalError  # noqa: PLC0415 - tasks import this module

    from sites_app.tasks import publish_desired  # noqa: PLC0415

    node_id = str(node.pk)

    def publish() -> None:
        try:
            publish_desired.delay(node_id, names)
        except OperationalError as error:
            log.warning("desired_state_not_queued", node=node_id, documents=names, error=str(error))

    transaction.on_commit(publish)


def _lock(node: Node) -> None:
    """Let one writer at a time change a node's documents (SQLite: its transactions already are).

    Without the key, so that nobody who sends the node a command waits for that.
    """
    Node.objects.select_for_update(no_key=True).only("pk").get(pk=node.pk)


def _version_raise(node: Node) -> int:
    Node.objects.filter(pk=node.pk).update(manifest_version=F("manifest_version") + 1)
    node.refresh_from_db(fields=["manifest_version"])
    return node.manifest_version
