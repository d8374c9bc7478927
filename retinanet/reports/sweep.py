"""Tables of a sweep, rebuilt from the run directories that are there.

Imports no torch: the process that starts the runs stays small.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from retinanet.atomic import write_whole
from retinanet.evaluation.numbers import NUMBERS
from retinanet.limits import value_text
from retinanet.terminal import count_columns, fit, width
from retinanet.training.directory import MAY_DIFFER, flatten

RUN, STATUS, ERROR, LOG = "run", "status", "error", "log"
FINISHED, FAILED, UNFINISHED, NOT_STARTED = "finished", "failed", "unfinished", "not started"
STATUSES = (FINISHED, FAILED, UNFINISHED, NOT_STARTED)
# Runs that differ in nothing else are one setting, measured more than once.
SEED = "seed"

# The console has columns for these, each so wide.
SHOWN = ("AP", "AP50", "AP75")
NUMBER_WIDTH = 8

Row = dict[str, str]


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
    rows = [_with_outcome(row, folder) for row in rows]
    rows.sort(key=lambda row: [rank(row[key]) for key in keys])
    _write_csv(folder / "table.csv", rows, [*keys, STATUS, *NUMBERS, RUN, ERROR, LOG])
    columns = [column for name in NUMBERS for column in (name, f"{name}_std")]
    _write_csv(folder / "summary.csv", summarize(rows, keys), [*settings_of(keys), "n", *columns])
    if any(row["AP"] for row in rows if row[STATUS] == FINISHED):
        from retinanet.reports.sweep_plot import plot_sweep  # matplotlib: only when needed

        plot_sweep(folder / "plot.png", rows, keys)
    return rows


def summarize(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Mean and standard deviation of every setting over its finished runs, which differ by seed.

    Args:
        rows: of the table.
        keys: swept keys.

    Returns:
        For each setting: its values, ``n`` finished runs, and each of the twelve numbers with its
        standard deviation (of the sample, with n - 1) where there are two runs and more.
    """
    settings = settings_of(keys)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        group = groups.setdefault(tuple(row[key] for key in settings), [])
        if row[STATUS] == FINISHED:
            group.append(row)
    found = []
    for values, group in groups.items():
        summary = {**dict(zip(settings, values, strict=True)), "n": str(len(group))}
        for name in NUMBERS:
            numbers = [float(row[name]) for row in group if row[name]]
            summary[name] = _cell(statistics.fmean(numbers) if numbers else None)
            spread = statistics.stdev(numbers) if len(numbers) > 1 else None
            summary[f"{name}_std"] = _cell(spread)
        found.append(summary)
    return found


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


def settings_of(keys: Sequence[str]) -> list[str]:
    """The swept keys that make a setting: all but the seed."""
    return [key for key in keys if key != SEED]


def note_of(folder: Path, run: Path) -> Path:
    """The file in which a run of a sweep leaves why it failed; its first line is the error."""
    return folder / "failed" / f"{run.name}.txt"


def read_metrics(run: Path) -> dict[str, float | None] | None:
    """The twelve numbers of a run directory; None while it has none."""
    try:
        return json.loads((run / "eval" / "metrics.json").read_text())
    except FileNotFoundError:
        return None


def has_finished(run: Path) -> bool:
    """Whether the log of a run says so, after its latest start."""
    try:
        log = (run / "train.log").read_text(errors="replace")
    except FileNotFoundError:
        return False
    return " finished   " in log[log.rfind(" run        ") + 1 :]


def is_done(run: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a run has finished, and with these very settings; another length is another.

    Args:
        run: its directory.
        settings: of the command, as plain containers.
    """
    try:
        recorded = flatten(yaml.safe_load((run / "config.yaml").read_text()))
    except (FileNotFoundError, yaml.YAMLError):
        return False
    now = flatten(dict(settings))
    if now.get("precision") == "auto":  # what it meant is recorded
        now["precision"] = recorded.get("precision")
    differ = {key for key in recorded | now if recorded.get(key) != now.get(key)}
    return has_finished(run) and all(key.startswith(MAY_DIFFER) for key in differ)


def read_table(path: Path, keys: Sequence[str]) -> list[Row]:
    """Swept values and run of each row of an earlier table; none if there is no table."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [*keys, RUN]
    return [{name: row[name] for name in names} for row in rows if set(names) <= row.keys()]


def number(text: str) -> float | None:
    """The number that a swept value is, if it is one."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def rank(text: str) -> tuple[float, str]:
    """Sorts numbers by size, before words by letter."""
    found = number(text)
    return (math.inf, text) if found is None else (found, "")


def _with_outcome(row: Row, folder: Path) -> Row:
    """A row with what its run has come to."""
    run = Path(row[RUN])
    metrics = read_metrics(run) or {}
    note, log = note_of(folder, run), run / "train.log"
    status, error = NOT_STARTED, ""
    if has_finished(run):
        status = FINISHED
    elif note.exists():
        status, error = FAILED, note.read_text(errors="replace").partition("\n")[0]
    elif (run / "config.yaml").exists():
        status = UNFINISHED
    where = "" if not error else str(log if log.exists() else note)
    numbers = {name: _cell(metrics.get(name)) for name in NUMBERS}
    return {**row, STATUS: status, **numbers, ERROR: error, LOG: where}


def _write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def _cell(value: float | None) -> str:
    """A metric in the table; empty where it is undefined."""
    return "" if value is None else f"{value:.6f}"


def _short(cell: str) -> str:
    """A metric on the console."""
    return f"{float(cell):.3f}" if cell else "n/a"
