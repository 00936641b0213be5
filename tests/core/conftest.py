"""How long hypothesis looks: `quick` in seconds, `default` in `make test`, `long` in `make test-all`.

The first two always find the same, so that a red suite is the fault of the change that made it red; the last
looks elsewhere each time. `mutation` is for `make mutation`.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

# Two cores shared with simulators and brokers: how long one example takes says nothing about the core.
_ALWAYS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", _ALWAYS, derandomize=True, max_examples=20, stateful_step_count=40)
settings.register_profile("default", _ALWAYS, derandomize=True, max_examples=100, stateful_step_count=50)
settings.register_profile("long", _ALWAYS, max_examples=1000, stateful_step_count=100, print_blob=True)
# Against mutants: that there is a counterexample is enough, nobody reads the smallest.
settings.register_profile(
    "mutation",
    settings.get_profile("quick"),
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
