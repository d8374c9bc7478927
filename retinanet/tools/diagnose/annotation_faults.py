"""Faults of an annotation file, found by undoing them: the AP that this gives back is the proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from retinanet.boxes import box_iou
from retinanet.data.coco import CocoData, images_of
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.matched import match_detections, overlaps
from retinanet.tools.diagnose.evidence import (
    Evidence,
    index_of,
    proves,
    restrict,
    score,
    score_any,
    top_detections,
)
from retinanet.tools.diagnose.scored import Finding

# All numbers of at least so many boxes are at most this: fractions of the image, not pixels. A box
# of a center format may end a little beyond 1.
FRACTION_LIMIT, FRACTION_BOXES = 1.5, 3
# A detection and an object propose a scaling if the ratios of their sides and of their centers
# differ by less than this, as logarithms; an IoU of 0.7 allows as much.
SAME_RATIO = 0.15
# A scaling closer to 1 is none, and one that fewer pairs propose is luck.
LEAST_SCALING, LEAST_PAIRS = 0.05, 5

WRITE = "COCO wants [x, y, width, height] in pixels, x and y of the upper left corner: convert"
MIRRORED = (
    "mirrored boxes",
    "Draw some boxes over their images with another program: either the boxes were made for "
    "images that have been mirrored or turned since, or their y counts from the lower edge. COCO "
    "counts x and y from the upper left corner of the image as it is displayed.",
)
# How the name of a reading begins -> name of the finding, fix.
FAULTS = {
    "from below": MIRRORED,
    "mirrored": MIRRORED,
    "turned": MIRRORED,
    "fractions": ("normalized boxes", f"{WRITE} them."),
    "other size": (
        "box size",
        "The annotations were made for images of another size: scale the boxes to the pixels of "
        "the files, or restore those images.",
    ),
    "trained": ("box format", f"{WRITE} the boxes of the training annotations, and train again."),
    "": ("box format", f"{WRITE} the boxes."),
}

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

# A detection shows which class an object is taken for when it overlaps by this.
SEEN_IOU = 0.5
# Added to the number of objects of a class, so that one lucky object does not name it.
SMOOTHING = 3.0
# A class is renamed when more than this share of its objects is taken for the other class, and so
# many times as many as for its own; at least so many classes must be.
RENAMED_SHARE, RENAMED_MORE, LEAST_CLASSES = 0.5, 2.0, 2
# Renaming must give this AP, and so many times that of the classes as they are.
RENAMED_AP, RENAMED_FACTOR = 0.02, 1.15

# Name, what completes "the boxes fit when ...", and x, y, width, height of M boxes.
Reading = tuple[str, str, tuple[np.ndarray, ...]]


# Boxes in another form


def box_format(e: Evidence) -> tuple[Finding | None, CocoData]:
    """Boxes that fit the detections when they are read in another way, and the data read so."""
    data, fractions = e.data, are_fractions(e)
    limits = data.sizes[images_of(data)][:, ::-1]  # (M, 2) width, height
    best = (-1.0,)
    for name, meant, columns in _readings(e, fractions):
        # Clipped to their images, as in training.
        boxes = np.stack(columns, axis=1)
        low = boxes[:, :2].clip(min=0)
        side = (np.minimum(boxes[:, :2] + boxes[:, 2:], limits) - low).clip(min=0)
        read = dataclasses.replace(data, bbox=np.hstack([low, side]), area=side.prod(axis=1))
        AP, AP50 = score_any(read, e.detections)
        best = max(best, (AP, AP50, name, meant, read), key=lambda row: row[0])
    AP, AP50, name, meant, read = best
    e.numbers |= {"other_reading": name, "AP_other_reading": AP}
    if proves(AP, e.AP_any):
        fault, fix = next(FAULTS[start] for start in FAULTS if name.startswith(start))
        verdict = (
            f"The boxes of {data.path} are not where the detections are, and fit when {meant}: "
            f"then AP is {AP:.3f} and AP50 {AP50:.3f} (classes ignored; now {e.AP_any:.3f} and "
            f"{e.AP50_any:.3f})."
        )
        return Finding(fault, verdict, fix), read
    if fractions:
        return normalized_boxes(e), data
    e.sentences.append(
        f"boxes {meant}: AP {AP:.3f}, classes ignored, the most that another way to read them gives"
    )
    return None, data


def are_fractions(e: Evidence) -> bool:
    """Whether every box lies within the first pixel or so, as fractions of the image do."""
    boxes = e.data.bbox[e.objects()]
    some = len(boxes) >= FRACTION_BOXES and bool(boxes.any())
    return some and bool((np.abs(boxes) <= FRACTION_LIMIT).all())


def normalized_boxes(e: Evidence) -> Finding | None:
    """Boxes that are not in pixels; the annotations alone show it."""
    if not are_fractions(e):
        return None
    return Finding(
        "normalized boxes",
        f"The boxes of {e.data.path} are fractions: none reaches beyond the first pixel or so of "
        f"its image.",
        "COCO wants [x, y, width, height] in pixels, x and y of the upper left corner: multiply x "
        "and width by the image's width, y and height by its height.",
    )


def _readings(e: Evidence, fractions: bool) -> Iterator[Reading]:
    """Every way to read boxes of pixels, or fractions of the image, that may make sense of them."""
    x, y, w, h = e.data.bbox.T
    width, height = e.data.sizes[images_of(e.data)][:, ::-1].T
    start, words = ("", "") if not fractions else ("fractions, ", "fractions of the image, ")
    if fractions:
        x, y, w, h = x * width, y * height, w * width, h * height
        yield "fractions", "fractions of the image", (x, y, w, h)
    for name, meant, columns in (
        ("x1 y1 x2 y2", "read as x1, y1, x2, y2", (x, y, w - x, h - y)),
        ("centers", "read as center x, center y, width, height", (x - w / 2, y - h / 2, w, h)),
        ("y x h w", "read as y, x, height, width", (y, x, h, w)),
        ("y1 x1 y2 x2", "read as y1, x1, y2, x2", (y, x, h - y, w - x)),
        ("from below", "y counts from the lower edge", (x, height - y - h, w, h)),
    ):
        yield start + name, words + meant, columns
    if fractions:
        return
    yield "mirrored", "x counts from the right edge", (width - x - w, y, w, h)
    half_turn = width - x - w, height - y - h, w, h
    yield "turned", "turned by 180 degrees with their images", half_turn
    # What training on a file in another format teaches a network.
    as_sides = "turned into what training on x1, y1, x2, y2 as x, y, width, height teaches"
    yield "trained on x1 y1 x2 y2", as_sides, (x, y, x + w, y + h)
    as_corners = "turned into what training on centers as upper left corners teaches"
    yield "trained on centers", as_corners, (x + w / 2, y + h / 2, w, h)

    # Boxes of images that were larger or smaller, by one factor or all of one size.
    ratios, sizes = _scaling_votes(e)
    if len(ratios) < LEAST_PAIRS:
        return
    fx, fy = np.exp(np.median(ratios, axis=0))
    if np.abs(np.log([fx, fy])).max() > LEAST_SCALING:
        meant = f"x is multiplied by {fx:.2g} and y by {fy:.2g}"
        yield "other size", meant, (fx * x, fy * y, fx * w, fy * h)
    if (e.data.sizes != e.data.sizes[0]).any():
        W, H = np.exp(np.median(np.log(sizes) - ratios, axis=0))
        fx, fy = width / W, height / H
        meant = f"taken for boxes in images of {W:.0f} x {H:.0f} px"
        yield "other size", meant, (fx * x, fy * y, fx * w, fy * h)


def _scaling_votes(e: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) logarithms of factors on x and y, (P, 2) width and height of their image.

    A detection and an object of its image that belong together differ by the same factors in width
    and height as in the center. Pairs that do so by chance have any factors, so the median is that
    of the others.
    """
    data, detections = e.data, e.detections
    rows = np.flatnonzero(top_detections(detections))
    image = index_of(data, detections.image_ids[rows])
    count = data.first[image + 1] - data.first[image]
    detection, image = np.repeat(rows, count), np.repeat(image, count)  # each with every object
    nth = np.arange(len(image)) - np.repeat(count.cumsum() - count, count)
    ours, theirs = detections.boxes[detection], data.bbox[data.first[image] + nth]
    with np.errstate(divide="ignore", invalid="ignore"):
        center = np.log(ours[:, :2] + ours[:, 2:] / 2) - np.log(theirs[:, :2] + theirs[:, 2:] / 2)
        side = np.log(ours[:, 2:]) - np.log(theirs[:, 2:])
        agreed = (np.abs(center - side) < SAME_RATIO).all(axis=1)
    return (center + side)[agreed] / 2, data.sizes[image[agreed]][:, ::-1]


# Boxes of other images


def wrong_images(e: Evidence) -> Finding | None:
    """Annotations that belong to other images of the set: exchanged, they give the AP back."""
    data, detections = e.data, e.detections
    images = np.sort(index_of(data, np.unique(detections.image_ids)))
    images = images[data.num_boxes()[images] > 0][:COMPARED_IMAGES]
    N = len(images)
    if N < LEAST_IMAGES:
        return None
    fit = _fits(data, detections, images)
    own = np.diag(fit)[:, None]
    others = ~np.eye(N, dtype=bool)
    rank = float(((fit < own) + 0.5 * (fit == own))[others].mean())
    partner, AP = _exchange(data, detections, images, fit)
    num_partners = int((partner >= 0).sum())
    e.numbers |= {"rank_of_own_image": rank, "AP_images_exchanged": AP}
    e.sentences.append(
        f"detections fit the boxes of their image better than those of {rank:.0%} of the other "
        f"images (chance: 50%)"
    )
    # By chance the rank of an image is uniform, so the mean has this standard deviation.
    e.fits_no_image = rank + 2 / np.sqrt(12 * N) < CHANCE
    if not e.fits_no_image or num_partners < LEAST_PARTNERS * N or AP <= LEAST_AP:
        return None
    # Detections of the same sizes and habits in other places: left is right.
    boxes, width = detections.boxes.copy(), data.sizes[index_of(data, detections.image_ids), 1]
    boxes[:, 0] = width - boxes[:, 0] - boxes[:, 2]
    mirrored = dataclasses.replace(detections, boxes=boxes)
    _, luck = _exchange(data, mirrored, images, _fits(data, mirrored, images))
    if LUCKY * luck >= AP:
        return None
    first = np.argmax(partner >= 0)
    return Finding(
        "wrong images",
        f"Annotations of {data.path} belong to other images: the detections of an image fit its "
        f"own boxes no better than any other's, but in {num_partners} of {N} images those of one "
        f"other (AP {AP:.3f}), such as in {data.file_name(images[first])} those of "
        f"{data.file_name(images[partner[first]])}.",
        "Correct file_name of the images, or image_id of the annotations: files were renamed, or "
        "a list was sorted or has slipped.",
    )


def _fits(data: CocoData, detections: DetectionArrays, images: np.ndarray) -> np.ndarray:
    """(N, N) how well the detections of image i fit the boxes of image j, in [0, 1].

    The mean of two: the IoU of each box with the best of the detections, and the IoU of as many
    detections as there are boxes with the best of those. ``images`` are rows that have both.
    """

    def corners(boxes: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.hstack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]))

    image = images_of(data)
    rows = np.flatnonzero(data.usable & ~data.crowd & np.isin(image, images))  # (G,) by image
    counts = np.bincount(image[rows], minlength=len(data))[images]
    starts = counts.cumsum() - counts
    boxes = corners(data.bbox[rows])  # (G, 4)
    top = top_detections(detections)
    fit = np.zeros((len(images), len(images)))
    for i, image_id in enumerate(data.image_ids[images]):
        mine = np.flatnonzero((detections.image_ids == image_id) & top)
        iou = box_iou(corners(detections.boxes[mine]), boxes).numpy()  # (D, G)
        of_boxes = np.add.reduceat(iou.max(axis=0), starts) / counts
        best = np.maximum.reduceat(iou, starts, axis=1)  # (D, N)
        meant = np.arange(len(mine))[:, None] < counts  # the weaker detections are not meant
        fit[i] = (of_boxes + (best * meant).sum(axis=0) / meant.sum(axis=0)) / 2
    return fit


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
    return np.where(mutual, best, -1), max(score(moved, kept), score_any(moved, kept)[0])


# Classes by other names


def label_map(e: Evidence, data: CocoData) -> Finding | None:
    """Classes by other names: AP rises when they are renamed one to one.

    ``data`` is the ground truth with its boxes as they should be.
    """
    names = data.category_names
    counts = _taken_for(data, e.detections)
    new = _best_names(counts)
    moved = np.flatnonzero(new != np.arange(len(new)))
    moved = moved[np.argsort(-counts[moved, new[moved]], kind="stable")]
    AP = score(dataclasses.replace(data, labels=new[data.labels]), e.detections)
    e.numbers |= {"AP_renamed": AP, "renaming": {names[g]: names[new[g]] for g in moved}}
    if len(moved):
        e.sentences.append(f"classes renamed one to one: AP {AP:.3f}")
    before = e.AP if data is e.data else score(data, e.detections)
    if not _is_clear(counts, new) or max(RENAMED_AP, RENAMED_FACTOR * before) >= AP:
        return None

    # The rule behind the renaming if there is one, else its clearest examples.
    K = len(names)
    by_id = np.argsort(np.argsort(data.category_ids))  # number of every label, by category id
    by_name = np.argsort(np.argsort(names))
    old, renamed = by_id[moved], by_id[new[moved]]
    rule = ""
    if K > 2 and ((renamed - old) % K == 1).all():
        rule = "the category ids are one too low: "
    elif K > 2 and ((renamed - old) % K == K - 1).all():
        rule = "the category ids are one too high: "
    elif len(moved) > 2 and any(
        (renamed == order[moved]).all() for order in (by_name, np.argsort(by_name))
    ):
        rule = "one of them numbers the classes by name: "
    shown = moved[: 1 if rule else 3]
    examples = ", ".join(f"{names[g]!r} is detected as {names[new[g]]!r}" for g in shown)
    more = f", and {len(moved) - len(shown)} more" if len(moved) > len(shown) else ""
    path = e.network.train_path if e.network is not None else None
    against = f"those of {path}" if path else "those that the network was trained on"
    return Finding(
        "label map",
        f"The classes of {data.path} are named otherwise than the network's: {rule}{examples}"
        f"{more}. Renamed one to one, AP is {AP:.3f}.",
        f"Compare its categories, and the category_id of its annotations, with {against}: ids and "
        f"names must mean the same in both. Then evaluate again, or train again if the training "
        f"file is the wrong one.",
    )


def _taken_for(data: CocoData, detections: DetectionArrays) -> np.ndarray:
    """(K, K) objects of class g whose best detection has label k."""
    matched = match_detections(data, detections)
    detection, gt, _ = overlaps(matched, SEEN_IOU)
    order = np.lexsort((-matched.scores[detection], gt))
    gt, first = np.unique(gt[order], return_index=True)
    counts = np.zeros((matched.num_classes,) * 2, dtype=np.int64)
    label = matched.detections.label[detection[order][first]]
    np.add.at(counts, (matched.ground_truth.label[gt], label), 1)
    return counts


def _best_names(counts: np.ndarray) -> np.ndarray:
    """(K,) one-to-one names for the classes of (K, K) counts, the clearest first.

    What is left over keeps its name where it is free.
    """
    K = len(counts)
    new = np.full(K, -1)
    free = np.ones(K, dtype=bool)
    rate = counts / (counts.sum(axis=1, keepdims=True) + SMOOTHING)
    rate += 1e-9 * np.eye(K)  # of equals its own
    for g, k in zip(*np.unravel_index(np.argsort(-rate, axis=None), rate.shape), strict=True):
        if rate[g, k] <= 0:
            break
        if new[g] < 0 and free[k]:
            new[g], free[k] = k, False
    new[new < 0] = np.flatnonzero(free)
    return new


def _is_clear(counts: np.ndarray, new: np.ndarray) -> bool:
    """Whether enough objects say that classes have changed their names, and not only one.

    Where cups are all taken for bowls and there is no bowl, or bowls are bowls, nothing says that
    the names are wrong: the class whose name is taken must be taken for another one too.
    """
    total, own = counts.sum(axis=1), counts.diagonal()
    g = np.arange(len(new))
    taken = counts[g, new]
    lost = (taken > RENAMED_SHARE * (total + SMOOTHING)) & (taken > RENAMED_MORE * own) & (new != g)
    lost &= (2 * own < total)[new]
    return lost.sum() >= LEAST_CLASSES
