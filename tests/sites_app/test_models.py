"""What the database itself refuses, however a row gets there."""

from __future__ import annotations

import pytest
from django.db import DataError, IntegrityError

from sites_app.models import ManagementToken, Node, NodeDocument, Site
from tests.factories import node_make, site_make, token_make

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("seconds", [0, 3601])
def test_database_refuses_a_watchdog_outside_one_second_to_one_hour(seconds):
    site = site_make()
    with pytest.raises(IntegrityError):
        Site.objects.filter(pk=site.pk).update(curtailment_time_limit=seconds)


@pytest.mark.parametrize("seconds", [1, 3600])
def test_database_takes_both_ends_of_the_watchdogs_range(seconds):
    site = site_make()
    assert Site.objects.filter(pk=site.pk).update(curtailment_time_limit=seconds) == 1


@pytest.mark.parametrize("seconds", [9, 86401])
def test_database_refuses_a_cyclic_write_outside_ten_seconds_to_one_day(seconds):
    site = site_make()
    with pytest.raises(IntegrityError):
        Site.objects.filter(pk=site.pk).update(cyclic_write_timeout=seconds)


@pytest.mark.parametrize("seconds", [0, 3601])
def test_database_refuses_a_setpoint_throttle_outside_one_second_to_one_hour(seconds):
    site = site_make(curtailment_time_limit=3600)
    with pytest.raises(IntegrityError):
        Site.objects.filter(pk=site.pk).update(setpoint_throttle_s=seconds)


@pytest.mark.parametrize("seconds", [None, 1, 3599])
def test_database_takes_a_setpoint_throttle_in_range_or_none(seconds):
    site = site_make(curtailment_time_limit=3600)
    assert Site.objects.filter(pk=site.pk).update(setpoint_throttle_s=seconds) == 1


def test_database_refuses_a_setpoint_throttle_that_outlasts_a_hold():
    site = site_make(curtailment_time_limit=60)
    with pytest.raises(IntegrityError):
        Site.objects.filter(pk=site.pk).update(setpoint_throttle_s=60)


def test_database_refuses_a_second_site_with_the_tag():
    site_make(site_tag="same")
    with pytest.raises(IntegrityError):
        Site.objects.create(site_tag="same", name="Another")


def test_another_tenant_may_use_the_same_site_tag():
    site_make(site_tag="same")
    assert Site.objects.create(site_tag="same", name="Another", tenant_tag="tenant-456")


@pytest.mark.parametrize("tenant", ["", "a/b", "a+", "#", "a\n", "ä", "x" * 65])
def test_database_refuses_a_tenant_which_cannot_stand_in_a_topic(tenant):
    site = site_make()
    # DataError: PostgreSQL looks at the length first.
    with pytest.raises((IntegrityError, DataError)):
        Site.objects.filter(pk=site.pk).update(tenant_tag=tenant)


def test_database_refuses_a_second_node_with_the_name_at_another_site():
    node_make(name="node-01")
    site = site_make()
    with pytest.raises(IntegrityError):
        Node.objects.create(site=site, tenant_tag=site.tenant_tag, name="node-01")


def test_database_refuses_two_documents_of_one_name():
    node = node_make()
    first = node.documents.get(name="config")
    with pytest.raises(IntegrityError):
        NodeDocument.objects.create(node=node, name="config", version=9, sha256=first.sha256, body={})


def test_database_refuses_two_tokens_with_one_digest():
    token = token_make()
    with pytest.raises(IntegrityError):
        ManagementToken.objects.create(name="Copy", digest=token.digest, encrypted=token.encrypted)
