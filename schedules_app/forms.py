"""What operators fill in to plan many days at once; what it means is for the services to say."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from schedules_app.services import MAX_COPIES
from sites_app.models import Site, validate_time_zone
from smartgrid.api.fields import number

WEEKDAYS = [
    ("0", "Monday"),
    ("1", "Tuesday"),
    ("2", "Wednesday"),
    ("3", "Thursday"),
    ("4", "Friday"),
    ("5", "Saturday"),
    ("6", "Sunday"),
]
DAY = forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d")


class CopyForm(forms.Form):
    """The days a schedule is copied to."""

    first = forms.DateField(label="From", widget=DAY, help_text="The first UTC day that is planned.")
    last = forms.DateField(label="To", widget=DAY, help_text="The last one.")
    weekdays = forms.MultipleChoiceField(
        choices=WEEKDAYS,
        initial=[number for number, _ in WEEKDAYS],
        widget=forms.CheckboxSelectMultiple,
        help_text="Only these days of the week.",
    )
    overwrite = forms.BooleanField(
        required=False, help_text="Days that have a schedule lose it. Otherwise nothing is copied if one has."
    )

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        first, last = cleaned.get("first"), cleaned.get("last")
        if first is not None and last is not None and not 0 <= (last - first).days < MAX_COPIES:
            self.add_error("last", f"The last day is expected within {MAX_COPIES} days of the first.")
        return cleaned

    def days(self, *, but: date) -> Iterator[date]:
        """The days that were chosen, without the one that is copied."""
        first, last = self.cleaned_data["first"], self.cleaned_data["last"]
        weekdays = {int(weekday) for weekday in self.cleaned_data["weekdays"]}
        for offset in range((last - first).days + 1):
            day = first + timedelta(days=offset)
            if day.weekday() in weekdays and day != but:
                yield day


class MomentField(forms.Field):
    """What a clock on the wall shows: a date and a time, and no zone before the form says which."""

    widget = forms.DateTimeInput(attrs={"type": "datetime-local", "step": 900}, format="%Y-%m-%dT%H:%M")

    def to_python(self, value: Any) -> datetime | None:
        if not value:
            return None
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise ValidationError("A date and a time are expected, e.g. 2026-12-06T09:00.") from error
        if moment.tzinfo is not None:
            raise ValidationError("No UTC offset is expected: the time zone stands beside it.")
        return moment


class FillForm(forms.Form):
    """A range of time and the value it gets."""

    site = forms.ModelChoiceField(queryset=Site.objects.order_by("site_tag"))
    category = forms.CharField(max_length=64)
    start = MomentField(label="From", help_text="A full quarter hour.")
    until = MomentField(label="Until", help_text="The first one that is left as it is.")
    time_zone = forms.CharField(
        max_length=64,
        initial="UTC",
        validators=[validate_time_zone],
        help_text="Whose clock shows these times, e.g. Europe/Amsterdam. An hour that comes twice in autumn"
        " is filled twice.",
    )
    value = forms.FloatField(required=False, help_text="Empty: each device's default.")

    def clean_value(self) -> float | None:
        """As the API would have it: 50, not 50.0."""
        value = self.cleaned_data["value"]
        return None if value is None else number(value)
