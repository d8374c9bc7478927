"""Which boxes the anchors reach, and which anchors or image size would reach them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from retinanet.analysis.overlaps import image_rows
from retinanet.boxes import box_iou
from retinanet.data.batches import padded_size
from retinanet.data.coco import CocoData
from retinanet.data.transforms import resized_size
from retinanet.model.anchors import AnchorGenerator

# Images whose boxes are compared with anchors, spread evenly.
SAMPLED_IMAGES = 40
# Boxes whose overlaps with all anchors are held at once.
CHUNK = 64
# What is tried in the place of anchors.sizes: an octave or more up and down.
FACTORS = (0.0625, 0.125, 0.25, 0.5, 2.0, 4.0)
# Share of the boxes without a good anchor from which on anchors explain a failure. A run in which
# 29 % had none learned its images by heart, thanks to matching.low_quality.
MANY = 0.5


class Reach(NamedTuple):
    """Boxes of a sample of images, in pixels of the resized image, beside the anchors."""

    num_images: int
    num_boxes: int
    uncovered: float  # share without an anchor of matching.positive_iou
    background: float  # share without an anchor of matching.negative_iou
    side: float  # median of sqrt(width * height), pixels
    anchors: tuple[float, float]  # smallest and largest side of an anchor, pixels
    better_sizes: list[float] | None  # anchors.sizes that reach more
    better_uncovered: float  # share without a good anchor then


def find_reach(
    data: CocoData,
    image_ids: np.ndarray,
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
        image_ids: the evaluated images.
        generator: makes the anchors.
        min_size: shorter side after resizing, pixels.
        max_size: bound of the longer side, pixels.
        positive_iou: an anchor with at least this IoU is positive.
        negative_iou: below it is background.

    Returns:
        None where the sample has no box.
    """
    rows = image_rows(data, image_ids)
    rows = rows[data.num_boxes()[rows] > 0]
    if not len(rows):
        return None
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLED_IMAGES).astype(int))]
    resized = [_resized(data, int(i), min_size, max_size) for i in rows]
    best = _best_ious(resized, generator)
    uncovered = float((best < positive_iou).mean())
    sides = torch.cat([boxes for boxes, _ in resized])
    sides = (sides[:, 2:] - sides[:, :2]).prod(dim=1).sqrt()
    sizes, least = None, uncovered
    for factor in FACTORS if uncovered >= MANY else ():
        tried = [size * factor for size in generator.sizes]
        share = float((_best_ious(resized, _with_sizes(generator, tried)) < positive_iou).mean())
        if share < least:
            sizes, least = tried, share
    scales = generator.scales
    return Reach(
        len(rows),
        len(best),
        uncovered,
        float((best < negative_iou).mean()),
        float(sides.median()),
        (min(generator.sizes) * min(scales), max(generator.sizes) * max(scales)),
        sizes,
        least,
    )


def _resized(
    data: CocoData, index: int, min_size: int, max_size: int
) -> tuple[Tensor, tuple[int, int]]:
    """Boxes of one image at the size of the network, and its padded size."""
    height, width = map(int, data.sizes[index])
    size = resized_size(height, width, min_size, max_size)
    boxes, _ = data.boxes(index)
    factors = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float32)
    return boxes * factors, tuple(padded_size(size).tolist())


def _best_ious(
    resized: Sequence[tuple[Tensor, tuple[int, int]]], generator: AnchorGenerator
) -> np.ndarray:
    """(G,) IoU of every box with its best anchor."""
    best = [
        box_iou(part, generator(*padded)).amax(dim=1)
        for boxes, padded in resized
        for part in boxes.split(CHUNK)
        if len(part)
    ]
    return torch.cat(best).numpy()


def _with_sizes(generator: AnchorGenerator, sizes: Sequence[float]) -> AnchorGenerator:
    """Anchors of other sizes, else the same."""
    return AnchorGenerator(
        sizes=sizes,
        scales=generator.scales,
        ratios=generator.ratios,
        offset=generator.offset,
        rounding="torchvision" if generator.rounded else "none",
    )
