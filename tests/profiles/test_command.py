"""`python -m edge profiles`: what is wrong is named, what is there is shown, and the page follows the profiles."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from edge.__main__ import main
from edge.profiles.command import PAGE
from edge.profiles.contract import Claim, contract_of
from edge.profiles.document import document, section
from edge.profiles.loader import DATA, load_all
from edge.profiles.reading import profile_from_builtins

PROFILES = load_all()
SUNGROW = DATA / "inverter" / "sungrow_sg110cx.yaml"


@pytest.fixture
def broken(tmp_path):
    data = yaml.safe_load(SUNGROW.read_text())
    data["points"]["limit_pct"]["address"] = 70000
    file = tmp_path / "sungrow_sg110cx.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def test_every_profile_of_this_version_is_sound(capsys):
    assert main(["profiles", "check"]) == 0

    told = capsys.readouterr().out.splitlines()
    assert len(told) == len(PROFILES)
    assert all(line.startswith("OK ") for line in told)


def test_a_broken_profile_fails_and_does_not_hide_the_others(broken, capsys):
    assert main(["profiles", "check", str(broken), str(SUNGROW)]) == 1

    wrong, fine = capsys.readouterr().out.splitlines()
    assert wrong.startswith(f"WRONG {broken}: points.limit_pct.address: ")
    assert "<= 65535" in wrong
    assert fine.startswith(f"OK    {SUNGROW}: Sungrow SG110CX")


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["profiles", "check", str(tmp_path / "none.yaml")]) == 1

    assert "none.yaml: file: cannot be read" in capsys.readouterr().out


def test_the_list_names_every_profile(capsys):
    assert main(["profiles", "list"]) == 0

    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names[0] == "name"
    assert sorted(names[1:]) == sorted(PROFILES)


@pytest.mark.parametrize("name", ["sungrow_sg110cx", str(SUNGROW)])
def test_all_of_one_profile_is_shown(name, capsys):
    assert main(["profiles", "show", name]) == 0

    told = capsys.readouterr().out
    assert "not verified on hardware" in told
    for point, one in PROFILES["sungrow_sg110cx"].points.items():
        assert f"`{point}`" in told
        assert one.source in told


def test_a_profile_that_is_not_there_is_not_shown(capsys):
    assert main(["profiles", "show", "../inverter/nobody"]) == 1

    assert "there is no profile" in capsys.readouterr().err


def test_a_broken_profile_is_not_shown(broken, capsys):
    assert main(["profiles", "show", str(broken)]) == 1

    assert "points.limit_pct.address" in capsys.readouterr().err


def test_the_page_is_what_the_profiles_say():
    assert PAGE.read_text(encoding="utf-8") == document(PROFILES), "run `python -m edge profiles document`"


def test_a_page_that_is_out_of_date_is_noticed_and_written_anew(tmp_path, capsys):
    file = tmp_path / "devices.md"
    assert main(["profiles", "document", "--check", "--file", str(file)]) == 1
    file.write_text("# Devices\n")
    assert main(["profiles", "document", "--check", "--file", str(file)]) == 1
    assert "run `python -m edge profiles document`" in capsys.readouterr().err
    assert file.read_text() == "# Devices\n"

    assert main(["profiles", "document", "--file", str(file)]) == 0

    assert main(["profiles", "document", "--check", "--file", str(file)]) == 0


def test_the_page_is_the_same_in_whatever_order_profiles_come():
    assert document(dict(reversed(PROFILES.items()))) == document(PROFILES)


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_each_device_has_its_place_in_the_overview_and_a_section(name):
    page = document(PROFILES)

    assert len(re.findall(rf"\(#{name}\)", page)) == 1
    assert len(re.findall(rf'<a id="{name}"></a>', page)) == 1


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_the_page_hides_no_unverified_or_disputed_reading(name):
    profile = PROFILES[name]
    told = section(profile)

    for key, point in profile.telemetry.items():
        (row,) = (line for line in told.splitlines() if line.startswith(f"| `{key}` |"))
        assert profile.points[point].confidence.value.replace("_", " ") in row


def _changed(name: str, **change: Any) -> str:
    data = yaml.safe_load(next(DATA.glob(f"*/{name}.yaml")).read_text())
    return section(profile_from_builtins(data | change))


def test_what_a_device_must_be_told_and_what_it_need_not_is_said():
    told = section(PROFILES["generic_modbus_genset"])

    assert re.search(r"`minimum_load_pct` .* \| 30 \| ", told)
    assert re.search(r"`heartbeat_address` .* optional ", told)
    assert re.search(r"`sign` .* required ", section(PROFILES["huawei_meter"]))


def test_a_cell_of_a_table_stays_in_its_cell():
    parameters = {"sign": {"title": "a | b\nc", "type": "integer", "example": 1}}

    assert r"a \| b c" in _changed("huawei_meter", parameters=parameters)


def test_what_was_seen_on_hardware_is_told_from_what_was_not():
    assert "; not verified on hardware." in _changed("janitza_umg604")
    assert "; verified on hardware." in _changed("janitza_umg604", verified_on_hardware=True)


def test_the_contract_of_a_meter_is_not_that_of_an_inverter():
    meter, inverter = contract_of(PROFILES["janitza_umg604"]), contract_of(PROFILES["sungrow_sg110cx"])

    assert Claim.MEASURED_ONLY in meter
    assert Claim.SETPOINT not in meter
    assert {Claim.IDENTITY, Claim.RATED_POWER, Claim.SETPOINT, Claim.READ_BACK, Claim.WEAR} <= set(inverter)
    assert Claim.OWN_FALLBACK not in inverter
