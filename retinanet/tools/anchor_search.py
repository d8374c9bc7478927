"""Anchors, or a training size, that fit the objects of a data set better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from retinanet.checks import value_text
from retinanet.model.anchors import STRIDES, AnchorGenerator
from retinanet.tools.anchor_coverage import Objects, best_overlaps

# The settings that may change.
SEARCHED = ("sizes", "scales", "ratios")
# What is tried: the side of the smallest square anchor in pixels, and the factor from one level
# to the next, over which the scales are spread.
SMALLEST = (4, 6, 8, 12, 16, 24, 32, 48, 64)
FACTORS = (1.5, 2.0, 2.5, 3.0)
NUM_SCALES = (3, 4)
# Shares of the boxes below the three, or the five, ratios that are fitted to them.
QUANTILES = ((1 / 6, 1 / 2, 5 / 6), (0.1, 0.3, 0.5, 0.7, 0.9))
WIDE_RATIOS = (0.33, 0.5, 1.0, 2.0, 3.0)
# Sizes of image that are tried, as factors of data.min_size.
ENLARGEMENTS = (1.25, 1.5, 2.0, 3.0)

# Boxes that the search looks at; what it finds is measured on all.
SEARCHED_BOXES = 2000
# Shares of boxes: what counts as equally good, and what is worth a change.
EQUAL = 0.005
WORTH = 0.01
# A share above this is too much.
TOO_MANY = 0.05


@dataclass(frozen=True, slots=True)
class Proposal:
    """Settings, and what they would give."""

    overrides: tuple[str, ...]  # for the command line
    uncovered: float  # share of all boxes
    cost: str

    @property
    def typed(self) -> list[str]:
        """The settings as one types them: in quotes, for to some shells brackets are patterns."""
        return [f"'{text}'" if "[" in text else text for text in self.overrides]


def propose_anchors(
    objects: Objects, now: AnchorGenerator, positive_iou: float, uncovered: float
) -> list[Proposal]:
    """Anchors that leave fewer objects uncovered: as many per cell as now, then more.

    A grid of shapes is tried on some of the objects: the smallest side, the factor between
    levels, three or four scales, ratios as they are, as those of the boxes, or wide. Among those
    that are equally good the one with the fewest changes is taken, then with the fewest anchors,
    then the nearest to what is set.

    Args:
        objects: all objects.
        now: the anchors that are set.
        positive_iou: of the matcher.
        uncovered: the share of objects that ``now`` leaves without an anchor.

    Returns:
        At most two, each measured on all objects.
    """

    def share_lost(of: Objects, anchors: AnchorGenerator) -> float:
        lost = best_overlaps(of, anchors) < positive_iou
        return int(lost.sum()) / len(lost)

    def changes(anchors: AnchorGenerator) -> list[str]:
        return [key for key in SEARCHED if getattr(anchors, key) != getattr(now, key)]

    def effort(anchors: AnchorGenerator) -> tuple[int, int, float]:
        distance = sum(abs(math.log(anchors.sizes[i] / now.sizes[i])) for i in (0, -1))
        return len(changes(anchors)), anchors.num_per_cell, distance

    some = objects.spread(SEARCHED_BOXES)
    tried = [(share_lost(some, anchors), anchors) for anchors in _grid(now, some)]
    proposals: list[Proposal] = []
    for most in (now.num_per_cell, math.inf):
        allowed = [(share, anchors) for share, anchors in tried if anchors.num_per_cell <= most]
        least = min(share for share, _ in allowed)
        best = min((a for share, a in allowed if share <= least + EQUAL), key=effort)
        share = share_lost(objects, best)
        if share <= uncovered - WORTH:
            overrides = (f"anchors.{k}={value_text(list(getattr(best, k)))}" for k in changes(best))
            number = (
                "as now" if best.num_per_cell == now.num_per_cell else f"now {now.num_per_cell}"
            )
            cost = f"{best.num_per_cell} anchors per cell, {number}"
            proposals.append(Proposal(tuple(overrides), share, cost))
            uncovered = share
    return proposals


def _grid(now: AnchorGenerator, objects: Objects) -> Iterator[AnchorGenerator]:
    """All anchors that are tried, those as set first."""
    yield now
    sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).double().clamp(min=1e-3)
    logs = (sides[:, 1] / sides[:, 0]).log().numpy()  # of heights to widths
    fitted = [np.exp(np.quantile(logs, shares)) for shares in QUANTILES]
    fitted = [tuple(dict.fromkeys(float(f"{ratio:.2g}") for ratio in row)) for row in fitted]
    all_ratios = list(dict.fromkeys([now.ratios, *fitted, WIDE_RATIOS]))
    for first, factor, count, ratios in product(SMALLEST, FACTORS, NUM_SCALES, all_ratios):
        scales = tuple(round(factor ** (i / count), 3) for i in range(count))
        # As set where it is the same but for rounding: no change to show.
        same = len(scales) == len(now.scales) and np.allclose(scales, now.scales, atol=1e-3)
        yield AnchorGenerator(
            sizes=[round(first * factor**level) for level in range(len(STRIDES))],
            scales=now.scales if same else scales,
            ratios=ratios,
            offset=now.offset,
            rounding="torchvision" if now.rounded else "none",
        )


def propose_size(
    measure: Callable[[int, int], float], min_size: int, max_size: int, uncovered: float
) -> list[Proposal]:
    """The smallest larger image that leaves few objects uncovered, or the best one tried.

    Args:
        measure: share of uncovered objects at a ``min_size`` and ``max_size``.
        min_size: shorter side as set, pixels.
        max_size: bound of the longer side as set, pixels.
        uncovered: the share at that size.

    Returns:
        At most one.
    """
    best: list[Proposal] = []
    for factor in ENLARGEMENTS:
        sizes = round(factor * min_size), round(factor * max_size)
        share = measure(*sizes)
        if share <= uncovered - WORTH:
            overrides = f"data.min_size={sizes[0]}", f"data.max_size={sizes[1]}"
            best = [Proposal(overrides, share, f"{factor**2:.2g} times the pixels, so the time")]
            uncovered = share
        if share <= TOO_MANY:
            break
    return best
