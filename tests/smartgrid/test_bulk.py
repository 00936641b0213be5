"""Many rows with values of their own in one statement, on either database."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from sites_app.models import DocumentStatus, Node, NodeDocument
from smartgrid.bulk import PARAMETERS, rows_update
from tests.factories import node_make

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 23, 12, 0, 0, 123456, tzinfo=UTC)


def test_each_row_gets_its_own_values_in_one_statement(django_assert_num_queries):
    first, second, other = node_make(), node_make(), node_make()
    fields = ["last_reported", "last_reported_at", "reported_boot", "foreign_sequence"]
    rows: list[list[Any]] = [
        [first.pk, '{"a": [1, null, "\'%s\'"]}', NOW, 'it\'s "one" %s', None],
        [second.pk, None, None, "", 2**62],
    ]
    with django_assert_num_queries(1):
        assert rows_update(Node, fields=fields, rows=rows) == 2
    found = {node.pk: node for node in Node.objects.all()}
    assert found[first.pk].last_reported == {"a": [1, None, "'%s'"]}
    assert found[first.pk].last_reported_at == NOW
    assert found[first.pk].reported_boot == 'it\'s "one" %s'
    assert found[first.pk].foreign_sequence is None
    assert (found[second.pk].last_reported, found[second.pk].foreign_sequence) == (None, 2**62)
    assert found[other.pk].foreign_sequence == 0


def test_fields_that_are_the_same_in_all_are_given_once():
    documents = [NodeDocument.objects.get(node=node_make()) for _ in range(2)]
    rows = [(document.pk, number) for number, document in enumerate(documents, start=5)]
    same = {"status": DocumentStatus.FAILED, "error": "50 % of it"}
    rows_update(NodeDocument, fields=["answered_version"], rows=rows, same=same)
    found = NodeDocument.objects.order_by("pk").values_list("answered_version", "status", "error")
    assert list(found) == [(5, "failed", "50 % of it"), (6, "failed", "50 % of it")]


def test_no_rows_are_no_statement(django_assert_num_queries):
    with django_assert_num_queries(0):
        assert rows_update(Node, fields=["reported_boot"], rows=[]) == 0


def test_rows_that_are_not_there_are_passed_over_and_any_number_is_taken():
    node = node_make()
    rows = [(uuid.uuid4(), "nobody") for _ in range(PARAMETERS // 2 + 10)]
    assert rows_update(Node, fields=["reported_boot"], rows=[*rows, (node.pk, "last")]) == 1
    assert Node.objects.get().reported_boot == "last"
