"""Device types, devices and what is retiring in the console; every change goes through a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import flatten_fieldsets
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Model, QuerySet
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from unfold.admin import TabularInline
from unfold.decorators import display

import devices_app.loop_admin  # noqa: F401 - registers closed loops
from devices_app import services
from devices_app.address import type_profile
from devices_app.forms import PROBE, DeviceForm, KindForm, device_fieldsets, device_form, device_initial
from devices_app.models import Device, DeviceBound, DeviceType, Probe, RetiringDevice, TelemetrySeries
from devices_app.probes import probe_ask, probe_settle
from devices_app.retirement import device_abandon
from devices_app.selectors import (
    device_loops,
    device_node_says,
    probe_verdict,
    retiring_kept_by,
    series_with_newest,
)
from devices_app.type_summary import TypeSummary, type_summary
from sites_app.models import Node
from smartgrid.admin import AnyModelAdmin, LeadsToControl, ServiceAdmin, sites_seen
from smartgrid.errors import SgmError

if TYPE_CHECKING:
    AnyTabularInline = admin.TabularInline[Any, Any]
    AnyModelForm = forms.ModelForm[Any]
else:
    AnyTabularInline = TabularInline
    AnyModelForm = forms.ModelForm


NOT_ON_HARDWARE = "not verified on hardware"
# The colour beside each word, by Unfold's names.
CONFIDENCE_COLOURS = {
    "verified": "success",
    "verified_twice": "success",
    "derived": "info",
    "unverified": "warning",
    "disputed": "danger",
}


class SummaryFilter(admin.SimpleListFilter):
    """A filter by what stands in the types' profiles; there are some dozens of types."""

    def told(self, summary: TypeSummary) -> str:
        """The word by which a type is found."""
        raise NotImplementedError

    def _by_word(self, model_admin: Any, request: HttpRequest) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for kind in model_admin.get_queryset(request):
            summary = type_summary(kind)
            if summary is not None and (word := self.told(summary)):
                found.setdefault(word, []).append(kind.pk)
        return found

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(word, word) for word in sorted(self._by_word(model_admin, request))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:  # noqa: ARG002 - Django's hook
        if self.value() is None:
            return queryset
        wanted = [
            kind.pk
            for kind in queryset
            if (summary := type_summary(kind)) is not None and self.told(summary) == self.value()
        ]
        return queryset.filter(pk__in=wanted)


class ConfidenceFilter(SummaryFilter):
    title = "confidence"
    parameter_name = "confidence"

    def told(self, summary: TypeSummary) -> str:
        return summary.confidence


class WriteClassFilter(SummaryFilter):
    title = "write class"
    parameter_name = "write_class"

    def told(self, summary: TypeSummary) -> str:
        control = summary.capabilities.control
        return "only measured" if control is None else control.write_class.value


class OwnFallbackFilter(SummaryFilter):
    title = "own fallback"
    parameter_name = "own_fallback"

    def told(self, summary: TypeSummary) -> str:
        own = summary.capabilities.fallback
        if own is None:
            return "none" if summary.capabilities.control is not None else ""
        return own.takes


@admin.register(DeviceType)
class DeviceTypeAdmin(ServiceAdmin):
    list_display = [
        "name",
        "category",
        # First what a person must not overlook on a narrow screen.
        "confidence",
        "on_hardware",
        "capability",
        "write_class",
        "own_fallback",
        "protocols",
    ]
    list_filter = [
        "category",
        "protocol",
        ConfidenceFilter,
        WriteClassFilter,
        OwnFallbackFilter,
        "verified_on_hardware",
    ]
    search_fields = ["name", "profile", "id"]
    ordering = ["category", "name"]
    readonly_fields = ["id", "created_at", "on_hardware"]
    fields = [
        "id",
        "created_at",
        "name",
        "profile",
        "on_hardware",
        "category",
        "protocol",
        "value_kind",
        "min_value",
        "max_value",
        "default_value",
        "lifetime",
    ]
    # The profile's facts come with this version of the software (`sync_device_types`).
    of_the_profile = (
        "profile",
        "category",
        "protocol",
        "value_kind",
        "min_value",
        "max_value",
        "default_value",
    )
    change_form_template = "admin/devices_app/devicetype/change_form.html"

    def save_by_service(self, *, row: Any, values: dict[str, Any], is_new: bool) -> Model:
        if is_new:
            return services.device_type_create(**values)
        return services.device_type_update(device_type=row, **values)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        theirs = () if obj is None else self.of_the_profile if obj.profile_body else ("profile",)
        return [*super().get_readonly_fields(request, obj), *theirs]

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> Any:
        kind = kwargs.get("obj")
        if kind is not None:
            context["summary"] = type_summary(kind)
            context["on_hardware"] = kind.verified_on_hardware
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.display(description="protocols", ordering="protocol")
    def protocols(self, row: DeviceType) -> str:
        summary = type_summary(row)
        return row.protocol if summary is None else summary.protocols

    @admin.display(description="what it can do")
    def capability(self, row: DeviceType) -> str:
        summary = type_summary(row)
        return "its profile cannot be used" if summary is None else summary.capability_in_short

    @admin.display(description="write class")
    def write_class(self, row: DeviceType) -> str:
        summary = type_summary(row)
        return "" if summary is None else summary.write_class

    @admin.display(description="own fallback")
    def own_fallback(self, row: DeviceType) -> str:
        summary = type_summary(row)
        return "" if summary is None else summary.own_fallback

    @display(description="confidence", label=CONFIDENCE_COLOURS)
    def confidence(self, row: DeviceType) -> str:
        summary = type_summary(row)
        return "" if summary is None else summary.confidence

    @display(
        description="on hardware",
        ordering="verified_on_hardware",
        label={"verified": "success", NOT_ON_HARDWARE: "warning"},
    )
    def on_hardware(self, row: DeviceType) -> str:
        return "verified" if row.verified_on_hardware else NOT_ON_HARDWARE


class DeviceBoundInline(AnyTabularInline):
    model = DeviceBound
    extra = 0


# For those who may only look.
SEEN_OF_A_DEVICE = [
    "device_type",
    "node",
    "device_tag",
    "category",
    "peak_power_kw",
    "min_value",
    "max_value",
    "default_value",
    "include_in_curtailment",
    "measured_only",
    "controlled_by",
    "modbus_server_host",
    "modbus_server_port",
    "modbus_id",
    "serial_port",
    "url",
    "username",
    "parameters",
]
SHOWN_OF_A_DEVICE = [
    "id",
    "created_at",
    "config_id",
    "control_point",
    "value",
    "value_sequence",
    "node_says",
    "closed_loops",
    "last_probe",
]


@admin.register(Device)
class DeviceAdmin(LeadsToControl, ServiceAdmin):
    site_path = "site"
    control_parameter = "device"
    actions = ["curtail_marked", "release_marked"]
    list_display = [
        "device_tag",
        "site",
        "node",
        "device_type",
        "category",
        "value",
        "include_in_curtailment",
        "measured_only",
        "controlled_by",
    ]
    list_filter = [
        "category",
        "include_in_curtailment",
        "measured_only",
        "accept_wear",
        "site",
        "device_type",
    ]
    search_fields = ["device_tag", "id", "site__site_tag", "node__name", "modbus_server_host"]
    list_select_related = ["site", "node", "device_type", "controlled_by"]
    readonly_fields = SHOWN_OF_A_DEVICE
    inlines = [DeviceBoundInline]
    may_delete = True

    # --- a form for each type -------------------------------------------------------------------------

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """First of which type it is: what to ask for depends on that."""
        if self._kind(request, None) is None and self.has_add_permission(request):
            context = {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "title": "Add device: of which type?",
                "form": KindForm(request.GET if "device_type" in request.GET else None),
                # What the way here has already settled.
                "settled": [(key, value) for key, value in request.GET.items() if key != "device_type"],
            }
            return TemplateResponse(request, "admin/devices_app/device/choose_type.html", context)
        return super().add_view(request, form_url, extra_context)

    def _kind(self, request: HttpRequest, obj: Device | None) -> DeviceType | None:
        """The type whose fields the form has: the one chosen in it, else the device's own."""
        chosen = request.POST.get("device_type") or request.GET.get("device_type")
        try:
            found = DeviceType.objects.filter(pk=chosen).first() if chosen else None
        except ValidationError:
            found = None
        return found or (obj.device_type if obj is not None else None)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        kind = self._kind(request, obj)
        if kind is None:
            return [(None, {"fields": ["device_type", "node", "device_tag"]})]
        if obj is not None and not self.has_change_permission(request, obj):
            return [(None, {"fields": [*SEEN_OF_A_DEVICE, *SHOWN_OF_A_DEVICE]})]
        shown = [("As it is", {"fields": SHOWN_OF_A_DEVICE})] if obj is not None else []
        return [*device_fieldsets(kind, device=obj), *shown]

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        kind = self._kind(request, obj)
        if kind is not None:
            node = request.POST.get("node") or request.GET.get("node") or (obj.node_id if obj else None)
            kwargs["form"] = device_form(kind, device=obj, node=self._node_seen(request, _key(node)))
        return super().get_form(request, obj, change, **kwargs)

    def _node_seen(self, request: HttpRequest, node: UUID | None) -> UUID | None:
        """That node, where it is of a site that this person sees: its devices are offered."""
        if node is None:
            return None
        seen = Node.objects.filter(pk=node, site__in=sites_seen(request).order_by())
        return node if seen.exists() else None

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        kind = self._kind(request, None)
        settled = super().get_changeform_initial_data(request)
        return {**(device_initial(kind) if kind is not None else {}), **settled}

    def get_inline_instances(self, request: HttpRequest, obj: Any = None) -> Any:
        """Nobody bounds what is only measured."""
        kind = self._kind(request, obj)
        profile = type_profile(kind) if kind is not None else None
        is_measured = (obj is not None and obj.measured_only) or (
            profile is not None and profile.limit is None
        )
        return [] if is_measured else super().get_inline_instances(request, obj)

    @admin.display(description="what its node says")
    def node_says(self, row: Device) -> str:
        return device_node_says(row)

    @admin.display(description="closed loops")
    def closed_loops(self, row: Device) -> str:
        """Those it is the meter or a member of, with the way to them."""
        return (
            format_html_join(
                ", ",
                '{} <a href="{}">{}</a>',
                (
                    (role, reverse("admin:devices_app_closedloop_change", args=[loop.pk]), loop.loop_tag)
                    for role, loop in device_loops(row)
                ),
            )
            or "none"
        )

    # --- a look at the device, before it is saved or after ------------------------------------------------

    change_form_template = "admin/devices_app/device/change_form.html"

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        if request.method == "POST" and PROBE in request.POST:
            asked = self._probe(request, object_id)
            if asked is not None:
                return asked
        return super().changeform_view(request, object_id, form_url, extra_context)

    def _probe(self, request: HttpRequest, object_id: str | None) -> HttpResponse | None:
        """Have the device probed as the form has it; None where the form has to be corrected first."""
        device = self.get_object(request, object_id) if object_id is not None else None
        if object_id is None:
            may = self.has_add_permission(request)
        else:
            may = device is not None and self.has_change_permission(request, device)
        if not may:
            raise PermissionDenied
        fieldsets = self.get_fieldsets(request, device)
        kind = self.get_form(request, device, change=device is not None, fields=flatten_fieldsets(fieldsets))
        form = kind(request.POST, instance=device)
        form.is_valid()
        if form.draft is None:
            return None
        stored = Device.objects.get(pk=device.pk) if device is not None else None
        try:
            probe = probe_ask(
                by=request.user.get_username(),
                device=stored,
                draft=form.draft,
            )
        except SgmError as error:
            messages.error(request, str(error))
            return HttpResponseRedirect(reverse("admin:devices_app_probe_changelist"))
        return HttpResponseRedirect(reverse("admin:devices_app_probe_change", args=[probe.pk]))

    @admin.display(description="last probe")
    def last_probe(self, row: Device) -> str:
        probe = row.probes.order_by("-asked_at").first()
        if probe is None:
            return "never"
        return format_html(
            '<a href="{}">{}</a>, <a href="{}?device__id__exact={}">all of them</a>',
            reverse("admin:devices_app_probe_change", args=[probe.pk]),
            f"{probe_verdict(probe)}, {probe.asked_at:%Y-%m-%d %H:%M}Z, asked by {probe.asked_by}",
            reverse("admin:devices_app_probe_changelist"),
            row.pk,
        )

    # --- changes go through services --------------------------------------------------------------------

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool) -> None:
        assert isinstance(form, DeviceForm)
        values = {**form.service_values(), "by": request.user.get_username()}
        saved = self.save_by_service(row=obj, values=values, is_new=not change)
        # The admin goes on with the row as the service stored it.
        obj.__dict__.update(saved.__dict__)

    def save_by_service(self, *, row: Any, values: dict[str, Any], is_new: bool) -> Model:
        if is_new:
            return services.device_create(**values)
        # First, so that what is changed with the move is judged at the new node.
        moved = services.device_move(device=row, node=values.pop("node"))
        return services.device_update(device=moved, **values)

    def save_related(self, request: HttpRequest, form: ModelForm[Any], formsets: Any, change: bool) -> None:  # noqa: ARG002 - Django's hook
        by = request.user.get_username()
        for formset in formsets:
            # Saves nothing, but notes what has changed for the console's own history.
            formset.save(commit=False)
            for bound in formset.deleted_objects:
                services.device_bound_drop(device=form.instance, origin=_origin_stored(bound), by=by)
            for bound, changed in formset.changed_objects:
                if "origin" in changed:
                    services.device_bound_drop(device=form.instance, origin=_origin_stored(bound), by=by)
                _bound_set(form.instance, bound, by=by)
            for bound in formset.new_objects:
                _bound_set(form.instance, bound, by=by)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        services.device_delete(device=obj, by=request.user.get_username())


def _key(text: Any) -> UUID | None:
    try:
        return UUID(str(text)) if text else None
    except ValueError:
        return None


def _origin_stored(bound: DeviceBound) -> str:
    return DeviceBound.objects.values_list("origin", flat=True).get(pk=bound.pk)


def _bound_set(device: Device, bound: DeviceBound, *, by: str) -> None:
    services.device_bound_set(
        device=device,
        origin=bound.origin,
        minimum=bound.minimum,
        maximum=bound.maximum,
        reason=bound.reason,
        by=by,
    )


class AbandonForm(AnyModelForm):
    """Nobody abandons a device by a slip of the hand: its tag is typed again."""

    tag = forms.CharField(
        label="Repeat the tag to abandon it",
        help_text="The device may keep the last value for good. Its tag and control point are free at once.",
    )
    why = forms.CharField(label="Why", max_length=500)

    class Meta:
        model = RetiringDevice
        fields: list[str] = []


@admin.register(RetiringDevice)
class RetiringDeviceAdmin(ServiceAdmin):
    """What nodes have yet to let go of: to read, and to abandon by name."""

    site_path = "site"
    list_display = [
        "device_tag",
        "site",
        "node",
        "reason",
        "since",
        "kept_by",
        "abandoned_at",
        "abandoned_by",
    ]
    list_filter = ["site", "node", ("abandoned_at", admin.EmptyFieldListFilter)]
    search_fields = ["device_tag", "control_point", "node__name", "site__site_tag"]
    list_select_related = ["site", "node"]
    form = AbandonForm
    readonly_fields = [
        "device_tag",
        "control_point",
        "site",
        "node",
        "reason",
        "since",
        "kept_by",
        "gone_from_version",
        "config_id",
        "abandoned_at",
        "abandoned_by",
        "abandoned_why",
    ]

    @admin.display(description="what keeps it")
    def kept_by(self, row: RetiringDevice) -> str:
        return retiring_kept_by(row)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        may_abandon = self.has_change_permission(request, obj)
        return [*self.readonly_fields, *(["tag", "why"] if may_abandon else [])]

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's hook
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        is_over = obj is not None and obj.is_abandoned
        return not is_over and super().has_change_permission(request, obj)

    def save_model(self, request: HttpRequest, obj: Any, form: ModelForm[Any], change: bool) -> None:
        form.cleaned_data["by"] = request.user.get_username()
        super().save_model(request, obj, form, change)

    def save_by_service(self, *, row: Any, values: dict[str, Any], is_new: bool) -> Model:  # noqa: ARG002
        return device_abandon(retiring=row, **values)


@admin.register(Probe)
class ProbeAdmin(AnyModelAdmin):
    """What nodes found when they looked at their devices: to read, and kept as it was."""

    site_path = "node__site"
    list_display = ["asked_at", "device_tag", "node", "device_type", "verdict", "asked_by"]
    list_filter = ["state", "node__site", "device_type"]
    search_fields = ["device_tag", "device__id", "node__name", "asked_by"]
    list_select_related = ["node", "device_type"]
    date_hierarchy = "asked_at"
    change_form_template = "admin/devices_app/probe/change_form.html"

    def get_queryset(self, request: HttpRequest) -> QuerySet[Probe]:
        return super().get_queryset(request).defer("candidate")

    @admin.display(description="result")
    def verdict(self, row: Probe) -> str:
        return probe_verdict(row)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        key = _key(object_id)
        if key is not None and request.method == "GET" and self.has_view_permission(request):
            found = self.get_queryset(request).filter(pk=key).exists()
            probe = probe_settle(probe_id=key) if found else None
            if probe is not None:
                extra_context = {**(extra_context or {}), "probe": probe, "verdict": probe_verdict(probe)}
        return super().change_view(request, object_id, form_url, extra_context)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002 - the same
        """Whoever may see a device may see what a look at it brought."""
        return request.user.has_perm("devices_app.view_device") or request.user.has_perm(
            "devices_app.change_device"
        )

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's hook
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False


@admin.register(TelemetrySeries)
class TelemetrySeriesAdmin(AnyModelAdmin):
    """What is measured, and what it was last: to look at only."""

    list_display = ["source_name", "key", "newest_value", "unit", "newest_at", "site"]
    list_filter = ["key", "site"]
    search_fields = ["name", "device__device_tag", "key", "site__site_tag", "device__id"]
    show_full_result_count = False
    list_per_page = 50

    site_path = "site"

    def get_queryset(self, request: HttpRequest) -> QuerySet[TelemetrySeries]:
        return series_with_newest().filter(pk__in=super().get_queryset(request).order_by().values("pk"))

    @admin.display(description="newest value")
    def newest_value(self, row: Any) -> str:
        return "" if row.newest_value is None else f"{row.newest_value:g}"

    @admin.display(description="measured at")
    def newest_at(self, row: Any) -> Any:
        return row.newest_at

    def has_add_permission(self, request: HttpRequest) -> bool:  # noqa: ARG002 - Django's hook
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:  # noqa: ARG002
        return False
