"""Anchors: nine boxes at every cell of every pyramid level (section 4 of the paper)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from retinanet.checks import check_all
from retinanet.fast.sparse_matching import AnchorWindows

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
        """Check and remember the shapes.

        Args:
            sizes: side of the square anchor of scale 1 on each of P3 to P7, pixels.
            scales: factors on each size.
            ratios: height / width; the area stays that of the square.
            offset: center of the first anchor of a level, in its strides.
            rounding: ``"none"``; ``"torchvision"``, for checkpoints trained there: sides in whole
                pixels, and strides that are the padded size divided by the grid, in whole pixels,
                which are not 64 and 128 on P6 and P7 unless 128 divides the size.

        Raises:
            ValueError: a setting outside its range.
        """
        sizes, scales, ratios = (tuple(map(float, each)) for each in (sizes, scales, ratios))
        check_all("anchors", locals())
        self.sizes, self.scales, self.ratios = sizes, scales, ratios
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
            (a, 4) in pixels, fp64, ratio-outer and scale-inner.
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
        return _kept(self._windows, (height, width), self._make_windows)

    def _make(self, height: int, width: int, device: torch.device) -> Tensor:
        levels = []
        for size, (rows, columns), (dy, dx) in zip(
            self.sizes, *self._grids(height, width), strict=True
        ):
            y = (torch.arange(rows, dtype=torch.float64) + self.offset) * dy
            x = (torch.arange(columns, dtype=torch.float64) + self.offset) * dx
            y, x = torch.meshgrid(y, x, indexing="ij")  # (rows, columns)
            centers = torch.stack([x, y, x, y], dim=-1)[:, :, None]  # (rows, columns, 1, 4)
            levels.append((centers + self.cell_anchors(size)).reshape(-1, 4))
        return torch.cat(levels).float().to(device)

    def _make_windows(self, height: int, width: int) -> AnchorWindows:
        shapes = torch.stack([self.cell_anchors(size) for size in self.sizes])  # (L, a, 4)
        return AnchorWindows(shapes, *self._grids(height, width), self.offset)

    def _grids(self, height: int, width: int) -> tuple[list[tuple[int, int]], ...]:
        """Rows and columns of each level, and its strides of y and x."""
        grids = grid_sizes(height, width)
        if self.rounded:
            return grids, [(height // rows, width // columns) for rows, columns in grids]
        return grids, [(stride, stride) for stride in STRIDES]


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
    # Halving three times and rounding up each time is dividing by 8 and rounding up once.
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
