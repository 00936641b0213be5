"""What the demo keeps between two starts, and what it refuses."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path

import pytest

from smartgrid.demo.options import DemoError, demo_options
from smartgrid.demo.state import (
    OWNED,
    demo_lock,
    demo_ports,
    demo_secrets,
    port_is_free,
    reset,
    write_private,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_second_demo_on_one_directory_is_refused_with_what_to_do(tmp_path: Path):
    with demo_lock(tmp_path), pytest.raises(DemoError, match="SGM_VAR=/some/directory"), demo_lock(tmp_path):
        pass


def test_directory_is_free_again_after_its_demo(tmp_path: Path):
    for _ in range(2):
        with demo_lock(tmp_path):
            pass


def test_secrets_are_drawn_once_and_only_their_owner_reads_them(tmp_path: Path):
    first = demo_secrets(tmp_path, node_names=("node-01",))
    assert demo_secrets(tmp_path, node_names=("node-01",)) == first
    assert mode(tmp_path / "secrets.json") == 0o600


def test_two_demos_share_no_secret(tmp_path: Path):
    one = demo_secrets(tmp_path / "one", node_names=("node-01",))
    two = demo_secrets(tmp_path / "two", node_names=("node-01",))
    assert not set(one.values()) & set(two.values())


def test_new_secret_of_a_later_version_leaves_the_others_alone(tmp_path: Path):
    first = demo_secrets(tmp_path, node_names=("node-01",))
    second = demo_secrets(tmp_path, node_names=("node-01", "node-02"))
    assert first.items() <= second.items()
    assert "mqtt_node-02" in second


def test_ports_stay_the_same_while_they_are_free(tmp_path: Path):
    first = demo_ports(tmp_path, names=("mqtt", "redis"))
    assert demo_ports(tmp_path, names=("mqtt", "redis")) == first
    with socket.socket() as other:
        other.bind(("127.0.0.1", first["mqtt"]))
        other.listen()
        second = demo_ports(tmp_path, names=("mqtt", "redis"))
    assert second["redis"] == first["redis"]
    assert second["mqtt"] != first["mqtt"]


def test_port_that_somebody_is_about_to_listen_on_is_nobody_elses_not_even_from_an_earlier_start(
    tmp_path: Path,
):
    first = demo_ports(tmp_path, names=("mqtt", "redis"))
    second = demo_ports(tmp_path, names=("mqtt", "redis"), taken=frozenset({first["mqtt"]}))
    assert second["mqtt"] != first["mqtt"]
    assert second["redis"] == first["redis"]


def test_port_with_a_listener_is_not_free():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert not port_is_free(port)
    assert port_is_free(port)


def test_unreadable_state_says_how_to_begin_anew(tmp_path: Path):
    (tmp_path / "ports.json").write_text("{")
    with pytest.raises(DemoError, match="make demo-reset"):
        demo_ports(tmp_path, names=("mqtt",))


def test_reset_removes_what_is_the_demos_and_nothing_else(tmp_path: Path):
    demo_secrets(tmp_path, node_names=())
    (tmp_path / "nodes" / "node-01").mkdir(parents=True)
    (tmp_path / "thesis.txt").write_text("years of work")
    reset(tmp_path)
    reset(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert "thesis.txt" not in OWNED


def test_private_file_is_replaced_whole_and_stays_private(tmp_path: Path):
    path = tmp_path / "demo.json"
    path.write_text("old")
    write_private(path, json.dumps({"new": True}))
    assert json.loads(path.read_text()) == {"new": True}
    assert mode(path) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SGM_PORT", "http"),
        ("SGM_PORT", "65536"),
        ("SGM_TIME_LIMIT", "0"),
        ("SGM_TIME_LIMIT", "3601"),
        ("SGM_TIME_LIMIT", "inf"),
        ("SGM_DEMO_BROKER", "rabbit"),
        ("SGM_DEMO_REDIS", "none"),
        ("SGM_DEMO_FLEET", "half"),
    ],
)
def test_bad_option_names_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(name, value)
    with pytest.raises(DemoError, match=name):
        demo_options()


def test_options_have_the_documented_defaults(monkeypatch: pytest.MonkeyPatch):
    for name in (
        "SGM_PORT",
        "SGM_TIME_LIMIT",
        "SGM_VAR",
        "SGM_DEMO_BROKER",
        "SGM_DEMO_REDIS",
        "SGM_DEMO_FLEET",
    ):
        monkeypatch.delenv(name, raising=False)
    options = demo_options()
    assert (options.port, options.time_limit_s, options.var.name) == (8000, 60, "var")
