"""Who asks: what a request's two credentials come to."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from rest_framework.request import Request


@dataclass(frozen=True, slots=True)
class Principal:
    client_id: str
    token_id: UUID | None
    is_root: bool


def principal_of(request: Request) -> Principal:
    """The principal of an authenticated request."""
    principal = request.auth
    assert isinstance(principal, Principal)  # noqa: S101 - the permission has refused everybody else
    return principal
