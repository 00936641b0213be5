"""What a person may set about the demo, read from the environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

from smartgrid.demo.fleet import FLEETS, WHOLE
from smartgrid.env import env_int, env_str

ROOT = Path(__file__).resolve().parents[2]


class DemoError(Exception):
    """The demo cannot run, and a person can do something about it; the text says what."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The port of API and console (0: any free one), the time limit of both sites, where data lives.

    `broker` and `redis` are `system` (what is on PATH, else what comes with the demo) or name what comes
    with the demo: `iotcore`, `bundled`. `fleet` is which devices there are (`smartgrid.demo.fleet`).
    `record_writes`: a file to which the simulators append the moment of
    each write, for benchmarks; empty: none.
    """

    port: int
    time_limit_s: int
    var: Path
    broker: str = "system"
    redis: str = "system"
    fleet: str = WHOLE
    record_writes: str = ""


def demo_options() -> DemoOptions:
    """Read SGM_PORT, SGM_TIME_LIMIT, SGM_VAR and SGM_DEMO_*; `DemoError` if one is bad."""
    try:
        return DemoOptions(
            port=env_int("SGM_PORT", default=8000, minimum=0, maximum=65535),
            time_limit_s=env_int("SGM_TIME_LIMIT", default=60, minimum=1, maximum=3600),
            var=Path(env_str("SGM_VAR", default=str(ROOT / "var"))).expanduser().resolve(),
            broker=_choice("SGM_DEMO_BROKER", ("system", "iotcore")),
            redis=_choice("SGM_DEMO_REDIS", ("system", "bundled")),
            fleet=_choice("SGM_DEMO_FLEET", FLEETS),
            record_writes=env_str("SGM_DEMO_RECORD_WRITES"),
        )
    except ImproperlyConfigured as error:
        raise DemoError(str(error)) from error


def _choice(name: str, choices: tuple[str, ...]) -> str:
    text = env_str(name, default=choices[0])
    if text not in choices:
        raise DemoError(f"{name} is {text!r}; expected {' or '.join(choices)}")
    return text
