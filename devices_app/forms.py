"""A device's form: it asks for what the device's type needs, and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.urls import reverse
from django.utils.html import escape, format_html

from devices_app.address import PARITIES, type_parameters, type_profile
from devices_app.choices import ValueKind
from devices_app.models import Device, DeviceType
from devices_app.services import device_draft
from devices_app.type_summary import type_summary
from edge.core.commands import WriteClass
from edge.profiles.address import BAUD_RATES, STOP_BITS
from edge.profiles.model import Profile
from edge.profiles.parameters import Parameter, ParameterType
from edge.profiles.points import Protocol
from smartgrid.errors import SgmError

if TYPE_CHECKING:
    AnyModelForm = forms.ModelForm[Any]
    AnyModelChoiceField = forms.ModelChoiceField[Any]
else:
    AnyModelForm = forms.ModelForm
    AnyModelChoiceField = forms.ModelChoiceField

# A field of a parameter is called so, and then by the parameter's name.
PARAMETER = "parameter_"
# The button that has the device probed, rather than saved.
PROBE = "_probe"
# Which type's fields the form was shown with.
SHOWN_FOR = "shown_for"
PROTOCOL_NAMES = {
    Protocol.MODBUS_TCP: "Modbus TCP",
    Protocol.MODBUS_RTU: "Modbus RTU, over a serial port or a serial device server",
    Protocol.MQTT: "MQTT",
    Protocol.XML_DA: "OPC XML-DA",
    Protocol.HTTP: "HTTP",
    Protocol.PROXY: "other devices of the node",
    Protocol.DEMO: "none: it is simulated in the node",
}

Fieldsets = list[tuple[str | None, dict[str, Any]]]


class ParameterField(forms.Field):
    """One parameter of a profile, judged by the profile itself."""

    def __init__(self, parameter: Parameter) -> None:
        self.parameter = parameter
        widget: forms.Widget = forms.TextInput(attrs={"class": "vTextField"})
        if parameter.choices:
            empty = [("", "as the profile has it" if parameter.default is not None else "choose")]
            widget = forms.Select(choices=empty + [(_text(one), _text(one)) for one in parameter.choices])
        super().__init__(
            label=parameter.title,
            help_text=_help(parameter),
            required=parameter.required,
            initial="" if parameter.default is None else _text(parameter.default),
            widget=widget,
        )

    def prepare_value(self, value: Any) -> Any:
        return _text(value) if isinstance(value, float | int) else value

    def to_python(self, value: Any) -> float | str | None:
        """The value as the profile takes it; None where nothing is said."""
        text = "" if value is None else str(value).strip()
        if not text:
            return None
        try:
            given: object = text
            if self.parameter.type is not ParameterType.TEXT:
                # A decimal comma is what half of Europe types.
                given = float(text.replace(",", "."))
        except ValueError as error:
            raise ValidationError("Expected a number.") from error
        try:
            return self.parameter.check(given)
        except ValueError as error:
            raise ValidationError(f"{str(error).capitalize()}.") from error


def _text(value: float | str) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _help(parameter: Parameter) -> str:
    low, high = parameter.minimum, parameter.maximum
    parts = [parameter.help.strip().rstrip(".")]
    if low is not None and high is not None:
        parts.append(f"{low:g} to {high:g}")
    elif low is not None:
        parts.append(f"{low:g} or more")
    elif high is not None:
        parts.append(f"{high:g} or less")
    if parameter.default is not None:
        parts.append(f"Empty: {_text(parameter.default)}")
    elif parameter.optional:
        parts.append("Empty: the device has no such point")
    elif parameter.example is not None:
        parts.append(f"For example {_text(parameter.example)}")
    # (Django prints a help text as it is.)
    return escape(". ".join(filter(None, parts)) + ("." if any(parts) else ""))


class DeviceForm(AnyModelForm):
    """Base of the forms that `device_form` makes for one type each."""

    kind: ClassVar[DeviceType]
    parameters: ClassVar[dict[str, Parameter]] = {}

    class Meta:
        model = Device
        fields: ClassVar[list[str]] = []

    def __init__(self, data: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(data, *args, **kwargs)
        if self.is_bound and self._is_for_another_type:
            # Shown anew with the fields of the type that was chosen: where nothing was asked yet, as it is
            # in an empty form.
            given: Any = self.data
            given = given.copy()
            for name, field in self.fields.items():
                first = self.get_initial_for_field(field, name)
                if self.add_prefix(name) not in given and first not in (None, False):
                    given[self.add_prefix(name)] = first
            given[SHOWN_FOR] = str(self.kind.pk)
            self.data = given
            self._moved_to_another_type = True

    _moved_to_another_type = False

    @property
    def _is_for_another_type(self) -> bool:
        return str(self.data.get(SHOWN_FOR, self.kind.pk)) != str(self.kind.pk)

    def clean(self) -> dict[str, Any] | None:
        cleaned = super().clean() or self.cleaned_data
        if self._moved_to_another_type:
            raise ValidationError(
                "These are the fields that the type you have chosen needs. Look them over, and save again."
            )
        if self.errors:
            return cleaned
        try:
            self.draft = device_draft(device=self._stored, **self.service_values())
        except SgmError as error:
            self._refused(error)
        if PROBE in self.data:
            # Whatever becomes of the probe, this form is not for saving.
            self.add_error(None, "This was for a probe, and is not saved yet.")
        return cleaned

    draft: Device | None = None

    @property
    def _stored(self) -> Device | None:
        return None if self.instance._state.adding else self.instance  # noqa: SLF001 - Django's documented name for it

    def _refused(self, error: SgmError) -> None:
        """What a service refuses stands at the field it is about, if the form has that."""
        for name, texts in error.errors.items():
            for text in texts:
                self.add_error(name if name in self.fields else None, text)
        if not error.errors:
            self.add_error(None, error.detail)

    def service_values(self) -> dict[str, Any]:
        """What the form says in the words of `devices_app.services`."""
        values = dict(self.cleaned_data)
        values.pop(SHOWN_FOR, None)
        given = {name: values.pop(PARAMETER + name, None) for name in self.parameters}
        if self.parameters or self._stored is not None:
            # Of a former type's none is left.
            values["parameters"] = {name: value for name, value in given.items() if value is not None}
        # Who types nothing leaves it as it is.
        if values.pop("password_clear", False):
            values["password"] = ""
        elif not values.get("password"):
            values.pop("password", None)
        values["device_type"] = self.kind
        return values


def device_form(kind: DeviceType, *, device: Device | None, node: Any = None) -> type[DeviceForm]:
    """The form of a device of this type; `node` is whose devices may control it (a key, or None)."""
    profile = type_profile(kind)
    protocol = _protocol(kind)
    own: dict[str, Any] = {
        "kind": kind,
        "parameters": type_parameters(kind),
        SHOWN_FOR: forms.CharField(widget=forms.HiddenInput, initial=str(kind.pk), required=False),
    }
    for name, parameter in own["parameters"].items():
        field = ParameterField(parameter)
        if device is not None:
            said = device.parameters.get(name)
            field.initial = "" if said is None else _text(said)
        own[PARAMETER + name] = field
    own["device_type"] = KindField(queryset=DeviceType.objects.order_by("category", "name"))
    own["controlled_by"] = forms.ModelChoiceField(
        queryset=_controllers(device, node),
        required=False,
        help_text="The device of the same node whose control point also commands this one.",
    )
    if protocol is not None and protocol.has_url:
        own |= _login(device)
    also = kind.profile_body.get("also", [])
    if also:
        names = [(one, PROTOCOL_NAMES.get(Protocol(one), one)) for one in (kind.protocol, *also)]
        own["protocol"] = _choice([("", f"{names[0][1]} (the type's first)"), *names[1:]])
    if protocol is not None and _has_serial(kind, protocol):
        own |= _line_settings(profile)
    return type("DeviceForm", (DeviceForm,), own)


def _controllers(device: Device | None, node: Any) -> QuerySet[Device]:
    """Devices whose control point may command another one of their node."""
    rows = Device.objects.filter(node_id=node, measured_only=False) if node else Device.objects.none()
    rows = rows.exclude(pk=device.pk) if device is not None else rows
    return rows.order_by("device_tag")


def _choice(
    choices: list[tuple[Any, str]], *, coerce: Callable[[Any], Any] = str, **kwargs: Any
) -> forms.Field:
    return forms.TypedChoiceField(choices=choices, coerce=coerce, empty_value=None, required=False, **kwargs)


def _login(device: Device | None) -> dict[str, Any]:
    is_set = device is not None and bool(device.password_encrypted)
    fields: dict[str, Any] = {
        "password": forms.CharField(
            required=False,
            strip=False,
            max_length=500,
            widget=forms.PasswordInput(render_value=False, attrs={"autocomplete": "new-password"}),
            help_text="Set. Type another one to change it." if is_set else "Not set.",
        )
    }
    if is_set:
        fields["password_clear"] = forms.BooleanField(label="Forget the password", required=False)
    return fields


def _line_settings(profile: Profile | None) -> dict[str, Any]:
    first = {"baud_rate": "", "parity": "", "stop_bits": ""}
    if profile is not None:
        first = {
            "baud_rate": f": {profile.default_baud_rate}",
            "parity": f": {profile.default_parity.value}",
            "stop_bits": f": {profile.default_stop_bits}",
        }
    return {
        "baud_rate": _choice(
            [("", f"the maker's{first['baud_rate']}"), *((rate, str(rate)) for rate in BAUD_RATES)],
            coerce=int,
        ),
        "parity": _choice([("", f"the maker's{first['parity']}"), *PARITIES]),
        "stop_bits": _choice(
            [("", f"the maker's{first['stop_bits']}"), *((bits, str(bits)) for bits in STOP_BITS)], coerce=int
        ),
    }


def _protocol(kind: DeviceType) -> Protocol | None:
    return Protocol(kind.protocol) if kind.protocol in list(Protocol) else None


def _has_serial(kind: DeviceType, protocol: Protocol) -> bool:
    return Protocol.MODBUS_RTU in (protocol, *kind.profile_body.get("also", []))


def device_fieldsets(kind: DeviceType, *, device: Device | None) -> Fieldsets:
    """What to ask of a device of this type, and what to show of it."""
    profile = type_profile(kind)
    is_controllable = profile is None or profile.controllable
    sets: Fieldsets = [
        (
            None,
            {
                "description": _about(kind),
                "fields": [
                    "device_type",
                    SHOWN_FOR,
                    "node",
                    "device_tag",
                    "category",
                    "peak_power_kw",
                    "telemetry_s",
                    "meta_data",
                ],
            },
        )
    ]
    sets += _address_fieldsets(kind, device)
    parameters = [PARAMETER + name for name in type_parameters(kind)]
    if parameters:
        about = "What the profile leaves open to each device of the type."
        sets.append(("Parameters", {"fields": parameters, "description": about}))
    if is_controllable:
        sets.append(("Control", {"fields": _control_fields(kind, profile, device)}))
    else:
        about = "A device of this type is only measured."
        sets.append(("Control", {"fields": ["controlled_by"], "description": about}))
    return sets


def _about(kind: DeviceType) -> str:
    """What the type can do, and how far that can be relied on."""
    summary = type_summary(kind)
    can = "its profile cannot be used" if summary is None else summary.capability
    known = "" if summary is None else f"; confidence: {summary.confidence}"
    seen = "verified on hardware" if kind.verified_on_hardware else "not verified on hardware"
    page = reverse("admin:devices_app_devicetype_change", args=[kind.pk])
    return format_html('<a href="{}">{}</a>: {}{}; {}.', page, kind.name, can, known, seen)


def _address_fieldsets(kind: DeviceType, device: Device | None) -> Fieldsets:
    protocol = _protocol(kind)
    choice = ["protocol"] if kind.profile_body.get("also") else []
    if protocol is None or protocol.is_inside:
        about = PROTOCOL_NAMES[protocol] if protocol is not None else f"unknown here: {kind.protocol}"
        return (
            [("Address", {"fields": [], "description": f"Nothing to ask for: {about}."})] if protocol else []
        )
    if protocol.has_url:
        forget = ["password_clear"] if device is not None and device.password_encrypted else []
        return [("Address", {"fields": ["url", "username", "password", *forget]})]
    network = ["modbus_server_host", "modbus_server_port"]
    if not _has_serial(kind, protocol):
        return [("Address", {"fields": [*network, "modbus_id"]})]
    about = "Leave host and port empty where it is on a serial port of the node."
    return [
        ("Address", {"fields": [*choice, "modbus_id", *network], "description": about}),
        ("Serial port", {"fields": ["serial_port", "baud_rate", "parity", "stop_bits"]}),
    ]


def _control_fields(kind: DeviceType, profile: Profile | None, device: Device | None) -> list[str]:
    fields = ["measured_only", "controlled_by"]
    if device is not None and device.measured_only:
        return fields
    fields += ["include_in_curtailment", "min_value", "max_value", "default_value"]
    if kind.value_kind == ValueKind.SIGNED_SETPOINT:
        fields.append("default_confirmed")
    fields.append("lifetime")
    limit = profile.limit if profile is not None else None
    if limit is None or limit.write_class is not WriteClass.PERSISTENT:
        # Those that wear take no ramp (design, rule 13).
        fields.append("ramp_pct_per_min")
    own = limit.fallback if limit is not None else None
    wears = limit is None or limit.write_class is not WriteClass.VOLATILE
    if wears or (own is not None and own.keep_alive_class is not WriteClass.VOLATILE):
        fields.append("accept_wear")
    if limit is None or (own is not None and own.takes != "value" and not own.always_armed):
        fields.append("arm_fallback")
    return fields


def device_initial(kind: DeviceType) -> dict[str, Any]:
    """What a new device of this type begins with."""
    profile = type_profile(kind)
    initial: dict[str, Any] = {
        "device_type": kind.pk,
        "category": kind.category,
        "min_value": kind.min_value,
        "max_value": kind.max_value,
        "default_value": kind.default_value,
    }
    if profile is None:
        return initial
    if profile.protocol.is_modbus:
        initial |= {"modbus_server_port": profile.default_port, "modbus_id": profile.default_unit}
    if profile.protocol.has_url:
        initial["url"] = profile.default_url
    return initial


class KindField(AnyModelChoiceField):
    """A device type, with what nobody should overlook when he chooses it."""

    def label_from_instance(self, obj: Any) -> str:
        seen = "" if obj.verified_on_hardware else " (not verified on hardware)"
        return f"{obj.category}: {obj.name}{seen}"


class KindForm(forms.Form):
    """The first step to a new device: of which type it is, since that is what the rest depends on."""

    device_type = KindField(queryset=DeviceType.objects.order_by("category", "name"), label="Type")
