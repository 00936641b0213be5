"""The wire as JSON Schema, generated and committed, so that a change of contract shows in review.

`python -m edge.wire.schema` writes the files beside this module, `--check` compares them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from edge.wire import enrolment, messages

FOLDER = Path(__file__).parent / "schema"

# One file for everything that is read from one kind of topic, and for each body of a desired document.
FILES: dict[str, Any] = {
    "command": messages.Command,
    "answer": messages.CommandAnswer,
    "presence": messages.Presence,
    "heartbeat": messages.Heartbeat,
    "reported": messages.Reported,
    "telemetry": messages.TelemetryBatch,
    "log": messages.LogBatch,
    "logack": messages.LogAck,
    "manifest": messages.Manifest,
    "document": messages.Document,
    "config": messages.NodeConfig,
    "device": messages.DeviceConfig,
    "schedule": messages.ScheduleBody,
    # Over HTTPS, not over the broker.
    "enrol": enrolment.EnrolRequest,
    "issued": enrolment.Issued,
    "challenge": enrolment.Challenge,
    "renew": enrolment.RenewRequest,
    "confirm": enrolment.ConfirmRequest,
}


def render() -> dict[str, str]:
    """File name -> contents of every schema of the wire."""
    (roots, components) = msgspec.json.schema_components(FILES.values(), ref_template="#/$defs/{name}")
    rendered = {}
    for name, root in zip(FILES, roots, strict=True):
        schema = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            **root,
            "$defs": _reachable(root, components),
        }
        rendered[f"{name}.json"] = json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return rendered


def _reachable(root: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    to_do = [root]
    while to_do:
        text = json.dumps(to_do.pop())
        for name, component in components.items():
            if name not in found and f'"#/$defs/{name}"' in text:
                found[name] = component
                to_do.append(component)
    return found


def differences(folder: Path = FOLDER) -> list[str]:
    """What tells the committed files from the messages: one line each, none where they agree."""
    wanted = render()
    present = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    lines = [f"{name} is missing" for name in sorted(wanted.keys() - present.keys())]
    lines += [f"{name} belongs to no message" for name in sorted(present.keys() - wanted.keys())]
    lines += [
        f"{name} is out of date"
        for name in sorted(wanted.keys() & present.keys())
        if wanted[name] != present[name]
    ]
    return lines


def write(folder: Path = FOLDER) -> None:
    """Make the folder hold these schemas and no others."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = render()
    for path in folder.glob("*.json"):
        if path.name not in wanted:
            path.unlink()
    for name, contents in wanted.items():
        (folder / name).write_text(contents, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edge.wire.schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; 1 where a file is out of date")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the schemas are")
    options = parser.parse_args(arguments)
    if not options.check:
        write(options.folder)
        return 0
    lines = differences(options.folder)
    for line in lines:
        sys.stderr.write(f"{line}; run python -m edge.wire.schema\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
