from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from smartgrid.env import (
    env_bool,
    env_database,
    env_int,
    env_list,
    env_secret,
    env_secrets,
    env_url,
)

NAME = "SGM_TEST_VARIABLE"


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("True", True), ("on", True), ("0", False), ("no", False), ("", True)]
)
def test_booleans(monkeypatch, text, value):
    monkeypatch.setenv(NAME, text)
    assert env_bool(NAME, default=True) is value


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (lambda: env_bool(NAME, default=False), "maybe"),
        (lambda: env_int(NAME, default=1), "1.5"),
        (lambda: env_int(NAME, default=1, minimum=1), "0"),
        (lambda: env_int(NAME, default=1, maximum=9), "10"),
        (lambda: env_url(NAME, default="", schemes=("redis",), default_port=1), "http://a"),
        (lambda: env_url(NAME, default="", schemes=("redis",), default_port=1), "redis://a:port"),
        (lambda: env_database(NAME, default=""), "mysql://a/b"),
        (lambda: env_database(NAME, default=""), "sqlite://relative"),
        (lambda: env_database(NAME, default=""), "postgresql://host"),
    ],
)
def test_bad_value_names_its_variable(monkeypatch, read, text):
    monkeypatch.setenv(NAME, text)
    with pytest.raises(ImproperlyConfigured, match=NAME):
        read()


def test_refused_address_does_not_repeat_its_password(monkeypatch):
    monkeypatch.setenv(NAME, "mysql://user:hunter2@host/name")
    with pytest.raises(ImproperlyConfigured) as refusal:
        env_database(NAME, default="")
    assert "hunter2" not in str(refusal.value)


def test_lists_drop_blanks(monkeypatch):
    monkeypatch.setenv(NAME, " a, b,,")
    assert env_list(NAME) == ["a", "b"]


def test_secret_comes_from_the_named_file(monkeypatch, tmp_path):
    (tmp_path / "secret").write_text("hunter2\n")
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "secret"))
    assert env_secret(NAME) == "hunter2"


def test_several_secrets_may_stand_on_lines_of_a_file(monkeypatch, tmp_path):
    (tmp_path / "secret").write_text("one\ntwo\n")
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "secret"))
    assert env_secrets(NAME) == ["one", "two"]


def test_secret_given_twice_is_a_mistake(monkeypatch):
    monkeypatch.setenv(NAME, "a")
    monkeypatch.setenv(f"{NAME}_FILE", "/b")
    with pytest.raises(ImproperlyConfigured, match=NAME):
        env_secret(NAME)


@pytest.mark.parametrize("content", ["", None])
def test_secret_file_must_be_there_and_say_something(monkeypatch, tmp_path, content):
    if content is not None:
        (tmp_path / "secret").write_text(content)
    monkeypatch.setenv(f"{NAME}_FILE", str(tmp_path / "secret"))
    with pytest.raises(ImproperlyConfigured, match=f"{NAME}_FILE"):
        env_secret(NAME)


def test_sqlite_path_is_absolute(monkeypatch):
    monkeypatch.setenv(NAME, "sqlite:///var/lib/sgm.sqlite3")
    database = env_database(NAME, default="")
    assert database["NAME"] == "/var/lib/sgm.sqlite3"
    assert database["OPTIONS"]["transaction_mode"] == "IMMEDIATE"


def test_postgresql_password_may_hold_any_character(monkeypatch):
    monkeypatch.setenv(NAME, "postgresql://sgm:p%40ss%2Fword@db:5433/sgm?sslmode=require")
    database = env_database(NAME, default="")
    assert (database["USER"], database["PASSWORD"], database["PORT"]) == ("sgm", "p@ss/word", "5433")
    assert database["OPTIONS"]["sslmode"] == "require"
