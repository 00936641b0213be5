"""What a principal's kind of management token lets it do; which objects it sees is the selectors' matter."""

from __future__ import annotations

from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.views import APIView

from smartgrid.api.principal import principal_of


class IsRoot(BasePermission):
    """Only root management tokens: others are told 403 `root_token_required`."""

    message = "This needs a root management token."
    code = "root_token_required"

    def has_permission(self, request: Request, view: APIView) -> bool:  # noqa: ARG002 - DRF's signature
        return principal_of(request).is_root
