"""Images to compare with, made ready as the file wants them."""

from __future__ import annotations

import contextlib
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
from retinanet.tools.image_files import find_images
from retinanet.tools.predict.detector import Detector

# Images of a folder that are looked at: enough for several sizes, few enough to wait for.
MAX_OF_FOLDER = 8
# Of a batch whose number of images may change.
BATCH = 3
# Height and width of the images that are made up where there are none, pixels.
MADE_UP = ((480, 640), (640, 427), (333, 500), (600, 600))


class Batch(NamedTuple):
    """Images as the file takes them, all at once."""

    names: tuple[str, ...]
    images: Tensor  # (B, 3, H, W), padded at right and bottom
    sizes: Tensor  # (B, 2) height and width without padding
    file_sizes: Tensor  # (B, 2) height and width of the files


def choose(given: Sequence[Path], detector: Detector, folder: Path) -> tuple[list[Path], str]:
    """Images that are given, or of the checkpoint's validation data, and words that say which.

    Where that data is missing, images are made up in ``folder``.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without images.
    """

    def sample(path: Path) -> list[Path]:
        """A file, or images of a folder from its first name to its last."""
        paths = find_images([str(path)]).paths
        rows = np.linspace(0, len(paths) - 1, min(MAX_OF_FOLDER, len(paths))).round().astype(int)
        return [paths[row] for row in rows.tolist()]

    if given:
        paths = [image for path in given for image in sample(path)]
        return paths, f"{len(paths)} images of {', '.join(map(str, given))}"
    data = detector.settings.data
    if data.val_images:
        recorded = Path(data.root or ".") / data.val_images
        with contextlib.suppress(FileNotFoundError, ValueError):
            paths = sample(recorded)
            return paths, f"{len(paths)} images of the recorded validation data, {recorded}"
    return make_up(folder), (
        f"{len(MADE_UP)} images made up of colored noise: the checkpoint's validation images are "
        f"not here; --photos FOLDER compares on real ones"
    )


def make_up(folder: Path) -> list[Path]:
    """Colored blobs of several sizes, always the same."""
    paths = []
    for number, (height, width) in enumerate(MADE_UP):
        noise = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        paths.append(folder / f"made_up_{number}.png")
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def batches(
    paths: Sequence[Path], detector: Detector, shape: Shape, least_side: int
) -> list[Batch]:
    """Every image at least once, in batches as a file of this shape takes them.

    Where the number of images may change, each comes alone, and then some of them together.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no readable image.
    """
    images = [fit(path, detector.settings, shape.size) for path in paths]
    if shape.batch is None:
        groups = [[image] for image in images]
        groups += [images[:BATCH]] if len(images) > 1 else []
    else:
        B, N = shape.batch, len(images)  # the last batch is filled up from the beginning
        groups = [[images[(start + i) % N] for i in range(B)] for start in range(0, N, B)]
    stacked = []
    for group in groups:
        names, pixels, sizes, file_sizes = zip(*group, strict=True)
        sizes = torch.cat(sizes)
        smallest = np.maximum(padded_size(sizes.amax(dim=0).numpy()), least_side)
        H, W = shape.size or smallest.tolist()
        padded = [F.pad(image, (0, W - image.shape[3], 0, H - image.shape[2])) for image in pixels]
        stacked.append(Batch(sum(names, ()), torch.cat(padded), sizes, torch.cat(file_sizes)))
    return stacked


def fit(path: Path, settings: DetectorConfig, within: tuple[int, int] | None) -> Batch:
    """One image, resized as the checkpoint says, and further if that is larger than ``within``."""
    data = settings.data
    image = read_image(path)
    original = tuple(image.shape[1:])
    size = resized_size(*original, data.min_size, data.max_size, data.resize)
    if within is not None:
        factor = min(1, within[0] / size[0], within[1] / size[1])
        size = tuple(max(int(side * factor + 0.5), 1) for side in size)
    image = resize(image, size, data.resize)
    return Batch((path.name,), image[None], torch.tensor([size]), torch.tensor([original]))
