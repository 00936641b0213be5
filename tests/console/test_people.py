"""People, roles, tokens and the audit log in the console."""

from __future__ import annotations

import csv
import io
import re
import threading
from datetime import UTC, datetime

import pytest
from auditlog.models import LogEntry
from auditlog.registry import auditlog
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client, RequestFactory
from pytest_django import Settings

from devices_app.encrypted import COLUMNS
from sites_app.models import ManagementToken, Site, SiteScope
from sites_app.selectors import management_token_find, token_value
from sites_app.token_use import token_used, token_uses_keep
from smartgrid import live
from smartgrid.console.audit import noted
from smartgrid.console.roles import Role
from tests.factories import site_make, story_make, token_make

pytestmark = pytest.mark.django_db

USERS = "/admin/auth/user/"
TOKENS = "/admin/sites_app/managementtoken/"
LOG = "/admin/auditlog/logentry/"


def person_make(name: str, *roles: Role, sites: list[Site] | None = None, **fields):
    person = get_user_model().objects.create_user(name, password="a long password", is_staff=True, **fields)
    person.groups.set(Group.objects.filter(name__in=roles))
    scope = SiteScope.objects.create(user=person, all_sites=sites is None)
    scope.sites.set(sites or [])
    return person


def client_of(person) -> Client:
    client = Client()
    client.force_login(person)
    return client


@pytest.fixture
def chief():
    return person_make("chief", Role.ADMINISTRATOR)


@pytest.fixture
def office(chief) -> Client:
    return client_of(chief)


def person_form(person, **changes):
    scope = SiteScope.objects.filter(user=person).first()
    form = {
        "username": person.username,
        "is_active": "on" if person.is_active else "",
        "is_staff": "on" if person.is_staff else "",
        "groups": [group.pk for group in person.groups.all()],
        "site_scope-TOTAL_FORMS": "1",
        "site_scope-INITIAL_FORMS": "1" if scope else "0",
        "site_scope-0-id": str(scope.pk) if scope else "",
        "site_scope-0-user": str(person.pk),
        "site_scope-0-sites": [str(site.pk) for site in scope.sites.all()] if scope else [],
        "site_scope-0-all_sites": "on" if scope and scope.all_sites else "",
    } | changes
    return {name: value for name, value in form.items() if value != ""}


def group(role: Role) -> int:
    return Group.objects.get(name=role).pk


# --- people -----------------------------------------------------------------------------------------------


def test_administrator_gives_roles_and_sites(office) -> None:
    person, site = person_make("ada", sites=[]), site_make()
    form = person_form(person, groups=[group(Role.OPERATOR)])

    answer = office.post(f"{USERS}{person.pk}/change/", form | {"site_scope-0-sites": [str(site.pk)]})

    assert answer.status_code == 302, re.findall(r"errorlist.*", answer.content.decode())
    assert person.groups.get().name == Role.OPERATOR
    assert list(person.site_scope.sites.all()) == [site]


@pytest.mark.parametrize("role", [Role.VIEWER, Role.OPERATOR, Role.ENGINEER])
def test_nobody_but_administrators_sees_people_roles_tokens_or_the_log(role: Role) -> None:
    client = client_of(person_make("ada", role))

    for address in (USERS, "/admin/auth/group/", TOKENS, LOG, f"{LOG}csv/"):
        assert client.get(address).status_code == 403, address


def test_new_person_may_come_in_and_sees_no_site_until_told(office) -> None:
    form = {
        "username": "new",
        "usable_password": "true",
        "password1": "quite a long word",
        "password2": "quite a long word",
    }

    assert office.post(f"{USERS}add/", form).status_code == 302

    person = get_user_model().objects.get(username="new")
    assert person.is_staff
    assert not person.is_superuser
    assert not SiteScope.objects.filter(user=person, all_sites=True).exists()


def test_who_is_no_superuser_makes_none(office) -> None:
    person = person_make("ada")

    office.post(f"{USERS}{person.pk}/change/", person_form(person, is_superuser="on"))

    person.refresh_from_db()
    assert not person.is_superuser


def test_nobody_changes_a_person_who_has_more(office) -> None:
    root = get_user_model().objects.create_superuser("root", password="a long password")

    assert office.post(f"{USERS}{root.pk}/change/", person_form(root, username="mine")).status_code == 403
    assert office.get(f"{USERS}{root.pk}/password/").status_code == 403
    assert office.post(f"{USERS}{root.pk}/second-factor-reset/").status_code == 403


def test_nobody_gives_sites_that_they_do_not_see() -> None:
    mine, other = site_make(), site_make()
    local = client_of(person_make("local", Role.ADMINISTRATOR, sites=[mine]))
    person = person_make("ada", sites=[])
    form = person_form(person)

    beyond = local.post(f"{USERS}{person.pk}/change/", form | {"site_scope-0-sites": [str(other.pk)]})
    all_of_them = local.post(f"{USERS}{person.pk}/change/", form | {"site_scope-0-all_sites": "on"})
    own = local.post(f"{USERS}{person.pk}/change/", form | {"site_scope-0-sites": [str(mine.pk)]})

    assert [answer.status_code for answer in (beyond, all_of_them, own)] == [200, 200, 302]
    assert "cannot give sites" in all_of_them.content.decode()
    assert list(person.site_scope.sites.all()) == [mine]


def test_last_administrator_cannot_lock_all_out(office, chief) -> None:
    refused = office.post(f"{USERS}{chief.pk}/change/", person_form(chief, groups=[group(Role.VIEWER)]))
    switched_off = office.post(f"{USERS}{chief.pk}/change/", person_form(chief, is_active=""))

    assert "last administrator" in refused.content.decode()
    assert "last administrator" in switched_off.content.decode()
    person_make("second", Role.ADMINISTRATOR)
    assert (
        office.post(f"{USERS}{chief.pk}/change/", person_form(chief, groups=[group(Role.VIEWER)])).status_code
        == 302
    )


def test_people_are_never_deleted(client: Client, chief) -> None:
    client.force_login(get_user_model().objects.create_superuser("root"))

    assert client.post(f"{USERS}{chief.pk}/delete/", {"post": "yes"}).status_code == 403


def test_roles_of_the_software_are_changed_by_nobody(client: Client) -> None:
    client.force_login(get_user_model().objects.create_superuser("root"))
    viewer = group(Role.VIEWER)

    assert client.get(f"/admin/auth/group/{viewer}/change/").status_code == 200
    assert client.post(f"/admin/auth/group/{viewer}/change/", {"name": "x"}).status_code == 403
    assert client.post(f"/admin/auth/group/{viewer}/delete/", {"post": "yes"}).status_code == 403


def test_list_of_people_asks_as_often_for_many_as_for_one(office, django_assert_max_num_queries) -> None:
    for number in range(12):
        person_make(f"person-{number}", Role.VIEWER)

    with django_assert_max_num_queries(14):
        page = office.get(USERS).content.decode()

    assert page.count("not set up") == 13


# --- tokens -----------------------------------------------------------------------------------------------


def test_list_of_tokens_shows_sites_and_last_use_in_few_queries(
    office, django_assert_max_num_queries
) -> None:
    sites = [site_make(), site_make()]
    for _ in range(12):
        token_make(*sites)
    ManagementToken.objects.update(last_used_at=datetime(2026, 11, 23, 12, tzinfo=UTC))

    with django_assert_max_num_queries(14):
        page = office.get(TOKENS).content.decode()

    assert page.count("2 sites") == 12
    assert "2026-11-23 12:00:00 UTC" in page


def test_new_value_ends_the_former_one_and_is_shown_once(office) -> None:
    token = token_make(site_make())
    before = token_value(token)
    address = f"{TOKENS}{token.pk}/new-value/"
    assert office.get(address).status_code == 200
    assert management_token_find(before) is not None

    answer = office.post(address)

    token.refresh_from_db()
    assert token_value(token) in answer.content.decode()
    assert "no-store" in answer["Cache-Control"]
    assert management_token_find(before) is None
    assert management_token_find(token_value(token)) is not None
    assert token_value(token) not in office.get(f"{TOKENS}{token.pk}/change/").content.decode()


def test_value_is_shown_again_by_post_to_who_may_and_that_is_kept(office) -> None:
    token = token_make(site_make())
    address = f"{TOKENS}{token.pk}/reveal/"

    assert token_value(token) not in office.get(address).content.decode()
    answer = office.post(address)

    assert token_value(token) in answer.content.decode()
    assert "no-store" in answer["Cache-Control"]
    entry = LogEntry.objects.get(additional_data__deed="reveal")
    assert (entry.actor.get_username(), entry.object_pk) == ("chief", str(token.pk))
    assert token_value(token) not in str(entry.additional_data)


@pytest.mark.parametrize("page", ["reveal", "new-value"])
def test_value_is_for_administrators_alone(page: str) -> None:
    token = token_make(site_make())
    client = client_of(person_make("ada", Role.ENGINEER))

    assert client.post(f"{TOKENS}{token.pk}/{page}/").status_code == 403


def test_token_that_opens_more_than_a_person_sees_is_not_there_for_them() -> None:
    mine, other = site_make(), site_make()
    own, wide = token_make(mine), token_make(mine, other)
    local = client_of(person_make("local", Role.ADMINISTRATOR, sites=[mine]))

    assert local.get(f"{TOKENS}{own.pk}/change/").status_code == 200
    assert local.post(f"{TOKENS}{wide.pk}/reveal/").status_code == 404
    assert local.post(f"{TOKENS}{wide.pk}/new-value/").status_code == 404
    beyond = local.post(f"{TOKENS}add/", {"name": "More", "sites": [str(other.pk)]})
    assert beyond.status_code == 200
    assert not ManagementToken.objects.filter(name="More").exists()


@pytest.fixture
def own_redis(settings: Settings, redis_url: str):
    settings.SGM_REDIS_URL = redis_url
    settings.SGM_TOKEN_USE_EVERY_S = 30
    live.client.cache_clear()
    yield
    live.client.cache_clear()


def told() -> None:
    for thread in threading.enumerate():
        if thread.name == "token uses":
            thread.join(10)


def test_use_of_a_token_is_known_after_a_while(own_redis) -> None:
    token = token_make(site_make())
    for seconds in (0, 10, 31):
        token_used(token.pk, at=2_000_000_000 + seconds)
        told()

    assert token_uses_keep() == 1
    token.refresh_from_db()
    assert token.last_used_at == datetime.fromtimestamp(2_000_000_031, UTC)
    assert token_uses_keep() == 0


def test_older_use_never_takes_the_place_of_a_newer_one(own_redis) -> None:
    token = token_make(site_make())
    late = datetime(2040, 1, 1, tzinfo=UTC)
    ManagementToken.objects.update(last_used_at=late)
    token_used(token.pk, at=2_100_000_000)
    told()

    assert token_uses_keep() == 0
    token.refresh_from_db()
    assert token.last_used_at == late


def test_without_redis_nothing_is_kept_and_nothing_fails(settings: Settings) -> None:
    settings.SGM_REDIS_URL = "redis://127.0.0.1:1/0"
    settings.SGM_TOKEN_USE_EVERY_S = 30
    live.client.cache_clear()
    token_used(token_make(site_make()).pk, at=2_200_000_000)
    told()

    assert token_uses_keep() == 0
    live.client.cache_clear()


# --- the audit log ----------------------------------------------------------------------------------------


def request_of(person, **meta):
    request = RequestFactory().get("/admin/", **meta)
    request.user = person
    return request


def test_every_deed_and_every_change_is_listed_and_can_be_chosen(office, chief) -> None:
    story = story_make()
    for deed in ("curtail", "reveal", "reset second factor"):
        noted(request_of(chief), deed, story.site_a, value=30)
    story.site_a.name = "New name"
    story.site_a.save()

    page = office.get(LOG).content.decode()
    only = office.get(f"{LOG}?deed=curtail").content.decode()

    for deed in ("curtail", "reveal", "reset second factor", "add", "change"):
        assert (
            f">{deed}<" in re.sub(r"\s+", "", page).replace("resetsecondfactor", "reset second factor")
            or deed in page
        )
    assert "value: 30" in only
    assert len(re.findall(r"value: 30", only)) == 1


@pytest.mark.parametrize(
    "query", ["deed=add", "who=1", "kind=1", "timestamp_from_0=2026-01-01", "q=site", "who=x", "kind=x"]
)
def test_log_is_filtered_by_who_what_when_and_deed(office, query: str) -> None:
    assert office.get(f"{LOG}?{query}").status_code == 200


def test_log_is_changed_by_nobody(client: Client) -> None:
    root = get_user_model().objects.create_superuser("root")
    client.force_login(root)
    noted(request_of(root), "curtail", root)
    entry = LogEntry.objects.order_by("pk").last()

    assert client.get(f"{LOG}{entry.pk}/change/").status_code == 200
    assert client.post(f"{LOG}{entry.pk}/change/", {"object_repr": "x"}).status_code == 403
    assert client.post(f"{LOG}{entry.pk}/delete/", {"post": "yes"}).status_code == 403
    assert client.get(f"{LOG}add/").status_code == 403
    client.post(LOG, {"action": "delete_selected", "_selected_action": [entry.pk], "post": "yes"})
    assert LogEntry.objects.filter(pk=entry.pk).exists()


def test_export_is_the_list_as_csv_with_nothing_a_spreadsheet_would_run(office, chief) -> None:
    site = site_make(name="=HYPERLINK(1)")
    noted(request_of(chief), "curtail", site, reason="=1+1", by="@x")

    answer = office.get(f"{LOG}csv/?deed=curtail")
    rows = list(csv.DictReader(io.StringIO(b"".join(answer.streaming_content).decode())))

    assert answer["Content-Type"].startswith("text/csv")
    assert [row["deed"] for row in rows] == ["curtail"]
    assert rows[0]["who"] == "chief"
    assert not any(value[:1] in "=+-@" for value in rows[0].values() if value)
    assert LogEntry.objects.filter(additional_data__deed="export audit log").exists()


def test_secrets_are_masked(office, chief) -> None:
    noted(request_of(chief), "curtail", chief, client_secret="geheim-123", nested={"password": "geheim-456"})

    assert "geheim" not in office.get(LOG).content.decode()
    assert "geheim" not in b"".join(office.get(f"{LOG}csv/").streaming_content).decode()


def test_person_of_some_sites_sees_the_deeds_at_those() -> None:
    mine, other = site_make(name="Mine"), site_make(name="Other")
    boss = get_user_model().objects.create_superuser("root")
    noted(request_of(boss), "curtail", mine, value=11)
    noted(request_of(boss), "curtail", other, value=22)

    page = client_of(person_make("local", Role.ADMINISTRATOR, sites=[mine])).get(LOG).content.decode()

    assert "value: 11" in page
    assert "value: 22" not in page


def test_no_encrypted_column_is_in_the_log() -> None:
    for column in COLUMNS:
        if auditlog.contains(column.model):
            tracked = auditlog.get_model_fields(column.model)
            assert column.field in tracked["exclude_fields"]
