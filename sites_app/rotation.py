"""New keys for what is stored: texts encrypted anew, tokens digested anew, beside processes that run.

Each row is changed by itself and only if it is still as it was read, so that a run may be killed at any
place, run again, and run twice at once. What a row means never changes, so nobody has to be told.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from django.db import IntegrityError, models, transaction
from django.db.models import F, Model
from django.utils import timezone

from sites_app import tokens
from sites_app.models import EnrolmentToken, ManagementToken, SecondFactor
from sites_app.tokens import TokenUnreadable

log = structlog.stdlib.get_logger(__name__)

BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptedColumn:
    """Where texts stand as `tokens.encrypt` makes them; the field `label` tells people which row it is."""

    model: type[Model]
    field: str
    label: str


TOKEN_COLUMN = EncryptedColumn(model=ManagementToken, field="encrypted", label="name")
SECOND_FACTOR_COLUMN = EncryptedColumn(model=SecondFactor, field="key_encrypted", label="pk")


@dataclass(kw_only=True)
class Progress:
    """How far a run has come. `troubles` name the rows that could not be changed, and why."""

    seen: int = 0
    changed: int = 0
    # Changed by somebody else in between; the next run looks at them again.
    overtaken: int = 0
    troubles: list[str] = field(default_factory=list)


def texts_reencrypt(
    columns: Sequence[EncryptedColumn], *, batch: int = BATCH
) -> Generator[Progress, None, None]:
    """Encrypt with the first key whatever another one encrypted; yields how far it is.

    It yields when it has read a batch and not yet written, and at its end.

    The key that a text was encrypted with must still be among SGM_TOKEN_ENCRYPTION_KEYS: texts that no key
    decrypts stay as they are and are named.
    """
    progress = Progress()
    for column in columns:
        for rows in _batches(column, batch):
            yield progress
            for pk, text, label in rows:
                progress.seen += 1
                if not tokens.is_encrypted_newly(text):
                    _reencrypt(column, pk=pk, text=text, label=label, progress=progress)
    log.warning("texts_reencrypted", changed=progress.changed, troubles=len(progress.troubles))
    yield progress


def _reencrypt(column: EncryptedColumn, *, pk: Any, text: str, label: str, progress: Progress) -> None:
    try:
        renewed = tokens.reencrypt(text)
    except TokenUnreadable:
        progress.troubles.append(_unreadable(column, pk=pk, label=label))
        return
    # Past `save`: neither a device's node nor anybody else needs to hear of it.
    unchanged = _rows(column).filter(pk=pk, **{column.field: text})
    if unchanged.update(**{column.field: renewed}):
        progress.changed += 1
    else:
        progress.overtaken += 1


def texts_under_former_keys(columns: Sequence[EncryptedColumn]) -> Progress:
    """How many texts the first key does not decrypt (`changed`), and in `troubles` those that none does."""
    progress = Progress()
    for column in columns:
        for rows in _batches(column, BATCH):
            for pk, text, label in rows:
                progress.seen += 1
                if tokens.is_encrypted_newly(text):
                    continue
                progress.changed += 1
                try:
                    tokens.decrypt(text)
                except TokenUnreadable:
                    progress.troubles.append(_unreadable(column, pk=pk, label=label))
    return progress


def _unreadable(column: EncryptedColumn, *, pk: Any, label: str) -> str:
    name = column.model._meta.verbose_name  # noqa: SLF001 - Django's documented name for it
    return f"{name} {label} ({pk}): no key decrypts its {column.field}"


def _rows(column: EncryptedColumn) -> models.QuerySet[Any]:
    return column.model._default_manager.order_by("pk")  # noqa: SLF001 - Django's documented name for it


def _batches(column: EncryptedColumn, size: int) -> Iterator[list[tuple[Any, str, str]]]:
    """Key, text and label of all rows that have a text, each once, in the order of their keys."""
    rows = _rows(column).exclude(**{column.field: ""}).values_list("pk", column.field, column.label)
    batch = list(rows[:size])
    while batch:
        yield batch
        batch = list(rows.filter(pk__gt=batch[-1][0])[:size])


def token_digests_renew(*, take_lost: bool = False, batch: int = BATCH) -> Generator[Progress, None, None]:
    """Digest all management tokens with SGM_TOKEN_HASH_KEY; yields how far it is, as `texts_reencrypt` does.

    Their values come from what is encrypted. A token whose digest neither that key nor the other one makes
    opens nothing at present: it is named, and becomes good again only with `take_lost`.
    """
    progress = Progress()
    for rows in _batches(TOKEN_COLUMN, batch):
        digests = _digests(rows)
        yield progress
        for pk, text, label in rows:
            progress.seen += 1
            try:
                known = tokens.digests(tokens.decrypt(text))
            except TokenUnreadable:
                progress.troubles.append(_unreadable(TOKEN_COLUMN, pk=pk, label=label))
                continue
            before = digests.get(pk)
            if before is None or before == known[0]:
                continue
            if before not in known and not take_lost:
                progress.troubles.append(f"management token {label} ({pk}): digested with neither key")
                continue
            _redigest(pk=pk, before=before, after=known[0], label=label, progress=progress)
    log.warning("management_access_redigested", changed=progress.changed, troubles=len(progress.troubles))
    yield progress


def _digests(rows: list[tuple[Any, str, str]]) -> dict[Any, str]:
    tokens_of_rows = ManagementToken.objects.filter(pk__in=[pk for pk, *_ in rows])
    return dict(tokens_of_rows.values_list("pk", "digest"))


def _redigest(*, pk: Any, before: str, after: str, label: str, progress: Progress) -> None:
    try:
        with transaction.atomic():
            done = ManagementToken.objects.filter(pk=pk, digest=before).update(digest=after)
    except IntegrityError:
        progress.troubles.append(f"management token {label} ({pk}): another token has the same value")
        return
    if done:
        progress.changed += 1
    else:
        progress.overtaken += 1


def token_digests_under_other_keys() -> Progress:
    """How many tokens are not digested with SGM_TOKEN_HASH_KEY (`changed`); `troubles` name what else needs
    the other key, or cannot be told.
    """
    progress = Progress()
    for rows in _batches(TOKEN_COLUMN, BATCH):
        digests = _digests(rows)
        for pk, text, label in rows:
            progress.seen += 1
            try:
                after = tokens.digest(tokens.decrypt(text))
            except TokenUnreadable:
                progress.troubles.append(_unreadable(TOKEN_COLUMN, pk=pk, label=label))
                continue
            progress.changed += digests.get(pk, after) != after
    # Kept as digests alone: which key made one cannot be told, but they live for a day at most.
    now = timezone.now()
    for token in EnrolmentToken.objects.filter(voided_at=None, used_at=None, expires_at__gt=now).annotate(
        node_name=F("node__name")
    ):
        progress.troubles.append(
            f"the enrolment token of {token.node_name} may be digested with the other key; it lapses at"
            f" {token.expires_at:%Y-%m-%dT%H:%M:%SZ}"
        )
    return progress
