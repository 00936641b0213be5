"""Who sits at the console: the person as a principal, which every selector and service asks for."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest

from sites_app.models import SiteScope
from smartgrid.api.principal import Principal

_NOBODY = Principal(client_id="", token_id=None, is_root=False)
_KEPT = "_sgm_principal"


def principal_of_user(user: Any) -> Principal:
    """A person as selectors and services know them.

    A superuser, and whoever's scope says so, sees all sites; others those of their scope, and whoever has
    none sees no site. What a person may *do* is said by permissions (`smartgrid.console.roles`).
    """
    if isinstance(user, AnonymousUser) or not user.is_active:
        return _NOBODY
    kept: Principal | None = getattr(user, _KEPT, None)
    if kept is None:
        kept = _principal(user)
        setattr(user, _KEPT, kept)
    return kept


def principal_at(request: HttpRequest) -> Principal:
    """The person who sent this request; read once a request."""
    return principal_of_user(request.user)


def _principal(user: Any) -> Principal:
    client_id = f"user:{user.get_username()}"
    scope = None if user.is_superuser else SiteScope.objects.filter(user=user).first()
    if user.is_superuser or (scope is not None and scope.all_sites):
        return Principal(client_id=client_id, token_id=None, is_root=True)
    return Principal(
        client_id=client_id, token_id=None, is_root=False, scope_id=None if scope is None else scope.pk
    )
