"""The table of a sweep, rebuilt from the directories of its runs.

Imports no torch: the process that starts the runs stays small.
"""

from __future__ import annotations

import contextlib
import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from retinanet.atomic import write_whole
from retinanet.checks import KEYS, value_text
from retinanet.csv_text import csv_text
from retinanet.evaluation.numbers import NUMBERS
from retinanet.terminal import count_columns, fit, width
from retinanet.tools.report.run_record import read_json
from retinanet.training.run_directory import MAY_DIFFER, flatten, read_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN, STATUS, ERROR, LOG = "run", "status", "error", "log"
FINISHED, FAILED, UNFINISHED, NOT_STARTED = "finished", "failed", "unfinished", "not started"
STATUSES = (FINISHED, FAILED, UNFINISHED, NOT_STARTED)
# Runs that differ in nothing else are one setting, measured more than once.
SEED = "seed"
# Of a column of numbers on the console.
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
    runs_of = {}  # run directory -> swept values
    table = folder / "table.csv"
    if table.exists():
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                if {*keys, RUN} <= row.keys() and Path(row[RUN]).is_dir():
                    runs_of[row[RUN]] = {key: row[key] for key in keys}
    runs_of |= {str(run.folder): {key: value_text(run.swept[key]) for key in keys} for run in runs}
    rows = [swept | _outcome(run, folder) for run, swept in runs_of.items()]
    rows.sort(key=lambda row: [rank(row[key]) for key in keys])

    def write(name: str, columns: Sequence[str], lines: Sequence[Row]) -> None:
        write_whole(folder / name, csv_text(columns, [[row[c] for c in columns] for row in lines]))

    write("table.csv", [*keys, STATUS, *NUMBERS, RUN, ERROR, LOG], rows)
    numbers = [column for name in NUMBERS for column in (name, f"{name}_std")]
    write("summary.csv", [*settings_of(keys), "n", *numbers], summarize(rows, keys))
    if any(row["AP"] for row in rows if row[STATUS] == FINISHED):
        from retinanet.tools.report.style import save_png  # imports matplotlib: only now

        save_png(sweep_figure(rows, keys), folder / "plot.png")
    return rows


def _outcome(run: str, folder: Path) -> Row:
    """What a run of the sweep in a folder has come to, as columns of the table."""
    root = Path(run)
    metrics = read_json(root / "eval" / "metrics.json") or {}
    note, log = note_of(folder, root), root / "train.log"
    status, error, where = NOT_STARTED, "", ""
    if has_finished(root):
        status = FINISHED
    elif note.exists():
        status, error = FAILED, note.read_text(errors="replace").partition("\n")[0]
        where = str(log if log.exists() else note)
    elif (root / "config.yaml").exists():
        status = UNFINISHED
    numbers = {name: _cell(metrics.get(name)) for name in NUMBERS}
    return {RUN: run, STATUS: status, **numbers, ERROR: error, LOG: where}


def note_of(folder: Path, run: Path) -> Path:
    """The file in which a run of a sweep leaves why it failed; its first line is the error."""
    return folder / "failed" / f"{run.name}.txt"


def has_finished(run: Path) -> bool:
    """Whether a run has reached its end, by run.json; of older versions by the log."""
    record = read_run(run)
    if record is not None:
        return record["state"] == "finished"
    log = run / "train.log"
    text = log.read_text(errors="replace") if log.is_file() else ""
    return " finished   " in text[text.rfind(" run        ") + 1 :]


def is_done(run: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the run in a directory has finished, and with these settings (plain containers)."""
    try:
        recorded = flatten(yaml.safe_load((run / "config.yaml").read_text()))
    except (FileNotFoundError, yaml.YAMLError):
        return False
    now = flatten(dict(settings))
    if now.get("precision") == "auto":  # what it meant is recorded
        now["precision"] = recorded.get("precision")
    differ = {key for key in recorded | now if recorded.get(key) != now.get(key)}
    # Versions record a setting that nothing reads, or leave it null.
    differ = {key for key in differ if key not in KEYS or KEYS[key].is_read(now)}
    # Below another folder may be other images: the run itself finds that out.
    may_differ = tuple(key for key in MAY_DIFFER if key != "data.root")
    return has_finished(run) and all(key.startswith(may_differ) for key in differ)


def summarize(rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Mean and standard deviation of every setting over its finished runs, which differ by seed.

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
    summaries = []
    for values, group in groups.items():
        summary = {**dict(zip(settings, values, strict=True)), "n": str(len(group))}
        for name in NUMBERS:
            numbers = [float(row[name]) for row in group if row[name]]
            summary[name] = _cell(statistics.fmean(numbers) if numbers else None)
            summary[f"{name}_std"] = _cell(statistics.stdev(numbers) if len(numbers) > 1 else None)
        summaries.append(summary)
    return summaries


def show_summary(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """The lines of the summary as a table for the console; arguments of :func:`summarize`."""
    settings, summaries = settings_of(keys), summarize(rows, keys)
    columns = {"n": "n", "AP": "AP", **({"+-": "AP_std"} if SEED in keys else {})}
    columns |= {"AP50": "AP50", "AP75": "AP75"}
    room = width() - len(columns) * NUMBER_WIDTH
    most = max(NUMBER_WIDTH, room // max(len(settings), 1))
    widths = [
        min(most, 2 + max(map(count_columns, [key, *(row[key] for row in summaries)])))
        for key in settings
    ]
    table = [[*settings, *columns]]
    for row in summaries:
        n, *cells = (row[name] for name in columns.values())
        numbers = [f"{float(cell):.3f}" if cell else "n/a" for cell in cells]
        table.append([*(row[key] for key in settings), n, *numbers])
    return [
        "".join(f"{fit(text, w - 1)} " for text, w in zip(cells, widths, strict=False))
        + "".join(f"{number:>{NUMBER_WIDTH}}" for number in cells[len(widths) :])
        for cells in table
    ]


def sweep_figure(rows: Sequence[Row], keys: Sequence[str]) -> Figure:
    """Mean AP of the finished runs over one swept key, a line for each setting of the others.

    Args:
        rows: of the table, one of them with an AP.
        keys: swept keys. That with most different numbers, or else values, becomes the axis.
    """
    from matplotlib.figure import Figure  # only now: not where there is nothing to draw

    from retinanet.tools.report.style import class_color, house_style

    summaries = [summary for summary in summarize(rows, keys) if summary["AP"]]
    values = {key: sorted({s[key] for s in summaries}, key=rank) for key in settings_of(keys)}
    num_numbers = {key: sum(rank(v)[0] < math.inf for v in values[key]) for key in values}
    axis = max(values, key=lambda key: (num_numbers[key], len(values[key])), default=None)
    ends = [key.rpartition(".")[2] for key in values]
    names = {
        key: key if ends.count(end) > 1 else end for key, end in zip(values, ends, strict=True)
    }
    lines: dict[str, list[Row]] = {}
    for summary in summaries:
        others = [f"{name}={summary[key]}" for key, name in names.items() if key != axis]
        lines.setdefault(", ".join(others), []).append(summary)

    ticks = values[axis] if axis else ["all seeds"]
    tick_labels = _ends(ticks, 16)
    upright = sum(map(len, tick_labels)) > 70
    height = 4.3 + (0.07 * max(len(max(tick_labels, key=len)) - 19, 0) if upright else 0)
    with house_style():
        figure = Figure(figsize=(max(6.6, 0.3 * len(ticks)), height), layout="constrained")
        axes = figure.subplots()
        labels = _ends(lines, 34)
        for index, (line, label) in enumerate(zip(lines.values(), labels, strict=True)):
            x = [ticks.index(summary[axis]) if axis else 0 for summary in line]
            means = [float(summary["AP"]) for summary in line]
            spread = [float(summary["AP_std"] or 0) for summary in line]
            style = {"color": class_color(index), "capsize": 4, "label": label}
            axes.errorbar(x, means, spread if any(spread) else None, fmt="o-", **style)
            for at, mean in zip(x, means, strict=True) if len(lines) == 1 else ():
                axes.annotate(f"{mean:.3f}", (at, mean), (5, 6), textcoords="offset points")
        axes.set_xticks(range(len(ticks)), tick_labels, rotation=90 * upright)
        axes.set(xlabel=axis or "", ylabel="AP (IoU .50:.95)", xlim=(-0.5, len(ticks) - 0.5))
        axes.margins(y=0.14)
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 0))  # no AP is below 0
        if len(lines) > 1:
            axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))

        # What the marks mean, and what is missing.
        counts = sorted({int(summary["n"]) for summary in summaries})
        seeds = " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1]))))
        notes = [f"mean of {seeds} seeds; bars: standard deviation"] if counts[-1] > 1 else []
        missing = sum(row[STATUS] != FINISHED for row in rows)
        undefined = sum(row[STATUS] == FINISHED and not row["AP"] for row in rows)
        for count, why in ((missing, "not finished"), (undefined, "without an AP")):
            notes += [f"{count} of {len(rows)} runs {why}: not drawn"] if count else []
        axes.set_title("\n".join(notes), fontsize=9, fontweight="normal")
    return figure


def _ends(texts: Iterable[str], most: int) -> list[str]:
    """The ends of long values, as paths mostly begin alike; no two of them look the same."""
    texts = ["".join(c if c.isprintable() else "?" for c in text) for text in texts]

    def cut(most: int) -> list[str]:
        return [text if len(text) <= most else "..." + text[3 - most :] for text in texts]

    if len(set(cut(most))) < len(set(texts)):  # they end alike too, as .../checkpoints/best.pt
        end = commonprefix([text[::-1] for text in texts])[::-1]
        end = end[end.find("/") :] if "/" in end else ""
        texts = [text.removesuffix(end) + ("..." if end else "") for text in texts]
    while len(set(cut(most))) < len(set(texts)):
        most += 1
    return cut(most)


def settings_of(keys: Sequence[str]) -> list[str]:
    """The swept keys that make a setting: all but the seed."""
    return [key for key in keys if key != SEED]


def rank(text: str) -> tuple[float, str]:
    """Sorts numbers by size, before words by letter."""
    with contextlib.suppress(ValueError):
        if math.isfinite(float(text)):
            return float(text), ""
    return math.inf, text


def _cell(value: float | None) -> str:
    """A metric in the table; empty where it is undefined."""
    return "" if value is None else f"{value:.6f}"
