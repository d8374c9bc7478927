"""Settings, rows and detections brought together: what an evaluation means."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinanet import build
from retinanet.config import DetectorConfig, TrainConfig
from retinanet.data.coco import CocoData
from retinanet.data.loader import padded_size
from retinanet.data.transforms import resized_size
from retinanet.evaluation.average_precision import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.thresholds import Thresholds
from retinanet.tools.diagnose.diagnosis import diagnose
from retinanet.tools.diagnose.evidence import History, Network
from retinanet.tools.diagnose.scored import Scored
from retinanet.training.optim import scaled_lr
from retinanet.training.run_directory import read_rows


def explain(
    data: CocoData,
    detections: DetectionArrays,
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
    """An evaluation with its confidence thresholds, and why AP is low, if it is.

    Args:
        data: the ground truth.
        detections: of its images.
        evaluation: None for data without annotations.
        settings: that the detections were made with.
        plain: settings of the training, as checkpoints keep them.
        num_drawn: images that reports show.
        step: of the weights; None: not known.
        metrics: metrics.jsonl of the run; None or not there: the training is left out.
        train_ids: category ids of the training data, by label; None: not known.
        thresholds: where F1 is largest; None for data without annotations.
    """
    history = None
    if step is not None and metrics is not None:
        # Settings of another version, or rows of another program that lie where ours would: an
        # evaluation must not fail because its diagnosis knows less.
        with contextlib.suppress(KeyError, TypeError, ValueError, OSError):
            history = history_of(plain, settings, data, read_rows(metrics), step)
    network = network_of(settings, plain, train_ids)
    diagnosis = diagnose(data, detections, evaluation, network=network, history=history)
    return Scored(data, detections, evaluation, num_drawn, thresholds, diagnosis)


def network_of(
    settings: TrainConfig | DetectorConfig, plain: dict[str, Any], train_ids: Sequence[int] | None
) -> Network:
    """How a network looks at images, from its settings; arguments as of :func:`explain`."""
    matching, augment, data = (plain.get(group) or {} for group in ("matching", "augment", "data"))
    size, path = (data.get("min_size"), data.get("max_size")), data.get("train_annotations")
    # A training that drew from several sizes has none to compare with.
    has_one_size = None not in size and not augment.get("min_sizes") and not augment.get("scale")
    return Network(
        generator=build.build_anchors(settings),
        min_size=settings.data.min_size,
        max_size=settings.data.max_size,
        trained_size=size if has_one_size else None,
        score_threshold=settings.postprocess.score_threshold,
        positive_iou=matching.get("positive_iou", 0.5),
        negative_iou=matching.get("negative_iou", 0.4),
        train_path=path and Path(data.get("root") or ".") / path,
        train_ids=None if train_ids is None else tuple(train_ids),
    )


def history_of(
    plain: dict[str, Any],
    settings: TrainConfig | DetectorConfig,
    data: CocoData,
    rows: Sequence[dict[str, Any]],
    step: int,
) -> History | None:
    """A training until a step; None where there are no rows.

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
    optim, schedule, loss = (plain[group] for group in ("optim", "schedule", "loss"))
    anchors = 0
    if len(data):  # of an image of median size
        height, width = map(int, np.median(data.sizes, axis=0))
        resized = resized_size(height, width, settings.data.min_size, settings.data.max_size)
        anchors = len(build.build_anchors(settings)(*padded_size(resized).tolist()))
    total_steps, epoch = schedule["max_steps"], rows[-1].get("epoch") if rows else None
    if total_steps is None:  # the rows tell how many steps an epoch has
        total_steps = round(schedule["epochs"] * rows[-1]["step"] / epoch) if epoch else step
    return History(
        rows=rows,
        step=step,
        total_steps=total_steps,
        optimizer=optim["name"],
        lr=scaled_lr(optim["lr"], optim["batch_size"], optim["reference_batch"]),
        warmup_steps=schedule["warmup_steps"],
        batch_size=optim["batch_size"],
        anchors=anchors,
        num_classes=len(data.category_names),
        prior=plain["model"]["prior"],
        alpha=build.resolve_alpha(loss["alpha"], data.category_names),
        gamma=loss["gamma"],
        focal=loss["name"] == "focal" and loss["normalizer"] == "batch",
        loaded=plain.get("init_from") is not None,
        AP_before=max((AP for at, AP in APs.items() if at <= step), default=None),
        AP_own=APs.get(step),
    )
