"""How a command ended, for programs; and what somebody can do about an error, for people."""

from __future__ import annotations

from http import HTTPStatus

from sgm.errors import (
    Ambiguous,
    AnswerInvalid,
    ApiError,
    ArgumentInvalid,
    BadRequest,
    ConfigurationError,
    Forbidden,
    NotFound,
    ServerError,
    SgmError,
    Throttled,
    TokenRefused,
    Unauthorized,
    Unreachable,
)

OK = 0
# Done for some or none: a device that was not updated, a row that was refused, a node that is not healthy.
NOT_DONE = 1
USAGE = 2
CREDENTIALS = 3
NOT_FOUND = 4
UNAVAILABLE = 5
INTERRUPTED = 130

_CODES: tuple[tuple[type[SgmError], int], ...] = (
    (ArgumentInvalid, USAGE),
    (ConfigurationError, CREDENTIALS),
    (TokenRefused, CREDENTIALS),
    (Unauthorized, CREDENTIALS),
    (Forbidden, CREDENTIALS),
    (NotFound, NOT_FOUND),
    (BadRequest, USAGE),
    (Ambiguous, USAGE),
    (Throttled, UNAVAILABLE),
    (ServerError, UNAVAILABLE),
    (Unreachable, UNAVAILABLE),
    (AnswerInvalid, UNAVAILABLE),
)


def exit_code_of(error: SgmError) -> int:
    return next((code for kind, code in _CODES if isinstance(error, kind)), NOT_DONE)


def advice_for(error: SgmError) -> str:
    """What to do next; empty where the error says it all."""
    match error:
        case TokenRefused():
            return "Check SGM_CLIENT_ID and SGM_CLIENT_SECRET, or run `sgm login`."
        case Unauthorized(code="management_token_missing" | "management_token_invalid"):
            return "Check SGM_MANAGEMENT_TOKEN, or run `sgm login`: the token may have been deleted."
        case Unauthorized():
            return "Check that token_url and audience belong to this API, or run `sgm login`."
        case Forbidden():
            return "Use a profile with a root token: --profile NAME."
        case NotFound(detail="No such path."):
            return "This API does not have that: it may be older than this sgm."
        case NotFound():
            return "`sgm sites` and `sgm devices` list what this management token opens."
        case Unreachable(was_sent=True):
            return "It may have been done: look with `sgm logs` before it is asked again."
        case Unreachable():
            return "Nothing was done. Check the address and the network; `sgm ping` tells when it is back."
        case Throttled() | ServerError(status=HTTPStatus.SERVICE_UNAVAILABLE):
            return _again(error)
        case ServerError():
            return "Tell whoever runs it, with the request's id."
        case AnswerInvalid():
            return "Check SGM_API_URL: it ends in /v1."
    return ""


def _again(error: ApiError) -> str:
    if error.retry_after_s is None:
        return "Try again later."
    return f"Try again in {error.retry_after_s:g} s."
