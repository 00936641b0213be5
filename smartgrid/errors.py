"""What can go wrong in central, as one tree; `api/exceptions.py` alone gives these a status.

SgmError
├── NotFound                 not there, or not for this principal: the two look the same
├── Invalid                  malformed or out of range; says which field
├── Conflict                 against what is stored: a duplicate, a state which forbids it
│   └── InProgress           the same is being done at this moment; says when it may be asked again
├── Forbidden                the function is not for this principal
├── Throttled                too often; says when it may be tried again
└── Unavailable              something we need is away; worth another try
    ├── DispatchUnavailable  the command was certainly not sent
    └── EventsUnavailable    events cannot be told, or not to one more
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class SgmError(Exception):
    """A refusal with a sentence for people, a code for programs, and the fields it is about."""

    code = "error"

    def __init__(
        self, detail: str, *, code: str | None = None, errors: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        if code is not None:
            self.code = code
        self.errors: dict[str, list[str]] = {field: list(texts) for field, texts in (errors or {}).items()}


class NotFound(SgmError):  # noqa: N818 - states the fault
    code = "not_found"


class Invalid(SgmError):  # noqa: N818
    code = "invalid"

    @classmethod
    def field(cls, name: str, detail: str) -> Invalid:
        """One field is wrong, and this is why."""
        return cls(f"{name}: {detail}", errors={name: [detail]})


class Conflict(SgmError):  # noqa: N818
    code = "conflict"


class InProgress(Conflict):
    """`retry_after_s`: seconds after which it is over."""

    code = "in_progress"

    def __init__(self, detail: str, *, retry_after_s: float, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after_s = retry_after_s


class Forbidden(SgmError):  # noqa: N818
    code = "forbidden"


class Throttled(SgmError):  # noqa: N818
    """`retry_after_s`: seconds after which the same request is let through, if no other comes before."""

    code = "throttled"

    def __init__(self, detail: str, *, retry_after_s: float, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after_s = retry_after_s


class Unavailable(SgmError):  # noqa: N818
    code = "unavailable"
    retry_after_s = 1


class DispatchUnavailable(Unavailable):
    code = "dispatch_unavailable"


class EventsUnavailable(Unavailable):
    code = "events_unavailable"
    retry_after_s = 10


# Of many wrong elements, as many are told of.
REFUSED_SHOWN = 100
# Which kind the whole of them is: what can never be right outweighs what may be right tomorrow.
_GRAVEST_FIRST: tuple[type[SgmError], ...] = (Invalid, NotFound, Conflict, SgmError)


def refusal_of_many(refused: Mapping[int, SgmError]) -> SgmError:
    """One error for all the elements of an array that were refused, each field named by its place.

    `{17: Conflict(errors={"device_tag": ..})}` becomes a Conflict about `17.device_tag`. Of several kinds it
    is the gravest: malformed, then absent, then in conflict.
    """
    kind = next(one for one in _GRAVEST_FIRST if any(isinstance(error, one) for error in refused.values()))
    codes = {error.code for error in refused.values() if isinstance(error, kind)}
    shown = dict(sorted(refused.items())[:REFUSED_SHOWN])
    errors: dict[str, list[str]] = {}
    for place, error in shown.items():
        if not error.errors:
            errors[str(place)] = [error.detail]
        for field, texts in error.errors.items():
            errors[f"{place}.{field}"] = texts
    first, error = next(iter(shown.items()))
    also = f" (and {len(shown) - 1} more)" if len(shown) > 1 else ""
    code = codes.pop() if len(codes) == 1 else None
    return kind(f"{first}: {error.detail}{also}", code=code, errors=errors)
