"""What the description shows as examples: the guide's bodies, and refusals as they are answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Printed:
    """One request as the guide prints it, with the answer; None where it prints none."""

    title: str
    request: str
    body: Any = None
    answer: Any = None

    @property
    def name(self) -> str:
        return self.title.lower().replace(" ", "_")


# By operationId. `tests/api/test_openapi.py` holds them against the guide's text.
GUIDE: dict[str, list[Printed]] = {
    operation: [Printed(**printed) for printed in all_printed]
    for operation, all_printed in json.loads(
        Path(__file__).with_name("examples.json").read_text(encoding="utf-8")
    ).items()
}

_REQUEST_ID = "9f2d5f0c4a3b4e3c8d1f6b7a2c9e0d11"


def _refusal(detail: str, code: str, **errors: list[str]) -> dict[str, Any]:
    return {
        "summary": code,
        "value": {"detail": detail, "code": code, "errors": errors, "request_id": _REQUEST_ID},
    }


def _by_code(*refusals: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {refusal["summary"]: refusal for refusal in refusals}


# By status: what OpenAPI calls examples, by code.
REFUSALS: dict[str, dict[str, dict[str, Any]]] = {
    "400": _by_code(
        _refusal("value: A finite number is expected.", "invalid", value=["A finite number is expected."]),
        _refusal("The body is not JSON: Input data was truncated", "malformed"),
    ),
    "401": _by_code(
        _refusal("The Authorization header is missing.", "bearer_missing"),
        _refusal("The bearer token has expired.", "bearer_expired"),
        _refusal("The management token is not valid.", "management_token_invalid"),
    ),
    "403": _by_code(_refusal("This needs a root management token.", "root_token_required")),
    "404": _by_code(_refusal("No such site.", "not_found")),
    "409": _by_code(_refusal("There is such an object already.", "conflict")),
    "413": _by_code(_refusal("The body is larger than this API reads.", "payload_too_large")),
    "415": _by_code(_refusal('Unsupported media type "text/plain" in request.', "unsupported_media_type")),
    "422": _by_code(_refusal("It cannot be done as asked for.", "unprocessable")),
    "429": _by_code(_refusal("Request was throttled. Expected available in 3 seconds.", "throttled")),
    "503": _by_code(
        _refusal("The command could not be handed over; nothing was sent.", "dispatch_unavailable"),
        _refusal("The database does not answer.", "database_unavailable"),
    ),
}
