"""People log in to the console by a third-party OpenID provider, over HTTP: code flow, PKCE, state, nonce."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from django.contrib.auth import get_user_model
from django.test import Client
from pytest_django import Settings

from sites_app.models import SiteScope
from smartgrid.console import oidc
from smartgrid.console.roles import Role
from smartgrid.console.sessions import PROVIDER_BACKEND
from tests.factories import site_make
from tests.oidc.provider import Provider

pytestmark = pytest.mark.django_db

ADA = {"sub": "ada-1", "preferred_username": "ada", "email": "ada@example.org", "groups": ["grid-ops"]}


@pytest.fixture(autouse=True)
def console(people_provider: Provider, settings: Settings) -> None:
    settings.SGM_CONSOLE_SECOND_FACTOR = "required"
    settings.AUTHENTICATION_BACKENDS = ["django.contrib.auth.backends.ModelBackend", PROVIDER_BACKEND]
    settings.SGM_CONSOLE_OIDC = {
        "issuer": people_provider.issuer,
        "client_id": "console",
        "client_secret": people_provider.client_secret,
        "name": "Example AG",
        "roles": {"grid-ops": "Operator", "grid-chiefs": "Administrator"},
        "sites_claim": "sites",
        "scopes": "openid profile email",
    }
    oidc._endpoints.cache_clear()


def sent_back(
    client: Client, person: dict[str, Any], *, go_to: str = "", changes: dict[str, Any] | None = None
) -> str:
    """Log in at the provider; the address it sends the browser back to."""
    address = client.get("/admin/oidc/", {"next": go_to} if go_to else {})["Location"]
    account = json.dumps(person)
    with httpx.Client(follow_redirects=False, timeout=10) as browser:
        answer = browser.get(f"{address}&{httpx.QueryParams(login_hint=account)}", params=None)
        while (place := answer.headers["Location"]).startswith(("/", client_issuer())):
            answer = browser.get(httpx.URL(client_issuer()).join(place))
    assert place.startswith("http://testserver/admin/oidc/callback/"), place
    return place.removeprefix("http://testserver")


def client_issuer() -> str:
    from django.conf import settings  # noqa: PLC0415 - as the fixture has set it

    return str(settings.SGM_CONSOLE_OIDC["issuer"])


def log_in(person: dict[str, Any], client: Client | None = None, **options):
    client = client or Client()
    return client, client.get(sent_back(client, person, **options))


def test_login_page_has_a_button_that_leads_to_the_provider(people_provider: Provider) -> None:
    client = Client()

    assert "Log in by Example AG" in client.get("/admin/login/").content.decode()
    place = urlsplit(client.get("/admin/oidc/")["Location"])
    asked = parse_qs(place.query)
    assert f"{place.scheme}://{place.netloc}" == people_provider.issuer
    assert asked["code_challenge_method"] == ["S256"]
    assert {"state", "nonce", "code_challenge"} <= asked.keys()


def test_person_of_a_known_group_comes_in_with_its_role_and_without_our_second_factor() -> None:
    site = site_make(site_tag="park_1")

    client, answer = log_in({**ADA, "sites": ["park_1"]}, go_to="/admin/sites_app/site/")

    assert (answer.status_code, answer["Location"]) == (302, "/admin/sites_app/site/")
    assert client.get("/admin/sites_app/site/").status_code == 200
    person = get_user_model().objects.get(username="ada")
    assert [group.name for group in person.groups.all()] == [Role.OPERATOR]
    assert list(person.site_scope.sites.all()) == [site]
    assert not person.is_superuser
    assert not person.has_usable_password()


def test_roles_and_sites_follow_the_provider_at_each_login() -> None:
    log_in({**ADA, "sites": ["*"]})
    assert SiteScope.objects.get().all_sites

    log_in({**ADA, "groups": ["grid-chiefs"], "sites": []})

    person = get_user_model().objects.get(username="ada")
    assert [group.name for group in person.groups.all()] == [Role.ADMINISTRATOR]
    assert not person.site_scope.all_sites


def test_person_without_a_known_group_is_told_so_and_gets_no_account() -> None:
    client, answer = log_in({**ADA, "groups": ["canteen"]})

    assert answer.status_code == 403
    assert "None of your groups has a role here (canteen)" in answer.content.decode()
    assert not get_user_model().objects.exists()
    assert client.get("/admin/sites_app/site/").status_code == 302


def test_person_who_lost_the_group_is_out_with_all_sessions() -> None:
    client, _ = log_in(ADA)
    assert client.get("/admin/sites_app/site/").status_code == 200

    log_in({**ADA, "groups": []})

    assert client.get("/admin/sites_app/site/").status_code == 302


def test_same_name_or_address_gives_nobody_the_account_of_another() -> None:
    local = get_user_model().objects.create_superuser("ada", email="ada@example.org", password="x" * 12)

    client, _ = log_in(ADA)

    assert int(client.session["_auth_user_id"]) != local.pk
    local.refresh_from_db()
    assert local.is_superuser
    assert get_user_model().objects.count() == 2


def test_person_who_is_switched_off_here_stays_out() -> None:
    log_in(ADA)
    get_user_model().objects.update(is_active=False)

    _, answer = log_in(ADA)

    assert answer.status_code == 403
    assert "switched off" in answer.content.decode()


def test_answer_is_good_for_the_browser_that_asked_and_once() -> None:
    client, stranger = Client(), Client()
    stranger.get("/admin/oidc/")
    place = sent_back(client, ADA)

    assert stranger.get(place).status_code == 403
    assert client.get(place).status_code == 302
    client.logout()
    assert client.get(place).status_code == 403


def test_answer_with_another_nonce_is_refused() -> None:
    client = Client()
    place = sent_back(client, ADA)
    session = client.session
    state = parse_qs(urlsplit(place).query)["state"][0]
    session["oidc_states"][state]["nonce"] = "another"
    session.save()

    assert client.get(place).status_code == 403


def test_answer_without_the_proof_of_the_code_is_refused() -> None:
    client = Client()
    place = sent_back(client, ADA)
    session = client.session
    session["oidc_states"][parse_qs(urlsplit(place).query)["state"][0]]["code_verifier"] = "x" * 64
    session.save()

    assert client.get(place).status_code == 403


def test_form_of_the_password_is_no_way_around_the_provider() -> None:
    client = Client()
    place = urlsplit(sent_back(client, ADA)).query

    answer = client.post(f"/admin/login/?{place}", {"username": "ada", "password": "x"})

    assert answer.status_code == 200
    assert "_auth_user_id" not in client.session


def test_logout_goes_on_to_the_provider(people_provider: Provider) -> None:
    client, _ = log_in(ADA)

    answer = client.post("/admin/logout/")

    place = urlsplit(answer["Location"])
    said = parse_qs(place.query)
    assert answer["Location"].startswith(f"{people_provider.issuer}/session/end?")
    assert said["post_logout_redirect_uri"] == ["http://testserver/admin/login/"]
    assert said["id_token_hint"]
    assert client.get("/admin/").status_code == 302
    assert people_provider.issuer in client.get("/admin/login/")["Content-Security-Policy"]


def test_provider_that_is_away_leaves_the_way_by_password(settings: Settings) -> None:
    settings.SGM_CONSOLE_OIDC = {**settings.SGM_CONSOLE_OIDC, "issuer": "http://127.0.0.1:1"}
    client = Client()

    answer = client.get("/admin/oidc/")

    assert answer.status_code == 503
    assert "log in by password" in answer.content.decode()
    assert client.get("/admin/login/").status_code == 200
