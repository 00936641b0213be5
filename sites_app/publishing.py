"""From the documents a node should have to the broker's retained messages."""

from __future__ import annotations

from typing import Protocol

from edge.wire.codec import encode
from edge.wire.messages import Document
from edge.wire.topics import NodeTopics
from sites_app.documents import MANIFEST, manifest_for
from sites_app.models import Node, NodeDocument


class DesiredStateLink(Protocol):
    """As much of the node link as is needed here."""

    def put_desired(self, topics: NodeTopics, name: str, payload: bytes) -> None: ...


def node_publish(*, node_id: str, link: DesiredStateLink, names: list[str] | None = None) -> None:
    """Publish these documents (None: all) and then the manifest, retained; a dropped one as an empty message.

    Two publishers may overtake each other between database and broker. Each therefore looks again when it is
    done and repeats itself if the documents have changed meanwhile, so that the last to publish leaves the
    newest.
    """
    node = Node.objects.filter(pk=node_id).first()
    if node is None:
        return
    topics = node.topics
    while True:
        manifest = manifest_for(node)
        documents = NodeDocument.objects.filter(node=node)
        stored = {
            document.name: document
            for document in (documents if names is None else documents.filter(name__in=names))
        }
        for name in stored if names is None else names:
            document = stored.get(name)
            payload = b"" if document is None else _bytes(document, epoch=manifest.epoch)
            link.put_desired(topics, name, payload)
        # Last, so that a node which reads the manifest finds what it lists.
        link.put_desired(topics, MANIFEST, encode(manifest))
        latest = manifest_for(node)
        if (latest.epoch, latest.version) == (manifest.epoch, manifest.version):
            return


def _bytes(document: NodeDocument, *, epoch: int) -> bytes:
    return encode(Document(epoch=epoch, version=document.version, sha256=document.sha256, body=document.body))
