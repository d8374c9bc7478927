"""The best box of every anchor near one, found without looking at all anchors.

:meth:`retinanet.matching.Matcher._match_all` is the definition; tests hold both equal to the
bit. On a CPU this takes a hundredth of the time for images of COCO's size; a GPU would wait for the
number of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None:
    """The box that every anchor overlaps most, of the anchors for which it can matter.

    Args:
        anchors: (A, 4) in pixels.
        boxes: (B, G, 4) in pixels, padded.
        real: (B, G) bool, false where padded.
        windows: of the same anchors.
        floor: every anchor with at least this IoU is among those returned.
        low_quality: so are the best anchors of every box.

    Returns:
        Q anchors: (Q,) index of the image, (Q,) of the anchor, (Q,) highest IoU, (Q,) index of its
        box, and (Q,) whether a box has no better anchor. None where there are more pairs than
        ``MAX_PAIRS``.
    """
    G, A = real.shape[1], len(anchors)
    image, number = real.nonzero(as_tuple=True)  # (N,) boxes of all images, in order
    boxes_of = boxes[image, number]  # (N, 4)
    floors = boxes.new_full((len(image),), floor)
    if low_quality:
        # The best anchor of a box overlaps it at least as much as those next to its center.
        near = windows.nearest(boxes_of)  # (N, S)
        floors = floors.minimum(_iou(boxes_of[:, None], anchors[near]).amax(dim=1))
    pairs = windows.reached(boxes_of, floors, MAX_PAIRS)
    if pairs is None:
        return None
    pair, anchor = pairs  # (P,) of N, (P,) of A
    iou = _iou(boxes_of[pair], anchors[anchor])
    index, row = torch.unique(image[pair] * A + anchor, return_inverse=True)  # (Q,) of B * A

    best_iou = iou.new_zeros(len(index)).scatter_reduce_(0, row, iou, "amax")  # (Q,)
    first = torch.where(iou == best_iou[row], number[pair], G)  # of equal ones the first
    best_box = number.new_full((len(index),), G).scatter_reduce_(0, row, first, "amin")
    forced = torch.zeros(len(index), dtype=torch.bool)
    image_of, anchor_of = index // A, index % A
    if low_quality:
        top = iou.new_zeros(len(image)).scatter_reduce_(0, pair, iou, "amax")  # (N,)
        chosen = row[(iou == top[pair]) & (iou > 0)].unique()  # (F,) of Q
        forced[chosen] = True
        # They take the box that they overlap most, however little that is.
        for part in chosen.split(max(1, MAX_PAIRS // G)):
            overlap = _iou(boxes[image_of[part]], anchors[anchor_of[part]][:, None])  # (F, G)
            best_iou[part], best_box[part] = (overlap * real[image_of[part]]).max(dim=1)
    return image_of, anchor_of, best_iou, best_box, forced


def _iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(...) IoU of (..., 4) boxes with (..., 4) anchors; the bits of the dense computation."""
    low = torch.maximum(boxes[..., :2], anchors[..., :2])
    sides = (torch.minimum(boxes[..., 2:], anchors[..., 2:]) - low).clamp_(min=0)
    shared = sides[..., 0] * sides[..., 1]
    return shared / (box_area(boxes) + box_area(anchors) - shared)


class AnchorWindows:
    """Finds, for boxes, the anchors of a regular grid that may overlap them enough.

    For an anchor and a box of known sides an IoU of t needs an intersection of t / (1 + t) of the
    sum of both areas, and that needs centers that are not too far apart: for each of the S shapes
    of anchors, a of L levels, a window of cells, mostly an empty one. Pairs are y and x, in pixels.
    """

    def __init__(
        self,
        shapes: Tensor,
        grids: Sequence[tuple[int, int]],
        strides: Sequence[tuple[int, int]],
        offset: float,
    ) -> None:
        """Where the anchors of each shape lie: one in each cell of its level.

        Args:
            shapes: (L, a, 4) anchors of the cell at the origin, pixels, fp64.
            grids: rows and columns of each level.
            strides: of y and x on each level, pixels.
            offset: center of the first cell of a level, in its strides.
        """
        cells, self.step = torch.tensor(grids), shapes.shape[1]
        end = cells.prod(dim=1).cumsum(dim=0) * self.step  # (L,) anchors up to the level's last
        first = torch.cat([end.new_zeros(1), end[:-1]])[:, None] + torch.arange(self.step)
        self.first = first.flatten()  # (S,) index of the anchor in the first cell
        self.cells = cells.repeat_interleave(self.step, dim=0)  # (S, 2)
        self.strides = torch.tensor(strides).double().repeat_interleave(self.step, dim=0)
        center, self.size = _center_and_size(shapes.flatten(0, 1))  # (S, 2)
        self.center = offset * self.strides + center
        farthest = (self.center + self.strides * self.cells + self.size).max()
        self.slack = float((ROUNDING * farthest / self.size.min()).clamp(min=SLACK, max=1))

    def nearest(self, boxes: Tensor) -> Tensor:
        """(N, S) index of the anchor of each shape next to the center of each of (N, 4) boxes."""
        center = _center_and_size(boxes)[0][:, None]  # (N, 1, 2)
        cell = ((center - self.center) / self.strides).round().long()  # (N, S, 2)
        cell = cell.clamp(min=0).minimum(self.cells - 1)
        return self._index(cell, torch.arange(len(self.first)))

    def reached(self, boxes: Tensor, floor: Tensor, most: int) -> tuple[Tensor, Tensor] | None:
        """All anchors that overlap a box with an IoU of at least ``floor``, and some others.

        Args:
            boxes: (N, 4) in pixels.
            floor: (N,) in [0, 1].
            most: pairs to return.

        Returns:
            P pairs, (P,) index of the box, not decreasing, and (P,) index of the anchor; None
            where there are more than ``most``.
        """
        center, size = (part[:, None] for part in _center_and_size(boxes))  # (N, 1, 2)
        floor = floor.double()[:, None] * (1 - self.slack)
        area = size.prod(dim=-1) + self.size.prod(dim=-1)  # (N, S)
        shared = floor / (1 + floor) * area  # the least that must be shared
        least = torch.minimum(size, self.size)  # (N, S, 2), the longest sides that can be shared
        # Sharing all of the height, they must share this much of the width; and the other way.
        sides = shared[..., None] / least.flip(-1)
        reach = (0.5 * (size + self.size) - sides) / self.strides + self.slack  # (N, S, 2), cells
        cell = (center - self.center) / self.strides
        low = (cell - reach).ceil().long().clamp(min=0)
        high = (cell + reach).floor().long().minimum(self.cells - 1)
        extent = (high - low + 1).clamp(min=0)  # (N, S, 2)
        fits = (shared <= least.prod(dim=-1)) & (area > self.size.prod(dim=-1))  # not an empty box
        extent = extent.where(fits[..., None], 0)
        count = extent.prod(dim=-1).flatten()  # (N * S,) cells of each window
        if count.sum() > most:
            return None

        window = torch.repeat_interleave(count)  # (P,) of N * S
        within = torch.arange(len(window)) - (count.cumsum(0) - count)[window]
        columns = extent[..., 1].flatten()[window]
        inside = torch.stack([within // columns, within % columns], dim=-1)  # (P, 2)
        S = len(self.first)
        return window // S, self._index(low.flatten(0, 1)[window] + inside, window % S)

    def _index(self, cell: Tensor, shape: Tensor) -> Tensor:
        """Index among all anchors of the one in a cell, (..., 2), of a shape, (...)."""
        return self.first[shape] + self.step * (cell[..., 0] * self.cells[shape, 1] + cell[..., 1])


def _center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Of (N, 4) boxes, (N, 2) each, y and x, fp64."""
    low, high = boxes.double()[:, [1, 0]], boxes.double()[:, [3, 2]]
    return 0.5 * (low + high), high - low
