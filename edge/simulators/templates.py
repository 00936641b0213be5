"""What a device makes of what it is told: the values that stand where its profile's templates have words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from edge.profiles import payloads

_WORD = re.compile(r"\\?\$([a-z_]+)")


def words_of(template: object, payload: bytes) -> dict[str, Any] | None:
    """What stands in a payload at the words of its template; None where it is not of that form."""
    words: dict[str, Any] = {}
    if isinstance(template, str):
        # A text that is JSON is read as such: nothing says where its blanks are.
        quoted = re.sub(r'(?<!")\$([a-z_]+)(?!")', r'"$\1"', template)
        try:
            form = msgspec.json.decode(quoted) if template else None
        except ValueError:
            form = None
        if not isinstance(form, dict | list):
            return _words_of_text(template, payload)
        template = form
    try:
        document = msgspec.json.decode(payload)
    except (ValueError, RecursionError):
        return None
    return words if _matches(template, document, words) else None


def _words_of_text(template: str, payload: bytes) -> dict[str, Any] | None:
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    match = re.fullmatch(_pattern(template or "$value"), text, re.DOTALL)
    return None if match is None else match.groupdict()


def _pattern(template: str) -> str:
    """A regular expression that takes the words out of what the template was filled to."""
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        word = match[1]
        if word in seen:
            return f"(?P={word})"
        seen.add(word)
        return f"(?P<{word}>.+)"

    return _WORD.sub(group, re.escape(template))


def _matches(template: object, document: object, words: dict[str, Any]) -> bool:
    if isinstance(template, Mapping):
        return isinstance(document, dict) and all(
            key in document and _matches(one, document[key], words) for key, one in template.items()
        )
    if isinstance(template, list | tuple):
        return (
            isinstance(document, list)
            and len(document) == len(template)
            and all(_matches(one, other, words) for one, other in zip(template, document, strict=True))
        )
    if isinstance(template, str) and payloads.words_in(template):
        if re.fullmatch(r"\$[a-z_]+", template):
            words[template[1:]] = document
            return True
        found = words_of(template, document.encode()) if isinstance(document, str) else None
        words.update(found or {})
        return found is not None
    return template == document
