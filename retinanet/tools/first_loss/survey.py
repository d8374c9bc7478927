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
    usable = data.usable & ~data.crowd
    images = np.arange(len(data)) if keep_empty else np.flatnonzero(data.num_boxes())
    sampled = images[np.unique(np.linspace(0, len(images) - 1, SAMPLED_IMAGES).astype(int))]
    rows = [_match_image(data, i, generator, matcher, min_size, max_size) for i in sampled]
    anchors, positives, background, boxes, uncovered = np.array(rows, dtype=float).sum(axis=0)
    return Survey(
        num_images=len(data),
        num_empty=int((data.num_boxes() == 0).sum()),
        num_boxes=int(usable.sum()),
        num_crowds=int(data.crowd.sum()),
        class_counts=tuple(
            np.bincount(data.labels[usable], minlength=len(data.category_names)).tolist()
        ),
        anchors=anchors / len(sampled),
        positives=positives / len(sampled),
        background=background / len(sampled),
        uncovered=uncovered / boxes if boxes else 0.0,
    )


def _match_image(
    data: CocoData,
    index: int,
    generator: AnchorGenerator,
    matcher: Matcher,
    min_size: int,
    max_size: int,
) -> tuple[int, int, int, int, int]:
    """Numbers of anchors, positives, background, boxes, and boxes without a good anchor."""
    height, width = map(int, data.sizes[index])
    resized = resized_size(height, width, min_size, max_size)
    padded = padded_size(resized).tolist()
    anchors, windows = generator(*padded), generator.windows(*padded)
    factors = torch.tensor([resized[1] / width, resized[0] / height] * 2, dtype=torch.float32)
    boxes, labels = data.boxes(index)
    boxes = boxes * factors
    seen = is_visible(boxes)
    boxes, labels = boxes[seen], labels[seen]
    crowds = data.crowds(index) * factors
    match = matcher(anchors, boxes[None], labels[None], crowds[None], windows)
    sizes = torch.tensor([padded]).expand(len(boxes), 2)
    best = best_overlaps(Objects(boxes, sizes, labels), generator)
    return (
        len(anchors),
        int((match.label >= 0).sum()),
        int((match.label == NEGATIVE).sum()),
        len(boxes),
        int((best < matcher.positive_iou).sum()),
    )


def describe(found: Survey, class_names: tuple[str, ...]) -> list[str]:
    """The survey as lines for the log."""
    counts = sorted(zip(found.class_counts, class_names, strict=True), reverse=True)
    shown = ", ".join(f"{name} {count}" for count, name in counts[:8])
    more = f", and {len(counts) - 8} more" if len(counts) > 8 else ""
    lines = [
        f"images     {found.num_images} ({found.num_empty} without objects), "
        f"{found.num_boxes} boxes, {found.num_crowds} crowd regions",
        f"classes    {len(counts)}: {shown}{more}",
        f"anchors    {found.anchors:.0f} per image: {found.positives:.1f} positives, "
        f"{found.anchors - found.positives - found.background:.1f} ignored, the rest background",
        f"coverage   {100 * found.uncovered:.1f} % of the boxes have no anchor with enough "
        f"overlap at the training size",
    ]
    without = [name for count, name in counts if count == 0]
    if without:
        shown = ", ".join(without[:8]) + (", ..." if len(without) > 8 else "")
        lines.append(f"warning    {len(without)} classes have no box to learn from: {shown}")
    return lines
