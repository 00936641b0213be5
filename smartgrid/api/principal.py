"""Who is asking: what authentication found out, for selectors, permissions and the logs."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from rest_framework.exceptions import NotAuthenticated
from rest_framework.request import Request


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose two credentials hold, or a person at the console (`smartgrid.console.people`).

    `client_id` names the program, by its issuer's word, or the person. `token_id` is the site management
    token whose sites it may see; None with a root token, which sees all. `opens_few`: when it was let in, the
    token was known to open few sites; how its rows are looked for depends on it, and never which they are.
    `scope_id`: the `SiteScope` whose sites a person may see, who has no token.
    """

    client_id: str
    token_id: UUID | None
    is_root: bool
    opens_few: bool = field(default=False, compare=False)
    scope_id: UUID | None = None

    @property
    def key(self) -> str:
        """What tells apart callers that see different things."""
        return "root" if self.is_root else str(self.scope_id or self.token_id)


class ApiClient:
    """What stands in `request.user`: a program, never a row in the table of users."""

    is_authenticated = True
    is_anonymous = False
    is_active = True

    def __init__(self, principal: Principal) -> None:
        self.principal = principal

    @property
    def pk(self) -> str:
        # Throttles count by it.
        return self.principal.client_id

    def __str__(self) -> str:
        return self.principal.client_id


def principal_of(request: Request) -> Principal:
    """The caller of an authenticated view; NotAuthenticated (401) where nobody has been let in."""
    if isinstance(request.auth, Principal):
        return request.auth
    raise NotAuthenticated
