"""Sites and nodes made, changed and deleted by API, by root alone."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from sites_app.models import Node, NodeDocument, Site
from sites_app.services import node_delete
from tests.at_once import at_once
from tests.factories import (
    ROOT,
    alarm_make,
    client_of,
    control_log_make,
    device_make,
    node_make,
    site_make,
    story_make,
    token_make,
)

pytestmark = pytest.mark.django_db

ABSENT = "00000000-0000-4000-8000-000000000000"
SITE_KEYS = [
    "id",
    "created_at",
    "site_tag",
    "name",
    "meta_data",
    "curtailment_time_limit",
    "cyclic_write_timeout",
    "setpoint_throttle_s",
    "time_zone",
    "tenant_tag",
]
NODE_KEYS = [
    "id",
    "created_at",
    "polaris_node_name",
    "site_id",
    "meta_data",
    "curtail_in_batch",
    "iothub",
    "configuration",
]


@pytest.fixture
def root():
    return client_of(ROOT)


def site_body(**fields):
    return {"site_tag": "park_1", "name": "Park 1", **fields}


def node_body(site, **fields):
    return {"site_id": str(site.pk), "polaris_node_name": "node-11", **fields}


def config_of(node_id):
    return NodeDocument.objects.get(node=node_id, name="config").body


def test_site_is_created_with_what_is_said_and_defaults_for_the_rest(root):
    response = root.post("/v1/sites", site_body(curtailment_time_limit=90, time_zone="Europe/Amsterdam"))
    assert response.status_code == 200
    body = response.json()
    assert list(body) == SITE_KEYS
    assert body["curtailment_time_limit"] == 90
    assert (body["cyclic_write_timeout"], body["meta_data"]) == (300, {})
    assert root.get(f"/v1/sites/{body['id']}/settings").json() == body
    assert root.get(f"/v1/sites/{body['id']}").json()["site_tag"] == "park_1"


def test_site_can_be_given_its_id_before_it_exists_and_only_once(root):
    given = str(uuid.uuid4())
    assert root.post("/v1/sites", site_body(id=given)).json()["id"] == given
    response = root.post("/v1/sites", site_body(id=given, site_tag="park_2"))
    assert (response.status_code, response.json()["code"]) == (409, "duplicate")
    assert list(response.json()["errors"]) == ["id"]


def test_second_site_of_a_tag_is_a_conflict_that_names_it(root):
    assert root.post("/v1/sites", site_body()).status_code == 200
    response = root.post("/v1/sites", site_body())
    assert (response.status_code, list(response.json()["errors"])) == (409, ["site_tag"])


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("site_tag", ""),
        ("site_tag", None),
        ("site_tag", 7),
        ("site_tag", "x" * 65),
        ("site_tag", "a\0b"),
        ("site_tag", " a"),
        ("site_tag", "a\nb"),
        ("name", ""),
        ("name", "x" * 201),
        ("meta_data", None),
        ("meta_data", []),
        ("meta_data", {"a": "\0"}),
        ("meta_data", {"\0": 1}),
        ("meta_data", {"a": 2**63}),
        ("meta_data", {"a": 10**400}),
        ("meta_data", {"a": "x" * 16384}),
        ("curtailment_time_limit", 0),
        ("curtailment_time_limit", 3601),
        ("curtailment_time_limit", None),
        ("curtailment_time_limit", True),
        ("curtailment_time_limit", "60"),
        ("curtailment_time_limit", 60.5),
        ("curtailment_time_limit", 1e300),
        ("curtailment_time_limit", 10**400),
        ("cyclic_write_timeout", 9),
        ("cyclic_write_timeout", 86401),
        ("setpoint_throttle_s", 0),
        ("setpoint_throttle_s", 60.5),
        ("time_zone", "Europe/Atlantis"),
        ("time_zone", "../etc/passwd"),
        ("id", "no uuid"),
        ("id", 7),
        ("id", None),
        ("tenant_tag", "a/b"),
        ("tenant_tag", "+"),
        ("site_tags", "park_1"),
        ("created_at", "2024-08-01T10:52:55.330076Z"),
    ],
)
def test_site_with_something_wrong_is_refused_by_field(root, field, wrong):
    response = root.post("/v1/sites", site_body(**{field: wrong}))
    assert response.status_code == 400
    assert field in response.json()["errors"]
    assert not Site.objects.exists()
    assert root.post("/v1/sites", site_body()).status_code == 200


def nested(depth):
    found: dict[str, Any] = {}
    for _ in range(depth - 1):
        found = {"a": found}
    return found


def test_meta_data_is_kept_as_deep_as_promised_and_no_deeper(root):
    given = nested(16)
    assert root.post("/v1/sites", site_body(meta_data=given)).json()["meta_data"] == given
    response = root.post("/v1/sites", site_body(site_tag="park_2", meta_data=nested(17)))
    assert (response.status_code, list(response.json()["errors"])) == (400, ["meta_data"])


@pytest.mark.parametrize(
    "body",
    ['{"site_tag": "\\ud800", "name": "x"}', "null", "7", '"x"', "[]", "[[]]", "{", "", "[1]", "[" * 5000],
)
def test_body_of_another_shape_is_refused(root, body):
    for path in ("/v1/sites", "/v1/sites/bulk", "/v1/nodes", "/v1/nodes/bulk"):
        response = root.generic("POST", path, body, content_type="application/json")
        assert response.status_code == 400, path


def test_what_is_left_out_of_a_whole_site_gets_its_default(root):
    site = site_make(curtailment_time_limit=90, cyclic_write_timeout=20, meta_data={"a": 1})
    response = root.put(f"/v1/sites/{site.pk}", site_body(curtailment_time_limit=30))
    assert response.status_code == 200
    body = response.json()
    assert (body["site_tag"], body["curtailment_time_limit"]) == ("park_1", 30)
    assert (body["cyclic_write_timeout"], body["meta_data"]) == (300, {})
    assert root.put(f"/v1/sites/{site.pk}", {"name": "x"}).json()["errors"] == {
        "site_tag": ["This field is required."]
    }


def test_what_is_left_out_of_a_change_stays(root):
    site = site_make(site_tag="park_9", curtailment_time_limit=90, meta_data={"a": 1})
    response = root.patch(f"/v1/sites/{site.pk}", {"cyclic_write_timeout": 20})
    body = response.json()
    assert (body["cyclic_write_timeout"], body["curtailment_time_limit"]) == (20, 90)
    assert (body["site_tag"], body["meta_data"]) == ("park_9", {"a": 1})


def test_settings_that_were_read_can_be_sent_back(root):
    site = site_make(curtailment_time_limit=90, meta_data={"a": 1})
    path = f"/v1/sites/{site.pk}"
    read = root.get(f"{path}/settings").json()
    assert root.put(path, read).json() == read
    for field in ("id", "created_at", "tenant_tag"):
        response = root.put(path, {**read, field: ABSENT})
        assert (response.status_code, list(response.json()["errors"])) == (400, [field])


def test_new_time_limit_reaches_the_nodes_configuration(root):
    node = node_make(site=site_make(curtailment_time_limit=60))
    root.patch(f"/v1/sites/{node.site_id}", {"curtailment_time_limit": 45})
    assert config_of(node.pk)["site"]["curtailment_time_limit_s"] == 45


def test_refused_time_limit_leaves_the_one_before(root):
    node = node_make(site=site_make(curtailment_time_limit=60))
    for wrong in (0, None, -1, 10**400):
        response = root.patch(f"/v1/sites/{node.site_id}", {"curtailment_time_limit": wrong})
        assert response.status_code == 400
    assert config_of(node.pk)["site"]["curtailment_time_limit_s"] == 60


def test_site_of_which_nothing_is_left_can_be_deleted(root):
    site = site_make(site_tag="park_1")
    response = root.delete(f"/v1/sites/{site.pk}")
    assert response.status_code == 200
    assert response.json() == {"status": "success", "message": "park_1 is deleted."}
    assert root.delete(f"/v1/sites/{site.pk}").status_code == 404


def test_site_is_kept_by_its_nodes_tokens_and_history_which_are_named(root):
    site = site_make()
    node = node_make(site=site, name="node-11")
    token_make(site, name="Trader")
    control_log_make(site=site)
    response = root.delete(f"/v1/sites/{site.pk}")
    assert (response.status_code, response.json()["code"]) == (409, "in_use")
    for keeper in ("the node node-11", "the management token Trader", "its control log"):
        assert keeper in response.json()["detail"]
    node_delete(node=node)
    site.management_tokens.all().delete()
    response = root.delete(f"/v1/sites/{site.pk}")
    assert response.status_code == 409
    assert "node-11" not in response.json()["detail"]


def test_alarm_that_is_over_keeps_no_site(root):
    site = site_make()
    alarm_make(site=site)
    assert root.delete(f"/v1/sites/{site.pk}").status_code == 200


def test_node_is_created_with_its_documents(root):
    site = site_make(curtailment_time_limit=75)
    response = root.post("/v1/nodes", node_body(site, configuration={"module": "X"}, curtail_in_batch=False))
    assert response.status_code == 200
    body = response.json()
    assert list(body) == NODE_KEYS
    assert (body["polaris_node_name"], body["curtail_in_batch"]) == ("node-11", False)
    assert config_of(body["id"])["site"]["curtailment_time_limit_s"] == 75
    assert root.get(f"/v1/nodes/{body['id']}/settings").json() == body


@pytest.mark.parametrize(
    ("field", "wrong", "status"),
    [
        ("site_id", ABSENT, 404),
        ("site_id", "x", 400),
        ("site_id", None, 400),
        ("polaris_node_name", "", 400),
        ("polaris_node_name", "x" * 65, 400),
        ("name", "node-11", 400),
        ("curtail_in_batch", "yes", 400),
        ("curtail_in_batch", 1, 400),
        ("iothub", None, 400),
        ("iothub", "x" * 201, 400),
        ("configuration", None, 400),
        ("meta_data", "x", 400),
    ],
)
def test_node_with_something_wrong_is_refused(root, field, wrong, status):
    site = site_make()
    response = root.post("/v1/nodes", node_body(site, **{field: wrong}))
    assert response.status_code == status
    assert status == 404 or field in response.json()["errors"]
    assert root.post("/v1/nodes", node_body(site)).status_code == 200


def test_second_node_of_a_name_is_a_conflict_in_the_apis_words(root):
    site = site_make()
    root.post("/v1/nodes", node_body(site))
    response = root.post("/v1/nodes", node_body(site))
    assert (response.status_code, list(response.json()["errors"])) == (409, ["polaris_node_name"])


def test_node_moves_to_the_site_it_is_changed_to(root):
    node, site = node_make(), site_make(curtailment_time_limit=33)
    response = root.patch(f"/v1/nodes/{node.pk}", {"site_id": str(site.pk), "iothub": "hub"})
    assert response.status_code == 200
    assert (response.json()["site_id"], response.json()["iothub"]) == (str(site.pk), "hub")
    assert config_of(node.pk)["site"]["curtailment_time_limit_s"] == 33


def test_node_with_devices_stays_at_its_site_and_is_not_half_changed(root):
    device = device_make(device_tag="PV_1")
    node, site = device.node, site_make()
    whole = {**node_body(site), "iothub": "hub"}
    for response in (
        root.patch(f"/v1/nodes/{node.pk}", {"site_id": str(site.pk), "iothub": "hub"}),
        root.put(f"/v1/nodes/{node.pk}", whole),
        root.delete(f"/v1/nodes/{node.pk}"),
    ):
        assert (response.status_code, response.json()["code"]) == (409, "in_use")
        assert "PV_1" in response.json()["detail"]
    stored = Node.objects.get(pk=node.pk)
    assert (stored.site_id, stored.iothub, stored.name) == (node.site_id, "", node.name)
    assert root.patch(f"/v1/nodes/{node.pk}", {"iothub": "hub"}).status_code == 200


def test_what_is_left_out_of_a_whole_node_gets_its_default(root):
    node = node_make(iothub="hub", curtail_in_batch=False, configuration={"module": "X"})
    response = root.put(f"/v1/nodes/{node.pk}", node_body(node.site))
    body = response.json()
    assert (body["iothub"], body["curtail_in_batch"]) == ("", True)
    assert body["configuration"] == {"module": "PolarisInverterCurtailment"}
    assert root.put(f"/v1/nodes/{node.pk}", body).json() == body


def test_node_without_devices_can_be_deleted(root):
    node = node_make(name="node-11")
    assert root.delete(f"/v1/nodes/{node.pk}").json()["message"] == "node-11 is deleted."
    assert root.delete(f"/v1/nodes/{node.pk}").status_code == 404


CALLS = [
    ("POST", "/v1/sites"),
    ("POST", "/v1/sites/bulk"),
    ("GET", "/v1/sites/{site}/settings"),
    ("PUT", "/v1/sites/{site}"),
    ("PATCH", "/v1/sites/{site}"),
    ("DELETE", "/v1/sites/{site}"),
    ("POST", "/v1/nodes"),
    ("POST", "/v1/nodes/bulk"),
    ("GET", "/v1/nodes/{node}/settings"),
    ("PUT", "/v1/nodes/{node}"),
    ("PATCH", "/v1/nodes/{node}"),
    ("DELETE", "/v1/nodes/{node}"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_site_token_changes_nothing_of_its_own_or_of_others(method, path):
    """403 whatever is named: it tells nothing about what there is."""
    story = story_make()
    for site, node in (
        (story.site_a.pk, story.node_a.pk),
        (story.site_b.pk, story.node_b.pk),
        (ABSENT, ABSENT),
    ):
        address = path.format(site=site, node=node)
        for body in list[Any](({}, [], {"site_id": str(story.site_b.pk)})):
            response = story.holder_a.generic(
                method, address, str(body).replace("'", '"'), content_type="application/json"
            )
            assert (response.status_code, response.json()["code"]) == (403, "root_token_required")
        assert story.root.generic(method, address, "{", content_type="application/json").status_code != 403


@pytest.mark.parametrize(("method", "path"), CALLS)
def test_what_is_absent_is_absent_for_root_too(root, method, path):
    response = root.generic(
        method, path.format(site=ABSENT, node=ABSENT), "{}", content_type="application/json"
    )
    assert response.status_code == (404 if "{" in path else 400)


def test_method_that_no_path_has_is_no_matter_of_tokens():
    story = story_make()
    assert story.holder_a.delete("/v1/sites").status_code == 405
    assert story.holder_a.get("/v1/sites").status_code == 200


def test_many_sites_are_created_in_the_order_they_are_given(root):
    items = [site_body(site_tag=f"park_{number}") for number in range(30)]
    response = root.post("/v1/sites/bulk", items)
    assert response.status_code == 200
    assert [site["site_tag"] for site in response.json()] == [item["site_tag"] for item in items]
    assert list(response.json()[0]) == SITE_KEYS
    assert Site.objects.count() == 30


def test_all_that_is_wrong_in_an_array_is_told_by_its_place(root):
    items = [site_body(site_tag=f"park_{number}") for number in range(5)]
    items[1]["curtailment_time_limit"] = 0
    items[3]["nonsense"] = 1
    del items[4]["name"]
    response = root.post("/v1/sites/bulk", items)
    assert response.status_code == 400
    assert list(response.json()["errors"]) == ["1.curtailment_time_limit", "3.nonsense", "4.name"]
    assert not Site.objects.exists()


def test_all_in_an_array_that_is_there_already_or_twice_is_told_by_its_place(root):
    site_make(site_tag="park_2")
    items = [site_body(site_tag=f"park_{number}") for number in (0, 1, 2, 1, 3)]
    response = root.post("/v1/sites/bulk", items)
    assert (response.status_code, response.json()["code"]) == (409, "duplicate")
    assert list(response.json()["errors"]) == ["2.site_tag", "3.site_tag"]
    assert Site.objects.count() == 1


def test_array_that_is_sent_twice_is_a_conflict_that_names_the_first_hundred(root):
    items = [site_body(site_tag=f"park_{number}", id=str(uuid.uuid4())) for number in range(120)]
    assert root.post("/v1/sites/bulk", items).status_code == 200
    response = root.post("/v1/sites/bulk", items)
    assert response.status_code == 409
    assert list(response.json()["errors"]) == [f"{place}.id" for place in range(100)]
    assert Site.objects.count() == 120


def test_malformed_elements_outweigh_those_in_conflict_and_both_are_told(root):
    site_make(site_tag="park_0")
    items = [site_body(site_tag="park_0"), site_body(site_tag="park_1", time_zone="Nowhere")]
    response = root.post("/v1/sites/bulk", items)
    assert response.status_code == 400
    assert list(response.json()["errors"]) == ["0.site_tag", "1.time_zone"]


@pytest.mark.parametrize("number", [0, 1001])
def test_array_has_one_to_a_thousand_elements(root, number):
    items = [site_body(site_tag=f"park_{place}") for place in range(number)]
    assert root.post("/v1/sites/bulk", items).status_code == 400
    assert not Site.objects.exists()


def test_of_a_thousand_wrong_elements_a_hundred_are_told(root):
    response = root.post("/v1/sites/bulk", [{}] * 1000)
    assert response.status_code == 400
    assert len({name.partition(".")[0] for name in response.json()["errors"]}) == 100


def test_thousand_sites_take_a_few_statements(root):
    items = [site_body(site_tag=f"park_{number}") for number in range(1000)]
    with CaptureQueriesContext(connection) as queries:
        assert root.post("/v1/sites/bulk", items).status_code == 200
    # A statement takes 999 parameters on SQLite as Django counts them: 100 rows of them.
    assert len(queries) <= 20


def test_many_nodes_have_their_documents(root):
    sites = [site_make(curtailment_time_limit=50 + number) for number in range(3)]
    items = [node_body(sites[number % 3], polaris_node_name=f"node-{number}") for number in range(9)]
    response = root.post("/v1/nodes/bulk", items)
    assert response.status_code == 200
    for number, node in enumerate(response.json()):
        assert node["polaris_node_name"] == f"node-{number}"
        assert config_of(node["id"])["site"]["curtailment_time_limit_s"] == 50 + number % 3


def test_nodes_of_absent_sites_are_told_by_their_place(root):
    site = site_make()
    items = [node_body(site, polaris_node_name=f"node-{number}") for number in range(3)]
    items[1]["site_id"] = ABSENT
    response = root.post("/v1/nodes/bulk", items)
    assert (response.status_code, response.json()["errors"]) == (404, {"1.site_id": ["No such site."]})
    items[1]["site_id"] = str(site.pk)
    items[2]["polaris_node_name"] = "node-0"
    response = root.post("/v1/nodes/bulk", items)
    assert (response.status_code, list(response.json()["errors"])) == (409, ["2.polaris_node_name"])
    assert not Node.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_of_two_sites_of_one_tag_made_at_once_one_is_a_conflict(root):
    results = at_once(*[lambda: client_of(ROOT).post("/v1/sites", site_body()).status_code for _ in range(2)])
    assert sorted(results) == [200, 409]
    assert Site.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_of_two_arrays_that_share_a_tag_at_once_one_is_a_conflict(root):
    def items(first):
        return [site_body(site_tag=f"park_{number}") for number in range(first, first + 20)]

    results = at_once(
        lambda: client_of(ROOT).post("/v1/sites/bulk", items(0)).status_code,
        lambda: client_of(ROOT).post("/v1/sites/bulk", items(19)[::-1]).status_code,
    )
    assert sorted(results) == [200, 409]
    assert Site.objects.count() == 20


@pytest.mark.django_db(transaction=True)
def test_node_made_while_its_site_is_deleted_is_of_a_site_or_not_at_all():
    site = site_make()
    made, deleted = at_once(
        lambda: client_of(ROOT).post("/v1/nodes", node_body(site)).status_code,
        lambda: client_of(ROOT).delete(f"/v1/sites/{site.pk}").status_code,
    )
    assert (made, deleted) in ((200, 409), (404, 200))
    assert Node.objects.count() == Site.objects.count()


def test_throttle_must_be_shorter_than_the_hold_it_could_keep_from_being_renewed(root):
    site = site_make(curtailment_time_limit=60)
    assert root.patch(f"/v1/sites/{site.pk}", {"setpoint_throttle_s": 60}).status_code == 400
    assert root.patch(f"/v1/sites/{site.pk}", {"setpoint_throttle_s": 59}).status_code == 200
    assert root.patch(f"/v1/sites/{site.pk}", {"curtailment_time_limit": 59}).status_code == 400
    items = [site_body(setpoint_throttle_s=59), site_body(site_tag="park_2", setpoint_throttle_s=60)]
    response = root.post("/v1/sites/bulk", items)
    assert (response.status_code, list(response.json()["errors"])) == (400, ["1.non_field_errors"])
