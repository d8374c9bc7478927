"""One picture of the built-in data set: textured objects over a busy background.

Figures that resemble the classes, lines and blobs wear the same colors and textures as the
objects, so only the outline tells an object from the background: the easy negatives are many
and the hard ones are there, which is what focal loss is about.
"""

from __future__ import annotations

import colorsys
import math

import numpy as np
from PIL import Image, ImageFilter

from retinanet.shapes.figures import (
    CLASSES,
    LOOKALIKES,
    NAMES,
    Drawn,
    Figure,
    Scene,
    band,
    blob,
    rasterize,
)

# The longer side of a picture, pixels, and longer side / shorter side.
LONG_SIDE = (208, 256)
ASPECTS = (1.0, 1.125, 1.25)
# Diameters of the circle around a figure, pixels; drawn log-uniformly, as small things are
# common. COCO's three sizes (areas below 32^2, below 96^2 and larger) all occur.
OBJECT_DIAMETER = (34.0, 190.0)
LOOKALIKE_DIAMETER = (30.0, 100.0)
BLOB_DIAMETER = (20.0, 110.0)
LINE_LENGTH = (20.0, 150.0)
CROWD_MEMBER_DIAMETER = (7.0, 11.0)
# How many there are in a picture, both ends included.
OBJECTS = (3, 10)
LOOKALIKES_IN_PICTURE = (0, 1)
LINES = (0, 2)  # twice: below the objects, and above them
BLOBS = (0, 2)
CROWD_MEMBERS = (24, 44)
# Shares of pictures.
EMPTY_SHARE = 0.04
CROWD_SHARE = 0.08
BLURRED_SHARE = 0.2
NOISY_SHARE = 0.4
# Shares of figures.
LOW_CONTRAST_SHARE = 0.03
SHADOW_SHARE = 0.4
# Places tried for a figure before it is left out.
TRIES = 8
# Figures are turned by up to this many radians (15 degrees) either way: at any angle a small
# network needs more than a demo's minutes to tell them apart.
TILT = math.pi / 12

TEXTURES = ("plain", "plain", "plain", "plain", "stripes", "dots", "checks", "gradient")


def draw_picture(rng: np.random.Generator) -> tuple[np.ndarray, list[Drawn]]:
    """Draw one picture.

    Args:
        rng: the only source of chance; its state decides every pixel.

    Returns:
        (H, W, 3) uint8 RGB, and its objects with labels that index `NAMES`; none in some
        pictures.
    """
    scene = Scene(_background(rng, *_size(rng)))
    empty = rng.random() < EMPTY_SHARE
    crowd = rng.random() < CROWD_SHARE

    for _ in range(rng.integers(*BLOBS, endpoint=True)):
        _place(rng, scene, (blob(rng),), diameter=BLOB_DIAMETER)
    _draw_lines(rng, scene)
    if crowd and not empty:
        _draw_crowd(rng, scene)
    kinds = [True] * (0 if empty else rng.integers(*OBJECTS, endpoint=True))
    kinds += [False] * rng.integers(*LOOKALIKES_IN_PICTURE, endpoint=True)
    for is_object in rng.permutation(kinds):
        if is_object:
            label = int(rng.integers(len(NAMES)))
            _place(rng, scene, CLASSES[NAMES[label]], diameter=OBJECT_DIAMETER, label=label)
        else:
            name = rng.choice(list(LOOKALIKES))
            _place(rng, scene, LOOKALIKES[name], diameter=LOOKALIKE_DIAMETER)
    _draw_lines(rng, scene)
    return _photograph(rng, scene.canvas), scene.finished()


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Height and width, landscape or portrait."""
    long_side = int(rng.integers(*LONG_SIDE, endpoint=True))
    short_side = round(long_side / rng.choice(ASPECTS))
    return (long_side, short_side) if rng.random() < 0.5 else (short_side, long_side)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) float32: a gradient between muted colors, and noise of two grains."""
    hue = rng.random()
    value = rng.uniform(0.3, 0.9)
    corners = [
        _color(hue + rng.normal(0, 0.08), rng.uniform(0.1, 0.5), value + rng.normal(0, 0.12))
        for _ in range(4)
    ]
    canvas = _enlarge(np.stack(corners).reshape(2, 2, 3), height, width)
    for cells, strength in ((rng.integers(3, 7), 16.0), (rng.integers(12, 40), 9.0)):
        grain = rng.normal(0, strength * rng.random(), (cells, cells, 1)).astype(np.float32)
        tint = rng.uniform(0.6, 1.4, 3).astype(np.float32)
        canvas += _enlarge(grain, height, width) * tint
    return canvas


def _enlarge(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """(height, width, C) from a coarse (h, w, C), smoothly."""
    planes = [
        Image.fromarray(np.ascontiguousarray(grid[..., c])).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for c in range(grid.shape[-1])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def _color(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) float32 RGB, 0..255."""
    value = min(max(value, 0.1), 1.0)
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32) * 255


def _place(
    rng: np.random.Generator,
    scene: Scene,
    outlines: tuple[np.ndarray, ...],
    *,
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


def _draw_lines(rng: np.random.Generator, scene: Scene) -> None:
    """Thin straight lines across the picture, where they hide no object too much."""
    height, width = scene.owner.shape
    for _ in range(rng.integers(*LINES, endpoint=True)):
        start = rng.random(2) * (width, height)
        angle = rng.uniform(0, 2 * math.pi)
        along = rng.uniform(*LINE_LENGTH) * np.array([math.cos(angle), math.sin(angle)])
        line = band(start, start + along, rng.uniform(0.8, 3.5))
        figure = rasterize((line,), (0.0, 0.0), 1.0, 0.0)
        if scene.admits(figure, as_object=False):
            first, _ = _colors(rng, scene, figure)
            scene.paint(figure, first, 0)


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
        outlines = CLASSES[NAMES[label]]
        figure = rasterize(outlines, center, radius, rng.uniform(0, 2 * math.pi))
        scene.paint(figure, _texture(rng, scene, figure), owner)


def _texture(rng: np.random.Generator, scene: Scene, figure: Figure) -> np.ndarray:
    """(h, w, 3) colors of a figure's patch, two mixed by a pattern; or (3,), one color."""
    first, second = _colors(rng, scene, figure)
    weight = _pattern(rng, figure)
    if not weight.any():
        return first
    return first + weight[..., None] * (second - first)


def _colors(rng: np.random.Generator, scene: Scene, figure: Figure) -> tuple[np.ndarray, ...]:
    """Two colors that stand out from what is below, or hardly do."""
    rows, columns, coverage = scene.window(figure)
    # Every third pixel says enough, and a mean over all of them is what would take longest.
    below = scene.canvas[rows, columns][::3, ::3].reshape(-1, 3)
    below = below.mean(axis=0) if len(below) else np.full(3, 128, dtype=np.float32)
    candidates = [
        _color(rng.random(), rng.uniform(0.35, 0.95), rng.uniform(0.35, 1.0)) for _ in range(3)
    ]
    first = max(candidates, key=lambda color: np.abs(color - below).sum())
    second = first + rng.uniform(0.25, 0.6) * (rng.choice([0.0, 255.0]) - first)
    if rng.random() < LOW_CONTRAST_SHARE:
        first, second = below + 0.4 * (first - below), below + 0.4 * (second - below)
    return first.astype(np.float32), second.astype(np.float32)


def _pattern(rng: np.random.Generator, figure: Figure) -> np.ndarray:
    """(h, w) float32 in [0, 1], at a random angle; all zero for a plain figure."""
    kind = rng.choice(TEXTURES)
    if kind == "plain":
        return np.zeros(1, dtype=np.float32)
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
    match kind:
        case "stripes":
            return np.clip(0.5 + steep * u_wave, 0, 1)
        case "dots":
            return np.clip(0.5 + steep * (u_wave + v_wave - 0.8), 0, 1)
        case "checks":
            return np.clip(0.5 + steep * u_wave * v_wave, 0, 1)
        case _:
            return np.clip(0.5 + u / (2 * figure.radius), 0, 1)


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the painting, at times a little out of focus and noisy."""
    blur = rng.uniform(0.4, 1.2) if rng.random() < BLURRED_SHARE else 0.0
    noise = rng.uniform(2, 8) if rng.random() < NOISY_SHARE else 0.0
    if noise:
        canvas = canvas + noise * rng.standard_normal(canvas.shape[:2], dtype=np.float32)[..., None]
    picture = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    if blur:
        picture = picture.filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(picture)
