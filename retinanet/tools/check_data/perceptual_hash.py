"""By what a picture is known again: its pixels to the last one, or what it looks like."""

from __future__ import annotations

import hashlib

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def digest_of(image: Tensor) -> bytes:
    """A hash of the size and all pixels of (3, H, W) uint8."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()


def gist_of(image: Tensor) -> bytes | None:
    """What a picture looks like, in 256 bits: where it becomes brighter from left to right.

    A difference hash: the mean brightness of 16 x 17 fields, each compared with its neighbor.

    Args:
        image: (3, H, W) uint8.

    Returns:
        32 bytes; None for a picture with too little in it to be known again: where less than
        half of the neighbors differ by a level of brightness.
    """
    height, width = image.shape[1:]
    step = max(1, min(height, width) // 256)  # of large pictures every n-th pixel is enough
    gray = image[:, ::step, ::step].float().mean(dim=0)
    fields = F.adaptive_avg_pool2d(gray[None], (16, 17))[0]
    differences = fields.diff(dim=1)  # (16, 16)
    if (differences.abs() >= 1).float().mean() < 0.5:
        return None
    return np.packbits((differences > 0).numpy()).tobytes()
