"""Management tokens over the API: root gives and takes them, and is told their values again."""

from __future__ import annotations

import json
import uuid

import pytest
from cryptography.fernet import Fernet
from django.db import connection
from django.test.utils import CaptureQueriesContext

from sites_app.models import ManagementToken, Site
from sites_app.selectors import FEW_SITES, management_token_find, sites_visible_to, token_value
from sites_app.services import token_revoke, token_update
from smartgrid.errors import NotFound
from tests.factories import principal_of_token, site_make, story_make, token_make

pytestmark = pytest.mark.django_db

TOKENS = "/v1/auth-tokens"
ABSENT = uuid.UUID("00000000-0000-4000-8000-000000000000")


@pytest.fixture
def story():
    return story_make()


def path_of(token):
    return f"{TOKENS}/{token.pk}"


def ids(*sites):
    return [str(site.pk) for site in sites]


def opened_by(value):
    """The sites that a caller sees who sends this value."""
    found = management_token_find(value)
    assert found is not None
    return set(sites_visible_to(principal_of_token(ManagementToken.objects.get(pk=found.pk))))


# --- create -----------------------------------------------------------------------------------------------------


def test_created_token_is_told_with_its_value_and_opens_what_it_names(story):
    response = story.root.post(TOKENS, {"name": "New Site Access", "sites": ids(story.site_a)})
    assert response.status_code == 200
    body = json.loads(response.content)
    assert list(body) == ["id", "name", "token", "sites"]
    assert (body["name"], body["sites"]) == ("New Site Access", ids(story.site_a))
    assert opened_by(body["token"]) == {story.site_a}


def test_answers_with_values_are_kept_by_no_cache(story):
    body = {"name": "Given", "sites": []}
    answers = [
        story.root.post(TOKENS, body),
        story.root.get(TOKENS),
        story.root.get(path_of(story.token_a)),
        story.root.put(path_of(story.token_a), body),
    ]
    assert [answer["Cache-Control"] for answer in answers] == ["no-store"] * 4


@pytest.mark.parametrize("reverse", [False, True])
def test_sites_stand_in_the_order_they_were_given(story, reverse):
    sites = sorted([site_make() for _ in range(9)], key=lambda site: site.pk, reverse=reverse)
    created = story.root.post(TOKENS, {"name": "Many", "sites": ids(*sites)}).json()
    assert created["sites"] == ids(*sites)
    turned = ids(*sites[4:], *sites[:4])
    assert story.root.put(f"{TOKENS}/{created['id']}", {"name": "Many", "sites": turned}).status_code == 200
    assert story.root.get(f"{TOKENS}/{created['id']}").json()["sites"] == turned


def test_token_without_sites_opens_nothing(story):
    body = story.root.post(TOKENS, {"name": "Not yet", "sites": []}).json()
    assert body["sites"] == []
    assert opened_by(body["token"]) == set()


def test_two_tokens_may_have_one_name(story):
    body = {"name": "Installer", "sites": ids(story.site_a)}
    one, other = story.root.post(TOKENS, body).json(), story.root.post(TOKENS, body).json()
    assert one["token"] != other["token"]


# --- refused ----------------------------------------------------------------------------------------------------

GOOD = {"name": "Given", "sites": []}
REFUSED = [
    pytest.param({"sites": []}, "name", id="no name"),
    pytest.param({"name": "Given"}, "sites", id="no sites"),
    pytest.param({**GOOD, "name": ""}, "name", id="empty name"),
    pytest.param({**GOOD, "name": None}, "name", id="null name"),
    pytest.param({**GOOD, "name": 7}, "name", id="number for a name"),
    pytest.param({**GOOD, "name": "x" * 201}, "name", id="long name"),
    pytest.param({**GOOD, "name": "a\0b"}, "name", id="NUL"),
    pytest.param({**GOOD, "sites": None}, "sites", id="null sites"),
    pytest.param({**GOOD, "sites": {}}, "sites", id="object for a list"),
    pytest.param({**GOOD, "sites": "all"}, "sites", id="text for a list"),
    pytest.param({**GOOD, "sites": ["site_a"]}, "sites.0", id="tag for an id"),
    pytest.param({**GOOD, "sites": [7]}, "sites.0", id="number for an id"),
    pytest.param({**GOOD, "sites": [None]}, "sites.0", id="null for an id"),
    pytest.param({**GOOD, "sites": [[]]}, "sites.0", id="list for an id"),
    pytest.param({**GOOD, "sites": [str(ABSENT)] * 10_001}, "sites", id="too many"),
    pytest.param({**GOOD, "token": "tok_" + "a" * 32}, "token", id="value of one's own"),
    pytest.param([], "non_field_errors", id="list for an object"),
]


@pytest.mark.parametrize(("body", "field"), REFUSED)
def test_what_is_no_token_is_refused_by_field_and_changes_nothing(story, body, field):
    token = story.token_a
    for response in (story.root.post(TOKENS, body), story.root.put(path_of(token), body)):
        assert response.status_code == 400
        assert list(response.json()["errors"]) == [field]
    assert ManagementToken.objects.count() == 3
    token.refresh_from_db()
    assert (token.name, list(token.sites.all())) == ("Token of A", [story.site_a])


def test_site_named_twice_is_refused_where_it_stands_again(story):
    sites = ids(story.site_a, story.site_b, story.site_a)
    response = story.root.post(TOKENS, {"name": "Twice", "sites": sites})
    assert response.status_code == 400
    assert response.json()["errors"] == {"sites.2": ["this site stands there twice"]}


def test_site_that_is_not_there_is_not_found_and_its_place_named(story):
    sites = [str(ABSENT), *ids(story.site_a)]
    for response in (
        story.root.post(TOKENS, {"name": "Given", "sites": sites}),
        story.root.put(path_of(story.token_a), {"name": "Given", "sites": sites}),
    ):
        assert response.status_code == 404
        assert response.json()["errors"] == {"sites.0": ["No such site."]}
    assert not ManagementToken.objects.filter(name="Given").exists()


def test_very_many_unknown_sites_are_not_found_either(story):
    sites = [str(uuid.UUID(int=number)) for number in range(10_000)]
    assert story.root.post(TOKENS, {"name": "Given", "sites": sites}).status_code == 404


# --- list and one -----------------------------------------------------------------------------------------------


def test_list_tells_all_tokens_by_name(story):
    response = story.root.get(TOKENS)
    assert response.status_code == 200
    assert response["X-Total-Count"] == "3"
    assert [(token["name"], token["token"], token["sites"]) for token in response.json()] == [
        ("Token of A", token_value(story.token_a), ids(story.site_a)),
        ("Token of B", token_value(story.token_b), ids(story.site_b)),
        ("Token of nothing", token_value(story.token_nothing), []),
    ]


def test_list_takes_pages_and_filters(story):
    def names(query):
        return [token["name"] for token in story.root.get(f"{TOKENS}?{query}").json()]

    assert names("limit=1&offset=1") == ["Token of B"]
    assert names("name=Token of A") == ["Token of A"]
    assert names(f"site_id={story.site_b.pk}") == ["Token of B"]
    assert names(f"site_id={ABSENT}") == []
    assert story.root.get(f"{TOKENS}?site_id=a").status_code == 400


def test_list_takes_one_query_however_many_there_are(story):
    for _ in range(5):
        token_make(story.site_a, story.site_b)
    root = story.root
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert len(root.get(TOKENS).json()) == 8
    assert len(queries) == 1


def test_value_that_was_told_is_told_no_more_once_its_key_is_gone(story, settings):
    assert [token["token"] is None for token in story.root.get(TOKENS).json()] == [False] * 3
    keys = settings.SGM_TOKEN_ENCRYPTION_KEYS
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    assert [token["token"] for token in story.root.get(TOKENS).json()] == [None] * 3
    assert story.root.get(path_of(story.token_a)).json()["token"] is None
    settings.SGM_TOKEN_ENCRYPTION_KEYS = keys
    assert story.root.get(path_of(story.token_a)).json()["token"] == token_value(story.token_a)


def test_one_is_told_as_in_the_list(story):
    listed = story.root.get(TOKENS).json()
    assert story.root.get(path_of(story.token_b)).json() == listed[1]
    assert story.root.get(f"{TOKENS}/{ABSENT}").status_code == 404


def test_token_whose_key_is_lost_is_listed_without_its_value_and_works_on(story, settings):
    value = token_value(story.token_a)
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    fresh = story.root.post(TOKENS, {"name": "After", "sites": []}).json()
    told = {token["name"]: token["token"] for token in story.root.get(TOKENS).json()}
    assert told == {
        "After": fresh["token"],
        "Token of A": None,
        "Token of B": None,
        "Token of nothing": None,
    }
    changed = story.root.put(path_of(story.token_a), {"name": "Token of A", "sites": ids(story.site_b)})
    assert (changed.status_code, changed.json()["token"]) == (200, None)
    assert opened_by(value) == {story.site_b}


# --- change and end ---------------------------------------------------------------------------------------------


def test_changed_token_keeps_id_and_value(story):
    value = token_value(story.token_a)
    response = story.root.put(path_of(story.token_a), {"name": "Updated", "sites": ids(story.site_b)})
    assert response.status_code == 200
    assert json.loads(response.content) == {
        "id": str(story.token_a.pk),
        "name": "Updated",
        "token": value,
        "sites": ids(story.site_b),
    }
    assert opened_by(value) == {story.site_b}
    assert story.holder_a.get("/v1/sites").json()[0]["id"] == str(story.site_b.pk)


def test_change_of_the_name_alone_leaves_the_rows_of_the_sites(story):
    rows = ManagementToken.sites.through.objects.filter(managementtoken=story.token_a)
    before = list(rows.values_list("pk", flat=True))
    story.root.put(path_of(story.token_a), {"name": "Updated", "sites": ids(story.site_a)})
    assert list(rows.values_list("pk", flat=True)) == before


def test_deleted_token_is_gone_with_an_empty_answer_and_once(story):
    value = token_value(story.token_a)
    response = story.root.delete(path_of(story.token_a))
    assert (response.status_code, response.content) == (204, b"")
    assert management_token_find(value) is None
    for again in (
        story.root.delete(path_of(story.token_a)),
        story.root.get(path_of(story.token_a)),
        story.root.put(path_of(story.token_a), GOOD),
    ):
        assert again.status_code == 404


def test_token_that_ended_meanwhile_is_not_found_rather_than_made_again(story):
    stale = ManagementToken.objects.get(pk=story.token_a.pk)
    token_revoke(token=story.token_a)
    with pytest.raises(NotFound):
        token_update(token=stale, name="Late", sites=[story.site_a])
    with pytest.raises(NotFound):
        token_revoke(token=stale)
    assert ManagementToken.objects.count() == 2


def test_deleted_site_is_in_no_token_any_more(story):
    site = site_make()
    token = story.root.post(TOKENS, {"name": "Given", "sites": ids(story.site_a, site)}).json()
    site.delete()
    assert story.root.get(f"{TOKENS}/{token['id']}").json()["sites"] == ids(story.site_a)


# --- root alone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("holder", ["holder_a", "holder_of_nothing"])
def test_site_token_learns_nothing_of_tokens_not_even_its_own(story, holder):
    client = getattr(story, holder)
    asked = [client.get(TOKENS), client.post(TOKENS, GOOD)]
    for path in (path_of(story.token_a), f"{TOKENS}/{ABSENT}"):
        asked += [client.get(path), client.put(path, {"unknown": 1}), client.delete(path)]
    for response in asked:
        assert response.status_code == 403
        assert response.json()["code"] == "root_token_required"
    assert ManagementToken.objects.count() == 3


def test_token_is_found_with_whether_it_opens_few_sites():
    few = [Site(site_tag=f"few {number}", name="few") for number in range(FEW_SITES)]
    Site.objects.bulk_create(few)
    for token, opens_few in [
        (token_make(), True),
        (token_make(*few), True),
        (token_make(*few, site_make()), False),
    ]:
        assert management_token_find(token_value(token)) == (token.pk, opens_few)


def test_token_is_looked_for_under_both_digest_keys_at_once(settings, story, django_assert_num_queries):
    value = token_value(story.token_a)
    former = settings.SGM_TOKEN_HASH_KEY
    settings.SGM_TOKEN_HASH_KEY, settings.SGM_TOKEN_HASH_KEY_OTHER = "a new key, and a long one", former
    # Two looks could miss a row that is given its new digest between them.
    with django_assert_num_queries(1):
        found = management_token_find(value)
        assert found is not None
        assert found.pk == story.token_a.pk
