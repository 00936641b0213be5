"""A query that is kept finds what Django's own would, on either database."""

from __future__ import annotations

import uuid
from datetime import date, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from devices_app.models import Device
from schedules_app.models import Schedule
from sites_app.models import ManagementToken
from sites_app.selectors import of_visible_sites, sites_visible_to
from smartgrid.api.principal import Principal
from smartgrid.kept import KeptForPrincipal, KeptQuery
from tests.factories import device_make, story_make

pytestmark = pytest.mark.django_db

COLUMNS = ("id", "created_at", "device_tag", "meta_data", "include_in_curtailment", "value", "node__name")


def test_kept_query_finds_what_a_new_one_does_and_converts_it_alike():
    story = story_make()
    Device.objects.filter(pk=story.device_a.pk).update(meta_data={"a": [1, None]}, value=0.5)
    kept = KeptQuery(lambda key: Device.objects.filter(pk=key).values_list(*COLUMNS), uuid.UUID)
    for device in (story.device_a, story.device_b, story.device_a):
        found = kept.rows(device.pk)
        assert found == list(Device.objects.filter(pk=device.pk).values_list(*COLUMNS))
        assert len(found) == 1
    assert kept.rows(uuid.uuid4()) == []


def test_each_value_takes_its_own_place():
    story = story_make()
    kept = KeptQuery(
        lambda site, tag, other: (
            Device.objects.filter(site=site, device_tag=tag).exclude(node=other).values_list("device_tag")
        ),
        uuid.UUID,
        str,
        uuid.UUID,
    )
    assert kept.rows(story.site_a.pk, "SMA_STP60_01", story.node_b.pk) == [("SMA_STP60_01",)]
    assert kept.rows(story.site_a.pk, "SMA_STP60_01", story.node_a.pk) == []
    assert kept.rows(story.site_b.pk, "SMA_STP60_01", story.node_b.pk) == []
    assert kept.rows(story.site_a.pk, "it's", story.node_b.pk) == []


def test_kept_query_is_built_once():
    story = story_make()
    built = []

    def build(key):
        built.append(key)
        return Device.objects.filter(pk=key).values_list("pk")

    kept = KeptQuery(build, uuid.UUID)
    with CaptureQueriesContext(connection) as queries:
        for device in (story.device_a, story.device_b):
            assert len(kept.rows(device.pk)) == 1
    assert (len(built), len(queries)) == (1, 2)


def test_page_is_what_a_slice_of_the_same_query_is():
    devices = [device_make() for _ in range(5)]
    kept = KeptQuery(
        lambda tags: Device.objects.filter(device_tag__among=tags).order_by("-device_tag").values_list("pk"),
        list,
    )
    tags = [device.device_tag for device in devices[1:]]
    rows = Device.objects.filter(device_tag__in=tags).order_by("-device_tag").values_list("pk")
    for limit, offset in [(2, 0), (2, 1), (3, 3), (10, 0), (1, 9)]:
        assert kept.page(tags, limit=limit, offset=offset) == list(rows[offset : offset + limit])
    assert kept.page(tags, limit=None, offset=0) == list(rows)
    assert kept.page(tags, limit=None, offset=2) == list(rows[2:])
    assert kept.count(tags) == 4
    assert kept.count([]) == 0


def test_days_and_moments_take_their_places():
    story = story_make()
    days = [date(2026, 12, day) for day in (1, 2, 3)]
    for day in days:
        Schedule.objects.create(site=story.site_a, category="inverter", valid_on=day)
    kept = KeptQuery(
        lambda first, since: (
            Schedule.objects.filter(valid_on__gte=first, created_at__gte=since)
            .order_by("valid_on")
            .values_list("valid_on")
        ),
        date,
        datetime,
    )
    now = timezone.now()
    assert kept.rows(days[1], now - timedelta(hours=1)) == [(days[1],), (days[2],)]
    assert kept.rows(days[1], now + timedelta(hours=1)) == []


def test_what_django_knows_to_be_empty_is_empty():
    kept = KeptQuery(lambda key: Device.objects.filter(pk=key).none().values_list("pk"), uuid.UUID)
    assert kept.rows(uuid.uuid4()) == []
    assert kept.page(uuid.uuid4(), limit=1, offset=0) == []
    assert kept.count(uuid.uuid4()) == 0


@pytest.mark.parametrize("opens_few", [True, False])
@pytest.mark.parametrize("what", ["sites", "of sites"])
def test_kept_rows_are_those_the_principal_sees_now(opens_few, what):
    story = story_make()
    kept = KeptForPrincipal(
        lambda principal: (
            sites_visible_to(principal).values_list("pk")
            if what == "sites"
            else of_visible_sites(Device.objects.order_by("pk"), principal).values_list("site_id")
        )
    )

    def seen(token: ManagementToken | None, *, is_root: bool = False) -> set[uuid.UUID]:
        token_id = None if token is None else token.pk
        principal = Principal(client_id="x", token_id=token_id, is_root=is_root, opens_few=opens_few)
        assert kept.count(principal) == len(kept.rows(principal))
        return {pk for (pk,) in kept.page(principal, limit=None, offset=0)}

    both = {story.site_a.pk, story.site_b.pk}
    assert seen(None, is_root=True) == both
    assert seen(None) == seen(story.token_nothing) == set()
    assert (seen(story.token_a), seen(story.token_b)) == ({story.site_a.pk}, {story.site_b.pk})
    story.token_a.sites.add(story.site_b)
    assert seen(story.token_a) == both
    story.token_a.delete()
    assert seen(story.token_a) == set()


def test_value_that_is_in_no_condition_is_refused():
    kept = KeptQuery(lambda _: Device.objects.values_list("pk"), uuid.UUID)
    with pytest.raises(AssertionError, match="in no condition"):
        kept.rows(uuid.uuid4())


@pytest.mark.parametrize(("limit", "offset"), [(2, 0), (2, 1), (2, 5), (None, 0), (None, 1)])
def test_page_is_what_a_slice_is(limit, offset):
    story_make()
    tags = Device.objects.order_by("device_tag").values_list("device_tag")
    kept = KeptQuery(lambda: tags)
    assert kept.page(limit=limit, offset=offset) == list(tags)[offset:][:limit]


@pytest.mark.skipif("connection.vendor != 'postgresql'", reason="SQLite plans nothing ahead")
def test_statements_are_planned_once_but_for_what_tokens_of_many_sites_open():
    story = story_make()
    kept = KeptForPrincipal(lambda principal: sites_visible_to(principal).values_list("pk"))
    by_key = KeptForPrincipal(
        lambda principal, key: sites_visible_to(principal).filter(pk=key).values_list("pk"), uuid.UUID
    )
    of_token = Principal(client_id="x", token_id=story.token_a.pk, is_root=False)
    of_few = Principal(client_id="x", token_id=story.token_a.pk, is_root=False, opens_few=True)
    of_root = Principal(client_id="x", token_id=None, is_root=True)

    def prepared() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_prepared_statements")
            return int(cursor.fetchone()[0])

    before = prepared()
    for _ in range(2):
        assert len(kept.page(of_token, limit=10, offset=0)) == 1
    assert prepared() == before
    for _ in range(2):
        assert len(by_key.rows(of_token, story.site_a.pk)) == 1
        assert len(kept.page(of_root, limit=10, offset=0)) == 2
        assert len(kept.page(of_few, limit=10, offset=0)) == 1
    assert prepared() == before + 3
