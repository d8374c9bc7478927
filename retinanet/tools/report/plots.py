"""Curves of a run as PNG: losses and AP over the steps, precision over recall."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from retinanet.evaluation.coco import Evaluation
from retinanet.tools.report.style import BLACK, COLORS, GRAY, house_style, plain_text, save_figure
from retinanet.training.run_directory import read_rows

# The thick line of a loss is a running mean with this share of the run as its time constant.
SMOOTHING = 0.02

# A loss that falls by more than this factor is drawn on a logarithmic axis.
LOG_RANGE = 8.0

# Classes that get a color and a name in the precision-recall plot; more are thin gray lines.
MAX_NAMED = len(COLORS)


def plot_curves(metrics_jsonl: Path, out: Path) -> None:
    """Losses, AP and learning rate over the steps of a run.

    Args:
        metrics_jsonl: rows of the run. Of rows with the same step, as a resumed run writes
            them, the last one counts; a line that was cut off does not.
        out: PNG to write.
    """
    rows = read_rows(metrics_jsonl)
    with house_style():
        figure = Figure(figsize=(7.5, 7), layout="constrained")
        losses, scores, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))
        losses.set_title("Training loss")
        _draw_losses(losses, rows)
        scores.set_title("Validation")
        for name, color in zip(("AP", "AP50", "AP75"), COLORS, strict=False):
            steps, values = series(rows, name)
            scores.plot(steps, values, ".-", color=color, markersize=5, label=_latest(name, values))
        scores.set_ylim(0, _top(scores))
        rate.set_title("Learning rate")
        rate.plot(*series(rows, "lr"), color=BLACK, linewidth=1.2)
        rate.set_ylim(bottom=0)
        rate.set_xlabel("step")
        losses.legend(loc="upper right")
        scores.legend(loc="lower right")
        save_figure(figure, out)


def plot_pr(evaluation: Evaluation, out: Path) -> None:
    """Precision over recall: means over the classes, and every class at IoU 0.50.

    Args:
        evaluation: from :func:`retinanet.evaluation.coco.evaluate`.
        out: PNG to write.
    """
    defined = [row for row in evaluation.per_class if row.AP is not None]
    labels = [label for label, row in enumerate(evaluation.per_class) if row.AP is not None]
    curves = evaluation.precision[:, :, labels]  # (10, 101, classes with objects)
    with house_style():
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        mean, each = figure.subplots(1, 2, sharey=True)
        mean.set_title(f"Mean of {len(defined)} classes")
        each.set_title("Every class at IoU 0.50")
        if defined:
            _draw_means(mean, curves, evaluation.metrics)
            _draw_classes(each, curves[0], [(row.name, row.AP50) for row in defined])
        else:
            mean.text(0.5, 0.5, "no objects to find", ha="center", color=BLACK)
        for axes in (mean, each):
            axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", aspect="equal")
        mean.set_ylabel("precision")
        save_figure(figure, out)


def pr_curves(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Name -> (101,) precision at recalls from 0 to 1: the curves of :func:`plot_pr`.

    Means over the classes, and every class at IoU 0.50 where they are few.
    """
    labels = [label for label, row in enumerate(evaluation.per_class) if row.AP is not None]
    if not labels:
        return {}
    curves = evaluation.precision[:, :, labels]
    found = _means(curves)
    if 1 < len(labels) <= MAX_NAMED:
        for place, label in enumerate(labels):
            found[f"class {plain_text(evaluation.per_class[label].name, 40)}"] = curves[0][:, place]
    return found


def series(rows: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one number, in the order of the steps."""
    found = {row["step"]: row[name] for row in rows if isinstance(row.get(name), int | float)}
    steps = sorted(found)
    return np.array(steps, dtype=float), np.array([found[step] for step in steps], dtype=float)


def _draw_losses(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """Both losses: what was measured in pale, a running mean in full color."""
    smallest, largest = np.inf, 0.0
    for name, color in zip(("loss/class", "loss/box"), COLORS, strict=False):
        steps, values = series(rows, name)
        mean = running_mean(values)
        axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
        axes.plot(steps, mean, color=color, label=_latest(name.removeprefix("loss/"), mean))
        if (mean > 0).any():
            smallest, largest = min(smallest, mean[mean > 0].min()), max(largest, mean.max())
    if largest > LOG_RANGE * smallest:
        axes.set_yscale("log")
        # 0.5 instead of 5 x 10^-1, which without mathematical text would show its source.
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)


def running_mean(values: np.ndarray) -> np.ndarray:
    """Exponential mean that weighs its first values like any other."""
    keep = 1 - 1 / max(SMOOTHING * len(values), 1)
    mean, weight = 0.0, 0.0
    smooth = []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(mean / weight)
    return np.array(smooth)


def _latest(name: str, values: np.ndarray) -> str:
    """Legend entry: a name and its last value."""
    return f"{name} {values[-1]:.3f}" if len(values) else f"{name} n/a"


def _top(axes: Axes) -> float:
    """Upper limit of an axis of scores: above all lines, at most 1."""
    highest = max((line.get_ydata().max(initial=0.0) for line in axes.lines), default=0.0)
    return min(max(1.15 * highest, 0.05), 1.0)


def _draw_means(axes: Axes, curves: np.ndarray, metrics: dict[str, float | None]) -> None:
    """Precision of (10, 101, K) curves as means over the classes."""
    recall = np.linspace(0, 1, curves.shape[1])
    lines = zip(_means(curves).items(), ("AP50", "AP75", "AP"), COLORS[:3], strict=True)
    for (name, precision), area, color in lines:
        axes.plot(recall, precision, color=color, label=f"{name}  AP {metrics[area]:.3f}")
    axes.legend(loc="lower left")


def _means(curves: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> (101,) precision of (10, 101, K) curves, means over the classes."""
    return {
        "IoU 0.50": curves[0].mean(axis=1),
        "IoU 0.75": curves[5].mean(axis=1),
        "IoU 0.50:0.95": curves.mean(axis=(0, 2)),
    }


def _draw_classes(axes: Axes, curves: np.ndarray, classes: list[tuple[str, float]]) -> None:
    """Precision of (101, K) curves; classes are names and AP50."""
    recall = np.linspace(0, 1, len(curves))
    if len(classes) > MAX_NAMED:
        axes.plot(recall, curves, color=GRAY, linewidth=0.6, alpha=0.5)
        axes.plot(recall, curves.mean(axis=1), color=COLORS[0], label="mean")
        axes.legend(loc="lower left")
        return
    for label in sorted(range(len(classes)), key=lambda label: -classes[label][1]):
        name, area = classes[label]
        legend = f"{plain_text(name, 20)}  {area:.3f}"
        axes.plot(recall, curves[:, label], color=COLORS[label], label=legend)
    axes.legend(loc="lower left", title="AP50", alignment="left")
