"""How long hypothesis looks: `quick` always finds the same in seconds, `thorough` looks further each night."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Two cores shared with simulators and brokers: how long one example takes says nothing about the core.
settings.register_profile(
    "quick",
    deadline=None,
    derandomize=True,
    max_examples=100,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough",
    deadline=None,
    max_examples=1000,
    stateful_step_count=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
