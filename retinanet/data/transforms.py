"""Resize, crop, flip and recolor an image together with its boxes.

Pixels stay uint8 (but with ``data.resize=torchvision``), boxes are float32. What is random about
a sample is drawn before its pixels are touched, for a whole epoch at once, so that the size of
every batch is known beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from retinanet.checks import check_all
from retinanet.data import draws

# Smaller boxes show no object, and a box without width makes encode_boxes divide by zero.
MIN_BOX_SIDE = 1.0


def resized_sizes(
    sizes: np.ndarray, min_sizes: np.ndarray | int, max_size: int, rule: str = "antialias"
) -> np.ndarray:
    """Sizes at which shorter sides measure ``min_sizes``, or longer ones ``max_size`` if less.

    Args:
        sizes: (N, 2) height, width, pixels.
        min_sizes: (N,) or one number, pixels.
        max_size: pixels.
        rule: whose rounding; see :func:`resize`.

    Returns:
        (N, 2) int64, at least 1; rounded half up, with ``"torchvision"`` down.

    Source: detectron2, ``ResizeShortestEdge.get_output_shape``; torchvision,
    ``models/detection/transform.py``; mmcv, ``rescale_size``: each in its order of operations,
    so that it rounds alike.
    """
    sides = np.asarray(sizes, dtype=np.float64)
    shortest = sides.min(axis=1, keepdims=True)  # (N, 1)
    wanted = np.reshape(min_sizes, (-1, 1))
    if rule == "antialias":
        # The shorter side is the number asked for, not a product that may fall just below it.
        resized = np.where(sides == shortest, wanted, sides * (wanted / shortest))
        longest = resized.max(axis=1, keepdims=True)
        resized = np.where(longest > max_size, resized * (max_size / longest), resized)
    else:
        longest = sides.max(axis=1, keepdims=True)
        resized = sides * np.minimum(wanted / shortest, max_size / longest)
    half = 0 if rule == "torchvision" else 0.5
    return np.maximum((resized + half).astype(np.int64), 1)


def resized_size(
    height: int, width: int, min_size: int, max_size: int, rule: str = "antialias"
) -> tuple[int, int]:
    """Height and width of one image after :func:`resized_sizes`."""
    h, w = resized_sizes(np.array([[height, width]]), min_size, max_size, rule)[0].tolist()
    return h, w


def resize(image: Tensor, size: tuple[int, int], rule: str = "antialias") -> Tensor:
    """(3, H, W) uint8 -> (3, *size), bilinear.

    Args:
        image: RGB from 0 to 255.
        size: height, width in pixels.
        rule: ``"antialias"``: uint8, equal to Pillow's, and so to detectron2's, to one level in
            255. ``"opencv"``: uint8 without antialiasing, as mmdetection's, to one level.
            ``"torchvision"``: without antialiasing and not rounded, float32, as its detectors.
    """
    if rule == "torchvision":
        wanted = {"size": tuple(size), "mode": "bilinear", "align_corners": False}
        return F.interpolate(image[None].float(), **wanted)[0]
    if tuple(image.shape[1:]) == tuple(size):
        return image
    # Channels last in memory is fast, and in other layouts torch 2.15 gives wrong pixels, or
    # fails, where a side is one pixel long.
    image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # (3, H, W)
    return TF.resize(image, list(size), antialias=rule == "antialias")


@dataclass(frozen=True, slots=True)
class Geometry:
    """What happens to one image, drawn before its pixels are touched."""

    size: tuple[int, int]  # height, width after resizing
    crop: tuple[int, int, int, int] | None = None  # top, left, height, width after resizing
    flip: bool = False  # left to right, last
    color: tuple[float, ...] | None = None  # factors of brightness, contrast, saturation

    @property
    def valid(self) -> tuple[int, int]:
        """Height and width of the sample."""
        return self.size if self.crop is None else self.crop[2:]


@dataclass(frozen=True, slots=True, eq=False)
class Geometries:
    """:class:`Geometry` of N samples, as arrays."""

    size: np.ndarray  # (N, 2) int64
    window: np.ndarray  # (N, 4) int64 top, left, height, width; all of the image where not cropped
    flip: np.ndarray  # (N,) bool
    color: np.ndarray | None  # (N, 3)

    def __getitem__(self, index: int) -> Geometry:
        """One of them."""
        size = tuple(self.size[index].tolist())
        window = tuple(self.window[index].tolist())
        return Geometry(
            size,
            None if window[2:] == size else window,
            bool(self.flip[index]),
            None if self.color is None else tuple(self.color[index].tolist()),
        )


class Augment:
    """Resizing for evaluation; flips, scale jitter and colors besides for training.

    Every draw is a function of (seed, epoch, image id).

    Args:
        min_size: shorter side after resizing, pixels.
        max_size: the longer side is never resized above this, pixels (but by ``scale``).
        rule: how it is resized; see :func:`resize`.
        flip: probability of a left-right flip.
        min_sizes: shorter sides to draw from instead of ``min_size``.
        scale: [low, high], factor on the resized size; where the image grows beyond that size,
            a random part of that size is cut out. Source: Ghiasi et al. 2021, arXiv:2012.07177.
        color: brightness, contrast and saturation are multiplied by factors in
            [1 - color, 1 + color].
        train: false switches everything random off.
    """

    def __init__(
        self,
        *,
        min_size: int,
        max_size: int,
        rule: str = "antialias",
        flip: float = 0.0,
        min_sizes: Sequence[int] | None = None,
        scale: Sequence[float] | None = None,
        color: float = 0.0,
        train: bool = False,
    ) -> None:
        check_all("data", {"min_size": min_size, "max_size": max_size, "resize": rule})
        check_all("augment", locals())
        self.max_size = max_size
        self.rule = rule
        self.min_sizes = np.array(min_sizes if train and min_sizes else [min_size])
        self.flip = flip if train else 0.0
        self.scale = tuple(scale) if train and scale else None
        self.color = color if train else 0.0
        self.train = train

    def plan_all(
        self, sizes: np.ndarray, seed: int, epoch: int, image_ids: np.ndarray
    ) -> Geometries:
        """Geometry of (N, 2) heights and widths of files with (N,) ids, in one epoch."""

        def draw(purpose: int) -> np.ndarray:
            return draws.uniform(seed, epoch, image_ids, purpose)

        min_sizes = self.min_sizes
        if len(min_sizes) > 1:
            min_sizes = min_sizes[(draw(draws.SIZE) * len(min_sizes)).astype(np.int64)]
        size = fitting = resized_sizes(sizes, min_sizes, self.max_size, self.rule)
        corner = np.zeros_like(size)
        flip = draw(draws.FLIP) < self.flip if self.flip else np.zeros(len(size), dtype=bool)
        if self.scale is not None:
            low, high = self.scale
            factor = low + (high - low) * draw(draws.SCALE)
            size = np.maximum((fitting * factor[:, None] + 0.5).astype(np.int64), 1)
            fitting = np.minimum(size, fitting)
            place = np.stack([draw(draws.TOP), draw(draws.LEFT)], axis=1)
            corner = (place * (size - fitting + 1)).astype(np.int64)
        window = np.concatenate([corner, fitting], axis=1)
        color = None
        if self.color:
            factors = [draw(p) for p in (draws.BRIGHTNESS, draws.CONTRAST, draws.SATURATION)]
            color = 1 + self.color * (2 * np.stack(factors, axis=1) - 1)  # (N, 3)
        return Geometries(size, window, flip, color)

    def plan(self, height: int, width: int, seed: int, epoch: int, image_id: int) -> Geometry:
        """Geometry of one image: row of :meth:`plan_all`."""
        return self.plan_all(np.array([[height, width]]), seed, epoch, np.array([image_id]))[0]

    def __call__(
        self, image: Tensor, boxes: Tensor, labels: Tensor, crowds: Tensor, geometry: Geometry
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image, boxes, labels and crowds as the model is to see them.

        Args:
            image: (3, H, W) uint8.
            boxes: (G, 4) pixels of ``image``.
            labels: (G,).
            crowds: (C, 4) pixels of ``image``.
            geometry: from :meth:`plan`.

        Returns:
            The four; of boxes and their labels those that are visible, as of
            :func:`transform_boxes`.
        """
        _, H, W = image.shape
        image = resize(image, geometry.size, self.rule)
        if geometry.crop is not None:
            top, left, height, width = geometry.crop
            image = image[:, top : top + height, left : left + width]
        if geometry.flip:
            image = image.flip(-1)
        if geometry.color is not None:
            brightness, contrast, saturation = geometry.color
            image = TF.adjust_contrast(TF.adjust_brightness(image, brightness), contrast)
            image = TF.adjust_saturation(image, saturation)
        boxes, kept = transform_boxes(boxes, (H, W), geometry)
        crowds, _ = transform_boxes(crowds, (H, W), geometry)
        return image, boxes, labels[kept], crowds


def transform_boxes(
    boxes: Tensor, size: tuple[int, int], geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """Move (G, 4) boxes as the pixels of an image of ``size``, height and width, move.

    Returns:
        The boxes with both sides at least ``MIN_BOX_SIDE``, clipped, and (G,) bool telling which
        of the given ones they are.
    """
    height, width = geometry.valid
    top, left = (0, 0) if geometry.crop is None else geometry.crop[:2]
    scale_y, scale_x = geometry.size[0] / size[0], geometry.size[1] / size[1]
    boxes = boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y])
    boxes = boxes - boxes.new_tensor([left, top, left, top])
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    if geometry.flip:
        x1, y1, x2, y2 = boxes.unbind(-1)
        boxes = torch.stack([width - x2, y1, width - x1, y2], dim=-1)
    kept = is_visible(boxes)
    return boxes[kept], kept


def is_visible(boxes: Tensor) -> Tensor:
    """(G,) bool: which of (G, 4) boxes, in pixels of the resized image, show an object."""
    return (boxes[:, 2:] - boxes[:, :2] >= MIN_BOX_SIDE).all(-1)
