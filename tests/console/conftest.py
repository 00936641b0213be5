"""People at the console, each with a role and sites, and the nodes they command."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client

from sites_app.models import Site, SiteScope
from smartgrid.console.roles import Role, roles_make

# The nodes of the fake broker are the same.
from tests.control_app.conftest import eager, live_redis, node_a, node_b, node_ids, sending, story

__all__ = ["eager", "live_redis", "node_a", "node_b", "node_ids", "sending", "story"]


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
