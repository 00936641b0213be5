"""The guard with real processes: killed, stopped and starved nodes, in the middle of a write to a device that
takes one session. No broker is there: nothing on the way from a hold to its release needs one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge.runtime.guard import EXIT_GUARDED
from edge.runtime.node import EXIT_BUS_TAKEN
from edge.simulators.device import Fault
from edge.simulators.modbus import SimulatedDevice
from edge.wire.codec import document
from tests.runtime.plant import profile
from tests.runtime.site import PROJECT, A, B, Site, running_site, until

pytestmark = pytest.mark.services

# One session, as most inverters have it, and patient enough for a device that answers late.
SINGLE_SESSION = profile(max_sessions=1, timeout_ms=3000)
# What a loaded machine may add to any of the figures below.
SLACK_S = 1.5
PARK = "PARK_01"
STALLED_S = 3.0


@pytest.fixture(scope="module")
def soon() -> float:
    """Seconds within which a node and its guard are at work, as busy as the machine is now."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import edge.runtime.node"], cwd=PROJECT, check=True)
    return 1 + 4 * (time.monotonic() - begin)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """One device at 100 %, its node's configuration on disk."""
    async with running_site(tmp_path, tags=(A,), kind=SINGLE_SESSION) as site:
        site.put_on_disk()
        yield site


def at(site: Site, value: float, tag: str = A) -> bool:
    return site.devices[tag].limit_in_force == value


def exit_code(process: subprocess.Popen[bytes]) -> int | None:
    return process.poll()


async def ended(process: subprocess.Popen[bytes], *, within_s: float = 15.0) -> int:
    return await asyncio.to_thread(process.wait, within_s)


async def stopped(process: subprocess.Popen[bytes]) -> int:
    """End a process as its supervisor does."""
    process.send_signal(signal.SIGTERM)
    return await ended(process)


async def holding(site: Site, value: float) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """A node at work, whose device is at the held value, and its guard."""
    node, guard = site.start(), site.guard()
    # The guard may have come first, and yields.
    await until(lambda: site.holds(node), within_s=20)
    await until(lambda: at(site, value))
    await until(lambda: watches(guard))
    return node, guard


def watches(guard: subprocess.Popen[bytes]) -> bool:
    """Tell whether a guard has come so far that it holds a pidfd of its node."""
    try:
        return any("pidfd" in str(entry.readlink()) for entry in Path(f"/proc/{guard.pid}/fd").iterdir())
    except OSError:
        return False


async def after_turn(site: Site) -> None:
    """Wait until the node has just stamped its sign of life."""
    before = site.sign()
    await until(lambda: site.sign() != before, within_s=5)


async def said_by(process: subprocess.Popen[bytes]) -> str:
    """The log of a process that has ended."""
    assert process.stderr is not None
    return (await asyncio.to_thread(process.stderr.read)).decode()


async def test_hold_of_a_proxy_outlives_its_killed_node_on_every_child_and_ends_on_time(tmp_path, soon):
    async with running_site(tmp_path, kind=SINGLE_SESSION) as site:
        site.proxy = PARK
        site.put_on_disk()
        ends = site.hold(30, for_s=3 * soon, tag=PARK)
        # Nobody answers there: the node is killed with the one child written and the other not.
        await site.devices[B].set_fault(Fault.SILENT)
        node, guard = site.start(), site.guard()
        await until(lambda: site.holds(node) and at(site, 30, A), within_s=20)
        node.kill()
        assert at(site, 100, B)
        await site.devices[B].set_fault(Fault.NONE)

        await until(lambda: site.holds(guard) and at(site, 30, B), within_s=20)
        assert time.monotonic() < ends - 0.5, "the machine is too slow for this test"
        await until(lambda: at(site, 100, A) and at(site, 100, B), within_s=3 * soon + SLACK_S)
        assert abs(time.monotonic() - ends) < SLACK_S
        assert (site.values(A), site.values(B)) == ([30, 100], [30, 100])


# --- dead, stopped, starved -----------------------------------------------------------------------


async def test_hold_of_a_killed_node_ends_on_time(site, soon):
    ends = site.hold(30, for_s=soon)
    node, guard = await holding(site, 30)
    killed = time.monotonic()
    assert killed < ends - 0.5, "the machine is too slow for this test"
    node.kill()

    await until(lambda: site.holds(guard))
    assert time.monotonic() - killed < 1 + SLACK_S
    await until(lambda: at(site, 100))
    assert 0 < site.writes[-1][0] - ends < 1 + SLACK_S
    await until(site.lapses)
    assert site.values() == [30, 100]
    assert site.sessions_refused == 0
    assert await stopped(guard) == 0
    entry = site.logged("watchdog")[0]
    assert (entry.value, entry.reason, entry.request_id) == (100, "time_limit by guard", "request-7")
    assert entry.devices[A].readback == 100


async def test_node_killed_in_the_middle_of_a_write_leaves_nothing_to_repeat(site, soon):
    await site.devices[A].set_fault(Fault.DELAY, delay_s=1.0)
    ends = site.hold(30, for_s=soon + 3)
    node = site.start()
    await until(lambda: site.holds(node), within_s=20)
    guard = site.guard()
    await until(lambda: site.values() == [30])
    # The device has taken the value, its answer is still under way.
    node.kill()

    await until(lambda: site.holds(guard))
    await site.devices[A].set_fault(Fault.NONE)
    await until(lambda: at(site, 100), within_s=20)
    assert 0 < site.writes[-1][0] - ends < 1 + SLACK_S
    assert site.values() == [30, 100]
    assert site.sessions_refused == 0


async def test_node_killed_in_the_middle_of_its_fallback_has_it_confirmed_and_logged(site, soon):
    site.hold(30, for_s=soon)
    await holding(site, 30)
    await site.devices[A].set_fault(Fault.DELAY, delay_s=0.4)
    node, guard = site.processes
    await until(lambda: site.values() == [30, 100])
    node.kill()
    await site.devices[A].set_fault(Fault.NONE)

    await until(lambda: site.holds(guard))
    await until(site.lapses)
    assert await stopped(guard) == 0
    assert site.lapses() == ["time_limit by guard"]
    assert site.values() == [30, 100]


async def test_stopped_node_is_killed_and_the_hold_ends(site, soon):
    await site.devices[A].set_fault(Fault.DELAY, delay_s=1.0)
    ends = site.hold(30, for_s=soon + 2)
    node = site.start()
    await until(lambda: site.holds(node), within_s=20)
    guard = site.guard()
    await until(lambda: watches(guard))
    # The device has taken the value, its answer is still under way.
    await until(lambda: site.values() == [30])
    halted = time.monotonic()
    node.send_signal(signal.SIGSTOP)

    assert await ended(node) == -signal.SIGKILL
    # Its last turn may have been a second before it was stopped.
    assert STALLED_S - 1.1 < time.monotonic() - halted < STALLED_S + SLACK_S
    await site.devices[A].set_fault(Fault.NONE)
    await until(lambda: at(site, 100))
    assert 0 < site.writes[-1][0] - max(ends, halted + STALLED_S) < 2 + SLACK_S
    await until(site.lapses)
    assert site.values() == [30, 100]
    assert site.sessions_refused == 0
    assert await stopped(guard) == 0
    assert site.lapses() == ["time_limit by guard"]


async def test_node_that_was_stopped_for_two_seconds_lives(site, soon):
    ends = site.hold(30, for_s=soon + 3)
    node, guard = await holding(site, 30)
    await after_turn(site)
    halted = time.monotonic()
    node.send_signal(signal.SIGSTOP)
    await until(lambda: time.monotonic() >= halted + 2)
    node.send_signal(signal.SIGCONT)

    await after_turn(site)
    assert (exit_code(node), exit_code(guard)) == (None, None)
    assert site.holds(node)
    await until(lambda: at(site, 100))
    assert 0 < site.writes[-1][0] - ends < 1 + SLACK_S
    assert site.sessions_refused == 0


async def test_starved_node_keeps_its_word_or_is_replaced(site, soon):
    ends = site.hold(30, for_s=soon)
    node, guard = await holding(site, 30)
    core = min(os.sched_getaffinity(0))
    burner = site.spawn([sys.executable, "-c", "while True: pass"])
    for process in (burner, node):
        os.sched_setaffinity(process.pid, {core})
    os.setpriority(os.PRIO_PROCESS, node.pid, 19)

    await until(lambda: at(site, 100), within_s=15)
    burner.kill()
    assert 0 < site.writes[-1][0] - ends < STALLED_S + 1 + SLACK_S
    assert site.values() == [30, 100]
    assert site.sessions_refused == 0
    assert site.holds(guard) or exit_code(node) is None


async def test_schedule_is_revealed_by_the_guard(site, soon):
    now = datetime.now(UTC)
    slots = {f"{hour:02}:{minute:02}": 60 for hour in range(24) for minute in (0, 15, 30, 45)}
    body = {"date": f"{now:%Y-%m-%d}", "category": "inverter", "slots": slots}
    site.put_on_disk(inverter=document(body, epoch=1, version=1))
    site.hold(30, for_s=soon)
    node, guard = await holding(site, 30)
    node.kill()

    await until(site.lapses, within_s=20)
    assert at(site, 60)
    assert await stopped(guard) == 0
    assert site.logged("watchdog")[0].value == 60


async def test_log_that_nobody_reads_stops_neither_node_nor_guard(tmp_path, soon):
    # So many devices that nobody answers for that a pipe (64 KiB) is full within seconds.
    async with running_site(tmp_path, tags=(A,)) as site:
        for number in range(400):
            site.devices[f"GONE_{number:03}"] = SimulatedDevice(
                profile=site.kind, unit=1, nameplate_kw=60, port=1
            )
        site.put_on_disk()
        ends = site.hold(30, for_s=soon + 5)
        node, guard = await holding(site, 30)
        for _ in range(4):
            await after_turn(site)
        assert site.holds(node)
        node.kill()
        await until(lambda: site.holds(guard))
        await until(lambda: at(site, 100), within_s=20)
        assert 0 < site.writes[-1][0] - ends < 1 + SLACK_S


# --- and back -------------------------------------------------------------------------------------


async def test_restarted_node_waits_for_the_guard_and_resumes_what_it_left(site, soon):
    ends = site.hold(30, for_s=2 * soon)
    node, guard = await holding(site, 30)
    node.kill()
    await until(lambda: site.holds(guard))

    second = site.start()
    await until(lambda: site.holds(second), within_s=20)
    assert exit_code(guard) is None
    await until(lambda: site.devices[A]._sessions)
    assert site.values() == [30]
    await until(lambda: at(site, 100), within_s=20)
    assert 0 < site.writes[-1][0] - ends < 1 + SLACK_S
    await until(site.lapses)
    assert site.values() == [30, 100]
    assert site.sessions_refused == 0
    assert await stopped(guard) == 0
    assert await stopped(second) == 0
    assert site.lapses() == ["time_limit"]


async def test_node_hears_of_all_that_the_guard_did(site, soon):
    site.hold(30, for_s=soon)
    node, guard = await holding(site, 30)
    node.kill()
    await until(lambda: at(site, 100))
    await until(site.lapses)

    second = site.start()
    await until(lambda: site.holds(second), within_s=20)
    assert await stopped(guard) == 0
    assert await stopped(second) == 0
    entries = site.logged("watchdog")
    assert [(entry.reason, entry.value) for entry in entries] == [("time_limit by guard", 100)]
    assert site.values() == [30, 100]


async def test_guard_ends_a_write_under_way_before_it_yields(site, soon):
    delay_s = 1.0
    site.hold(30, for_s=soon)
    node, guard = await holding(site, 30)
    node.kill()
    await until(lambda: site.holds(guard))
    await site.devices[A].set_fault(Fault.DELAY, delay_s=delay_s)
    await until(lambda: site.values() == [30, 100])
    # The write's answer is under way, and its read-back still to come, when the node asks.
    second = site.start()
    await until(lambda: site.holds(second), within_s=20)

    assert time.monotonic() - site.writes[-1][0] >= 2 * delay_s
    await site.devices[A].set_fault(Fault.NONE)
    await until(lambda: site.devices[A]._sessions)
    assert site.values() == [30, 100]
    assert site.sessions_refused == 0
    assert await stopped(guard) == 0
    assert await stopped(second) == 0
    assert site.lapses() == ["time_limit by guard"]


async def test_stalled_guard_is_killed_by_the_node_that_waits_for_it(site):
    site.hold(30, for_s=60)
    node, guard = await holding(site, 30)
    node.kill()
    await until(lambda: site.holds(guard))
    guard.send_signal(signal.SIGSTOP)
    second = site.start()

    assert await ended(guard) == -signal.SIGKILL
    await until(lambda: site.holds(second))
    await until(lambda: site.devices[A]._sessions)
    assert site.values() == [30]


async def test_guard_killed_in_the_middle_of_a_write_is_followed_by_another(site, soon):
    ends = site.hold(30, for_s=soon)
    node, guard = await holding(site, 30)
    node.kill()
    await until(lambda: site.holds(guard))
    await site.devices[A].set_fault(Fault.DELAY, delay_s=0.4)
    await until(lambda: site.values() == [30, 100])
    assert site.writes[-1][0] > ends
    guard.kill()

    another = site.guard()
    await until(lambda: site.holds(another), within_s=20)
    await site.devices[A].set_fault(Fault.NONE)
    await until(site.lapses)
    assert await stopped(another) == 0
    assert site.values() == [30, 100]
    assert site.sessions_refused == 0
    assert site.lapses() == ["time_limit by guard"]


async def test_killed_guard_harms_nothing(site, soon):
    ends = site.hold(30, for_s=soon)
    node, guard = await holding(site, 30)
    guard.kill()

    await until(lambda: at(site, 100))
    assert 0 < site.writes[-1][0] - ends < 1 + SLACK_S
    assert exit_code(node) is None


# --- starts ---------------------------------------------------------------------------------------


async def test_node_and_guard_that_start_together_end_with_the_node_at_work(site):
    site.hold(30, for_s=60)
    guard, node = site.guard(), site.start()

    await until(lambda: site.holds(node), within_s=20)
    await until(lambda: at(site, 30))
    assert (exit_code(node), exit_code(guard)) == (None, None)
    assert site.values() == [30]
    assert site.sessions_refused == 0


async def test_second_guard_is_turned_away(site):
    first = site.guard()
    await until(lambda: site.holds(first), within_s=20)
    second = site.guard()

    assert await ended(second, within_s=20) == EXIT_GUARDED
    assert exit_code(first) is None


async def test_second_node_is_turned_away_beside_a_guard_too(site):
    site.hold(30, for_s=60)
    node, _ = await holding(site, 30)
    second = site.start()

    assert await ended(second, within_s=20) == EXIT_BUS_TAKEN
    assert exit_code(node) is None
    assert site.holds(node)


async def test_guard_alone_drops_the_hold_of_another_boot(site):
    site.hold(30, for_s=60, boot="another-boot")
    site.devices[A].registers.set("limit_target", 30)
    site.devices[A].take_limit()
    guard = site.guard()

    await until(lambda: at(site, 100), within_s=20)
    await until(site.lapses)
    assert await stopped(guard) == 0
    assert site.lapses() == ["reboot by guard"]


async def test_guard_without_a_configuration_writes_nothing(site):
    for path in (site.state / "documents").glob("*.json"):
        path.unlink()
    site.devices[A].registers.set("limit_target", 30)
    site.devices[A].take_limit()
    guard = site.guard()

    await until(lambda: site.holds(guard), within_s=20)
    assert await stopped(guard) == 0
    assert site.devices[A].commands == 0


async def test_guard_says_what_is_damaged_and_goes_on_with_the_rest(site):
    (site.state / "documents" / "schedule~2026-01-01~inverter.json").write_text("{")
    (site.state / "node.sqlite3").write_bytes(b"not a database" * 100)
    site.devices[A].registers.set("limit_target", 30)
    site.devices[A].take_limit()
    guard = site.guard()

    await until(lambda: at(site, 100), within_s=20)
    assert await stopped(guard) == 0
    said = await said_by(guard)
    assert "file cannot be read" in said
    assert "the store is damaged, begun anew" in said


async def test_guard_keeps_the_nodes_word_from_a_disk_that_takes_no_writes(site, soon):
    ends = site.hold(30, for_s=2 * soon)
    node, first = await holding(site, 30)
    first.kill()
    node.kill()
    await ended(node)
    guard = site.spawn(
        [*read_only(site.state), sys.executable, "-m", "edge", "guard", "--state", str(site.state)]
    )

    await until(lambda: at(site, 100), within_s=20)
    assert 0 < site.writes[-1][0] - ends < 1 + SLACK_S
    assert site.values() == [30, 100]
    assert await stopped(guard) == 0
    assert "guarding on a copy in memory" in await said_by(guard)


def read_only(directory: Path) -> list[str]:
    """The start of a command that sees this directory on a disk that was made read-only."""
    if os.geteuid() != 0:
        for path in [*directory.rglob("*"), directory]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        return []
    # Root writes where it likes, but for a read-only mount: one that only this process sees.
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, str(directory)]
