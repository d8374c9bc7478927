"""What people see of one evaluation: the table, the files and the pictures."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.atomic import write_whole
from retinanet.tools.diagnose.diagnosis import Diagnosis, describe
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.figures import pr_curves
from retinanet.tools.report.pictures import draw_predictions
from retinanet.tools.report.run_record import Record
from retinanet.tools.report.run_report import write_run_report
from retinanet.tools.report.style import save_png
from retinanet.tools.report.tables import summary, table, warnings_of, write_report

logger = logging.getLogger(__name__)

# Rows of the table of classes on the console; per_class.csv has all of them.
SHOWN_CLASSES = 20


def publish(
    root: Path, scored: Scored, *, about: dict[str, Any], record: Record
) -> np.ndarray | None:
    """Write ``eval/`` and ``plots/`` of a run or another folder.

    Args:
        root: the folder.
        scored: the evaluation; without a diagnosis there is no ``eval/diagnosis.json``.
        about: entries for metrics.json, such as the checkpoint's step.
        record: of the run, for report.html.

    Returns:
        A sheet of predictions, (H, W, 3) uint8; None when nothing was drawn.
    """
    data, found, evaluation = scored.data, scored.found, scored.evaluation
    about = {"annotations": str(data.path), "images": str(data.image_root)} | about
    write_report(root / "eval", data, found, evaluation, about, scored.thresholds)
    _write_diagnosis(root / "eval" / "diagnosis.json", scored.diagnosis)
    if evaluation is not None:
        save_png(pr_curves(evaluation), root / "plots" / "pr_curves.png")
    write_run_report(root / "eval", record, scored)
    return draw_predictions(data, found, root / "plots", scored.num_drawn)


def _write_diagnosis(file: Path, diagnosis: Diagnosis | None) -> None:
    """Write it, or remove that of an evaluation before."""
    if diagnosis is None:
        file.unlink(missing_ok=True)
    else:
        write_whole(file, json.dumps(diagnosis.as_dict(), indent=2) + "\n")


def tell(scored: Scored, *, cap: int, classes: bool) -> None:
    """Say on the console and in the log what an evaluation found.

    Args:
        scored: the evaluation.
        cap: ``postprocess.detections`` of the model.
        classes: the table of classes too.
    """
    evaluation, found = scored.evaluation, scored.found
    if evaluation is None:
        logger.info("%d detections; the data has no annotations to score them by", len(found))
    elif classes:
        logger.info("\n%s\n", table(evaluation, SHOWN_CLASSES, scored.thresholds))
    else:
        logger.info("\n%s\n", summary(evaluation, scored.thresholds))
    warning = warnings_of(evaluation, found, cap)
    if warning is not None:
        logger.warning("warning    %s", warning)
    if scored.diagnosis is not None:
        for line in describe(scored.diagnosis):
            logger.info("%s", line)
