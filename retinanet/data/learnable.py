"""Which boxes training learns from, at the size at which it sees the images."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from retinanet.data.coco import BACKWARDS, DROPPED, FLAT, OUTSIDE, CocoData, images_of
from retinanet.data.fields import clip_xywh
from retinanet.data.issues import Issue, raise_refused, refusal
from retinanet.data.transforms import MIN_BOX_SIDE, Augment, is_visible, resized_sizes

VANISHED = f"{DROPPED}a side below {MIN_BOX_SIDE:g} px at the training size"
# Why boxes are dropped -> the fix.
FIXES = {
    BACKWARDS: (
        "`python -m scripts.convert_dataset --from coco --to coco` puts their corners in order."
    ),
    FLAT: "Correct the box, [x, y, width, height], or remove the record.",
    OUTSIDE: "Correct the box, or the width and height of the image, or remove the record.",
    VANISHED: "Raise data.min_size, and data.max_size with it, or cut the images into tiles.",
}
CROWD_FIX = "Set iscrowd to 0 where a box holds one object."
SHARES_FIX = "Multiply x and width by the width of the image, y and height by its height."


def are_shares(bbox: np.ndarray) -> bool:
    """Whether (M, 4) xywh boxes look like shares of the image; false where all are zero."""
    return len(bbox) > 0 and bool(bbox.min() >= 0 and 0 < bbox.max() <= 1)


def visible_boxes(data: CocoData, augment: Augment) -> np.ndarray:
    """(M,) bool: usable boxes that are seen at the largest size that ``augment`` gives images."""
    sizes = data.sizes[images_of(data)]  # (M, 2)
    if not len(sizes):
        return data.usable
    resized = resized_sizes(sizes, augment.min_sizes.max(), augment.max_size, augment.rule)
    factors = resized / sizes * (1.0 if augment.scale is None else augment.scale[1])
    corners = torch.from_numpy(clip_xywh(data.bbox, sizes).astype(np.float32))
    factors = torch.from_numpy(np.tile(factors[:, ::-1], 2).astype(np.float32))
    return data.usable & is_visible(corners * factors).numpy()


def drop_vanishing(data: CocoData, augment: Augment) -> CocoData:
    """The same data without the boxes that training never sees, which ``repairs`` counts.

    Args:
        data: the training set.
        augment: of the training.
    """
    seen = visible_boxes(data, augment) | data.crowd
    vanished = int((data.usable & ~seen).sum())
    if not vanished:
        return data
    repairs = data.repairs | {VANISHED: vanished}
    return dataclasses.replace(data, usable=data.usable & seen, repairs=repairs)


def check_learnable(data: CocoData) -> None:
    """Raise a ValueError for what :func:`learnable_issues` finds."""
    raise_refused(learnable_issues(data))


def learnable_issues(data: CocoData) -> list[Issue]:
    """Refused: a training set, of :func:`drop_vanishing`, that leaves no box to train on."""
    if data.has_objects or not data.annotated:
        return []
    reason, fix = why_no_objects(data)
    error = ValueError(f"{data.path} has no box to train on: {reason}. {fix}")
    kind = "annotations: no box is left to train on"
    return [refusal(kind, [f"{data.path}: {reason}"], error, fix)]


def why_no_objects(data: CocoData) -> tuple[str, str]:
    """What became of all annotations, and the fix for most of them."""
    if are_shares(data.bbox):
        reason = f"every bbox of {len(data.bbox)} lies in [0, 1], as if in shares of the image"
        return reason, SHARES_FIX
    if not len(data.bbox):
        return "it lists no annotation", "Annotate its images, or name the file that has the boxes."
    parts = {
        what: (count, what.removeprefix(DROPPED))
        for what, count in data.repairs.items()
        if what in FIXES
    }
    if data.crowd.any():
        parts["crowd"] = (int(data.crowd.sum()), f"crowd regions (iscrowd 1): {_crowds(data)}")
    reason = "; ".join(
        f"{count} of {len(data.bbox)} annotations: {text}" for count, text in parts.values()
    )
    most = max(parts, key=lambda what: parts[what][0], default=FLAT)
    return reason, FIXES.get(most, CROWD_FIX)


def _crowds(data: CocoData) -> str:
    """Crowd regions of the classes that have most of them."""
    counts = np.bincount(data.labels[data.crowd], minlength=len(data.category_names))
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    more = ", ..." if len(order) > 5 else ""
    return ", ".join(f"{data.category_names[label]} {counts[label]}" for label in order[:5]) + more


def describe_dropped(data: CocoData) -> list[str]:
    """Lines for the log: boxes that training does without, with their share and the fix."""
    total = max(len(data.bbox), 1)
    return [
        f"warning    {count} of {total} boxes ({100 * count / total:.3g} %) are dropped, and their "
        f"places are taught as background: {what.removeprefix(DROPPED)}. {FIXES[what]}"
        for what, count in data.repairs.items()
        if what in FIXES
    ]


def describe_no_ground_truth(data: CocoData) -> list[str]:
    """A warning for the log where validation has no ground truth; else nothing."""
    if data.has_objects:
        return []
    reason, fix = why_no_objects(data)
    return [
        f"warning    {data.path} has no box to be found, so every AP will be n/a or 0: {reason}. "
        f"{fix}"
    ]
