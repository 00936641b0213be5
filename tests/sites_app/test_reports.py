"""What nodes say they run against what they should run: late, twice, out of order, from a former central."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
import time_machine
from django.db import connection
from django.test.utils import CaptureQueriesContext

from control_app.models import ControlCommand
from edge.wire.messages import Alarm, AppliedDocument
from sites_app.documents import document_states, documents_put, node_document_drop, node_document_put
from sites_app.models import DocumentStatus, Node, NodeDocument
from sites_app.publishing import nodes_publish, nodes_unpublished
from sites_app.reports import ReceivedReport, reports_compare, reports_record
from tests.factories import (
    control_command_make,
    device_make,
    node_make,
    report_make,
    report_record,
    site_make,
)
from tests.sites_app.test_documents import Retained

pytestmark = pytest.mark.django_db

NAME = "schedule/2026-11-24/inverter"
BODY: dict[str, Any] = {"slots": {"09:00": 50, "12:00": None}}
OTHER: dict[str, Any] = {"slots": {"09:00": 60}}
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    """Some time after all that is reported here."""
    with time_machine.travel(NOW + timedelta(hours=1), tick=False):
        yield


@pytest.fixture
def node() -> Node:
    """A node with a schedule, which has reported nothing."""
    node = node_make()
    node_document_put(node=node, name=NAME, body=BODY)
    return node


def document(node: Node, name: str = NAME) -> NodeDocument:
    return NodeDocument.objects.get(node=node, name=name)


def status(node: Node) -> str:
    return document(node).status


def out_of_sync_since(node: Node) -> datetime | None:
    return Node.objects.get(pk=node.pk).out_of_sync_since


def epoch(node: Node) -> int:
    return Node.objects.get(pk=node.pk).epoch


def saying(node: Node, name: str = NAME, **fields: Any) -> dict[str, AppliedDocument]:
    """The documents of a report that agrees, but for this one."""
    documents = dict(report_make(node).documents)
    return documents | {name: msgspec.structs.replace(documents[name], **fields)}


def test_document_is_pending_until_its_node_answers_for_it(node):
    assert (document(node).status, document(node).answered_at) == (DocumentStatus.PENDING, None)
    assert out_of_sync_since(node) is not None
    report_record(node, at=NOW)
    assert (document(node).status, document(node).answered_at) == (DocumentStatus.APPLIED, NOW)
    assert document(node).answered_version == document(node).version
    assert out_of_sync_since(node) is None


def test_changed_document_is_pending_again_and_its_node_out_of_sync(node):
    report_record(node)
    node_document_put(node=node, name=NAME, body=OTHER)
    changed = document(node)
    assert (changed.status, changed.answered_version, changed.answered_at) == ("pending", 0, None)
    assert out_of_sync_since(node) is not None


def test_word_about_the_predecessor_confirms_nothing(node):
    before = report_make(node)
    node_document_put(node=node, name=NAME, body=OTHER)
    report_record(node, before)
    assert status(node) == DocumentStatus.PENDING
    assert document(node, "config").status == DocumentStatus.APPLIED
    assert out_of_sync_since(node) is not None


def test_failed_is_an_answer_with_its_error_and_no_reason_to_publish_again(node):
    report_record(node, report_make(node, documents=saying(node, status="failed", error="no\x00 room")))
    assert (document(node).status, document(node).error) == (DocumentStatus.FAILED, "no room")
    assert out_of_sync_since(node) is None


def test_document_in_force_after_all_loses_its_error(node):
    report_record(node, report_make(node, documents=saying(node, status="failed", error="no room")))
    report_record(node)
    assert (document(node).status, document(node).error) == (DocumentStatus.APPLIED, "")


def test_node_restored_from_an_old_image_is_out_of_sync_and_its_document_pending(node):
    early = report_make(node, manifest_version=1, documents={})
    report_record(node, at=NOW)
    report_record(node, msgspec.structs.replace(early, boot="boot-2"), at=NOW + timedelta(seconds=5))
    assert status(node) == DocumentStatus.PENDING
    # It has answered for this content once; who waits for the first answer need not wait again.
    assert document(node).answered_version == document(node).version
    assert out_of_sync_since(node) == NOW + timedelta(seconds=5)


def test_manifest_that_is_not_the_newest_is_out_of_sync_though_all_documents_are_right(node):
    node_document_put(node=node, name="schedule/2026-11-25/inverter", body=BODY)
    report = report_make(node)
    node_document_drop(node=node, name="schedule/2026-11-25/inverter")
    report_record(node, report)
    assert status(node) == DocumentStatus.APPLIED
    assert out_of_sync_since(node) is not None


# --- order ------------------------------------------------------------------------------------------------


def test_of_one_boot_the_nodes_own_clock_tells_which_report_is_the_newer(node):
    old = report_make(node, mono_ms=1000, documents=saying(node, status="failed", error="old"))
    new = report_make(node, mono_ms=2000)
    report_record(node, new, at=NOW)
    assert report_record(node, old, at=NOW + timedelta(seconds=1)) == []
    assert status(node) == DocumentStatus.APPLIED


def test_in_a_batch_the_newest_of_each_node_is_taken(node):
    other = node_make()
    old = report_make(node, mono_ms=1000, documents=saying(node, status="failed", error="old"))
    received = [
        ReceivedReport(str(node.pk), report_make(node, mono_ms=2000), NOW, retained=False),
        ReceivedReport(str(other.pk), report_make(other, mono_ms=5), NOW, retained=False),
        ReceivedReport(str(node.pk), old, NOW + timedelta(seconds=1), retained=False),
    ]
    taken = reports_record(received)
    assert {(each.node.pk, each.received.reported.mono_ms) for each in taken} == {
        (node.pk, 2000),
        (other.pk, 5),
    }
    assert status(node) == DocumentStatus.APPLIED


def test_late_report_overtaken_by_one_that_says_what_was_known_is_not_taken(node):
    """An idle report must leave its moment, or one from before it would look newer."""
    late = report_make(node, mono_ms=2000, documents=saying(node, status="failed", error="for a moment"))
    report_record(node, report_make(node, mono_ms=1000), at=NOW)
    report_record(node, report_make(node, mono_ms=3000), at=NOW + timedelta(seconds=2))
    assert report_record(node, late, at=NOW + timedelta(seconds=3)) == []
    assert status(node) == DocumentStatus.APPLIED


def test_across_boots_the_moment_of_receipt_decides(node):
    report_record(node, report_make(node, boot="b1", mono_ms=9_000_000), at=NOW)
    new = report_make(node, boot="b2", mono_ms=1000, documents=saying(node, status="failed", error="new"))
    report_record(node, new, at=NOW + timedelta(seconds=1))
    assert status(node) == DocumentStatus.FAILED
    assert report_record(node, report_make(node, boot="b1"), at=NOW) == []


def test_central_whose_clock_was_set_back_goes_on_to_take_reports(node):
    report_record(node, report_make(node, boot="b1"), at=NOW + timedelta(hours=2))
    with time_machine.travel(NOW + timedelta(hours=1), tick=False):
        assert report_record(node, report_make(node, boot="b2"), at=NOW + timedelta(hours=1))
    assert Node.objects.get(pk=node.pk).reported_boot == "b2"


def test_same_report_twice_is_taken_twice_and_changes_nothing(node):
    report = report_make(node, mono_ms=1000)
    assert len(report_record(node, report, at=NOW)) == len(report_record(node, report, at=NOW, retained=True))
    assert document(node).answered_at == NOW


# --- what it costs ------------------------------------------------------------------------------------------


def statements(*reports: ReceivedReport) -> list[str]:
    with CaptureQueriesContext(
        connection,
    ) as queries:
        reports_record(reports)
    return [query["sql"] for query in queries.captured_queries if "SAVEPOINT" not in query["sql"]]


def received(node: Node, **fields: Any) -> ReceivedReport:
    return ReceivedReport(str(node.pk), report_make(node, **fields), NOW, retained=False)


def test_queries_do_not_grow_with_the_reports():
    nodes = [node_make() for _ in range(12)]
    one = statements(received(nodes[0]))
    many = statements(*(received(node) for node in nodes[1:]))
    assert len(one) == len(many) == 5


def test_idle_report_reads_no_document_and_writes_no_report(node):
    statements(received(node, mono_ms=1))
    idle = statements(received(node, mono_ms=2, at="2026-11-23T00:01:00Z"))
    assert len(idle) == 2
    assert not any("nodedocument" in statement or '"last_reported" =' in statement for statement in idle)


def test_report_is_judged_again_when_the_database_changed_meanwhile(node):
    report = report_make(node)
    report_record(node, report, at=NOW)
    node_document_put(node=node, name=NAME, body=OTHER)
    report_record(node, report, at=NOW + timedelta(seconds=60))
    assert status(node) == DocumentStatus.PENDING


# --- what else nodes may say ----------------------------------------------------------------------------------


def test_unknown_node_is_passed_over_and_holds_up_no_other(node):
    strange = ReceivedReport(str(uuid.uuid4()), report_make(node), NOW, retained=False)
    taken = reports_record([strange, received(node)])
    assert [each.node.pk for each in taken] == [node.pk]


@pytest.mark.parametrize(
    "fields",
    [{"epoch": 2**40}, {"epoch": -1}, {"manifest_version": 2**63}, {"mono_ms": 2**63}, {"boot": "b" * 65}],
)
def test_number_that_no_column_holds_is_not_taken_and_holds_up_no_other(node, caplog, fields):
    other = node_make()
    taken = reports_record([received(node, **fields), received(other)])
    assert [each.node.pk for each in taken] == [other.pk]
    assert "report_out_of_range" in caplog.text


def test_text_that_the_database_cannot_hold_is_kept_without_that(node):
    alarm = Alarm(code="wear\x00", detail="\\u0000 is not one, \x00 is", since="")
    report_record(node, report_make(node, alarms=(alarm,), sequences={"A\x00B": 2**62}))
    kept = Node.objects.get(pk=node.pk).last_reported
    assert kept is not None
    assert kept["alarms"][0] == {"code": "wear", "detail": "\\u0000 is not one,  is", "since": ""}
    assert kept["sequences"] == {"AB": 2**62}


# --- a central that was restored --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"epoch": 7}, "epoch 7, here 1"),
        ({"manifest_version": 50}, "version 50, here"),
        ({"documents": {"schedule/2026-11-30/x": AppliedDocument(v=40, status="applied")}}, "version 40"),
        ({"sequences": {"INV_01": 4711}}, "sequence 4711, here 0"),
    ],
)
def test_node_above_the_database_gets_an_epoch_above_all_it_knows(node, caplog, fields, why):
    report_record(node, report_make(node, **fields))
    assert epoch(node) == max(1, fields.get("epoch", 1)) + 1
    assert why in caplog.text
    assert "ERROR" in caplog.text
    assert node in nodes_unpublished()
    broker = Retained()
    nodes_publish(node_ids=[node.pk], link=broker)
    assert broker.document(node, NAME).epoch == broker.manifest(node).epoch == epoch(node)


def test_other_content_under_the_same_version_is_a_conflict_and_gets_a_new_epoch(node):
    report_record(node, report_make(node, documents=saying(node, digest="f" * 16)))
    assert status(node) == DocumentStatus.CONFLICT
    assert "with other content" in document(node).error
    assert epoch(node) == 2
    report_record(node)
    assert status(node) == DocumentStatus.APPLIED
    assert out_of_sync_since(node) is None


def test_document_of_the_former_epoch_is_confirmed_by_its_content_alone(node):
    before = report_make(node)
    silent = report_make(node, documents=saying(node, digest=""))
    Node.objects.filter(pk=node.pk).update(epoch=2)
    report_record(node, silent)
    assert status(node) == DocumentStatus.PENDING
    report_record(node, before)
    assert status(node) == DocumentStatus.APPLIED
    assert out_of_sync_since(node) is not None


def test_epoch_is_not_raised_again_while_the_node_is_on_its_way_to_it(node):
    """A node that has the new manifest and not yet the documents tells of those of the former epoch."""
    report_record(node, report_make(node, manifest_version=50), at=NOW)
    between = report_make(node, documents=saying(node, v=40, digest="f" * 16))
    assert between.epoch == 2
    report_record(node, between, at=NOW + timedelta(seconds=2))
    assert epoch(node) == 2
    assert out_of_sync_since(node) is not None
    # It goes on to say so: this is no transition.
    report_record(node, between, at=NOW + timedelta(seconds=62))
    assert epoch(node) == 3


def test_sequence_of_a_former_central_raises_the_epoch_once(node):
    """Devices keep the sequence they accepted, so every later report tells of it too."""
    for seconds in (0, 100, 200, 300):
        report_record(
            node, report_make(node, sequences={"INV_01": 4711}), at=NOW + timedelta(seconds=seconds)
        )
    assert epoch(node) == 2
    assert out_of_sync_since(node) is None
    higher = report_make(node, sequences={"INV_01": 4712})
    report_record(node, higher, at=NOW + timedelta(seconds=400))
    assert epoch(node) == 3


def test_sequence_of_a_command_of_this_database_is_nothing_above_it():
    device = device_make()
    command = control_command_make(device)
    assert ControlCommand.objects.get().sequence == command.sequence
    report_record(device.node, report_make(device.node, sequences={device.device_tag: command.sequence}))
    assert epoch(device.node) == 1


# --- anti-entropy -------------------------------------------------------------------------------------------


def test_comparison_of_all_corrects_what_was_judged_otherwise(node):
    report_record(node, at=NOW)
    assert reports_compare() == 0
    NodeDocument.objects.filter(node=node, name=NAME).update(status="failed", error="once upon a time")
    Node.objects.filter(pk=node.pk).update(out_of_sync_since=NOW)
    assert reports_compare() == 2
    assert (document(node).status, document(node).error) == (DocumentStatus.APPLIED, "")
    assert out_of_sync_since(node) is None


def test_comparison_of_all_passes_over_a_report_of_another_release(node):
    other = node_make()
    report_record(node, at=NOW)
    report_record(other, at=NOW)
    Node.objects.filter(pk=node.pk).update(last_reported={"epoch": "one"})
    NodeDocument.objects.update(status="failed", error="once upon a time")
    assert reports_compare() == 1
    assert document(other, "config").status == DocumentStatus.APPLIED


def test_comparison_of_all_does_not_confirm_what_nobody_said(node):
    report_record(node)
    node_document_put(node=node, name=NAME, body=OTHER)
    NodeDocument.objects.filter(node=node, name=NAME).update(status="applied", answered_version=3)
    reports_compare()
    assert status(node) == DocumentStatus.PENDING


# --- what is told of it ---------------------------------------------------------------------------------------


def test_states_name_every_node_of_the_site_in_one_query(django_assert_num_queries):
    site, elsewhere = site_make(), site_make()
    first, second = node_make(site=site, name="n1"), node_make(site=site, name="n2")
    node_make(site=elsewhere, name="n3")
    documents_put(nodes=[first], name=NAME, body=BODY)
    report_record(first, at=NOW)
    documents_put(nodes=[second], name="schedule/2026-11-25/inverter", body=BODY)
    with django_assert_num_queries(1):
        at_site, later, at_elsewhere, again = document_states(
            [
                (site.pk, NAME),
                (site.pk, "schedule/2026-11-25/inverter"),
                (elsewhere.pk, NAME),
                (site.pk, NAME),
            ]
        )
    assert at_site["n1"].status == DocumentStatus.APPLIED
    assert at_site["n1"].at == NOW
    pending = later["n2"]
    assert (pending.status, pending.at, pending.version > 0) == (DocumentStatus.PENDING, None, True)
    assert at_site["n2"].version == at_elsewhere["n3"].version == 0
    assert again == at_site


def test_dropped_document_is_not_told_of():
    node = node_make()
    node_document_put(node=node, name=NAME, body=BODY)
    node_document_drop(node=node, name=NAME)
    (states,) = document_states([(node.site_id, NAME)])
    assert states[node.name].version == 0
