"""What the benchmark of the link makes of its times."""

from __future__ import annotations

import pytest

from bench.sync import growth_exponent
from bench.sync_plot import drawing


def test_growth_is_one_where_ten_times_the_nodes_take_ten_times_as_long():
    assert growth_exponent({1000: 2.0, 10_000: 20.0}) == pytest.approx(1.0)


def test_growth_is_two_where_twice_the_nodes_take_four_times_as_long():
    assert growth_exponent({1000: 1.0, 2000: 4.0, 4000: 16.0}) == pytest.approx(2.0)


def test_drawing_leaves_out_a_size_that_has_no_progress():
    seen = {
        1000: {"progress": [(1.0, 500, 7), (2.0, 1000, 15)], "documents": 15, "floor": {"complete_s": 0.5}},
        3000: {"progress": [], "documents": 45, "floor": {}},
    }
    picture = drawing(seen)
    assert "1,000 nodes: 2.0 s" in picture
    assert "3,000 nodes" not in picture
