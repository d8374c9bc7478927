"""RetinaNet (Lin et al. 2017, arXiv:1708.02002) in plain PyTorch; README.md has the reading order.

Letters used for shapes in every docstring of this package:

    B  images in a batch            L  pyramid levels (5: P3 to P7)
    A  anchors in one image         a  anchors at one feature-map cell (9)
    G  ground-truth boxes           K  foreground classes
    D  detections kept              H, W  padded image height and width, in pixels

Boxes are float32 ``(x1, y1, x2, y2)`` in pixels of the resized image: x grows
rightwards, y downwards, and width is ``x2 - x1`` (no ``+ 1``). Labels are 0 to K - 1.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "RetinaNet": "retinanet.model.retinanet",
    "AnchorGenerator": "retinanet.model.anchors",
    "RetinaNetLoss": "retinanet.losses",
    "focal_loss": "retinanet.losses",
    "Matcher": "retinanet.matching",
    "Detector": "retinanet.tools.predict.detector",
    "load": "retinanet.tools.predict.detector",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a part alone does not import torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'retinanet' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
