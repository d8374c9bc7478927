"""The runs of an experiment as a table and a plot."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from retinanet.atomic import write_whole
from retinanet.csv_text import csv_text
from retinanet.tools.report.style import COLORS, GRAY, house_style, save_png
from scripts.experiments.tables import EXPERIMENTS, Variant


@dataclass(frozen=True, slots=True)
class Run:
    """One training of an experiment."""

    variant: Variant
    seed: int
    typed: tuple[str, ...]  # of train.py
    folder: Path


@dataclass(frozen=True, slots=True)
class Row:
    """The runs of one variant."""

    variant: Variant
    aps: tuple[float, ...]  # AP of the last evaluation of each seed that has one, fractions
    stopped: tuple[int, ...]  # last step of runs that ended before their end
    commands: tuple[str, ...]


def read_row(variant: Variant, runs: Sequence[Run]) -> Row:
    """What the run directories of one variant say."""
    aps, stopped = [], []
    for run in runs:
        steps = _rows(run.folder / "metrics.jsonl")
        evaluated = [row for row in steps if "AP" in row]
        if steps and not _finished(run.folder):
            stopped.append(steps[-1]["step"])
        elif evaluated and evaluated[-1]["AP"] is not None:
            aps.append(evaluated[-1]["AP"])
    commands = tuple(f"python train.py {shlex.join(run.typed)}" for run in runs)
    return Row(variant, tuple(aps), tuple(stopped), commands)


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _finished(folder: Path) -> bool:
    log = folder / "train.log"
    return log.exists() and "finished   " in log.read_text()


def write(output: Path, name: str, runs: Sequence[Run]) -> list[str]:
    """Write ``table.csv``, ``table.md`` and ``plot.png`` of what there is; the lines of the table.

    Args:
        output: folder, made when needed.
        name: of the experiment.
        runs: all of them, trained or not.
    """
    variants = list(dict.fromkeys(run.variant for run in runs))
    rows = [read_row(v, [run for run in runs if run.variant == v]) for v in variants]
    output.mkdir(parents=True, exist_ok=True)
    lines = table(name, rows)
    write_whole(output / "table.md", ("\n".join(lines) + "\n").encode())
    write_whole(output / "table.csv", _csv(rows).encode())
    plot(output / "plot.png", name, rows)
    return lines


def table(name: str, rows: Sequence[Row]) -> list[str]:
    """A Markdown table: AP in percent, as the paper writes it."""
    experiment = EXPERIMENTS[name]
    lines = [
        f"{experiment.title}. AP in percent; the paper's: COCO, {experiment.paper}.",
        "",
        "| | AP | seeds | paper |",
        "| --- | ---: | --- | ---: |",
    ]
    for row in rows:
        paper = "" if row.variant.paper is None else f"{row.variant.paper:.1f}"
        lines.append(f"| {row.variant.label} | {_mean(row)} | {_seeds(row)} | {paper} |")
    return lines


def _mean(row: Row) -> str:
    if row.stopped and not row.aps:
        return "stopped"
    return f"{100 * fmean(row.aps):.1f}" if row.aps else ""


def _seeds(row: Row) -> str:
    cells = [f"{100 * ap:.1f}" for ap in row.aps] if len(row.aps) > 1 else []
    return ", ".join([*cells, *(f"stopped after step {step}" for step in row.stopped)])


def _csv(rows: Sequence[Row]) -> str:
    header = ["label", "AP", "paper_AP", "seeds", "stopped_after_steps", "command"]
    cells = [
        [
            row.variant.label,
            f"{fmean(row.aps):.4f}" if row.aps else None,
            None if row.variant.paper is None else row.variant.paper / 100,
            " ".join(f"{ap:.4f}" for ap in row.aps),
            " ".join(map(str, row.stopped)),
            row.commands[0],
        ]
        for row in rows
    ]
    return csv_text(header, cells)


def plot(path: Path, name: str, rows: Sequence[Row]) -> None:
    """The mean and every seed, and the paper's AP on the same axis."""
    with house_style():
        figure = Figure(figsize=(7.2, 0.42 * len(rows) + 1.6), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            if row.variant.paper is not None:
                axes.plot([row.variant.paper], [place], "D", color=GRAY)
            if row.aps:
                mean = 100 * fmean(row.aps)
                axes.plot([mean], [place], "o", color=COLORS[0])
                axes.annotate(f"{mean:.1f}", (mean, place), (4, 8), textcoords="offset points")
                axes.plot(
                    *([100 * ap for ap in row.aps], [place] * len(row.aps)),
                    "|",
                    markersize=14,
                    color=COLORS[0],
                )
            elif row.stopped:
                axes.annotate("stopped", (0, place), (4, -3), textcoords="offset points")
        axes.set_yticks(range(len(rows)), [row.variant.label for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.7)  # the first row on top, room for its number
        axes.set_xlim(left=0)
        axes.set_xlabel(
            "AP in percent: mean (dot) and seeds (bars); the paper's on COCO (diamonds)"
        )
        axes.set_title(EXPERIMENTS[name].title)
        save_png(figure, path)
