"""Keys of stored secrets are exchanged beside a running system: nothing is lost, whenever it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from devices_app.config import node_config_render
from devices_app.encrypted import COLUMNS
from devices_app.models import Device, Probe
from devices_app.services import device_update
from sites_app import tokens
from sites_app.identity import enrolment_token_issue
from sites_app.models import ManagementToken, NodeDocument
from sites_app.rotation import texts_reencrypt, token_digests_renew
from sites_app.selectors import management_token_find, token_value
from sites_app.services import token_issue
from smartgrid.errors import Conflict
from tests.factories import device_make, node_make, site_make, url_type_make

pytestmark = pytest.mark.django_db

ROOT = Path(__file__).resolve().parents[2]

OLD, NEW, LOST = (Fernet.generate_key().decode() for _ in range(3))


@pytest.fixture
def old_keys(settings):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [OLD]
    settings.SGM_TOKEN_HASH_KEY = "the old hash key"
    settings.SGM_TOKEN_HASH_KEY_OTHER = ""


@pytest.fixture
def values(old_keys):
    """Three tokens made under the old keys; their values by their id."""
    issued = [token_issue(name=f"token {number}", sites=[site_make()]) for number in range(3)]
    return {token.pk: token_value(token) for token in issued}


@pytest.fixture
def device(old_keys):
    kind = url_type_make("mqtt")
    made = device_make(device_type=kind, url="mqtt://broker", password="swordfish")
    Probe.objects.create(
        node=made.node,
        device=made,
        device_tag=made.device_tag,
        device_type=kind,
        password_encrypted=tokens.encrypt("flounder"),
        asked_at=timezone.now(),
        deadline=timezone.now(),
    )
    return made


def run(*args):
    out, err = StringIO(), StringIO()
    call_command(*args, stdout=out, stderr=err)
    return out.getvalue()


def readable(values):
    found = {token.pk: token_value(token) for token in ManagementToken.objects.all()}
    return found == values


def all_found(values):
    found = {pk: management_token_find(value) for pk, value in values.items()}
    return all(token is not None and token.pk == pk for pk, token in found.items())


# --- the encryption key ---------------------------------------------------------------------------------------


def test_everything_is_encrypted_with_the_new_key_and_means_the_same(settings, values, device):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]

    said = run("encryption_key", "rotate")

    assert "5 texts, 5 of them encrypted anew" in said
    assert "former keys are not needed" in said
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW]
    assert readable(values)
    assert tokens.decrypt(Device.objects.get().password_encrypted) == "swordfish"
    assert tokens.decrypt(Probe.objects.get().password_encrypted) == "flounder"


def test_every_encrypted_column_of_the_project_is_known():
    ours = ("sites_app", "devices_app", "schedules_app", "control_app")
    found = {
        (model, field.name)
        for label in ours
        for model in apps.get_app_config(label).get_models()
        for field in model._meta.concrete_fields
        if "encrypted" in field.name
    }

    assert found == {(column.model, column.field) for column in COLUMNS}


def test_second_run_changes_nothing(settings, values):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]
    run("encryption_key", "rotate")
    before = list(ManagementToken.objects.order_by("pk").values_list("encrypted", flat=True))

    assert "3 texts, 0 of them encrypted anew" in run("encryption_key", "rotate")

    assert list(ManagementToken.objects.order_by("pk").values_list("encrypted", flat=True)) == before


def test_run_that_dies_half_way_leaves_all_readable_and_is_taken_up(settings, values, device):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]
    steps = texts_reencrypt(COLUMNS, batch=1)

    next(steps)
    assert next(steps).changed == 1
    steps.close()

    assert readable(values)
    with pytest.raises(CommandError, match="Keep the former keys: 4 of 5"):
        run("encryption_key", "rotate", "--check")
    assert "5 texts, 4 of them encrypted anew" in run("encryption_key", "rotate")
    assert readable(values)


# Encrypts anew as the command does, row by row, and is killed, as by -9, after the first one.
KILLED = """
import os, signal
import django
django.setup()
from devices_app.encrypted import COLUMNS
from sites_app.rotation import texts_reencrypt
for progress in texts_reencrypt(COLUMNS, batch=1):
    if progress.changed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.django_db(transaction=True)
def test_process_that_is_killed_has_done_what_it_did_and_nothing_by_half(settings, values):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]
    env = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "smartgrid.settings",
        "SGM_DATABASE_URL": database_url(),
        "SGM_SECRET_KEY": "only for tests",
        "SGM_TOKEN_ENCRYPTION_KEYS": f"{NEW},{OLD}",
    }

    done = subprocess.run([sys.executable, "-c", KILLED], env=env, cwd=ROOT, capture_output=True, check=False)

    assert done.returncode == -signal.SIGKILL, done.stderr
    assert readable(values)
    with pytest.raises(CommandError, match="2 of 3 texts"):
        run("encryption_key", "rotate", "--check")
    assert "3 texts, 2 of them encrypted anew" in run("encryption_key", "rotate")
    assert readable(values)


def database_url():
    """Of the database that the tests use, for another process."""
    found = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{found['NAME']}"
    return f"postgresql://{found['USER']}@{found['HOST']}:{found['PORT']}/{found['NAME']}"


def test_row_changed_by_somebody_else_in_between_keeps_their_change(settings, device):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]
    steps = texts_reencrypt(COLUMNS[1:2])
    next(steps)

    device_update(device=device, password="their password")
    *_, done = steps

    assert (done.changed, done.overtaken) == (0, 1)
    assert tokens.decrypt(Device.objects.get().password_encrypted) == "their password"


def test_row_deleted_in_between_does_not_come_back(settings, values):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]
    steps = texts_reencrypt(COLUMNS)
    next(steps)

    ManagementToken.objects.all().delete()
    *_, done = steps

    assert (done.changed, done.overtaken) == (0, 3)
    assert not ManagementToken.objects.exists()


def test_check_changes_nothing_and_says_what_is_missing(settings, values):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]
    before = list(ManagementToken.objects.order_by("pk").values_list("encrypted", flat=True))

    with pytest.raises(CommandError, match="3 of 3 texts"):
        run("encryption_key", "rotate", "--check")

    assert list(ManagementToken.objects.order_by("pk").values_list("encrypted", flat=True)) == before


def test_text_that_no_key_decrypts_is_named_and_the_others_go_on(settings, values):
    strange = ManagementToken.objects.order_by("pk")[1]
    ManagementToken.objects.filter(pk=strange.pk).update(
        encrypted=Fernet(LOST).encrypt(b"tok_" + b"0" * 32).decode()
    )
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]

    with pytest.raises(CommandError, match=f"(?s){strange.name}.*no key decrypts.*key missing"):
        run("encryption_key", "rotate")

    with pytest.raises(CommandError, match="1 of 3 texts"):
        run("encryption_key", "rotate", "--check")


def test_wrong_key_loses_nothing(settings, values):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, LOST]
    with pytest.raises(CommandError, match="no key decrypts"):
        run("encryption_key", "rotate")

    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]
    assert readable(values)


def test_nodes_are_not_told_of_a_new_key(settings, device):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]
    before = node_config_render(device.node), list(NodeDocument.objects.values_list("version", "sha256"))

    run("encryption_key", "rotate")

    assert (
        node_config_render(device.node),
        list(NodeDocument.objects.values_list("version", "sha256")),
    ) == before


def test_process_of_the_former_key_still_reads_and_is_put_right_by_the_next_run(settings, values, device):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]
    run("encryption_key", "rotate")

    settings.SGM_TOKEN_ENCRYPTION_KEYS = [OLD, NEW]  # not restarted since the first step
    assert readable(values)
    Device.objects.filter(pk=device.pk).update(password_encrypted=tokens.encrypt("late"))

    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]
    with pytest.raises(CommandError, match="1 of 5 texts"):
        run("encryption_key", "rotate", "--check")
    run("encryption_key", "rotate")
    assert "former keys are not needed" in run("encryption_key", "rotate", "--check")


def test_drawn_key_is_one_that_can_be_used(settings, values):
    drawn = run("encryption_key", "new").strip()
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [drawn, OLD]

    run("encryption_key", "rotate")

    assert readable(values)


# --- the key of the digests -----------------------------------------------------------------------------------


def test_tokens_are_found_by_both_keys_while_they_are_exchanged(settings, values):
    settings.SGM_TOKEN_HASH_KEY_OTHER = "the new hash key"
    assert all_found(values)

    settings.SGM_TOKEN_HASH_KEY, settings.SGM_TOKEN_HASH_KEY_OTHER = "the new hash key", "the old hash key"
    assert all_found(values)
    run("token_hash", "rotate")
    assert all_found(values)

    settings.SGM_TOKEN_HASH_KEY_OTHER = ""
    assert all_found(values)
    settings.SGM_TOKEN_HASH_KEY = "the old hash key"
    assert not any(management_token_find(value) for value in values.values())


def test_token_made_by_a_process_that_is_behind_is_found_by_those_ahead(settings, old_keys):
    settings.SGM_TOKEN_HASH_KEY_OTHER = "the new hash key"
    value = token_value(token_issue(name="late", sites=[]))

    settings.SGM_TOKEN_HASH_KEY, settings.SGM_TOKEN_HASH_KEY_OTHER = "the new hash key", "the old hash key"

    assert management_token_find(value) is not None


@pytest.fixture
def exchanged(settings, values):
    settings.SGM_TOKEN_HASH_KEY, settings.SGM_TOKEN_HASH_KEY_OTHER = "the new hash key", "the old hash key"
    return values


def test_second_digesting_changes_nothing(exchanged):
    assert "3 tokens, 3 of them digested anew" in run("token_hash", "rotate")
    assert "3 tokens, 0 of them digested anew" in run("token_hash", "rotate")
    assert "is not needed" in run("token_hash", "rotate", "--check")


def test_digesting_that_dies_half_way_shuts_nobody_out_and_is_taken_up(exchanged):
    steps = token_digests_renew(batch=1)

    next(steps)
    assert next(steps).changed == 1
    steps.close()

    assert all_found(exchanged)
    with pytest.raises(CommandError, match="2 of 3 tokens"):
        run("token_hash", "rotate", "--check")
    assert "2 of them digested anew" in run("token_hash", "rotate")


def test_digest_of_neither_key_is_named_and_taken_only_when_told(settings, exchanged):
    settings.SGM_TOKEN_HASH_KEY_OTHER = ""

    with pytest.raises(CommandError, match=r"(?s)token 0.*digested with neither key"):
        run("token_hash", "rotate")
    assert not any(management_token_find(value) for value in exchanged.values())

    run("token_hash", "rotate", "--lost")
    assert all_found(exchanged)


def test_value_that_cannot_be_read_keeps_its_digest(settings, exchanged):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW]

    with pytest.raises(CommandError, match="no key decrypts"):
        run("token_hash", "rotate")

    assert all_found(exchanged)


def test_open_enrolment_token_is_found_by_the_other_key_and_keeps_it(settings, exchanged, old_keys):
    node = node_make()
    enrolment_token_issue(node=node, now=timezone.now())
    settings.SGM_TOKEN_HASH_KEY, settings.SGM_TOKEN_HASH_KEY_OTHER = "the new hash key", "the old hash key"
    run("token_hash", "rotate")

    with pytest.raises(CommandError, match=f"enrolment token of {node.name}"):
        run("token_hash", "rotate", "--check")


def test_value_of_a_token_is_not_given_twice_under_two_keys(settings, exchanged):
    value = next(iter(exchanged.values()))

    with pytest.raises(Conflict):
        token_issue(name="again", sites=[], value=value)


def test_password_set_after_the_exchange_is_encrypted_with_the_first_key(settings, device):
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [NEW, OLD]

    device_update(device=device, password="new password")

    assert tokens.is_encrypted_newly(Device.objects.get().password_encrypted)
