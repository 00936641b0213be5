"""Schedule: fields, constraints, facts of one row."""

from __future__ import annotations

import uuid
from datetime import date

from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from devices_app.choices import CATEGORY_PATTERN
from sites_app.models import Site
from smartgrid.fields import JsonTextField

# What the names of all schedules' documents begin with.
DOCUMENTS = "schedule/"


class Schedule(models.Model):
    """The setpoints of one category of a site on one UTC day: quarter hour -> value, null for the default."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="schedules")
    category = models.CharField(max_length=64, validators=[RegexValidator(CATEGORY_PATTERN)])
    valid_on = models.DateField()
    schedule = JsonTextField(default=dict, blank=True)
    # In the manifests of the site's nodes: its day is in the window. `services.schedules_roll` keeps it true.
    is_listed = models.BooleanField(default=False, editable=False)
    # The nodes' last word, written when the day leaves the window; of any other schedule ask
    # `selectors.synchronization_results`.
    synchronization_result = models.JSONField(null=True, editable=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["site", "category", "valid_on"], name="schedule_unique_per_site_category_day"
            ),
            models.CheckConstraint(
                condition=Q(category__regex=CATEGORY_PATTERN), name="schedule_category_is_a_topic_level"
            ),
        ]
        indexes = [
            models.Index(fields=["valid_on", "site", "category"], name="schedule_day"),
            # What enters and leaves the window, which is little, among years of days that do neither.
            models.Index(fields=["is_listed", "valid_on"], name="schedule_window"),
        ]

    def __str__(self) -> str:
        return f"{self.category} on {self.valid_on}"

    @property
    def document_name(self) -> str:
        """What its document is called at the nodes."""
        return document_name(self.valid_on, self.category)


def document_name(day: date | str, category: str) -> str:
    """What the document of a category's UTC day is called."""
    return f"{day_prefix(day)}{category}"


def day_prefix(day: date | str) -> str:
    """What the names of a UTC day's documents begin with."""
    return f"{DOCUMENTS}{day}/"


def day_of_document(name: str) -> date:
    """The UTC day a schedule's document is about."""
    return date.fromisoformat(name.removeprefix(DOCUMENTS).partition("/")[0])
