"""The embedded issuer's clients in the console; there only where the issuer is on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from oauth2_provider.models import Application
from oauth2_provider.settings import oauth2_settings
from unfold.decorators import action

from smartgrid.admin import ServiceAdmin, ask_first, secret_page
from smartgrid.console.audit import noted
from smartgrid.issuer import (
    issuer_client_create,
    issuer_client_delete,
    issuer_client_rename,
    issuer_client_secret_renew,
)


@admin.register(Application)
class IssuerClientAdmin(ServiceAdmin):
    """Who may fetch bearer tokens. Ids and secrets are drawn; a secret is seen once, by who had it drawn."""

    list_display = ("name", "client_id", "created", "updated")
    search_fields = ("name", "client_id")
    ordering = ("name", "pk")
    readonly_fields = ("client_id", "created", "updated")
    may_delete = True
    actions_detail = ("draw_secret",)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:  # noqa: ARG002 - Django's hook
        return ["name", *(self.readonly_fields if obj else ())]

    def get_form(
        self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any
    ) -> type[ModelForm[Any]]:
        form: type[ModelForm[Any]] = super().get_form(request, obj, change, **kwargs)
        if "name" in form.base_fields:
            # The toolkit lets it be empty; nobody would know whose client it is.
            form.base_fields["name"].required = True
        return form

    # --- where the issuer is off there is nothing here ------------------------------------------------------

    def has_module_permission(self, request: HttpRequest) -> bool:
        return bool(settings.SGM_ISSUER_KEY_FILE) and super().has_module_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(settings.SGM_ISSUER_KEY_FILE) and super().has_view_permission(request, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(settings.SGM_ISSUER_KEY_FILE) and super().has_add_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(settings.SGM_ISSUER_KEY_FILE) and super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return bool(settings.SGM_ISSUER_KEY_FILE) and super().has_delete_permission(request, obj)

    # --- changes --------------------------------------------------------------------------------------------

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool) -> None:
        by = request.user.get_username()
        name = form.cleaned_data["name"]
        if change:
            issuer_client_rename(client_id=obj.client_id, name=name, by=by)
            return
        client_id, secret = issuer_client_create(name=name, by=by)
        saved = Application.objects.get(client_id=client_id)
        obj.__dict__.update(saved.__dict__)
        # For `response_add`, and never stored: the row has its hash.
        obj.drawn_secret = secret

    def response_add(
        self,
        request: HttpRequest,
        obj: Any,
        post_url_continue: str | None = None,  # noqa: ARG002 - Django's hook
    ) -> HttpResponse:
        return self._secret_page(request, obj, secret=obj.drawn_secret)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        issuer_client_delete(client_id=obj.client_id, by=request.user.get_username())
        life = timedelta(seconds=oauth2_settings.ACCESS_TOKEN_EXPIRE_SECONDS)
        messages.warning(
            request,
            f"{obj} gets no more tokens. Those it has fetched are good for up to {life}; to shut somebody out"
            " now, delete the management token.",
        )

    # --- a new secret ---------------------------------------------------------------------------------------

    @action(description="New secret", url_path="draw-secret", permissions=["change"])
    def draw_secret(self, request: HttpRequest, object_id: str) -> HttpResponse:  # noqa: ARG002 - Unfold's hook
        """Lead to the page that asks first."""
        return HttpResponseRedirect(
            reverse(f"{self.admin_site.name}:issuer_client_new_secret", args=[object_id])
        )

    def get_urls(self) -> list[URLPattern]:
        new_secret = path(
            "<int:client_pk>/new-secret/",
            self.admin_site.admin_view(self.new_secret_view),
            name="issuer_client_new_secret",
        )
        return [new_secret, *super().get_urls()]

    def new_secret_view(self, request: HttpRequest, client_pk: int) -> HttpResponse:
        """Ask, and on POST draw a secret in place of the present one and show it in the answer itself."""
        client = get_object_or_404(Application, pk=client_pk)
        if not self.has_change_permission(request, client):
            raise PermissionDenied
        if request.method == "POST":
            secret = issuer_client_secret_renew(client_id=client.client_id, by=request.user.get_username())
            self.log_change(request, client, "New secret.")
            noted(request, "renew client secret", client)
            return self._secret_page(request, client, secret=secret)
        asked = (
            f"The present secret of {client} ends with this: it gets no more tokens until it has the new one."
            " Those it has fetched are good until they expire. To exchange a secret without a gap, create a"
            " second client, and delete this one once nobody uses it."
        )
        return ask_first(self, request, client, title="New secret", asked=asked, button="Draw a new secret")

    def _secret_page(self, request: HttpRequest, client: Any, *, secret: str) -> HttpResponse:
        return secret_page(
            self,
            request,
            title=f"Credentials of {client}",
            shown={"client_id": client.client_id, "client_secret": secret},
            note="The secret is kept as a hash only.",
        )
