"""What a written file says about itself, so that it can be used without this project."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch

from retinanet.data.loader import DIVISOR
from retinanet.tools.export.write import Shape
from retinanet.tools.predict.detector import Detector
from retinanet.weights.pretrained import RGB_MEAN, RGB_STD

# Of the keys and values below; another number where a reader must change.
FORMAT = 1

_RESIZING = {
    "antialias": "bilinear with antialiasing, as Pillow's, rounded to whole numbers",
    "opencv": "bilinear without antialiasing, as OpenCV's, rounded to whole numbers",
    "torchvision": "bilinear without antialiasing, not rounded",
}
_ROUNDING = {"antialias": "half up", "opencv": "half up", "torchvision": "down"}


def describe(
    detector: Detector, state: dict[str, Any], checkpoint: Path, shape: Shape, least_side: int
) -> dict[str, Any]:
    """Key -> plain value, of everything that a program around the file must know.

    Args:
        detector: that is written.
        state: its checkpoint, from :func:`retinanet.weights.read.read_trained`.
        checkpoint: the file that it was read from.
        shape: what is fixed.
        least_side: pixels that padded images have at least on each side.
    """
    return {
        "format": FORMAT,
        "task": "object detection",
        "names": list(detector.names),
        "category_ids": list(detector.category_ids),
        "thresholds": detector.thresholds,
        "preprocessing": _preprocessing(detector, shape, least_side),
        "postprocess": dataclasses.asdict(detector.settings.postprocess),
        "source": {
            "file": checkpoint.name,
            "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
            "origin": state.get("origin") or "retinanet",
            "step": state.get("step"),
        },
        "versions": {"torch": torch.__version__},
    }


def image_dtype(detector: Detector) -> torch.dtype:
    """What resized pixels are: whole numbers, but where the checkpoint's rule does not round."""
    return torch.float32 if detector.settings.data.resize == "torchvision" else torch.uint8


def _preprocessing(detector: Detector, shape: Shape, least_side: int) -> dict[str, Any]:
    data = detector.settings.data
    return {
        "channels": "RGB",
        "layout": "BCHW",
        "range": [0, 255],
        "dtype": str(image_dtype(detector)).removeprefix("torch."),
        "min_size": data.min_size,
        "max_size": data.max_size,
        "resize": data.resize,
        "resampling": _RESIZING[data.resize],
        "sides_rounded": _ROUNDING[data.resize],
        "multiple": DIVISOR,
        "least_side": least_side,
        "batch": shape.batch,
        "size": shape.size and list(shape.size),
        "padding": "zeros, at right and bottom",
        "normalization": "inside the file",
        "mean": list(RGB_MEAN),
        "std": list(RGB_STD),
    }
