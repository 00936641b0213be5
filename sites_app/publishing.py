"""From the documents a node should have to the broker's retained messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from django.db import transaction

from edge.wire.codec import encode
from edge.wire.messages import Document
from edge.wire.topics import NodeTopics
from sites_app.documents import MANIFEST, manifest_for
from sites_app.models import Node, NodeDocument

log = structlog.stdlib.get_logger(__name__)


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
        messages = []
        for name in stored if names is None else names:
            document = stored.get(name)
            payload = b"" if document is None else _bytes(document, epoch=manifest.epoch)
            messages.append(DesiredMessage(topics, name, payload))
        # The manifest last, so that a node which reads it finds what it lists.
        link.put_desired([*messages, DesiredMessage(topics, MANIFEST, encode(manifest))])
        latest = manifest_for(node)
        if (latest.epoch, latest.version) == (manifest.epoch, manifest.version):
            return


def node_messages(node: Node) -> dict[str, str]:
    """All that a node should have, name -> JSON, as it is now; the manifest last, as it is published."""
    manifest = manifest_for(node)
    messages = {
        document.name: _bytes(document, epoch=manifest.epoch).decode()
        for document in NodeDocument.objects.filter(node=node).order_by("name")
    }
    return messages | {MANIFEST: encode(manifest).decode()}


def node_farewell_on_commit(*, node: Node) -> None:
    """Publish what a node should have once more after the commit that deletes it.

    What was queued before finds no row to read from, and the broker would keep an older state.
    """
    from kombu.exceptions import OperationalError  # noqa: PLC0415 - tasks import this module

    from sites_app.tasks import publish_farewell  # noqa: PLC0415

    messages = node_messages(node)
    tenant, node_id = node.tenant_tag, str(node.pk)

    def publish() -> None:
        try:
            publish_farewell.delay(tenant, node_id, list(messages.items()))
        except OperationalError as error:
            log.warning("farewell_not_queued", node=node_id, error=str(error))

    transaction.on_commit(publish)


def messages_publish(
    *, tenant: str, node_id: str, messages: Mapping[str, str], link: DesiredStateLink
) -> None:
    """Publish these documents (name -> JSON) in this order, of a node that need not exist any longer."""
    topics = NodeTopics(tenant, node_id)
    link.put_desired([DesiredMessage(topics, name, text.encode()) for name, text in messages.items()])


def _bytes(document: NodeDocument, *, epoch: int) -> bytes:
    return encode(Document(epoch=epoch, version=document.version, sha256=document.sha256, body=document.body))
