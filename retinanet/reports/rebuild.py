"""The report of a run from the files of its directory alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.atomic import write_whole
from retinanet.data.coco import CocoData, read_coco
from retinanet.evaluation.coco import evaluate
from retinanet.evaluation.detect import DetectionArrays
from retinanet.reports.run_record import Record, read_record
from retinanet.reports.run_report import FILE, Scored, run_page


def rebuild_report(
    root: Path, output: Path | None = None, num_drawn: int | None = None
) -> tuple[Path, str]:
    """Write the report of a run.

    Args:
        root: directory of a run.
        output: file to write; None: ``eval/report.html``.
        num_drawn: images in the gallery; None: as many as the run's ``log_images``.

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
        scored = read_scored(root, record, metrics, num_drawn)
    except (OSError, ValueError) as error:
        left_out = f"what needs the data: {error}"
    path = root / "eval" / FILE if output is None else output
    write_whole(path, run_page(record, metrics, scored).html())
    return path, left_out


def read_scored(root: Path, record: Record, metrics: dict[str, Any], num_drawn: int) -> Scored:
    """The data of a run, what was found in it, and the evaluation, made again.

    Args:
        root: directory of the run.
        record: of it.
        metrics: of its evaluation.
        num_drawn: images in the gallery.

    Raises:
        ValueError: the data is another than it was, or a file is damaged.
        FileNotFoundError: a file is gone.
    """
    settings = record.settings["data"]
    base = Path(settings["root"] or ".")
    data = read_coco(base / settings["val_annotations"], base / settings["val_images"])
    known = record.starts[-1].get("val_data") if record.starts else None
    if known is not None and data.fingerprint != known:
        raise ValueError(f"{data.path} is another file than the run was evaluated on.")
    # The first images of the file, as evaluation.max_images has it.
    evaluated = np.unique(data.image_ids[: metrics["num_images"]])
    found = read_detections(root / "eval" / "detections.json", data, evaluated)
    evaluation = evaluate(data, found, evaluated, max_dets=metrics["max_dets"])
    return Scored(data, found, evaluation, num_drawn)


def read_detections(path: Path, data: CocoData, evaluated: np.ndarray) -> DetectionArrays:
    """Detections in COCO's results format, as arrays.

    Args:
        path: written by :func:`retinanet.reports.tables.write_report`.
        data: whose categories and images they are of.
        evaluated: ids of the images looked at.

    Raises:
        ValueError: not such a file, or of other data.
        FileNotFoundError: no such file.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))
        labels = {number: label for label, number in enumerate(data.category_ids)}
        found = DetectionArrays(
            image_ids=np.array([row["image_id"] for row in rows], dtype=np.int64),
            boxes=np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4),
            scores=np.array([row["score"] for row in rows], dtype=np.float64),
            labels=np.array([labels[row["category_id"]] for row in rows], dtype=np.int64),
            evaluated=evaluated,
            num_capped=0,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not hold detections in this data: {error!r}.") from error
    if not np.isin(found.image_ids, evaluated).all():
        raise ValueError(f"{path} has detections in images that were not evaluated.")
    return found


def _metrics(root: Path) -> dict[str, Any]:
    if not (root / "config.yaml").is_file():
        raise ValueError(
            f"{root} is not the directory of a run: it has no config.yaml. Give the output_dir of "
            f"train.py; the report of an evaluation is written by eval.py."
        )
    path = root / "eval" / "metrics.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{root} has no {path.relative_to(root)}: it was not evaluated yet. Let train.py go "
            f"on to its first evaluation, or run eval.py checkpoint={root}/checkpoints/best.pt."
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; eval.py writes it again.") from error
    if not isinstance(found, dict) or "classes" not in found:
        raise ValueError(f"{path} does not hold the numbers of an evaluation.")
    return found
