"""How well anchors fit the objects of a data set: the best overlap of each, without making all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from retinanet.boxes import box_area, box_iou
from retinanet.data.coco import CocoData, clip_xywh, images_of
from retinanet.data.loader import padded_size
from retinanet.data.transforms import is_visible, resized_sizes
from retinanet.model.anchors import STRIDES, AnchorGenerator, grid_sizes

# Areas in pixels at which medium and large boxes begin: COCO's.
SIZE_BOUNDS = (32**2, 96**2)
SIZE_NAMES = ("small", "medium", "large")
# Boxes whose overlaps are computed at once: 45 anchors each, some 100 MiB.
CHUNK = 1 << 14


class Objects(NamedTuple):
    """Objects as the network will be shown them."""

    boxes: Tensor  # (N, 4) float32, pixels of the resized image
    padded: Tensor  # (N, 2) int64, height and width of their padded image
    labels: Tensor  # (N,) int64

    def spread(self, most: int) -> Objects:
        """At most so many of them, evenly spread."""
        count = len(self.boxes)
        rows = torch.arange(min(most, count)) * count // max(min(most, count), 1)
        return Objects(*(column[rows] for column in self))


def objects_at(data: CocoData, *, min_size: int, max_size: int) -> Objects:
    """The boxes that are seen of a data set at the training size, crowd regions left out.

    Args:
        data: whose.
        min_size: shorter side after resizing, pixels.
        max_size: bound of the longer side, pixels.
    """
    counted = data.usable & ~data.crowd
    sizes = data.sizes[images_of(data)[counted]]  # (N, 2)
    resized = resized_sizes(sizes, min_size, max_size) if len(sizes) else sizes
    factors = torch.from_numpy(np.tile((resized / sizes)[:, ::-1], 2).astype(np.float32))
    corners = clip_xywh(data.bbox[counted], sizes).astype(np.float32)
    boxes = torch.from_numpy(corners) * factors
    seen = is_visible(boxes)
    return Objects(
        boxes[seen],
        torch.from_numpy(padded_size(resized)).long()[seen],
        torch.from_numpy(data.labels[counted])[seen],
    )


def size_counts(objects: Objects) -> tuple[int, ...]:
    """Small, medium and large objects by COCO's bounds, in pixels of the resized image."""
    return tuple(torch.bincount(_size_of(objects), minlength=len(SIZE_NAMES)).tolist())


def _size_of(objects: Objects) -> Tensor:
    """(N,) which of ``SIZE_NAMES`` each object is."""
    bounds = torch.tensor(SIZE_BOUNDS, dtype=torch.float32)
    return torch.bucketize(box_area(objects.boxes), bounds, right=True)


def best_overlaps(objects: Objects, generator: AnchorGenerator) -> Tensor:
    """(N,) IoU of each object with the anchor that overlaps it most.

    Of all anchors of one shape the one whose center is next to that of the box overlaps it most,
    so one for each shape is enough; the numbers are those of all anchors of the padded image.
    """
    best = objects.boxes.new_zeros(len(objects.boxes))
    for start in range(0, len(best), CHUNK):
        boxes, padded, _ = (column[start : start + CHUNK] for column in objects)
        center = 0.5 * (boxes[:, :2] + boxes[:, 2:]).double()[:, None]  # (N, 1, 2)
        grids = grid_sizes(padded[:, 0], padded[:, 1])
        for size, stride, grid in zip(generator.sizes, STRIDES, grids, strict=True):
            cells = torch.stack(grid, dim=1)[:, None]  # (N, 1, 2) rows, columns
            rounded = generator.rounded
            strides = padded[:, None] // cells if rounded else torch.full_like(cells, stride)
            cells, strides = cells.flip(-1), strides.flip(-1).double()  # x, y
            shapes = generator.cell_anchors(size)  # (a, 4)
            middle = 0.5 * (shapes[:, :2] + shapes[:, 2:])  # (a, 2)
            cell = (center - middle) / strides - generator.offset  # (N, a, 2)
            cell = cell.round().clamp(min=0).minimum(cells - 1)
            shift = (cell + generator.offset) * strides
            anchors = (shapes + shift.repeat(1, 1, 2)).float()  # (N, a, 4)
            iou = box_iou(boxes[:, None], anchors)[:, 0].amax(dim=1)
            best[start : start + CHUNK] = torch.maximum(best[start : start + CHUNK], iou)
    return best


@dataclass(frozen=True, slots=True)
class Share:
    """Of some objects those without a good anchor."""

    num_boxes: int
    num_uncovered: int

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % of {self.num_boxes}"

    @property
    def share(self) -> float:
        """In [0, 1]; 0 without any object."""
        return self.num_uncovered / max(self.num_boxes, 1)


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many objects have no anchor with enough overlap."""

    all: Share
    sizes: tuple[Share, ...]  # small, medium, large
    classes: tuple[Share, ...]  # in the order of labels


def cover(
    objects: Objects, generator: AnchorGenerator, positive_iou: float, num_classes: int
) -> Coverage:
    """Count the objects without an anchor of IoU ``positive_iou`` or more.

    Args:
        objects: the objects.
        generator: makes the anchors.
        positive_iou: of the matcher.
        num_classes: K.
    """
    uncovered = best_overlaps(objects, generator) < positive_iou  # (N,)

    def shares(group: Tensor, count: int) -> tuple[Share, ...]:
        totals = torch.bincount(group, minlength=count).tolist()
        lost = torch.bincount(group[uncovered], minlength=count).tolist()
        return tuple(map(Share, totals, lost))

    return Coverage(
        Share(len(uncovered), int(uncovered.sum())),
        shares(_size_of(objects), len(SIZE_NAMES)),
        shares(objects.labels, num_classes),
    )
