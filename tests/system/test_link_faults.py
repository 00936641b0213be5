"""Whatever dies on the way of desired state and of the log: afterwards every node runs exactly what the
database says, `synchronization_result` agrees, and no log row is lost or doubled.

One fleet lives through all of it, each test on what the one before has left. A fault strikes at a moment which
the test has made: something is held there, and is seen to be held.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.servers import until
from tests.system.fleet import EdgeNode, Fleet, running_fleet

pytestmark = pytest.mark.system

A, B = "site_a", "site_b"
# All the days that a manifest lists.
DAYS = 36
EVERYTHING = {A: DAYS, B: DAYS}
DOCUMENTS = "sites_app_nodedocument"
LOG = "control_app_controllog"


@pytest.fixture(scope="module")
def whole_life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with running_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        fleet.until_consistent()
        yield fleet


@pytest.fixture
def fleet(whole_life: Fleet) -> Fleet:
    """The fleet, consistent."""
    whole_life.until_consistent()
    return whole_life


def planned(node: EdgeNode) -> dict[str, tuple[int, str]]:
    documents: dict[str, tuple[int, str]] = node.on_disk()["documents"]
    return {name: doc for name, doc in documents.items() if name.startswith("schedule/")}


def has_changed(node: EdgeNode, before: dict[str, tuple[int, str]]) -> bool:
    return planned(node) != before


def replace_disk(fleet: Fleet, node: EdgeNode, image: Path) -> None:
    """The node's disk is as it was in the image."""
    shutil.rmtree(node.state)
    shutil.copytree(image, node.state)


# --- the broker -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forget", [False, True], ids=["half written down", "all forgotten"])
def test_broker_killed_in_the_middle_of_a_full_synchronisation(fleet, forget):
    # Two thirds of what one node gets.
    fleet.gate.hold_after(80_000)
    try:
        fleet.edit(30.0 + forget, plan=EVERYTHING)
        assert fleet.gate.is_holding.wait(20)
        if not forget:
            fleet.persist_broker()
        assert fleet.differences(), "nothing is left to be synchronised"
        fleet.restart_broker(forget=forget)
    finally:
        fleet.gate.release()
    fleet.until_consistent()


# --- central's processes -----------------------------------------------------------------------------------


def test_worker_killed_between_publish_and_record(fleet):
    fleet.gate.hold_after(0)
    try:
        fleet.edit(41.0, plan={A: 3})
        assert fleet.gate.is_holding.wait(20)
        with fleet.locked(DOCUMENTS):
            fleet.gate.release()
            until(lambda: "worker" in fleet.waits_for_lock(DOCUMENTS), what="the worker records nothing")
            fleet.kill("worker")
    finally:
        fleet.gate.release()
    assert fleet.call("state")["nodes"]["node-01"]["unpublished"], "it was recorded after all"

    fleet.start_worker()
    fleet.until_consistent()


def test_inbox_killed_in_the_middle_of_a_batch(fleet):
    for node in fleet.nodes:
        fleet.kill(node.name)
        # More than one batch of each.
        fleet.log(node, 70)
    with fleet.locked(LOG):
        for node in fleet.nodes:
            fleet.start_node(node)
        until(lambda: "inbox" in str(fleet.waits_for_lock(LOG)), what="no inbox is in the middle of a batch")
        (killed, *_) = sorted(fleet.waits_for_lock(LOG))
        fleet.kill(killed)
    # The one that is left takes it all.
    fleet.until_consistent()
    fleet.start_inbox(int(killed[-1]))


def test_postgres_restarted_under_load(fleet):
    node = fleet.nodes[0]
    fleet.kill(node.name)
    fleet.log(node, 120)
    fleet.edit(50.0, plan=EVERYTHING)
    fleet.start_node(node)
    fleet.restart_postgres()
    fleet.until_consistent()
    assert {node["manifest"][0] for node in fleet.call("state")["nodes"].values()} == {1}


# --- nodes -------------------------------------------------------------------------------------------------


def test_node_killed_between_two_documents(fleet):
    node = fleet.nodes[2]
    for value in (60.0, 61.0, 62.0, 63.0):
        before = planned(node)
        fleet.edit(value, plan={B: DAYS})
        until(partial(has_changed, node, before), what="the node applies nothing")
        fleet.kill(node.name)
        left = planned(node)
        fleet.start_node(node)
        if any(left.get(name) == before[name] for name in before):
            break
        fleet.until_consistent()
    else:
        pytest.fail("the node was never killed in time")
    fleet.until_consistent()


def test_node_restored_from_an_old_image(fleet, tmp_path):
    node, image = fleet.nodes[0], tmp_path / "image"
    fleet.kill(node.name)
    # In the image: what central gets from the node before its disk is put back, too.
    fleet.log(node, 60)
    shutil.copytree(node.state, image)
    # Not in it, under numbers that others will have.
    fleet.log(node, 3)
    fleet.edit(70.0, plan={A: 5}, unplan={A: 3})
    fleet.start_node(node)
    fleet.until_taken()

    fleet.kill(node.name)
    replace_disk(fleet, node, image)
    fleet.log(node, 4)
    fleet.start_node(node)
    fleet.until_consistent()


# --- central restored ----------------------------------------------------------------------------------------


# In this order: for a minute after its epoch was raised a node is not given another one.
@pytest.mark.parametrize("announced", [False, True], ids=["unnoticed", "announced"])
def test_central_restored_from_a_backup(fleet, tmp_path, announced):
    backup = tmp_path / "backup"
    logged = set(fleet.expected_logs)
    epochs = {name: node["manifest"][0] for name, node in fleet.call("state")["nodes"].items()}
    fleet.dump(backup)
    # What the backup does not have: days that change, go and come, and entries that nodes have let go of.
    fleet.edit(80.0 + announced, plan={A: 4, B: 2}, unplan={A: 1})
    first, second, third = fleet.nodes
    fleet.kill(first.name)
    fleet.log(first, 10)
    fleet.start_node(first)
    fleet.until_taken()
    # What this one has to tell is not acknowledged before the restore.
    fleet.kill(second.name)

    fleet.kill_central()
    fleet.restore(backup)
    fleet.expected_logs = logged
    fleet.log(second, 10)
    fleet.start_hands()
    if announced:
        fleet.call("command", name="central_restored", arguments=[])
    fleet.start_central()
    fleet.start_node(second)
    # Another truth under numbers that the nodes know.
    fleet.edit(85.0 + announced, plan={A: 2})
    fleet.until_consistent(within_s=120)
    after = {name: node["manifest"][0] for name, node in fleet.call("state")["nodes"].items()}
    # Unnoticed, it is who had more than the database whose epoch rises; others find nothing in the way.
    raised = after if announced else {third.name: after[third.name]}
    assert all(after[name] > epochs[name] for name in raised), (epochs, after)
