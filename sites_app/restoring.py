"""After central's database was restored from a backup: nodes know more than it does."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from django.db import transaction
from django.db.models import F, Max, Min, Value
from django.db.models.functions import Greatest
from django.utils import timezone

from sites_app.documents import nodes_sync_on_commit
from sites_app.models import DocumentStatus, Node, NodeDocument

log = structlog.stdlib.get_logger(__name__)

EPOCHS_BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done: to how many nodes and documents, and between which epochs the nodes are now."""

    nodes: int
    documents: int
    lowest_epoch: int
    highest_epoch: int


def central_restored(*, now: datetime | None = None) -> Restored:
    """Have every node take what this database says over all that it was told before, whatever the versions.

    Each node gets a higher epoch: in it, documents and commands are new to the node. Nothing is taken for
    published or answered. A second time is harmless: it does the same again.

    The epoch counts minutes, and so is also above that of a central which was restored from the same backup
    before: by one more than the backup's it would be the same, with other content.
    """
    now = now or timezone.now()
    minutes = int((now - EPOCHS_BEGIN).total_seconds() // 60)
    with transaction.atomic():
        keys = list(Node.objects.select_for_update(no_key=True).order_by("pk").values_list("pk", flat=True))
        nodes = Node.objects.all()
        nodes.update(
            epoch=Greatest(F("epoch") + 1, Value(minutes)),
            epoch_raised_at=now,
            foreign_sequence=None,
            published_epoch=0,
            published_version=0,
            reported_digest="",
            out_of_sync_since=now,
        )
        documents = NodeDocument.objects.all().update(
            published_epoch=0,
            published_version=0,
            status=DocumentStatus.PENDING,
            answered_version=0,
            answered_at=None,
            error="",
        )
        epochs = nodes.aggregate(lowest=Min("epoch"), highest=Max("epoch"))
        nodes_sync_on_commit(keys)
    done = Restored(len(keys), documents, epochs["lowest"] or 0, epochs["highest"] or 0)
    log.error("central_restored", nodes=done.nodes, documents=done.documents, epoch=done.highest_epoch)
    return done
