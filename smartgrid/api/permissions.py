"""What a principal's kind of management token lets it do; which objects it sees is the selectors' matter."""

from __future__ import annotations

from rest_framework.permissions import SAFE_METHODS, BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.views import APIView

from smartgrid.api.principal import principal_of


class IsRoot(BasePermission):
    """Only root management tokens: others are told 403 `root_token_required`."""

    message = "This needs a root management token."
    code = "root_token_required"

    def has_permission(self, request: Request, view: APIView) -> bool:  # noqa: ARG002 - DRF's signature
        return principal_of(request).is_root


class IsRootToChange(IsRoot):
    """Everybody may read; of the methods the view has, only root may use those which change something."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        method = str(request.method)
        is_change = method not in SAFE_METHODS and hasattr(view, method.lower())
        return not is_change or super().has_permission(request, view)


ROOT = (IsAuthenticated, IsRoot)
ROOT_TO_CHANGE = (IsAuthenticated, IsRootToChange)
