"""The supervisor on real processes: what falls is started again, and nothing outlives it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from smartgrid.demo.supervisor import ProcessFailedError, ProcessSpec, Supervisor
from tests.servers import until

ROOT = Path(__file__).resolve().parents[2]
WITHIN_S = 10.0
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
PARENT = (
    "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    " print(child.pid, flush=True); time.sleep(60)"
)


def python(name: str, code: str, *, stage: int = 1) -> ProcessSpec:
    return ProcessSpec(name=name, argv=(sys.executable, "-c", code), env=dict(os.environ), stage=stage)


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


class Told(list[str]):
    """What the supervisor said, line by line."""


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def supervisor(tmp_path: Path, told: Told) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(log_dir=tmp_path / "log", working_dir=ROOT, say=told.append, grace_s=0.5)
    watching = asyncio.create_task(supervisor.watch(), name="watch")
    yield supervisor
    watching.cancel()
    await supervisor.stop()


async def logged(supervisor: Supervisor, name: str) -> str:
    async with asyncio.timeout(WITHIN_S):
        while not (text := supervisor.log_tail(name)):  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
    return text


async def test_process_that_dies_is_named_and_started_again(supervisor: Supervisor, told: Told):
    supervisor.start(python("worker", "import time; time.sleep(60)"))
    first = supervisor.pids()["worker"]
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(WITHIN_S):
        while supervisor.pids().get("worker") in (first, None):  # noqa: ASYNC110 - the kernel's news
            await asyncio.sleep(0.01)
    assert f"worker (process {first}) was ended by SIGKILL" in told[0]
    assert "worker.log" in told[0]


async def test_pause_grows_while_a_process_keeps_dying(supervisor: Supervisor, told: Told):
    supervisor.start(python("web", "raise SystemExit(3)"))
    async with asyncio.timeout(WITHIN_S):
        while sum("ended" in line for line in told) < 2:  # noqa: ASYNC110 - the kernel's news
            await asyncio.sleep(0.01)
    ended = [line for line in told if "ended" in line]
    assert "exit code 3" in ended[0]
    assert "again in 0.5 s" in ended[0]
    assert "again in 1 s" in ended[1]


async def test_process_that_ignores_sigterm_is_killed_after_the_grace(supervisor: Supervisor, told: Told):
    supervisor.start(python("web", STUBBORN))
    await logged(supervisor, "web")
    pid = supervisor.pids()["web"]
    await supervisor.stop()
    assert not lives(pid)
    assert told == ["web did not end within 0.5 s: killed"]


async def test_hurried_stop_does_not_wait_for_the_grace(tmp_path: Path, told: Told):
    supervisor = Supervisor(log_dir=tmp_path, working_dir=ROOT, say=told.append, grace_s=3600)
    supervisor.start(python("web", STUBBORN))
    await logged(supervisor, "web")
    pid = supervisor.pids()["web"]
    supervisor.hurry()
    async with asyncio.timeout(WITHIN_S):
        await supervisor.stop()
    assert not lives(pid)


async def test_children_of_a_process_end_with_it(supervisor: Supervisor):
    supervisor.start(python("web", PARENT))
    grandchild = int(await logged(supervisor, "web"))
    await supervisor.stop()
    until(lambda: not lives(grandchild), what="the child's child lives on", within_s=WITHIN_S)


async def test_higher_stage_ends_before_a_lower_one(supervisor: Supervisor, tmp_path: Path):
    trace = tmp_path / "trace"
    code = (
        "import pathlib, signal, sys, time\n"
        "def end(*_):\n"
        "    with open({path!r}, 'a') as file: file.write({name!r} + '\\n')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    for name, stage in (("broker", 0), ("node", 1)):
        supervisor.start(python(name, code.format(path=str(trace), name=name), stage=stage))
        await logged(supervisor, name)
    await supervisor.stop()
    assert trace.read_text().split() == ["node", "broker"]


async def test_failed_single_run_tells_the_end_of_its_log(supervisor: Supervisor):
    with pytest.raises(ProcessFailedError, match=r"seed ended with exit code 1[\s\S]*no such table"):
        await supervisor.run_once(python("seed", "raise SystemExit('no such table')"))


def test_killed_supervisor_leaves_nothing_behind(tmp_path: Path):
    code = f"""
import asyncio, os, sys
from pathlib import Path
from smartgrid.demo.supervisor import ProcessSpec, Supervisor

supervisor = Supervisor(log_dir=Path({str(tmp_path)!r}), working_dir=Path.cwd(), say=print)
for name in ("one", "two"):
    argv = (sys.executable, "-c", {STUBBORN!r})
    supervisor.start(ProcessSpec(name=name, argv=argv, env=dict(os.environ)))
print(*supervisor.pids().values(), flush=True)
asyncio.run(supervisor.watch())
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        children = [int(pid) for pid in process.stdout.readline().split()]
    until(lambda: all((tmp_path / f"{name}.log").read_text() for name in ("one", "two")), what="not started")
    assert all(lives(pid) for pid in children)
    process.kill()
    process.wait()
    until(lambda: not any(lives(pid) for pid in children), what=f"{children} live on", within_s=WITHIN_S)
