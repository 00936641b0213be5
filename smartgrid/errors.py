"""What can go wrong in central, as one tree; `api/exceptions.py` alone gives these a status.

SgmError
├── NotFound                 not there, or not for this principal: the two look the same
├── Invalid                  malformed or out of range; says which field
├── Conflict                 against what is stored: a duplicate, a state which forbids it
├── Forbidden                the function is not for this principal
└── Unavailable              something we need is away; worth another try
    └── DispatchUnavailable  the command was certainly not sent
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


class Forbidden(SgmError):  # noqa: N818
    code = "forbidden"


class Unavailable(SgmError):  # noqa: N818
    code = "unavailable"
    retry_after_s = 1


class DispatchUnavailable(Unavailable):
    code = "dispatch_unavailable"
