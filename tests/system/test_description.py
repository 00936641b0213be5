"""The running system judged by its own description: by schemathesis, and by a client made from it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.system.test_demo import RunningDemo, start, until_ended, until_ready

pytestmark = pytest.mark.system

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path | None) -> Iterator[RunningDemo]:
    directory = tmp_path_factory.mktemp("described")
    var, output = directory / "var", directory / "output"
    process = start(var, output=output, database=migrated_database, SGM_TIME_LIMIT="60")
    try:
        yield RunningDemo(description=until_ready(process, var, output), output=output)
    finally:
        process.terminate()
        until_ended(process)


# --- a client made from the description -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated(system: RunningDemo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generated]:
    """The package that openapi-python-client makes of the served description, and a client of it."""
    directory = tmp_path_factory.mktemp("generated")
    served = directory / "openapi.json"
    served.write_bytes(httpx.get(f"{system.description['api_url']}/openapi.json").content)
    (directory / "config.yaml").write_text("package_name_override: sgm_generated\npost_hooks: []\n")
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning"),
            *("--path", str(served), "--config", str(directory / "config.yaml")),
            *("--output-path", str(directory / "sgm_generated")),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        package = importlib.import_module("sgm_generated")
        headers = system.bearer_headers()
        client = package.AuthenticatedClient(
            base_url=system.description["api_url"].removesuffix("/v1"),
            token=headers["Authorization"].removeprefix("Bearer "),
            headers={"X-Management-Token": headers["X-Management-Token"]},
            raise_on_unexpected_status=True,
            timeout=httpx.Timeout(20),
        )
        with client:
            yield Generated(directory / "sgm_generated", client)
        for name in [name for name in sys.modules if name.partition(".")[0] == "sgm_generated"]:
            del sys.modules[name]


@dataclass(frozen=True, slots=True)
class Generated:
    directory: Path
    client: Any

    def call(self, operation: str, *arguments: Any, **named: Any) -> Any:
        """The answer as the client's own type; `operation` as `sites.sites_list`."""
        module = importlib.import_module(f"sgm_generated.api.{operation}")
        return module.sync(*arguments, client=self.client, **named)

    @property
    def models(self) -> Any:
        return importlib.import_module("sgm_generated.models")


def test_generated_client_lists_sites_and_reads_a_device(system, generated):
    sites = generated.call("sites.sites_list", limit=2)
    assert [type(site).__name__ for site in sites] == ["Site", "Site"]
    device = system.device("SMA_STP60_01")
    shown = generated.call("devices.device_get", UUID(device["device_id"]))
    assert shown.device_tag == "SMA_STP60_01"
    assert shown.node_id == UUID(device["node_id"])
    assert isinstance(shown.created_at, datetime)
    assert shown.modbus_server_port == device["port"]
    categories = generated.call("devices.device_categories_list", UUID(device["site_id"]))
    assert "SMA_STP60_01" in [each.device_tag for each in categories["inverter"]]


def test_generated_client_creates_and_deletes_a_schedule(system, generated):
    site_id = UUID(system.device("SMA_STP60_01")["site_id"])
    slots = generated.models.ScheduleCreateInputSchedule.from_dict({"09:00": 50, "09:15": None})
    wanted = generated.models.ScheduleCreateInput(
        site_id=site_id,
        category="inverter",
        valid_on=(datetime.now(UTC) + timedelta(days=20)).date(),
        schedule=slots,
    )
    made = generated.call("schedules.schedule_create", body=wanted)
    assert made.schedule.to_dict() == {"09:00": 50, "09:15": None}
    again = generated.call("schedules.schedule_create", body=wanted)
    assert (type(again).__name__, again.request_id != "") == ("Error", True)
    gone = generated.call("schedules.schedule_delete", made.id)
    assert gone.status is generated.models.DoneStatus.SUCCESS


def test_generated_client_curtails_and_reads_why_not(system, generated):
    device = system.device("GENERIC_PV_01")
    wanted = generated.models.CurtailCategoryInput(
        value=40, category=device["category"], device_tags=["GENERIC_PV_01", "NONE_OF_OURS"]
    )
    answer = generated.call("control.category_curtail", UUID(device["site_id"]), body=wanted)
    assert answer.status is generated.models.ControlStatus.PARTIAL
    assert answer.result.updated.to_dict() == {"GENERIC_PV_01": None}
    assert answer.result.not_updated["NONE_OF_OURS"].startswith("unknown_device: ")


def test_generated_client_reads_errors_by_field(system, generated):
    wanted = generated.models.CurtailCategoryInput(value=101, category="inverter")
    site_id = UUID(system.device("SMA_STP60_01")["site_id"])
    refused = generated.call("control.category_curtail", site_id, body=wanted)
    assert (type(refused).__name__, refused.code) == ("Error", "invalid")
    assert list(refused.errors.to_dict()) == ["value"]
    hidden = generated.call("sites.site_get", uuid4())
    assert (type(hidden).__name__, hidden.code) == ("Error", "not_found")


def test_generated_client_knows_the_type_of_every_field(generated):
    names = [name for name in dir(generated.models) if name[0].isupper()]
    untyped = {
        f"{name}.{field.name}"
        for name in names
        for field in getattr(getattr(generated.models, name), "__attrs_attrs__", ())
        if field.name != "additional_properties" and "Any" in str(field.type)
    }
    assert untyped == set()


# --- requests drawn from the description; last, since they change what they find -------------------------------


def judge(system: RunningDemo, directory: Path, *arguments: str, management_token: str) -> int:
    """How many requests schemathesis judged, and found nothing; an AssertionError with what it says otherwise."""
    device = system.device("SMA_STP60_01")
    ids = {"sites": device["site_id"], "nodes": device["node_id"], "devices": device["device_id"]}
    configuration = directory / "schemathesis.toml"
    configuration.write_text(
        f'hooks = "{HERE / "schemathesis_hooks.py"}"\n'
        + (HERE / "schemathesis.toml").read_text()
        + "".join(f'[dictionaries.{name}]\nvalues = ["{value}"]\n' for name, value in ids.items())
    )
    bearer = system.bearer_headers()["Authorization"].removeprefix("Bearer ")
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "schemathesis.cli", "--config-file", str(configuration), "--no-color", "run"),
            f"{system.description['api_url']}/openapi.json",
            # Its streams end when the caller goes; tests/system/test_events.py listens to them.
            *("--exclude-operation-id", "events_stream"),
            *arguments,
        ],
        cwd=directory,
        env={**os.environ, "SGM_TEST_BEARER": bearer, "SGM_TEST_MANAGEMENT_TOKEN": management_token},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    # Its bodies may be of a thousand objects each.
    said = "\n".join(line[:600] for line in done.stdout.splitlines())
    assert done.returncode == 0, said
    generated = re.search(r"(\d+) generated", said)
    assert generated is not None, said
    return int(generated[1])


def test_schemathesis_finds_nothing_with_a_site_token(system, tmp_path):
    # Boundaries of values are the same for both tokens, and take longest: the root token shows them.
    judged = judge(
        system,
        tmp_path,
        *("--phases", "examples,fuzzing,stateful"),
        management_token=system.description["site_token"],
    )
    assert judged > 200


def test_schemathesis_finds_nothing_with_a_root_token(system, tmp_path):
    judged = judge(system, tmp_path, management_token=system.description["root_token"])
    assert judged > 2000
