"""The recipe for a new device is one that works, and leaves no key of a profile unsaid."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from edge.profiles import model, points
from edge.profiles.check import UNIT_BY_SUFFIX
from edge.profiles.loader import load_profile
from edge.profiles.parameters import Parameter, parameters_of

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-device.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
SAID = {word for code in re.findall(r"`([^`\n]+)`", PAGE) for word in re.findall(r"\$?[a-z0-9_]+", code)}
SCHEMA = (
    model.Profile,
    model.Identity,
    model.Check,
    model.Limit,
    model.Step,
    model.OwnFallback,
    model.Availability,
    *points.KINDS.values(),
)


def test_the_profile_of_the_recipe_is_sound(tmp_path):
    file = tmp_path / "acme_sun50.yaml"
    file.write_text(BLOCKS[0])

    profile = load_profile(file)

    assert profile.controllable
    assert profile.identity.checks[0].equals == (0x51, 0x52)


def test_the_parameters_of_the_recipe_are_sound():
    parameters = parameters_of(yaml.safe_load(BLOCKS[1]))

    assert [one.required for one in parameters.values()] == [True, False, False]
    keys = {key for one in yaml.safe_load(BLOCKS[1])["parameters"].values() for key in one}
    assert keys == {field.name for field in msgspec.structs.fields(Parameter)}


@pytest.mark.parametrize("kind", dict.fromkeys(SCHEMA), ids=lambda kind: kind.__name__)
def test_every_key_is_explained(kind):
    assert {field.name for field in msgspec.structs.fields(kind)} <= SAID


def test_every_word_of_a_step_and_every_unit_of_a_reading_is_explained():
    assert {model.VALUE, model.FALLBACK, model.TIMEOUT, model.COUNT} <= SAID
    assert {suffix for suffix in UNIT_BY_SUFFIX if f"`{suffix}`" not in PAGE} == set()


@pytest.mark.parametrize(
    "choices",
    [
        points.Protocol,
        points.Table,
        points.RegisterType,
        points.WordOrder,
        points.Access,
        points.WriteFunction,
        points.Confidence,
        model.ValueKind,
        model.LimitUnit,
    ],
)
def test_every_choice_is_named(choices):
    assert {choice.value for choice in choices if f"`{choice.value}`" not in PAGE} == set()
