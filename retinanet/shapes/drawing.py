"""One image of the built-in data set: textured objects over a busy background.

Figures that resemble the classes, lines and blobs wear the same colors and textures as the
objects, so only the outline tells an object from the background: the easy negatives are many
and the hard ones are there, which is what focal loss is about.

Everything is a polygon painted over what is there already. `Scene.owner` remembers who is on top
at each pixel, so visible masks, areas and tight boxes need no second drawing.
"""

from __future__ import annotations

import colorsys
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# The longer side of an image, pixels, and longer side / shorter side.
LONG_SIDE = (208, 256)
ASPECTS = (1.0, 1.125, 1.25)
# Diameters of the circle around a figure, pixels; drawn log-uniformly, as small things are
# common. COCO's three sizes (areas below 32^2, below 96^2 and larger) all occur.
OBJECT_DIAMETER = (34.0, 190.0)
LOOKALIKE_DIAMETER = (30.0, 100.0)
BLOB_DIAMETER = (20.0, 110.0)
LINE_LENGTH = (20.0, 150.0)
CROWD_MEMBER_DIAMETER = (7.0, 11.0)
# How many there are in an image, both ends included.
OBJECTS = (3, 10)
LOOKALIKES_IN_IMAGE = (0, 1)
LINES = (0, 2)  # twice: below the objects, and above them
BLOBS = (0, 2)
CROWD_MEMBERS = (24, 44)
# Shares of images.
EMPTY_SHARE, CROWD_SHARE, BLURRED_SHARE, NOISY_SHARE = 0.04, 0.08, 0.2, 0.4
# Shares of figures.
LOW_CONTRAST_SHARE, SHADOW_SHARE = 0.03, 0.4
# Positions tried for a figure before it is left out.
TRIES = 8
# Figures are turned by up to this many radians (15 degrees) either way: at any angle a small
# network needs more than a demo's minutes to tell them apart.
TILT = math.pi / 12
# Polygons are drawn this many times larger and averaged, which smooths their edges.
SUPERSAMPLE = 4
# A pixel belongs to a figure that covers this share of it.
SOLID = 0.5
# No figure may hide an object further than this share of its pixels, or leave fewer pixels:
# what cannot be recognized is not asked for.
MIN_VISIBLE_SHARE, MIN_VISIBLE_PIXELS = 0.75, 30

TEXTURES = ("plain", "plain", "plain", "plain", "stripes", "dots", "checks", "gradient")

Outlines = tuple[np.ndarray, ...]  # (n, 2) points within the unit circle; the second is a hole


def _arc(start: float, stop: float, radius: float = 1.0, center: float = 0.0) -> np.ndarray:
    """(n, 2) points of a circle around (center, 0), from one angle to another (radians)."""
    angle = np.linspace(start, stop, 40)
    return np.stack([center + radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _spikes(radii: np.ndarray, first: float = 0.0) -> np.ndarray:
    """(n, 2) points at equal angles from ``first`` on, at the given distances from (0, 0)."""
    angle = first + np.arange(len(radii)) * 2 * math.pi / len(radii)
    return np.stack([radii * np.cos(angle), radii * np.sin(angle)], axis=1)


# Directions of the first corner; y grows downwards.
_UP, _DIAGONAL = -math.pi / 2, math.pi / 4
# Half the width of a cross's arm, where the corners of the arms lie on the unit circle.
_ARM = 0.3
_END = math.sqrt(1 - _ARM**2)
_CROSS = [(_END, -_ARM), (_END, _ARM), (_ARM, _ARM), (_ARM, _END), (-_ARM, _END), (-_ARM, _ARM)]
_CROSS += [(-x, -y) for x, y in _CROSS]
_CORNER = [(-0.7, -0.7), (0.7, -0.7), (0.7, -0.2), (-0.2, -0.2), (-0.2, 0.7), (-0.7, 0.7)]

CLASSES: dict[str, Outlines] = {
    "disc": (_arc(0, 2 * math.pi),),
    "square": (_spikes(np.ones(4), _DIAGONAL),),
    "triangle": (_spikes(np.ones(3), _UP),),
    "star": (_spikes(np.tile([1.0, 0.45], 5), _UP),),
    "ring": (_arc(0, 2 * math.pi), _arc(0, 2 * math.pi, radius=0.55)),
    "cross": (np.array(_CROSS),),
}
NAMES = tuple(CLASSES)
# Figures that share parts with the classes and belong to none: the hard background.
LOOKALIKES: dict[str, Outlines] = {
    "open ring": (np.concatenate([_arc(0.7, 5.6), _arc(5.6, 0.7, radius=0.55)]),),
    "crescent": (np.concatenate([_arc(0.9, 5.4), _arc(4.6, 1.7, radius=0.8, center=0.55)]),),
    "half disc": (_arc(-math.pi / 2, math.pi / 2),),
    "bar": (np.array([(0.93, 0.3), (-0.93, 0.3), (-0.93, -0.3), (0.93, -0.3)]),),
    "corner": (np.array(_CORNER),),
    "arrow": (np.array([(1, 0), (-0.6, 0.8), (-0.1, 0), (-0.6, -0.8)]),),
}


class Drawn(NamedTuple):
    """One object, or one crowd, of a finished image."""

    label: int  # index into NAMES
    crowd: bool
    mask: np.ndarray  # (H, W) bool, its visible pixels


class Figure(NamedTuple):
    """A polygon on the pixel grid."""

    top: int
    left: int
    coverage: np.ndarray  # (h, w) float32 in [0, 1], how much of each pixel it covers
    center: tuple[float, float]  # x, y
    radius: float  # pixels


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[Drawn]]:
    """Draw one image.

    Args:
        rng: the only source of chance; its state decides every pixel.

    Returns:
        (H, W, 3) uint8 RGB, and its objects with labels that index `NAMES`; none in some images.
    """
    long_side = int(rng.integers(*LONG_SIDE, endpoint=True))
    short_side = round(long_side / rng.choice(ASPECTS))
    size = (long_side, short_side) if rng.random() < 0.5 else (short_side, long_side)
    scene = Scene(_background(rng, *size))
    empty = rng.random() < EMPTY_SHARE
    crowd = rng.random() < CROWD_SHARE

    for _ in range(rng.integers(*BLOBS, endpoint=True)):
        _place(rng, scene, (_blob(rng),), BLOB_DIAMETER)
    _draw_lines(rng, scene)
    if crowd and not empty:
        _draw_crowd(rng, scene)
    is_object = [True] * (0 if empty else rng.integers(*OBJECTS, endpoint=True))
    is_object += [False] * rng.integers(*LOOKALIKES_IN_IMAGE, endpoint=True)
    for this_is in rng.permutation(is_object):
        if this_is:
            label = int(rng.integers(len(NAMES)))
            _place(rng, scene, CLASSES[NAMES[label]], OBJECT_DIAMETER, label)
        else:
            _place(rng, scene, LOOKALIKES[rng.choice(list(LOOKALIKES))], LOOKALIKE_DIAMETER)
    _draw_lines(rng, scene)

    # At times a little out of focus and noisy.
    canvas = scene.canvas
    blur = rng.uniform(0.4, 1.2) if rng.random() < BLURRED_SHARE else 0.0
    if rng.random() < NOISY_SHARE:
        noise = rng.uniform(2, 8)
        canvas = canvas + noise * rng.standard_normal(canvas.shape[:2], dtype=np.float32)[..., None]
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(blur)) if blur else image
    return np.asarray(image), scene.objects()


class Scene:
    """An image being painted, and who is visible where."""

    def __init__(self, canvas: np.ndarray) -> None:
        self.canvas = canvas  # (H, W, 3) float32, 0..255
        self.owner = np.zeros(canvas.shape[:2], dtype=np.int64)  # 0: nobody, else object + 1
        self.kinds: list[tuple[int, bool]] = []  # of each object: label, crowd
        self.full_area: list[int] = []  # pixels of each object if nothing hid it

    def add(self, label: int, *, crowd: bool = False) -> int:
        """Announce an object; its number is the owner of what is painted for it."""
        self.kinds.append((label, crowd))
        self.full_area.append(0)
        return len(self.kinds)

    def objects(self) -> list[Drawn]:
        """The objects with their visible masks."""
        kinds = enumerate(self.kinds, start=1)
        return [Drawn(label, crowd, self.owner == number) for number, (label, crowd) in kinds]

    def window(self, figure: Figure) -> tuple[slice, slice, np.ndarray]:
        """Rows and columns of the image that a figure touches, and its coverage there."""
        h, w = figure.coverage.shape
        H, W = self.owner.shape
        top, left = max(figure.top, 0), max(figure.left, 0)
        bottom, right = max(min(figure.top + h, H), top), max(min(figure.left + w, W), left)
        y, x = (slice(top, bottom), slice(left, right))
        inside = figure.coverage[top - figure.top :, left - figure.left :]
        return y, x, inside[: bottom - top, : right - left]

    def admits(self, figure: Figure, *, as_object: bool) -> bool:
        """Whether all objects, and the figure if it is one, would stay recognizable."""

        def recognizable(visible: int, full: int) -> bool:
            return visible >= max(MIN_VISIBLE_SHARE * full, MIN_VISIBLE_PIXELS)

        y, x, coverage = self.window(figure)
        solid = coverage >= SOLID
        if as_object and not recognizable(solid.sum(), (figure.coverage >= SOLID).sum()):
            return False
        hidden = np.bincount(self.owner[y, x][solid], minlength=1)
        return all(
            recognizable((self.owner == number).sum() - hidden[number], self.full_area[number - 1])
            for number in np.flatnonzero(hidden[1:]) + 1
        )

    def paint(self, figure: Figure, texture: np.ndarray, owner: int) -> None:
        """Put a figure on top.

        Args:
            figure: where.
            texture: (h, w, 3) colors of its patch, or (3,) one color.
            owner: what `add` returned, or 0 for a figure that is no object.
        """
        y, x, coverage = self.window(figure)
        if texture.ndim > 1:
            texture = texture[y.start - figure.top :, x.start - figure.left :]
            texture = texture[: coverage.shape[0], : coverage.shape[1]]
        under = self.canvas[y, x]
        under += coverage[..., None] * (texture - under)
        self.owner[y, x][coverage >= SOLID] = owner
        if owner:
            self.full_area[owner - 1] += int((figure.coverage >= SOLID).sum())

    def shade(self, figure: Figure, offset: int) -> None:
        """Darken what lies under a figure's blurred shadow, ``offset`` pixels right and down."""
        padded = Image.fromarray((np.pad(figure.coverage, offset) * 255).astype(np.uint8))
        soft = np.asarray(padded.filter(ImageFilter.GaussianBlur(offset / 2)), dtype=np.float32)
        y, x, coverage = self.window(figure._replace(coverage=soft / 255))
        self.canvas[y, x] *= 1 - 0.45 * coverage[..., None]


def rasterize(
    outlines: Outlines,
    center: tuple[float, float],
    radius: float,
    angle: float = 0.0,
    squeeze: float = 1.0,
) -> Figure:
    """Outlines scaled, squeezed in y, turned and moved, as coverage of pixels."""
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
    return Figure(int(top), int(left), coverage, center, radius)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) float32: a gradient between muted colors, and noise of two grains."""

    def enlarge(grid: np.ndarray) -> np.ndarray:
        """(height, width, C) from a coarse (h, w, C), smoothly."""
        planes = (Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(grid, 2, 0))
        return np.stack([p.resize((width, height), Image.Resampling.BICUBIC) for p in planes], 2)

    hue = rng.random()
    value = rng.uniform(0.3, 0.9)
    corners = [
        _color(hue + rng.normal(0, 0.08), rng.uniform(0.1, 0.5), value + rng.normal(0, 0.12))
        for _ in range(4)
    ]
    canvas = enlarge(np.stack(corners).reshape(2, 2, 3))
    for cells, strength in ((rng.integers(3, 7), 16.0), (rng.integers(12, 40), 9.0)):
        grain = rng.normal(0, strength * rng.random(), (cells, cells, 1)).astype(np.float32)
        canvas += enlarge(grain) * rng.uniform(0.6, 1.4, 3).astype(np.float32)
    return canvas


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) float32 RGB, 0..255."""
    value = min(max(value, 0.1), 1.0)
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32) * 255


def _place(
    rng: np.random.Generator,
    scene: Scene,
    outlines: Outlines,
    diameter: tuple[float, float],
    label: int | None = None,
) -> None:
    """Paint one figure where it hides no object too much, or leave it out."""
    height, width = scene.owner.shape
    radius = math.exp(rng.uniform(*np.log(diameter))) / 2
    squeeze = rng.uniform(0.85, 1.0)
    for _ in range(TRIES):
        center = (rng.uniform(0.05, 0.95) * width, rng.uniform(0.05, 0.95) * height)
        figure = rasterize(outlines, center, radius, rng.uniform(-TILT, TILT), squeeze)
        if scene.admits(figure, as_object=label is not None):
            if rng.random() < SHADOW_SHARE:
                scene.shade(figure, offset=2 + int(radius / 12))
            owner = 0 if label is None else scene.add(label)
            scene.paint(figure, _texture(rng, scene, figure), owner)
            return


def _blob(rng: np.random.Generator) -> np.ndarray:
    """(n, 2) points of an irregular round outline within the unit circle."""
    angle = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    waves = sum(
        rng.uniform(0, 0.25) * np.sin(k * angle + rng.uniform(0, 2 * math.pi)) for k in (2, 3, 4)
    )
    return _spikes((1 + waves) / (1 + np.abs(waves).max()))


def _draw_lines(rng: np.random.Generator, scene: Scene) -> None:
    """Thin straight lines across the image, where they hide no object too much."""
    height, width = scene.owner.shape
    for _ in range(rng.integers(*LINES, endpoint=True)):
        start = rng.random(2) * (width, height)
        angle = rng.uniform(0, 2 * math.pi)
        stop = start + rng.uniform(*LINE_LENGTH) * np.array([math.cos(angle), math.sin(angle)])
        along = (stop - start) / (np.hypot(*(stop - start)) + 1e-6)
        across = np.array([-along[1], along[0]]) * rng.uniform(0.8, 3.5) / 2
        line = np.stack([start + across, stop + across, stop - across, start - across])
        figure = rasterize((line,), (0.0, 0.0), 1.0)
        if scene.admits(figure, as_object=False):
            scene.paint(figure, _colors(rng, scene, figure)[0], 0)


def _draw_crowd(rng: np.random.Generator, scene: Scene) -> None:
    """A dense group of tiny figures of one class, which count as one crowd."""
    height, width = scene.owner.shape
    label = int(rng.integers(len(NAMES)))
    owner = scene.add(label, crowd=True)
    middle = rng.uniform(0.25, 0.75, 2) * (width, height)
    spread = rng.uniform(10, 17, 2)
    for _ in range(rng.integers(*CROWD_MEMBERS, endpoint=True)):
        center = tuple(middle + rng.uniform(-2, 2, 2) * spread)
        radius = rng.uniform(*CROWD_MEMBER_DIAMETER) / 2
        figure = rasterize(CLASSES[NAMES[label]], center, radius, rng.uniform(0, 2 * math.pi))
        scene.paint(figure, _texture(rng, scene, figure), owner)


def _colors(rng: np.random.Generator, scene: Scene, figure: Figure) -> tuple[np.ndarray, ...]:
    """Two colors that stand out from what is below, or hardly do."""
    y, x, _ = scene.window(figure)
    # Every third pixel says enough, and a mean over all of them is what would take longest.
    below = scene.canvas[y, x][::3, ::3].reshape(-1, 3)
    below = below.mean(axis=0) if len(below) else np.full(3, 128, dtype=np.float32)
    candidates = [
        _color(rng.random(), rng.uniform(0.35, 0.95), rng.uniform(0.35, 1.0)) for _ in range(3)
    ]
    first = max(candidates, key=lambda color: np.abs(color - below).sum())
    second = first + rng.uniform(0.25, 0.6) * (rng.choice([0.0, 255.0]) - first)
    if rng.random() < LOW_CONTRAST_SHARE:
        first, second = below + 0.4 * (first - below), below + 0.4 * (second - below)
    return first.astype(np.float32), second.astype(np.float32)


def _texture(rng: np.random.Generator, scene: Scene, figure: Figure) -> np.ndarray:
    """(h, w, 3) colors of a figure's patch, two mixed by a pattern at a random angle; or (3,)."""
    first, second = _colors(rng, scene, figure)
    kind = rng.choice(TEXTURES)
    if kind == "plain":
        return first
    h, w = figure.coverage.shape
    y, x = np.ogrid[:h, :w]
    x, y = x + (figure.left - figure.center[0]), y + (figure.top - figure.center[1])
    angle = rng.uniform(0, 2 * math.pi)
    u = (math.cos(angle) * x + math.sin(angle) * y).astype(np.float32)
    v = (math.cos(angle) * y - math.sin(angle) * x).astype(np.float32)
    # Periods below 4 pixels would drown in the JPEG.
    period = max(4.0, figure.radius * rng.uniform(0.3, 0.8))
    # A wave times this rises from 0 to 1 within a pixel: an edge that is smooth, not soft.
    steep = period / (2 * math.pi)
    u_wave, v_wave = (np.sin(axis * (2 * math.pi / period)) for axis in (u, v))
    rise = {
        "stripes": steep * u_wave,
        "dots": steep * (u_wave + v_wave - 0.8),
        "checks": steep * u_wave * v_wave,
        "gradient": u / (2 * figure.radius),
    }
    weight = np.clip(0.5 + rise[kind], 0, 1)  # (h, w)
    return first + weight[..., None] * (second - first)
