"""Who sits at the console: the person as a principal, which every selector and service asks for."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser, Group, Permission
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from sites_app.models import ProviderIdentity, Site, SiteScope
from sites_app.selectors import sites_visible_to
from smartgrid.api.principal import Principal
from smartgrid.console.roles import Role
from smartgrid.errors import Forbidden

log = structlog.stdlib.get_logger(__name__)

NAME_LENGTH_MAX = 100
GROUPS_TOLD = 20
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


# --- what one person may give another -------------------------------------------------------------------


def may_change_person(actor: Any, person: Any) -> bool:
    """Whether nothing that `person` has is beyond `actor`: who could change them could take their place."""
    if actor.is_superuser or actor.pk == person.pk:
        return True
    if person.is_superuser or not person.get_all_permissions() <= actor.get_all_permissions():
        return False
    scope = SiteScope.objects.filter(user=person).first()
    return scope is None or may_give_sites(actor, all_sites=scope.all_sites, sites=scope.sites.all())


def may_give_sites(actor: Any, *, all_sites: bool, sites: Iterable[Site]) -> bool:
    """Whether `actor` sees these sites: nobody gives what they do not have."""
    principal = principal_of_user(actor)
    if principal.is_root:
        return True
    seen = set(sites_visible_to(principal).order_by().values_list("pk", flat=True))
    return not all_sites and {site.pk for site in sites} <= seen


def groups_given_by(actor: Any) -> QuerySet[Group]:
    """The roles and groups that hold nothing beyond what `actor` has."""
    groups = Group.objects.order_by("name")
    if actor.is_superuser:
        return groups
    return groups.exclude(permissions__in=Permission.objects.exclude(pk__in=permissions_of_person(actor)))


def permissions_of_person(person: Any) -> QuerySet[Permission]:
    """As rows, for lookups."""
    if person.is_superuser:
        return Permission.objects.all()
    return Permission.objects.filter(Q(group__user=person) | Q(user=person)).distinct()


def is_last_administrator(person: Any) -> bool:
    """Whether without this person nobody is left who lets others in."""
    administrators = get_user_model().objects.filter(
        Q(is_superuser=True) | Q(groups__name=Role.ADMINISTRATOR), is_active=True, is_staff=True
    )
    is_one = administrators.filter(pk=person.pk).exists()
    return is_one and not administrators.exclude(pk=person.pk).exists()


# --- who comes by an OpenID provider --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProviderClaims:
    """What a provider says of somebody. `sites`: tags or ids, `*` for all; None: it does not say."""

    issuer: str
    subject: str
    name: str
    email: str
    groups: tuple[str, ...]
    roles: frozenset[Role]
    sites: tuple[str, ...] | None


@transaction.atomic
def _person_follow(claims: ProviderClaims) -> Any:
    known = ProviderIdentity.objects.filter(issuer=claims.issuer, subject=claims.subject)
    identity = known.select_related("user").select_for_update(of=("self",)).first()
    if identity is None and not claims.roles:
        return None
    person = identity.user if identity is not None else _person_make(claims)
    person.email = claims.email[:254]
    # Whoever has lost every role is out, with all sessions: the console asks for it at each request.
    person.is_staff = bool(claims.roles)
    person.save(update_fields=["email", "is_staff"])
    person.groups.set(Group.objects.filter(name__in=[role.value for role in claims.roles]))
    if claims.sites is not None:
        scope, _ = SiteScope.objects.get_or_create(user=person)
        if scope.all_sites != ("*" in claims.sites):
            scope.all_sites = "*" in claims.sites
            scope.save()
        scope.sites.set(_sites_named(claims.sites))
    return person


def person_by_provider(claims: ProviderClaims) -> Any:
    """The person a provider vouches for, with roles and sites as it says now; made at their first login.

    `Forbidden` where none of their groups has a role, or where an administrator has shut them out.
    """
    person = _person_follow(claims)
    if not claims.roles:
        groups = ", ".join(claims.groups[:GROUPS_TOLD]) or "none"
        raise Forbidden(
            f"None of your groups has a role here ({groups}). Ask an administrator of your provider."
        )
    if not person.is_active:
        raise Forbidden("Your account here is switched off. Ask an administrator of the console.")
    return person


def _person_make(claims: ProviderClaims) -> Any:
    people = get_user_model().objects
    name = "".join(letter for letter in claims.name if letter.isalnum() or letter in "@.+-_")[
        :NAME_LENGTH_MAX
    ]
    if not name or people.filter(username__iexact=name).exists():
        # Somebody else's, perhaps with a password: a name alone gives nobody their account.
        own = hashlib.sha256(f"{claims.issuer} {claims.subject}".encode()).hexdigest()[:12]
        name = f"{name or 'person'}-{own}"
    person = people.create_user(name, is_staff=True)
    ProviderIdentity.objects.create(user=person, issuer=claims.issuer, subject=claims.subject)
    log.info("person_made", user=name, issuer=claims.issuer)
    return person


def _sites_named(names: Iterable[str]) -> QuerySet[Site]:
    ids = []
    for name in names:
        with suppress(ValueError):
            ids.append(uuid.UUID(name))
    return Site.objects.filter(Q(site_tag__in=list(names)) | Q(pk__in=ids))
