"""The record of control in the console: seen, never touched."""

from __future__ import annotations

import pytest
from django.urls import reverse

from control_app.models import CommandState, NodeEvent
from tests.factories import control_command_make, control_log_make, device_error_make, story_make

MODELS = ("controlrequest", "controlcommand", "controllog", "deviceerrorlog", "nodeevent")


@pytest.fixture
def rows(db):
    story = story_make()
    command = control_command_make(story.device_a, state=CommandState.UNKNOWN)
    return {
        "controlrequest": command.request,
        "controlcommand": command,
        "controllog": control_log_make(site=story.site_a),
        "deviceerrorlog": device_error_make(device=story.device_a),
        "nodeevent": NodeEvent.objects.create(node=story.node_a, kind="clock", entry="{}"),
    }


@pytest.mark.parametrize("model", MODELS)
def test_record_can_be_listed_and_opened(rows, admin_client, model):
    listed = admin_client.get(reverse(f"admin:control_app_{model}_changelist"))
    opened = admin_client.get(reverse(f"admin:control_app_{model}_change", args=[rows[model].pk]))
    assert listed.status_code == opened.status_code == 200


@pytest.mark.parametrize("model", MODELS)
def test_record_cannot_be_added_changed_or_deleted(rows, admin_client, model):
    add = reverse(f"admin:control_app_{model}_add")
    change = reverse(f"admin:control_app_{model}_change", args=[rows[model].pk])
    delete = reverse(f"admin:control_app_{model}_delete", args=[rows[model].pk])
    answers = [admin_client.post(path, {"post": "yes"}) for path in (add, change, delete)]
    assert [answer.status_code for answer in answers] == [403, 403, 403]
    assert type(rows[model]).objects.filter(pk=rows[model].pk).exists()


@pytest.mark.parametrize("model", MODELS)
def test_list_takes_as_many_queries_however_long(rows, admin_client, django_assert_max_num_queries, model):
    path = reverse(f"admin:control_app_{model}_changelist")
    with django_assert_max_num_queries(12):
        admin_client.get(path)
