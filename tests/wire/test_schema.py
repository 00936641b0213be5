"""The committed schemas are those of the messages."""

from __future__ import annotations

import json

import pytest

from edge.wire.codec import encode
from edge.wire.messages import Message
from edge.wire.schema import FILES, FOLDER, differences, main
from tests.wire.samples import SAMPLES


def test_committed_schemas_are_current():
    assert differences() == []


def test_every_message_is_in_a_schema():
    text = "".join((FOLDER / f"{name}.json").read_text(encoding="utf-8") for name in FILES)
    for kind in Message.__subclasses__():
        assert f'"title": "{kind.__name__}"' in text


@pytest.mark.parametrize("name", FILES)
def test_schema_stands_on_its_own(name):
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    defined = json.loads(text)["$defs"]
    referred = {part.split('"')[0] for part in text.split("#/$defs/")[1:]}
    assert referred == set(defined)


def test_what_is_sent_has_no_field_the_schema_lacks():
    defined: dict[str, dict[str, object]] = {}
    for name in FILES:
        defined |= json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["$defs"]
    for message in SAMPLES.values():
        properties = defined[type(message).__name__]["properties"]
        assert isinstance(properties, dict)
        assert json.loads(encode(message)).keys() <= properties.keys()


def test_written_schemas_agree_and_a_change_is_named(tmp_path, capsys):
    folder = ["--folder", str(tmp_path)]
    assert main(["--check", *folder]) == 1
    assert "presence.json is missing" in capsys.readouterr().err
    (tmp_path / "old.json").write_text("{}")
    assert main(folder) == 0
    assert main(["--check", *folder]) == 0
    assert not (tmp_path / "old.json").exists()
    (tmp_path / "presence.json").write_text("{}")
    (tmp_path / "stray.json").write_text("{}")
    assert main(["--check", *folder]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "stray.json belongs to no message; run python -m edge.wire.schema",
        "presence.json is out of date; run python -m edge.wire.schema",
    ]
