"""Charts: round ticks, points where they belong, gaps where nothing is known."""

import math
import re

import numpy as np
import pytest

from retinanet.tools.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    MOST_TICKS,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Line,
    line_chart,
    span,
    thin,
    tick_label,
    ticks,
)

UNIT = Axis("recall", 0, 1)


def path_of(text: str) -> list[tuple[float, float]]:
    (d,) = re.findall(r'<path class="line"[^>]* d="([^"]*)"', text)
    return [tuple(map(float, point.split())) for point in re.split("[ML]", d)[1:]]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 90_000, [0, 20_000, 40_000, 60_000, 80_000]),
        (0, 7, [0, 2, 4, 6]),
        (0, 0.0011, [0, 0.0002, 0.0004, 0.0006, 0.0008, 0.001]),
        (3, 4.1, [3, 3.2, 3.4, 3.6, 3.8, 4]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(Axis("", low, high)) == pytest.approx(expected)


@pytest.mark.parametrize("high", [1e-7, 0.03, 0.99, 5.01, 11, 123, 1e6])
def test_there_are_some_ticks_and_never_too_many(high):
    assert 3 <= len(ticks(Axis("", 0, high))) <= MOST_TICKS + 1


def test_a_logarithmic_axis_has_ticks_at_1_2_and_5():
    assert ticks(Axis("", 0.09, 1.3, log=True)) == pytest.approx([0.1, 0.2, 0.5, 1])
    assert ticks(Axis("", 0.0009, 1e4, log=True)) == pytest.approx([10.0**n for n in range(-3, 5)])


@pytest.mark.parametrize(
    ("value", "label"),
    [(0, "0"), (0.1 * 3, "0.3"), (9e3, "9000"), (2e4, "20k"), (5e-5, "5e-05")],
)
def test_labels_are_short(value, label):
    assert tick_label(value) == label


def test_points_are_drawn_where_they_are():
    chart = line_chart([Line("a", np.array([0, 1]), np.array([0, 1]), "#000")], UNIT, UNIT)
    assert path_of(chart) == [(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, TOP)]


def test_a_logarithmic_axis_puts_the_geometric_mean_in_the_middle():
    y = Axis("loss", 0.01, 1, log=True)
    chart = line_chart([Line("a", np.array([0.0, 1]), np.array([0.1, 0.0]), "#000")], UNIT, y)
    assert path_of(chart) == [(LEFT, pytest.approx((HEIGHT - BOTTOM + TOP) / 2, abs=0.1))]


def test_what_is_not_finite_is_a_gap():
    values = np.array([0.1, math.nan, 0.3, math.inf, 0.5])
    chart = line_chart([Line("a", np.arange(5) / 4, values, "#000")], UNIT, UNIT)
    (d,) = re.findall(r'<path class="line"[^>]* d="([^"]*)"', chart)
    assert d.count("M") == 3
    assert "nan" not in chart
    assert "inf" not in chart


def test_names_are_escaped():
    chart = line_chart([Line("<b>&\"'", np.array([0]), np.array([0]), "#000")], UNIT, UNIT)
    assert "<b>" not in chart
    assert "&lt;b&gt;&amp;&quot;&#x27;" in chart


def test_a_thinned_line_keeps_its_ends_of_every_stretch():
    values = np.zeros(10_000)
    values[[17, 5003]] = 9, -9
    x, y = thin(np.arange(10_000), values)
    assert len(x) <= MOST_POINTS
    assert x[y == 9] == [17]
    assert x[y == -9] == [5003]
    assert (np.diff(x) > 0).all()


def test_an_axis_spans_what_is_finite():
    assert span([np.array([1.0, math.nan, 3.0])]) == (1, pytest.approx(3.12))
    assert span([np.array([2.0, 2.0])], floor=0.0) == (0, pytest.approx(2.12))
    assert span([np.array([0.0])], floor=0.0) == (0, 1)
    assert span([]) == (0, 1)
