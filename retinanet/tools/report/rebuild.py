"""The report of a run from the files of its directory alone."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.data.coco import CocoData, read_coco
from retinanet.evaluation.coco import evaluate
from retinanet.tools.diagnose.results import read_results
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.run_record import Record, read_json, read_record
from retinanet.tools.report.run_report import write_run_report

logger = logging.getLogger(__name__)


def refresh_report(root: Path, data: CocoData) -> None:
    """Write the report of a run again, with the rows that came since; a warning where it fails.

    Args:
        root: directory of the run.
        data: that it is evaluated on.
    """
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
    """Write the report of a run.

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
    metrics = _metrics(root)
    record = read_record(root, str(metrics.get("checkpoint", "?")), metrics.get("step"))
    if num_drawn is None:
        num_drawn = int(record.settings.get("log_images") or 0)
    scored, left_out = None, ""
    try:
        scored = read_scored(root, record, metrics, num_drawn, data)
    except (OSError, ValueError) as error:
        left_out = f"what needs the data: {error}"
    return write_run_report(root / "eval", record, scored, output), left_out


def read_scored(
    root: Path,
    record: Record,
    metrics: dict[str, Any],
    num_drawn: int,
    data: CocoData | None = None,
) -> Scored:
    """The data of a run, what was found in it, and the evaluation, made again.

    Args:
        root: directory of the run.
        record: of it.
        metrics: of its evaluation.
        num_drawn: images in the gallery.
        data: that it was evaluated on; None: read from where the run had it.

    Raises:
        ValueError: the data is another than it was, or a file is damaged.
        FileNotFoundError: a file is gone.
    """
    if data is None:
        data = _read_data(record)
    known = record.starts[-1].get("val_data") if record.starts else None
    if known is not None and data.fingerprint != known:
        raise ValueError(f"{data.path} is another file than the run was evaluated on.")
    # The first images of the file, as evaluation.max_images has it.
    evaluated = np.unique(data.image_ids[: metrics["num_images"]])
    path = root / "eval" / "detections.json"
    found = read_results(path, data)
    if not np.isin(found.image_ids, evaluated).all():
        raise ValueError(f"{path} has detections in images that were not evaluated.")
    cap = record.setting("postprocess", "detections")
    capped = int((np.unique(found.image_ids, return_counts=True)[1] == cap).sum())
    found = dataclasses.replace(found, evaluated=evaluated, num_capped=capped)
    evaluation = evaluate(data, found, evaluated, max_dets=metrics["max_dets"])
    return Scored(data, found, evaluation, num_drawn)


def _read_data(record: Record) -> CocoData:
    """The validation data of a run, from where it was."""
    paths = [record.setting("data", f"val_{part}") for part in ("annotations", "images")]
    if None in paths:
        raise ValueError("config.yaml does not name the validation data.")
    base = Path(record.setting("data", "root") or ".")
    if not (base / paths[0]).exists() and record.starts:  # relative to where the run was started
        base = Path(record.starts[-1].get("folder", ".")) / base
    return read_coco(base / paths[0], base / paths[1])


def _metrics(root: Path) -> dict[str, Any]:
    if not (root / "config.yaml").is_file():
        raise ValueError(
            f"{root} is not the directory of a run: it has no config.yaml. Give the output_dir of "
            f"train.py; the report of an evaluation is written by eval.py."
        )
    found = read_json(root / "eval" / "metrics.json")
    if found is None:
        raise FileNotFoundError(
            f"{root} has no eval/metrics.json: it was not evaluated yet. Let train.py go on to its "
            f"first evaluation, or run eval.py checkpoint={root}/checkpoints/best.pt."
        )
    if not {"classes", "max_dets", "num_images", "AP"} <= found.keys():
        raise ValueError(f"{root}/eval/metrics.json does not hold the numbers of an evaluation.")
    return found
