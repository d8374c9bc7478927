"""Line charts as SVG: sharp at any size, in the colors of the page around them, no text lost.

A chart in a page takes its lines, letters and grid from the page's style (page.css), dark or
light, which a plot by matplotlib cannot; that is the reason for these lines of drawing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from retinanet.tools.report.markup import escape

# Coordinates of a chart: small, so that its letters can be read on a phone.
WIDTH, HEIGHT = 380, 225
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 8, 36
# Lines of a grid, at most.
MOST_TICKS = 6
# Points of a line, at most: more cannot be seen.
MOST_POINTS = 600
# A point has a mark of its own where a line has few.
MARKED_POINTS = 40


class Line(NamedTuple):
    """One line of a chart."""

    name: str
    x: np.ndarray  # (N,) increasing
    y: np.ndarray  # (N,); what is not finite is a gap
    color: str | None  # None: by its kind
    kind: Literal["line", "faint", "neutral", "ink"] = "line"


class Axis(NamedTuple):
    """What an axis shows."""

    label: str
    low: float
    high: float
    log: bool = False


def line_chart(lines: Sequence[Line], x: Axis, y: Axis) -> str:
    """A chart as an ``<svg>`` element.

    Args:
        lines: the last one on top.
        x: horizontal axis.
        y: vertical axis.
    """
    grid = "".join(_tick(x, value, upright=True) for value in ticks(x))
    grid += "".join(_tick(y, value, upright=False) for value in ticks(y))
    shapes = "".join(_line(line, x, y) for line in lines)
    names = ", ".join(dict.fromkeys(line.name for line in lines if line.name))
    label = f"{y.label} over {x.label}{': ' if names else ''}{names}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{grid}'
        f'<path class="axis" d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none"/>'
        f"{shapes}"
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{escape(x.label)}</text></svg>"
    )


def span(values: Sequence[np.ndarray], *, floor: float | None = None) -> tuple[float, float]:
    """Smallest and largest finite value with some room above, for an axis.

    Args:
        values: of the lines.
        floor: lower end instead of the smallest value.
    """
    finite = np.concatenate([np.asarray(v, float)[np.isfinite(v)] for v in values] or [[]])
    if not len(finite):
        return (0.0 if floor is None else floor), 1.0
    low = float(finite.min()) if floor is None else floor
    high = float(finite.max())
    return low, high + 0.06 * (high - low) if high > low else low + 1.0


def ticks(axis: Axis) -> list[float]:
    """Round numbers between both ends: steps of 1, 2 or 5 times a power of ten."""
    if axis.log:
        return _log_ticks(axis)
    step = 10.0 ** math.floor(math.log10((axis.high - axis.low) / MOST_TICKS))
    while (axis.high - axis.low) / step > MOST_TICKS:
        step *= 2.5 if f"{step:e}".startswith("2") else 2
    first, last = math.ceil(axis.low / step - 1e-9), math.floor(axis.high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def _log_ticks(axis: Axis) -> list[float]:
    powers = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
    for digits in ((1, 2, 5), (1,)):
        found = [d * 10.0**p for p in powers for d in digits]
        found = [value for value in found if axis.low <= value <= axis.high]
        if len(found) <= MOST_TICKS:
            break
    return found


def tick_label(value: float) -> str:
    """A number in few letters: 20k for 20000."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def _position(axis: Axis, values: np.ndarray | float, start: float, end: float) -> np.ndarray:
    """Where values lie between two ends."""
    low, high = axis.low, axis.high
    with np.errstate(divide="ignore", invalid="ignore"):
        if axis.log:
            values, low, high = np.log(values), math.log(low), math.log(high)
        return start + (end - start) * (np.asarray(values) - low) / (high - low)


def _across(axis: Axis, values: np.ndarray | float) -> np.ndarray:
    return _position(axis, values, LEFT, WIDTH - RIGHT)


def _up(axis: Axis, values: np.ndarray | float) -> np.ndarray:
    return _position(axis, values, HEIGHT - BOTTOM, TOP)


def _tick(axis: Axis, value: float, *, upright: bool) -> str:
    label = tick_label(value)
    if upright:
        at = f"{_across(axis, value):.1f}"
        return f'<text x="{at}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{label}</text>'
    at = _up(axis, value)
    return (
        f'<path class="grid" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _line(line: Line, x: Axis, y: Axis) -> str:
    """A line with gaps, and marks where it has few points."""
    xs, ys = thin(np.asarray(line.x, float), np.asarray(line.y, float))
    across, up = _across(x, xs), _up(y, ys)
    shown = np.isfinite(up)
    up = np.clip(up, TOP, HEIGHT - BOTTOM)
    path, gap = [], True
    for px, py, visible in zip(across, up, shown, strict=True):
        if visible:
            path.append(f"{'M' if gap else 'L'}{px:.1f} {py:.1f}")
        gap = not visible
    stroke = f' stroke="{line.color}"' if line.color else ""
    title = f"<title>{escape(line.name)}</title>" if line.name else ""
    drawn = f'<path class="{line.kind}"{stroke} d="{"".join(path)}">{title}</path>'
    if line.kind == "line" and len(xs) <= MARKED_POINTS:
        drawn += "".join(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6" fill="{line.color}"><title>'
            f"{escape(line.name)} {value:.4g} at {at:g}</title></circle>"
            for px, py, at, value, visible in zip(across, up, xs, ys, shown, strict=True)
            if visible
        )
    return drawn


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``MOST_POINTS`` points of a line: the lowest and the highest of each stretch."""
    if len(x) <= MOST_POINTS:
        return x, y
    kept = []
    for rows in np.array_split(np.arange(len(x)), MOST_POINTS // 2):
        known = rows[np.isfinite(y[rows])]
        if len(known):
            kept += [known[y[known].argmin()], known[y[known].argmax()]]
    kept = np.unique(kept).astype(int)
    return x[kept], y[kept]
