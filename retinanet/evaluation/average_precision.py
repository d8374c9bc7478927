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

import numpy as np
import torch

from retinanet.checks import check
from retinanet.data.coco import CocoData, images_of
from retinanet.data.loader import BatchLoader, eval_plan
from retinanet.data.transforms import Augment
from retinanet.distributed import on_main, rank, share_buffers, world_size
from retinanet.evaluation.detect import DetectionArrays, detect
from retinanet.evaluation.numbers import COCO_MAX_DETS, NUMBERS, SIZES
from retinanet.fast.coco_eval import AREAS, Objects, precision_recall
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Postprocess

logger = logging.getLogger(__name__)


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
    num_gt: int  # without crowds; an object on a bound has both sizes, as in COCO
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
    max_dets: Sequence[int] = COCO_MAX_DETS,
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
    evaluation = on_main(
        lambda: evaluate(data, detections, detections.evaluated, backend, max_dets)
    )
    return evaluation, detections


def evaluate(
    data: CocoData,
    detections: DetectionArrays,
    image_ids: Sequence[int] | np.ndarray,
    backend: str = "arrays",
    max_dets: Sequence[int] = COCO_MAX_DETS,
) -> Evaluation:
    """Score detections against the ground truth of the images that were evaluated.

    The numbers are those of pycocotools on the annotation file itself: boxes, areas and crowd
    flags go to the evaluator unaltered, and only ids are given anew.

    Args:
        data: the ground truth.
        detections: of no images but ``image_ids``.
        image_ids: every image that was looked at, also those without detections.
        backend: ``"arrays"`` or ``"pycocotools"``; both give the same numbers.
        max_dets: best detections of a class in an image that AR1, AR10 and everything else see.

    Raises:
        ValueError: data without annotations, unknown image ids, settings out of range.
    """
    check("evaluation.backend", backend)
    check("evaluation.max_dets", list(max_dets))
    image_ids = np.unique(np.asarray(image_ids, dtype=np.int64))
    assert np.isin(detections.image_ids, image_ids).all(), "detections of an image not evaluated"
    assert np.isfinite(detections.scores).all(), "scores must be finite"
    _, ground_truth, crowd, detected = as_objects(data, detections, image_ids)
    K, given = len(data.category_ids), (ground_truth, crowd, detected, detections.scores)
    if backend == "arrays":
        precision, recall = precision_recall(*given, K, tuple(max_dets))
    else:
        precision, recall = pycocotools_curves(*given, len(image_ids), K, max_dets)

    def mean(name: str, label: int | slice = slice(None), area: int | None = None) -> float | None:
        """Over what is defined, of one class or all, and of another size if one is given."""
        number = NUMBERS[name]
        area = number.area if area is None else area
        if number.mean_of == "precision":
            values = precision[number.threshold, :, label, area]
        else:
            values = recall[number.threshold, label, area, number.max_dets]
        defined = values[values > -1]
        return float(defined.mean()) if defined.size else None

    objects = ground_truth.take(~crowd)
    num_gt = np.bincount(objects.label, minlength=K).tolist()
    num_detections = np.bincount(detections.labels, minlength=K).tolist()
    classes = list(zip(data.category_names, data.category_ids, strict=True))
    per_class = [
        ClassResult(
            name=name,
            category_id=category_id,
            **{number: mean(number, label) for number in ("AP", "AP50", "AP75", "AR100")},
            num_gt=num_gt[label],
            num_detections=num_detections[label],
        )
        for label, (name, category_id) in enumerate(classes)
    ]
    per_size = []
    for label, (name, category_id) in enumerate(classes):
        area = objects.area[objects.label == label]
        for size in range(1, len(SIZES)):
            inside = (area >= AREAS[size, 0]) & (area <= AREAS[size, 1])
            numbers = (mean(number, label, size) for number in ("AP", "AP50", "AR100"))
            count = int(inside.sum())
            per_size.append(SizeResult(name, category_id, SIZES[size], count, *numbers))
    # COCO sees no more than max_dets[2] detections of a class in an image.
    pairs = np.stack([detections.image_ids, detections.labels], axis=1)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    curves = precision[..., 0]  # (10, 101, K)
    return Evaluation(
        metrics={name: mean(name) for name in NUMBERS},
        per_class=per_class,
        per_size=per_size,
        precision=np.where(curves > -1, curves, np.nan),
        backend=backend,
        max_dets=tuple(max_dets),
        num_images=len(image_ids),
        num_gt=sum(num_gt),
        num_detections=len(detections),
        num_over_max_dets=len(np.unique(pairs[counts > max_dets[2], 0])),
    )


def as_objects(
    data: CocoData, detections: DetectionArrays, image_ids: np.ndarray
) -> tuple[np.ndarray, Objects, np.ndarray, Objects]:
    """Ground truth and detections as the evaluator takes them.

    Args:
        data: the ground truth.
        detections: of some of the images.
        image_ids: of the images that were looked at, increasing.

    Returns:
        (G,) annotations of these images by image id, the same as objects, (G,) whether they are
        crowds, and the detections.

    Raises:
        ValueError: data without annotations, or images that it does not list.
    """
    if not data.annotated:
        raise ValueError(f"{data.path} has no annotations; its detections cannot be scored.")
    unknown = np.setdiff1d(image_ids, data.image_ids)
    if len(unknown):
        raise ValueError(f"images {unknown[:10].tolist()} are not in {data.path}.")
    of_row = data.image_ids[images_of(data)]  # (M,)
    rows = np.flatnonzero(np.isin(of_row, image_ids))
    rows = rows[np.argsort(of_row[rows], kind="stable")]  # in the order of the file in each image
    image = np.searchsorted(image_ids, of_row[rows])
    ground_truth = Objects(image, data.labels[rows], data.bbox[rows], data.area[rows])
    detected = Objects(
        np.searchsorted(image_ids, detections.image_ids),
        detections.labels,
        detections.boxes,
        detections.boxes[:, 2] * detections.boxes[:, 3],
    )
    return rows, ground_truth, data.crowd[rows], detected


def pycocotools_curves(
    ground_truth: Objects,
    crowd: np.ndarray,
    detections: Objects,
    scores: np.ndarray,
    num_images: int,
    num_classes: int,
    max_dets: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`retinanet.fast.coco_eval.precision_recall` from stock pycocotools, its definition."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def as_coco(objects: Objects, iscrowd: np.ndarray, scores: np.ndarray) -> COCO:
        columns = {
            # From 1: pycocotools takes a match with annotation 0 for no match.
            "id": range(1, len(objects.image) + 1),
            "image_id": objects.image.tolist(),
            "category_id": objects.label.tolist(),
            "bbox": objects.box.tolist(),
            "area": objects.area.tolist(),
            "iscrowd": iscrowd.astype(int).tolist(),
            "score": scores.tolist(),
        }
        rows = zip(*columns.values(), strict=True)
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number} for number in range(num_images)],
            "categories": [{"id": label} for label in range(num_classes)],
            "annotations": [dict(zip(columns, row, strict=True)) for row in rows],
        }
        coco.createIndex()
        return coco

    with redirect_stdout(io.StringIO()):  # it prints its progress
        evaluator = COCOeval(
            as_coco(ground_truth, crowd, np.ones(len(crowd))),
            as_coco(detections, np.zeros(len(scores)), scores),
            iouType="bbox",
        )
        evaluator.params.maxDets = list(max_dets)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][..., -1], evaluator.eval["recall"]
