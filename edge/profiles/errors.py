"""What a profile that cannot be used says."""

from __future__ import annotations


class ProfileError(Exception):
    """A profile that cannot be used: which key of it, and what is expected there."""

    def __init__(self, *, key: str, expectation: str, file: str = "") -> None:
        self.file = file
        self.key = key
        self.expectation = expectation
        super().__init__(f"{file + ': ' if file else ''}{key}: {expectation}")
