from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime

import pytest

from sites_app.models import Node, Site
from tests.factories import site_make, story_make

pytestmark = pytest.mark.django_db

CREATED = datetime(2024, 8, 1, 10, 52, 55, 330076, tzinfo=UTC)
ABSENT = uuid.UUID("00000000-0000-4000-8000-000000000000")


@pytest.fixture
def story():
    return story_make()


def shown_as_printed(response):
    """The body with its keys in the order of the bytes."""
    return json.loads(response.content)


def test_list_of_sites_is_the_guides(story):
    Site.objects.filter(pk=story.site_a.pk).update(created_at=CREATED)
    response = story.holder_a.get("/v1/sites")
    assert response.status_code == 200
    body = shown_as_printed(response)
    assert body == [
        {
            "id": str(story.site_a.pk),
            "created_at": "2024-08-01T10:52:55.330076Z",
            "site_tag": "solarpanel_site_a",
            "name": "Solar Panel Site A",
            "meta_data": {},
            "curtailment_time_limit": 60,
        }
    ]
    assert list(body[0]) == ["id", "created_at", "site_tag", "name", "meta_data", "curtailment_time_limit"]


def test_timestamp_on_the_full_second_keeps_its_microseconds(story):
    Site.objects.filter(pk=story.site_a.pk).update(created_at=CREATED.replace(microsecond=0))
    assert shown_as_printed(story.holder_a.get("/v1/sites"))[0]["created_at"] == "2024-08-01T10:52:55.000000Z"


def test_root_sees_all_sites_a_token_its_own_and_another_nothing(story):
    assert [site["site_tag"] for site in story.root.get("/v1/sites").json()] == [
        "solarpanel_site_a",
        "solarpanel_site_b",
    ]
    assert [site["site_tag"] for site in story.holder_b.get("/v1/sites").json()] == ["solarpanel_site_b"]
    assert story.holder_of_nothing.get("/v1/sites").json() == []


def test_site_detail_without_readings_has_empty_metrics(story):
    body = shown_as_printed(story.holder_a.get(f"/v1/sites/{story.site_a.pk}"))
    assert list(body)[-1] == "metrics"
    assert body["metrics"] == []


@pytest.mark.parametrize("path", ["/v1/sites/{site}", "/v1/sites/{site}/nodes"])
def test_hidden_site_looks_like_an_absent_one(story, path):
    hidden = story.holder_a.get(path.format(site=story.site_b.pk))
    absent = story.holder_a.get(path.format(site=ABSENT))
    assert hidden.status_code == absent.status_code == 404
    assert {**hidden.json(), "request_id": ""} == {**absent.json(), "request_id": ""}


def test_hidden_node_looks_like_an_absent_one(story):
    hidden = story.holder_a.get(f"/v1/nodes/{story.node_b.pk}")
    absent = story.holder_a.get(f"/v1/nodes/{ABSENT}")
    assert hidden.status_code == absent.status_code == 404
    assert {**hidden.json(), "request_id": ""} == {**absent.json(), "request_id": ""}


def test_list_of_nodes_is_the_guides(story):
    Node.objects.filter(pk=story.node_a.pk).update(created_at=CREATED)
    body = shown_as_printed(story.holder_a.get("/v1/nodes"))
    assert body == [
        {
            "id": str(story.node_a.pk),
            "created_at": "2024-08-01T10:52:55.330076Z",
            "polaris_node_name": "node-01",
            "site_id": str(story.site_a.pk),
            "meta_data": {},
            "curtail_in_batch": True,
            "iothub": "iothub-euw-polaris-engineering",
        }
    ]
    assert list(body[0]) == [
        "id",
        "created_at",
        "polaris_node_name",
        "site_id",
        "meta_data",
        "curtail_in_batch",
        "iothub",
    ]


def test_node_detail_adds_its_configuration(story):
    body = shown_as_printed(story.holder_a.get(f"/v1/nodes/{story.node_a.pk}"))
    assert list(body)[-1] == "configuration"
    assert body["configuration"] == {"module": "PolarisInverterCurtailment"}


def test_nodes_of_a_site(story):
    body = story.root.get(f"/v1/sites/{story.site_b.pk}/nodes").json()
    assert [node["polaris_node_name"] for node in body] == ["node-02"]


@pytest.mark.parametrize(("path", "queries"), [("/v1/sites", 1), ("/v1/nodes", 1)])
def test_lists_take_one_query_however_long(story, django_assert_num_queries, path, queries):
    for _ in range(3):
        site_make()
    with django_assert_num_queries(queries):
        assert story.holder_a.get(path).status_code == 200


def test_page_of_a_list_and_the_way_on(story):
    for number in range(3):
        site_make(site_tag=f"z{number}")
    response = story.root.get("/v1/sites?limit=2&offset=2")
    assert [site["site_tag"] for site in response.json()] == ["z0", "z1"]
    assert response["X-Total-Count"] == "5"
    assert '<http://testserver/v1/sites?limit=2&offset=4>; rel="next"' in response["Link"]
    assert '<http://testserver/v1/sites?limit=2&offset=0>; rel="prev"' in response["Link"]


def test_whole_list_tells_its_length_and_no_way_on(story):
    response = story.root.get("/v1/sites")
    assert response["X-Total-Count"] == "2"
    assert "Link" not in response


def test_last_page_has_no_next(story):
    assert 'rel="next"' not in story.root.get("/v1/sites?limit=1&offset=1")["Link"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=x", "limit=1001", "offset=-1", "limit=", "limit=٣"]
)
def test_page_which_makes_no_sense_is_refused(story, query):
    response = story.root.get(f"/v1/sites?{query}")
    assert response.status_code == 400
    assert list(response.json()["errors"]) == [query.split("=")[0]]


def test_lists_are_filtered_by_exact_values(story):
    assert len(story.root.get("/v1/sites?site_tag=solarpanel_site_b").json()) == 1
    assert len(story.root.get(f"/v1/nodes?site_id={story.site_b.pk}").json()) == 1
    assert len(story.root.get("/v1/nodes?polaris_node_name=node-02").json()) == 1


def test_filter_does_not_open_what_is_hidden(story):
    assert story.holder_a.get(f"/v1/nodes?site_id={story.site_b.pk}").json() == []


def test_filter_value_which_cannot_be_used_is_named(story):
    response = story.root.get("/v1/nodes?site_id=everything")
    assert response.status_code == 400
    assert list(response.json()["errors"]) == ["site_id"]
