from __future__ import annotations

import pytest
from cryptography.fernet import Fernet
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured

from smartgrid.checks import TAG, refuse_to_serve_unless_sound


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
        ("SGM_ISSUERS", [{"issuer": "https://issuer.example/"}]),
        ("SGM_ISSUERS", {"issuer": "https://issuer.example/", "audience": "a"}),
        ("SGM_ISSUERS", "https://issuer.example/"),
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


@pytest.mark.parametrize(
    ("token", "is_weak"),
    [
        ("x" * 40, True),
        ("root-token-of-thirty-one-letters"[:31], True),
        ("root_5d41402abc4b2a76b9719d911017c592", False),
    ],
)
def test_root_token_that_can_be_guessed_is_warned_of(settings, token, is_weak):
    settings.SGM_ROOT_TOKENS = [token]

    found = run_checks(tags=[TAG])

    assert ("smartgrid.W002" in {message.id for message in found}) == is_weak
    assert not any(token in str(message) for message in found)


def test_api_that_nobody_can_call_is_warned_of(settings):
    settings.SGM_ISSUERS, settings.SGM_ISSUER_KEY_FILE = [], ""
    assert "smartgrid.W003" in {message.id for message in run_checks(tags=[TAG])}

    settings.SGM_ISSUERS = [{"issuer": "https://issuer.example/", "audience": "a"}]
    assert "smartgrid.W003" not in {message.id for message in run_checks(tags=[TAG])}
