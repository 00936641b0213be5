"""Sites and nodes in the API's spelling; fields and their order are the guide's."""

from __future__ import annotations

from rest_framework import serializers

from sites_app.models import Node, Site
from sites_app.selectors import Metric, NodeHealth
from smartgrid.api.fields import NumberField, TimestampField


class SiteOutput(serializers.Serializer[Site]):
    id = serializers.UUIDField()
    created_at = TimestampField()
    site_tag = serializers.CharField()
    name = serializers.CharField()
    meta_data = serializers.JSONField()
    curtailment_time_limit = serializers.IntegerField()


class NodeHealthOutput(serializers.Serializer[NodeHealth]):
    tenant_tag = serializers.CharField()
    site_tag = serializers.CharField()
    node_name = serializers.CharField()
    healthy = serializers.BooleanField()


class MetricOutput(serializers.Serializer[Metric]):
    key = serializers.CharField()
    value = NumberField()
    timestamp = TimestampField(source="at")


class NodeOutput(serializers.Serializer[Node]):
    id = serializers.UUIDField()
    created_at = TimestampField()
    polaris_node_name = serializers.CharField(source="name")
    site_id = serializers.UUIDField()
    meta_data = serializers.JSONField()
    curtail_in_batch = serializers.BooleanField()
    iothub = serializers.CharField()


class NodeDetailOutput(NodeOutput):
    configuration = serializers.JSONField()
