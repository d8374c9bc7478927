"""What became of the runs of a sweep, read from their directories. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from retinanet.evaluation.numbers import NUMBERS
from retinanet.tools.report.run_record import read_json
from retinanet.training.run_directory import MAY_DIFFER, flatten

RUN, STATUS, ERROR, LOG = "run", "status", "error", "log"
FINISHED, FAILED, UNFINISHED, NOT_STARTED = "finished", "failed", "unfinished", "not started"
STATUSES = (FINISHED, FAILED, UNFINISHED, NOT_STARTED)
# Runs that differ in nothing else are one setting, measured more than once.
SEED = "seed"

Row = dict[str, str]


def with_outcome(row: Row, folder: Path) -> Row:
    """A row with what its run has come to.

    Args:
        row: swept keys and the run's directory.
        folder: of the sweep.
    """
    run = Path(row[RUN])
    metrics = read_json(run / "eval" / "metrics.json") or {}
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


def settings_of(keys: Sequence[str]) -> list[str]:
    """The swept keys that make a setting: all but the seed."""
    return [key for key in keys if key != SEED]


def note_of(folder: Path, run: Path) -> Path:
    """The file in which a run of a sweep leaves why it failed; its first line is the error."""
    return folder / "failed" / f"{run.name}.txt"


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
    # Below another folder may be other images: the run itself finds that out.
    may_differ = [key for key in MAY_DIFFER if key != "data.root"]
    return has_finished(run) and all(key.startswith(tuple(may_differ)) for key in differ)


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


def _cell(value: float | None) -> str:
    """A metric in the table; empty where it is undefined."""
    return "" if value is None else f"{value:.6f}"
