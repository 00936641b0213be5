"""Python's cycle collector, told what it need not look at.

After its imports a process of ours holds some hundred thousand objects that live as long as it does. Left
alone, the collector walks through them again and again in the middle of requests.
"""

from __future__ import annotations

import gc

# Objects made before the young are looked at: a request makes some ten thousand, nearly all without cycles.
YOUNG = 20_000


def collector_settle() -> None:
    """Set aside what is there now, for good, and look less often. Once, when a process is ready to serve."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 50)
