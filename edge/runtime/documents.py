"""Desired state at the node: documents applied one by one, each against the manifest's hash.

The newest manifest, by epoch and version, is the only authority: a document is applied when the manifest
lists exactly its version and hash. One that cannot be used keeps its predecessor, is reported `failed` with
its error, and holds up no other. Messages arrive in any order, twice, or not at all, so documents wait in
memory for their manifest. What a manifest no longer lists is dropped, except `config`: without one, the node
would leave its devices to themselves, so it goes on by the last until another takes its place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import structlog

from edge.runtime.store import Store
from edge.wire import codec
from edge.wire.messages import DIGEST_LENGTH, AppliedDocument, Document, Manifest

log = structlog.get_logger()

MANIFEST = "manifest"
CONFIG = "config"
SCHEDULES = "schedule/"
# Documents that wait for their manifest: so many of each name, the newest, and of so many names.
WAITING_EACH = 3
WAITING_NAMES = 1000


class DocumentRefused(Exception):  # noqa: N818 - states the fault
    """A document is intact and listed, and cannot be used; its message says why."""


# Takes all applied documents, and the name of the one that is new; raises DocumentRefused.
Apply = Callable[[dict[str, Document], str], None]


@dataclass(slots=True)
class Desired:
    """The documents of one node.

    `take_manifest` and `take` only decide what is to be done. `step` does it, one document at a time: whoever
    calls it lets others in between, for a slow disk takes its time over each.
    """

    store: Store
    apply: Apply
    changed: Callable[[], None]
    manifest: Manifest | None = None
    applied: dict[str, Document] = field(default_factory=dict)
    failed: dict[str, AppliedDocument] = field(default_factory=dict)
    # Not listed yet: each is newer than the manifest.
    _waiting: dict[str, list[Document]] = field(default_factory=dict)
    # Listed, and to be applied by `step`.
    _ready: dict[str, Document] = field(default_factory=dict)
    # In force, but not on the disk.
    _unkept: set[str] = field(default_factory=set)

    def load(self) -> None:
        """Take up what is on disk: a node runs from its disk before it connects.

        Nothing is applied whose hash does not hold.
        """
        self.manifest = self.store.manifest()
        found = self.store.documents()
        # The configuration last: its devices must find their schedules, or they would begin at the default.
        for name in sorted(found, key=lambda name: name == CONFIG):
            doc = found[name]
            if name != CONFIG and self.manifest is not None and name not in self.manifest.docs:
                # The process ended between a manifest without it and its removal.
                self.store.drop_document(name)
                continue
            if not codec.is_intact(doc):
                log.error("document on disk is damaged", document=name)
                continue
            self._try(name, doc, keep=False)
        self._renumber()

    @property
    def epoch(self) -> int:
        return self.manifest.epoch if self.manifest is not None else 0

    @property
    def version(self) -> int:
        return self.manifest.version if self.manifest is not None else 0

    @property
    def is_settled(self) -> bool:
        """Whether `step` has nothing to do."""
        return not self._ready

    def reported(self) -> dict[str, AppliedDocument]:
        good = {
            name: AppliedDocument(v=doc.version, status="applied", digest=doc.sha256[:DIGEST_LENGTH])
            for name, doc in self.applied.items()
        }
        return good | self.failed

    def take_manifest(self, manifest: Manifest) -> None:
        current = self.manifest
        if current is not None and (manifest.epoch, manifest.version) < (current.epoch, current.version):
            log.warning("older manifest ignored", version=manifest.version, current=current.version)
            return
        if manifest == current:
            return
        self.manifest = manifest
        self._keep_manifest()
        for name in [name for name in self.applied if name not in manifest.docs and name != CONFIG]:
            self._drop(name)
        for name in [name for name in self.failed if name not in manifest.docs and name not in self.applied]:
            del self.failed[name]
        self._ready = {name: doc for name, doc in self._ready.items() if self._is_listed(name, doc)}
        self._renumber()
        for name, waiting in list(self._waiting.items()):
            del self._waiting[name]
            for doc in waiting:
                self._put(name, doc)
        self.changed()

    def take(self, name: str, doc: Document) -> None:
        """A document arrived; where the manifest lists it, `step` applies it."""
        self._put(name, doc)

    def _put(self, name: str, doc: Document) -> None:
        if self._is_listed(name, doc):
            current = self.applied.get(name)
            if current is None or _identity(current) != _identity(doc):
                self._ready[name] = doc
            return
        if (doc.epoch, doc.version) <= (self.epoch, self.version):
            # No later manifest will list it: a document that changes gets a higher version.
            return
        others = [other for other in self._waiting.pop(name, []) if _identity(other) != _identity(doc)]
        self._waiting[name] = sorted([*others, doc], key=lambda each: (each.epoch, each.version))[
            -WAITING_EACH:
        ]
        while len(self._waiting) > WAITING_NAMES:
            del self._waiting[next(iter(self._waiting))]

    def step(self) -> bool:
        """Apply one of the documents that arrived and are listed; whether there are more."""
        if not self._ready:
            return False
        # The configuration last, as at the start.
        name = min(self._ready, key=lambda name: name == CONFIG)
        doc = self._ready.pop(name)
        current = self.applied.get(name)
        if not codec.is_intact(doc):
            log.error("document arrived damaged", document=name, version=doc.version)
            self._failed(name, doc, "it arrived damaged: its hash does not match its body")
        elif current is not None and current.sha256 == doc.sha256:
            # What is in force already, under another number.
            self.applied[name] = doc
            self.failed.pop(name, None)
            self._unkept.discard(name)
            self._keep(name)
        else:
            self._try(name, doc, keep=True)
        self.changed()
        return bool(self._ready)

    def settle(self) -> None:
        """Do all that is to be done at once."""
        while self.step():
            continue

    def keep_again(self) -> None:
        """Write down what the disk has not taken so far."""
        if MANIFEST in self._unkept:
            self._keep_manifest()
        for name in self._unkept - {MANIFEST}:
            told = self.failed.get(name)
            self._keep(name)
            if name in self._unkept:
                continue
            # What was said of it may be of a newer one, which was refused.
            if told is not None and told.v == self.applied[name].version:
                del self.failed[name]
            self.changed()

    def _is_listed(self, name: str, doc: Document) -> bool:
        listed = self.manifest.docs.get(name) if self.manifest is not None else None
        return listed is not None and (listed.v, listed.sha256) == _identity(doc)

    def _renumber(self) -> None:
        """What is in force already needs nothing but the number by which the manifest lists it."""
        if self.manifest is None:
            return
        for name, listed in self.manifest.docs.items():
            doc = self.applied.get(name)
            if doc is not None and doc.sha256 == listed.sha256 and doc.version != listed.v:
                self._ready[name] = msgspec.structs.replace(doc, epoch=self.epoch, version=listed.v)

    def _try(self, name: str, doc: Document, *, keep: bool) -> None:
        before = self.applied.get(name)
        self.applied[name] = doc
        try:
            self.apply(self.applied, name)
        except DocumentRefused as error:
            log.warning("document refused", document=name, version=doc.version, error=str(error))
            self._failed(name, doc, str(error))
            if before is None:
                del self.applied[name]
            else:
                self.applied[name] = before
            return
        self.failed.pop(name, None)
        self._unkept.discard(name)
        if keep:
            self._keep(name)
        log.info("document applied", document=name, version=doc.version)

    def _keep(self, name: str) -> None:
        doc = self.applied[name]
        try:
            self.store.keep_document(name, doc)
        except OSError as error:
            if name in self._unkept:
                return
            log.error("document cannot be stored", document=name, error=str(error))  # noqa: TRY400
            self._unkept.add(name)
            self._failed(name, doc, f"in force, but lost at a restart: it cannot be stored: {error}")
        else:
            self._unkept.discard(name)

    def _keep_manifest(self) -> None:
        assert self.manifest is not None
        try:
            self.store.keep_manifest(self.manifest)
        except OSError as error:
            if MANIFEST not in self._unkept:
                log.error("manifest cannot be stored", version=self.version, error=str(error))  # noqa: TRY400
            self._unkept.add(MANIFEST)
        else:
            self._unkept.discard(MANIFEST)

    def _failed(self, name: str, doc: Document, error: str) -> None:
        self.failed[name] = AppliedDocument(
            v=doc.version, status="failed", error=error, digest=doc.sha256[:DIGEST_LENGTH]
        )

    def _drop(self, name: str) -> None:
        del self.applied[name]
        self.failed.pop(name, None)
        self._unkept.discard(name)
        self.store.drop_document(name)
        self.apply(self.applied, name)
        log.info("document dropped", document=name)


def _identity(doc: Document) -> tuple[int, str]:
    """What a manifest knows a document by."""
    return doc.version, doc.sha256
