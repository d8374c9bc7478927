"""The figure of a sweep. Imports no torch."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from retinanet.tools.report.style import class_color, house_style, plain_text

# Letters of a value below the axis, and of a line in the legend.
VALUE_LETTERS, NAME_LETTERS = 16, 34
# More letters than this below the axis are written upwards.
MOST_LEVEL = 70


@house_style()
def draw_lines(
    lines: Mapping[str, Mapping[str, Sequence[float]]], values: Sequence[str], key: str
) -> Figure:
    """A line of mean AP for each setting, with a white dot for each of several runs.

    The values stand side by side in their order, whatever they are: numbers, names, null.

    Args:
        lines: name of a setting -> value of the axis -> AP of its runs.
        values: of the axis, from left to right.
        key: name of the axis.
    """
    figure = Figure(figsize=(max(6.6, 0.3 * len(values)), 4.3), layout="constrained")
    axes = figure.subplots()
    labels = shorten(list(lines), NAME_LETTERS)
    for place, (line, label) in enumerate(zip(lines.values(), labels, strict=True)):
        color = class_color(place)
        points = {x: line[value] for x, value in enumerate(values) if value in line}
        means = {x: statistics.fmean(runs) for x, runs in points.items()}
        axes.plot([*means], [*means.values()], "o-", color=color, markersize=6, label=label)
        for x, runs in points.items():
            if len(runs) > 1:
                dots = {"color": "white", "markeredgecolor": color, "markersize": 4}
                axes.plot([x] * len(runs), runs, "o", **dots)
            if len(lines) == 1:
                above = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
                axes.annotate(f"{means[x]:.3f}", (x, max(runs)), fontsize=8, **above)
    ticks = shorten(values, VALUE_LETTERS)
    axes.set_xticks(range(len(values)), ticks, rotation=90 * (sum(map(len, ticks)) > MOST_LEVEL))
    axes.set(xlabel=key, ylabel="AP (IoU .50:.95)", xlim=(-0.5, len(values) - 0.5))
    axes.margins(y=0.14)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0))  # no AP is below 0
    if len(lines) > 1:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def shorten(values: Sequence[str], most: int) -> list[str]:
    """Values of about so many letters that still differ: without the folders that all share."""
    if len(values) > 1 and max(map(len, values)) > most:
        shared = os.path.commonprefix(values)
        start = max(shared.rfind(mark) + 1 for mark in "/,")
        values = [value[start:] for value in values]
    short = [plain_text(value, most) for value in values]
    if len(set(short)) < len(short):
        short = [f"{place}: {name}" for place, name in enumerate(short, start=1)]
    return short
