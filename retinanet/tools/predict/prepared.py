"""Photos made ready for a model, and gathered into batches of one padded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from retinanet.data.images import pillow_pixels, read_image
from retinanet.data.loader import padded_size
from retinanet.data.transforms import resize, resized_size
from retinanet.data.workers import PREFETCH, receive, share, start_worker

Photo = str | Path | Image.Image | np.ndarray | Tensor

# Photos wait until a batch of their padded size is full, but no more than this many batches' worth:
# that bounds the memory, and how long the oldest waits.
WAITING_BATCHES = 4


class Prepared(NamedTuple):
    """A photo as a model sees it."""

    index: int  # among the photos
    image: Tensor  # (3, height, width) resized, not padded; uint8, or float32 from 0 to 255
    original: tuple[int, int]  # height, width of the photo as displayed

    @property
    def padded(self) -> tuple[int, int]:
        """H, W of its batch."""
        H, W = padded_size(np.array(self.image.shape[1:])).tolist()
        return H, W


class Unreadable(NamedTuple):
    """A photo that cannot be read, and why."""

    index: int
    error: ValueError | OSError


class Preparer(Dataset):
    """Reads and resizes photos, in whatever process it is asked.

    Args:
        photos: see :func:`pixels_of`.
        min_size: shorter side after resizing, pixels.
        max_size: the longer side is never resized above this, pixels.
        rule: how it is resized; see :func:`retinanet.data.transforms.resize`.
    """

    def __init__(self, photos: Sequence[Photo], min_size: int, max_size: int, rule: str) -> None:
        self.photos = photos
        self.limits = min_size, max_size, rule

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Prepared | Unreadable:
        return self.prepare(index, self.photos[index])

    def prepare(self, index: int, photo: Photo) -> Prepared | Unreadable:
        """A photo as the model sees it, or why it cannot be read."""
        try:
            pixels = pixels_of(photo)
        except (ValueError, OSError) as error:
            # Without where it arose: that cannot go from one process to another.
            return Unreadable(index, error.with_traceback(None))
        height, width = pixels.shape[1:]
        size = resized_size(height, width, *self.limits)
        return Prepared(index, resize(pixels, size, self.limits[-1]), (height, width))


def pixels_of(photo: Photo) -> Tensor:
    """The pixels of a photo as it is displayed.

    Args:
        photo: a path; an image of Pillow, whose EXIF orientation is applied; an array (H, W, 3) or
            a tensor (3, H, W), both uint8 RGB.

    Returns:
        (3, H, W) uint8 RGB.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no readable image, or an array of another shape or type.
        TypeError: something else.
    """
    if isinstance(photo, str | Path):
        return read_image(photo)
    if isinstance(photo, Image.Image):
        return pillow_pixels(photo)
    if not isinstance(photo, np.ndarray | Tensor):
        raise TypeError(
            f"a photo is a path, an image of Pillow, an array or a tensor, got {type(photo)}."
        )
    channels, kind = (2, "an array (H, W, 3)") if isinstance(photo, np.ndarray) else (0, "")
    right = photo.ndim == 3 and photo.shape[channels] == 3 and 0 not in photo.shape
    if not right or str(photo.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(
            f"{kind or 'a tensor (3, H, W)'} of uint8 from 0 to 255, RGB, makes a photo; got "
            f"{tuple(photo.shape)} of {photo.dtype}."
        )
    if isinstance(photo, Tensor):
        return photo.cpu()
    return torch.from_numpy(np.ascontiguousarray(photo)).permute(2, 0, 1)  # (3, H, W)


def prepare_all(
    preparer: Preparer, workers: int, pin_memory: bool = False
) -> Iterator[Prepared | Unreadable]:
    """Every photo, read ahead by ``workers`` processes, in the order of the photos.

    Args:
        preparer: with the photos.
        workers: at least 1.
        pin_memory: for a GPU.

    Raises:
        LoaderError: a worker failed.
    """
    loader = DataLoader(
        preparer,
        batch_size=None,
        num_workers=workers,
        collate_fn=share,
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # the global one stays as it is
    )
    return receive(loader, "lower the batch size")


def shared_bytes(preparer: Preparer, workers: int, batch_size: int) -> int:
    """Shared memory that photos fill at most until they are in a batch, in bytes."""
    min_size, max_size, rule = preparer.limits
    photos = PREFETCH * workers + (WAITING_BATCHES + 1) * batch_size
    return photos * 3 * min_size * max_size * (4 if rule == "torchvision" else 1)


def in_batches(
    photos: Iterable[Prepared | Unreadable], batch_size: int
) -> Iterator[list[Prepared] | Unreadable]:
    """Photos of one padded size together, in an order that only depends on the photos.

    Args:
        photos: in order.
        batch_size: photos at most.
    """
    waiting: dict[tuple[int, int], list[Prepared]] = {}
    for photo in photos:
        if isinstance(photo, Unreadable):
            yield photo
            continue
        group = waiting.setdefault(photo.padded, [])
        group.append(photo)
        if len(group) == batch_size:
            yield waiting.pop(photo.padded)
        elif sum(map(len, waiting.values())) == WAITING_BATCHES * batch_size:
            yield waiting.pop(min(waiting, key=lambda size: waiting[size][0].index))
    yield from waiting.values()


def pad_together(photos: Sequence[Prepared]) -> tuple[Tensor, Tensor, Tensor]:
    """Photos of one padded size as a batch.

    Returns:
        Images (B, 3, H, W), zeros at right and bottom, channels last in memory; their sizes
        without padding (B, 2); those of the photos (B, 2).
    """
    B, (H, W) = len(photos), photos[0].padded
    images = torch.zeros(B, H, W, 3, dtype=photos[0].image.dtype).permute(0, 3, 1, 2)
    for i, photo in enumerate(photos):
        _, height, width = photo.image.shape
        images[i, :, :height, :width] = photo.image
    sizes = torch.tensor([photo.image.shape[1:] for photo in photos])
    return images, sizes, torch.tensor([photo.original for photo in photos])
