"""Settings, rows and detections brought together: what an evaluation means."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinanet import build
from retinanet.config import TrainConfig
from retinanet.data.coco import CocoData
from retinanet.data.loader import padded_size
from retinanet.data.transforms import resized_size
from retinanet.evaluation.coco import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.thresholds import Thresholds
from retinanet.model.anchors import grid_sizes
from retinanet.recorded import DetectorConfig
from retinanet.tools.diagnose.causes import Network
from retinanet.tools.diagnose.diagnosis import diagnose
from retinanet.tools.diagnose.history import Course
from retinanet.tools.diagnose.scored import Scored
from retinanet.training.optim import scaled_lr
from retinanet.training.run_directory import read_rows


def explain(
    data: CocoData,
    found: DetectionArrays,
    evaluation: Evaluation | None,
    settings: TrainConfig | DetectorConfig,
    plain: dict[str, Any],
    *,
    num_drawn: int,
    step: int | None,
    metrics: Path | None,
    train_ids: Sequence[int] | None,
    thresholds: Thresholds | None,
) -> Scored:
    """An evaluation with the scores to cut at and why AP is low, if it is.

    Args:
        data: the ground truth.
        found: the detections.
        evaluation: None for data without annotations.
        settings: that the detections were made with.
        plain: settings of the training, as checkpoints keep them.
        num_drawn: images that reports show.
        step: of the weights; None: not known.
        metrics: metrics.jsonl of the run; None or not there: the training is left out.
        train_ids: category ids of the training data, by label; None: not known.
        thresholds: where F1 is largest; None for data without annotations.
    """
    course = None
    if step is not None and metrics is not None:
        # Settings of another version, or rows of another program that lie where ours would: an
        # evaluation must not fail because its diagnosis knows less.
        with contextlib.suppress(KeyError, TypeError, ValueError, OSError):
            course = course_of(plain, settings, data, read_rows(metrics), step)
    network = network_of(settings, plain, train_ids)
    return Scored(
        data,
        found,
        evaluation,
        num_drawn,
        thresholds=thresholds,
        diagnosis=diagnose(data, found, evaluation, network=network, course=course),
    )


def network_of(
    settings: TrainConfig | DetectorConfig,
    plain: dict[str, Any],
    train_ids: Sequence[int] | None,
) -> Network:
    """How a network detects, from its settings; arguments as of :func:`explain`."""
    matching, trained = plain.get("matching") or {}, plain.get("data") or {}
    path = trained.get("train_annotations")
    return Network(
        generator=build.build_anchors(settings),
        min_size=settings.data.min_size,
        max_size=settings.data.max_size,
        trained_size=_trained_size(trained, plain.get("augment") or {}),
        score_threshold=settings.postprocess.score_threshold,
        positive_iou=matching.get("positive_iou", 0.5),
        negative_iou=matching.get("negative_iou", 0.4),
        train_path=path and Path(trained.get("root") or ".") / path,
        train_ids=None if train_ids is None else tuple(train_ids),
    )


def _trained_size(data: dict[str, Any], augment: dict[str, Any]) -> tuple[int, int] | None:
    """``min_size`` and ``max_size`` of a training; None where it drew from several, or unknown."""
    size = data.get("min_size"), data.get("max_size")
    varied = augment.get("min_sizes") or augment.get("scale")
    return None if varied or None in size else size


def course_of(
    plain: dict[str, Any],
    settings: TrainConfig | DetectorConfig,
    data: CocoData,
    rows: Sequence[dict[str, Any]],
    step: int,
) -> Course | None:
    """A training until a step, from its settings and rows; None where there are no rows.

    Args:
        plain: settings of the training.
        settings: that images are resized with and anchors made.
        data: whose images are about as large as those of the training.
        rows: of metrics.jsonl.
        step: of the weights.
    """
    APs = {row["step"]: row["AP"] for row in rows if isinstance(row.get("AP"), int | float)}
    rows = [row for row in rows if "loss/class" in row and row["step"] <= step]
    if not rows and step > 1:
        return None
    optim, schedule, loss, model = (
        plain[group] for group in ("optim", "schedule", "loss", "model")
    )
    return Course(
        rows=rows,
        step=step,
        total_steps=_total_steps(schedule, rows, step),
        optimizer=optim["name"],
        lr=scaled_lr(optim["lr"], optim["batch_size"], optim["reference_batch"]),
        warmup_steps=schedule["warmup_steps"],
        batch_size=optim["batch_size"],
        anchors=_num_anchors(settings, data),
        num_classes=len(data.category_names),
        prior=model["prior"],
        alpha=build.resolve_alpha(loss["alpha"], data.category_names),
        gamma=loss["gamma"],
        focal=loss["name"] == "focal" and loss["normalizer"] == "batch",
        loaded=plain.get("init_from") is not None,
        AP_before=max((AP for at, AP in APs.items() if at <= step), default=None),
        AP_own=APs.get(step),
    )


def _total_steps(schedule: dict[str, Any], rows: Sequence[dict[str, Any]], step: int) -> int:
    """Length of the run; of its epochs the rows tell the steps."""
    if schedule["max_steps"] is not None:
        return schedule["max_steps"]
    epoch = rows[-1].get("epoch") if rows else None
    return round(schedule["epochs"] * rows[-1]["step"] / epoch) if epoch else step


def _num_anchors(settings: TrainConfig | DetectorConfig, data: CocoData) -> float:
    """Anchors of an image of median size."""
    if not len(data):
        return 0.0
    height, width = map(int, np.median(data.sizes, axis=0))
    padded = padded_size(
        resized_size(height, width, settings.data.min_size, settings.data.max_size)
    )
    cells = sum(rows * columns for rows, columns in grid_sizes(*padded.tolist()))
    return float(cells * build.build_anchors(settings).num_per_cell)
