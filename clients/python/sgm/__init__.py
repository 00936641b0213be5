"""A typed client of the Smart Grid Manager API; `sgm` on the command line is made of it."""

from __future__ import annotations

from sgm.client import Client, Provisioning
from sgm.errors import (
    Ambiguous,
    AnswerInvalid,
    ApiError,
    ArgumentInvalid,
    BadRequest,
    ConfigurationError,
    Conflict,
    Forbidden,
    NotFound,
    ServerError,
    SgmError,
    Throttled,
    TokenRefused,
    Unauthorized,
    Unreachable,
)
from sgm.events import Event
from sgm.settings import Settings, settings_load

__all__ = [
    "Ambiguous",
    "AnswerInvalid",
    "ApiError",
    "ArgumentInvalid",
    "BadRequest",
    "Client",
    "ConfigurationError",
    "Conflict",
    "Event",
    "Forbidden",
    "NotFound",
    "Provisioning",
    "ServerError",
    "Settings",
    "SgmError",
    "Throttled",
    "TokenRefused",
    "Unauthorized",
    "Unreachable",
    "settings_load",
]
