"""Line charts: what is drawn of curves, and how their axes are divided."""

from __future__ import annotations

import math

import pytest

from fastmpi.report.chart import line_chart, moving_mean, nice_ticks
from fastmpi.report.content import Chart, Curve


@pytest.mark.parametrize(
    "low, high, expected",
    [(0, 1, [0, 0.5, 1.0]), (0.13, 0.87, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (5, 5, None)],
)
def test_nice_ticks_enclose_the_values(low, high, expected):
    ticks = nice_ticks(low, high, 4 if expected is None or len(expected) > 3 else 2)
    assert ticks[0] <= low and ticks[-1] >= high
    assert expected is None or ticks == expected


def test_chart_skips_what_is_not_a_number():
    chart = Chart("Loss", "nats", [Curve("", [(0, 1.0), (1, math.nan), (2, 3.0)]), Curve("b", [])])
    drawing = line_chart(chart)
    assert "nan" not in drawing and drawing.count("<polyline") == 1 and "legend" not in drawing
    assert line_chart(Chart("Loss", "nats", [Curve("a", [])])) == ""


def test_moving_mean_takes_the_neighbours_there_are():
    points = [(0, 0.0), (1, 3.0), (2, 6.0), (3, 0.0)]
    assert moving_mean(points, 1) == [(0, 0.0), (1, 3.0), (2, 3.0), (3, 3.0)]


def test_rounding_is_drawn_as_a_level_line():
    drawing = line_chart(Chart("Loss", "loss", [Curve("a", [(0, 1e-9), (1, -3e-8)])]))
    assert drawing.count(">0<") == 2 and "e-0" not in drawing


def test_a_curve_has_the_same_colour_in_every_chart():
    curve = Curve("second", [(0, 1.0), (1, 2.0)], colour=1)
    alone = line_chart(Chart("a", "y", [curve]))
    assert alone.count("series c1") == 2 and "series c0" not in alone
    assert "series c1 dashed" in line_chart(Chart("a", "y", [Curve("x", curve.points, 7)]))


def test_axis_holds_the_wanted_range():
    points = [(2, 0.4), (3, 0.5)]
    assert ">1</text>" not in line_chart(Chart("a", "y", [Curve("", points)], x_label="s"))
    assert ">1</text>" in line_chart(Chart("a", "y", [Curve("", points)], "s", (0.0, 1.0)))
