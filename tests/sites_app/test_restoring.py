"""Central restored from a backup: afterwards every node runs what the database says, not what it was told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone

from edge.runtime.documents import Desired
from edge.runtime.store import Store
from edge.wire.codec import decode
from edge.wire.messages import Document as WireDocument, Manifest, Reported
from sites_app.documents import manifest_for, node_document_drop, node_document_put
from sites_app.models import DocumentStatus, Node, NodeDocument
from sites_app.publishing import nodes_publish, nodes_unpublished
from sites_app.restoring import central_restored
from tests.factories import device_make, node_make, report_make, report_record
from tests.sites_app.test_documents import Retained

pytestmark = pytest.mark.django_db

DAY = "schedule/2026-11-24/inverter"
LATER = "schedule/2026-11-25/inverter"


class RealNode:
    """The edge's own desired state on a disk of its own, fed from a broker's retained messages."""

    def __init__(self, node: Node, directory: Path) -> None:
        self._node = node
        self._store = Store(directory)
        self._desired = Desired(self._store, lambda _documents, _name: None, lambda: None)
        self._desired.load()
        self._mono_ms = 0

    def close(self) -> None:
        self._store.close()

    def hears(self, broker: Retained) -> None:
        """Everything the broker holds for this node, documents first: the hardest order."""
        topics = self._node.topics
        found = {
            topic.removeprefix(topics.document("")): payload
            for topic, payload in broker.messages.items()
            if payload and topic.startswith(topics.document(""))
        }
        for name, payload in found.items():
            if name != "manifest":
                self._desired.take(name, decode(WireDocument, payload))
        self._desired.take_manifest(decode(Manifest, found["manifest"]))
        while not self._desired.is_settled:
            self._desired.step()

    @property
    def runs(self) -> dict[str, Any]:
        return {name: document.body for name, document in self._desired.applied.items()}

    def says(self, **fields: Any) -> Reported:
        self._mono_ms += 1000
        return report_make(
            self._node,
            epoch=self._desired.epoch,
            manifest_version=self._desired.version,
            documents=self._desired.reported(),
            mono_ms=self._mono_ms,
            **fields,
        )


@pytest.fixture
def node() -> Node:
    node = node_make()
    node_document_put(node=node, name=DAY, body={"slots": {"09:00": 1}})
    return node


@pytest.fixture
def there(node: Node, tmp_path: Path) -> Iterator[RealNode]:
    there = RealNode(node, tmp_path)
    yield there
    there.close()


def should_run(node: Node) -> dict[str, Any]:
    return dict(NodeDocument.objects.filter(node=node, dropped=False).values_list("name", "body"))


def statuses(node: Node) -> set[str]:
    return set(NodeDocument.objects.filter(node=node).values_list("status", flat=True))


def told(node: Node, there: RealNode, broker: Retained) -> None:
    """Publication, the way to the node, and its report."""
    nodes_publish(node_ids=[node.pk], link=broker)
    there.hears(broker)
    report_record(node, there.says())


class Backup:
    """What the database says now; `restore` lets everything since be forgotten."""

    def __init__(self) -> None:
        self._savepoint = transaction.savepoint()

    def restore(self) -> None:
        transaction.savepoint_rollback(self._savepoint)


def test_versions_that_coincide_with_other_content_end_with_what_the_database_says(node, there):
    broker = Retained()
    told(node, there, broker)
    backup = Backup()
    node_document_put(node=node, name=DAY, body={"slots": {"09:00": 2}})
    told(node, there, broker)
    version_told = manifest_for(node).version
    backup.restore()
    node_document_put(node=node, name=DAY, body={"slots": {"09:00": 3}})
    assert manifest_for(node).version == version_told
    central_restored()
    told(node, there, broker)
    assert there.runs == should_run(node)
    assert there.runs[DAY] == {"slots": {"09:00": 3}}
    assert statuses(node) == {"applied"}
    assert Node.objects.get(pk=node.pk).out_of_sync_since is None


def test_node_that_was_told_more_than_the_database_knows_drops_it(node, there):
    broker = Retained()
    told(node, there, broker)
    backup = Backup()
    for number in range(5):
        node_document_put(node=node, name=f"schedule/2026-11-2{number}/battery", body={"slots": {}})
    node_document_drop(node=node, name=DAY)
    told(node, there, broker)
    assert DAY not in there.runs
    backup.restore()
    central_restored()
    told(node, there, broker)
    assert there.runs == should_run(node)
    assert statuses(node) == {"applied"}


def test_restore_that_nobody_told_of_is_noticed_by_the_first_report_above_the_database(node, there, caplog):
    broker = Retained()
    told(node, there, broker)
    backup = Backup()
    for value in range(5):
        node_document_put(node=node, name=DAY, body={"slots": {"09:00": value}})
    told(node, there, broker)
    backup.restore()
    report_record(node, there.says())
    assert "node_above_database" in caplog.text
    told(node, there, broker)
    assert there.runs == should_run(node)
    assert there.runs[DAY] == {"slots": {"09:00": 1}}
    assert statuses(node) == {"applied"}


def test_restore_that_nobody_told_of_is_noticed_by_the_content_of_a_version_that_coincides(node, there):
    broker = Retained()
    told(node, there, broker)
    backup = Backup()
    node_document_put(node=node, name=DAY, body={"slots": {"09:00": 2}})
    told(node, there, broker)
    backup.restore()
    node_document_put(node=node, name=DAY, body={"slots": {"09:00": 3}})
    report_record(node, there.says())
    assert NodeDocument.objects.get(node=node, name=DAY).status == DocumentStatus.CONFLICT
    told(node, there, broker)
    assert there.runs[DAY] == {"slots": {"09:00": 3}}
    assert statuses(node) == {"applied"}


def test_second_restore_of_the_same_backup_is_above_the_first(node, there):
    """Both would give the backup's epoch and one: the same, with other content."""
    broker = Retained()
    told(node, there, broker)
    backup = Backup()
    central_restored()
    node_document_put(node=node, name=DAY, body={"slots": {"09:00": 2}})
    told(node, there, broker)
    backup.restore()
    central_restored(now=timezone.now() + timedelta(minutes=1))
    node_document_put(node=node, name=DAY, body={"slots": {"09:00": 3}})
    told(node, there, broker)
    assert there.runs == should_run(node)


def test_node_restored_from_an_old_image_catches_up(node, there, tmp_path_factory):
    broker = Retained()
    told(node, there, broker)
    node_document_put(node=node, name=LATER, body={"slots": {}})
    told(node, there, broker)
    image = RealNode(node, tmp_path_factory.mktemp("image"))
    report_record(node, image.says(boot="boot-2"))
    assert statuses(node) == {"pending"}
    image.hears(broker)
    report_record(node, image.says(boot="boot-2"))
    assert image.runs == should_run(node)
    assert statuses(node) == {"applied"}
    image.close()


def test_command_says_what_it_did_and_is_harmless_twice(node):
    device_make(node=node)
    report_record(node)
    epochs = [Node.objects.get(pk=node.pk).epoch]
    for _ in range(2):
        out = StringIO()
        call_command("central_restored", stdout=out)
        assert "1 nodes are given an epoch of" in out.getvalue()
        assert "2 documents will be published anew" in out.getvalue()
        epochs.append(Node.objects.get(pk=node.pk).epoch)
        assert set(nodes_unpublished()) == {node}
        assert statuses(node) == {"pending"}
    assert epochs[0] < epochs[1] < epochs[2]


def test_command_without_nodes_says_so():
    out = StringIO()
    call_command("central_restored", stdout=out)
    assert "nothing to do" in out.getvalue()
