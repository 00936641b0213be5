"""Runs a set of processes: starts them, starts the fallen ones again, and ends them all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

LEASH = Path(__file__).with_name("leash.py")

# How often we look whether a process has ended.
WATCH_PERIOD_S = 0.2
# The same where somebody waits for it.
LOOK_AGAIN_S = 0.02
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
# A process that ran this long before it fell starts again after the first pause.
SETTLED_S = 60.0
LOG_TAIL_LINES = 15


class ProcessFailedError(Exception):
    """A process that had to succeed did not."""


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One process. Those of a higher stage are stopped before those of a lower one.

    `death_signal` is what the kernel sends it when the supervisor dies unexpectedly. SIGKILL is sure; a
    process that has children of its own gets SIGTERM, so that it can take them along.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    stage: int = 1
    death_signal: signal.Signals = signal.SIGKILL


@dataclass(kw_only=True)
class _Child:
    spec: ProcessSpec
    process: subprocess.Popen[bytes]
    started_s: float
    pause_s: float = FIRST_PAUSE_S
    # When to start it again; None while it runs.
    due_s: float | None = None


@dataclass(kw_only=True)
class Supervisor:
    """Owns the processes it started, each in a session of its own.

    A terminal's Ctrl-C therefore reaches the supervisor alone, which ends the others in order. Nothing it
    started outlives it: not on `stop`, and not when it is killed itself (`leash`).
    """

    log_dir: Path
    working_dir: Path
    say: Callable[[str], None]
    # Called after a process was started again, because its process id has changed.
    changed: Callable[[], None] = lambda: None
    grace_s: float = 6.0
    _children: dict[str, _Child] = field(default_factory=dict)
    _stopping: bool = False
    _hurry: bool = False

    def start(self, spec: ProcessSpec) -> None:
        """Start a process and keep it running until `stop`."""
        self._children[spec.name] = _Child(spec=spec, process=self._spawn(spec), started_s=time.monotonic())

    async def run_once(self, spec: ProcessSpec) -> None:
        """Run a process to its end; `ProcessFailedError` with the end of its log where that is not 0."""
        child = _Child(spec=spec, process=self._spawn(spec), started_s=time.monotonic())
        try:
            while child.process.poll() is None:  # noqa: ASYNC110 - only the kernel knows
                await asyncio.sleep(LOOK_AGAIN_S)
        finally:
            # Also when we are cancelled half-way: nothing may go on writing behind our back.
            _kill_group(child)
        if child.process.returncode != 0:
            raise ProcessFailedError(
                f"{spec.name} {_ending(child.process.returncode)}. The end of {self.log_path(spec.name)}:\n"
                f"{self.log_tail(spec.name)}"
            )

    async def watch(self) -> None:
        """Start again whatever ends, after a pause that grows while it keeps ending. Never returns."""
        while True:
            now = time.monotonic()
            for child in self._children.values():
                if child.due_s is None and child.process.poll() is not None:
                    self._mourn(child, now=now)
                elif child.due_s is not None and now >= child.due_s and not self._stopping:
                    child.process = self._spawn(child.spec)
                    child.started_s, child.due_s = now, None
                    self.say(f"{child.spec.name} runs again as process {child.process.pid}")
                    self.changed()
            await asyncio.sleep(WATCH_PERIOD_S)

    async def stop(self) -> None:
        """End every process, stage by stage: SIGTERM, and SIGKILL for what is left after the grace."""
        self._stopping = True
        for stage in sorted({child.spec.stage for child in self._children.values()}, reverse=True):
            members = [child for child in self._children.values() if child.spec.stage == stage]
            for child in members:
                if child.process.poll() is None:
                    # Its leader alone: it knows best how to end its own children.
                    with contextlib.suppress(ProcessLookupError):
                        child.process.terminate()
            deadline_s = time.monotonic() + self.grace_s
            while (  # noqa: ASYNC110 - the same
                any(child.process.poll() is None for child in members)
                and time.monotonic() < deadline_s
                and not self._hurry
            ):
                await asyncio.sleep(LOOK_AGAIN_S)
            for child in members:
                if child.process.poll() is None and not self._hurry:
                    self.say(f"{child.spec.name} did not end within {self.grace_s:g} s: killed")
                _kill_group(child)
        self._children.clear()

    def hurry(self) -> None:
        """Have a `stop` that is under way wait no longer."""
        self._hurry = True

    def pids(self) -> dict[str, int]:
        return {name: child.process.pid for name, child in self._children.items() if child.due_s is None}

    def log_path(self, name: str) -> Path:
        return self.log_dir / f"{name.replace(':', '-')}.log"

    def log_tail(self, name: str) -> str:
        try:
            text = self.log_path(name).read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])

    def _spawn(self, spec: ProcessSpec) -> subprocess.Popen[bytes]:
        with self._open_log(spec.name) as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    str(LEASH),
                    str(int(spec.death_signal)),
                    str(os.getpid()),
                    *spec.argv,
                ],
                env=dict(spec.env),
                cwd=self.working_dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _open_log(self, name: str) -> IO[bytes]:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        return self.log_path(name).open("ab")

    def _mourn(self, child: _Child, *, now: float) -> None:
        # What it left behind may still hold its port.
        _kill_group(child)
        lived_s = now - child.started_s
        child.pause_s = FIRST_PAUSE_S if lived_s >= SETTLED_S else child.pause_s
        child.due_s = now + child.pause_s
        self.say(
            f"{child.spec.name} (process {child.process.pid}) {_ending(child.process.returncode)}"
            f" after {lived_s:.0f} s; starting it again in {child.pause_s:g} s. Its log:"
            f" {self.log_path(child.spec.name)}"
        )
        child.pause_s = min(child.pause_s * 2, LONGEST_PAUSE_S)


def _kill_group(child: _Child) -> None:
    """End at once a process and all that it started and did not end itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.process.wait(timeout=5)


def _ending(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"
