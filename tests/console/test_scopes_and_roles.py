"""A person sees the plants of their sites by the same selectors as a token, and does what their role says."""

from __future__ import annotations

from itertools import pairwise

import pytest
from django.contrib.auth.models import AnonymousUser, Group, Permission, User

from control_app.models import DeviceErrorLog
from control_app.selectors import control_logs_visible_to, device_errors_by_site
from sites_app.models import SiteScope
from sites_app.selectors import nodes_visible_to, site_get, site_visible, sites_visible_to
from smartgrid.api.principal import Principal
from smartgrid.console.people import principal_of_user
from smartgrid.console.roles import CURTAIL, REVEAL, Role, permissions_of, roles_make
from smartgrid.errors import NotFound
from tests.factories import Story, control_log_make, site_make

pytestmark = pytest.mark.django_db


def user_with(*sites, all_sites=False, **fields) -> User:
    user = User.objects.create_user("somebody", **fields)
    scope = SiteScope.objects.create(user=user, all_sites=all_sites)
    scope.sites.set(sites)
    return user


def test_person_sees_the_sites_of_their_scope_and_nothing_else(story: Story):
    control_log_make(site=story.site_a)
    control_log_make(site=story.site_b)
    principal = principal_of_user(user_with(story.site_a))
    assert list(sites_visible_to(principal)) == [story.site_a]
    assert {node.site_id for node in nodes_visible_to(principal)} == {story.site_a.pk}
    assert [line.site_id for line in control_logs_visible_to(principal)] == [story.site_a.pk]
    site_visible(principal, story.site_a.pk)
    with pytest.raises(NotFound):
        site_get(principal=principal, site_id=story.site_b.pk)
    with pytest.raises(NotFound):
        site_visible(principal, story.site_b.pk)


def test_kept_queries_of_two_people_are_each_their_own(story: Story):
    DeviceErrorLog.objects.create(site=story.site_a, device_tag="A", error="x")
    DeviceErrorLog.objects.create(site=story.site_b, device_tag="B", error="x")
    since = story.site_a.created_at
    first = principal_of_user(user_with(story.site_a))
    User.objects.filter(username="somebody").update(username="first")
    second = principal_of_user(user_with(story.site_b))
    assert "A" in str(device_errors_by_site(principal=first, since=since))
    assert "B" not in str(device_errors_by_site(principal=first, since=since))
    assert "B" in str(device_errors_by_site(principal=second, since=since))
    assert "A" not in str(device_errors_by_site(principal=second, since=since))


def test_all_sites_are_also_those_made_later(story: Story):
    principal = principal_of_user(user_with(all_sites=True))
    later = site_make()
    assert later in sites_visible_to(principal)


@pytest.mark.parametrize("kind", ["no scope", "empty scope", "anonymous", "inactive"])
def test_who_was_given_no_site_sees_none(story: Story, kind: str):
    match kind:
        case "no scope":
            user: User | AnonymousUser = User.objects.create_user("x")
        case "empty scope":
            user = user_with()
        case "inactive":
            user = user_with(all_sites=True, is_active=False)
        case _:
            user = AnonymousUser()
    assert not sites_visible_to(principal_of_user(user)).exists()


def test_superuser_needs_no_scope(story: Story):
    principal = principal_of_user(User.objects.create_superuser("root"))
    assert principal == Principal(client_id="user:root", token_id=None, is_root=True)


def test_repeated_requests_of_two_people_are_never_the_same(story: Story):
    one = principal_of_user(user_with(story.site_a))
    User.objects.filter(username="somebody").update(username="first")
    other = principal_of_user(user_with(story.site_a))
    assert one.key != other.key
    assert "root" not in {one.key, other.key}


# --- roles -----------------------------------------------------------------------------------------------


def test_each_role_may_what_those_before_it_may():
    roles = [permissions_of(role) for role in Role]
    for less, more in pairwise(roles):
        assert less < more


def test_viewers_change_nothing_and_only_administrators_reveal():
    assert all(name.split(".")[1].startswith("view_") for name in permissions_of(Role.VIEWER))
    assert [role for role in Role if REVEAL in permissions_of(role)] == [Role.ADMINISTRATOR]
    assert [role for role in Role if CURTAIL in permissions_of(role)] == [
        Role.OPERATOR,
        Role.ENGINEER,
        Role.ADMINISTRATOR,
    ]


def test_every_permission_of_a_role_is_one_there_is():
    there = {
        f"{app}.{codename}"
        for app, codename in Permission.objects.values_list("content_type__app_label", "codename")
    }
    assert {name for role in Role for name in permissions_of(role)} <= there


def test_what_somebody_gave_a_role_besides_stays():
    roles_make()
    viewers = Group.objects.get(name=Role.VIEWER)
    viewers.permissions.add(Permission.objects.get(codename="add_site"))
    roles_make()
    assert viewers.permissions.filter(codename="add_site").exists()
    assert Group.objects.count() == len(Role)
