"""Lists as bare arrays: all of it unless `limit` or `offset` say otherwise; headers tell what lies beyond."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from django.db.models import Model, QuerySet
from django.http import QueryDict, StreamingHttpResponse
from django.http.response import HttpResponseBase
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer

from smartgrid.errors import Invalid

MAXIMUM_LIMIT = 1000
# Of a long list, as many rows are in memory at once.
PIECE = 1000


M = TypeVar("M", bound=Model)


def list_response(
    *,
    request: Request,
    rows: QuerySet[M],
    serializer: type[BaseSerializer[Any]],
    default_limit: int | None = None,
    shown_as: Callable[[list[M]], list[Any]] | None = None,
) -> Response:
    """These rows, or the page of them which the request asks for, with `X-Total-Count` and `Link`.

    Without a limit in the request, `default_limit`; None: all. `shown_as` makes of the rows of the page what
    the serializer shows; None: the rows themselves.
    """
    asked = whole_number(request.query_params, "limit", minimum=1, maximum=MAXIMUM_LIMIT)
    limit = default_limit if asked is None else asked
    offset = whole_number(request.query_params, "offset", minimum=0) or 0
    if limit is None and not offset:
        found = list(rows)
        total = len(found)
    else:
        total = rows.count()
        found = list(rows[offset : None if limit is None else offset + limit])
    headers = {"X-Total-Count": str(total)}
    if links := _links(request, limit=limit, offset=offset, total=total):
        headers["Link"] = links
    shown = serializer(found if shown_as is None else shown_as(found), many=True)
    return Response(shown.data, headers=headers)


def long_list_response(
    *, request: Request, rows: QuerySet[M], serializer: type[BaseSerializer[M]]
) -> HttpResponseBase:
    """`list_response` of a list that grows for years: whole, it is made and sent piece by piece.

    What is sent are the rows there are now; one that goes meanwhile is left out.
    """
    if "limit" in request.query_params or "offset" in request.query_params:
        return list_response(request=request, rows=rows, serializer=serializer)
    keys = list(rows.values_list("pk", flat=True))
    if len(keys) <= PIECE:
        return list_response(request=request, rows=rows, serializer=serializer)
    renderer = JSONRenderer()

    def pieces() -> Iterator[bytes]:
        before = b"["
        for start in range(0, len(keys), PIECE):
            found = list(rows.filter(pk__in=keys[start : start + PIECE]))
            if found:
                shown = serializer(found, many=True)  # type: ignore[arg-type]  # as above
                yield before + renderer.render(shown.data).removeprefix(b"[").removesuffix(b"]")
                before = b","
        yield b"]" if before == b"," else b"[]"

    return StreamingHttpResponse(
        pieces(), content_type=renderer.media_type, headers={"X-Total-Count": str(len(keys))}
    )


def whole_number(query: QueryDict, name: str, *, minimum: int, maximum: int | None = None) -> int | None:
    """A query parameter as a whole number in these bounds; None where it is absent, `Invalid` otherwise."""
    text = query.get(name)
    if text is None:
        return None
    expected = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
    if not (text.isascii() and text.isdigit() and len(text) < 10):  # noqa: PLR2004 - fits a database's integer
        raise Invalid.field(name, f"a whole number is expected, {expected}")
    value = int(text)
    if value < minimum or (maximum is not None and value > maximum):
        raise Invalid.field(name, f"{expected} is expected")
    return value


def _links(request: Request, *, limit: int | None, offset: int, total: int) -> str:
    if limit is None:
        return ""
    pages: list[tuple[str, int]] = []
    if offset > 0:
        pages.append(("first", 0))
        pages.append(("prev", max(0, offset - limit)))
    if offset + limit < total:
        pages.append(("next", offset + limit))
    return ", ".join(f'<{_address(request, limit=limit, offset=at)}>; rel="{rel}"' for rel, at in pages)


def _address(request: Request, **page: Any) -> str:
    query = request.query_params.copy()
    for name, value in page.items():
        query[name] = str(value)
    return request.build_absolute_uri(f"{request.path}?{query.urlencode()}")
