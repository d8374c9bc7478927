"""What people see of one evaluation: the table, the files and the pictures."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.analysis.thresholds import Thresholds
from retinanet.data.coco import CocoData
from retinanet.evaluation.coco import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.reports.pictures import draw_predictions
from retinanet.reports.plots import plot_pr
from retinanet.reports.tables import caps_warning, summary, table, write_report

logger = logging.getLogger(__name__)

# Rows of the table of classes on the console; per_class.csv has all of them.
SHOWN_CLASSES = 20


def publish(
    root: Path,
    data: CocoData,
    evaluation: Evaluation | None,
    found: DetectionArrays,
    *,
    num_drawn: int,
    about: dict[str, Any],
    thresholds: Thresholds | None = None,
) -> np.ndarray | None:
    """Write ``eval/`` and ``plots/`` of a run or another folder.

    Args:
        root: the folder.
        data: what was evaluated.
        evaluation: None for data without annotations.
        found: the detections.
        num_drawn: images drawn, 0 for none.
        about: entries for metrics.json, such as the checkpoint's step.
        thresholds: where F1 is largest.

    Returns:
        A sheet of predictions, (H, W, 3) uint8; None when nothing was drawn.
    """
    about = {"annotations": str(data.path), "images": str(data.image_root)} | about
    write_report(root / "eval", data, found, evaluation, about, thresholds)
    if evaluation is not None:
        plot_pr(evaluation, root / "plots" / "pr_curves.png")
    return draw_predictions(data, found, root / "plots", num_drawn)


def tell(
    evaluation: Evaluation | None,
    found: DetectionArrays,
    *,
    cap: int,
    classes: bool,
    thresholds: Thresholds | None = None,
) -> None:
    """Say on the console and in the log what an evaluation found.

    Args:
        evaluation: None for data without annotations.
        found: the detections.
        cap: ``postprocess.detections`` of the model.
        classes: the table of classes too.
        thresholds: where F1 is largest.
    """
    if evaluation is None:
        logger.info("%d detections; the data has no annotations to score them by", len(found))
    elif classes:
        logger.info("\n%s\n", table(evaluation, SHOWN_CLASSES, thresholds))
    else:
        logger.info("\n%s\n", summary(evaluation, thresholds))
    warning = caps_warning(evaluation, found, cap)
    if warning is not None:
        logger.warning("warning    %s", warning)
