"""Curves of a page: losses, scores and learning rate over the steps, precision over recall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from retinanet.evaluation.coco import Evaluation
from retinanet.fast.coco_eval import RECALLS
from retinanet.tools.report.charts import Axis, Line, line_chart, span
from retinanet.tools.report.figures import LOG_RANGE, MAX_NAMED, running_mean, series
from retinanet.tools.report.image_grid import color_of
from retinanet.tools.report.page import Figure, Row, Section, Series
from retinanet.tools.report.run_record import Record
from retinanet.tools.report.style import COLORS

BOTH_LOSSES = {"class": "loss/class", "box": "loss/box"}
SCORES = ("AP", "AP50", "AP75")
# Places of IoU 0.50 and 0.75 among the ten thresholds.
AT_50, AT_75 = 0, 5


def curve_section(record: Record) -> Section | None:
    """Losses, AP and learning rate over the steps; None without rows."""
    figures = [_losses(record.rows), _scores(record), _rate(record.rows)]
    shown = [figure for figure in figures if figure is not None]
    if not shown:
        return None
    return Section(
        "Training",
        "Losses should fall and AP should rise. Losses that fall while AP does not: the network "
        "learns its training images by heart, or the training and validation data differ. Losses "
        "that jump or stay where they began: the learning rate (optim.lr) is too high or too low.",
        [Row(shown)],
    )


def _losses(rows: list[dict[str, Any]]) -> Figure | None:
    """Both losses: what was measured in pale, a running mean in full color."""
    found = {name: _finite(series(rows, key)) for name, key in BOTH_LOSSES.items()}
    found = {name: points for name, points in found.items() if len(points[0])}
    if not found:
        return None
    means = {name: running_mean(values) for name, (_, values) in found.items()}
    smallest = min(mean[mean > 0].min(initial=np.inf) for mean in means.values())
    largest = max(mean.max() for mean in means.values())
    log = bool(largest > LOG_RANGE * smallest)
    lines, legend = [], []
    for (name, (steps, values)), color in zip(found.items(), COLORS, strict=False):
        lines.append(Line(f"{name} loss, measured", steps, values, color, "faint"))
    for (name, (steps, _)), color in zip(found.items(), COLORS, strict=False):
        lines.append(Line(f"{name} loss", steps, means[name], color))
        legend.append(Series(f"{name} {means[name][-1]:.3f}", color))
    # A spike of one row must not flatten all the rest.
    low, high = span(list(means.values()), floor=0.9 * smallest if log else 0.0)
    title = "Training loss" + (" (logarithmic)" if log else "")
    return Figure(title, line_chart(lines, _steps(rows), Axis("loss", low, high, log)), legend)


def _scores(record: Record) -> Figure | None:
    """AP over the steps, and where the checkpoint of this report is."""
    found = {name: series(record.rows, name) for name in SCORES}
    if not len(found["AP"][0]):
        return None
    lines = [
        Line(name, *points, color)
        for (name, points), color in zip(found.items(), COLORS, strict=False)
    ]
    legend = [
        Series(f"{name} {values[-1]:.3f}", color)
        for (name, (_, values)), color in zip(found.items(), COLORS, strict=False)
    ]
    low, high = span([values for _, values in found.values()], floor=0.0)
    # A failed run must look like one: no axis shorter than this, and none beyond 1.
    y = Axis("AP", low, min(max(high, 0.1), 1.0))
    title = "Validation"
    if record.step is not None:
        at = np.array([record.step, record.step], float)
        lines.insert(0, Line("this checkpoint", at, np.array([y.low, y.high]), None, "neutral"))
        title += f" (this report: step {record.step:,})"
    return Figure(title, line_chart(lines, _steps(record.rows), y), legend)


def _rate(rows: list[dict[str, Any]]) -> Figure | None:
    steps, values = _finite(series(rows, "lr"))
    if not len(steps):
        return None
    y = Axis("learning rate", *span([values], floor=0.0))
    return Figure(
        "Learning rate", line_chart([Line("", steps, values, None, "ink")], _steps(rows), y)
    )


def _steps(rows: list[dict[str, Any]]) -> Axis:
    return Axis("step", 0, max(row["step"] for row in rows))


def _finite(points: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    steps, values = points
    return steps[np.isfinite(values)], values[np.isfinite(values)]


def precision_section(evaluation: Evaluation | None) -> Section | None:
    """Precision over recall: means over the classes, and every class at IoU 0.50."""
    labels = [] if evaluation is None else _defined(evaluation)
    if not labels:
        return None
    curves = evaluation.precision[:, :, labels]  # (10, 101, classes with objects)
    return Section(
        "Precision and recall",
        "Take the detections with the best scores first: recall is the share of all objects found "
        "so far, precision the share of detections that are right. A good detector stays high far "
        "to the right; where a line ends on the floor, the objects beyond it were not found at any "
        "score. AP is the area below a line.",
        [Row([_means(evaluation, curves), _each(evaluation, curves[AT_50], labels)])],
    )


def _defined(evaluation: Evaluation) -> list[int]:
    return [label for label, row in enumerate(evaluation.per_class) if row.AP is not None]


def _means(evaluation: Evaluation, curves: np.ndarray) -> Figure:
    shown = {
        "IoU 0.50": (curves[AT_50].mean(axis=1), "AP50"),
        "IoU 0.75": (curves[AT_75].mean(axis=1), "AP75"),
        "IoU 0.50 to 0.95": (curves.mean(axis=(0, 2)), "AP"),
    }
    lines = [
        Line(name, RECALLS, precision, color)
        for (name, (precision, _)), color in zip(shown.items(), COLORS, strict=False)
    ]
    legend = [
        Series(f"{name}: {key} {evaluation.metrics[key]:.3f}", color)
        for (name, (_, key)), color in zip(shown.items(), COLORS, strict=False)
    ]
    count = curves.shape[2]
    title = "One class" if count == 1 else f"Mean of {count} classes"
    return Figure(title, _precision_chart(lines), legend)


def _each(evaluation: Evaluation, curves: np.ndarray, labels: Sequence[int]) -> Figure:
    """Curves (101, K) at IoU 0.50, in the colors of the classes while there are few."""
    title = "Every class at IoU 0.50"
    rows = [evaluation.per_class[label] for label in labels]
    if len(labels) > MAX_NAMED:
        lines = [
            Line(row.name, RECALLS, curves[:, place], None, "neutral")
            for place, row in enumerate(rows)
        ]
        lines.append(Line("mean", RECALLS, curves.mean(axis=1), COLORS[0]))
        return Figure(title, _precision_chart(lines), [Series("mean", COLORS[0])])
    order = sorted(range(len(rows)), key=lambda place: -rows[place].AP50)
    colors = [color_of(label) for label in labels]
    lines = [Line(rows[i].name, RECALLS, curves[:, i], colors[i]) for i in order]
    legend = [Series(f"{rows[i].name} {rows[i].AP50:.3f}", colors[i]) for i in order]
    return Figure(title, _precision_chart(lines), legend)


def _precision_chart(lines: list[Line]) -> str:
    return line_chart(lines, Axis("recall", 0, 1), Axis("precision", 0, 1.02))
