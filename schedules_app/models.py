"""Schedule: fields, constraints, facts of one row."""

from __future__ import annotations

import uuid

from django.core.validators import RegexValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from devices_app.choices import CATEGORY_PATTERN
from sites_app.models import Site


class Schedule(models.Model):
    """The setpoints of one category of a site on one UTC day: quarter hour -> value, null for the default."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    site = models.ForeignKey(Site, on_delete=models.PROTECT, related_name="schedules")
    category = models.CharField(max_length=64, validators=[RegexValidator(CATEGORY_PATTERN)])
    valid_on = models.DateField()
    schedule = models.JSONField(default=dict, blank=True)
    # Null until every node of the site has answered.
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

    def __str__(self) -> str:
        return f"{self.category} on {self.valid_on}"

    @property
    def document_name(self) -> str:
        return f"schedule/{self.valid_on}/{self.category}"
