"""Evaluation: detections of a data set, and COCO's average precision and recall of them.

pycocotools defines the numbers. :mod:`retinanet.fast.coco_eval` computes the same precision and
recall on arrays, equal to the last bit by test, and is the default; the twelve means are here.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retinanet.checks import check
from retinanet.data.coco import CocoData
from retinanet.data.loader import BatchLoader, eval_plan
from retinanet.data.transforms import Augment
from retinanet.distributed import on_main, rank, share_buffers, world_size
from retinanet.evaluation.detect import DetectionArrays, detect
from retinanet.evaluation.numbers import NUMBERS, SIZES, Number
from retinanet.fast.coco_eval import AREAS, Objects, precision_recall
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Postprocess

logger = logging.getLogger(__name__)

ALL_CLASSES = slice(None)


@dataclass(frozen=True, slots=True)
class ClassResult:
    """COCO metrics of one class; None where there is no ground truth."""

    name: str
    category_id: int
    AP: float | None
    AP50: float | None
    AP75: float | None
    AR100: float | None  # with max_dets[2] detections
    num_gt: int  # without crowds
    num_detections: int


@dataclass(frozen=True, slots=True)
class SizeResult:
    """COCO metrics of one class and size range; None where there is no ground truth."""

    name: str
    category_id: int
    size: str  # small, medium or large
    num_gt: int  # without crowds
    AP: float | None
    AP50: float | None
    AR: float | None  # with max_dets[2] detections


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the evaluator says about one set of images."""

    metrics: dict[str, float | None]  # the twelve NUMBERS, fractions; None where undefined
    per_class: list[ClassResult]  # by label
    per_size: list[SizeResult]  # by label, then size
    precision: np.ndarray  # (10, 101, K): IoU 0.50 to 0.95, recall 0 to 1; nan: no ground truth
    backend: str
    max_dets: tuple[int, int, int]
    num_images: int
    num_gt: int
    num_detections: int
    num_over_max_dets: int  # images with more than max_dets[2] detections of one class


def validate(
    model: RetinaNet,
    data: CocoData,
    augment: Augment,
    postprocess: Postprocess,
    *,
    device: torch.device,
    precision: str = "fp32",
    compiled: bool = False,
    batch_size: int = 8,
    workers: int = 0,
    on_bad_image: str = "stop",
    max_images: int | None = None,
    backend: str = "arrays",
    max_dets: Sequence[int] = (1, 10, 100),
    stop_requested: Callable[[], bool] = lambda: False,
    bad_images: set[str] | None = None,
) -> tuple[Evaluation | None, DetectionArrays]:
    """Detect on every image once, shared out over the ranks, and score; every rank must call it.

    Batches are made before they are shared out, and hold images of one padded size: what is
    detected in an image depends neither on the other images nor on the number of ranks.

    Args:
        model: on ``device``; left in the mode it came in.
        data: the images, and the ground truth if there is one.
        augment: resizing only.
        postprocess: logits to detections.
        device: of this rank.
        precision: of the forward pass.
        compiled: by torch.compile.
        batch_size: images per forward pass.
        workers: loader processes on each rank.
        on_bad_image: ``"stop"`` or ``"skip"``.
        max_images: only the first images; None: all.
        backend: of the COCO evaluator.
        max_dets: see :func:`evaluate`.
        stop_requested: see :func:`retinanet.evaluation.detect.detect`.
        bad_images: gets a message about every unreadable image of this rank.

    Returns:
        The evaluation (None for data without annotations) and all detections, on every rank.

    Raises:
        Stopped: a rank received a signal to stop.
    """
    plans = eval_plan(data, augment, batch_size=batch_size, max_images=max_images)
    loader = BatchLoader(
        data,
        augment,
        plans[rank() :: world_size()],
        seed=0,
        workers=workers,
        on_bad_image=on_bad_image,
        pin_memory=device.type == "cuda",
    )
    share_buffers(model)
    start = time.perf_counter()
    detections = detect(
        model,
        postprocess,
        loader,
        device,
        precision,
        compiled=compiled,
        progress=True,
        stop_requested=stop_requested,
    )
    if bad_images is not None:
        bad_images |= loader.bad
    seconds, num_images = time.perf_counter() - start, len(detections.evaluated)
    logger.info("detected   %d images, %.1f images/s", num_images, num_images / seconds)
    if not data.annotated:
        return None, detections

    def score() -> Evaluation:
        return evaluate(data, detections, detections.evaluated, backend, max_dets)

    return on_main(score), detections


def evaluate(
    data: CocoData,
    detections: DetectionArrays,
    image_ids: Sequence[int] | np.ndarray,
    backend: str = "arrays",
    max_dets: Sequence[int] = (1, 10, 100),
) -> Evaluation:
    """Score detections against the ground truth of the images that were evaluated.

    The numbers are those of pycocotools on the annotation file itself: boxes, areas and crowd
    flags go to the evaluator unaltered, and only annotation ids are given anew.

    Args:
        data: the ground truth.
        detections: what was found; no images but ``image_ids``.
        image_ids: every image that was looked at, also those without detections.
        backend: ``"arrays"`` or ``"pycocotools"``; both give the same numbers.
        max_dets: best detections of a class in an image that AR1, AR10 and everything else see.

    Raises:
        ValueError: data without annotations, unknown image ids, settings out of range.
    """
    check("evaluation.backend", backend)
    check("evaluation.max_dets", list(max_dets))
    if not data.annotated:
        raise ValueError(f"{data.path} has no annotations; its detections cannot be scored.")
    image_ids = np.unique(np.asarray(image_ids, dtype=np.int64))
    rows = rows_of(data, image_ids)
    assert np.isin(detections.image_ids, image_ids).all(), "detections of an image not evaluated"
    assert np.isfinite(detections.scores).all(), "scores must be finite"
    run = _run_arrays if backend == "arrays" else _run_pycocotools
    precision, recall = run(data, detections, image_ids, rows, tuple(max_dets))
    num_gt = np.bincount(data.labels[rows][~data.crowd[rows]], minlength=len(data.category_ids))
    curves = precision[..., 0]  # (10, 101, K)
    return Evaluation(
        metrics={name: _number(precision, recall, number) for name, number in NUMBERS.items()},
        per_class=_per_class(data, detections, precision, recall, num_gt),
        per_size=_per_size(data, rows, precision, recall),
        precision=np.where(curves > -1, curves, np.nan),
        backend=backend,
        max_dets=tuple(max_dets),
        num_images=len(image_ids),
        num_gt=int(num_gt.sum()),
        num_detections=len(detections),
        num_over_max_dets=_count_over(detections, max_dets[2]),
    )


def rows_of(data: CocoData, image_ids: np.ndarray) -> np.ndarray:
    """Annotations of some images, in the order of the file within an image."""
    unknown = np.setdiff1d(image_ids, data.image_ids)
    if len(unknown):
        raise ValueError(f"images {unknown[:10].tolist()} are not in {data.path}.")
    return np.flatnonzero(np.isin(data.image_ids.repeat(np.diff(data.first)), image_ids))


def _ground_truth(data: CocoData, image_ids: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
    """COCO's dict for some images of a data set and their annotations."""
    columns = {
        # From 1: pycocotools takes a match with annotation 0 for no match.
        "id": range(1, len(rows) + 1),
        "image_id": data.image_ids.repeat(np.diff(data.first))[rows].tolist(),
        "category_id": np.array(data.category_ids)[data.labels[rows]].tolist(),
        "bbox": data.bbox[rows].tolist(),
        "area": data.area[rows].tolist(),
        "iscrowd": data.crowd[rows].astype(int).tolist(),
    }
    categories = zip(data.category_ids, data.category_names, strict=True)
    return {
        "images": [{"id": image_id} for image_id in image_ids.tolist()],
        "categories": [{"id": number, "name": name} for number, name in categories],
        "annotations": _records(columns),
    }


def _results(data: CocoData, detections: DetectionArrays) -> list[dict[str, Any]]:
    """Detections as pycocotools' ``loadRes`` would make them, without its copies."""
    columns = {
        "id": range(1, len(detections) + 1),
        "image_id": detections.image_ids.tolist(),
        "category_id": np.array(data.category_ids)[detections.labels].tolist(),
        "bbox": detections.boxes.tolist(),
        "area": detections.boxes[:, 2:].prod(axis=1).tolist(),
        "iscrowd": [0] * len(detections),
        "score": detections.scores.tolist(),
    }
    return _records(columns)


def _records(columns: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns of equal length as a list of dicts."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _run_arrays(
    data: CocoData,
    detections: DetectionArrays,
    image_ids: np.ndarray,
    rows: np.ndarray,
    max_dets: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, K, S) with the last of ``max_dets``, recall (T, K, S, 3); -1: undefined."""
    truth, crowd, found = as_objects(data, detections, image_ids, rows)[1:]
    K = len(data.category_ids)
    return precision_recall(truth, crowd, found, detections.scores, K, max_dets)


def as_objects(
    data: CocoData, detections: DetectionArrays, image_ids: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, Objects, np.ndarray, Objects]:
    """Ground truth and detections as the evaluator takes them.

    Args:
        data: the ground truth.
        detections: of some of the images.
        image_ids: of the images that were looked at, increasing.
        rows: their annotations; see :func:`rows_of`.

    Returns:
        The rows by image, then of these G annotations the objects and (G,) whether they are
        crowds, and the detections.
    """
    image = np.searchsorted(image_ids, data.image_ids.repeat(np.diff(data.first))[rows])
    order = np.argsort(image, kind="stable")
    rows = rows[order]
    truth = Objects(image[order], data.labels[rows], data.bbox[rows], data.area[rows])
    found = Objects(
        np.searchsorted(image_ids, detections.image_ids),
        detections.labels,
        detections.boxes,
        detections.boxes[:, 2] * detections.boxes[:, 3],
    )
    return rows, truth, data.crowd[rows], found


def _run_pycocotools(
    data: CocoData,
    detections: DetectionArrays,
    image_ids: np.ndarray,
    rows: np.ndarray,
    max_dets: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """The same from pycocotools, which everybody else's numbers come from."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = _ground_truth(data, image_ids, rows), _results(data, detections)
    with redirect_stdout(io.StringIO()):  # it prints its progress
        pair = COCO(), COCO()
        for coco, annotations in zip(pair, (truth["annotations"], results), strict=True):
            coco.dataset = truth | {"annotations": annotations}
            coco.createIndex()
        evaluator = COCOeval(*pair, iouType="bbox")
        evaluator.params.maxDets = list(max_dets)
        evaluator.evaluate()
        evaluator.accumulate()
    by_id = np.argsort(np.argsort(data.category_ids))  # it puts classes in this order
    precision = evaluator.eval["precision"][..., -1][:, :, by_id]
    return precision, evaluator.eval["recall"][:, by_id]


def _number(
    precision: np.ndarray, recall: np.ndarray, number: Number, label: int | slice = ALL_CLASSES
) -> float | None:
    """Mean over what is defined, of all classes or of one; None when nothing is."""
    if number.mean_of == "precision":
        values = precision[number.threshold, :, label, number.area]
    else:
        values = recall[number.threshold, label, number.area, number.max_dets]
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _per_class(
    data: CocoData,
    detections: DetectionArrays,
    precision: np.ndarray,
    recall: np.ndarray,
    num_gt: np.ndarray,
) -> list[ClassResult]:
    """One row for each category, by label."""
    num_detections = np.bincount(detections.labels, minlength=len(num_gt))
    rows = []
    for label, name in enumerate(data.category_names):
        numbers = {
            key: _number(precision, recall, NUMBERS[key], label)
            for key in ("AP", "AP50", "AP75", "AR100")
        }
        counts = {"num_gt": int(num_gt[label]), "num_detections": int(num_detections[label])}
        rows.append(
            ClassResult(name=name, category_id=data.category_ids[label], **numbers, **counts)
        )
    return rows


def _per_size(
    data: CocoData, rows: np.ndarray, precision: np.ndarray, recall: np.ndarray
) -> list[SizeResult]:
    """Three rows for each category, by label; an object on a bound has both sizes, as in COCO."""
    objects = rows[~data.crowd[rows]]
    found = []
    for label, name in enumerate(data.category_names):
        area = data.area[objects[data.labels[objects] == label]]
        for number, size in list(enumerate(SIZES))[1:]:
            low, high = AREAS[number]
            found.append(
                SizeResult(
                    name=name,
                    category_id=data.category_ids[label],
                    size=size,
                    num_gt=int(((area >= low) & (area <= high)).sum()),
                    AP=_number(precision, recall, NUMBERS["AP"]._replace(area=number), label),
                    AP50=_number(precision, recall, NUMBERS["AP50"]._replace(area=number), label),
                    AR=_number(precision, recall, NUMBERS["AR100"]._replace(area=number), label),
                )
            )
    return found


def _count_over(detections: DetectionArrays, limit: int) -> int:
    """Images with more than ``limit`` detections of one class: COCO does not see the rest."""
    pairs = np.stack([detections.image_ids, detections.labels], axis=1)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    return len(np.unique(pairs[counts > limit, 0]))
