"""Start-up checks: what must be set before a process of central may serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cryptography.fernet import Fernet
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register, run_checks  # noqa: A004 - Django's name
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError

TAG = "smartgrid"
TOPIC_LEVEL_HINT = "Letters, digits, '-' and '_', at most 64."
_SECRETS = ("SECRET_KEY", "SGM_TOKEN_HASH_KEY", "SGM_TOKEN_ENCRYPTION_KEYS", "SGM_ROOT_TOKENS")
_ROOT_TOKEN_LENGTH = 24
# What `manage.py root_token new` draws is longer than this.
_ROOT_TOKEN_LENGTH_GOOD = 32
_ROOT_TOKEN_LETTERS = 8


@register(TAG)
def check_well_formed(**_: Any) -> Sequence[CheckMessage]:
    """What is set must be usable; what is not set is another check's matter."""
    from edge.wire.topics import LEVEL  # noqa: PLC0415

    found: list[CheckMessage] = []
    if not LEVEL.fullmatch(settings.SGM_TENANT):
        found.append(Error("SGM_TENANT cannot stand in a topic.", hint=TOPIC_LEVEL_HINT, id="smartgrid.E001"))
    for position, key in enumerate(settings.SGM_TOKEN_ENCRYPTION_KEYS, start=1):
        try:
            Fernet(key)
        except ValueError:
            found.append(
                Error(
                    f"Key {position} of SGM_TOKEN_ENCRYPTION_KEYS is not a Fernet key.",
                    hint="32 random bytes in URL-safe base64.",
                    id="smartgrid.E002",
                )
            )
    for position, token in enumerate(settings.SGM_ROOT_TOKENS, start=1):
        if len(token) < _ROOT_TOKEN_LENGTH:
            found.append(
                Error(
                    f"Token {position} of SGM_ROOT_TOKENS is shorter than {_ROOT_TOKEN_LENGTH} characters.",
                    id="smartgrid.E003",
                )
            )
        elif len(token) < _ROOT_TOKEN_LENGTH_GOOD or len(set(token)) < _ROOT_TOKEN_LETTERS:
            found.append(
                Warning(
                    f"Token {position} of SGM_ROOT_TOKENS is weak: it opens everything and can be guessed.",
                    hint=f"At least {_ROOT_TOKEN_LENGTH_GOOD} random characters: manage.py root_token new.",
                    id="smartgrid.W002",
                )
            )
    return found


@register(TAG)
def check_issuers(**_: Any) -> Sequence[CheckMessage]:
    """Whose tokens are believed must be said in a form that can be used, before the first request."""
    from smartgrid.api.authentication import trusted_issuers  # noqa: PLC0415 - needs the models

    try:
        issuers = trusted_issuers()
    except ImproperlyConfigured as error:
        return [Error(f"{error}.", hint="docs/credentials.md has examples.", id="smartgrid.E005")]
    if issuers:
        return []
    return [
        Warning(
            "No issuer is trusted: nobody can call the API.",
            hint="SGM_ISSUERS for a provider of yours, SGM_ISSUER_KEY_FILE for the embedded issuer.",
            id="smartgrid.W003",
        )
    ]


@register(TAG, deploy=True)
def check_secrets(**_: Any) -> Sequence[CheckMessage]:
    found: list[CheckMessage] = []
    for name in _SECRETS:
        try:
            missing = not getattr(settings, name)
        except ImproperlyConfigured:
            missing = True
        if missing:
            variable = name if name.startswith("SGM_") else f"SGM_{name}"
            found.append(Error(f"{variable} is not set.", hint=f"Or {variable}_FILE.", id="smartgrid.E004"))
    return found


@register(Tags.database)
def check_periodic_work(databases: Sequence[str] | None, **_: Any) -> Sequence[CheckMessage]:
    """What operators have switched off, or made so rare that it is as good as off."""
    from sites_app.periodic import periodic_tasks_off  # noqa: PLC0415 - models are not there before

    if not databases:
        return []
    try:
        troubles = periodic_tasks_off()
    except DatabaseError:
        # Before the first migration, which runs these checks, there is nothing to look at.
        return []
    return [
        Warning(
            f"Periodic work: {trouble}.",
            hint="Periodic tasks, in the console, say what each is for.",
            id="smartgrid.W001",
        )
        for trouble in troubles
    ]


def refuse_to_serve_unless_sound() -> None:
    """Stop a serving process at its start, with every reason at once, rather than at its first request."""
    errors = [
        message for message in run_checks(tags=[TAG], include_deployment_checks=True) if message.is_serious()
    ]
    if errors:
        raise ImproperlyConfigured("; ".join(f"{error.msg} {error.hint or ''}".strip() for error in errors))
