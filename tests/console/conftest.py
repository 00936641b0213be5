"""People at the console, each with a role and with sites."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client

from sites_app.models import Site, SiteScope
from smartgrid.console.roles import Role, roles_make
from tests.factories import Story, story_make

Person = Callable[..., Client]


@pytest.fixture
def story(db: None) -> Story:
    return story_make()


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
