"""Nobody sees a row of a site that is not theirs, in any list, form, autocomplete or choice: by the registry."""

from __future__ import annotations

import uuid

import pytest
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.forms.models import ModelChoiceField
from django.http import QueryDict
from django.test import Client, RequestFactory
from django.urls import reverse

from sites_app.alarms import alarm_raise
from sites_app.models import SiteScope
from smartgrid.admin import AnyModelAdmin
from tests.factories import (
    Story,
    control_command_make,
    control_log_make,
    device_error_make,
    loop_make,
    story_make,
)

pytestmark = pytest.mark.django_db
# Of no site: permissions alone guard them. Tokens and routes are shown where all of their sites are one's own.
OF_NO_SITE = {
    "auth.user",
    "auth.group",
    "auditlog.logentry",
    "devices_app.devicetype",
    "django_celery_beat.periodictask",
    "django_celery_beat.intervalschedule",
    "django_celery_beat.crontabschedule",
    "oauth2_provider.application",
    "sites_app.managementtoken",
    "sites_app.alarmroute",
}
SCOPED = [
    (model, row) for model, row in admin.site._registry.items() if getattr(row, "site_path", None) is not None
]
IDS = [model._meta.label_lower for model, _ in SCOPED]


@pytest.fixture
def story() -> Story:
    story = story_make()
    for site, node, device in (
        (story.site_a, story.node_a, story.device_a),
        (story.site_b, story.node_b, story.device_b),
    ):
        alarm_raise(code="node_silent", site=site, node=node, detail="")
        control_command_make(device)
        control_log_make(site=site)
        device_error_make(device=device)
    loop_make()
    return story


@pytest.fixture
def person(story) -> User:
    """May do everything, at one site of two."""
    user = User.objects.create_user("ann", is_staff=True)
    user.user_permissions.set(Permission.objects.all())
    SiteScope.objects.create(user=user).sites.set([story.site_a])
    return user


def request_of(person):
    request = RequestFactory().get("/")
    request.user = person
    return request


def foreign_of(model, row, story):
    return model._default_manager.exclude(**{row.site_path: story.site_a.pk})


def test_every_list_of_the_console_is_of_sites_or_known_to_be_of_none():
    unscoped = {
        model._meta.label_lower
        for model, row in admin.site._registry.items()
        if not (isinstance(row, AnyModelAdmin) and row.site_path is not None)
    }
    assert unscoped == OF_NO_SITE


@pytest.mark.parametrize(("model", "row"), SCOPED, ids=IDS)
def test_lists_hold_no_foreign_row(model, row, story, person):
    seen = set(row.get_queryset(request_of(person)).values_list("pk", flat=True))
    assert not seen & set(foreign_of(model, row, story).values_list("pk", flat=True))


@pytest.mark.parametrize(("model", "row"), SCOPED, ids=IDS)
def test_list_page_names_nothing_foreign(model, row, story, person):
    client = Client()
    client.force_login(person)
    answer = client.get(reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"))
    assert answer.status_code == 200
    for word in (story.site_b.site_tag, story.node_b.name, story.device_b.device_tag):
        assert word not in answer.content.decode()


@pytest.mark.parametrize(("model", "row"), SCOPED, ids=IDS)
def test_form_of_a_foreign_row_is_not_there(model, row, story, person):
    foreign = foreign_of(model, row, story).first()
    if foreign is None:
        pytest.skip("the story has none")
    client = Client()
    client.force_login(person)
    url = reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=[foreign.pk])
    # Django's admin answers an absent object with a way back to the start.
    assert client.get(url).status_code in {302, 404}


@pytest.mark.parametrize(
    ("model", "row"),
    [(model, row) for model, row in admin.site._registry.items() if isinstance(row, AnyModelAdmin)],
    ids=lambda value: getattr(getattr(value, "_meta", None), "label_lower", ""),
)
def test_choices_of_forms_hold_no_foreign_row(model, row, story, person):
    request = request_of(person)
    # A closed loop's choices depend on its site.
    request.GET = QueryDict(f"site={story.site_a.pk}")
    for offered in row.get_form(request).base_fields.values():
        field = getattr(offered, "field", offered)
        if not isinstance(field, ModelChoiceField) or field.queryset is None:
            continue
        related = admin.site._registry.get(field.queryset.model)
        if getattr(related, "site_path", None) is not None:
            foreign = foreign_of(field.queryset.model, related, story)
            assert not field.queryset.filter(pk__in=foreign.values("pk")).exists()


@pytest.mark.parametrize(
    "path", ["devices_app/closedloop/add/", "schedules_app/schedule/fill/", "sites_app/managementtoken/add/"]
)
def test_first_steps_offer_no_foreign_site(path, story, person):
    client = Client()
    client.force_login(person)
    answer = client.get(f"/admin/{path}")
    assert answer.status_code == 200
    assert story.site_b.site_tag not in answer.content.decode()


def test_autocomplete_answers_with_no_foreign_row(story, person):
    for model, row in SCOPED:
        if row.search_fields:
            found, _ = row.get_search_results(request_of(person), row.get_queryset(request_of(person)), "")
            assert not found.filter(pk__in=foreign_of(model, row, story).values("pk")).exists()


def test_node_page_of_a_foreign_or_absent_node_is_not_there(story, person):
    client = Client()
    client.force_login(person)
    assert client.get(reverse("admin:console_node", args=[story.node_a.pk])).status_code == 200
    for key in (story.node_b.pk, uuid.uuid4()):
        for name, method in (
            ("console_node", "get"),
            ("console_node_enrol", "post"),
            ("console_node_revoke", "get"),
        ):
            assert getattr(client, method)(reverse(f"admin:{name}", args=[key])).status_code == 404
