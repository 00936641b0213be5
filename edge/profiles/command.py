"""`python -m edge profiles`: check, list and show profiles, and write the page about them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edge.profiles.document import KINDS, document, section
from edge.profiles.errors import ProfileError
from edge.profiles.loader import DATA, load_all, load_profile
from edge.profiles.model import Profile
from edge.profiles.summary import capabilities_of, confidence_of

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"


def main(argv: Sequence[str]) -> int:
    """Exit code 0 where all is well, 1 where a profile or the page is not, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="edge profiles", description="The device types, as data.")
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="judge profiles: file, key and expectation of what is wrong")
    check.add_argument("files", nargs="*", type=Path, metavar="FILE", help="without any: all of this version")
    commands.add_parser("list", help="what there is, one line each")
    show = commands.add_parser("show", help="all about one device type")
    show.add_argument("name", metavar="NAME_OR_FILE")
    page = commands.add_parser("document", help="write docs/devices.md")
    page.add_argument("--check", action="store_true", help="write nothing; fail where it is not up to date")
    page.add_argument("--file", type=Path, default=PAGE)
    arguments = parser.parse_args(argv)
    match arguments.command:
        case "check":
            return _check(arguments.files or sorted(DATA.glob("*/*.yaml")))
        case "list":
            return _list()
        case "show":
            return _show(arguments.name)
        case _:
            return _document(arguments.file, only_check=arguments.check)


def _check(files: Sequence[Path]) -> int:
    """One line a file, and each file is judged, whatever is wrong with those before it."""
    wrong = 0
    for file in files:
        try:
            profile = load_profile(file)
        except ProfileError as error:
            wrong += 1
            sys.stdout.write(f"WRONG {error}\n")
        else:
            sys.stdout.write(f"OK    {file}: {profile.title}; {_in_short(profile)}\n")
    return 1 if wrong else 0


def _in_short(profile: Profile) -> str:
    control = capabilities_of(profile).control
    kind = "only measured" if control is None else f"{KINDS[control.kind]}, {control.write_class.value}"
    return f"{kind}; {confidence_of(profile).value.replace('_', ' ')}"


def _list() -> int:
    rows = [("name", "title", "category", "protocol", "control", "writes", "own fallback", "confidence")]
    for profile in sorted(load_all().values(), key=lambda one: (one.category, one.name)):
        what = capabilities_of(profile)
        rows.append(
            (
                profile.name,
                profile.title,
                profile.category,
                ", ".join(profile.protocols),
                "-" if what.control is None else what.control.kind.value,
                "-" if what.control is None else what.control.write_class.value,
                "-" if what.fallback is None else what.fallback.takes,
                confidence_of(profile).value,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(line.rstrip() + "\n")
    return 0


def _show(name: str) -> int:
    path = Path(name)
    if path.suffix != ".yaml":
        found = sorted(DATA.glob(f"*/{path.name}.yaml"))
        if not found:
            sys.stderr.write(f"there is no profile {name!r}: `edge profiles list` names them all\n")
            return 1
        path = found[0]
    try:
        profile = load_profile(path)
    except ProfileError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(section(profile, all_points=True))
    return 0


def _document(file: Path, *, only_check: bool) -> int:
    text = document(load_all())
    if not only_check:
        file.write_text(text, encoding="utf-8")
        return 0
    if file.exists() and file.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{file} is not what the profiles say: run `python -m edge profiles document`\n")
    return 1
