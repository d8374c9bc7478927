"""What people see of one evaluation: the table, the files and the pictures."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.analysis.diagnosis import Diagnosis, describe
from retinanet.analysis.thresholds import Thresholds
from retinanet.atomic import write_whole
from retinanet.data.coco import CocoData
from retinanet.evaluation.coco import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.reports.pictures import draw_predictions
from retinanet.reports.plots import plot_pr
from retinanet.reports.run_record import Record
from retinanet.reports.run_report import Scored, write_run_report
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
    record: Record,
    thresholds: Thresholds | None = None,
    diagnosis: Diagnosis | None = None,
) -> np.ndarray | None:
    """Write ``eval/`` and ``plots/`` of a run or another folder.

    Args:
        root: the folder.
        data: what was evaluated.
        evaluation: None for data without annotations.
        found: the detections.
        num_drawn: images drawn, 0 for none.
        about: entries for metrics.json, such as the checkpoint's step.
        record: of the run, for report.html.
        thresholds: where F1 is largest.
        diagnosis: goes to ``eval/diagnosis.json``; without one there is no such file.

    Returns:
        A sheet of predictions, (H, W, 3) uint8; None when nothing was drawn.
    """
    about = {"annotations": str(data.path), "images": str(data.image_root)} | about
    write_report(root / "eval", data, found, evaluation, about, thresholds)
    _write_diagnosis(root / "eval" / "diagnosis.json", diagnosis)
    if evaluation is not None:
        plot_pr(evaluation, root / "plots" / "pr_curves.png")
    scored = Scored(data, found, evaluation, num_drawn)
    write_run_report(root / "eval", record, scored)
    return draw_predictions(data, found, root / "plots", num_drawn)


def _write_diagnosis(file: Path, diagnosis: Diagnosis | None) -> None:
    """Write it, or remove that of an evaluation before."""
    if diagnosis is None:
        file.unlink(missing_ok=True)
    else:
        write_whole(file, json.dumps(diagnosis.as_dict(), indent=2) + "\n")


def tell(
    evaluation: Evaluation | None,
    found: DetectionArrays,
    *,
    cap: int,
    classes: bool,
    thresholds: Thresholds | None = None,
    diagnosis: Diagnosis | None = None,
) -> None:
    """Say on the console and in the log what an evaluation found.

    Args:
        evaluation: None for data without annotations.
        found: the detections.
        cap: ``postprocess.detections`` of the model.
        classes: the table of classes too.
        thresholds: where F1 is largest.
        diagnosis: why AP is low.
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
    if diagnosis is not None:
        for line in describe(diagnosis):
            logger.info("%s", line)
