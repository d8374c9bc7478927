"""Figures of the built-in data set: outlines, their coverage of pixels, and who hides whom.

Everything in a picture is a polygon painted over what is there already. `Scene.owner`
remembers who is on top at each pixel, so visible masks, areas and tight boxes need no second
drawing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Polygons are drawn this many times larger and averaged, which smooths their edges.
SUPERSAMPLE = 4
# A pixel belongs to a figure that covers this share of it.
SOLID = 0.5
# No figure may hide an object further than this share of its pixels, or leave fewer pixels:
# what cannot be recognized is not asked for.
MIN_VISIBLE_SHARE = 0.75
MIN_VISIBLE_PIXELS = 30


def _arc(start: float, stop: float, radius: float = 1.0, center: float = 0.0) -> np.ndarray:
    """(n, 2) points of a circle around (center, 0), from one angle to another (radians)."""
    angle = np.linspace(start, stop, 40)
    return np.stack([center + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


# Directions of the first corner; y grows downwards.
_UP, _DIAGONAL = -math.pi / 2, math.pi / 4


def _spikes(radii: np.ndarray, first: float = 0.0) -> np.ndarray:
    """(n, 2) points at equal angles from ``first`` on, at the given distances from (0, 0)."""
    angle = first + np.arange(len(radii)) * 2 * math.pi / len(radii)
    return np.stack([radii * np.cos(angle), radii * np.sin(angle)], axis=1)


def _points(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points)


# Half the width of a cross's arm, where the corners of the arms lie on the unit circle.
_ARM = 0.3
_END = math.sqrt(1 - _ARM**2)

# Name -> outline within the unit circle, and the outline of its hole, if any.
CLASSES: dict[str, tuple[np.ndarray, ...]] = {
    "disc": (_arc(0, 2 * math.pi),),
    "square": (_spikes(np.ones(4), _DIAGONAL),),
    "triangle": (_spikes(np.ones(3), _UP),),
    "star": (_spikes(np.tile([1.0, 0.45], 5), _UP),),
    "ring": (_arc(0, 2 * math.pi), _arc(0, 2 * math.pi, radius=0.55)),
    "cross": (
        _points(
            *[(_END, -_ARM), (_END, _ARM), (_ARM, _ARM), (_ARM, _END), (-_ARM, _END)],
            *[(-_ARM, _ARM), (-_END, _ARM), (-_END, -_ARM), (-_ARM, -_ARM)],
            *[(-_ARM, -_END), (_ARM, -_END), (_ARM, -_ARM)],
        ),
    ),
}
NAMES = tuple(CLASSES)

# Figures that share parts with the classes and belong to none: the hard background.
LOOKALIKES: dict[str, tuple[np.ndarray, ...]] = {
    "open ring": (np.concatenate([_arc(0.7, 5.6), _arc(5.6, 0.7, radius=0.55)]),),
    "crescent": (np.concatenate([_arc(0.9, 5.4), _arc(4.6, 1.7, radius=0.8, center=0.55)]),),
    "half disc": (_arc(-math.pi / 2, math.pi / 2),),
    "bar": (_points((0.93, 0.3), (-0.93, 0.3), (-0.93, -0.3), (0.93, -0.3)),),
    "corner": (
        _points((-0.7, -0.7), (0.7, -0.7), (0.7, -0.2), (-0.2, -0.2), (-0.2, 0.7), (-0.7, 0.7)),
    ),
    "arrow": (_points((1, 0), (-0.6, 0.8), (-0.1, 0), (-0.6, -0.8)),),
}


def blob(rng: np.random.Generator) -> np.ndarray:
    """(n, 2) points of an irregular round outline within the unit circle."""
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    waves = sum(
        rng.uniform(0, 0.25) * np.sin(k * angle + rng.uniform(0, 2 * math.pi)) for k in (2, 3, 4)
    )
    return _spikes((1 + waves) / (1 + np.abs(waves).max()))


def band(start: np.ndarray, stop: np.ndarray, width: float) -> np.ndarray:
    """(4, 2) corners of a straight line between two points."""
    along = (stop - start) / (np.hypot(*(stop - start)) + 1e-6)
    across = np.array([-along[1], along[0]]) * width / 2
    return np.stack([start + across, stop + across, stop - across, start - across])


@dataclass(frozen=True, slots=True)
class Figure:
    """A polygon on the pixel grid."""

    top: int
    left: int
    coverage: np.ndarray  # (h, w) float32 in [0, 1], how much of each pixel it covers
    center: tuple[float, float]  # x, y
    radius: float  # pixels
    angle: float  # radians


@dataclass(frozen=True, slots=True)
class Drawn:
    """One object, or one crowd, of a finished picture."""

    label: int  # index into NAMES
    crowd: bool
    mask: np.ndarray  # (H, W) bool, its visible pixels


def rasterize(
    outlines: tuple[np.ndarray, ...],
    center: tuple[float, float],
    radius: float,
    angle: float,
    squeeze: float = 1.0,
) -> Figure:
    """Outlines (the second is a hole) scaled, squeezed in y, turned and moved, as coverage."""
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, sin], [-sin * squeeze, cos * squeeze]])  # rows: images of x and y
    placed = [outline @ turn * radius + center for outline in outlines]
    left, top = np.floor(placed[0].min(axis=0)).astype(int)
    right, bottom = np.ceil(placed[0].max(axis=0)).astype(int)
    patch = Image.new("L", ((right - left) * SUPERSAMPLE, (bottom - top) * SUPERSAMPLE))
    pen = ImageDraw.Draw(patch)
    for outline, fill in zip(placed, (255, 0), strict=False):
        # Pillow's integer coordinates are centers of pixels, ours are their corners.
        pen.polygon([tuple(p) for p in (outline - (left, top)) * SUPERSAMPLE - 0.5], fill=fill)
    coverage = np.asarray(patch.reduce(SUPERSAMPLE), dtype=np.float32) / 255
    return Figure(int(top), int(left), coverage, center, radius, angle)


class Scene:
    """A picture being painted, and who is visible where."""

    def __init__(self, canvas: np.ndarray) -> None:
        self.canvas = canvas  # (H, W, 3) float32, 0..255
        self.owner = np.zeros(canvas.shape[:2], dtype=np.int64)  # 0: nobody, else object + 1
        self.objects: list[tuple[int, bool]] = []  # label, crowd
        self.full_area: list[int] = []  # pixels of each object if nothing hid it

    def add(self, label: int, *, crowd: bool = False) -> int:
        """Announce an object; its number is the owner of what is painted for it."""
        self.objects.append((label, crowd))
        self.full_area.append(0)
        return len(self.objects)

    def window(self, figure: Figure) -> tuple[slice, slice, np.ndarray]:
        """Rows and columns of the picture that a figure touches, and its coverage there."""
        h, w = figure.coverage.shape
        H, W = self.owner.shape
        top, left = max(figure.top, 0), max(figure.left, 0)
        bottom, right = min(figure.top + h, H), min(figure.left + w, W)
        inside = figure.coverage[
            top - figure.top : max(bottom - figure.top, 0),
            left - figure.left : max(right - figure.left, 0),
        ]
        return slice(top, max(bottom, top)), slice(left, max(right, left)), inside

    def admits(self, figure: Figure, *, as_object: bool) -> bool:
        """Whether all objects, and the figure if it is one, would stay recognizable."""
        rows, columns, coverage = self.window(figure)
        solid = coverage >= SOLID
        if as_object and not _recognizable(solid.sum(), (figure.coverage >= SOLID).sum()):
            return False
        hidden = np.bincount(self.owner[rows, columns][solid], minlength=1)
        return all(
            _recognizable((self.owner == number).sum() - hidden[number], self.full_area[number - 1])
            for number in np.flatnonzero(hidden[1:]) + 1
        )

    def paint(self, figure: Figure, texture: np.ndarray, owner: int) -> None:
        """Put a figure on top.

        Args:
            figure: where.
            texture: (h, w, 3) colors of its patch, or (3,) one color.
            owner: what `add` returned, or 0 for a figure that is no object.
        """
        rows, columns, coverage = self.window(figure)
        if texture.ndim > 1:
            y, x = rows.start - figure.top, columns.start - figure.left
            texture = texture[y : y + coverage.shape[0], x : x + coverage.shape[1]]
        under = self.canvas[rows, columns]
        under += coverage[..., None] * (texture - under)
        self.owner[rows, columns][coverage >= SOLID] = owner
        if owner:
            self.full_area[owner - 1] += int((figure.coverage >= SOLID).sum())

    def shade(self, figure: Figure, offset: int) -> None:
        """Darken what lies under a figure's blurred shadow, ``offset`` pixels right and down."""
        padded = np.pad(figure.coverage, offset)
        soft = Image.fromarray((padded * 255).astype(np.uint8)).filter(
            ImageFilter.GaussianBlur(offset / 2)
        )
        shadow = np.asarray(soft, dtype=np.float32) / 255
        moved = Figure(figure.top, figure.left, shadow, figure.center, figure.radius, 0.0)
        rows, columns, coverage = self.window(moved)
        self.canvas[rows, columns] *= 1 - 0.45 * coverage[..., None]

    def finished(self) -> list[Drawn]:
        """The objects with their visible masks."""
        return [
            Drawn(label, crowd, self.owner == number)
            for number, (label, crowd) in enumerate(self.objects, start=1)
        ]


def _recognizable(visible: int, full: int) -> bool:
    return visible >= max(MIN_VISIBLE_SHARE * full, MIN_VISIBLE_PIXELS)
