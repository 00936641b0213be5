"""What a person may set about the demo, read from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class DemoError(Exception):
    """The demo cannot run, and a person can do something about it; the text says what."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """`port` of the API and the console, 0 for any free one; `time_limit_s` of both demo sites; where data lives.

    `broker` and `redis` are `system` (what is on PATH, else what comes with the demo) or name what comes with
    the demo: `iotcore`, `bundled`.
    """

    port: int
    time_limit_s: int
    var: Path
    broker: str = "system"
    redis: str = "system"


def demo_options(environ: Mapping[str, str] = os.environ) -> DemoOptions:
    """Read `SGM_PORT`, `SGM_TIME_LIMIT`, `SGM_VAR`, `SGM_DEMO_BROKER`, `SGM_DEMO_REDIS`; `DemoError` if bad."""
    return DemoOptions(
        port=_whole_number(environ, "SGM_PORT", default=8000, least=0, most=65535),
        time_limit_s=_whole_number(environ, "SGM_TIME_LIMIT", default=60, least=1, most=3600),
        var=Path(environ.get("SGM_VAR") or ROOT / "var").expanduser().resolve(),
        broker=_choice(environ, "SGM_DEMO_BROKER", ("system", "iotcore")),
        redis=_choice(environ, "SGM_DEMO_REDIS", ("system", "bundled")),
    )


def _whole_number(environ: Mapping[str, str], name: str, *, default: int, least: int, most: int) -> int:
    text = environ.get(name) or str(default)
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise DemoError(f"{name} is {text!r}: a whole number from {least} to {most} is wanted")
    return number


def _choice(environ: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    text = environ.get(name) or choices[0]
    if text not in choices:
        raise DemoError(f"{name} is {text!r}: one of {', '.join(choices)} is wanted")
    return text
