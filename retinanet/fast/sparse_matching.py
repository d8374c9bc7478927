"""The best box of every anchor near one, found without looking at all anchors.

:meth:`retinanet.matching.Matcher._match_all` is the definition; tests hold both equal to the
bit. On a CPU this takes a hundredth of the time for images of COCO's size; a GPU would wait for the
number of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from retinanet.boxes import box_area

# Anchors are rounded to fp32 and windows are not. So windows are widened by this share of a cell,
# and thresholds lowered by this share, or by more where anchors are small and far from the corner.
SLACK = 1e-3
ROUNDING = 2**-20  # of fp32, relative, with room to spare


# Pairs of a box and an anchor held at once, each with its corners and indices: 100 bytes and more.
MAX_PAIRS = 2**21


def best_boxes_near(
    anchors: Tensor,
    boxes: Tensor,
    real: Tensor,
    windows: AnchorWindows,
    floor: float,
    low_quality: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """The box that every anchor overlaps most, of the anchors for which it can matter.

    Args:
        anchors: (A, 4) in pixels.
        boxes: (B, G, 4) in pixels, padded.
        real: (B, G) bool, false where padded.
        windows: of the same anchors.
        floor: every anchor with at least this IoU is among those returned.
        low_quality: so are the best anchors of every box.

    Returns:
        Q anchors: (Q,) place in B * A, (Q,) highest IoU, (Q,) index of its box, and (Q,) whether
        a box has no better anchor. None where there are more pairs than ``MAX_PAIRS``.
    """
    G, A = real.shape[1], len(anchors)
    image, number = real.nonzero(as_tuple=True)  # (N,) boxes of all images, in order
    boxes_of = boxes[image, number]  # (N, 4)
    floors = boxes.new_full((len(image),), floor)
    if low_quality:
        # The best anchor of a box overlaps it at least as much as those next to its center.
        near = windows.nearest(boxes_of)  # (N, S)
        floors = floors.minimum(_iou(boxes_of[:, None], anchors[near]).amax(dim=1))
    pair, anchor = windows.reached(boxes_of, floors, MAX_PAIRS)  # (P,) of N, (P,) of A
    if pair is None:
        return None
    iou = _iou(boxes_of[pair], anchors[anchor])
    place, row = torch.unique(image[pair] * A + anchor, return_inverse=True)  # (Q,) of B * A

    best_iou = iou.new_zeros(len(place)).scatter_reduce_(0, row, iou, "amax")  # (Q,)
    first = torch.where(iou == best_iou[row], number[pair], G)  # of equal ones the first
    best_box = number.new_full((len(place),), G).scatter_reduce_(0, row, first, "amin")
    forced = torch.zeros(len(place), dtype=torch.bool)
    if low_quality:
        top = iou.new_zeros(len(image)).scatter_reduce_(0, pair, iou, "amax")  # (N,)
        chosen = row[(iou == top[pair]) & (iou > 0)].unique()  # (F,) of Q
        forced[chosen] = True
        # They take the box that they overlap most, however little that is.
        for part in chosen.split(max(1, MAX_PAIRS // G)):
            of_image = place[part] // A
            overlap = _iou(boxes[of_image], anchors[place[part] % A][:, None])  # (F, G)
            best_iou[part], best_box[part] = (overlap * real[of_image]).max(dim=1)
    return place, best_iou, best_box, forced


def _iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(...) IoU of (..., 4) boxes with (..., 4) anchors; the bits of the dense computation."""
    low = torch.maximum(boxes[..., :2], anchors[..., :2])
    sides = (torch.minimum(boxes[..., 2:], anchors[..., 2:]) - low).clamp_(min=0)
    shared = sides[..., 0] * sides[..., 1]
    return shared / (box_area(boxes) + box_area(anchors) - shared)


class AnchorGrid(NamedTuple):
    """Where the anchors of one shape on one level lie: one in each cell."""

    first: int  # index of the one in the first cell
    step: int  # from one cell to the next
    rows: int
    columns: int
    strides: tuple[float, float]  # y and x, pixels
    center: tuple[float, float]  # y and x of the first, pixels
    size: tuple[float, float]  # height and width, pixels


class AnchorWindows:
    """Finds, for boxes, the anchors of a regular grid that may overlap them enough.

    For an anchor and a box of known sides an IoU of t needs an intersection of t / (1 + t) of the
    sum of both areas, and that needs centers that are not too far apart: in each grid a window of
    cells, mostly an empty one.
    """

    def __init__(self, grids: Sequence[AnchorGrid]) -> None:
        """Keep the grids as columns of S numbers."""
        first, step, rows, columns, strides, center, size = zip(*grids, strict=True)
        self.first, self.step = torch.tensor(first), torch.tensor(step)  # (S,)
        self.cells = torch.tensor([rows, columns]).T  # (S, 2), y and x, as all that follows
        self.strides = torch.tensor(strides, dtype=torch.float64)
        self.center = torch.tensor(center, dtype=torch.float64)
        self.size = torch.tensor(size, dtype=torch.float64)
        farthest = (self.center + self.strides * self.cells + self.size).max()  # pixels
        self.slack = float((ROUNDING * farthest / self.size.min()).clamp(min=SLACK, max=1))

    def nearest(self, boxes: Tensor) -> Tensor:
        """(N, S) index of the anchor of each grid next to the center of each of (N, 4) boxes."""
        center, _ = _center_and_size(boxes)
        cell = ((center - self.center) / self.strides).round().long()  # (N, S, 2)
        cell = cell.clamp(min=0).minimum(self.cells - 1)
        return self._index(cell, torch.arange(len(self.first)))

    def reached(
        self, boxes: Tensor, floor: Tensor, most: int
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """All anchors that overlap a box with an IoU of at least ``floor``, and some others.

        Args:
            boxes: (N, 4) in pixels.
            floor: (N,) in [0, 1].
            most: pairs to return.

        Returns:
            P pairs, (P,) index of the box, not decreasing, and (P,) index of the anchor; or twice
            None where there are more than ``most``.
        """
        center, size = _center_and_size(boxes)
        floor = floor.double()[:, None] * (1 - self.slack)
        area = size.prod(dim=-1) + self.size.prod(dim=-1)  # (N, S)
        shared = floor / (1 + floor) * area  # the least that must be shared
        least = torch.minimum(size, self.size)  # (N, S, 2), the longest sides that can be shared
        # Sharing all of the height, they must share this much of the width; and the other way.
        sides = shared[..., None] / least.flip(-1)
        reach = (0.5 * (size + self.size) - sides) / self.strides + self.slack  # (N, S, 2), cells
        place = (center - self.center) / self.strides
        low = (place - reach).ceil().long().clamp(min=0)
        high = (place + reach).floor().long().minimum(self.cells - 1)
        extent = (high - low + 1).clamp(min=0)  # (N, S, 2)
        fits = (shared <= least.prod(dim=-1)) & (area > self.size.prod(dim=-1))  # not an empty box
        extent = extent.where(fits[..., None], 0)
        count = extent.prod(dim=-1).flatten()  # (N * S,) cells of each window
        if count.sum() > most:
            return None, None

        window = torch.repeat_interleave(count)  # (P,) of N * S
        N, S = area.shape
        place = torch.arange(len(window)) - (count.cumsum(0) - count)[window]
        columns = extent[..., 1].flatten()[window]
        inside = torch.stack([place // columns, place % columns], dim=-1)  # (P, 2)
        cell = low.reshape(N * S, 2)[window] + inside
        return window // S, self._index(cell, window % S)

    def _index(self, cell: Tensor, grid: Tensor) -> Tensor:
        """Index among all anchors of the one in a cell, (..., 2), of a grid, (...)."""
        place = cell[..., 0] * self.cells[grid, 1] + cell[..., 1]
        return self.first[grid] + place * self.step[grid]


def _center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Of (N, 4) boxes, (N, 1, 2) each, y and x, fp64."""
    low, high = boxes.double()[:, [1, 0]], boxes.double()[:, [3, 2]]
    return (0.5 * (low + high))[:, None], (high - low)[:, None]
