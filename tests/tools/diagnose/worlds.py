"""Made-up data sets, and detections as a network of some skill would find there."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retinanet.data.coco import CocoData, images_of
from retinanet.evaluation.detect import DetectionArrays
from retinanet.tools.diagnose.evidence import index_of


@dataclass(frozen=True, slots=True)
class Skill:
    """How well a network finds and names what is there."""

    found: float  # share of the objects that have a detection near them
    jitter: float  # standard deviation of corners, in shares of the box's sides
    named: float  # share of the detections with the right class; others have any
    false: float  # other detections for each object
    sure: float  # how far scores of right ones lie above the others, in standard deviations


LETTERS = "qwertyuiopasdfghjklzxcvbnm"

# On the sets below their AP is about 0.7, 0.3, 0.1 and 0.02.
GOOD = Skill(found=0.9, jitter=0.04, named=0.95, false=1.0, sure=2.5)
FAIR = Skill(found=0.75, jitter=0.09, named=0.8, false=2.0, sure=1.5)
WEAK = Skill(found=0.6, jitter=0.12, named=0.6, false=3.0, sure=1.0)
POOR = Skill(found=0.35, jitter=0.17, named=0.45, false=6.0, sure=0.7)


def make_world(
    rng: np.random.Generator,
    *,
    num_images: int = 60,
    num_classes: int = 6,
    objects: tuple[int, int] = (1, 8),  # fewest and most in an image
    sides: tuple[float, float] = (30, 160),  # shortest and longest of boxes, pixels
    one_size: bool = False,  # all images are of 640 x 480
    centered: bool = False,  # boxes lie around the middle
    skewed: bool = False,  # each class is half as frequent as the one before
) -> CocoData:
    """Random boxes of random classes."""
    sizes = np.tile([480, 640], (num_images, 1))
    if not one_size:
        sizes = np.stack(
            [rng.integers(360, 640, num_images), rng.integers(480, 800, num_images)], 1
        )
    counts = rng.integers(objects[0], objects[1] + 1, num_images)
    image = np.repeat(np.arange(num_images), counts)
    M = len(image)
    side = np.exp(rng.uniform(*np.log(sides), (M, 2)))
    limits = sizes[image][:, ::-1]
    middle = rng.normal(0.5, 0.04, (M, 2)) if centered else rng.uniform(0, 1, (M, 2))
    corner = (limits * middle - side / 2 * centered).clip(min=0)
    corner = np.minimum(corner, limits - side)
    weights = 0.5 ** np.arange(num_classes) if skewed else np.ones(num_classes)
    names = [f"{i}.jpg" for i in range(num_images)]
    return CocoData(
        path=Path("val.json"),
        image_root=Path("images"),
        image_ids=np.arange(1, num_images + 1) * 7,
        sizes=sizes.astype(np.int32),
        name_bytes=np.frombuffer("".join(names).encode(), dtype=np.uint8),
        name_ends=np.cumsum([0, *map(len, names)]),
        first=np.concatenate([[0], np.cumsum(counts)]),
        bbox=np.concatenate([corner, side], axis=1),
        area=side.prod(axis=1),
        labels=rng.choice(num_classes, M, p=weights / weights.sum()),
        crowd=np.zeros(M, dtype=bool),
        usable=np.ones(M, dtype=bool),
        category_ids=tuple(range(1, num_classes + 1)),
        # A name whose place in the alphabet is not its number.
        category_names=tuple(f"{LETTERS[i % 26]}{i}" for i in range(num_classes)),
        annotated=True,
        repairs={},
        fingerprint="",
    )


def look(rng: np.random.Generator, data: CocoData, skill: Skill) -> DetectionArrays:
    """Detections of a network on the data as it is."""
    K = len(data.category_names)
    image = images_of(data)
    hit = np.flatnonzero(rng.uniform(size=len(image)) < skill.found)
    low, side = data.bbox[hit, :2], data.bbox[hit, 2:]
    corners = np.concatenate([low, low + side], axis=1)
    corners += rng.normal(0, skill.jitter, corners.shape) * np.tile(side, 2)
    right = rng.uniform(size=len(hit)) < skill.named
    labels = np.where(right, data.labels[hit], rng.integers(0, K, len(hit)))
    # False ones have the sizes of objects, anywhere.
    false = rng.integers(0, len(image), int(skill.false * len(image)))
    limits = data.sizes[image[false]][:, ::-1]
    low = rng.uniform(0, 1, (len(false), 2)) * limits
    others = np.concatenate([low, low + data.bbox[rng.permutation(false), 2:]], axis=1)
    rows = np.concatenate([image[hit], image[false]])
    boxes = np.concatenate([corners, others])
    limits = np.tile(data.sizes[rows][:, ::-1], 2)
    boxes = np.clip(boxes, 0, limits)
    boxes[:, 2:] = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-3)
    logits = np.concatenate([rng.normal(skill.sure, 1, len(hit)), rng.normal(0, 1, len(false))])
    labels = np.concatenate([labels, rng.integers(0, K, len(false))])
    return _sorted(data.image_ids[rows], boxes, 1 / (1 + np.exp(2 - logits)), labels, data)


def _sorted(
    ids: np.ndarray, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, data: CocoData
) -> DetectionArrays:
    order = np.lexsort((-scores, ids))
    columns = (column[order] for column in (ids, boxes, scores, labels))
    return DetectionArrays(*columns, evaluated=np.unique(data.image_ids), num_capped=0)


def in_form(data: CocoData, form: str) -> CocoData:
    """The boxes as a file with a mistake has them."""
    x, y, w, h = data.bbox.T
    W, H = data.sizes[images_of(data)][:, ::-1].astype(float).T
    forms = {
        "corners": (x, y, x + w, y + h),
        "centers": (x + w / 2, y + h / 2, w, h),
        "rows first": (y, x, h, w),
        "fractions": (x / W, y / H, w / W, h / H),
        "YOLO": ((x + w / 2) / W, (y + h / 2) / H, w / W, h / H),
        "half": (x / 2, y / 2, w / 2, h / 2),
        "framed": (x / W * 512, y / H * 512, w / W * 512, h / H * 512),
        "from below": (x, H - y - h, w, h),
        "mirrored": (W - x - w, y, w, h),
        "turned": (W - x - w, H - y - h, w, h),
    }
    boxes = np.stack(forms[form], axis=1)
    return dataclasses.replace(data, bbox=boxes, area=boxes[:, 2:].prod(axis=1))


def renamed(data: CocoData, new: np.ndarray) -> CocoData:
    """Other labels: g becomes new[g]."""
    return dataclasses.replace(data, labels=np.asarray(new)[data.labels])


def exchanged(data: CocoData, found: DetectionArrays, order: np.ndarray) -> DetectionArrays:
    """What was detected in image i is said of image order[i]."""
    rows = index_of(data, found.image_ids)
    return _sorted(data.image_ids[order][rows], found.boxes, found.scores, found.labels, data)


def without_boxes(data: CocoData, images: range) -> CocoData:
    """Images whose boxes nobody drew."""
    image = images_of(data)
    kept = ~np.isin(image, images)
    counts = np.bincount(image[kept], minlength=len(data))
    columns = {
        name: getattr(data, name)[kept] for name in ("bbox", "area", "labels", "crowd", "usable")
    }
    return dataclasses.replace(data, first=np.concatenate([[0], np.cumsum(counts)]), **columns)
