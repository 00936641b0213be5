"""The secret half of a management token: drawn, digested, encrypted."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from smartgrid.errors import Invalid, SgmError

VALUE = re.compile(r"tok_[0-9a-f]{32}")


class TokenUnreadable(SgmError):  # noqa: N818 - states the fault
    """None of the present keys decrypts this token."""

    code = "token_unreadable"


def value_draw() -> str:
    return f"tok_{secrets.token_hex(16)}"


def value_check(value: str) -> str:
    """The value itself, if it has a token's form; else `Invalid`."""
    if not is_well_formed(value):
        raise Invalid("A management token is tok_ and 32 hexadecimal digits in lower case.")
    return value


def is_well_formed(value: str) -> bool:
    return VALUE.fullmatch(value) is not None


def digest(value: str) -> str:
    """Keyed, so that a stolen table does not even tell whether a guess is right."""
    key = settings.SGM_TOKEN_HASH_KEY
    if not key:
        raise ImproperlyConfigured("SGM_TOKEN_HASH_KEY is not set")
    return hmac.new(key.encode(), value.encode(), hashlib.sha256).hexdigest()


def encrypt(value: str) -> str:
    return _keys().encrypt(value.encode()).decode()


def decrypt(text: str) -> str:
    try:
        return _keys().decrypt(text.encode()).decode()
    except InvalidToken as error:
        raise TokenUnreadable("No key in SGM_TOKEN_ENCRYPTION_KEYS decrypts this token.") from error


def _keys() -> MultiFernet:
    keys = settings.SGM_TOKEN_ENCRYPTION_KEYS
    if not keys:
        raise ImproperlyConfigured("SGM_TOKEN_ENCRYPTION_KEYS is not set")
    return MultiFernet([Fernet(key) for key in keys])
