"""Sites and nodes in the API's spelling; fields and their order are the guide's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db.models import QuerySet
from rest_framework import serializers

from sites_app.models import ManagementToken, Node, Site
from sites_app.selectors import Metric, nodes_health, token_values, tokens_with_sites
from smartgrid.api.fields import (
    DistinctListField,
    NumberField,
    ObjectField,
    StrictCharField,
    StrictInput,
    StrictUUIDField,
    TimestampField,
)
from smartgrid.api.output import Output, Shown

# As many sites as one token can name.
MAX_SITES = 10_000


class SiteOutput(Output[Site]):
    id = serializers.UUIDField()
    created_at = TimestampField()
    site_tag = serializers.CharField()
    name = serializers.CharField()
    meta_data = ObjectField()
    curtailment_time_limit = serializers.IntegerField()


class NodeHealthOutput(Output[Node]):
    tenant_tag = serializers.CharField()
    site_tag = serializers.CharField(source="site.site_tag")
    node_name = serializers.CharField(source="name")
    # Which node it is of, until `made` knows.
    healthy = serializers.BooleanField(source="pk")

    @classmethod
    def made(cls, values: Sequence[Sequence[Any]]) -> list[Shown]:
        """As of now, of all of them at once."""
        shown = super().made(values)
        for node, healthy in zip(shown, nodes_health([node["healthy"] for node in shown]), strict=True):
            node["healthy"] = healthy
        return shown


class MetricOutput(Output[Metric]):
    key = serializers.CharField()
    value = NumberField()
    timestamp = TimestampField(source="at")


class SiteDetailOutput(SiteOutput):
    metrics = MetricOutput(many=True)


class NodeOutput(Output[Node]):
    id = serializers.UUIDField()
    created_at = TimestampField()
    polaris_node_name = serializers.CharField(source="name")
    site_id = serializers.UUIDField()
    meta_data = ObjectField()
    curtail_in_batch = serializers.BooleanField()
    iothub = serializers.CharField()


class NodeDetailOutput(NodeOutput):
    configuration = ObjectField()


class TokenInput(StrictInput):
    name = StrictCharField(max_length=200)
    # None of them is a token that opens nothing yet, or nothing for the time being.
    sites = DistinctListField(child=StrictUUIDField(), max_length=MAX_SITES)


class TokenOutput(Output[ManagementToken]):
    id = serializers.UUIDField()
    name = serializers.CharField()
    # Encrypted, until it is `made`.
    token = serializers.CharField(source="encrypted", allow_null=True)
    sites = serializers.ListField(source="opens", child=serializers.UUIDField())

    @classmethod
    def read(cls, rows: QuerySet[Any]) -> QuerySet[Any, tuple[Any, ...]]:
        return super().read(tokens_with_sites(rows))

    @classmethod
    def made(cls, values: Sequence[Sequence[Any]]) -> list[Shown]:
        """Each with its value, decrypted."""
        shown = super().made(values)
        decrypted = token_values({token["id"]: token["token"] for token in shown})
        for token in shown:
            token["token"] = decrypted[token["id"]]
        return shown
