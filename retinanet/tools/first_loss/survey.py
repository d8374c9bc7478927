"""What the network will be shown: counted before the first step, from annotations alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from retinanet.data.coco import CocoData
from retinanet.data.loader import padded_size
from retinanet.data.transforms import is_visible, resized_size
from retinanet.matching import NEGATIVE, Matcher
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.anchor_coverage import Objects, best_overlaps

# Images whose anchors are matched for the survey; spread evenly over the data set.
SAMPLED_IMAGES = 100
# Classes that a line of the log names.
SHOWN_CLASSES = 8


@dataclass(frozen=True, slots=True)
class Survey:
    """Counts over a training set; what concerns anchors is from a sample of its images."""

    num_images: int
    num_empty: int  # without a usable box
    num_boxes: int  # usable, crowd regions left out
    num_crowds: int
    class_counts: tuple[int, ...]  # boxes of every class
    anchors: float  # mean per image
    positives: float  # mean per image
    background: float  # mean per image
    uncovered: float  # share of boxes without an anchor of at least matching.positive_iou


def survey(
    data: CocoData,
    generator: AnchorGenerator,
    matcher: Matcher,
    *,
    min_size: int,
    max_size: int,
    keep_empty: bool = True,
) -> Survey:
    """Count images, boxes and anchors at the training size.

    Args:
        data: the training set.
        generator: makes the anchors.
        matcher: assigns them.
        min_size: shorter side after resizing, pixels.
        max_size: bound of the longer side, pixels.
        keep_empty: also images without a box are trained on.
    """
    images = np.arange(len(data)) if keep_empty else np.flatnonzero(data.num_boxes())
    sampled = images[np.unique(np.linspace(0, len(images) - 1, SAMPLED_IMAGES).astype(int))]
    rows = []  # anchors, boxes, positives, background, boxes without a good anchor
    for index in sampled:
        height, width = map(int, data.sizes[index])
        resized = resized_size(height, width, min_size, max_size)
        padded = padded_size(resized).tolist()
        anchors = generator(*padded)
        factors = torch.tensor([resized[1] / width, resized[0] / height] * 2, dtype=torch.float32)
        boxes, labels = data.boxes(index)
        boxes = boxes * factors
        seen = is_visible(boxes)
        boxes, labels = boxes[seen], labels[seen]
        crowds = data.crowds(index) * factors
        windows = generator.windows(*padded)
        match = matcher(anchors, boxes[None], labels[None], crowds[None], windows)
        sizes = torch.tensor([padded]).expand(len(boxes), 2)
        best = best_overlaps(Objects(boxes, sizes, labels), generator)
        positives, background = match.label >= 0, match.label == NEGATIVE
        uncovered = best < matcher.positive_iou
        counts = (int(mask.sum()) for mask in (positives, background, uncovered))
        rows.append((len(anchors), len(boxes), *counts))
    anchors, boxes, positives, background, uncovered = np.sum(rows, axis=0, dtype=float)
    usable = data.usable & ~data.crowd
    classes = np.bincount(data.labels[usable], minlength=len(data.category_names))
    return Survey(
        num_images=len(data),
        num_empty=int((data.num_boxes() == 0).sum()),
        num_boxes=int(usable.sum()),
        num_crowds=int(data.crowd.sum()),
        class_counts=tuple(classes.tolist()),
        anchors=anchors / len(sampled),
        positives=positives / len(sampled),
        background=background / len(sampled),
        uncovered=uncovered / boxes if boxes else 0.0,
    )


def describe_survey(counts: Survey, class_names: tuple[str, ...]) -> list[str]:
    """Lines for the log: images, classes, anchors, and boxes that these do not cover.

    Args:
        counts: counts of the training set.
        class_names: K.
    """
    classes = sorted(zip(counts.class_counts, class_names, strict=True), reverse=True)
    shown = ", ".join(f"{name} {count}" for count, name in classes[:SHOWN_CLASSES])
    more = f", and {len(classes) - SHOWN_CLASSES} more" if len(classes) > SHOWN_CLASSES else ""
    ignored = counts.anchors - counts.positives - counts.background
    lines = [
        f"images     {counts.num_images} ({counts.num_empty} without objects), "
        f"{counts.num_boxes} boxes, {counts.num_crowds} crowd regions",
        f"classes    {len(classes)}: {shown}{more}",
        f"anchors    {counts.anchors:.0f} per image: {counts.positives:.1f} positives, "
        f"{ignored:.1f} ignored, the rest background",
        f"coverage   {100 * counts.uncovered:.1f} % of the boxes have no anchor with enough "
        f"overlap at the training size",
    ]
    without = [name for count, name in classes if count == 0]
    if without:
        more = ", ..." if len(without) > SHOWN_CLASSES else ""
        shown = ", ".join(without[:SHOWN_CLASSES]) + more
        lines.append(f"warning    {len(without)} classes have no box to learn from: {shown}")
    return lines
