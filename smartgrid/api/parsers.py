"""Bytes of a request -> data: strict JSON of a bounded size."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
from django.conf import settings
from rest_framework import status
from rest_framework.exceptions import APIException, ParseError
from rest_framework.parsers import BaseParser

# An error shows a name by as much of it.
NAME_SHOWN = 64


class PayloadTooLarge(APIException):
    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_detail = "The body is larger than this API reads."
    default_code = "payload_too_large"


class BodyUnread(APIException):
    """It broke off, or as many bodies are on their way as the server has threads for."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_detail = "The body could not be read. Nothing was done; it may be sent again."
    default_code = "body_unread"
    wait = 1


class StrictJSONParser(BaseParser):
    """UTF-8 JSON as the standard has it: no NaN, no Infinity; and no name twice in one object.

    Of a body above the limit no more is read.
    """

    media_type = "application/json"

    def parse(
        self,
        stream: Any,
        media_type: str | None = None,  # noqa: ARG002 - DRF's hook
        parser_context: Mapping[str, Any] | None = None,  # noqa: ARG002
    ) -> Any:
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        try:
            body = stream.read(limit + 1)
        except OSError as error:
            raise BodyUnread from error
        if len(body) > limit:
            raise PayloadTooLarge
        try:
            data = msgspec.json.decode(body)
            # Once more for the names alone: the decoder takes the last of two without a word.
            json.loads(
                body, object_pairs_hook=_refuse_duplicates, parse_int=_passed_over, parse_float=_passed_over
            )
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ParseError(f"The body is not JSON: {error}") from error
        return data


def _passed_over(number: str) -> None:
    """Numbers have been read: a second reader has limits of its own."""


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ParseError(f"The body has {twice[:NAME_SHOWN]!r} twice in one object.")
