"""Tables of a sweep, rebuilt from the run directories that are there.

Imports no torch: the process that starts the runs stays small.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinanet.atomic import write_whole
from retinanet.csv_text import csv_text
from retinanet.evaluation.numbers import NUMBERS
from retinanet.limits import value_text
from retinanet.terminal import count_columns, fit, width
from retinanet.tools.report.sweep_rows import (
    ERROR,
    FINISHED,
    LOG,
    RUN,
    SEED,
    STATUS,
    Row,
    rank,
    settings_of,
    summarize,
    with_outcome,
)

# The console has columns for these, each so wide.
SHOWN = ("AP", "AP50", "AP75")
NUMBER_WIDTH = 8


@dataclass(frozen=True, slots=True)
class SweepRun:
    """One run of a sweep."""

    swept: dict[str, Any]  # key -> value of this run
    folder: Path  # its run directory


def write_sweep(folder: Path, runs: Sequence[SweepRun]) -> list[Row]:
    """Write ``table.csv``, ``summary.csv`` and, once a run has finished, ``plot.png``.

    Runs that an earlier sweep left in the table stay there as long as their directories do.

    Args:
        folder: of the sweep; made when needed.
        runs: of this sweep, begun or not.

    Returns:
        Rows of the table: swept keys, status, the twelve COCO numbers of the run's best checkpoint
        (empty where undefined), run, and for failed runs the error and where there is more.
    """
    keys = list(runs[0].swept)
    current = [
        {**{key: value_text(run.swept[key]) for key in keys}, RUN: str(run.folder)} for run in runs
    ]
    own = {row[RUN] for row in current}
    earlier = [row for row in read_table(folder / "table.csv", keys) if Path(row[RUN]).is_dir()]
    rows = [*(row for row in earlier if row[RUN] not in own), *current]
    rows = [with_outcome(row, folder) for row in rows]
    rows.sort(key=lambda row: [rank(row[key]) for key in keys])
    _write_csv(folder / "table.csv", rows, [*keys, STATUS, *NUMBERS, RUN, ERROR, LOG])
    columns = [column for name in NUMBERS for column in (name, f"{name}_std")]
    _write_csv(folder / "summary.csv", summarize(rows, keys), [*settings_of(keys), "n", *columns])
    if any(row["AP"] for row in rows if row[STATUS] == FINISHED):
        # Imports matplotlib: not before there is something to draw.
        from retinanet.tools.report.sweep_plot import plot_sweep

        plot_sweep(folder / "plot.png", rows, keys)
    return rows


def show_summary(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """The summary as a table for the console.

    Args:
        rows: of the table.
        keys: swept keys.
    """
    settings = settings_of(keys)
    spread = SEED in keys
    columns = ["n", "AP", *(["+-"] if spread else []), *SHOWN[1:]]
    found = summarize(rows, keys)
    room = width() - len(columns) * NUMBER_WIDTH
    most = max(NUMBER_WIDTH, room // max(len(settings), 1))
    widths = {
        key: min(most, 2 + max(count_columns(text) for text in [key, *(s[key] for s in found)]))
        for key in settings
    }
    lines = ["".join(fit(key, widths[key] - 1) + " " for key in settings)]
    lines[0] += "".join(f"{name:>{NUMBER_WIDTH}}" for name in columns)
    for summary in found:
        numbers = [summary["AP"], *([summary["AP_std"]] if spread else [])]
        numbers += [summary[name] for name in SHOWN[1:]]
        line = "".join(fit(summary[key], widths[key] - 1) + " " for key in settings)
        line += f"{summary['n']:>{NUMBER_WIDTH}}"
        lines.append(line + "".join(f"{_short(number):>{NUMBER_WIDTH}}" for number in numbers))
    return lines


def read_table(path: Path, keys: Sequence[str]) -> list[Row]:
    """Swept values and run of each row of an earlier table; none if there is no table."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [*keys, RUN]
    return [{name: row[name] for name in names} for row in rows if set(names) <= row.keys()]


def _write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    write_whole(path, csv_text(columns, [[row[name] for name in columns] for row in rows]))


def _short(cell: str) -> str:
    """A metric on the console."""
    return f"{float(cell):.3f}" if cell else "n/a"
