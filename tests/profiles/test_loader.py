"""A profile that is wrong says where: file, key, expectation."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import yaml

from edge.profiles.errors import ProfileError
from edge.profiles.loader import DATA, load_all, load_bodies, load_body, load_profile
from edge.profiles.model import Profile
from edge.profiles.reading import profile_from_builtins, profile_to_builtins

PROFILES = load_all()


@pytest.fixture
def data() -> dict[str, Any]:
    """A sound profile with a bit of everything, to be broken."""
    data: dict[str, Any] = yaml.safe_load((DATA / "inverter" / "sma_stp60_im20.yaml").read_text())
    return data


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_profile_survives_the_way_through_json(name):
    profile = PROFILES[name]

    again = profile_from_builtins(json.loads(json.dumps(profile_to_builtins(profile))))

    assert again == profile


def keys_by_length(part: Any) -> Any:
    """As PostgreSQL keeps JSON."""
    if isinstance(part, dict):
        return {key: keys_by_length(part[key]) for key in sorted(part, key=lambda key: (len(key), key))}
    return [keys_by_length(one) for one in part] if isinstance(part, list) else part


def written(profile: Profile) -> list[list[str]]:
    """The points of every step, in the order of the wire."""
    limit = profile.limit
    if limit is None:
        return []
    own = limit.fallback
    kept = (*own.arm, *own.keep_alive) if own is not None else ()
    return [list(step.writes) for step in (*limit.once, *limit.set, *(limit.release or ()), *kept)]


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_what_is_written_together_keeps_its_order_where_keys_lose_theirs(name):
    stored = keys_by_length(json.loads(json.dumps(profile_to_builtins(PROFILES[name]))))
    assert written(profile_from_builtins(stored)) == written(PROFILES[name])


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_point_says_where_it_comes_from(name):
    for point in PROFILES[name].points.values():
        assert point.name
        assert point.source
    assert PROFILES[name].source


def test_no_profile_claims_to_be_verified_on_hardware():
    assert not [name for name, profile in PROFILES.items() if profile.verified_on_hardware]


def test_the_guides_first_devices_are_there():
    assert {
        "sma_stp60_im20",
        "sungrow_sg110cx",
        "growatt_max_60ktl",
        "janitza_umg604",
        "generic_modbus",
        "generic_modbus_battery",
        "generic_modbus_wind",
        "generic_modbus_charger",
    } <= PROFILES.keys()


def test_every_kind_of_device_can_be_controlled_and_the_grid_measured():
    controlled = {profile.category for profile in PROFILES.values() if profile.controllable}
    measured = {profile.category for profile in PROFILES.values() if not profile.controllable}

    assert controlled >= {
        "inverter",
        "battery",
        "wind_turbine",
        "ev_charger",
        "generator",
        "heat_pump",
        "load",
    }
    assert measured >= {"meter", "sensor"}


@pytest.mark.parametrize(
    ("path", "value", "key", "expectation"),
    [
        ("category", None, "category", "Expected `str`"),
        ("colour", "red", "profile", "unknown field `colour`"),
        ("protocol", "carrier_pigeon", "protocol", "Invalid enum value 'carrier_pigeon'"),
        ("min_gap_ms", -1, "min_gap_ms", "Expected `int` >= 0"),
        ("min_gap_ms", "soon", "min_gap_ms", "Expected `int`, got `str`"),
        ("line_timeout_ms", 800, "line_timeout_ms", "modbus_rtu among `also`"),
        ("points", {}, "points", "at least one point"),
        ("points.power.address", 65536, "points.power.address", "<= 65535"),
        ("points.energy.address", 65535, "points.energy.address", "beyond address 65535"),
        ("points.power.type", "u17", "points.power.type", "Invalid enum value 'u17'"),
        ("points.power.confidence", "sure", "points.power.confidence", "Invalid enum value 'sure'"),
        ("points.power.scale_point", "nobody", "points.power.scale_point", "there is no 'nobody'"),
        ("points.power.scale_point", "limit_pct", "points.power.scale_point", "type s16"),
        ("points.power.scale", 0, "points.power.scale", "above 0"),
        ("points.serial.length", None, "points.serial.length", "expected for types str and bits"),
        ("points.limit_pct.table", "input", "points.limit_pct.access", "can only be read"),
        ("points.power.write_function", "single", "points.power.write_function", "not writable"),
        ("identity.checks", [{"point": "nobody", "equals": 1}], "identity.checks[0].point", "no 'nobody'"),
        ("identity.nameplate", "nobody", "identity.nameplate", "there is no 'nobody'"),
        ("identity.nameplate", "limit_pct", "identity.nameplate", "in kW or kVA, not '%'"),
        ("limit.register", "power", "limit.register", "read-only"),
        ("limit.set", [], "limit.set", "length >= 1"),
        ("limit.set", [{"point": "limit_pct", "value": 5}], "limit.set", r"a step that writes \$value"),
        ("limit.set", [{"point": "power", "value": "$value"}], "limit.set[0].point", "read-only"),
        ("limit.set", [{"point": "limit_pct", "value": "$x"}], "limit.set[0].value", "expected a number or"),
        ("limit.once", [{"point": "limit_pct", "value": "$value"}], "limit.once[0].value", "no setpoint"),
        ("limit.once", [{"point": "limit_pct", "value": "$count"}], "limit.once[0].value", "keep_alive only"),
        ("limit.readback", "nobody", "limit.readback", "there is no 'nobody'"),
        ("limit.readback", "serial", "limit.readback", "is a text"),
        ("limit.readback", None, "limit.readback", "because there is a readback_switch"),
        ("limit.tolerance", 0, "limit.tolerance", "> 0"),
        ("limit.write_class", "sometimes", "limit.write_class", "Invalid enum value"),
        ("default_value", 101, "default_value", "expected 0 to 100"),
        ("max_value", 0, "max_value", "more than min_value"),
        ("value_kind", None, "value_kind", "because the profile has a limit"),
        ("telemetry.P_kW", "nobody", "telemetry.P_kW", "there is no 'nobody'"),
        ("telemetry.P_kW", "energy", "telemetry.P_kW", "a point in kW"),
        ("telemetry.Power", "power", "telemetry.Power", "ends in _kW"),
        ("title", " ", "title", "not empty"),
        ("points.power.source", "", "points.power.source", "not empty"),
        ("points.power.confidence", "disputed", "points.power.note", "disputed has to be said"),
        ("max_block", 8, "points.model_name.length", "at most max_block registers, 8, not 16"),
        ("points.power.nan", 0x10000, "points.power.nan", "a pattern of 16 bits"),
        ("points.power.nan", -0x8001, "points.power.nan", "a pattern of 16 bits"),
        ("points.own_unit.example", 70000, "points.own_unit.example", "does not fit: raw value 70000"),
        ("points.serial.example", 33 * "x", "points.serial.example", "more than 32 characters"),
        (
            "identity.checks",
            [{"point": "own_unit", "equals": "125"}],
            "identity.checks[0].equals",
            "a number",
        ),
        ("identity.checks", [{"point": "serial", "equals": 1}], "identity.checks[0].equals", "is a text"),
        ("identity.checks", [{"point": "own_unit", "equals": [1, -1]}], "identity.checks[0].equals", "-1 is"),
        ("limit.requires", [{"point": "serial", "equals": 1}], "limit.requires[0].equals", "is a text"),
        ("limit.readback_switch.equals", 0x10000, "limit.readback_switch.equals", "does not fit"),
        ("limit.once", [{"point": "limit_pct", "value": -1}], "limit.once[0].value", "does not fit"),
        ("limit.tolerance", 0.001, "limit.tolerance", "at least 0.005, half of what one count of"),
        ("points.limit_pct_sf.example", 1, "limit.tolerance", "at least 5, half of what one count of"),
        (
            "points.limit_pct_sf.example",
            -3,
            "points.limit_pct.example",
            "raw value 100000 is outside 0 to 65535",
        ),
        ("max_value", 1000, "limit.set[0].value", "raw value 100000 is outside 0 to 65535"),
        ("min_value", -100, "min_value", "expected 0 or more for active_power_limit_pct"),
        ("value_kind", "signed_setpoint_pct", "min_value", "a value below 0 for signed_setpoint_pct"),
    ],
)
def test_a_broken_profile_names_file_key_and_expectation(  # noqa: PLR0917 - pytest passes by name
    data, tmp_path, path, value, key, expectation
):
    broken = copy.deepcopy(data)
    *parents, last = path.split(".")
    place = broken
    for parent in parents:
        place = place[parent]
    place[last] = value
    file = tmp_path / "sma_stp60_im20.yaml"
    file.write_text(yaml.safe_dump(broken))

    with pytest.raises(ProfileError, match=expectation) as caught:
        load_profile(file)

    assert caught.value.key == key
    assert caught.value.file == str(file)
    assert str(caught.value).startswith(f"{file}: {key}: ")


def test_the_control_point_is_one_that_the_setpoint_is_written_to(data):
    data["points"]["limit_enabled"]["access"] = "read_write"
    data["limit"]["register"] = "limit_enabled"

    with pytest.raises(ProfileError, match=r"'limit_enabled' is not written by limit\.set") as caught:
        profile_from_builtins(data)

    assert caught.value.key == "limit.register"


def test_a_step_that_waits_for_what_can_never_be_is_refused(data):
    data["limit"]["set"][0]["until"] = {"point": "limit_enabled", "equals": "on"}

    with pytest.raises(ProfileError, match="'limit_enabled' is a number, not 'on'") as caught:
        profile_from_builtins(data)

    assert caught.value.key == "limit.set[0].until.equals"


def test_a_scale_that_only_the_device_knows_is_not_guessed(data):
    # Without an example nobody knows what a count is worth; the driver reads it.
    del data["points"]["limit_pct_sf"]["example"]
    data["limit"]["tolerance"] = 0.001

    assert profile_from_builtins(data).limit is not None


def test_a_readback_of_a_write_only_register_is_refused(data):
    data["points"]["limit_pct"]["access"] = "write"

    with pytest.raises(ProfileError, match="'limit_pct' is write-only, expected a point that can be read"):
        profile_from_builtins(data)


@pytest.mark.parametrize("takes", ["release", "stop"])
def test_a_preset_is_named_only_where_the_device_takes_one(data, takes):
    keep_alive = [{"point": "limit_pct", "value": "$value"}]
    own = {"timeout_s": 60, "keep_alive": keep_alive, "keep_alive_class": "unknown", "preset": "limit_pct"}
    data["limit"]["fallback"] = own | {"takes": takes}

    with pytest.raises(ProfileError, match="expected only where it takes a preset") as caught:
        profile_from_builtins(data)

    assert caught.value.key == "limit.fallback.preset"


def test_a_device_may_hide_what_its_installer_has_preset(data):
    keep_alive = [{"point": "limit_pct", "value": "$value"}]
    own = {"timeout_s": 60, "keep_alive": keep_alive, "keep_alive_class": "unknown", "takes": "preset"}
    data["limit"]["fallback"] = own

    profile = profile_from_builtins(data)

    assert profile.limit is not None
    assert profile.limit.fallback is not None
    assert profile.limit.fallback.preset is None


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "a: [", "\t"])
def test_a_file_that_is_no_profile_is_named(tmp_path, text):
    file = tmp_path / "thing.yaml"
    file.write_text(text)

    with pytest.raises(ProfileError, match=r"thing\.yaml: file: "):
        load_profile(file)


def test_a_profile_is_called_as_its_file_and_filed_under_its_category(data, tmp_path):
    (tmp_path / "battery").mkdir()
    misnamed = tmp_path / "battery" / "other.yaml"
    misnamed.write_text(yaml.safe_dump(data))
    with pytest.raises(ProfileError, match="name: expected 'other'"):
        load_profile(misnamed)

    misnamed.rename(tmp_path / "battery" / "sma_stp60_im20.yaml")
    with pytest.raises(ProfileError, match="category: expected 'battery'"):
        load_all(tmp_path)


def test_two_profiles_of_one_name_are_refused(data, tmp_path):
    for category in ("inverter", "logger"):
        (tmp_path / category).mkdir()
        file = tmp_path / category / "sma_stp60_im20.yaml"
        file.write_text(yaml.safe_dump({**data, "category": category}))

    with pytest.raises(ProfileError, match="is there already"):
        load_all(tmp_path)


def xml_da_body(**item: Any) -> dict[str, Any]:
    """A profile of an XML-DA device with one item."""
    return {
        "name": "server",
        "title": "Server",
        "maker": "Any",
        "model": "any",
        "category": "inverter",
        "protocol": "xml_da",
        "verified_on_hardware": False,
        "source": "test",
        "points": {
            "one": {
                "name": "one",
                "source": "test",
                "confidence": "unverified",
                "item": "$status.VendorInfo",
                "type": "string",
                **item,
            }
        },
    }


def test_what_a_server_says_of_itself_is_a_point_like_any_other():
    profile = profile_from_builtins(xml_da_body())

    assert profile.points["one"].is_text
    assert profile.points["one"].key == "$status.VendorInfo"


@pytest.mark.parametrize(
    ("item", "key", "expectation"),
    [
        ({"item": "$status.Mood"}, "points.one.item", "expected one of $status.ServerState"),
        ({"access": "read_write"}, "points.one", "only read"),
        ({"type": "double"}, "points.one", "expected a text"),
        ({"item_path": "Park"}, "points.one", "without a path"),
    ],
)
def test_a_server_says_only_so_much_of_itself(item, key, expectation):
    with pytest.raises(ProfileError) as caught:
        profile_from_builtins(xml_da_body(**item))

    assert caught.value.key == key
    assert expectation in caught.value.expectation


def test_only_xml_da_servers_collect_for_us(data):
    assert profile_from_builtins({**xml_da_body(), "subscribe": True}).subscribe

    with pytest.raises(ProfileError, match="xml_da only"):
        profile_from_builtins({**data, "subscribe": True})


@pytest.mark.parametrize("part", ["release", "readback_switch", "readback_no_limit"])
def test_a_signed_setpoint_has_no_value_that_limits_nothing(part):
    body = profile_to_builtins(load_all()["generic_modbus_battery_setpoint"])
    body["limit"][part] = {
        "release": body["limit"]["set"],
        "readback_switch": {"point": body["limit"]["readback"], "equals": 1.0},
        "readback_no_limit": 100.0,
    }[part]
    with pytest.raises(ProfileError, match="means that nothing is limited") as caught:
        profile_from_builtins(body)
    assert caught.value.key == f"limit.{part}"


def test_body_of_a_profile_is_the_caller_s_to_change():
    load_bodies()["generic_modbus"]["points"].clear()
    assert load_bodies()["generic_modbus"] == load_body(DATA / "inverter" / "generic_modbus.yaml")


def test_profiles_by_name_are_the_caller_s_to_change():
    load_all().clear()
    assert load_all().keys() == load_bodies().keys()
