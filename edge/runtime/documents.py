"""Desired state at the node: documents applied one by one, each against the manifest's hash.

A document is applied when the manifest lists exactly its version and hash, and when it is newer than the one
applied. One that cannot be used keeps its predecessor, is reported `failed` with its error, and holds up no
other. Retained messages arrive in any order, so documents wait in memory for their manifest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from edge.runtime.store import Store
from edge.wire import codec
from edge.wire.messages import AppliedDocument, Document, Manifest

log = structlog.get_logger()

MANIFEST = "manifest"
CONFIG = "config"
SCHEDULES = "schedule/"


class DocumentRefused(Exception):  # noqa: N818 - states the fault
    """A document is intact and listed, and cannot be used; its message says why."""


# Takes all applied documents, and the name of the one that is new; raises DocumentRefused.
Apply = Callable[[dict[str, Document], str], None]


@dataclass(slots=True)
class Desired:
    """The documents of one node."""

    store: Store
    apply: Apply
    changed: Callable[[], None]
    manifest: Manifest | None = None
    applied: dict[str, Document] = field(default_factory=dict)
    failed: dict[str, AppliedDocument] = field(default_factory=dict)
    _waiting: dict[str, Document] = field(default_factory=dict)

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

    @property
    def epoch(self) -> int:
        return self.manifest.epoch if self.manifest is not None else 0

    @property
    def version(self) -> int:
        return self.manifest.version if self.manifest is not None else 0

    def reported(self) -> dict[str, AppliedDocument]:
        good = {name: AppliedDocument(v=doc.version, status="applied") for name, doc in self.applied.items()}
        return good | self.failed

    def take_manifest(self, manifest: Manifest) -> None:
        current = self.manifest
        if current is not None and (manifest.epoch, manifest.version) < (current.epoch, current.version):
            log.warning("older manifest ignored", version=manifest.version, current=current.version)
            return
        if manifest == current:
            return
        self.manifest = manifest
        try:
            self.store.keep_manifest(manifest)
        except OSError as error:
            # It comes again at the next connect; meanwhile it holds from memory.
            log.error("manifest cannot be stored", version=manifest.version, error=str(error))  # noqa: TRY400
        for name in [name for name in self.applied if name not in manifest.docs and name != CONFIG]:
            self._drop(name)
        for name in [name for name in self.failed if name not in manifest.docs]:
            del self.failed[name]
        for name in sorted(self._waiting, key=lambda name: name == CONFIG):
            self._consider(name)
        self.changed()

    def take(self, name: str, doc: Document) -> None:
        if not codec.is_intact(doc):
            log.error("document arrived damaged", document=name, version=doc.version)
            current = self.applied.get(name)
            if current is None or doc.version > current.version:
                self._failed(name, doc, "it arrived damaged: its hash does not match its body")
                self.changed()
            return
        waiting = self._waiting.get(name)
        if waiting is not None and (doc.epoch, doc.version) < (waiting.epoch, waiting.version):
            # Overtaken on its way: the newer one waits for its manifest already.
            return
        self._waiting[name] = doc
        self._consider(name)

    def _consider(self, name: str) -> None:
        doc = self._waiting[name]
        listed = self.manifest.docs.get(name) if self.manifest is not None else None
        if listed is None or (listed.v, listed.sha256) != (doc.version, doc.sha256):
            return
        del self._waiting[name]
        current = self.applied.get(name)
        if current is not None and (doc.epoch, doc.version) <= (current.epoch, current.version):
            return
        self._try(name, doc, keep=True)
        self.changed()

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
        if keep:
            try:
                self.store.keep_document(name, doc)
            except OSError as error:
                log.error("document cannot be stored", document=name, error=str(error))  # noqa: TRY400
                self._failed(name, doc, f"in force, but lost at a restart: it cannot be stored: {error}")
                return
        log.info("document applied", document=name, version=doc.version)

    def _failed(self, name: str, doc: Document, error: str) -> None:
        self.failed[name] = AppliedDocument(v=doc.version, status="failed", error=error)

    def _drop(self, name: str) -> None:
        del self.applied[name]
        self.store.drop_document(name)
        self.apply(self.applied, name)
        log.info("document dropped", document=name)
