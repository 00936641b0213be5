"""Bytes to message and back. An unknown version is refused, an unknown field ignored."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

import msgspec

from edge.wire.messages import ACCEPTED_VERSIONS, Command, Document, Envelope, LogBatch, LogEntry, Message

M = TypeVar("M", bound=Message)

_encoder = msgspec.json.Encoder()
# Sorted keys and no white space: the same body gives the same bytes, hence the same hash, on both sides.
_canonical = msgspec.json.Encoder(order="deterministic")
_envelope = msgspec.json.Decoder(Envelope)
_command: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_decoders: dict[type[Message], msgspec.json.Decoder[Any]] = {}


_log_entry: msgspec.json.Decoder[LogEntry] = msgspec.json.Decoder(LogEntry)


class WireError(Exception):
    """These bytes are not a message we can read."""


class UnknownVersionError(WireError):
    """The message is of a version this side does not speak."""


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def raw(encoded: bytes) -> msgspec.Raw:
    """A part of a message that is encoded already; it is taken over as it is."""
    return msgspec.Raw(encoded)


def decode(kind: type[M], payload: bytes) -> M:
    """Read a message of this kind; `WireError` where that is not what the bytes say."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    return _decode(decoder, payload)  # type: ignore[no-any-return]


class _LooseBatch(msgspec.Struct):
    stream: str
    store: str
    first: int
    last: int
    entries: list[msgspec.Raw]


class _Numbered(msgspec.Struct):
    seq: int


_loose_batch: msgspec.json.Decoder[_LooseBatch] = msgspec.json.Decoder(_LooseBatch)
_numbered: msgspec.json.Decoder[_Numbered] = msgspec.json.Decoder(_Numbered)

# The kind of an entry that stands for one that could not be read.
UNREADABLE = "unreadable"


def decode_log(payload: bytes) -> LogBatch:
    """Read a batch of log entries, and where some of them cannot be read, the others.

    In the place of each that cannot stands one of the kind `unreadable`, whose `reason` says why and what
    came: a node keeps and repeats what is not acknowledged, and its log must not end there.
    """
    try:
        return decode(LogBatch, payload)
    except UnknownVersionError:
        raise
    except WireError:
        loose: _LooseBatch = _decode(_loose_batch, payload)
    entries: list[LogEntry] = []
    seq = loose.first - 1
    for raw_entry in loose.entries:
        try:
            entry = _log_entry.decode(raw_entry)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            came = bytes(raw_entry).decode(errors="replace")
            entry = LogEntry(
                seq=_number(raw_entry, behind=seq), at="", kind=UNREADABLE, reason=f"{error}: {came}"
            )
        entries.append(entry)
        seq = entry.seq
    return LogBatch(
        stream=loose.stream, store=loose.store, first=loose.first, last=loose.last, entries=entries
    )


def _number(raw_entry: msgspec.Raw, *, behind: int) -> int:
    """The number of an entry that cannot be read: its own, or the one that follows."""
    try:
        return _numbered.decode(raw_entry).seq
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return behind + 1


def decode_command(payload: bytes) -> Command:
    return _decode(_command, payload)  # type: ignore[no-any-return]


def _decode(decoder: msgspec.json.Decoder[Any], payload: bytes) -> Any:
    try:
        version = _envelope.decode(payload).v
        if version not in ACCEPTED_VERSIONS:
            raise UnknownVersionError(
                f"version {version}, known are {', '.join(map(str, ACCEPTED_VERSIONS))}"
            )
        return decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # RecursionError: brackets in brackets, a thousand deep, are well-formed JSON.
        raise WireError(str(error)) from error


def body_digest(body: dict[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a document's body, in hex."""
    return hashlib.sha256(_canonical.encode(body)).hexdigest()


def document(body: dict[str, Any], *, epoch: int, version: int) -> Document:
    return Document(epoch=epoch, version=version, sha256=body_digest(body), body=body)


def is_intact(doc: Document) -> bool:
    """Tell whether a document is what its author put down. One too deep to be written again is not."""
    try:
        return body_digest(doc.body) == doc.sha256
    except RecursionError:
        return False
