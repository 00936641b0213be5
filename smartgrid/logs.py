"""One JSON object a log line, each with the request_id it belongs to; never a token."""

from __future__ import annotations

import re
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# What our credentials look like, wherever they turn up: in a key's name, a header, a message of a library.
_SECRET_KEYS = re.compile(r"(?i)token$|authorization|password|secret|cookie")
_SECRET_TEXT = re.compile(r"tok_[0-9a-fA-F]{8,}|eyJ[\w-]+\.[\w-]+\.[\w-]*|(?i:bearer)\s+[\w.~+/-]+=*")
HIDDEN = "***"


def hide_secret_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put *** under every name which says that its value is a credential, at any depth."""
    return {key: _hidden(key, value) for key, value in event.items()}


def hide_secret_text(_logger: WrappedLogger, _method: str, line: str) -> str:
    """Put *** for whatever has a credential's form, however it came into the line."""
    return _SECRET_TEXT.sub(HIDDEN, line)


def _hidden(name: object, value: Any) -> Any:
    if isinstance(name, str) and _SECRET_KEYS.search(name):
        return HIDDEN
    if isinstance(value, dict):
        return {key: _hidden(key, inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(None, inner) for inner in value]
    return value


def shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.format_exc_info,
        hide_secret_fields,
    ]


def logging_config(*, level: str) -> dict[str, Any]:
    """Django's LOGGING; our own loggers and those of libraries end in the same line format."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared_processors(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {
                "()": structlog.stdlib.ProcessorFormatter,
                "foreign_pre_chain": shared_processors(),
                "processors": [
                    structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                    structlog.processors.JSONRenderer(sort_keys=False),
                    hide_secret_text,
                ],
            },
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
        "root": {"handlers": ["stderr"], "level": level},
        "loggers": {
            # Django's own handlers would write the same line again, in another form.
            "django": {"handlers": [], "propagate": True, "level": level},
            "django.server": {"handlers": [], "propagate": True, "level": level},
            # 4xx are answers, not events; what goes wrong with us is logged by the exception handler.
            "django.request": {"level": "ERROR"},
            # Two lines for every task, of which the control path has one a request: conditions, not events.
            "celery.worker.strategy": {"level": "WARNING"},
            "celery.app.trace": {"level": "WARNING"},
            "celery.beat": {"level": "WARNING"},
        },
    }
