"""Whether detections and annotations are of the same images."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from retinanet.boxes import box_iou
from retinanet.data.coco import CocoData, images_of
from retinanet.evaluation.detect import DetectionArrays
from retinanet.tools.diagnose.evidence import (
    Case,
    index_of,
    restrict,
    score,
    score_any,
    top_detections,
)
from retinanet.tools.diagnose.scored import Cause

# Images that are compared with each other, neighbors in the file: a list that has slipped by one
# pairs neighbors. Below the least number chance decides.
COMPARED_IMAGES, LEAST_IMAGES = 200, 10
# A network with an AP of 0.005 still fits its own image better than 70 to 90 % of the others.
CHANCE = 0.65
# Share of the images whose detections and another image's boxes must fit each other best.
LEAST_PARTNERS = 0.3
# AP of exchanged annotations from which on they belong there, and so many times that of luck: among
# many images some boxes fit any detections.
LEAST_AP, LUCKY = 0.1, 2.0


def check_image_ids(case: Case) -> Cause | None:
    """Annotations that belong to other images of the set: exchanged, they give the AP back."""
    data, detections = case.data, case.detections
    images = np.sort(index_of(data, np.unique(detections.image_ids)))
    images = images[data.num_boxes()[images] > 0][:COMPARED_IMAGES]
    N = len(images)
    if N < LEAST_IMAGES:
        return None
    fit = fits(data, detections, images)
    own = np.diag(fit)[:, None]
    others = ~np.eye(N, dtype=bool)
    rank = float(((fit < own) + 0.5 * (fit == own))[others].mean())
    partner, AP = _exchange(data, detections, images, fit)
    num_partners = int((partner >= 0).sum())
    case.numbers |= {"rank_of_own_image": rank, "AP_images_exchanged": AP}
    case.evidence.append(
        f"detections fit the boxes of their image better than those of {rank:.0%} of the other "
        f"images (chance: 50%)"
    )
    # By chance the rank of an image is uniform, so the mean has this standard deviation.
    case.fits_no_image = rank + 2 / np.sqrt(12 * N) < CHANCE
    if not case.fits_no_image or num_partners < LEAST_PARTNERS * N or AP <= LEAST_AP:
        return None
    # Detections of the same sizes and habits in other places: left is right.
    boxes, width = detections.boxes.copy(), data.sizes[index_of(data, detections.image_ids), 1]
    boxes[:, 0] = width - boxes[:, 0] - boxes[:, 2]
    mirrored = dataclasses.replace(detections, boxes=boxes)
    _, luck = _exchange(data, mirrored, images, fits(data, mirrored, images))
    if LUCKY * luck >= AP:
        return None
    first = np.argmax(partner >= 0)
    return Cause(
        "wrong images",
        f"Annotations of {data.path} belong to other images: the detections of an image fit its "
        f"own boxes no better than any other's, but in {num_partners} of {N} images those of one "
        f"other (AP {AP:.3f}), such as in {data.file_name(images[first])} those of "
        f"{data.file_name(images[partner[first]])}.",
        "Correct file_name of the images, or image_id of the annotations: files were renamed, or "
        "a list was sorted or has slipped.",
    )


def fits(data: CocoData, detections: DetectionArrays, images: np.ndarray) -> np.ndarray:
    """(N, N) how well the detections of image i fit the boxes of image j, in [0, 1].

    The mean of two: the IoU of each box with the best of the detections, and the IoU of as many
    detections as there are boxes with the best of those.

    Args:
        data: the ground truth.
        detections: of these images and others.
        images: (N,) rows of images that have boxes and detections, increasing.
    """
    counted = data.usable & ~data.crowd
    image = images_of(data)
    rows = np.flatnonzero(counted & np.isin(image, images))  # (G,) by image, which increases
    counts = np.bincount(image[rows], minlength=len(data))[images]
    starts = counts.cumsum() - counts
    boxes = _corners(data.bbox[rows])  # (G, 4)
    top = top_detections(detections)
    fit = np.zeros((len(images), len(images)))
    for i, image_id in enumerate(data.image_ids[images]):
        mine = np.flatnonzero((detections.image_ids == image_id) & top)
        iou = box_iou(_corners(detections.boxes[mine]), boxes).numpy()  # (D, G)
        of_boxes = np.add.reduceat(iou.max(axis=0), starts) / counts
        best = np.maximum.reduceat(iou, starts, axis=1)  # (D, N)
        meant = np.arange(len(mine))[:, None] < counts  # the weaker detections are not meant
        fit[i] = (of_boxes + (best * meant).sum(axis=0) / meant.sum(axis=0)) / 2
    return fit


def _corners(boxes: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))


def _exchange(
    data: CocoData, detections: DetectionArrays, images: np.ndarray, fit: np.ndarray
) -> tuple[np.ndarray, float]:
    """(N,) the other image whose boxes fit best, and the AP with these.

    It is -1 where its boxes have better detections elsewhere.
    """
    N = len(images)
    best = fit.argmax(axis=1)
    mutual = (fit.argmax(axis=0)[best] == np.arange(N)) & (best != np.arange(N))
    if not mutual.any():
        return np.full(N, -1), 0.0
    ids = data.image_ids[images[mutual]]
    exchanged = -1 - np.arange(len(data))  # no detection is of the others
    exchanged[images[best[mutual]]] = ids
    moved = dataclasses.replace(data, image_ids=exchanged)
    kept = restrict(detections, np.sort(ids))
    AP = max(score(moved, kept), score_any(moved, kept)[0])
    return np.where(mutual, best, -1), AP
