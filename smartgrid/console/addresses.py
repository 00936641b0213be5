"""Where pages of the console are, also those that a build may lack."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse


def page_address(name: str, *args: Any) -> str:
    """The address of `admin:NAME`; empty where there is no such page."""
    try:
        return reverse(f"admin:{name}", args=args)
    except NoReverseMatch:
        return ""


def changelist_address(request: HttpRequest, model: str, query: str = "") -> str:
    """The list of `app_label.model`, for those who may see it; empty for others."""
    app, name = model.split(".")
    if not request.user.has_perm(f"{app}.view_{name}"):
        return ""
    address = page_address(f"{app}_{name}_changelist")
    return f"{address}?{query}" if address and query else address
