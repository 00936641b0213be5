"""What can go wrong at a client, as one tree.

SgmError
├── ArgumentInvalid       an argument that is never right; nothing was sent (a ValueError too)
├── ConfigurationError    whom to ask, or with what credentials, is not known or not safe
├── TokenRefused          the token issuer knows no such client
├── Unreachable           nobody answered; `was_sent` tells whether the request may have been acted on
├── AnswerInvalid         something answered, but not as this API does
├── Ambiguous             a name that means several things
└── ApiError              the API refused, with status and code
    ├── BadRequest        400, 413, 415: the request is malformed or out of range
    ├── Unauthorized      401: a credential is bad or missing
    ├── Forbidden         403: not with this management token
    ├── NotFound          404: not there, or outside the token's sites
    ├── Conflict          409: a duplicate, or a state that forbids it
    ├── Throttled         429: too often; `retry_after_s` says when
    └── ServerError       5xx: it is on their side
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus


class SgmError(Exception):
    """Any failure of this library; its text is one sentence for people."""


class ArgumentInvalid(SgmError, ValueError):  # noqa: N818 - states the fault
    pass


class ConfigurationError(SgmError):
    pass


class TokenRefused(SgmError):  # noqa: N818 - states the fault
    pass


class Unreachable(SgmError):  # noqa: N818
    def __init__(self, detail: str, *, was_sent: bool) -> None:
        super().__init__(detail)
        self.was_sent = was_sent


class AnswerInvalid(SgmError):  # noqa: N818
    pass


class Ambiguous(SgmError):  # noqa: N818
    pass


class ApiError(SgmError):
    """A refusal as the API words it.

    `errors` says what is wrong by field. `request_id` finds the request in the logs of central and nodes.
    `retry_after_s` is None where the API did not say when to come again.
    """

    def __init__(
        self,
        detail: str,
        *,
        status: int,
        code: str,
        errors: Mapping[str, Sequence[str]] | None = None,
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.code = code
        self.errors: dict[str, list[str]] = {field: list(texts) for field, texts in (errors or {}).items()}
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class BadRequest(ApiError):  # noqa: N818
    pass


class Unauthorized(ApiError):  # noqa: N818
    pass


class Forbidden(ApiError):  # noqa: N818
    pass


class NotFound(ApiError):  # noqa: N818
    pass


class Conflict(ApiError):  # noqa: N818
    pass


class Throttled(ApiError):  # noqa: N818
    pass


class ServerError(ApiError):
    pass


_BY_STATUS: Mapping[int, type[ApiError]] = {
    HTTPStatus.BAD_REQUEST: BadRequest,
    HTTPStatus.UNAUTHORIZED: Unauthorized,
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: BadRequest,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: BadRequest,
    HTTPStatus.TOO_MANY_REQUESTS: Throttled,
}


def kind_of_status(status: int) -> type[ApiError]:
    """The class of a refusal with this status."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ServerError
    return _BY_STATUS.get(status, ApiError)
