"""People and their roles in the console; nobody gives what they do not have (`smartgrid.console.people`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from django import forms
from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import GroupAdmin, UserAdmin
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from unfold.admin import StackedInline
from unfold.decorators import action
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget

from sites_app.models import SecondFactor, SiteScope
from sites_app.selectors import sites_visible_to
from smartgrid.admin import AnyModelAdmin, ask_first
from smartgrid.console.audit import noted
from smartgrid.console.people import (
    groups_given_by,
    is_last_administrator,
    may_change_person,
    may_give_sites,
    permissions_of_person,
    principal_at,
)
from smartgrid.console.roles import Role
from smartgrid.console.second_factor import factor_reset

if TYPE_CHECKING:
    from django.contrib.admin import StackedInline as _TypedInline

    _Inline = _TypedInline[Any, Any]
    _ScopeForm = forms.ModelForm[SiteScope]
    from django.contrib.auth.forms import UserChangeForm as _UserChangeForm

    _ChangeForm: TypeAlias = _UserChangeForm[Any]
    _GroupForm = forms.ModelForm[Group]
else:
    _Inline, _ChangeForm = StackedInline, UserChangeForm
    _ScopeForm = _GroupForm = forms.ModelForm

_OWN_ROLES = [role.value for role in Role]


class PersonForm(_ChangeForm):
    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if (
            self.instance.pk
            and is_last_administrator(self.instance)
            and not _administers(self.instance, cleaned)
        ):
            raise ValidationError(
                "This is the last administrator: nobody would be left who lets others in."
                " Make another one first."
            )
        return cleaned


def _administers(person: Any, cleaned: dict[str, Any]) -> bool:
    """Whether somebody is still an administrator with what the form says; what it leaves out stays."""
    is_let_in = cleaned.get("is_active", person.is_active) and cleaned.get("is_staff", person.is_staff)
    groups = cleaned.get("groups", person.groups.all())
    is_one = any(group.name == Role.ADMINISTRATOR for group in groups)
    return bool(is_let_in and (is_one or cleaned.get("is_superuser", person.is_superuser)))


class ScopeForm(_ScopeForm):
    # The person who fills it in; set by the inline.
    actor: Any = None

    class Meta:
        model = SiteScope
        fields = ("all_sites", "sites")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        all_sites, sites = cleaned.get("all_sites", False), cleaned.get("sites", ())
        if not may_give_sites(self.actor, all_sites=all_sites, sites=sites):
            told = "You cannot give sites that you do not see yourself."
            self.add_error("all_sites" if all_sites else "sites", told)
        return cleaned


class ScopeInline(_Inline):
    """The sites a person sees; without it they see none."""

    model = SiteScope
    form = ScopeForm
    fields = ("all_sites", "sites")
    filter_horizontal = ("sites",)
    can_delete = False
    max_num = 1
    verbose_name = "sites"
    verbose_name_plural = "Sites"

    def get_formset(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        mine = type("ScopeFormOfActor", (ScopeForm,), {"actor": request.user})
        return super().get_formset(request, obj, form=mine, **kwargs)

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "sites":
            kwargs["queryset"] = sites_visible_to(principal_at(request))
        return super().formfield_for_manytomany(db_field, request, **kwargs)


@admin.register(get_user_model())
class PersonAdmin(UserAdmin, AnyModelAdmin):  # type: ignore[type-arg]
    """Who may come in, in which roles, to which sites; switched off, not deleted: the logs name them."""

    form = PersonForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = (
        "username",
        "first_name",
        "last_name",
        "roles",
        "is_active",
        "has_second_factor",
        "last_login",
    )
    list_filter = ("is_active", "is_staff", "groups")
    search_fields = ("username", "first_name", "last_name", "email")
    ordering = ("username",)
    filter_horizontal = ()
    inlines = (ScopeInline,)
    readonly_fields = ("last_login", "date_joined", "has_second_factor", "provider")
    actions_detail = ("second_factor_reset",)
    add_fieldsets = (
        (None, {"classes": ("wide",), "fields": ("username", "usable_password", "password1", "password2")}),
    )

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        if obj is None:
            return self.add_fieldsets
        access = ["is_active", "is_staff", *(["is_superuser"] if request.user.is_superuser else []), "groups"]
        return (
            (None, {"fields": ("username", "password")}),
            ("Person", {"fields": ("first_name", "last_name", "email")}),
            ("Access", {"fields": access}),
            ("Login", {"fields": ("has_second_factor", "provider", "last_login", "date_joined")}),
        )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        confirmed = SecondFactor.objects.filter(user=OuterRef("pk"), confirmed_at__isnull=False)
        people: QuerySet[Any] = super().get_queryset(request).annotate(has_confirmed=Exists(confirmed))
        return people.prefetch_related("groups")

    def get_inline_instances(self, request: HttpRequest, obj: Any = None) -> Any:
        # Name and password first; roles and sites once there is somebody to give them to.
        return [] if obj is None else super().get_inline_instances(request, obj)

    @admin.display(description="roles")
    def roles(self, row: Any) -> str:
        names = [group.name for group in row.groups.all()]
        return ", ".join([*(["all rights"] if row.is_superuser else []), *names]) or "none"

    @admin.display(description="second factor")
    def has_second_factor(self, row: Any) -> str:
        return "set up" if row.has_confirmed else "not set up"

    @admin.display(description="logs in by")
    def provider(self, row: Any) -> str:
        identity = getattr(row, "provider_identity", None)
        return "name and password" if identity is None else str(identity)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return super().has_change_permission(request, obj) and (
            obj is None or may_change_person(request.user, obj)
        )

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - Django's hook
        return False

    def has_reset_permission(self, request: HttpRequest, object_id: Any = None) -> bool:  # noqa: ARG002
        return super().has_change_permission(request)

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "groups":
            kwargs["queryset"] = groups_given_by(request.user)
            kwargs["widget"] = UnfoldAdminCheckboxSelectMultipleWidget()
            field = super().formfield_for_manytomany(db_field, request, **kwargs)
            field.help_text = (
                "Each role may do what those before it may: Viewer, Operator, Engineer, Administrator."
            )
            return field
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change=change, **kwargs)
        if "is_staff" in form.base_fields:
            form.base_fields["is_staff"].label = "May use the console"
        return form

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if not change:
            obj.is_staff = True
        super().save_model(request, obj, form, change)

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> HttpResponse:  # noqa: A002 - Django's name
        response: HttpResponse = super().user_change_password(request, id, form_url)
        if request.method == "POST" and response.status_code == 302:  # noqa: PLR2004 - it was taken
            noted(request, "set password", get_user_model().objects.get(pk=id))
        return response

    # --- the second factor ----------------------------------------------------------------------------------

    @action(description="Reset second factor", url_path="second-factor", permissions=["reset"])
    def second_factor_reset(self, request: HttpRequest, object_id: str) -> HttpResponse:  # noqa: ARG002
        """Lead to the page that asks first."""
        return HttpResponseRedirect(
            reverse(f"{self.admin_site.name}:person_second_factor_reset", args=[object_id])
        )

    def get_urls(self) -> list[URLPattern]:
        reset = path(
            "<int:person_id>/second-factor-reset/",
            self.admin_site.admin_view(self.second_factor_reset_view),
            name="person_second_factor_reset",
        )
        return [reset, *super().get_urls()]

    def second_factor_reset_view(self, request: HttpRequest, person_id: int) -> HttpResponse:
        """Ask, and on POST take away a person's authenticator and recovery codes."""
        person = get_object_or_404(self.get_queryset(request), pk=person_id)
        if not self.has_change_permission(request, person):
            raise PermissionDenied
        if request.method == "POST":
            if factor_reset(person):
                noted(request, "reset second factor", person)
                messages.success(request, f"{person} sets up a new second factor at the next login.")
            else:
                messages.info(request, f"{person} has no second factor.")
            return HttpResponseRedirect(reverse(f"{self.admin_site.name}:auth_user_change", args=[person.pk]))
        asked = (
            f"The authenticator and the recovery codes of {person} end with this."
            " Make sure by telephone or in person that it is they who ask."
        )
        return ask_first(
            self, request, person, title="Reset second factor", asked=asked, button="Reset second factor"
        )


class RoleForm(_GroupForm):
    actor: Any = None

    class Meta:
        model = Group
        fields = ("name", "permissions")

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        held = set(permissions_of_person(self.actor).values_list("pk", flat=True))
        before = set(self.instance.permissions.values_list("pk", flat=True)) if self.instance.pk else set()
        after = {permission.pk for permission in cleaned.get("permissions", ())}
        if not after - before <= held:
            raise ValidationError("You cannot give permissions that you do not have yourself.")
        return cleaned


@admin.register(Group)
class RoleAdmin(GroupAdmin, AnyModelAdmin):
    """The four roles, which come with the software and stay as they are, and groups beside them."""

    list_display = ("name",)
    filter_horizontal = ("permissions",)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        kwargs["form"] = type("RoleFormOfActor", (RoleForm,), {"actor": request.user})
        return super().get_form(request, obj, change=change, **kwargs)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        if obj is not None and (obj.name in _OWN_ROLES or not _holds_all_of(request.user, obj)):
            return False
        return super().has_change_permission(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Not by the list's action, which asks about no single one.
        if obj is None or obj.name in _OWN_ROLES or not _holds_all_of(request.user, obj):
            return False
        return super().has_delete_permission(request, obj)


def _holds_all_of(actor: Any, group: Group) -> bool:
    return bool(groups_given_by(actor).filter(pk=group.pk).exists())
