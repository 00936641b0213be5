"""The second factor: an authenticator's codes (TOTP), and recovery codes for whoever has lost it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlencode
from uuid import UUID

import structlog
from django.conf import settings
from django.db import transaction
from django_otp.oath import TOTP

from sites_app.models import RecoveryCode, SecondFactor
from sites_app.tokens import decrypt, encrypt
from smartgrid.errors import Conflict, Invalid, Throttled

log = structlog.stdlib.get_logger(__name__)

STEP_S = 30
DIGITS = 6
# The step before and the one after are taken too: clocks of telephones are seconds off.
TOLERANCE_STEPS = 1
KEY_BYTES = 20
RECOVERY_CODES = 10
# Of 32 letters each: 50 bits, too many to guess even where all the attempts of a year were let through.
RECOVERY_LETTERS = 10
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
ISSUER = "Smart Grid Manager"


def confirmed_factor_id(user: Any) -> UUID | None:
    """The authenticator this person has to give a code of; None where there is none."""
    found: UUID | None = (
        SecondFactor.objects.filter(user=user, confirmed_at__isnull=False)
        .values_list("pk", flat=True)
        .first()
    )
    return found


def factor_draft(user: Any) -> SecondFactor:
    """The authenticator this person is setting up; `Conflict` where one is set up already."""
    with transaction.atomic():
        factor: SecondFactor
        factor, is_new = SecondFactor.objects.get_or_create(
            user=user, defaults={"key_encrypted": encrypt(secrets.token_hex(KEY_BYTES))}
        )
    if factor.confirmed_at is not None:
        raise Conflict("A second factor is set up already. To set up another, have it reset first.")
    if is_new:
        log.info("second_factor_drawn", user=user.get_username())
    return factor


def key_text(factor: SecondFactor) -> str:
    """The key as authenticators want it typed: base 32, in groups of four."""
    text = base64.b32encode(bytes.fromhex(decrypt(factor.key_encrypted))).decode().rstrip("=")
    return " ".join(text[start : start + 4] for start in range(0, len(text), 4))


def key_uri(factor: SecondFactor) -> str:
    """What the QR code says (Key URI Format of authenticators)."""
    label = quote(f"{ISSUER}:{factor.user.get_username()}")
    query = urlencode(
        {"secret": key_text(factor).replace(" ", ""), "issuer": ISSUER, "digits": DIGITS, "period": STEP_S},
        quote_via=quote,
    )
    return f"otpauth://totp/{label}?{query}"


def factor_confirm(user: Any, code: str, *, at: datetime) -> list[str]:
    """Take the first code of a new authenticator, and draw recovery codes; these are told this once.

    `Invalid` where the code is wrong, `Throttled` where it comes too soon after a wrong one.
    """
    factor = factor_draft(user)
    _code_take(factor, code, at=at)
    with transaction.atomic():
        SecondFactor.objects.filter(pk=factor.pk).update(confirmed_at=at)
        return _recovery_codes_draw(user)


def code_verify(user: Any, code: str, *, at: datetime) -> str:
    """Take a code of the authenticator, or a recovery code: `code` or `recovery code`, whichever it was.

    Each is taken once. `Invalid` where it is wrong, `Throttled` where it comes too soon after a wrong one.
    """
    factor = SecondFactor.objects.filter(user=user, confirmed_at__isnull=False).first()
    if factor is None:
        raise Conflict("There is no second factor yet. Set one up.")
    plain = "".join(code.split()).replace("-", "").lower()
    if not _is_code(plain):
        _recovery_code_take(factor, plain)
        return "recovery code"
    _code_take(factor, plain, at=at)
    return "code"


def recovery_codes_renew(user: Any) -> list[str]:
    """New recovery codes in place of all former ones; told this once."""
    with transaction.atomic():
        if confirmed_factor_id(user) is None:
            raise Conflict("There is no second factor yet. Set one up.")
        return _recovery_codes_draw(user)


def recovery_codes_left(user: Any) -> int:
    return RecoveryCode.objects.filter(user=user).count()


def factor_reset(user: Any) -> bool:
    """Take away a person's authenticator and recovery codes; False where there were none.

    Sessions that were let in by it are asked for a new one at their next request.
    """
    with transaction.atomic():
        RecoveryCode.objects.filter(user=user).delete()
        _, by_model = SecondFactor.objects.filter(user=user).delete()
    return bool(by_model)


# --- one code -------------------------------------------------------------------------------------------


def _code_take(factor: SecondFactor, code: str, *, at: datetime) -> None:
    _take(factor, lambda locked: _is_right(locked, "".join(code.split()), at=at))


def _recovery_code_take(factor: SecondFactor, code: str) -> None:
    mine = RecoveryCode.objects.filter(user_id=factor.user_id, digest=_digest(factor.user_id, code))
    _take(factor, lambda _: mine.delete()[0] > 0)


def _take(factor: SecondFactor, is_right: Callable[[SecondFactor], bool]) -> None:
    """Look at a code with its row locked, one at a time: many at once are no way around the wait."""
    with transaction.atomic():
        locked = SecondFactor.objects.select_for_update().get(pk=factor.pk)
        _wait_ended(locked)
        was_right = is_right(locked)
        if was_right:
            locked.throttle_reset(commit=False)
        else:
            locked.throttle_increment(commit=False)
        locked.save()
    # Behind the transaction, which would take the count of wrong ones back.
    if not was_right:
        log.warning("second_factor_refused", user=factor.user.get_username())
        raise Invalid(
            "This code is not right, or was used before. Take the one your authenticator shows next."
        )


def _is_right(factor: SecondFactor, code: str, *, at: datetime) -> bool:
    """Whether this is the code of about now, and newer than the last one that was taken."""
    if not _is_code(code):
        return False
    totp = TOTP(bytes.fromhex(decrypt(factor.key_encrypted)), STEP_S, 0, DIGITS)
    totp.time = at.timestamp()
    if not totp.verify(int(code), TOLERANCE_STEPS, factor.last_step + 1):
        return False
    factor.last_step = totp.t()
    return True


def _is_code(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) == DIGITS


def _wait_ended(factor: SecondFactor) -> None:
    is_allowed, why = factor.verify_is_allowed()
    if not is_allowed:
        until = (why or {}).get("locked_until")
        wait_s = max(1.0, until.timestamp() - time.time()) if until else 1.0
        raise Throttled(f"Too many wrong codes. Try again in {wait_s:.0f} s.", retry_after_s=wait_s)


# --- recovery codes -------------------------------------------------------------------------------------


def _recovery_codes_draw(user: Any) -> list[str]:
    RecoveryCode.objects.filter(user=user).delete()
    codes = [
        "".join(secrets.choice(_ALPHABET) for _ in range(RECOVERY_LETTERS)) for _ in range(RECOVERY_CODES)
    ]
    RecoveryCode.objects.bulk_create(RecoveryCode(user=user, digest=_digest(user.pk, code)) for code in codes)
    half = RECOVERY_LETTERS // 2
    return [f"{code[:half]}-{code[half:]}" for code in codes]


def _digest(user_id: Any, code: str) -> str:
    return hmac.new(settings.SECRET_KEY.encode(), f"{user_id} {code}".encode(), hashlib.sha256).hexdigest()
