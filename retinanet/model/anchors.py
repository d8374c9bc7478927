"""Anchors: nine boxes at every cell of every pyramid level (section 4 of the paper)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from retinanet.checks import check
from retinanet.fast.sparse_matching import AnchorGrid, AnchorWindows

# Pixels between cells of P3 to P7. A level is always half of the one before, rounded up.
STRIDES = (8, 16, 32, 64, 128)

# Section 4: three scales per octave.
OCTAVE_SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))

# Padded sizes whose anchors are kept, 3 MiB each at 800 x 1344.
KEPT_SIZES = 32


class AnchorGenerator:
    """Makes the anchors of a padded image; keeps those of the sizes seen."""

    def __init__(
        self,
        *,
        sizes: Sequence[float] = (32, 64, 128, 256, 512),
        scales: Sequence[float] = OCTAVE_SCALES,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        offset: float = 0.0,
        rounding: str = "none",
    ) -> None:
        """Remember the shapes.

        Args:
            sizes: side of the square anchor of scale 1 on each of P3 to P7, pixels.
            scales: factors on each size.
            ratios: height / width; the area stays that of the square.
            offset: center of the first anchor of a level, in its strides.
            rounding: ``"none"``; ``"torchvision"``, for checkpoints trained there: sides in whole
                pixels, and strides that are the padded size divided by the grid, in whole pixels,
                which are not 64 and 128 on P6 and P7 unless 128 divides the size.
        """
        check("anchors.sizes", list(sizes))
        check("anchors.scales", list(scales))
        check("anchors.ratios", list(ratios))
        check("anchors.offset", offset)
        check("anchors.rounding", rounding)
        self.sizes = tuple(map(float, sizes))
        self.scales = tuple(map(float, scales))
        self.ratios = tuple(map(float, ratios))
        self.offset = float(offset)
        self.rounded = rounding == "torchvision"
        self._made: dict[tuple[int, int, torch.device], Tensor] = {}
        self._windows: dict[tuple[int, int], AnchorWindows] = {}

    @property
    def num_per_cell(self) -> int:
        """Anchors at each cell, the letter a."""
        return len(self.scales) * len(self.ratios)

    def cell_anchors(self, size: float) -> Tensor:
        """The anchors of one cell, centered on the origin.

        Args:
            size: side of the square anchor of scale 1, pixels.

        Returns:
            (a, 4) in pixels, ratio-outer and scale-inner.
        """
        sides = size * torch.tensor(self.scales, dtype=torch.float64)
        ratios = torch.tensor(self.ratios, dtype=torch.float64)
        if self.rounded:
            sides = sides.floor()
        width = (sides / ratios.sqrt()[:, None]).flatten()  # (ratios * scales,)
        height = (sides * ratios.sqrt()[:, None]).flatten()
        corners = 0.5 * torch.stack([-width, -height, width, height], dim=1)  # (a, 4)
        return corners.round() if self.rounded else corners

    def __call__(self, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
        """All anchors of an image, fp32.

        Args:
            height: of the padded image, pixels.
            width: of the padded image, pixels.
            device: where to put them.

        Returns:
            (A, 4) in pixels; ordered by level, row, column, ratio, scale. Not to be changed
            in place: the next call with the same size returns the same tensor.
        """
        return _kept(self._made, (height, width, torch.device(device)), self._make)

    def windows(self, height: int, width: int) -> AnchorWindows:
        """How to find those of the anchors that overlap a box, on the CPU."""
        return _kept(self._windows, (height, width), self._grids)

    def _levels(self, height: int, width: int) -> Iterator[tuple[float, tuple[int, int], int, int]]:
        """Size of the square anchor, strides of y and x, rows, columns of P3 to P7."""
        grids = grid_sizes(height, width)
        for size, stride, (rows, columns) in zip(self.sizes, STRIDES, grids, strict=True):
            strides = (height // rows, width // columns) if self.rounded else (stride, stride)
            yield size, strides, rows, columns

    def _make(self, height: int, width: int, device: torch.device) -> Tensor:
        levels = [self._level(*level) for level in self._levels(height, width)]
        return torch.cat(levels).float().to(device)

    def _level(self, size: float, strides: tuple[int, int], rows: int, columns: int) -> Tensor:
        """Anchors of one level, (rows * columns * a, 4), fp64; strides are of y and x."""
        y = (torch.arange(rows, dtype=torch.float64) + self.offset) * strides[0]
        x = (torch.arange(columns, dtype=torch.float64) + self.offset) * strides[1]
        y, x = torch.meshgrid(y, x, indexing="ij")  # (rows, columns)
        centers = torch.stack([x, y, x, y], dim=-1)  # (rows, columns, 4)
        return (centers[:, :, None] + self.cell_anchors(size)).reshape(-1, 4)

    def _grids(self, height: int, width: int) -> AnchorWindows:
        grids, first = [], 0
        for size, strides, rows, columns in self._levels(height, width):
            for i, (x1, y1, x2, y2) in enumerate(self.cell_anchors(size).tolist()):
                y, x = (self.offset * stride for stride in strides)
                center, sides = (y + 0.5 * (y1 + y2), x + 0.5 * (x1 + x2)), (y2 - y1, x2 - x1)
                place = first + i, self.num_per_cell, rows, columns
                grids.append(AnchorGrid(*place, strides, center, sides))
            first += rows * columns * self.num_per_cell
        return AnchorWindows(grids)


def _kept(made: dict, key: tuple, make: Callable) -> Any:
    """What was made of ``key`` before; otherwise it is made, and the oldest forgotten."""
    if key not in made:
        if len(made) >= KEPT_SIZES:
            made.pop(next(iter(made)))
        made[key] = make(*key)
    return made[key]


def grid_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Rows and columns of P3 to P7 for a padded image.

    Every stride-2 layer of the network rounds up, and so does this.
    """
    grids = []
    for _ in range(3):
        height, width = -(-height // 2), -(-width // 2)
    for _ in STRIDES:
        grids.append((height, width))
        height, width = -(-height // 2), -(-width // 2)
    return grids
