"""What the network will be shown: counted before the first step, from annotations alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from retinanet.boxes import box_iou
from retinanet.data.batches import padded_size
from retinanet.data.coco import CocoData, images_of
from retinanet.data.fields import clip_xywh
from retinanet.data.transforms import resized_size, resized_sizes
from retinanet.matching import NEGATIVE, Matcher
from retinanet.model.anchors import AnchorGenerator

# Images whose anchors are matched for the survey; spread evenly over the data set.
SAMPLED_IMAGES = 100
# Areas in pixels at which medium and large boxes begin: COCO's.
SIZE_BOUNDS = (32**2, 96**2)
# Boxes whose overlaps with all anchors are held at once.
CHUNK = 64


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
    crowds = data.crowds(index) * factors
    match = matcher(anchors, boxes[None], labels[None], crowds[None], windows)
    # In parts: a crowded image has more overlaps than memory.
    best = [box_iou(part, anchors).amax(dim=1) for part in boxes.split(CHUNK) if len(part)]
    return (
        len(anchors),
        int((match.label >= 0).sum()),
        int((match.label == NEGATIVE).sum()),
        len(boxes),
        sum(int((part < matcher.positive_iou).sum()) for part in best),
    )


def size_counts(data: CocoData, *, min_size: int, max_size: int) -> tuple[int, int, int]:
    """Small, medium and large boxes by COCO's bounds, in pixels of the resized image.

    Args:
        data: whose usable boxes are counted, crowd regions left out.
        min_size: shorter side after resizing, pixels.
        max_size: bound of the longer side, pixels.
    """
    counted = data.usable & ~data.crowd
    sizes = data.sizes[images_of(data)[counted]]  # (M, 2)
    if not len(sizes):
        return 0, 0, 0
    corners = clip_xywh(data.bbox[counted], sizes)
    factors = resized_sizes(sizes, min_size, max_size) / sizes
    area = ((corners[:, 2:] - corners[:, :2]) * factors[:, ::-1]).prod(axis=1)
    small, medium, large = np.bincount(np.digitize(area, SIZE_BOUNDS), minlength=3).tolist()
    return small, medium, large


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
