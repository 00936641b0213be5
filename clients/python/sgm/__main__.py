"""`python -m sgm` is `sgm`."""

from __future__ import annotations

import sys

from sgm.cli import main

sys.exit(main())
