"""Photos to compare with, made ready as the file wants its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from retinanet.config import DetectorConfig
from retinanet.data.images import read_image
from retinanet.data.loader import padded_size
from retinanet.data.transforms import resize, resized_size
from retinanet.tools.export.write import Shape
from retinanet.tools.image_files import find_photos
from retinanet.tools.predict.detector import Detector

# Photos of a folder that are looked at: enough for several sizes, few enough to wait for.
MOST = 8
# Of a batch whose number of images may change.
BATCH = 3
# Height and width of the pictures that are made up where there are no photos, pixels.
MADE_UP = ((480, 640), (640, 427), (333, 500), (600, 600))


class Batch(NamedTuple):
    """Photos as the file takes them, all at once."""

    names: tuple[str, ...]
    images: Tensor  # (B, 3, H, W), padded at right and bottom
    sizes: Tensor  # (B, 2) height and width without padding
    file_sizes: Tensor  # (B, 2) height and width of the files


def choose(given: Sequence[Path], detector: Detector, folder: Path) -> tuple[list[Path], str]:
    """Photos, and a sentence that says which.

    Args:
        given: files and folders; none: of the checkpoint's validation data.
        detector: whose data that is.
        folder: where pictures are made up if that data is not there.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without images.
    """
    if given:
        photos = [photo for path in given for photo in _of(path)]
        return photos, f"{len(photos)} photos of {', '.join(map(str, given))}"
    recorded = _recorded(detector.settings)
    if recorded is not None:
        try:
            photos = _of(recorded)
        except (FileNotFoundError, ValueError):
            pass
        else:
            return photos, f"{len(photos)} photos of the recorded validation data, {recorded}"
    return make_up(folder), (
        f"{len(MADE_UP)} pictures made up of colored noise: the checkpoint's validation images are "
        f"not here; --photos FOLDER compares on real ones"
    )


def _recorded(settings: DetectorConfig) -> Path | None:
    data = settings.data
    return Path(data.root or ".") / data.val_images if data.val_images else None


def _of(path: Path) -> list[Path]:
    """A file, or photos of a folder: ``MOST`` of them, from its first name to its last."""
    found = find_photos([str(path)]).paths
    places = np.linspace(0, len(found) - 1, min(MOST, len(found))).round().astype(int)
    return [found[place] for place in places.tolist()]


def make_up(folder: Path) -> list[Path]:
    """Colored blobs of several sizes, always the same."""
    paths = []
    for number, (height, width) in enumerate(MADE_UP):
        noise = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        paths.append(folder / f"made_up_{number}.png")
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def batches(
    photos: Sequence[Path], detector: Detector, shape: Shape, least_side: int
) -> list[Batch]:
    """Every photo at least once, in batches as the file takes them.

    Where the number of images may change, each photo comes alone, and then some of them together.

    Args:
        photos: paths.
        detector: whose sizes and resampling count.
        shape: what is fixed in the file.
        least_side: pixels that padded images have at least on each side.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no readable image.
    """
    shots = [fit(photo, detector.settings, shape.size) for photo in photos]
    groups = [[shot] for shot in shots]
    if shape.batch is None and len(shots) > 1:
        groups.append(shots[:BATCH])
    if shape.batch is not None:
        B = shape.batch  # the last batch is filled up with photos from the beginning
        groups = [
            [shots[(start + i) % len(shots)] for i in range(B)] for start in range(0, len(shots), B)
        ]
    return [_stack(group, shape.size, least_side) for group in groups]


def fit(photo: Path, settings: DetectorConfig, within: tuple[int, int] | None) -> Batch:
    """One photo, resized as the checkpoint says, and further if that is larger than ``within``."""
    data = settings.data
    image = read_image(photo)
    original = tuple(image.shape[1:])
    size = resized_size(*original, data.min_size, data.max_size, data.resize)
    if within is not None:
        size = shrunk(size, within)
    image = resize(image, size, data.resize)
    return Batch((photo.name,), image[None], torch.tensor([size]), torch.tensor([original]))


def shrunk(size: tuple[int, int], within: tuple[int, int]) -> tuple[int, int]:
    """Height and width that fit into a canvas, as they are or smaller in the same proportion."""
    factor = min(1, within[0] / size[0], within[1] / size[1])
    height, width = (max(int(side * factor + 0.5), 1) for side in size)
    return height, width


def _stack(group: Sequence[Batch], canvas: tuple[int, int] | None, least_side: int) -> Batch:
    """Photos of one canvas: the given one, or the smallest that all fit into."""
    sizes = torch.cat([shot.sizes for shot in group])
    if canvas is None:
        H, W = np.maximum(padded_size(sizes.amax(dim=0).numpy()), least_side).tolist()
    else:
        H, W = canvas
    images = [
        F.pad(shot.images, (0, W - shot.images.shape[3], 0, H - shot.images.shape[2]))
        for shot in group
    ]
    names = tuple(name for shot in group for name in shot.names)
    return Batch(names, torch.cat(images), sizes, torch.cat([shot.file_sizes for shot in group]))
