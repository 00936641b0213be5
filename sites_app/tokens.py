"""The secret half of a management token: drawn, digested, encrypted."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from functools import lru_cache

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
    return _digest(value, key)


def digests(value: str) -> list[str]:
    """Under which a token may be found: by the key, and by the other one while keys are exchanged."""
    other = settings.SGM_TOKEN_HASH_KEY_OTHER
    return [digest(value), *([_digest(value, other)] if other else [])]


def _digest(value: str, key: str) -> str:
    return hmac.new(key.encode(), value.encode(), hashlib.sha256).hexdigest()


def encrypt(value: str) -> str:
    return _keys().encrypt(value.encode()).decode()


def is_encrypted_newly(text: str) -> bool:
    """Tell whether the first key decrypts this: no other key is needed for it."""
    try:
        Fernet(settings.SGM_TOKEN_ENCRYPTION_KEYS[0]).decrypt(text.encode())
    except InvalidToken:
        return False
    return True


def reencrypt(text: str) -> str:
    """The same with the first key; `TokenUnreadable` where no key decrypts it."""
    try:
        return _keys().rotate(text.encode()).decode()
    except InvalidToken as error:
        raise TokenUnreadable("No key in SGM_TOKEN_ENCRYPTION_KEYS decrypts this.") from error


def decrypt(text: str) -> str:
    try:
        return _keys().decrypt(text.encode()).decode()
    except InvalidToken as error:
        raise TokenUnreadable("No key in SGM_TOKEN_ENCRYPTION_KEYS decrypts this token.") from error


def decrypt_often(text: str) -> str:
    """As `decrypt`, for what is shown again and again: what was decrypted lately is remembered.

    A page of a hundred tokens takes 4 ms to decrypt. Nothing more is at stake: this process holds the keys
    and is given each encrypted text, so whoever can read its memory has the values either way, and a token
    that is revoked opens nothing. What is remembered is found by the very text and keys it was made of:
    under another text, or without a key, it is decrypted or refused as if for the first time.
    """
    return _decrypt_with(tuple(settings.SGM_TOKEN_ENCRYPTION_KEYS), text)


@lru_cache(maxsize=4096)
def _decrypt_with(_keys: tuple[str, ...], text: str) -> str:
    return decrypt(text)


def _keys() -> MultiFernet:
    keys = settings.SGM_TOKEN_ENCRYPTION_KEYS
    if not keys:
        raise ImproperlyConfigured("SGM_TOKEN_ENCRYPTION_KEYS is not set")
    return _fernet(*keys)


@lru_cache(maxsize=4)
def _fernet(*keys: str) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys])
