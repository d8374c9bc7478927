"""How a plain torchvision loop reads images: as its detection references do.

Source: pytorch/vision, references/detection: Pillow decodes, left-right flips, values from 0 to
1, images without boxes left out of training, what does not fill a batch dropped; the model
resizes and pads.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from retinanet.data.coco import CocoData

Sample = tuple[Tensor, dict[str, Tensor]]


class PlainImages(Dataset):
    """Images at the size of their files, with boxes."""

    def __init__(self, data: CocoData, flip: float) -> None:
        """Remember both; ``flip`` is the probability of a left-right flip."""
        self.data = data
        self.flip = flip

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        """(3, H, W) from 0 to 1, and boxes (G, 4), labels (G,) and the image's index."""
        with Image.open(self.data.image_path(index)) as file:
            image = pil_to_tensor(file.convert("RGB")) / 255
        boxes, labels = self.data.boxes(index)
        if torch.rand(()) < self.flip:
            image = image.flip(-1)
            boxes = boxes[:, [2, 1, 0, 3]] * boxes.new_tensor([-1, 1, -1, 1])
            boxes[:, [0, 2]] += image.shape[-1]
        return image, {"boxes": boxes, "labels": labels, "index": torch.tensor(index)}


def train_loader(
    data: CocoData, *, flip: float, batch_size: int, seed: int, step: int, workers: int
) -> DataLoader:
    """Shuffled batches without end, from the one of ``step`` on."""
    images = np.flatnonzero(data.num_boxes())
    if len(images) < batch_size:
        raise ValueError(
            f"optim.batch_size={batch_size}, but {data.path} has only {len(images)} images with "
            f"a box; lower it."
        )
    return DataLoader(
        PlainImages(data, flip),
        batch_sampler=_batches(images, batch_size, seed, step),
        num_workers=workers,
        collate_fn=_as_lists,
        generator=torch.Generator().manual_seed(seed + step),
    )


def val_loader(
    data: CocoData, *, batch_size: int, max_images: int | None, workers: int
) -> DataLoader:
    """Every image once, in order."""
    count = len(data) if max_images is None else min(max_images, len(data))
    return DataLoader(
        torch.utils.data.Subset(PlainImages(data, flip=0.0), range(count)),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_as_lists,
        generator=torch.Generator(),
    )


def _batches(images: np.ndarray, batch_size: int, seed: int, step: int) -> Iterator[list[int]]:
    steps_per_epoch = len(images) // batch_size
    while True:
        epoch, done = divmod(step, steps_per_epoch)
        order = images[np.random.default_rng([seed, epoch]).permutation(len(images))]
        for number in range(done, steps_per_epoch):
            yield order[number * batch_size : (number + 1) * batch_size].tolist()
            step += 1


def _as_lists(samples: list[Sample]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
