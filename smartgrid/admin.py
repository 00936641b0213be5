"""The console: the admin site the operators use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.filters import RelatedFieldListFilter
from django.contrib.admin.utils import get_fields_from_path
from django.db import transaction
from django.db.models import Model, QuerySet
from django.db.models.base import ModelBase
from django.forms import ModelForm, Widget, widgets
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, reverse
from django.utils.http import urlencode
from unfold.admin import ModelAdmin
from unfold.sites import UnfoldAdminSite
from unfold.widgets import CHECKBOX_CLASSES, INPUT_CLASSES, SELECT_CLASSES, TEXTAREA_CLASSES

from smartgrid.errors import SgmError

# Generic to the type checker only.
if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin as _TypedModelAdmin

    _ModelAdmin = _TypedModelAdmin[Any]
else:
    _ModelAdmin = ModelAdmin


class Console(UnfoldAdminSite):  # type: ignore[misc] # Unfold has no types
    site_title = "Smart Grid Manager"
    site_header = "Smart Grid Manager"
    index_title = "Fleet"
    login_template = "console/login.html"

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        from smartgrid.console.login import login_context, login_noted  # noqa: PLC0415 - as below

        response: HttpResponse = super().login(request, {**login_context(request), **(extra_context or {})})
        login_noted(request)
        return response

    def logout(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Log out here, and at the provider whom the person came by where it says how."""
        from smartgrid.console.oidc import logout_address  # noqa: PLC0415 - as below

        elsewhere = logout_address(request) if request.method == "POST" else None
        response: HttpResponse = super().logout(request, extra_context)
        return response if elsewhere is None else HttpResponseRedirect(elsewhere)

    def get_urls(self) -> list[URLPattern]:
        """Pages of our own come first: a list's `<object_id>` would take their addresses for its own."""
        # They know every app, and every app's admin knows this module.
        from smartgrid.console.urls import PAGES  # noqa: PLC0415

        own: list[URLPattern] = super().get_urls()
        return [page.url(self) for page in PAGES] + own

    def register(self, model_or_iterable: Any, admin_class: Any = None, **options: Any) -> None:
        """Leave out what of the libraries is of no use here.

        Of the OAuth toolkit clients are, the rest the embedded issuer never writes; of periodic work tasks
        and their periods. They stand here in forms of our own (`smartgrid.issuer_admin`, `sites_app.admin`),
        as do people, roles and the audit log (`smartgrid.console`).
        """
        single = isinstance(model_or_iterable, ModelBase)
        models: list[Any] = [model_or_iterable] if single else list(model_or_iterable)
        used = [model for model in models if _is_of_use(model, admin_class=admin_class)]
        super().register(used, admin_class, **options)


def _is_of_use(model: type[Model], *, admin_class: type | None) -> bool:
    match model._meta.app_label:  # noqa: SLF001 - Django's documented name for it
        case "oauth2_provider" | "django_celery_beat" as library:
            return admin_class is not None and not admin_class.__module__.startswith(f"{library}.")
        case "auth" | "auditlog":
            return admin_class is not None and admin_class.__module__.startswith("smartgrid.")
        case _:
            return True


def sites_seen(request: HttpRequest) -> QuerySet[Any]:
    """The sites that this person may see, for what forms offer."""
    from sites_app.selectors import sites_visible_to  # noqa: PLC0415 - its admin knows this module
    from smartgrid.console.people import principal_at  # noqa: PLC0415

    return sites_visible_to(principal_at(request))


class AnyModelAdmin(_ModelAdmin):
    """A list and a form that show of the plants only what this person's sites are.

    `site_path`: how a row leads to its site, for lookups; `pk` for sites themselves, None for what belongs to
    no site, which permissions alone guard.
    """

    site_path: str | None = None

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        rows = super().get_queryset(request)
        if self.site_path is None:
            return rows
        from smartgrid.console.people import principal_at  # noqa: PLC0415 - its app knows this module

        if principal_at(request).is_root:
            return rows
        return rows.filter(**{f"{self.site_path}__in": sites_seen(request).order_by()})

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        for field in form.base_fields.values():
            _dress(field.widget)
        return form

    def formfield_for_foreignkey(self, db_field: Any, request: Any, **kwargs: Any) -> Any:
        """Offer of other rows no more than their own lists show."""
        related = self.admin_site._registry.get(db_field.remote_field.model)  # noqa: SLF001
        if related is not None and "queryset" not in kwargs:
            kwargs["queryset"] = related.get_queryset(request)
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def formfield_for_manytomany(self, db_field: Any, request: Any, **kwargs: Any) -> Any:
        related = self.admin_site._registry.get(db_field.remote_field.model)  # noqa: SLF001
        if isinstance(related, AnyModelAdmin) and related.site_path is not None:
            kwargs.setdefault("queryset", related.get_queryset(request))
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def get_list_filter(self, request: HttpRequest) -> Any:
        """A filter by another row names no more of them than their own list shows."""
        return [
            (one, ScopedRelatedFilter) if isinstance(one, str) and _is_relation(self.model, one) else one
            for one in super().get_list_filter(request)
        ]


class ScopedRelatedFilter(RelatedFieldListFilter):
    """Offers the rows that the related list shows to this person."""

    def field_choices(self, field: Any, request: HttpRequest, model_admin: Any) -> Any:
        choices = super().field_choices(field, request, model_admin)
        related = model_admin.admin_site._registry.get(field.remote_field.model)  # noqa: SLF001
        if not isinstance(related, AnyModelAdmin) or related.site_path is None:
            return choices
        seen = set(related.get_queryset(request).order_by().values_list("pk", flat=True))
        return [(key, label) for key, label in choices if key in seen]


def _is_relation(model: type[Model], path: str) -> bool:
    return bool(get_fields_from_path(model, path)[-1].is_relation)


class LeadsToControl:
    """Of a list of sites or devices: actions that lead to where the marked rows are curtailed or released."""

    # What the rows are called there.
    control_parameter = ""
    # An address has room for so many.
    control_at_most = 100

    @admin.action(description="Curtail", permissions=["curtail"])
    def curtail_marked(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self._lead(request, queryset, "admin:console_curtail")

    @admin.action(description="Release", permissions=["curtail"])
    def release_marked(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        return self._lead(request, queryset, "admin:console_release")

    def has_curtail_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("control_app.curtail")

    def _lead(self, request: HttpRequest, queryset: QuerySet[Any], name: str) -> HttpResponse | None:
        keys = list(queryset.order_by().values_list("pk", flat=True)[: self.control_at_most + 1])
        if len(keys) > self.control_at_most:
            messages.error(
                request,
                f"At most {self.control_at_most} go into one request. Mark fewer, or curtail whole sites.",
            )
            return None
        query = urlencode([(self.control_parameter, str(key)) for key in keys])
        return HttpResponseRedirect(f"{reverse(name)}?{query}")


# Fields that a form of ours declares itself have Django's bare widgets, which Unfold's styles leave naked.
_DRESSES: dict[type[Widget], list[str]] = {
    widgets.TextInput: INPUT_CLASSES,
    widgets.NumberInput: INPUT_CLASSES,
    widgets.URLInput: INPUT_CLASSES,
    widgets.PasswordInput: INPUT_CLASSES,
    widgets.Textarea: TEXTAREA_CLASSES,
    widgets.Select: SELECT_CLASSES,
    widgets.NullBooleanSelect: SELECT_CLASSES,
    widgets.CheckboxInput: CHECKBOX_CLASSES,
}


def _dress(widget: Any) -> None:
    """Give a bare widget the looks of Unfold's; any other has its own."""
    inner = getattr(widget, "widget", widget)
    classes = " ".join(_DRESSES.get(type(inner), ()))
    had = inner.attrs.get("class", "")
    if classes and classes not in had:
        inner.attrs["class"] = f"{classes} {had}".strip()


class ServiceAdmin(AnyModelAdmin):
    """A form whose changes go through a service: what the service refuses is shown, never saved around it."""

    # Most things of a park are retired, not deleted: their rows hold up others.
    may_delete = False

    def save_by_service(self, *, row: Any, values: dict[str, Any], is_new: bool) -> Model:
        """Store the form's values through a service and return the row as stored."""
        raise NotImplementedError

    def delete_by_service(self, row: Any) -> None:
        raise NotImplementedError

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool) -> None:  # noqa: ARG002
        saved = self.save_by_service(row=obj, values=dict(form.cleaned_data), is_new=not change)
        # The admin goes on with the row as the service stored it.
        obj.__dict__.update(saved.__dict__)

    def save_related(self, request: HttpRequest, form: ModelForm[Any], formsets: Any, change: bool) -> None:
        """Nothing more to save: the service stored the relations with the row."""

    def delete_model(self, request: HttpRequest, obj: Any) -> None:  # noqa: ARG002 - Django's hook
        self.delete_by_service(obj)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        with transaction.atomic():
            for row in queryset:
                self.delete_model(request, row)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:  # noqa: ARG002 - Django's hook
        """What goes is the service's to say: records that go with a row need no permission of their own."""
        name = str(self.opts.verbose_name_plural)
        return [str(row) for row in objs], {name: len(objs)}, set(), []

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.may_delete and super().has_delete_permission(request, obj)

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        view = super().changeform_view
        return _refusal_shown(request, lambda: view(request, object_id, form_url, extra_context))

    def delete_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        view = super().delete_view
        return _refusal_shown(request, lambda: view(request, object_id, extra_context))

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        view = super().changelist_view
        return _refusal_shown(request, lambda: view(request, extra_context))


def secret_page(
    model_admin: AnyModelAdmin,
    request: HttpRequest,
    *,
    title: str,
    shown: Mapping[str, str],
    note: str = "",
    again: bool = False,
) -> HttpResponse:
    """A page that shows secrets to the one who just had them drawn, as the answer to that very request.

    Messages would take them through a cookie or the session, where they stay until somebody looks; a redirect
    would need a place to fetch them from. Nothing keeps this page: no cache, no history to go back to.
    `again`: it may be shown another time.
    """
    context = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "title": title,
        "shown": list(shown.items()),
        "note": note,
        "again": again,
    }
    headers = {"Cache-Control": "no-store", "Pragma": "no-cache", "Referrer-Policy": "no-referrer"}
    return TemplateResponse(request, "admin/secret_once.html", context, headers=headers)


def ask_first(
    model_admin: AnyModelAdmin, request: HttpRequest, row: Model, *, title: str, asked: str, button: str
) -> HttpResponse:
    """A page that says what a deed does, with the button that does it by POST."""
    opts = model_admin.opts
    name = f"{model_admin.admin_site.name}:{opts.app_label}_{opts.model_name}_change"
    context = {
        **model_admin.admin_site.each_context(request),
        "opts": opts,
        "original": row,
        "title": title,
        "asked": asked,
        "button": button,
        "back": reverse(name, args=[row.pk]),
    }
    return TemplateResponse(request, "console/ask_first.html", context)


def _refusal_shown(request: HttpRequest, view: Callable[[], HttpResponse]) -> HttpResponse:
    try:
        return view()
    except SgmError as error:
        # It left the admin's transaction as an exception, so nothing of it is stored.
        messages.error(request, str(error))
        return HttpResponseRedirect(request.get_full_path())
