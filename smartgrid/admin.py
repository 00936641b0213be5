"""The console: the admin site the operators use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin import AdminSite, ModelAdmin
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

from smartgrid.errors import SgmError

# Generic to the type checker only.
if TYPE_CHECKING:
    AnyModelAdmin = ModelAdmin[Any]
else:
    AnyModelAdmin = ModelAdmin


class Console(AdminSite):
    site_title = "Smart Grid Manager"
    site_header = "Smart Grid Manager"
    index_title = "Sites, devices and control"


class ServiceAdmin(AnyModelAdmin):
    """A form whose changes go through a service: what the service refuses is shown, never saved around it."""

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except SgmError as error:
            # Left the admin's transaction as an exception, so nothing of it is stored.
            messages.error(request, str(error))
            return HttpResponseRedirect(request.get_full_path())

    @staticmethod
    def take_over(shown: Model, saved: Model) -> None:
        """Let the admin go on with the row as the service stored it."""
        shown.__dict__.update(saved.__dict__)
