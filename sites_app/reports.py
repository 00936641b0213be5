"""What nodes say they run, judged against what they should run. The only place which writes that down.

A report is judged while its node is locked, so a document that changes meanwhile is not confirmed by a word
about its predecessor. What is judged by version is judged by content too, where the node tells it: a version
alone may be of a central that was since restored from a backup.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
import structlog
from django.db import transaction
from django.utils import timezone

from edge.wire.messages import AppliedDocument, Reported
from sites_app.documents import nodes_sync_on_commit
from sites_app.models import DocumentStatus, Node, NodeDocument
from smartgrid.bulk import rows_update

log = structlog.stdlib.get_logger(__name__)

# As the columns can hold them.
HIGHEST_EPOCH = 2**31 - 2
HIGHEST_VERSION = 2**63 - 1
BOOT_LENGTH = 64
ERROR_LENGTH = 2000
# A node whose epoch was raised may tell for a moment of documents of the former one.
RAISE_AGAIN_AFTER = timedelta(seconds=60)

# Two processes' clocks may differ by as much.
CLOCK_SLACK = timedelta(seconds=5)
NODES_AT_ONCE = 100

APPLIED = "applied"
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ReceivedReport:
    """A report as it came: from this node's branch, at this moment of central's clock.

    `retained`: the broker had kept it, so it may be as old as the node's last change.
    """

    node_id: str
    reported: Reported
    received: datetime
    retained: bool


@dataclass(frozen=True, slots=True)
class RecordedReport:
    """A report that was taken, and its node as it is now (`last_reported` is loaded only when read)."""

    node: Node
    received: ReceivedReport


# The highest sequence that this database has given out to any command; an app above this one knows.
HighestSequence = Callable[[], int]

_highest_sequence: list[HighestSequence] = []


def highest_sequence_register(highest: HighestSequence) -> None:
    """Let reports be compared with the sequences of commands."""
    _highest_sequence[:] = [highest]


@dataclass(slots=True)
class _Document:
    """A document as it is stored, and what is known of it."""

    pk: int
    version: int
    sha256: str
    status: str
    answered_version: int
    error: str


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a node's word about a document changes."""

    pk: int
    version: int
    at: datetime | None
    status: DocumentStatus
    error: str


@dataclass(slots=True)
class _Judgement:
    """What one report says about its node."""

    is_in_sync: bool
    # Why it cannot be of this database; None where it can.
    above: str | None = None
    changed: list[_Answer] = field(default_factory=list)


def reports_record(reports: Sequence[ReceivedReport]) -> list[RecordedReport]:
    """Record what these nodes say they run; the newest of each node that is no older than the last one taken.

    Of one boot the node's own clock orders them, of several boots the moment of receipt. A report of an
    unknown node is passed over. One that says what the last one said costs two small columns.

    A node that tells of an epoch, a version, a sequence or a content above or beside the database's has been
    told by a central that was since restored: it gets an epoch of its own, everything anew, and an error log.
    """
    newest: dict[UUID, ReceivedReport] = {}
    for received in reports:
        node_id = UUID(received.node_id)
        if node_id not in newest or _is_newer(received, newest[node_id]):
            newest[node_id] = received
    with transaction.atomic():
        nodes = _locked(newest)
        return _record([(node, newest[node.pk]) for node in nodes if _is_news(node, newest[node.pk])])


def _locked(keys: Iterable[UUID]) -> list[Node]:
    rows = Node.objects.select_for_update(no_key=True).filter(pk__in=list(keys)).order_by("pk")
    return list(rows.defer("last_reported", "meta_data", "configuration"))


def _is_newer(one: ReceivedReport, other: ReceivedReport) -> bool:
    if one.reported.boot == other.reported.boot and one.reported.mono_ms != other.reported.mono_ms:
        return one.reported.mono_ms > other.reported.mono_ms
    return one.received >= other.received


def _is_news(node: Node, received: ReceivedReport) -> bool:
    """Tell whether it is no older than the last one taken: the same one may come twice."""
    reported = received.reported
    if not (
        0 <= reported.epoch <= HIGHEST_EPOCH
        and 0 <= reported.manifest_version <= HIGHEST_VERSION
        and abs(reported.mono_ms) <= HIGHEST_VERSION
        and len(reported.boot) <= BOOT_LENGTH
    ):
        log.error("report_out_of_range", node=node.name)
        return False
    if node.last_reported_at is None:
        return True
    if reported.boot == node.reported_boot and reported.mono_ms and node.reported_mono_ms:
        return reported.mono_ms >= node.reported_mono_ms
    # A moment that lies ahead is from before central's clock was set back: it orders nothing.
    return received.received >= node.last_reported_at or node.last_reported_at > timezone.now() + CLOCK_SLACK


def _record(news: Sequence[tuple[Node, ReceivedReport]]) -> list[RecordedReport]:
    idle: list[tuple[Any, ...]] = []
    judged: list[tuple[Node, ReceivedReport, str]] = []
    for node, received in news:
        digest = _digest(node, received.reported)
        if digest == node.reported_digest:
            idle.append((node.pk, received.received, received.reported.mono_ms))
            node.last_reported_at = received.received
            node.reported_mono_ms = received.reported.mono_ms
        else:
            judged.append((node, received, digest))
    rows_update(Node, fields=["last_reported_at", "reported_mono_ms"], rows=idle)
    if judged:
        _record_judged(judged)
    return [RecordedReport(node, received) for node, received in news]


def _record_judged(reports: Sequence[tuple[Node, ReceivedReport, str]]) -> None:
    documents = _documents(node.pk for node, _, _ in reports)
    highest = _highest_sequence[0]() if _highest_sequence else HIGHEST_VERSION
    answers: list[_Answer] = []
    rows: list[tuple[Any, ...]] = []
    raised: list[Node] = []
    for node, received, digest in reports:
        reported = received.reported
        judgement = _judge(node, reported, documents[node.pk], at=received.received)
        above = judgement.above or _sequence_above(node, reported, highest=highest)
        answers += judgement.changed
        node.last_reported_at = received.received
        node.reported_boot = reported.boot
        node.reported_mono_ms = reported.mono_ms
        node.reported_digest = digest
        _out_of_sync_set(node, is_in_sync=judgement.is_in_sync and above is None, at=received.received)
        if above is not None:
            if _epoch_raise(node, reported, why=above, at=received.received):
                raised.append(node)
            # It must be looked at again, even if it is repeated word for word.
            node.reported_digest = ""
        rows.append(
            (
                node.pk,
                _stored_text(reported),
                node.last_reported_at,
                node.reported_boot,
                node.reported_mono_ms,
                node.reported_digest,
                node.out_of_sync_since,
                node.foreign_sequence,
                node.epoch,
                node.epoch_raised_at,
            )
        )
    _answers_store(answers)
    rows_update(
        Node,
        fields=[
            "last_reported",
            "last_reported_at",
            "reported_boot",
            "reported_mono_ms",
            "reported_digest",
            "out_of_sync_since",
            "foreign_sequence",
            "epoch",
            "epoch_raised_at",
        ],
        rows=rows,
    )
    nodes_sync_on_commit(raised)


def _answers_store(answers: Sequence[_Answer]) -> None:
    good = [answer for answer in answers if answer.status == DocumentStatus.APPLIED]
    # Nearly all: a fleet that synchronises for the first time says nothing else.
    rows_update(
        NodeDocument,
        fields=["answered_version", "answered_at"],
        rows=[(answer.pk, answer.version, answer.at) for answer in good],
        same={"status": DocumentStatus.APPLIED, "error": ""},
    )
    rows_update(
        NodeDocument,
        fields=["answered_version", "answered_at", "status", "error"],
        rows=[
            (answer.pk, answer.version, answer.at, answer.status, answer.error)
            for answer in answers
            if answer.status != DocumentStatus.APPLIED
        ],
    )


def _documents(nodes: Iterable[UUID]) -> dict[UUID, dict[str, _Document]]:
    found: dict[UUID, dict[str, _Document]] = {pk: {} for pk in nodes}
    rows = NodeDocument.objects.filter(node__in=found, dropped=False)
    for node_id, name, pk, version, sha256, status, answered_version, error in rows.values_list(
        "node_id", "name", "pk", "version", "sha256", "status", "answered_version", "error"
    ):
        found[node_id][name] = _Document(pk, version, sha256, status, answered_version, error)
    return found


def _judge(
    node: Node, reported: Reported, documents: dict[str, _Document], *, at: datetime | None
) -> _Judgement:
    """Compare what a node says it runs with what it should run."""
    is_of_epoch = reported.epoch == node.epoch
    above: str | None = None
    if reported.epoch > node.epoch:
        above = f"epoch {reported.epoch}, here {node.epoch}"
    elif is_of_epoch:
        highest = max((said.v for said in reported.documents.values()), default=0)
        if max(highest, reported.manifest_version) > node.manifest_version:
            above = f"version {max(highest, reported.manifest_version)}, here {node.manifest_version}"
    judgement = _Judgement(is_of_epoch and reported.manifest_version == node.manifest_version, above)
    for name, document in documents.items():
        answer = _answer(document, reported.documents.get(name), is_of_epoch=is_of_epoch)
        if answer is None:
            judgement.is_in_sync = False
            # What it once answered for and does not have any longer was answered all the same.
            status, error, answered = DocumentStatus.PENDING, "", document.answered_version
        else:
            (status, error), answered = answer, document.version
        if status == DocumentStatus.CONFLICT:
            judgement.is_in_sync = False
            judgement.above = judgement.above or f"{name}: {error}"
        if (status, error, answered) != (document.status, document.error, document.answered_version):
            judgement.changed.append(_Answer(document.pk, answered, at if answered else None, status, error))
    judgement.is_in_sync &= judgement.above is None
    return judgement


def _answer(
    document: _Document, said: AppliedDocument | None, *, is_of_epoch: bool
) -> tuple[DocumentStatus, str] | None:
    """A node's word about the present content of a document; None where it said nothing about that."""
    if said is None or said.v < document.version:
        return None
    is_same = document.sha256.startswith(said.digest) if said.digest else is_of_epoch
    if said.v == document.version and is_same:
        if said.status == APPLIED:
            return DocumentStatus.APPLIED, ""
        if said.status == FAILED:
            return DocumentStatus.FAILED, said.error.replace("\x00", "")[:ERROR_LENGTH]
        return None
    if not is_of_epoch:
        # It has not heard of this epoch yet.
        return None
    has = f"the node has version {said.v}, here it is {document.version}"
    return DocumentStatus.CONFLICT, has if said.v > document.version else f"{has} with other content"


def _sequence_above(node: Node, reported: Reported, *, highest: int) -> str | None:
    """Why its devices must have accepted a command that this database does not know; None where not.

    A device keeps the sequence it accepted of a former central: in the first report of an epoch it may be.
    """
    if reported.epoch != node.epoch:
        return None
    accepted = min(max(reported.sequences.values(), default=0), HIGHEST_VERSION)
    if node.foreign_sequence is None:
        node.foreign_sequence = accepted if accepted > highest else 0
    if accepted > max(highest, node.foreign_sequence):
        return f"sequence {accepted}, here {highest}"
    return None


def _epoch_raise(node: Node, reported: Reported, *, why: str, at: datetime) -> bool:
    """Give a node an epoch above all it knows, in which every document is new to it. False: too soon."""
    if node.epoch_raised_at is not None:
        ago = at - node.epoch_raised_at
        if -CLOCK_SLACK <= ago < RAISE_AGAIN_AFTER:
            return False
    node.epoch = max(node.epoch, reported.epoch) + 1
    node.epoch_raised_at = at
    node.foreign_sequence = None
    log.error("node_above_database", node=node.name, why=why, epoch=node.epoch)
    return True


def _out_of_sync_set(node: Node, *, is_in_sync: bool, at: datetime) -> None:
    if is_in_sync:
        node.out_of_sync_since = None
    elif node.out_of_sync_since is None:
        node.out_of_sync_since = at


def _digest(node: Node, reported: Reported) -> str:
    """Of all that a report is judged by, and of what it is judged against."""
    said = msgspec.json.encode(msgspec.structs.replace(reported, at="", mono_ms=0))
    against = f"{node.epoch} {node.manifest_version} ".encode()
    return hashlib.blake2b(against + said, digest_size=32).hexdigest()


def _stored_text(reported: Reported) -> str:
    """A report as JSON that the database can keep: PostgreSQL takes no NUL."""
    text = msgspec.json.encode(reported).decode()
    if "\\u0000" not in text:
        return text
    return msgspec.json.encode(_without_nul(msgspec.to_builtins(reported))).decode()


def _without_nul(value: Any) -> Any:
    match value:
        case str():
            return value.replace("\x00", "")
        case dict():
            return {_without_nul(key): _without_nul(each) for key, each in value.items()}
        case list() | tuple():
            return [_without_nul(each) for each in value]
        case _:
            return value


def reports_compare() -> int:
    """Judge the last report of every node once more; how many documents or nodes that corrected.

    What is judged at the arrival of a report stays so as long as both sides say the same: a fault in that, or
    a rule that changed with a new release, would last for ever.
    """
    keys = list(Node.objects.filter(last_reported__isnull=False).order_by("pk").values_list("pk", flat=True))
    corrected = 0
    for start in range(0, len(keys), NODES_AT_ONCE):
        with transaction.atomic():
            corrected += _compare(keys[start : start + NODES_AT_ONCE])
    if corrected:
        log.warning("reports_judged_otherwise", rows=corrected)
    return corrected


def _compare(keys: Sequence[UUID]) -> int:
    nodes = list(Node.objects.select_for_update(no_key=True).filter(pk__in=keys).order_by("pk"))
    documents = _documents(node.pk for node in nodes)
    answers: list[_Answer] = []
    rows: list[tuple[Any, ...]] = []
    for node in nodes:
        try:
            reported = msgspec.convert(node.last_reported, Reported)
        except msgspec.ValidationError as error:
            # Of another release of the wire: the node's next report takes its place.
            log.warning("kept_report_not_understood", node=node.name, error=str(error))
            continue
        judgement = _judge(node, reported, documents[node.pk], at=node.last_reported_at)
        answers += judgement.changed
        if judgement.is_in_sync != (node.out_of_sync_since is None):
            _out_of_sync_set(node, is_in_sync=judgement.is_in_sync, at=timezone.now())
            rows.append((node.pk, node.out_of_sync_since))
    _answers_store(answers)
    rows_update(Node, fields=["out_of_sync_since"], rows=rows)
    return len(answers) + len(rows)
