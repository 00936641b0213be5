from __future__ import annotations

import pytest

from edge.wire.codec import body_digest, decode, is_intact
from edge.wire.messages import Document, Manifest
from sites_app.documents import manifest_for, node_document_drop, node_document_put
from sites_app.publishing import nodes_publish
from sites_app.services import site_update
from tests.factories import device_make, node_make, site_make

pytestmark = pytest.mark.django_db

BODY = {"slots": {"09:00": 50, "12:00": None}}


class Retained:
    """A broker's retained messages, as much of one as publishing needs."""

    def __init__(self):
        self.messages = {}
        self.order = []
        self.before_manifest = None

    def put_desired(self, messages):
        for message in messages:
            if message.name == "manifest" and self.before_manifest is not None:
                happens, self.before_manifest = self.before_manifest, None
                happens()
            self.order.append(message.name)
            self.messages[message.topics.document(message.name)] = message.payload

    def manifest(self, node):
        return decode(Manifest, self.messages[node.topics.document("manifest")])

    def document(self, node, name):
        return decode(Document, self.messages[node.topics.document(name)])


def test_new_document_raises_the_manifests_version_and_takes_it():
    node = node_make()
    before = manifest_for(node).version
    document = node_document_put(node=node, name="extra", body=BODY)
    manifest = manifest_for(node)
    assert document.version == manifest.version == before + 1
    assert manifest.docs["extra"].sha256 == body_digest(BODY)


def test_same_body_again_changes_nothing(django_capture_on_commit_callbacks):
    node = node_make()
    first = node_document_put(node=node, name="extra", body=BODY)
    version = manifest_for(node).version
    with django_capture_on_commit_callbacks() as callbacks:
        again = node_document_put(node=node, name="extra", body=dict(reversed(BODY.items())))
    assert (again.version, manifest_for(node).version) == (first.version, version)
    assert callbacks == []


def test_changed_body_gets_a_higher_version_and_leaves_others_theirs():
    node = node_make()
    other = node_document_put(node=node, name="other", body=BODY)
    first = node_document_put(node=node, name="extra", body=BODY)
    second = node_document_put(node=node, name="extra", body={"slots": {}})
    assert second.version > first.version
    assert manifest_for(node).docs["other"].v == other.version


def test_dropped_document_is_a_manifest_without_it():
    node = node_make()
    node_document_put(node=node, name="extra", body=BODY)
    version = manifest_for(node).version
    assert node_document_drop(node=node, name="extra")
    manifest = manifest_for(node)
    assert "extra" not in manifest.docs
    assert manifest.version == version + 1
    assert not node_document_drop(node=node, name="extra")
    assert manifest_for(node).version == version + 1


def test_change_is_published_once_it_is_committed(django_capture_on_commit_callbacks):
    node = node_make()
    with django_capture_on_commit_callbacks() as callbacks:
        node_document_put(node=node, name="extra", body=BODY)
    assert len(callbacks) == 1


def test_changed_site_limit_reaches_the_configuration_of_its_nodes_only():
    site = site_make(curtailment_time_limit=60)
    node, other = node_make(site=site), node_make()
    before = manifest_for(other).version
    site_update(site=site, curtailment_time_limit=120)
    assert node.documents.get(name="config").body["site"]["curtailment_time_limit_s"] == 120
    assert manifest_for(other).version == before


def test_changed_name_of_a_site_is_no_news_to_its_nodes():
    site = site_make()
    node = node_make(site=site)
    before = manifest_for(node).version
    site_update(site=site, name="Other")
    assert manifest_for(node).version == before


def test_published_documents_are_intact_and_the_manifest_comes_last():
    node = node_make()
    device_make(node=node, peak_power_kw=60.5)
    broker = Retained()
    nodes_publish(node_ids=[node.pk], link=broker)
    config = broker.document(node, "config")
    assert is_intact(config)
    assert broker.order[-1] == "manifest"
    entry = broker.manifest(node).docs["config"]
    assert (entry.v, entry.sha256) == (config.version, config.sha256)


def test_dropped_document_is_published_as_nothing():
    node = node_make()
    node_document_put(node=node, name="extra", body=BODY)
    node_document_drop(node=node, name="extra")
    broker = Retained()
    nodes_publish(node_ids=[node.pk], link=broker)
    assert broker.messages[node.topics.document("extra")] == b""


def test_publishing_a_node_which_is_gone_does_nothing():
    broker = Retained()
    nodes_publish(node_ids=["00000000-0000-4000-8000-000000000000"], link=broker)
    assert broker.messages == {}
