"""Which boxes the anchors reach, and which anchors would reach more."""

from __future__ import annotations

from typing import NamedTuple

from retinanet.boxes import box_area
from retinanet.data.coco import CocoData
from retinanet.model.anchors import AnchorGenerator
from retinanet.tools.anchor_coverage import best_overlaps, objects_at
from retinanet.tools.anchor_search import Proposal, propose_anchors

# Share of the boxes without a good anchor from which on anchors explain a failure. A run in which
# 29 % had none learned its images by heart, thanks to matching.low_quality.
MANY = 0.5


class Reach(NamedTuple):
    """Boxes in pixels of the resized image, beside the anchors."""

    num_boxes: int
    uncovered: float  # share without an anchor of matching.positive_iou
    background: float  # share without an anchor of matching.negative_iou
    side: float  # median of sqrt(width * height), pixels
    anchors: tuple[float, float]  # smallest and largest side of an anchor, pixels
    proposals: tuple[Proposal, ...]  # anchors that reach more


def find_reach(
    data: CocoData,
    generator: AnchorGenerator,
    *,
    min_size: int,
    max_size: int,
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
) -> Reach | None:
    """Compare boxes and anchors at the size of the network.

    Args:
        data: the ground truth.
        generator: makes the anchors.
        min_size: shorter side after resizing, pixels.
        max_size: bound of the longer side, pixels.
        positive_iou: an anchor with at least this IoU is positive.
        negative_iou: below it is background.

    Returns:
        None without any box.
    """
    found = objects_at(data, min_size=min_size, max_size=max_size)
    if not len(found.boxes):
        return None
    best = best_overlaps(found, generator)
    uncovered = float((best < positive_iou).float().mean())
    many = uncovered >= MANY
    scales = generator.scales
    return Reach(
        num_boxes=len(best),
        uncovered=uncovered,
        background=float((best < negative_iou).float().mean()),
        side=float(box_area(found.boxes).sqrt().median()),
        anchors=(min(generator.sizes) * min(scales), max(generator.sizes) * max(scales)),
        proposals=tuple(propose_anchors(found, generator, positive_iou, uncovered) if many else ()),
    )
