"""The plot of a sweep: AP over what was swept. Imports no torch."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retinanet.tools.report.style import COLORS, house_style, save_png
from retinanet.tools.report.sweep_rows import FINISHED, STATUS, Row, number, rank, settings_of

# From this ratio of largest to smallest value on, the axis is logarithmic.
LOG_RATIO = 50
# Ticks nearer to each other than this share of the axis would write over each other.
TICK_ROOM = 0.055
# More lines than this are a heat map.
MAX_LINES = 4
# Letters of a value beside an axis, and in a legend.
NAME_LETTERS = 34
# Inches of a cell of a heat map.
CELL_WIDTH, CELL_HEIGHT = 0.82, 0.5
AP = "AP (IoU .50:.95)"

Groups = dict[str, dict[str, list[float]]]  # other settings -> value of the axis -> AP of its runs


def plot_sweep(path: Path, rows: Sequence[Row], keys: Sequence[str]) -> None:
    """AP of the finished runs: lines over numbers, dots beside names, a heat map for much of both.

    Args:
        path: PNG file to write.
        rows: of the table.
        keys: swept keys; the one with most numbers becomes the axis.
    """
    done = [row for row in rows if row[STATUS] == FINISHED and row["AP"]]
    key, others = choose_axis(done, settings_of(keys))
    groups: Groups = {}
    for row in done:
        name = ", ".join(f"{short}={row[other]}" for other, short in others.items())
        value = row[key] if key else "all seeds"
        groups.setdefault(name, {}).setdefault(value, []).append(float(row["AP"]))
    values = sorted({value for group in groups.values() for value in group}, key=rank)
    numeric = sum(number(value) is not None for value in values) > 1
    with house_style():
        figure = Figure(figsize=(6.6, 4.3), layout="constrained")
        axes = figure.subplots()
        if len(groups) == 1 and not numeric:
            _draw_names(figure, axes, next(iter(groups.values())), values, key)
        elif numeric and len(groups) <= MAX_LINES:
            _draw_lines(axes, groups, values, key)
        else:
            _draw_map(figure, axes, groups, values, key)
        spread = "±: standard deviation" if axes.images else "band: lowest to highest"
        about = _about(rows, done, groups, spread)
        axes.set_title(about, fontsize=9, fontweight="normal")
        save_png(figure, path)


def choose_axis(rows: Sequence[Row], settings: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The key of the axis, and the others with the short names that tell them apart.

    The axis is that of the key with most different numbers, or else most different values.
    """
    if not settings:
        return "", {}

    def extent(key: str) -> tuple[int, int]:
        values = {row[key] for row in rows}
        return sum(number(value) is not None for value in values), len(values)

    key = max(settings, key=extent)
    last = [name.rpartition(".")[2] for name in settings]
    others = {
        name: short if last.count(short) == 1 else name
        for name, short in zip(settings, last, strict=True)
        if name != key
    }
    return key, others


def shorten(values: Sequence[str], most: int = NAME_LETTERS) -> list[str]:
    """Values of at most so many letters that still differ: without the folders that all share."""
    if len(values) > 1 and max(map(len, values)) > most:
        shared = os.path.commonprefix(values)
        start = max(shared.rfind(mark) + 1 for mark in "/,")
        values = [value[start:] for value in values]
    head = most // 3
    short = [v if len(v) <= most else f"{v[:head]}...{v[head + 3 - most :]}" for v in values]
    if len(set(short)) < len(short):
        short = [f"{place}: {name}" for place, name in enumerate(short, start=1)]
    return short


def _draw_lines(axes: Axes, groups: Groups, values: Sequence[str], key: str) -> None:
    """A line of means for each group, its runs as dots, the range of their AP as a band."""
    place = _places(axes, values)
    names = shorten(list(groups))
    for (group, color), name in zip(zip(groups.values(), COLORS, strict=False), names, strict=True):
        line = sorted((place[value], value) for value in group)
        x = [at for at, value in line if number(value) is not None]
        runs = [group[value] for _, value in line if number(value) is not None]
        means = [statistics.fmean(part) for part in runs]
        axes.fill_between(x, [*map(min, runs)], [*map(max, runs)], color=color, alpha=0.15, lw=0)
        axes.plot(x, means, "-", color=color, linewidth=1.8, label=name)
        for at, value in line:
            _draw_runs(axes, [at] * len(group[value]), group[value], color)
            mean = statistics.fmean(group[value])
            axes.plot(at, mean, "o", color=color, markersize=6)
            if len(groups) == 1:
                axes.annotate(
                    _three(mean), (at, max(group[value])), (0, 7), textcoords="offset points",
                    ha="center", fontsize=8,
                )  # fmt: skip
    axes.set(xlabel=key, ylabel=AP)
    axes.margins(x=0.06, y=0.14)
    if not any(ap for group in groups.values() for runs in group.values() for ap in runs):
        # Around zero alone the axis would reach below it, where no AP is.
        axes.set_ylim(0, 1)
    if len(groups) > 1:
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _places(axes: Axes, values: Sequence[str]) -> dict[str, float]:
    """Where values stand on the x axis, with its ticks: as numbers, logarithms, or side by side."""
    numbers = [number(value) for value in values]
    side_by_side = None in numbers
    if not side_by_side:
        low = min((abs(n) for n in numbers if n), default=1.0)
        wide = max(abs(n) for n in numbers) >= LOG_RATIO * low
        side_by_side = wide and min(numbers) <= 0  # zero has no place on a logarithmic axis
        if wide and not side_by_side:
            axes.set_xscale("log")
            axes.minorticks_off()
    at = [float(i) for i in range(len(values))] if side_by_side else numbers
    shown = _thin(at, log=axes.get_xscale() == "log")
    axes.set_xticks([at[i] for i in shown], shorten([values[i] for i in shown], 12))
    return dict(zip(values, at, strict=True))


def _thin(at: Sequence[float], *, log: bool) -> list[int]:
    """Indices of the ticks that have room for their text; the first and the last always do."""
    scale = [math.log(x) for x in at] if log else list(at)
    length = (scale[-1] - scale[0]) or 1.0
    shown = [0]
    for i in range(1, len(at)):
        if (scale[i] - scale[shown[-1]]) / length >= TICK_ROOM:
            shown.append(i)
    if shown[-1] != len(at) - 1:
        shown[-1] = len(at) - 1
    return shown


def _draw_names(
    figure: Figure, axes: Axes, group: dict[str, list[float]], values: Sequence[str], key: str
) -> None:
    """A row for each value, with its runs, their mean and its spread."""
    figure.set_size_inches(6.6, max(1.6, 1.1 + 0.42 * len(values)))
    for y, value in enumerate(values):
        runs = group[value]
        mean = statistics.fmean(runs)
        axes.plot([min(runs), max(runs)], [y, y], "-", color=COLORS[0], alpha=0.25, linewidth=6)
        _draw_runs(axes, runs, [y] * len(runs), COLORS[0])
        axes.plot(mean, y, "o", color=COLORS[0], markersize=6)
        axes.annotate(
            _with_spread(runs), (1.02, y), xycoords=("axes fraction", "data"), va="center"
        )
    axes.set(xlabel=AP, ylabel=key, ylim=(len(values) - 0.4, -0.6))
    axes.set_yticks(range(len(values)), shorten(values))
    axes.margins(x=0.08)
    axes.grid(axis="y", visible=False)


def _draw_map(figure: Figure, axes: Axes, groups: Groups, values: Sequence[str], key: str) -> None:
    """A cell for each setting: its mean AP, brighter where it is higher."""
    names = sorted(groups, key=lambda name: [rank(p.partition("=")[2]) for p in name.split(", ")])
    means = [
        [statistics.fmean(groups[name][v]) if v in groups[name] else float("nan") for v in values]
        for name in names
    ]
    figure.set_size_inches(
        max(5.0, 2.6 + CELL_WIDTH * len(values)), max(2.4, 1.2 + CELL_HEIGHT * len(names))
    )
    image = axes.imshow(means, cmap="viridis", aspect="auto")
    low, high = image.get_clim()
    for y, name in enumerate(names):
        for x, value in enumerate(values):
            runs = groups[name].get(value)
            if runs:
                dark = statistics.fmean(runs) < (low + high) / 2
                text = _with_spread(runs).replace(" \u00b1", "\n\u00b1")
                color = "white" if dark else "black"
                axes.text(x, y, text, ha="center", va="center", color=color, fontsize=8)
    axes.set_xticks(range(len(values)), shorten(values, 12))
    axes.set_yticks(range(len(names)), shorten(names))
    axes.set(xlabel=key)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, label=AP)


def _draw_runs(axes: Axes, x: Sequence[float], y: Sequence[float], color: str) -> None:
    """Single runs, where there are several of a setting."""
    if len(x) > 1:
        axes.plot(x, y, "o", color="white", markeredgecolor=color, markersize=4, alpha=0.9)


def _about(rows: Sequence[Row], done: Sequence[Row], groups: Groups, spread: str) -> str:
    """What the marks mean, and what is missing."""
    counts = {len(runs) for group in groups.values() for runs in group.values()}
    text = ""
    if max(counts) > 1:
        few = f"{min(counts)} to " if min(counts) < max(counts) else ""
        text = f"mean of {few}{max(counts)} seeds; {spread}"
    missing = sum(row[STATUS] != FINISHED for row in rows)
    undefined = len(rows) - len(done) - missing
    for count, why in ((missing, "not finished"), (undefined, "without an AP")):
        if count:
            text += f"{chr(10) if text else ''}{count} of {len(rows)} runs {why}: not drawn"
    return text


def _with_spread(runs: Sequence[float]) -> str:
    """Mean, and standard deviation where there is one."""
    spread = f" \u00b1 {_three(statistics.stdev(runs))}" if len(runs) > 1 else ""
    return _three(statistics.fmean(runs)) + spread


def _three(value: float) -> str:
    return f"{value:.3f}"
