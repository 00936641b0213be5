"""The key file of the embedded issuer: made, rotated without a gap, rid of keys that nobody needs any more.

One PEM file of RSA keys. The first signs, all are published and verify. What else is to be known of a key
stands as lines before it (RFC 7468, section 2, lets them be), so that a copy of the file knows as much:

    # published 2026-11-23T09:00:00Z       since when others can know it
    # signed until 2026-11-24T09:00:00Z    when another took its place

States of a key: it waits (published, has not signed), signs, is former (its tokens may live), is gone.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from smartgrid.api.jwks import signing_keys_parse
from smartgrid.errors import Conflict, SgmError

log = structlog.stdlib.get_logger(__name__)

KEY_SIZE_BITS = 2048
# How long others may keep the published keys (Cache-Control of the key document).
PUBLISHED_MAX_AGE_S = 300
# A key signs nothing before everybody who keeps to that has asked again, with as much for slow ones.
PUBLISHED_BEFORE = timedelta(seconds=2 * PUBLISHED_MAX_AGE_S)
# What verifiers grant a token beyond its end; ours 60 s, others up to five minutes.
LEEWAY = timedelta(minutes=5)
_END = b"-----END PRIVATE KEY-----"
_LINE = re.compile(r"^# (published|signed until) (\S+)$", re.MULTILINE)


class KeyFileUnusable(SgmError):  # noqa: N818 - states the fault
    """The key file cannot be read or written; the text says why and holds nothing of a key."""

    code = "key_file_unusable"


class KeyState(StrEnum):
    """What a key in the file is there for."""

    SIGNS = "signs"
    WAITS = "waits"
    FORMER = "former"


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerKey:
    """A key of the file. `signed_until`: None where it has not been replaced."""

    kid: str
    pem: bytes
    state: KeyState
    published_at: datetime | None = None
    signed_until: datetime | None = None


def issuer_key_create(path: Path) -> None:
    """Write a new RSA key as PEM, readable by its owner alone (0600); a key that is there already stays."""
    if path.exists():
        return
    # Linked into place when it is whole: of two that start at once one wins, and no half of a key is read.
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600 by its own promise
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_pem_draw())
            file.flush()
            os.fsync(file.fileno())
        try:
            Path(path).hardlink_to(draft)
        except FileExistsError:
            return
    finally:
        Path(draft).unlink()


def issuer_keys(path: Path) -> list[IssuerKey]:
    """The keys of the file in order; `KeyFileUnusable` where it holds none or cannot be read."""
    try:
        content = path.read_bytes()
        changed_at = datetime.fromtimestamp(path.stat().st_mtime, tz=UTC)
        keys = signing_keys_parse(content)
    except (OSError, ValueError) as error:
        raise KeyFileUnusable(f"{path}: {type(error).__name__}: {error}") from error
    found = []
    for position, (key, block) in enumerate(zip(keys, content.split(_END), strict=False)):
        lines, begin, body = block.partition(b"-----BEGIN")
        said = {
            name: _moment(text, path) for name, text in _LINE.findall(lines.decode("ascii", errors="replace"))
        }
        entry = IssuerKey(
            kid=key.kid,
            pem=begin + body + _END + b"\n",
            state=KeyState.SIGNS,
            published_at=said.get("published"),
            signed_until=said.get("signed until"),
        )
        if position > 0:
            entry = _behind_the_first(entry, changed_at=changed_at)
        found.append(entry)
    return found


def _behind_the_first(entry: IssuerKey, *, changed_at: datetime) -> IssuerKey:
    if entry.signed_until is not None:
        return replace(entry, state=KeyState.FORMER)
    if entry.published_at is not None:
        return replace(entry, state=KeyState.WAITS)
    # Put there by hand, who knows why. It may have signed until the file was last touched.
    return replace(entry, state=KeyState.FORMER, signed_until=changed_at)


def _moment(text: str, path: Path) -> datetime:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise KeyFileUnusable(f"{path}: {text!r} is no time") from error


def issuer_key_rotate(path: Path, *, now: datetime) -> IssuerKey:
    """Take the next step to a new key, and return that key: published first, signing at a later call.

    Nobody is shut out on the way: a key is known before the first token is signed with it, and the one it
    replaces stays published. `Conflict` where the new key has not been published for long enough.
    """
    with _held(path):
        keys = issuer_keys(path)
        waiting = [key for key in keys if key.state is KeyState.WAITS]
        if not waiting:
            new = IssuerKey(kid="", pem=_pem_draw(), state=KeyState.WAITS, published_at=now)
            _write(path, [*keys, new])
            return _logged("issuer_key_published", issuer_keys(path)[-1])
        new = waiting[0]
        assert new.published_at is not None
        signs_from = new.published_at + PUBLISHED_BEFORE
        if now < signs_from:
            raise Conflict(
                f"Key {new.kid} is published since {new.published_at:%Y-%m-%dT%H:%M:%SZ}. Others may not have"
                f" seen it yet: run this again at {signs_from:%Y-%m-%dT%H:%M:%SZ} or later.",
                code="too_early",
            )
        former = replace(keys[0], state=KeyState.FORMER, signed_until=now)
        _write(path, [new, former, *(key for key in keys[1:] if key is not new)])
        return _logged("issuer_key_signs", issuer_keys(path)[0])


def issuer_key_replace(path: Path, *, now: datetime) -> IssuerKey:
    """Put a new key in the place of all others at once, and return it: for a file that has leaked.

    Every token of the issuer ends with that, as soon as its verifiers read the keys again.
    """
    with _held(path):
        issuer_keys(path)
        new = IssuerKey(kid="", pem=_pem_draw(), state=KeyState.SIGNS, published_at=now)
        _write(path, [new])
        return _logged("issuer_key_replaced", issuer_keys(path)[0])


def issuer_keys_retire(path: Path, *, now: datetime, token_life: timedelta) -> list[IssuerKey]:
    """Take former keys out of the file of which no token can be alive any more, and return them.

    `Conflict` where there are former keys and the tokens of all of them may still live.
    """
    with _held(path):
        keys = issuer_keys(path)
        former = [key for key in keys if key.state is KeyState.FORMER]
        done = [key for key in former if key_needed_until(key, token_life=token_life) <= now]
        if former and not done:
            first = min(key_needed_until(key, token_life=token_life) for key in former)
            raise Conflict(
                f"Tokens of {len(former)} former keys may be in use: run this again at"
                f" {first:%Y-%m-%dT%H:%M:%SZ} or later.",
                code="too_early",
            )
        if done:
            _write(path, [key for key in keys if key not in done])
        for key in done:
            _logged("issuer_key_retired", key)
        return done


def key_needed_until(key: IssuerKey, *, token_life: timedelta) -> datetime:
    """When the last token of a former key has ended, everywhere."""
    assert key.signed_until is not None
    return key.signed_until + token_life + LEEWAY


def _logged(event: str, key: IssuerKey) -> IssuerKey:
    log.warning(event, kid=key.kid)
    return key


def _pem_draw() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_SIZE_BITS)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Keep others from changing the file meanwhile; the kernel lets go with the process."""
    try:
        descriptor = os.open(path.resolve().parent, os.O_RDONLY)
    except OSError as error:
        raise KeyFileUnusable(f"{path.parent}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, keys: Sequence[IssuerKey]) -> None:
    """Replace the file in one step, whole and on disk; it keeps its owner, its group and its rights."""
    # A link, as to a mounted secret, stays one.
    place = path.resolve()
    try:
        before = place.stat()
        for abandoned in place.parent.glob(f".{place.name}.*"):
            # Of a process that died: it holds a key.
            abandoned.unlink()
        descriptor, draft = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(b"\n".join(_written(key) for key in keys))
                file.flush()
                # Run by root, the file must stay the service's: one it cannot read stops all.
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), before.st_mode & 0o777)
                os.fsync(file.fileno())
            Path(draft).replace(place)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
        directory = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise KeyFileUnusable(f"{path} is left as it was: {error.strerror or error}") from error


def _written(key: IssuerKey) -> bytes:
    lines = [
        f"# {name} {moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}\n"
        for name, moment in (("published", key.published_at), ("signed until", key.signed_until))
        if moment is not None
    ]
    return "".join(lines).encode() + key.pem
