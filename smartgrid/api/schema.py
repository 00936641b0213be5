"""How an operation is told of in the API's description: one decorator, so that all are told alike.

What follows from these words (statuses that every operation shares, headers, types of fields) is
`smartgrid.api.description`'s to add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema
from rest_framework import serializers

from smartgrid.api.description import DAY, MOMENT, TOLD, UUID_TEXT
from smartgrid.api.filters import FilterSet, parameters_of

__all__ = ["DAY", "MOMENT", "UUID_TEXT", "DoneOutput", "ErrorOutput", "Operation", "operation"]

View = TypeVar("View", bound=Callable[..., Any])


class ErrorOutput(serializers.Serializer[Any]):
    """What every refusal looks like: for people, for programs, by field, and for who searches the logs."""

    detail = serializers.CharField(help_text="One sentence for people.")
    code = serializers.CharField(help_text="For programs: what is wrong, in one word.")
    errors = serializers.DictField(  # type: ignore[assignment]  # the API's word, and DRF's property
        child=serializers.ListField(child=serializers.CharField()),
        help_text="What is wrong with which field; empty where it is none.",
    )
    request_id = serializers.CharField(help_text="Stands in every line of the logs about this request.")


class DoneOutput(serializers.Serializer[Any]):
    """What is said of something that is no more, or was done, and has nothing to show."""

    status = serializers.ChoiceField(choices=["success"])
    message = serializers.CharField()


@dataclass(frozen=True, slots=True)
class Operation:
    """What was said of a method of a view, for whoever walks all of them."""

    name: str
    tag: str
    status: int
    errors: frozenset[int]
    listed: bool
    links: Mapping[str, Mapping[str, str]]


def operation(
    *,
    name: str,
    summary: str,
    tag: str,
    answer: Any,
    body: Any = None,
    status: int = 200,
    query: Sequence[OpenApiParameter] = (),
    errors: Sequence[int] = (),
    examples: Sequence[OpenApiExample] = (),
    headers: Mapping[str, str] | None = None,
    description: str = "",
    filters: type[FilterSet] | None = None,
    listed: bool = False,
    path: Mapping[str, Mapping[str, Any]] | None = None,
    links: Mapping[str, Mapping[str, str]] | None = None,
    media_type: str = "application/json",
) -> Callable[[View], View]:
    """Describe a method of a view.

    `name` is its operationId (`sites_list`, `site_create`: noun_verb). `answer` and `body` are serializers
    (classes, or instances such as `SiteOutput(many=True)`), `answer` also a field such as
    `DictField(child=...)` or a schema as a dict; `answer=None` is an answer without a body.

    `errors` are the statuses it may answer beside those that follow from the rest: 401, 429 and 503 which
    all may, 400 with a body or a query, 413 and 415 with a body, 404 with an object in the path.

    `listed` for what a `ShownList` answers: `answer` is then the serializer of one row; `limit`, `offset`,
    `X-Total-Count` and `Link` are told of. `filters` is the FilterSet behind `filtered`. `query` are the
    parameters beyond these, `headers` request headers with what they are for. `path` refines the schema of a
    parameter of the path, beyond what its converter says. `links` names operations that go on with what is
    answered here, each with where its parameters stand (`{"schedule_delete": {"day_or_id":
    "$response.body#/id"}}`). `media_type` is that of the answer; refusals are JSON.
    """
    shown = answer(many=True) if listed and isinstance(answer, type) else answer
    parameters = [
        *query,
        *(
            OpenApiParameter(
                field, dict(schema), OpenApiParameter.QUERY, description=schema.get("description", "")
            )
            for field, schema in (parameters_of(filters) if filters else {}).items()
        ),
        *(PAGE if listed else ()),
        *(
            OpenApiParameter(header, HEADER_TEXT, OpenApiParameter.HEADER, description=what)
            for header, what in (headers or {}).items()
        ),
        *(
            OpenApiParameter(field, dict(schema), OpenApiParameter.PATH)
            for field, schema in (path or {}).items()
        ),
    ]
    statuses = {401, 429, 503, *errors}
    if body is not None:
        statuses |= {400, 413, 415}
    if any(parameter.location == OpenApiParameter.QUERY for parameter in parameters):
        statuses.add(400)
    told = Operation(
        name=name, tag=tag, status=status, errors=frozenset(statuses), listed=listed, links=links or {}
    )
    described = extend_schema(
        operation_id=name,
        summary=summary,
        # An empty text keeps the docstrings out, which speak to who reads the code.
        description=description,
        tags=[tag],
        request=body,
        parameters=parameters,
        responses={(status, media_type) if shown is not None else status: shown}
        | dict.fromkeys(sorted(statuses), ErrorOutput),
        examples=list(examples),
    )

    def decorate(method: View) -> View:
        shown_method: View = described(method)
        setattr(shown_method, TOLD, told)
        return shown_method

    return decorate


# Visible ASCII: what every server and proxy lets through.
HEADER_TEXT = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}
PAGE = (
    OpenApiParameter(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": 1000},
        description="So many rows at most.",
    ),
    OpenApiParameter(
        "offset",
        {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        description="So many rows are left out first.",
    ),
)
