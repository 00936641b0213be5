"""Every page of the console asks who comes, and tells a stranger nothing."""

from __future__ import annotations

import re
import uuid

import pytest
from django.test import Client
from django.urls import reverse

from smartgrid.console.pages import Page
from smartgrid.console.urls import PAGES

pytestmark = pytest.mark.django_db


def address(page: Page) -> str:
    """Where a page is, with ids of nothing there is."""
    parts = {
        name: {"uuid": uuid.uuid4(), "int": 1, "date": "2024-08-01"}.get(kind, "x")
        for kind, name in re.findall(r"<(?:(\w+):)?(\w+)>", page.route)
    }
    return reverse(f"admin:{page.name}", kwargs=parts)


@pytest.mark.parametrize("page", [page for page in PAGES if not page.is_open], ids=lambda page: page.name)
def test_stranger_is_sent_to_log_in(page: Page, client: Client):
    response = client.get(address(page))
    assert response.status_code == 302
    assert response["Location"].startswith("/admin/login/?next=")


@pytest.mark.parametrize("page", [page for page in PAGES if page.permission], ids=lambda page: page.name)
def test_who_has_no_role_may_not_open_it(page: Page, person):
    somebody = person(None)
    answers = {somebody.get(address(page)).status_code, somebody.post(address(page)).status_code}
    assert 403 in answers
    assert answers <= {403, 405}


def test_names_and_routes_are_each_given_once():
    assert len({page.name for page in PAGES}) == len({page.route for page in PAGES}) == len(PAGES)
