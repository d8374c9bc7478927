"""Anchors, or a training size, that fit the objects of a data set better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from retinanet.limits import value_text
from retinanet.model.anchors import STRIDES, AnchorGenerator
from retinanet.tools.anchor_coverage import Objects, best_overlaps

# What is tried: the side of the smallest square anchor in pixels, and the factor from one level
# to the next, over which the scales are spread.
SMALLEST = (4, 6, 8, 12, 16, 24, 32, 48, 64)
FACTORS = (1.5, 2.0, 2.5, 3.0)
NUM_SCALES = (3, 4)
# Shares of the boxes below the 3 and the 5 ratios that are fitted to them.
QUANTILES = {3: (1 / 6, 1 / 2, 5 / 6), 5: (0.1, 0.3, 0.5, 0.7, 0.9)}
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


@dataclass(frozen=True, slots=True)
class _Shapes:
    """The anchors of one cell of each level."""

    sizes: tuple[float, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def num_per_cell(self) -> int:
        return len(self.scales) * len(self.ratios)

    def other_keys(self, now: _Shapes) -> list[str]:
        """Names of the settings that differ."""
        return [key for key in self.__slots__ if getattr(self, key) != getattr(now, key)]


def propose_anchors(
    found: Objects, now: AnchorGenerator, positive_iou: float, uncovered: float
) -> list[Proposal]:
    """Anchors that leave fewer objects uncovered: as many per cell as now, then more.

    A grid of shapes is tried on some of the objects: the smallest side, the factor between
    levels, three or four scales, ratios as they are, as those of the boxes, or wide. Among those
    that are equally good the one with the fewest changes is taken, then with the fewest anchors,
    then the nearest to what is set.

    Args:
        found: all objects.
        now: the anchors that are set.
        positive_iou: of the matcher.
        uncovered: the share of objects that ``now`` leaves without an anchor.

    Returns:
        At most two, each measured on all objects.
    """
    own = _Shapes(now.sizes, now.scales, now.ratios)

    def lost(objects: Objects, shapes: _Shapes) -> float:
        made = _generator(shapes, now)
        uncovered = best_overlaps(objects, made) < positive_iou
        return int(uncovered.sum()) / len(uncovered)

    some = found.spread(SEARCHED_BOXES)
    tried = [(lost(some, shapes), shapes) for shapes in _grid(own, _fitted_ratios(some))]
    proposals: list[Proposal] = []
    for most in (own.num_per_cell, math.inf):
        shapes = _simplest([(s, t) for s, t in tried if t.num_per_cell <= most], own)
        share = lost(found, shapes)
        if share <= uncovered - WORTH:
            proposals.append(Proposal(_overrides(shapes, own), share, _cost(shapes, own)))
            uncovered = share
    return proposals


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


def _grid(own: _Shapes, fitted: Sequence[tuple[float, ...]]) -> Iterator[_Shapes]:
    """All shapes that are tried, those as set first."""
    yield own
    all_ratios = list(dict.fromkeys([own.ratios, *fitted, WIDE_RATIOS]))
    for first, factor, count, ratios in product(SMALLEST, FACTORS, NUM_SCALES, all_ratios):
        sizes = tuple(float(round(first * factor**level)) for level in range(len(STRIDES)))
        scales = tuple(round(factor ** (i / count), 3) for i in range(count))
        # As set where it is the same but for rounding: no change to show.
        same = len(scales) == len(own.scales) and np.allclose(scales, own.scales, atol=1e-3)
        yield _Shapes(sizes, own.scales if same else scales, ratios)


def _fitted_ratios(found: Objects) -> list[tuple[float, ...]]:
    """Ratios at quantiles of those of the boxes, of two digits."""
    sides = (found.boxes[:, 2:] - found.boxes[:, :2]).double().clamp(min=1e-3)
    ratios = (sides[:, 1] / sides[:, 0]).log().numpy()  # of heights to widths
    fitted = [np.exp(np.quantile(ratios, QUANTILES[count])) for count in QUANTILES]
    distinct = [dict.fromkeys(float(f"{ratio:.2g}") for ratio in row) for row in fitted]
    return [tuple(row) for row in distinct]


def _simplest(tried: Sequence[tuple[float, _Shapes]], own: _Shapes) -> _Shapes:
    """Of the equally good ones that with the fewest changes, anchors, and the least distance."""
    least = min(share for share, _ in tried)

    def rank(shapes: _Shapes) -> tuple[Any, ...]:
        distance = abs(math.log(shapes.sizes[0] / own.sizes[0]))
        distance += abs(math.log(shapes.sizes[-1] / own.sizes[-1]))
        return len(shapes.other_keys(own)), shapes.num_per_cell, distance

    return min((shapes for share, shapes in tried if share <= least + EQUAL), key=rank)


def _generator(shapes: _Shapes, now: AnchorGenerator) -> AnchorGenerator:
    return AnchorGenerator(
        sizes=shapes.sizes,
        scales=shapes.scales,
        ratios=shapes.ratios,
        offset=now.offset,
        rounding="torchvision" if now.rounded else "none",
    )


def _overrides(shapes: _Shapes, own: _Shapes) -> tuple[str, ...]:
    keys = shapes.other_keys(own)
    return tuple(f"anchors.{key}={value_text(list(getattr(shapes, key)))}" for key in keys)


def _cost(shapes: _Shapes, own: _Shapes) -> str:
    count, before = shapes.num_per_cell, own.num_per_cell
    return f"{count} anchors per cell" + (", as now" if count == before else f", now {before}")
