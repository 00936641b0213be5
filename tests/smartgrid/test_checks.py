from __future__ import annotations

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured

from smartgrid.checks import refuse_to_serve_unless_sound


def test_complete_settings_may_serve():
    refuse_to_serve_unless_sound()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SGM_TENANT", "a/b"),
        ("SGM_TOKEN_ENCRYPTION_KEYS", ["too short"]),
        ("SGM_TOKEN_ENCRYPTION_KEYS", []),
        ("SGM_ROOT_TOKENS", ["short"]),
        ("SGM_ROOT_TOKENS", []),
        ("SGM_TOKEN_HASH_KEY", ""),
    ],
)
def test_serving_is_refused_by_the_name_of_the_setting(settings, name, value):
    setattr(settings, name, value)
    with pytest.raises(ImproperlyConfigured, match=name):
        refuse_to_serve_unless_sound()


def test_refusal_does_not_tell_a_root_token(settings):
    settings.SGM_ROOT_TOKENS = ["short-secret"]
    settings.SGM_TOKEN_ENCRYPTION_KEYS = [Fernet.generate_key().decode(), "bad-key"]
    with pytest.raises(ImproperlyConfigured) as refusal:
        refuse_to_serve_unless_sound()
    assert "short-secret" not in str(refusal.value)
    assert "bad-key" not in str(refusal.value)
