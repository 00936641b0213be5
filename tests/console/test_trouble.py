from __future__ import annotations

import uuid

import pytest
from django.contrib.auth.models import Group, User
from django.http import HttpRequest
from django.test import Client, RequestFactory

from smartgrid.console import trouble
from smartgrid.console.roles import Role

pytestmark = pytest.mark.django_db


@pytest.fixture
def newcomer() -> Client:
    """Somebody who is let in and may do nothing."""
    client = Client()
    client.force_login(User.objects.create_user("newcomer", is_staff=True))
    return client


@pytest.fixture
def chief() -> User:
    user = User.objects.create_user("chief", is_staff=True)
    user.groups.add(Group.objects.get(name=Role.ADMINISTRATOR.value))
    return user


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        ("/admin/schedules/", "schedules_app.view_schedule"),
        ("/admin/schedules_app/schedule/", "schedules_app.view_schedule"),
        ("/admin/schedules_app/schedule/add/", "schedules_app.add_schedule"),
    ],
)
def test_who_may_not_is_told_what_is_missing_and_whom_to_ask(
    newcomer: Client, chief: User, path: str, missing: str
) -> None:
    response = newcomer.get(path)
    page = response.content.decode()
    assert response.status_code == 403
    assert missing in page
    assert "Operator" in page
    assert chief.get_username() in page
    assert response["X-Request-ID"] in page


def test_what_is_not_there_is_told_in_the_console(newcomer: Client) -> None:
    response = newcomer.get(f"/admin/no/such/page/{uuid.uuid4()}/")
    assert response.status_code == 404
    assert "Check the address" in response.content.decode()


def test_form_without_its_token_says_what_to_do() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root"))
    response = client.post("/admin/logout/")
    assert response.status_code == 403
    assert "load the page again" in response.content.decode()


def asked(path: str) -> HttpRequest:
    request = RequestFactory().get(path)
    request.META["sgm.request_id"] = "number-1"
    return request


def test_failure_is_told_with_the_number_of_the_request_and_without_the_database(
    django_assert_num_queries,
) -> None:
    with django_assert_num_queries(0):
        response = trouble.server_error(asked("/admin/sites_app/site/"))
    assert response.status_code == 500
    assert "number-1" in response.content.decode()


def test_api_keeps_to_json() -> None:
    for response in (
        trouble.server_error(asked("/v1/sites")),
        trouble.not_found(asked("/v1/x"), Exception()),
        trouble.forbidden(asked("/v1/x"), Exception()),
        trouble.bad_request(asked("/v1/x"), Exception()),
    ):
        assert response["Content-Type"] == "application/json"


def test_browsers_find_an_icon() -> None:
    response = Client().get("/favicon.ico")
    assert response.status_code == 302
    assert response["Location"].endswith(".svg")
