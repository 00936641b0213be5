"""What the database compares and tells us is what Python would have made of it, on either database."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.db.models import F, JSONField, OuterRef, Value

from sites_app.models import ManagementToken, Node, Site
from smartgrid.expressions import AsStored, KeysFound
from tests.factories import node_make, site_make, token_make

pytestmark = pytest.mark.django_db


def test_json_is_told_as_it_is_stored():
    site = site_make()
    values: list[Any] = [{"b": 1, "a": [1.0, None, "ü"]}, {}, [], "text", None]
    for value in values:
        Site.objects.filter(pk=site.pk).update(meta_data=Value(value, JSONField()))
        ((stored,),) = Site.objects.values_list(AsStored("meta_data"))
        assert json.loads(stored) == value
    node_make()
    assert Node.objects.values_list(AsStored("last_reported")).get() == (None,)


@pytest.mark.parametrize(
    "text", ["plain", 'quoted "twice"', "back\\slash", "a,b", "{a}", "NULL", "", "it's", "100 %s", "Straße"]
)
def test_among_compares_any_text_as_in_does(text):
    site, _ = site_make(), site_make()
    Site.objects.filter(pk=site.pk).update(name=text)
    for wanted in ([text], [text, "another"], ["another"], []):
        found = set(Site.objects.filter(name__among=wanted))
        assert found == set(Site.objects.filter(name__in=wanted))


def test_among_is_not_led_astray_by_what_is_longer_than_its_column():
    site = site_make()
    Site.objects.filter(pk=site.pk).update(name="x" * 200)
    assert not Site.objects.filter(name__among=["x" * 201]).exists()


def test_among_compares_keys_across_relations():
    site, other = site_make(), site_make()
    node_make(site=site, name="n1")
    node_make(site=other, name="n2")
    names = Node.objects.order_by("name").values_list("name", flat=True)
    assert list(names.filter(site__pk__among=[site.pk])) == ["n1"]
    assert list(names.filter(site__pk__among=[site.pk, other.pk])) == ["n1", "n2"]
    assert list(names.filter(site__pk__among=[])) == []


def test_among_a_query_finds_what_in_does():
    sites = [site_make() for _ in range(3)]
    for number, site in enumerate(sites):
        node_make(site=site, name=f"n{number}")
    names = Node.objects.order_by("name").values_list("name", flat=True)
    for token, expected in [
        (token_make(), []),
        (token_make(sites[1]), ["n1"]),
        (token_make(*sites), ["n0", "n1", "n2"]),
    ]:
        opened = ManagementToken.sites.through.objects.filter(managementtoken=token).values("site_id")
        assert list(names.filter(site__pk__among=opened)) == expected
        assert list(names.filter(site__in=opened)) == expected
        assert Site.objects.filter(pk__among=opened).count() == len(expected)


def test_keys_found_are_texts_in_the_order_of_their_query():
    sites = sorted((site_make() for _ in range(4)), key=lambda site: str(site.pk), reverse=True)
    token, empty = token_make(*sites), token_make()
    through = ManagementToken.sites.through.objects.filter(managementtoken_id=OuterRef("pk"))
    for order, expected in [("-site_id", sites), ("site_id", sites[::-1])]:
        opens = KeysFound(through.order_by(order).values(key=F("site_id")))
        rows = ManagementToken.objects.annotate(opens=opens).values_list("pk", "opens")
        found: dict[Any, Any] = dict(rows)
        assert found == {token.pk: [str(site.pk) for site in expected], empty.pk: []}
