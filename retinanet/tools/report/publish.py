"""What people see of one evaluation: the console, the files, and the report, also made again."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.atomic import write_whole
from retinanet.data.coco import CocoData, read_coco
from retinanet.evaluation.average_precision import evaluate
from retinanet.evaluation.detect import count_capped
from retinanet.tools.diagnose.diagnosis import describe
from retinanet.tools.diagnose.results import read_results
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.boxes import draw_predictions
from retinanet.tools.report.figures import pr_curves
from retinanet.tools.report.run_record import Record, read_json, read_record
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
    data, detections, evaluation = scored.data, scored.detections, scored.evaluation
    about = {"annotations": str(data.path), "images": str(data.image_root)} | about
    write_report(root / "eval", data, detections, evaluation, about, scored.thresholds)
    diagnosis = root / "eval" / "diagnosis.json"
    if scored.diagnosis is None:
        diagnosis.unlink(missing_ok=True)  # of an evaluation before
    else:
        write_whole(diagnosis, json.dumps(scored.diagnosis.as_dict(), indent=2) + "\n")
    if evaluation is not None:
        save_png(pr_curves(evaluation), root / "plots" / "pr_curves.png")
    write_run_report(root / "eval", record, scored)
    return draw_predictions(data, detections, root / "plots", scored.num_drawn)


def log_evaluation(scored: Scored, *, cap: int, classes: bool) -> None:
    """Log an evaluation, maybe with its table of classes; ``cap`` is ``postprocess.detections``."""
    evaluation, detections = scored.evaluation, scored.detections
    if evaluation is None:
        logger.info("%d detections; the data has no annotations to score them by", len(detections))
    elif classes:
        logger.info("\n%s\n", table(evaluation, SHOWN_CLASSES, scored.thresholds))
    else:
        logger.info("\n%s\n", summary(evaluation, scored.thresholds))
    warning = warnings_of(evaluation, detections, cap)
    if warning is not None:
        logger.warning("warning    %s", warning)
    if scored.diagnosis is not None:
        for line in describe(scored.diagnosis):
            logger.info("%s", line)


def refresh_report(root: Path, data: CocoData) -> None:
    """Write the report of a run again, with the rows that came since; a warning where it fails."""
    try:
        rebuild_report(root, data=data)
    except (OSError, ValueError) as error:
        logger.warning("the report of %s could not be written again: %s", root, error)


def rebuild_report(
    root: Path,
    output: Path | None = None,
    num_drawn: int | None = None,
    data: CocoData | None = None,
) -> tuple[Path, str]:
    """Write the report of a run from the files of its directory alone.

    Args:
        root: directory of a run.
        output: file to write; None: ``eval/report.html``.
        num_drawn: images in the gallery; None: as many as the run's ``log_images``.
        data: that it was evaluated on; None: read from where the run had it.

    Returns:
        The file, and a sentence on what could not be shown, empty where nothing is missing.

    Raises:
        ValueError: no directory of a run, or one whose files are damaged.
        FileNotFoundError: the run has no evaluation yet.
    """
    if not (root / "config.yaml").is_file():
        raise ValueError(
            f"{root} is not the directory of a run: it has no config.yaml. Give the output_dir of "
            f"train.py; the report of an evaluation is written by eval.py."
        )
    metrics = read_json(root / "eval" / "metrics.json")
    if metrics is None:
        raise FileNotFoundError(
            f"{root} has no eval/metrics.json: it was not evaluated yet. Let train.py go on to its "
            f"first evaluation, or run eval.py checkpoint={root}/checkpoints/best.pt."
        )
    if not {"classes", "max_dets", "num_images", "AP"} <= metrics.keys():
        raise ValueError(f"{root}/eval/metrics.json does not hold the numbers of an evaluation.")
    record = read_record(root, str(metrics.get("checkpoint", "?")), metrics.get("step"))
    if num_drawn is None:
        num_drawn = int(record.settings.get("log_images") or 0)
    scored, left_out = None, ""
    try:
        scored = _score_again(root, record, metrics, num_drawn, data)
    except (OSError, ValueError) as error:
        left_out = f"what needs the data: {error}"
    return write_run_report(root / "eval", record, scored, output), left_out


def _score_again(
    root: Path, record: Record, metrics: dict[str, Any], num_drawn: int, data: CocoData | None
) -> Scored:
    """The data of a run, its detections from their file, and the evaluation of both."""
    start = record.starts[-1] if record.starts else {}
    if data is None:
        paths = [record.setting("data", f"val_{part}") for part in ("annotations", "images")]
        if None in paths:
            raise ValueError("config.yaml does not name the validation data.")
        base = Path(record.setting("data", "root") or ".")
        if not (base / paths[0]).exists():  # relative to where the run was started
            base = Path(start.get("folder", ".")) / base
        data = read_coco(base / paths[0], base / paths[1])
    if start.get("val_data") not in (None, data.fingerprint):
        raise ValueError(f"{data.path} is another file than the run was evaluated on.")
    # The first images of the file, as evaluation.max_images has it.
    evaluated = np.unique(data.image_ids[: metrics["num_images"]])
    path = root / "eval" / "detections.json"
    detections = read_results(path, data)
    if not np.isin(detections.image_ids, evaluated).all():
        raise ValueError(f"{path} has detections in images that were not evaluated.")
    cap = record.setting("postprocess", "detections")
    capped = count_capped(detections.image_ids, detections.scores, cap)
    detections = dataclasses.replace(detections, evaluated=evaluated, num_capped=capped)
    evaluation = evaluate(data, detections, evaluated, max_dets=metrics["max_dets"])
    return Scored(data, detections, evaluation, num_drawn)
