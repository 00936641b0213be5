"""A closed loop's form: its meter and members are of one site, and what a service would refuse it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.contrib.admin.widgets import FilteredSelectMultiple
from django.core.exceptions import ValidationError
from django.db.models import QuerySet

from devices_app.loops import loop_draft
from devices_app.models import ClosedLoop, Device
from sites_app.models import Site
from smartgrid.errors import SgmError

if TYPE_CHECKING:
    AnyModelForm = forms.ModelForm[Any]
    AnyModelChoiceField = forms.ModelChoiceField[Any]
    AnyMultipleChoiceField = forms.ModelMultipleChoiceField[Any]
else:
    AnyModelForm = forms.ModelForm
    AnyModelChoiceField = forms.ModelChoiceField
    AnyMultipleChoiceField = forms.ModelMultipleChoiceField

Fieldsets = list[tuple[str | None, dict[str, Any]]]

# A service's names for what the form calls otherwise.
FIELD_OF = {"members": "member_devices"}

FIELDSETS: Fieldsets = [
    (None, {"fields": ["loop_tag", "enabled", "meter"]}),
    (
        "Members",
        {
            "fields": ["member_devices", "category"],
            "description": "Name the devices that the loop commands, or give their category.",
        },
    ),
    (
        "What it holds",
        {"fields": ["mode", "setpoint_kw", "export_limit_kw", "import_limit_kw", "storage_first"]},
    ),
    (
        "How",
        {
            "fields": [
                "feed_forward",
                "kp",
                "ki",
                "kd",
                "max_rate_pct_per_s",
                "deadband_kw",
                "time_step_s",
                "stale_after_s",
                "fallback_pct",
            ],
            "description": "The defaults suit most plants; the gains act on what feed-forward leaves.",
        },
    ),
]


class SiteForm(forms.Form):
    """The first step to a new loop: at which site, since meter and members are there."""

    site: ClassVar[Any] = forms.ModelChoiceField(queryset=Site.objects.order_by("site_tag"))


class PlacedDeviceField(AnyModelChoiceField):
    """A device with its node, for meter and members must have the same."""

    def label_from_instance(self, obj: Any) -> str:
        return f"{obj.device_tag} ({obj.node.name})"


class PlacedDevicesField(AnyMultipleChoiceField):
    """Devices with their nodes and nominal power."""

    def label_from_instance(self, obj: Any) -> str:
        rated = "nominal power unknown" if obj.peak_power_kw is None else f"{obj.peak_power_kw:g} kW"
        return f"{obj.device_tag} ({obj.node.name}, {rated})"


class LoopForm(AnyModelForm):
    """Base of the forms that `loop_form` makes for one site each."""

    at: ClassVar[Site]

    class Meta:
        model = ClosedLoop
        fields: ClassVar[list[str]] = []

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean() or self.cleaned_data
        if self.errors:
            return cleaned
        loop = None if self.instance._state.adding else self.instance  # noqa: SLF001 - Django's documented name for it
        try:
            loop_draft(site=self.at, loop=loop, **self.service_values())
        except SgmError as error:
            self._refused(error)
        return cleaned

    def _refused(self, error: SgmError) -> None:
        """What a service refuses stands at the field it is about, if the form has that."""
        for name, texts in error.errors.items():
            field = FIELD_OF.get(name, name)
            for text in texts:
                self.add_error(field if field in self.fields else None, ValidationError(text))
        if not error.errors:
            self.add_error(None, error.detail)

    def service_values(self) -> dict[str, Any]:
        """What the form says in the words of `devices_app.loops`."""
        values = dict(self.cleaned_data)
        values["members"] = list(values.pop("member_devices"))
        values["category"] = values["category"] or None
        return values


def loop_form(site: Site, *, loop: ClosedLoop | None) -> type[LoopForm]:
    """The form of a loop at this site."""
    devices = _devices(site)
    named = [] if loop is None else list(loop.named.values_list("device_id", flat=True))
    return type(
        "LoopForm",
        (LoopForm,),
        {
            "at": site,
            "meter": PlacedDeviceField(
                queryset=devices.filter(measured_only=True) | devices.filter(metered_loops=loop)
                if loop is not None
                else devices.filter(measured_only=True),
                help_text="What measures the power to hold; of the same node as the members.",
            ),
            "member_devices": PlacedDevicesField(
                queryset=devices.filter(measured_only=False) | devices.filter(pk__in=named),
                initial=named,
                required=False,
                label="Members",
                widget=FilteredSelectMultiple("members", is_stacked=False),
            ),
        },
    )


def _devices(site: Site) -> QuerySet[Device]:
    return Device.objects.filter(site=site).select_related("node").order_by("device_tag")
