"""The embedded issuer's clients in the console: made, renamed, given new secrets, ended; secrets are seen once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.test import Client
from django.urls import include, path
from oauth2_provider.models import Application
from pytest_django import Settings

from smartgrid.issuer import issuer_client_create, issuer_urlpatterns
from smartgrid.issuer_keys import issuer_key_create

pytestmark = pytest.mark.django_db

CLIENTS = "/admin/oauth2_provider/application/"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "issuer.pem"
    issuer_key_create(file)
    return file


@pytest.fixture
def issuer(key: Path, settings: Settings) -> None:
    """The issuer is on, and the console beside it."""
    settings.SGM_ISSUER_KEY_FILE = str(key)
    urls = ModuleType("urls")
    urls.urlpatterns = [  # type: ignore[attr-defined]
        path("admin/", admin.site.urls),
        path("v1/", include("smartgrid.api.urls")),
        *issuer_urlpatterns(),
    ]
    settings.ROOT_URLCONF = urls


def logged_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def operator(issuer: None) -> Client:
    return logged_in(User.objects.create_superuser("operator", "operator@example.com", "x"))


@pytest.fixture
def robot(issuer: None) -> tuple[Application, str]:
    client_id, secret = issuer_client_create(name="Robot")
    return Application.objects.get(client_id=client_id), secret


def staff(*permissions: str) -> Client:
    user = User.objects.create_user("staff", "staff@example.com", "x", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return logged_in(user)


def shown(response: Any) -> list[str]:
    """What a page shows to be copied: client_id and client_secret."""
    return re.findall(r"<code>([^<]+)</code>", response.content.decode())


def token_status(client_id: str, client_secret: str) -> int:
    body = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": client_secret}
    return int(Client().post("/oauth/token", json.dumps(body), content_type="application/json").status_code)


def test_new_client_is_drawn_and_its_secret_fetches_tokens(operator: Client) -> None:
    response = operator.post(f"{CLIENTS}add/", {"name": "Integrator"})

    client_id, secret = shown(response)
    stored = Application.objects.get(client_id=client_id)
    assert stored.name == "Integrator"
    assert secret not in stored.client_secret
    assert len(secret) >= 32
    assert token_status(client_id, secret) == 200


def test_secret_is_in_the_answer_to_the_request_and_nowhere_else(
    operator: Client, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("DEBUG")

    response = operator.post(f"{CLIENTS}add/", {"name": "Integrator"})

    client_id, secret = shown(response)
    assert response.status_code == 200
    assert "no-store" in response["Cache-Control"]
    cookies = " ".join(morsel.OutputString() for morsel in response.cookies.values())
    sessions = str([row.get_decoded() for row in Session.objects.all()])
    entries = str(list(LogEntry.objects.values()))
    written = "".join((caplog.text, *capfd.readouterr()))
    assert not any(secret in place for place in (cookies, sessions, entries, written))
    client = Application.objects.get(client_id=client_id)
    for page in ("", f"{client.pk}/change/", f"{client.pk}/history/", f"{client.pk}/new-secret/"):
        content = operator.get(f"{CLIENTS}{page}").content.decode()
        assert secret not in content
        assert client.client_secret not in content


def test_client_needs_a_name(operator: Client) -> None:
    response = operator.post(f"{CLIENTS}add/", {"name": ""})

    assert "This field is required" in response.content.decode()
    assert not Application.objects.exists()


def test_form_takes_neither_id_nor_secret_nor_grant(operator: Client) -> None:
    given = {
        "name": "Integrator",
        "client_id": "root",
        "client_secret": "x" * 40,
        "authorization_grant_type": "password",
        "client_type": "public",
        "skip_authorization": "on",
    }

    client_id, secret = shown(operator.post(f"{CLIENTS}add/", given))

    stored = Application.objects.get()
    assert stored.client_id == client_id != "root"
    assert secret != given["client_secret"]
    assert (stored.authorization_grant_type, stored.client_type) == ("client-credentials", "confidential")


def test_renamed_client_keeps_its_secret(operator: Client, robot: tuple[Application, str]) -> None:
    client, secret = robot

    operator.post(f"{CLIENTS}{client.pk}/change/", {"name": "Renamed", "client_id": "other"})

    assert Application.objects.get().name == "Renamed"
    assert token_status(client.client_id, secret) == 200


def test_new_secret_is_asked_for_first_and_replaces_the_present_one(
    operator: Client, robot: tuple[Application, str]
) -> None:
    client, secret = robot
    where = f"{CLIENTS}{client.pk}/new-secret/"

    assert operator.get(where).status_code == 200
    assert token_status(client.client_id, secret) == 200
    response = operator.post(where)

    client_id, renewed = shown(response)
    assert client_id == client.client_id
    assert "no-store" in response["Cache-Control"]
    assert (token_status(client_id, secret), token_status(client_id, renewed)) == (401, 200)


def test_deleted_client_gets_no_more_tokens_and_the_console_says_what_is_left(
    operator: Client, robot: tuple[Application, str]
) -> None:
    client, secret = robot

    response = operator.post(f"{CLIENTS}{client.pk}/delete/", {"post": "yes"}, follow=True)

    assert token_status(client.client_id, secret) == 401
    assert "good for up to 1 day" in response.content.decode()


def test_many_clients_are_deleted_by_the_same_door(
    operator: Client, robot: tuple[Application, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    chosen = {"action": "delete_selected", "_selected_action": [robot[0].pk], "post": "yes"}

    operator.post(CLIENTS, chosen)

    assert not Application.objects.exists()
    assert "issuer_client_deleted" in caplog.text


def test_each_change_is_in_the_log_with_who_did_it(
    operator: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    operator.post(f"{CLIENTS}add/", {"name": "Integrator"})
    pk = Application.objects.get().pk
    operator.post(f"{CLIENTS}{pk}/change/", {"name": "Renamed"})
    operator.post(f"{CLIENTS}{pk}/new-secret/")
    operator.post(f"{CLIENTS}{pk}/delete/", {"post": "yes"})

    for event in ("created", "renamed", "renewed", "deleted"):
        (record,) = [record for record in caplog.records if f"issuer_client_{event}" in record.getMessage()]
        assert "'by': 'operator'" in record.getMessage()
    assert [entry.action_flag for entry in LogEntry.objects.order_by("pk")] == [1, 2, 2, 3]


# --- who may ---------------------------------------------------------------------------------------------------


def test_who_may_only_look_changes_nothing(robot: tuple[Application, str]) -> None:
    client, secret = robot
    viewer = staff("view_application")

    assert viewer.get(CLIENTS).status_code == 200
    assert "new-secret" not in viewer.get(f"{CLIENTS}{client.pk}/change/").content.decode()
    statuses = [
        viewer.post(f"{CLIENTS}add/", {"name": "Mine"}).status_code,
        viewer.post(f"{CLIENTS}{client.pk}/change/", {"name": "Mine"}).status_code,
        viewer.get(f"{CLIENTS}{client.pk}/new-secret/").status_code,
        viewer.post(f"{CLIENTS}{client.pk}/new-secret/").status_code,
        viewer.post(f"{CLIENTS}{client.pk}/delete/", {"post": "yes"}).status_code,
    ]

    assert statuses == [403] * 5
    assert Application.objects.get().name == "Robot"
    assert token_status(client.client_id, secret) == 200


def test_who_has_no_permission_sees_nothing(robot: tuple[Application, str]) -> None:
    nobody = staff()

    assert nobody.get(CLIENTS).status_code == 403
    assert "application" not in nobody.get("/admin/").content.decode()


def test_stranger_is_sent_to_log_in(robot: tuple[Application, str]) -> None:
    response = Client().post(f"{CLIENTS}{robot[0].pk}/new-secret/")

    assert response.status_code == 302
    assert "/admin/login/" in response["Location"]


def test_new_secret_is_protected_against_forged_forms(robot: tuple[Application, str]) -> None:
    client, secret = robot
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.create_superuser("root", "root@example.com", "x"))

    assert strict.post(f"{CLIENTS}{client.pk}/new-secret/").status_code == 403
    assert token_status(client.client_id, secret) == 200


def test_without_the_issuer_there_are_no_clients(operator: Client, settings: Settings) -> None:
    client_id, _ = issuer_client_create(name="Robot")
    pk = Application.objects.get(client_id=client_id).pk
    assert CLIENTS in operator.get("/admin/").content.decode()
    settings.SGM_ISSUER_KEY_FILE = ""

    assert CLIENTS not in operator.get("/admin/").content.decode()
    assert operator.get(CLIENTS).status_code == 403
    assert operator.post(f"{CLIENTS}{pk}/new-secret/").status_code == 403


def test_nothing_else_of_the_toolkit_is_in_the_console() -> None:
    models = {
        model._meta.model_name for model in admin.site._registry if model._meta.app_label == "oauth2_provider"
    }

    assert models == {"application"}
    assert type(admin.site._registry[Application]).__module__ == "smartgrid.issuer_admin"
