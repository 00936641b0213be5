"""Several writes as one: what each database makes of them is the same."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from control_app.models import CommandState, ControlCommand, ControlLog, ControlRequest, Status
from devices_app.models import Device
from smartgrid.folding import Insert, Update, rows_create, writes_in_turn
from tests.factories import control_command_make, control_request_make, device_make, story_make

pytestmark = pytest.mark.django_db

RESULT = {"updated": {'it\'s a \\ "tag" %s': None}, "not_updated": {}}


@pytest.fixture
def command():
    return control_command_make(story_make().device_a, value=50)


def line_of(request: ControlRequest) -> ControlLog:
    return ControlLog(
        site_id=request.site_id, request=request, status=Status.SUCCESS, category="x", result=RESULT
    )


def closing(command: ControlCommand, *, state: CommandState) -> list[Update | Insert]:
    device = command.node.devices.get()
    return [
        Update(
            ControlCommand,
            where=[("sequence", "=", command.pk), ("state", "in", [state])],
            changes={"state": CommandState.DONE, "result": {"a": [1, None]}},
        ),
        Update(
            ControlRequest,
            where=[("id", "=", command.request_id), ("status", "is null", None)],
            changes={"status": Status.SUCCESS, "result": RESULT},
        ),
        Insert(line_of(command.request)),
        Update(
            Device,
            where=[("id", "=", device.pk)],
            changes={"value": 12.5},
            returning=("id", "device_tag", "value"),
        ),
    ]


def test_all_are_written_and_the_last_tells_of_its_rows(command):
    counts, told = writes_in_turn(*closing(command, state=CommandState.SENT))
    device = Device.objects.get(node=command.node)
    assert counts == [1, 1, 1, 1]
    assert told == [(device.pk, device.device_tag, 12.5)]
    command.refresh_from_db()
    assert (command.state, command.result) == (CommandState.DONE, {"a": [1, None]})
    assert command.request.status == Status.SUCCESS
    line = ControlLog.objects.get()
    assert (line.request_id, line.result, line.value, line.reason) == (command.request_id, RESULT, None, "")
    assert abs((timezone.now() - line.created_at).total_seconds()) < 60


def test_what_follows_a_write_of_nothing_is_not_written(command):
    assert writes_in_turn(*closing(command, state=CommandState.UNKNOWN)) == ([0, 0, 0, 0], [])
    assert not ControlLog.objects.exists()
    assert ControlRequest.objects.get().status is None

    ControlRequest.objects.update(status=Status.FAILED, result={})
    assert writes_in_turn(*closing(command, state=CommandState.SENT)) == ([1, 0, 0, 0], [])
    command.refresh_from_db()
    assert command.state == CommandState.DONE
    assert not ControlLog.objects.exists()
    assert Device.objects.get(node=command.node).value is None


def test_postgresql_takes_one_statement(command):
    writes = closing(command, state=CommandState.SENT)[:3]
    with CaptureQueriesContext(connection) as queries:
        writes_in_turn(*writes)
    statements = [query["sql"].split()[0] for query in queries.captured_queries]
    made = [word for word in statements if word not in {"SAVEPOINT", "RELEASE"}]
    assert made == (["WITH"] if connection.vendor == "postgresql" else ["UPDATE", "UPDATE", "INSERT"])


def test_rows_that_refer_to_the_first_are_created_with_it_and_get_their_keys_in_order(command):
    device = device_make(node=command.node)
    request = ControlRequest(
        site_id=command.request.site_id,
        category="x",
        value=5.5,
        device_tags=["a"],
        client_id="c",
        deadline=timezone.now(),
    )
    commands = [
        ControlCommand(
            request=request,
            node=device.node,
            epoch=1,
            values={str(number): number},
            deadline=request.deadline,
        )
        for number in range(3)
    ]
    rows_create(request, commands)
    assert command.pk < commands[0].pk < commands[1].pk < commands[2].pk
    stored = ControlCommand.objects.filter(request=request).order_by("pk")
    assert [(row.pk, row.values) for row in stored] == [(row.pk, row.values) for row in commands]
    found = ControlRequest.objects.get(pk=request.pk)
    assert (found.value, found.device_tags, found.status, found.idempotency) == (5.5, ["a"], None, None)
    request.reason = "changed"
    request.save()
    assert ControlRequest.objects.get(pk=request.pk).reason == "changed"


def test_row_alone_is_created(command):
    request = ControlRequest(
        site_id=command.request.site_id, category="x", value=5, client_id="c", deadline=timezone.now()
    )
    rows_create(request, [])
    assert ControlRequest.objects.filter(pk=request.pk).exists()


def test_row_that_is_refused_takes_the_others_with_it(command):
    taken = control_request_make(site=command.request.site)
    ControlRequest.objects.filter(pk=taken.pk).update(idempotency="k")
    request = ControlRequest(
        site_id=taken.site_id,
        category="x",
        value=5,
        client_id="c",
        deadline=timezone.now(),
        idempotency="k",
    )
    other = ControlCommand(request=request, node=command.node, epoch=1, values={}, deadline=request.deadline)
    with pytest.raises(IntegrityError):
        rows_create(request, [other])
    assert ControlCommand.objects.count() == 1
