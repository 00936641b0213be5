"""The node's log: one JSON object a line on standard error."""

from __future__ import annotations

import logging
import os
import sys

import structlog


def configure_logging() -> None:
    """Level from SGM_LOG_LEVEL (default info)."""
    level = logging.getLevelNamesMapping().get(os.environ.get("SGM_LOG_LEVEL", "info").upper(), logging.INFO)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
