"""The page promises of each device what the contract suites make sure of for it, no more and no less."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge.drivers.registry import DRIVERS
from edge.profiles.contract import Claim, contract_of
from edge.profiles.loader import load_all
from tests.drivers import test_driver_contract as suite
from tests.runtime import test_every_profile as under_a_node

PROFILES = load_all()
# The tests that stand for each claim. Each is run for all profiles of which the claim is made.
TESTS: dict[Claim, tuple[Callable[..., object], ...]] = {
    Claim.IDENTITY: (suite.test_a_device_of_another_type_is_not_controlled,),
    Claim.RATED_POWER: (suite.test_a_nameplate_more_than_a_tenth_off_is_refused,),
    Claim.READINGS: (
        suite.test_readings_come_under_their_canonical_keys_and_are_plausible,
        suite.test_a_value_that_the_device_has_not_is_none_and_never_zero,
    ),
    Claim.POWER: (suite.test_power_is_what_the_machine_gives_towards_the_grid,),
    Claim.MEASURED_ONLY: (suite.test_a_meter_takes_no_setpoint_and_brings_none,),
    Claim.SETPOINT: (
        suite.test_every_setpoint_written_is_the_setpoint_in_force_until_it_is_released,
        suite.test_a_setpoint_outside_the_profile_is_refused_and_not_clamped,
    ),
    Claim.READ_BACK: (suite.test_a_poll_brings_the_setpoint_in_force,),
    Claim.WEAR: (
        suite.test_every_write_is_counted_by_the_register_it_went_to,
        suite.test_a_write_takes_the_commands_it_says,
    ),
    Claim.REPEATED: (under_a_node.test_setpoint_is_repeated_where_that_costs_nothing_and_nowhere_else,),
    Claim.OWED: (
        under_a_node.test_hold_that_could_not_be_written_is_owed_until_the_device_is_back,
        under_a_node.test_lapse_is_owed_until_a_device_that_was_away_confirms_its_default,
    ),
    Claim.STANDING: (under_a_node.test_limit_that_somebody_else_has_set_is_logged_before_it_is_overwritten,),
    Claim.OWNER: (
        under_a_node.test_device_behind_the_control_point_of_another_is_measured_and_never_written,
        under_a_node.test_second_device_on_a_control_point_is_refused_and_the_first_goes_on,
    ),
    Claim.RESTART: (suite.test_a_device_that_restarts_forgets_what_is_volatile_and_obeys_again,),
    Claim.OWN_FALLBACK: (
        suite.test_a_device_releases_itself_once_everything_of_ours_is_gone,
        under_a_node.test_device_obeys_while_it_is_kept_alive_and_releases_itself_once_all_of_ours_is_gone,
    ),
    Claim.PACE: (suite.test_pauses_and_sessions_are_kept_over_all_commands_and_reconnects,),
    Claim.FAULTS: (suite.test_a_device_that_gives_no_right_answer_is_unreachable_until_it_does,),
}


def _profiles_of(test: Callable[..., object]) -> set[str]:
    (mark,) = (mark for mark in test.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    cases = [getattr(case, "values", (case,))[0] for case in mark.args[1]]
    return {case.profile.name for case in cases}


def test_every_claim_stands_for_tests():
    assert TESTS.keys() == set(Claim)


@pytest.mark.parametrize("claim", Claim)
def test_a_claim_is_made_of_the_profiles_that_its_tests_run_over(claim):
    claimed = {
        name
        for name, profile in PROFILES.items()
        if claim in contract_of(profile) and not DRIVERS.keys().isdisjoint(profile.protocols)
    }

    for test in TESTS[claim]:
        assert _profiles_of(test) == claimed, test
