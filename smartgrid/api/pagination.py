"""Lists as bare arrays: all of it unless `limit` or `offset` say otherwise; headers tell what lies beyond."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from django.db.models import Model, QuerySet
from django.http import QueryDict, StreamingHttpResponse
from django.http.response import HttpResponseBase
from rest_framework.request import Request
from rest_framework.response import Response

from smartgrid.api.filters import FilterSet, filtered
from smartgrid.api.output import Output, Shown
from smartgrid.api.principal import Principal, principal_of
from smartgrid.api.renderers import JsonRenderer, json_bytes
from smartgrid.errors import Invalid
from smartgrid.expressions import Value
from smartgrid.kept import KeptForPrincipal

M = TypeVar("M", bound=Model)

MAXIMUM_LIMIT = 1000
PAGE = ("limit", "offset")
# Of a long list, as many rows are in memory at once.
PIECE = 1000
# From so many on, their number is remembered, for so many seconds.
COUNTED_FROM = 5000
COUNTED_FOR_S = 5.0


# What was asked for, by whom: how many there were, at a moment of the monotonic clock.
_totals: dict[tuple[str, str, str], tuple[float, int]] = {}


def _total(request: Request, count: Callable[[], int]) -> int:
    """How many rows there are; of very many, as of some seconds ago.

    PostgreSQL counts a hundred thousand rows one by one, which takes longer than to show a page of them.
    """
    narrowed = request.query_params.copy()
    for name in PAGE:
        narrowed.pop(name, None)
    asked = (str(principal_of(request).token_id), request.path, narrowed.urlencode())
    now = time.monotonic()
    known = _totals.get(asked)
    if known is not None and now - known[0] < COUNTED_FOR_S:
        return known[1]
    total = count()
    if total >= COUNTED_FROM:
        for old in [key for key, (at, _) in list(_totals.items()) if now - at >= COUNTED_FOR_S]:
            _totals.pop(old, None)
        _totals[asked] = (now, total)
    return total


def _page(request: Request, *, default_limit: int | None) -> tuple[int | None, int]:
    """The limit, where there is one, and the offset that the request asks for."""
    asked = whole_number(request.query_params, "limit", minimum=1, maximum=MAXIMUM_LIMIT)
    offset = whole_number(request.query_params, "offset", minimum=0) or 0
    return (default_limit if asked is None else asked), offset


class ShownList:
    """A list: all that a principal may see of something, or a page of it, or what filters leave of it.

    `visible_to(principal, *keys)`: its rows, by the selectors that know what a principal may see; the keys
    are of these `kinds`. `by_all`: all may see all of it. `default_limit` holds where the request names no
    limit; None: all, and many of them piece by piece. `within(principal, *keys)` raises `NotFound` where
    what the list is a part of may not be seen. Unless filters narrow it, its statements are kept.
    """

    def __init__(
        self,
        output: type[Output[Any]],
        visible_to: Callable[..., QuerySet[Any, Any]],
        *kinds: type,
        by_all: bool = False,
        filters: type[FilterSet] | None = None,
        default_limit: int | None = None,
        within: Callable[..., object] | None = None,
    ) -> None:
        self._output = output
        self._visible_to = visible_to
        self._filters = filters
        self._default_limit = default_limit
        self._within = within
        self._kept = KeptForPrincipal(lambda *asked: output.read(visible_to(*asked)), *kinds, by_all=by_all)
        self._counted = KeptForPrincipal(
            lambda *asked: visible_to(*asked).order_by().values_list("pk"), *kinds, by_all=by_all
        )

    def __call__(self, request: Request, *keys: Value) -> HttpResponseBase:
        """What the request asks for, with `X-Total-Count` and `Link`. Where there are very many, the count
        may be some seconds old. `Invalid` where the page or a filter cannot be used.
        """
        principal = principal_of(request)
        limit, offset = _page(request, default_limit=self._default_limit)
        cut = PIECE + 1 if limit is None and not offset else limit
        narrowed = self._narrowed(request, principal, keys)
        if narrowed is None:
            found = self._kept.page(principal, *keys, limit=cut, offset=offset)
        else:
            found = list(self._output.read(narrowed)[offset : None if cut is None else offset + cut])
        if not found and self._within is not None:
            # Any row would be proof that what it is a part of may be seen.
            self._within(principal, *keys)
        if limit is None and len(found) == cut:
            rows = self._visible_to(principal, *keys) if narrowed is None else narrowed
            return _streamed(rows, self._output)

        def count() -> int:
            return self._counted.count(principal, *keys) if narrowed is None else narrowed.count()

        # A page that is not full is the last one, and tells how many there are.
        is_last = cut is None or len(found) < cut
        total = offset + len(found) if is_last and (found or not offset) else _total(request, count)
        return _answer(request, self._output.made(found), limit=limit, offset=offset, total=total)

    def _narrowed(
        self, request: Request, principal: Principal, keys: tuple[Value, ...]
    ) -> QuerySet[Any] | None:
        """What the request's filters leave; None where it names none."""
        if self._filters is None or request.query_params.keys().isdisjoint(self._filters.base_filters):
            return None
        return filtered(request=request, rows=self._visible_to(principal, *keys), by=self._filters)


def short_list(
    *, request: Request, rows: QuerySet[M], shown: Callable[[list[M]], list[Shown]]
) -> HttpResponseBase:
    """A list of few, of which more is shown than their rows tell; with pages and headers like any other."""
    limit, offset = _page(request, default_limit=None)
    found = list(rows[offset : None if limit is None else offset + limit])
    total = len(found) if limit is None and not offset else rows.count()
    return _answer(request, shown(found), limit=limit, offset=offset, total=total)


def _answer(request: Request, shown: list[Shown], *, limit: int | None, offset: int, total: int) -> Response:
    headers = {"X-Total-Count": str(total)}
    if links := _links(request, limit=limit, offset=offset, total=total):
        headers["Link"] = links
    return Response(shown, headers=headers)


def _streamed(rows: QuerySet[Any], output: type[Output[Any]]) -> HttpResponseBase:
    """All of a list that grows for years, made and sent piece by piece.

    What is sent are the rows there are now; one that goes meanwhile is left out.
    """
    keys = list(rows.values_list("pk", flat=True))

    def pieces() -> Iterator[bytes]:
        before = b"["
        for start in range(0, len(keys), PIECE):
            shown = output.rows(rows.filter(pk__in=keys[start : start + PIECE]))
            if shown:
                yield before + json_bytes(shown).removeprefix(b"[").removesuffix(b"]")
                before = b","
        yield b"]" if before == b"," else b"[]"

    return StreamingHttpResponse(
        pieces(), content_type=JsonRenderer.media_type, headers={"X-Total-Count": str(len(keys))}
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
