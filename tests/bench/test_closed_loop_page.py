"""What docs/closed-loop.md shows is what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.closed_loop.page import BEGIN, END, PAGE, figures_read, page_table, page_write


def test_page_shows_the_figures_that_are_kept() -> None:
    shown = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]

    assert shown.strip() == page_table(figures_read()).strip()


def test_figures_take_the_place_of_earlier_ones_and_of_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nearlier\n{END}\nafter\n", encoding="utf-8")

    for _ in range(2):
        page_write(figures_read(), page)

    written = page.read_text(encoding="utf-8")
    assert "earlier" not in written
    assert written.count("| S2 |") == 1
    assert (written[:7], written[-7:]) == ("before\n", "\nafter\n")


@pytest.mark.parametrize("text", ["no marks", f"{BEGIN} and no end", f"{END} before {BEGIN}"])
def test_page_without_a_place_for_figures_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")

    with pytest.raises(ValueError, match="no place for the figures"):
        page_write(figures_read(), page)

    assert page.read_text(encoding="utf-8") == text


def test_files_that_the_page_shows_and_links_to_exist() -> None:
    linked = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8"))

    assert [name for name in linked if not (PAGE.parent / name).exists()] == []
    assert sum(name.endswith(".png") for name in linked) == 3
