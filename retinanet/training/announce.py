"""Lines of the log about a run as a whole: continued, watched, ended."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any


def describe_extension(
    before: dict[str, Any], now: dict[str, Any], step: int, rate: float
) -> list[str]:
    """What a longer schedule does to the learning rate of a run that goes on.

    Args:
        before: settings of the schedule so far.
        now: those of this command.
        step: steps made.
        rate: of the next step.
    """
    changed = [f"{key} from {before[key]} to {now[key]}" for key in now if now[key] != before[key]]
    if not changed:
        return []
    return [
        f"extended   schedule.{', '.join(changed)}; the rate follows the schedule of the longer "
        f"run from here on: {rate:.4g} at step {step + 1}"
    ]


def describe_board(folder: Path) -> str:
    """One line: the command that shows the run while it trains, and after."""
    return f"watch      tensorboard --logdir {shlex.quote(str(folder))}"


def describe_end(root: Path, steps: int, best: dict[str, Any], *, num_replaced: int) -> list[str]:
    """What there is when a run has finished.

    Args:
        root: of its directory.
        steps: that it made.
        best: AP and step of the best evaluation.
        num_replaced: unreadable images.
    """
    if best["AP"] is None:
        result = f"AP n/a: nothing to find; best.pt is the latest, step {best['step']}"
    else:
        result = f"best AP {best['AP']:.4f} at step {best['step']}"
    lines = [f"finished   {steps} steps; {result}"]
    if num_replaced:
        lines.append(f"replaced   {num_replaced} unreadable images")
    weights = root / "checkpoints" / "best.pt"
    report = root / "eval" / "report.html"
    return [
        *lines,
        f"best       {weights}",
        *([f"report     {report}"] if report.exists() else []),
        f"pictures   {root / 'plots'}",
        describe_board(root / "tensorboard"),
        f"evaluate   python eval.py {shlex.quote(f'checkpoint={weights}')}",
    ]
