"""The embedded issuer's key file: rotated without a gap, never half-written, never robbed of a key in use."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import jwt
import pytest
import time_machine
from django.core.management import CommandError, call_command
from pytest_django import Settings

from smartgrid.api.jwks import KeyCache, keys_fetch_signing_file, signing_keys_read
from smartgrid.errors import Conflict
from smartgrid.issuer_keys import (
    LEEWAY,
    PUBLISHED_BEFORE,
    KeyFileUnusable,
    KeyState,
    issuer_key_create,
    issuer_key_replace,
    issuer_key_rotate,
    issuer_keys,
    issuer_keys_retire,
)

NOW = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
LIFE = timedelta(days=1)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def first_key(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("key") / "issuer.pem"
    issuer_key_create(file)
    return file.read_bytes()


@pytest.fixture
def key_file(first_key: bytes, tmp_path: Path) -> Path:
    file = tmp_path / "keys" / "issuer.pem"
    file.parent.mkdir()
    file.write_bytes(first_key)
    file.chmod(0o600)
    return file


def states(path: Path) -> list[KeyState]:
    return [key.state for key in issuer_keys(path)]


def kids(path: Path) -> list[str]:
    """In the order in which the issuer and the API read them."""
    return [key.kid for key in signing_keys_read(path)]


def rotated(path: Path, *, now: datetime = NOW) -> datetime:
    """Both steps; the moment of the second."""
    issuer_key_rotate(path, now=now)
    issuer_key_rotate(path, now=now + PUBLISHED_BEFORE)
    return now + PUBLISHED_BEFORE


# --- the order of things --------------------------------------------------------------------------------------


def test_new_key_is_published_before_it_signs(key_file: Path) -> None:
    (old,) = kids(key_file)

    new = issuer_key_rotate(key_file, now=NOW)

    assert kids(key_file) == [old, new.kid]
    assert states(key_file) == [KeyState.SIGNS, KeyState.WAITS]


def test_key_that_others_may_not_know_yet_does_not_sign(key_file: Path) -> None:
    issuer_key_rotate(key_file, now=NOW)
    before = key_file.read_bytes()

    with pytest.raises(Conflict, match="09:10:00Z"):
        issuer_key_rotate(key_file, now=NOW + PUBLISHED_BEFORE - timedelta(seconds=1))

    assert key_file.read_bytes() == before


def test_second_step_lets_the_new_key_sign_and_keeps_the_former(key_file: Path) -> None:
    (old,) = kids(key_file)
    new = issuer_key_rotate(key_file, now=NOW)

    assert issuer_key_rotate(key_file, now=NOW + PUBLISHED_BEFORE).kid == new.kid

    assert kids(key_file) == [new.kid, old]
    assert states(key_file) == [KeyState.SIGNS, KeyState.FORMER]


def test_verifier_with_the_keys_of_the_first_step_takes_tokens_of_the_second(key_file: Path) -> None:
    issuer_key_rotate(key_file, now=NOW)
    cache = KeyCache(name="issuer", fetch=lambda: keys_fetch_signing_file(key_file), clock=lambda: 1000.0)
    assert cache.key_find(kids(key_file)[0]) is not None

    issuer_key_rotate(key_file, now=NOW + PUBLISHED_BEFORE)

    signing = signing_keys_read(key_file)[0]
    token = jwt.encode({"iss": "x"}, signing.private, algorithm="RS256", headers={"kid": signing.kid})
    key = cache.key_find(jwt.get_unverified_header(token)["kid"])
    assert key is not None
    assert jwt.decode(token, key, algorithms=["RS256"]) == {"iss": "x"}


def test_former_key_stays_for_as_long_as_its_tokens_live(key_file: Path) -> None:
    signed_until = rotated(key_file)
    over = signed_until + LIFE + LEEWAY

    with pytest.raises(Conflict, match=f"{over:%Y-%m-%dT%H:%M:%SZ}"):
        issuer_keys_retire(key_file, now=over - timedelta(seconds=1), token_life=LIFE)
    assert len(kids(key_file)) == 2

    (gone,) = issuer_keys_retire(key_file, now=over, token_life=LIFE)
    assert gone.state is KeyState.FORMER
    assert states(key_file) == [KeyState.SIGNS]


def test_retiring_twice_does_nothing_more(key_file: Path) -> None:
    over = rotated(key_file) + LIFE + LEEWAY
    issuer_keys_retire(key_file, now=over, token_life=LIFE)
    before = key_file.read_bytes()

    assert issuer_keys_retire(key_file, now=over, token_life=LIFE) == []
    assert key_file.read_bytes() == before


def test_key_that_waits_is_not_retired(key_file: Path) -> None:
    issuer_key_rotate(key_file, now=NOW)

    assert issuer_keys_retire(key_file, now=NOW + 10 * LIFE, token_life=LIFE) == []
    assert states(key_file) == [KeyState.SIGNS, KeyState.WAITS]


def test_of_two_former_keys_only_the_elder_goes(key_file: Path) -> None:
    first = rotated(key_file)
    second = rotated(key_file, now=first + LIFE)
    elder, younger = kids(key_file)[2], kids(key_file)[1]

    gone = issuer_keys_retire(key_file, now=first + LIFE + LEEWAY, token_life=LIFE)

    assert [key.kid for key in gone] == [elder]
    assert kids(key_file)[1] == younger
    assert issuer_keys(key_file)[1].signed_until == second


def test_clock_that_was_set_back_retires_nothing_and_lets_nothing_sign(key_file: Path) -> None:
    rotated(key_file)
    issuer_key_rotate(key_file, now=NOW + LIFE)
    before = key_file.read_bytes()

    with pytest.raises(Conflict):
        issuer_keys_retire(key_file, now=NOW - LIFE, token_life=LIFE)
    with pytest.raises(Conflict):
        issuer_key_rotate(key_file, now=NOW - LIFE)

    assert key_file.read_bytes() == before


def test_key_put_in_front_by_hand_leaves_the_one_behind_it_in_use(key_file: Path, tmp_path: Path) -> None:
    issuer_key_create(tmp_path / "new.pem")
    key_file.write_bytes((tmp_path / "new.pem").read_bytes() + key_file.read_bytes())
    touched = NOW.timestamp()
    os.utime(key_file, (touched, touched))

    assert states(key_file) == [KeyState.SIGNS, KeyState.FORMER]
    with pytest.raises(Conflict):
        issuer_keys_retire(key_file, now=NOW + LIFE, token_life=LIFE)
    assert issuer_keys_retire(key_file, now=NOW + LIFE + LEEWAY, token_life=LIFE)


def test_leaked_file_is_replaced_by_one_key_that_nobody_has(key_file: Path) -> None:
    rotated(key_file)
    leaked = set(kids(key_file))

    new = issuer_key_replace(key_file, now=NOW)

    assert kids(key_file) == [new.kid]
    assert new.kid not in leaked


def test_of_two_who_rotate_at_once_one_is_told_to_wait(key_file: Path) -> None:
    told: list[str] = []

    def rotate() -> None:
        try:
            told.append(issuer_key_rotate(key_file, now=NOW).state)
        except Conflict as error:
            told.append(error.code)

    threads = [threading.Thread(target=rotate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert sorted(told) == ["too_early", "too_early", "too_early", "waits"]
    assert states(key_file) == [KeyState.SIGNS, KeyState.WAITS]


# --- the file -------------------------------------------------------------------------------------------------


def test_file_keeps_its_rights_and_leaves_no_draft(key_file: Path) -> None:
    key_file.chmod(0o640)

    rotated(key_file)

    assert stat.S_IMODE(key_file.stat().st_mode) == 0o640
    assert [found.name for found in key_file.parent.iterdir()] == ["issuer.pem"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_file_stays_the_services_when_root_rotates(key_file: Path) -> None:
    os.chown(key_file, 12345, 54321)

    issuer_key_rotate(key_file, now=NOW)

    assert (key_file.stat().st_uid, key_file.stat().st_gid) == (12345, 54321)


def test_link_to_the_file_stays_a_link(key_file: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.pem"
    link.symlink_to(key_file)

    issuer_key_rotate(link, now=NOW)

    assert link.is_symlink()
    assert len(kids(key_file)) == 2


# A write of more than this kills the process (SIGXFSZ), in the middle of the draft: the disk is full.
FULL_DISK = """
import resource, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from smartgrid.issuer_keys import issuer_key_rotate
if sys.argv[2] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
else:
    import os
    def look(name, args):
        if name == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(look)
issuer_key_rotate(Path(sys.argv[1]), now=datetime.now(UTC))
"""


@pytest.mark.parametrize("died_at", ["full", "os.chmod", "os.rename"])
def test_process_that_dies_half_way_leaves_the_file_as_it_was(key_file: Path, died_at: str) -> None:
    before = key_file.read_bytes()

    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(key_file), died_at], cwd=ROOT, capture_output=True, check=False
    )

    assert done.returncode < 0, done.stderr
    assert key_file.read_bytes() == before
    # The next one takes the draft away, which holds a key, and goes on.
    assert len(list(key_file.parent.iterdir())) == 2
    issuer_key_rotate(key_file, now=NOW)
    assert [found.name for found in key_file.parent.iterdir()] == ["issuer.pem"]
    assert states(key_file) == [KeyState.SIGNS, KeyState.WAITS]


def test_directory_that_takes_no_file_is_said_and_the_key_stays(key_file: Path, settings: Settings) -> None:
    missing = key_file.parent / "none" / "issuer.pem"

    with pytest.raises(KeyFileUnusable, match="none"):
        issuer_key_rotate(missing, now=NOW)


@pytest.mark.parametrize(
    "spoilt",
    [
        b"",
        b"nothing of a key",
        b"# published yesterday\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ],
)
def test_file_that_cannot_be_read_is_never_written(key_file: Path, spoilt: bytes) -> None:
    key_file.write_bytes(spoilt)

    for step in (
        lambda: issuer_key_rotate(key_file, now=NOW),
        lambda: issuer_key_replace(key_file, now=NOW),
        lambda: issuer_keys_retire(key_file, now=NOW, token_life=LIFE),
    ):
        with pytest.raises(KeyFileUnusable):
            step()
    assert key_file.read_bytes() == spoilt


def test_time_that_is_none_is_said(key_file: Path, first_key: bytes) -> None:
    key_file.write_bytes(b"# published yesterday\n" + first_key)

    with pytest.raises(KeyFileUnusable, match="yesterday"):
        issuer_keys(key_file)


# --- the command ----------------------------------------------------------------------------------------------


def command(*args: str) -> str:
    out = StringIO()
    call_command("issuer_key", *args, stdout=out)
    return out.getvalue()


def test_command_leads_through_the_whole_life_of_a_key(tmp_path: Path, settings: Settings) -> None:
    file = tmp_path / "issuer.pem"
    settings.SGM_ISSUER_KEY_FILE = str(file)
    with time_machine.travel(NOW, tick=False) as clock:
        assert "A key was made" in command("create")
        assert "stays" in command("create")
        assert "Run this again at 2026-11-23T09:10:00Z" in command("rotate")
        with pytest.raises(CommandError, match="09:10:00Z"):
            command("rotate")
        clock.shift(PUBLISHED_BEFORE)
        assert "signs from now on" in command("rotate")
        assert "former; needed until 2026-11-24T09:15:00Z" in command("list")
        with pytest.raises(CommandError, match="2026-11-24T09:15:00Z"):
            command("retire")
        clock.shift(LIFE + LEEWAY)
        assert "is gone" in command("retire")
        assert "nothing to do" in command("retire")
        former = kids(file)
        assert "Restart" in command("rotate", "--leaked")
        assert kids(file) != former
    assert "PRIVATE" not in command("list")


def test_command_says_that_the_issuer_is_off(settings: Settings) -> None:
    settings.SGM_ISSUER_KEY_FILE = ""

    with pytest.raises(CommandError, match="SGM_ISSUER_KEY_FILE is not set"):
        command("rotate")


def test_root_token_is_drawn_and_alone_on_standard_output(settings: Settings) -> None:
    settings.SGM_ROOT_TOKENS = ["root-token-that-is-there-0123456789"]
    out, err = StringIO(), StringIO()

    call_command("root_token", "new", stdout=out, stderr=err)
    call_command("root_token", "new", stdout=out, stderr=err)

    first, second = out.getvalue().split()
    assert first != second
    assert len(first) >= 32
    assert settings.SGM_ROOT_TOKENS[0] not in out.getvalue() + err.getvalue()
    assert first not in err.getvalue()
