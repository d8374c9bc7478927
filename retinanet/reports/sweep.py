"""Table and plot of a sweep, rebuilt from the run directories that are there.

Imports no torch: the process that starts the runs stays small.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinanet.atomic import write_whole
from retinanet.evaluation.numbers import NUMBERS
from retinanet.limits import value_text

RUN = "run"
# From this ratio of largest to smallest value on, the axis is logarithmic.
LOG_RATIO = 50


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run of a sweep."""

    swept: dict[str, Any]  # key -> value of this run
    folder: Path  # its run directory


def write_sweep(folder: Path, runs: Sequence[SweepRun]) -> list[dict[str, str]]:
    """Write ``table.csv`` and ``plot.png``.

    Runs that an earlier sweep left in the table stay there as long as their directories do;
    runs without metrics are left out. Nothing is written while there are none.

    Args:
        folder: of the sweep; made when needed.
        runs: of this sweep, finished or not.

    Returns:
        Rows of the table: swept keys, the twelve COCO numbers (empty where undefined), run.
    """
    keys = list(runs[0].swept)
    earlier = read_table(folder / "table.csv", keys)
    current = [
        {**{key: value_text(run.swept[key]) for key in keys}, RUN: str(run.folder)} for run in runs
    ]
    known = {row[RUN]: row for row in [*earlier, *current]}
    rows = []
    for row in known.values():
        metrics = read_metrics(Path(row[RUN]))
        if metrics is not None:
            rows.append({**row, **{name: _cell(metrics.get(name)) for name in NUMBERS}})
    rows.sort(key=lambda row: [_rank(row[key]) for key in keys])
    if rows:
        folder.mkdir(parents=True, exist_ok=True)
        _write_table(folder / "table.csv", rows, [*keys, *NUMBERS, RUN])
        plot_sweep(folder / "plot.png", rows, keys)
    return rows


def read_metrics(run: Path) -> dict[str, float | None] | None:
    """The twelve numbers of a run directory; None while it has none."""
    try:
        return json.loads((run / "eval" / "metrics.json").read_text())
    except FileNotFoundError:
        return None


def read_table(path: Path, keys: Sequence[str]) -> list[dict[str, str]]:
    """Swept values and run of each row of an earlier table; none if there is no table."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [*keys, RUN]
    return [{name: row[name] for name in names} for row in rows if set(names) <= row.keys()]


def plot_sweep(path: Path, rows: Sequence[dict[str, str]], keys: Sequence[str]) -> None:
    """AP over the swept setting; with several, one line for each combination of the others.

    Args:
        path: PNG file to write.
        rows: of the table.
        keys: swept keys; the one with most numbers becomes the x axis.
    """
    # The object-oriented interface: no global state, no display.
    from matplotlib.figure import Figure

    key = max(keys, key=lambda k: len({row[k] for row in rows if _number(row[k]) is not None}))
    others = [other for other in keys if other != key]
    values = sorted({row[key] for row in rows}, key=_rank)
    numeric = all(_number(value) is not None for value in values)
    place = {v: _number(v) if numeric else float(i) for i, v in enumerate(values)}

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if row["AP"]:
            name = ", ".join(f"{other}={row[other]}" for other in others)
            lines.setdefault(name, []).append(row)
    for name, line in lines.items():
        x, y = [place[row[key]] for row in line], [float(row["AP"]) for row in line]
        axes.plot(x, y, "o-" if numeric else "o", label=name)
        if len(lines) == 1:
            for at, value in zip(x, y, strict=True):
                axes.annotate(
                    f"{value:.3f}", (at, value), (0, 7), textcoords="offset points", ha="center"
                )
    _label_axes(axes, key, place, numeric)
    if others and lines:
        axes.legend(frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_whole(path, picture.getvalue())


def _label_axes(axes: Any, key: str, place: dict[str, float], numeric: bool) -> None:
    """Names, ticks at the swept values, and a logarithmic axis for values far apart."""
    axes.set(xlabel=key, ylabel="AP (IoU .50:.95)")
    axes.margins(x=0.08, y=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    at = list(place.values())
    if numeric and min(at) > 0 and max(at) / min(at) >= LOG_RATIO:
        axes.set_xscale("log")
        axes.minorticks_off()
    axes.set_xticks(at, list(place), rotation=0 if numeric or len(at) < 4 else 20)


def _write_table(path: Path, rows: Sequence[dict[str, str]], columns: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def _cell(value: float | None) -> str:
    """A metric in the table; empty where it is undefined."""
    return "" if value is None else f"{value:.6f}"


def _number(text: str) -> float | None:
    """The number that a swept value is, if it is one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _rank(text: str) -> tuple[float, str]:
    """Sorts numbers by size, before words by letter."""
    number = _number(text)
    return (math.inf, text) if number is None else (number, "")
