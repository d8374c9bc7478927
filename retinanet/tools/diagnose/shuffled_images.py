"""Whether detections and annotations are of the same pictures."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.detect import DetectionArrays
from retinanet.tools.diagnose.overlaps import image_rows, iou_of, only, places, score, score_any

# Images that are compared with each other, neighbours in the order of the file: a list that has
# slipped by one pairs neighbours.
COMPARED_IMAGES = 200
# Below, chance decides.
LEAST_IMAGES = 10
# Detections of an image that are compared: the best ones.
COMPARED_DETECTIONS = 20
# Share of the images that must have found each other's annotations.
LEAST_PARTNERS = 0.3
# A network with an AP of 0.005 still fits its own image better than 70 to 90 % of the others.
CHANCE = 0.65
# AP of exchanged annotations from which on they belong there, and so many times that of luck: among
# many images some boxes fit any detections.
LEAST_AP = 0.1
LUCKY = 2.0


class Pairing(NamedTuple):
    """How the detections of every image fit the boxes of the others."""

    num_images: int  # compared
    own_rank: float  # mean share of other images whose boxes fit worse than the own; 0.5: chance
    partners: int  # images whose detections and another image's boxes fit each other best
    AP: float  # when those exchange annotations, classes ignored
    luck: float  # the same for mirrored detections
    examples: tuple[tuple[str, str], ...]  # file, file whose annotations fit it

    @property
    def deviation(self) -> float:
        """Standard deviation of ``own_rank`` by chance: the rank is uniform then."""
        return 1 / np.sqrt(12 * self.num_images)

    @property
    def by_chance(self) -> bool:
        """Whether it is sure that detections fit their own image hardly better than any other."""
        return self.own_rank + 2 * self.deviation < CHANCE

    @property
    def exchanged(self) -> bool:
        """Whether annotations fit when images exchange them, beyond what luck finds."""
        enough = self.partners >= max(LEAST_PARTNERS * self.num_images, 3)
        unfit = self.own_rank < 0.5 + 3 * self.deviation
        return enough and unfit and max(LEAST_AP, LUCKY * self.luck) < self.AP


def find_pairing(data: CocoData, found: DetectionArrays) -> Pairing | None:
    """Compare the detections of every image with the boxes of the others.

    Args:
        data: the ground truth.
        found: the detections.

    Returns:
        None where there are too few images to compare.
    """
    images = _comparable(data, found)
    if len(images) < LEAST_IMAGES:
        return None
    fit = _fits(data, found, images)
    partner = _partners(fit)
    mirrored = dataclasses.replace(found, boxes=_mirrored(data, found))
    luck = _partners(_fits(data, mirrored, images))
    return Pairing(
        len(images),
        _own_rank(fit),
        int((partner >= 0).sum()),
        _score_exchanged(data, found, images, partner),
        _score_exchanged(data, mirrored, images, luck),
        tuple(
            (data.file_name(images[i]), data.file_name(images[partner[i]]))
            for i in np.flatnonzero(partner >= 0)[:3]
        ),
    )


def own_rank(data: CocoData, found: DetectionArrays) -> float:
    """Mean share of other images whose boxes fit an image's detections worse than its own."""
    return _own_rank(_fits(data, found, _comparable(data, found)))


def _own_rank(fit: np.ndarray) -> float:
    own = np.diag(fit)[:, None]
    others = ~np.eye(len(fit), dtype=bool)
    return float(((fit < own) + 0.5 * (fit == own))[others].mean())


def _comparable(data: CocoData, found: DetectionArrays) -> np.ndarray:
    """Rows of images with objects and detections, neighbours in the file."""
    rows = np.sort(image_rows(data, np.unique(found.image_ids)))
    return rows[data.num_boxes()[rows] > 0][:COMPARED_IMAGES]


def _fits(data: CocoData, found: DetectionArrays, images: np.ndarray) -> np.ndarray:
    """(N, N) how well the detections of image i fit the boxes of image j, in [0, 1].

    The mean of what the boxes find among the best detections and what those find among the boxes.
    """
    best = places(found) < COMPARED_DETECTIONS
    things = [
        data.first[i] + np.flatnonzero(~data.crowd[data.first[i] : data.first[i + 1]])
        for i in images
    ]
    starts = np.cumsum([0, *map(len, things)])[:-1]
    counts = np.array([len(rows) for rows in things])
    boxes = data.bbox[np.concatenate(things)]  # (G, 4) of all images
    fit = np.zeros((len(images), len(images)))
    for row, image in enumerate(images):
        mine = np.flatnonzero((found.image_ids == data.image_ids[image]) & best)
        iou = iou_of(found.boxes[mine][:, None], boxes[None])  # (D, G)
        by_box = np.add.reduceat(iou.max(axis=0), starts) / counts
        # As many detections as there are boxes: the weaker ones are not meant.
        by_image = np.maximum.reduceat(iou, starts, axis=1)  # (D, N)
        meant = np.arange(len(mine))[:, None] < counts
        by_detection = (by_image * meant).sum(axis=0) / meant.sum(axis=0)
        fit[row] = (by_box + by_detection) / 2
    return fit


def _partners(fit: np.ndarray) -> np.ndarray:
    """(N,) the other image whose boxes fit best, where its boxes have no better either; else -1."""
    best = fit.argmax(axis=1)
    mutual = (fit.argmax(axis=0)[best] == np.arange(len(fit))) & (best != np.arange(len(fit)))
    return np.where(mutual, best, -1)


def _mirrored(data: CocoData, found: DetectionArrays) -> np.ndarray:
    """(D, 4) boxes of the same sizes and habits, in other places: left is right."""
    boxes = found.boxes.copy()
    width = data.sizes[image_rows(data, found.image_ids), 1]
    boxes[:, 0] = width - boxes[:, 0] - boxes[:, 2]
    return boxes


def _score_exchanged(
    data: CocoData, found: DetectionArrays, images: np.ndarray, partner: np.ndarray
) -> float:
    """AP of the images with a partner when their detections are taken for the partner's."""
    mine = np.flatnonzero(partner >= 0)
    if not len(mine):
        return 0.0
    new_id = dict(
        zip(
            data.image_ids[images[mine]].tolist(),
            data.image_ids[images[partner[mine]]].tolist(),
            strict=True,
        )
    )
    kept = np.isin(found.image_ids, list(new_id))
    moved = only(found, kept, np.unique(list(new_id.values())))
    ids = np.array([new_id[i] for i in moved.image_ids.tolist()], dtype=np.int64)
    order = np.argsort(ids, kind="stable")
    moved = dataclasses.replace(
        moved,
        image_ids=ids[order],
        boxes=moved.boxes[order],
        scores=moved.scores[order],
        labels=moved.labels[order],
    )
    AP, _ = score_any(data, moved)
    return max(AP, score(data, moved)) if len(data.category_names) > 1 else AP
