"""People at the console, each with a role and with sites, and the nodes they command."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client

from sites_app.models import Site, SiteScope
from smartgrid.console.roles import Role, roles_make

# The nodes of the fake broker are the same.
from tests.control_app.conftest import eager, live_redis, node_a, node_b, node_ids, sending, story

__all__ = ["eager", "live_redis", "node_a", "node_b", "node_ids", "sending", "story"]

Person = Callable[..., Client]


@pytest.fixture
def person(db: None) -> Person:
    """A logged-in browser of somebody with this role, who sees these sites; without any named, all."""
    roles_make()

    def made(
        role: Role | None, *sites: Site, name: str = "somebody", all_sites: bool | None = None
    ) -> Client:
        user = User.objects.create_user(name, password="a long password", is_staff=True)
        if role is not None:
            user.groups.add(Group.objects.get(name=role.value))
        scope = SiteScope.objects.create(user=user, all_sites=not sites if all_sites is None else all_sites)
        scope.sites.set(sites)
        client = Client()
        client.force_login(user)
        return client

    return made


def person_make(role: Role, *sites: Site, name: str = "") -> Client:
    """A browser in which somebody of this role is logged in, who sees these sites."""
    roles_make()
    user = User.objects.create_user(name or f"{role.value.lower()}_{User.objects.count()}", is_staff=True)
    user.groups.add(Group.objects.get(name=role.value))
    scope = SiteScope.objects.create(user=user)
    scope.sites.set(sites)
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def operator_a(story) -> Client:
    return person_make(Role.OPERATOR, story.site_a, name="olga")


@pytest.fixture
def viewer_a(story) -> Client:
    return person_make(Role.VIEWER, story.site_a, name="vera")
