"""Samples of different sizes become one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from retinanet.data.coco import CocoData
from retinanet.data.samples import Sample

# Label where a row of boxes is padding.
NO_BOX = -1


class Batch(NamedTuple):
    """Images of one padded size with their boxes."""

    # (B, 3, H, W) RGB, zeros at right and bottom; channels last in memory. uint8, or float32 from
    # 0 to 255 where resizing does not round.
    images: Tensor
    sizes: Tensor  # (B, 2) int64 valid height, width
    boxes: Tensor  # (B, G, 4) float32, zeros where there are fewer than G
    labels: Tensor  # (B, G) int64, NO_BOX there
    crowds: Tensor  # (B, C, 4) float32, zeros where there are fewer than C
    image_ids: Tensor  # (B,) int64
    original_sizes: Tensor  # (B, 2) int64 height, width of the files
    replaced: tuple[str, ...] = ()  # why images were replaced, one message each

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        tensors = (tensor.to(device, non_blocking=non_blocking) for tensor in self[:-1])
        return Batch(*tensors, self.replaced)

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU reads without waiting."""
        return Batch(*(tensor.pin_memory() for tensor in self[:-1]), self.replaced)


def pad(
    samples: Sequence[Sample], padded: tuple[int, int], data: CocoData, replaced: tuple[str, ...]
) -> Batch:
    """Samples of different sizes -> one batch.

    Args:
        samples: at least one, none larger than ``padded``.
        padded: H, W of the batch.
        data: where the samples come from.
        replaced: what the batch is to carry of that name.
    """
    B, (H, W) = len(samples), padded
    G = max(len(sample.boxes) for sample in samples)
    C = max(len(sample.crowds) for sample in samples)
    rounded = all(sample.image.dtype == torch.uint8 for sample in samples)
    dtype = torch.uint8 if rounded else torch.float32
    images = torch.zeros(B, H, W, 3, dtype=dtype).permute(0, 3, 1, 2)  # (B, 3, H, W)
    boxes, crowds = torch.zeros(B, G, 4), torch.zeros(B, C, 4)
    labels = torch.full((B, G), NO_BOX)
    for i, sample in enumerate(samples):
        _, height, width = sample.image.shape
        images[i, :, :height, :width] = sample.image
        boxes[i, : len(sample.boxes)] = sample.boxes
        labels[i, : len(sample.labels)] = sample.labels
        crowds[i, : len(sample.crowds)] = sample.crowds
    indices = [sample.index for sample in samples]
    return Batch(
        images=images,
        sizes=torch.tensor([sample.image.shape[1:] for sample in samples]),
        boxes=boxes,
        labels=labels,
        crowds=crowds,
        image_ids=torch.from_numpy(data.image_ids[indices]),
        original_sizes=torch.from_numpy(data.sizes[indices].astype(np.int64)),
        replaced=replaced,
    )
