"""Curtail and release from the console: choose, see what would happen, confirm, watch it happen."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django import forms
from django.conf import settings
from django.contrib import messages
from django.db import connections
from django.http import Http404, HttpRequest, HttpResponseRedirect, QueryDict
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode

from control_app.advice import advice
from control_app.chains import request_chains
from control_app.models import ControlRequest, Kind, Unit
from control_app.previews import ControlPreview, category_preview
from control_app.repeats import request_key
from control_app.selectors import (
    control_requests_visible_to,
    controllable_devices,
    requests_under_way,
)
from control_app.services import UnderWay, curtail_begin, release_begin
from devices_app.models import Device
from edge.wire.messages import DevicePreview
from sites_app.models import Site
from sites_app.selectors import sites_visible_to
from smartgrid.api.principal import Principal
from smartgrid.console.audit import noted
from smartgrid.console.carrying import carry_on
from smartgrid.console.pages import page, show
from smartgrid.console.people import principal_at
from smartgrid.console.roles import CURTAIL
from smartgrid.errors import InProgress, SgmError

SITES_AT_ONCE = 50
# Nodes of so many sites are asked at once what they would do.
ASKED_AT_ONCE = 16
CHOOSE, PREVIEW, CONFIRM = "choose", "preview", "confirm"
ALL, SOME = "all", "some"
VIEW_REQUEST = "control_app.view_controlrequest"
# A request's id follows from the form it came by, so that the same form makes the same request.
_REQUESTS = UUID("6b1f3f0e-5a0f-4b63-9a3e-0d3f0c9f6a35")


# --- what was chosen ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chosen:
    """The sites a form is about, what of them can be set, and which devices the person pointed at."""

    kind: Kind
    principal: Principal
    sites: list[Site]
    devices: list[Device]
    pointed_at: frozenset[UUID]

    @property
    def categories(self) -> list[str]:
        return sorted({device.category for device in self.devices})

    def wanted(self, form: ControlForm) -> list[Device]:
        """The devices a form asks for."""
        category, some = form.cleaned_data["category"], form.cleaned_data["scope"] == SOME
        return [
            device
            for device in self.devices
            if (not category or device.category == category) and (not some or device.pk in self.pointed_at)
        ]


def _chosen(request: HttpRequest, kind: Kind, data: QueryDict) -> Chosen:
    """`Http404` for a site or device out of sight, which looks as one that is not there."""
    principal = principal_at(request)
    site_ids, device_ids = _keys(data.getlist("site")), _keys(data.getlist("device"))
    if device_ids and not site_ids:
        pointed_at = controllable_devices(principal, _sites_of_devices(principal, device_ids))
        site_ids = {device.site_id for device in pointed_at if device.pk in device_ids}
    sites = list(sites_visible_to(principal).filter(pk__in=site_ids)[: SITES_AT_ONCE + 1])
    if len(sites) < min(len(site_ids), SITES_AT_ONCE + 1):
        raise Http404
    devices = list(controllable_devices(principal, [site.pk for site in sites]))
    return Chosen(kind, principal, sites, devices, frozenset(device_ids))


def _sites_of_devices(principal: Principal, device_ids: set[UUID]) -> list[UUID]:
    visible = Device.objects.filter(pk__in=device_ids, site__in=sites_visible_to(principal).order_by())
    return list(visible.order_by().values_list("site_id", flat=True).distinct())


def _keys(given: Sequence[str]) -> set[UUID]:
    try:
        return {UUID(key) for key in given}
    except ValueError as error:
        raise Http404 from error


class ControlForm(forms.Form):
    """What to ask of the chosen sites; whether the devices may take it is the service's to say."""

    category = forms.CharField(max_length=64, required=False)
    value = forms.FloatField(required=False)
    unit = forms.ChoiceField(choices=Unit.choices, required=False)
    scope = forms.ChoiceField(
        choices=[(ALL, "All of them"), (SOME, "Only those marked below")], required=False
    )
    reason = forms.CharField(max_length=500, required=False)
    key = forms.RegexField(r"\A[0-9a-f]{32}\Z", required=False)

    def __init__(self, data: Any, *, chosen: Chosen) -> None:
        super().__init__(data)
        self.chosen = chosen

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        cleaned["scope"] = cleaned.get("scope") or ALL
        cleaned["unit"] = cleaned.get("unit") or Unit.PERCENT
        category = cleaned.get("category", "")
        if category and category not in self.chosen.categories:
            self.add_error("category", f"No device of category {category} can be set here. Choose another.")
        if self.chosen.kind is Kind.CURTAIL:
            if not category and "category" not in self.errors:
                self.add_error("category", "Choose what kind of devices to curtail.")
            if cleaned.get("value") is None and "value" not in self.errors:
                self.add_error("value", "Enter the value to hold the devices at.")
        if not self.errors and cleaned["scope"] == SOME and not self.chosen.wanted(self):
            self.add_error("scope", "Mark at least one device of the category, or choose all of them.")
        return cleaned

    def tags(self, site: Site) -> list[str] | None:
        """The devices asked for at one site; None: all of them."""
        if self.cleaned_data["scope"] == ALL:
            return None
        return [device.device_tag for device in self.chosen.wanted(self) if device.site_id == site.pk]

    @property
    def sites(self) -> list[Site]:
        """Those with a device that is asked for."""
        wanted = {device.site_id for device in self.chosen.wanted(self)}
        return [site for site in self.chosen.sites if site.pk in wanted]


# --- pages ----------------------------------------------------------------------------------------


@page("curtail/", name="console_curtail", permission=CURTAIL, methods=("GET", "HEAD", "POST"))
def curtail(request: HttpRequest) -> HttpResponseBase:
    return _control(request, Kind.CURTAIL)


@page("release/", name="console_release", permission=CURTAIL, methods=("GET", "HEAD", "POST"))
def release(request: HttpRequest) -> HttpResponseBase:
    return _control(request, Kind.RELEASE)


def _control(request: HttpRequest, kind: Kind) -> HttpResponseBase:
    data = request.POST if request.method == "POST" else request.GET
    chosen = _chosen(request, kind, data)
    step = request.POST.get("step", CHOOSE)
    if step not in {PREVIEW, CONFIRM} or not chosen.sites or len(chosen.sites) > SITES_AT_ONCE:
        return _choose(request, chosen, data)
    form = ControlForm(data, chosen=chosen)
    if not form.is_valid():
        return _choose(request, chosen, data, form=form)
    if step == PREVIEW:
        return _preview(request, chosen, form)
    return _confirm(request, chosen, form)


def _choose(
    request: HttpRequest, chosen: Chosen, data: QueryDict, *, form: ControlForm | None = None
) -> HttpResponseBase:
    category = data.get("category", "")
    listed = [device for device in chosen.devices if not category or device.category == category]
    if form is not None:
        # Whoever chose the wrong category sees the others too.
        listed = chosen.devices
    context = {
        "chosen": chosen,
        "is_curtail": chosen.kind is Kind.CURTAIL,
        "too_many": len(chosen.sites) > SITES_AT_ONCE,
        "sites_at_once": SITES_AT_ONCE,
        "listed": listed,
        "data": data,
        "errors": {} if form is None else form.errors,
        "scope": data.get("scope") or (SOME if chosen.pointed_at else ALL),
        "units": Unit.choices,
    }
    return show(request, "console/control_choose.html", title=_title(chosen), context=context)


def _title(chosen: Chosen) -> str:
    verb = "Curtail" if chosen.kind is Kind.CURTAIL else "Release"
    match len(chosen.sites):
        case 0:
            return verb
        case 1:
            return f"{verb} {chosen.sites[0].name}"
        case number:
            return f"{verb} {number} sites"


# --- what would happen ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """A device, and what a request would do to it; `reason`: why nothing."""

    tag: str
    device: Device | None
    would: DevicePreview | None = None
    reason: str = ""

    @property
    def next(self) -> str:
        return advice(self.reason) if self.reason else ""


@dataclass(frozen=True, slots=True)
class SitePreview:
    """What would happen at one site; `refusal`: why nothing at all."""

    site: Site
    rows: list[PreviewRow] = field(default_factory=list)
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Affected:
    """How much of the plant a request is about. `unknown`: devices whose nameplate nobody entered."""

    sites: list[Site]
    devices: int
    nameplate_kw: float
    unknown: int

    @property
    def to_type(self) -> str:
        """What the person has to type before it is carried out; empty: nothing."""
        is_large = self.nameplate_kw > settings.SGM_CONSOLE_TYPED_CONFIRMATION_KW or self.unknown
        if not is_large:
            return ""
        return self.sites[0].site_tag if len(self.sites) == 1 else str(len(self.sites))


def _affected(chosen: Chosen, form: ControlForm) -> Affected:
    devices = chosen.wanted(form)
    return Affected(
        sites=form.sites,
        devices=len(devices),
        nameplate_kw=sum(device.peak_power_kw or 0 for device in devices),
        unknown=sum(device.peak_power_kw is None for device in devices),
    )


def _preview(
    request: HttpRequest,
    chosen: Chosen,
    form: ControlForm,
    *,
    mistyped: str = "",
    refusals: Sequence[str] = (),
) -> HttpResponseBase:
    affected = _affected(chosen, form)
    context = {
        "chosen": chosen,
        "is_curtail": chosen.kind is Kind.CURTAIL,
        "form": form.cleaned_data,
        "previews": _previews(chosen, form),
        "affected": affected,
        # Kept when the same form comes again, so that a second confirmation finds the first.
        "key": form.cleaned_data["key"] or uuid.uuid4().hex,
        "mistyped": mistyped,
        "refusals": refusals,
        "others": requests_under_way(
            chosen.principal, [site.pk for site in affected.sites], now=timezone.now()
        ),
    }
    return show(request, "console/control_preview.html", title=_title(chosen), context=context)


def _previews(chosen: Chosen, form: ControlForm) -> list[SitePreview]:
    if chosen.kind is Kind.RELEASE:
        wanted = chosen.wanted(form)
        return [
            SitePreview(
                site,
                [PreviewRow(device.device_tag, device) for device in wanted if device.site_id == site.pk],
            )
            for site in form.sites
        ]
    if len(form.sites) == 1:
        return [_site_preview(chosen, form, form.sites[0])]
    with ThreadPoolExecutor(max_workers=ASKED_AT_ONCE, thread_name_prefix="preview") as threads:
        return list(threads.map(lambda site: _site_preview_apart(chosen, form, site), form.sites))


def _site_preview_apart(chosen: Chosen, form: ControlForm, site: Site) -> SitePreview:
    try:
        return _site_preview(chosen, form, site)
    finally:
        connections.close_all()


def _site_preview(chosen: Chosen, form: ControlForm, site: Site) -> SitePreview:
    try:
        told = category_preview(
            principal=chosen.principal,
            site_id=site.pk,
            category=form.cleaned_data["category"],
            value=form.cleaned_data["value"],
            device_tags=form.tags(site),
            unit=Unit(form.cleaned_data["unit"]),
        )
    except SgmError as refusal:
        return SitePreview(site, refusal=_sentence(refusal))
    return SitePreview(
        site,
        _rows(
            told, {device.device_tag: device for device in chosen.wanted(form) if device.site_id == site.pk}
        ),
    )


def _rows(told: ControlPreview, devices: dict[str, Device]) -> list[PreviewRow]:
    tags = sorted({*told.result.updated, *told.result.not_updated, *told.devices})
    return [
        PreviewRow(tag, devices.get(tag), told.devices.get(tag), told.result.not_updated.get(tag, ""))
        for tag in tags
    ]


def _sentence(refusal: SgmError) -> str:
    text = str(refusal).strip()
    return f"{text[:1].upper()}{text[1:]}"


# --- carrying it out ------------------------------------------------------------------------------


def _confirm(request: HttpRequest, chosen: Chosen, form: ControlForm) -> HttpResponseBase:
    if not form.cleaned_data["key"]:
        # It did not come from a preview.
        return _preview(request, chosen, form)
    affected = _affected(chosen, form)
    typed = request.POST.get("typed", "").strip()
    if affected.to_type and typed != affected.to_type:
        return _preview(request, chosen, form, mistyped=f"Type {affected.to_type} to confirm.")
    found: list[UUID] = []
    refusals: list[str] = []
    for site in affected.sites:
        try:
            found.append(_carry_out(request, chosen, form, site))
        except SgmError as refusal:
            refusals.append(f"{site.name}: {_sentence(refusal)}")
    if not found:
        return _preview(request, chosen, form, refusals=refusals)
    for refusal_text in refusals:
        messages.error(request, f"Not sent. {refusal_text}")
    if len(found) == 1:
        return HttpResponseRedirect(reverse("admin:console_request", args=[found[0]]))
    query = urlencode([("request", str(key)) for key in found])
    return HttpResponseRedirect(f"{reverse('admin:console_requests')}?{query}")


def _carry_out(request: HttpRequest, chosen: Chosen, form: ControlForm, site: Site) -> UUID:
    """Begin the request of this form at one site, unless it was begun before; its id."""
    asked = form.cleaned_data
    tags = form.tags(site)
    is_curtail = chosen.kind is Kind.CURTAIL
    body = {"kind": chosen.kind.value, "category": asked["category"], "device_tags": tags}
    if is_curtail:
        body |= {"value": asked["value"], "unit": str(asked["unit"])}
    key = request_key(
        f"{asked['key']}-{site.pk}",
        principal=chosen.principal,
        method="POST",
        path=request.path,
        body=body,
    )
    assert key is not None
    request_id = uuid.uuid5(_REQUESTS, key.name)
    if ControlRequest.objects.filter(pk=request_id).exists():
        messages.info(request, f"{site.name}: this form was sent before. Here is what came of it.")
        return request_id
    try:
        if is_curtail:
            under_way: UnderWay = curtail_begin(
                principal=chosen.principal,
                site_id=site.pk,
                category=asked["category"],
                value=asked["value"],
                device_tags=tags,
                unit=Unit(asked["unit"]),
                why=asked["reason"],
                key=key,
                request_id=request_id,
            )
        else:
            under_way = release_begin(
                principal=chosen.principal,
                site_id=site.pk,
                category=asked["category"] or None,
                device_tags=tags,
                why=asked["reason"],
                key=key,
                request_id=request_id,
            )
    except InProgress:
        # The same form came twice at once, and the other was first.
        return request_id
    carry_on(under_way)
    noted(
        request,
        "curtail" if is_curtail else "release",
        site,
        request_id=str(request_id),
        **{name: value for name, value in body.items() if name != "kind"},
        reason=asked["reason"],
    )
    return request_id


# --- what became of it ----------------------------------------------------------------------------


@page("request/<uuid:request_id>/", name="console_request", permission=VIEW_REQUEST)
def request_page(request: HttpRequest, request_id: UUID) -> HttpResponseBase:
    """One request, its way to each device, and its result for as long as it is kept."""
    row = control_requests_visible_to(principal_at(request)).filter(pk=request_id).first()
    if row is None:
        raise Http404
    chains = request_chains(row)
    context = {
        "row": row,
        "site": row.site,
        "chains": chains,
        "under_way": row.status is None,
        "followed": sum(chain.outcome.name == "DONE" for chain in chains),
        "may_control": request.user.has_perm(CURTAIL),
        "now": timezone.now(),
    }
    parts = {"chain": "console/parts/request_chain.html"}
    title = f"{row.get_kind_display()} {row.site.name}"
    return show(request, "console/request.html", title=title, context=context, parts=parts)


@page("requests/", name="console_requests", permission=VIEW_REQUEST)
def requests_page(request: HttpRequest) -> HttpResponseBase:
    """Requests that were made together: one a site."""
    wanted = _keys(request.GET.getlist("request")[:SITES_AT_ONCE])
    rows = list(
        control_requests_visible_to(principal_at(request)).filter(pk__in=wanted).order_by("site__site_tag")
    )
    if not rows:
        raise Http404
    query = urlencode([("request", str(row.pk)) for row in rows])
    context = {
        "rows": rows,
        "live_query": query,
        "under_way": any(row.status is None for row in rows),
        "now": timezone.now(),
    }
    parts = {"sites": "console/parts/request_sites.html"}
    return show(
        request, "console/requests.html", title=f"Requests to {len(rows)} sites", context=context, parts=parts
    )
