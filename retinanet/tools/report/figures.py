"""The figures of a run: each is drawn by one function, for PNG files and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from retinanet.evaluation.average_precision import Evaluation
from retinanet.tools.diagnose.confusion import Confusion
from retinanet.tools.diagnose.errors import KINDS, Errors
from retinanet.tools.report.style import BLACK, COLORS, GRAY, class_color, house_style, plain_text

# The thick line of a loss is a running mean with this share of the run as its time constant.
SMOOTHING = 0.02
# A loss that falls by more than this factor is drawn on a logarithmic axis.
LOG_RANGE = 8.0
# Classes with a line of their own color in the precision-recall figure.
MAX_NAMED = len(COLORS)

KIND_COLORS = dict(
    zip(KINDS, ("#8e44ad", "#1f6fb4", "#6d4c41", "#17a2b8", "#e4572e", "#e0a100"), strict=True)
)
RIGHT_COLOR = "#2a9d5c"

# Side of a cell of the confusion matrix in inches, and the size of its number, up to so many
# classes. Beyond the last there are no numbers.
CELLS = ((12, 0.62, 8.0), (32, 0.34, 6.0))
SMALL_CELL = 0.14
LEAST_WIDTH = 5.5  # inches; the title needs it
# The shade of a share: with its root, one object in a hundred is still to be seen.
SHADE_POWER = 0.5
# From nothing to blue: on dark pages the empty cells stay dark.
SHADES = LinearSegmentedColormap.from_list("shades", ["#1f6fb400", "#1f6fb4ff"])


@house_style()
def training_curves(rows: Sequence[dict[str, Any]], step: int | None = None) -> Figure:
    """Losses, AP and learning rate over the steps of a run.

    Args:
        rows: of metrics.jsonl. Of rows with the same step, as a resumed run writes them, the last
            one counts.
        step: of the checkpoint that the figure belongs to, which is marked; None: no mark.
    """
    figure = Figure(figsize=(7.5, 7), layout="constrained")
    losses, scores, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 3, 1))

    # Losses: what was measured in pale, a running mean in full color. A spike of one row must not
    # flatten all the rest, so the axis follows the means.
    smallest, largest = np.inf, 0.0
    for name, color in zip(("loss/class", "loss/box"), COLORS, strict=False):
        steps, values = _series(rows, name)
        mean = _running_mean(values)
        losses.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
        losses.plot(steps, mean, color=color, label=_latest(name.removeprefix("loss/"), mean))
        smallest = mean[mean > 0].min(initial=smallest)
        largest = mean.max(initial=largest)
    if largest > LOG_RANGE * smallest:
        losses.set_title("Training loss (logarithmic)")
        losses.set_yscale("log")
        losses.set_ylim(0.8 * smallest, 1.25 * largest)
        # 0.5 instead of 5 x 10^-1, which without mathematical text would show its source.
        losses.yaxis.set_major_formatter("{x:g}")
        losses.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        losses.yaxis.set_minor_formatter("{x:g}")
    else:
        losses.set_title("Training loss")
        losses.set_ylim(0, 1.1 * largest or 1.0)
    losses.legend(loc="upper right")

    scores.set_title("Validation")
    highest = 0.0
    for name, color in zip(("AP", "AP50", "AP75"), COLORS, strict=False):
        steps, values = _series(rows, name)
        scores.plot(steps, values, ".-", color=color, markersize=5, label=_latest(name, values))
        highest = values.max(initial=highest)
    # A failed run must look like one: no axis is shorter than this, and none goes beyond 1.
    scores.set_ylim(0, min(max(1.15 * highest, 0.1), 1.0))
    if step is not None:
        scores.axvline(step, color=GRAY, linewidth=1.2, label=f"this checkpoint: step {step:,}")
    scores.legend(loc="best")

    rate.set_title("Learning rate")
    rate.plot(*_series(rows, "lr"), color=BLACK, linewidth=1.2)
    rate.set_ylim(bottom=0)
    rate.set_xlabel("step")
    return figure


def _series(rows: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one number, in the order of the steps; what is not finite is left out."""
    values = {row["step"]: row[name] for row in rows if isinstance(row.get(name), int | float)}
    steps = [step for step in sorted(values) if np.isfinite(values[step])]
    return np.array(steps, dtype=float), np.array([values[step] for step in steps], dtype=float)


def _running_mean(values: np.ndarray) -> np.ndarray:
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


@house_style()
def pr_curves(evaluation: Evaluation) -> Figure:
    """Precision over recall: means over the classes, and every class at IoU 0.50."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    mean, each = figure.subplots(1, 2, sharey=True)
    labels, means, curves = _curves(evaluation)
    recall = np.linspace(0, 1, len(curves))
    mean.set_title("One class" if len(labels) == 1 else f"Mean of {len(labels)} classes")
    each.set_title("Every class at IoU 0.50")
    areas = zip(means.items(), ("AP50", "AP75", "AP"), COLORS, strict=False)
    for (name, precision), area, color in areas:
        label = f"{name}  AP {evaluation.metrics[area]:.3f}"
        mean.plot(recall, precision, color=color, label=label)
    if labels:
        mean.legend(loc="lower left")
        _draw_classes(each, recall, curves, labels, evaluation)
    else:
        mean.text(0.5, 0.5, "no objects to detect", ha="center", color=BLACK)
    for axes in (mean, each):
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", aspect="equal")
    mean.set_ylabel("precision")
    return figure


def precision_curves(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Name -> (101,) precision at recalls from 0 to 1: the curves of :func:`pr_curves`.

    Means over the classes, and every class at IoU 0.50 where they are few.
    """
    labels, by_name, curves = _curves(evaluation)
    if 1 < len(labels) <= MAX_NAMED:
        for label, curve in zip(labels, curves.T, strict=True):
            by_name[f"class {plain_text(evaluation.per_class[label].name, 40)}"] = curve
    return by_name


def _curves(evaluation: Evaluation) -> tuple[list[int], dict[str, np.ndarray], np.ndarray]:
    """Labels with objects, means of their curves (R,) by name, and theirs at IoU 0.50, (R, K)."""
    labels = [label for label, row in enumerate(evaluation.per_class) if row.AP is not None]
    curves = evaluation.precision[:, :, labels]  # (10, R, K)
    means = (
        {
            "IoU 0.50": curves[0].mean(axis=1),
            "IoU 0.75": curves[5].mean(axis=1),
            "IoU 0.50:0.95": curves.mean(axis=(0, 2)),
        }
        if labels
        else {}
    )
    return labels, means, curves[0]


def _draw_classes(
    axes: Axes, recall: np.ndarray, curves: np.ndarray, labels: list[int], evaluation: Evaluation
) -> None:
    """Curves (R, K) of the classes, in their colors while they are few; thin gray lines else."""
    if len(labels) > MAX_NAMED:
        # As pixels: in an SVG a thousand lines would take megabytes.
        axes.plot(recall, curves, color=GRAY, linewidth=0.6, alpha=0.5, rasterized=True)
        axes.plot(recall, curves.mean(axis=1), color=COLORS[0], label="mean")
        axes.legend(loc="lower left")
        return
    rows = [evaluation.per_class[label] for label in labels]
    for column in sorted(range(len(labels)), key=lambda column: -rows[column].AP50):
        legend = f"{plain_text(rows[column].name, 20)}  {rows[column].AP50:.3f}"
        axes.plot(recall, curves[:, column], color=class_color(labels[column]), label=legend)
    axes.legend(loc="lower left", title="AP50", alignment="left")


@house_style()
def error_costs(errors: Errors) -> Figure:
    """What each kind of error costs, as bars."""
    kinds = [*errors.kinds, errors.false_positives, errors.false_negatives]
    costs = [kind.cost or 0.0 for kind in kinds]
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title("AP50 that fixing one kind of error would gain")
    colors = [KIND_COLORS.get(kind.name, GRAY) for kind in kinds]
    bars = axes.barh(range(len(kinds)), costs, color=colors)
    axes.set_yticks(range(len(kinds)), [kind.name for kind in kinds])
    axes.invert_yaxis()
    axes.bar_label(bars, [f"{cost:.3f}" for cost in costs], padding=3, color=BLACK)
    axes.set_xlim(0, max(1.15 * max(costs), 0.01))
    axes.grid(axis="y", visible=False)
    axes.axhline(len(KINDS) - 0.5, color=GRAY, linewidth=0.8)
    return figure


@house_style()
def confusion(matrix: Confusion) -> Figure:
    """The confusion matrix of any number of classes: rows are objects, columns detections."""
    counts, shares = matrix.counts, matrix.shares()  # (K + 1, K + 1)
    K1 = len(counts)
    sizes = ((side, font) for most, side, font in CELLS if most >= K1)
    side, font = next(sizes, (SMALL_CELL, None))
    names = [plain_text(name, 24) for name in matrix.names]
    size = (max(K1 * side + 2.4, LEAST_WIDTH), K1 * side + 2.2)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    title = f"Objects (rows) as detected (columns), score \u2265 {matrix.score:.2f}"
    figure.suptitle(title, fontsize=10, fontweight="bold")
    axes.set_xlabel("stronger color: a larger share of the row")
    norm = PowerNorm(SHADE_POWER, 0, 1)
    image = axes.imshow(shares, cmap=SHADES, norm=norm, interpolation="none")
    small = {"fontsize": 8 if font else 5}
    axes.set_xticks(range(K1), [*names, "missed"], rotation=90, **small)
    axes.set_yticks(range(K1), [*names, "background"], **small)
    axes.set_xticks(np.arange(K1 + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(K1 + 1) - 0.5, minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", linewidth=0.4)
    axes.tick_params(which="both", length=0)
    if font is None:
        figure.colorbar(image, ax=axes, shrink=0.3, pad=0.02, label="share of the row")
        return figure
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.35 else BLACK
        text = str(counts[row, column])
        axes.text(column, row, text, fontsize=font, color=color, ha="center", va="center")
    return figure
