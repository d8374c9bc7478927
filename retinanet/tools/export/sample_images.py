"""Images to compare with, made ready as the file wants them."""

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
    """Images, and a sentence that says which.

    Args:
        given: files and folders; none: of the checkpoint's validation data.
        detector: whose data that is.
        folder: where images are made up if that data is not there.

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: a folder without images.
    """
    if given:
        paths = [image for path in given for image in _sample(path)]
        return paths, f"{len(paths)} images of {', '.join(map(str, given))}"
    data = detector.settings.data
    if data.val_images:
        recorded = Path(data.root or ".") / data.val_images
        try:
            paths = _sample(recorded)
        except (FileNotFoundError, ValueError):
            pass
        else:
            return paths, f"{len(paths)} images of the recorded validation data, {recorded}"
    return make_up(folder), (
        f"{len(MADE_UP)} images made up of colored noise: the checkpoint's validation images are "
        f"not here; --photos FOLDER compares on real ones"
    )


def _sample(path: Path) -> list[Path]:
    """A file, or ``MAX_OF_FOLDER`` images of a folder, from its first name to its last."""
    paths = find_images([str(path)]).paths
    places = np.linspace(0, len(paths) - 1, min(MAX_OF_FOLDER, len(paths))).round().astype(int)
    return [paths[place] for place in places.tolist()]


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
    """Every image at least once, in batches as the file takes them.

    Where the number of images may change, each comes alone, and then some of them together.

    Args:
        paths: of images.
        detector: whose sizes and resampling count.
        shape: what is fixed in the file.
        least_side: pixels that padded images have at least on each side.

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
    return [_stack(group, shape.size, least_side) for group in groups]


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


def _stack(group: Sequence[Batch], canvas: tuple[int, int] | None, least_side: int) -> Batch:
    """Images of one canvas: the given one, or the smallest that all fit into."""
    names, images, sizes, file_sizes = zip(*group, strict=True)
    sizes = torch.cat(sizes)
    H, W = canvas or np.maximum(padded_size(sizes.amax(dim=0).numpy()), least_side).tolist()
    padded = [F.pad(image, (0, W - image.shape[3], 0, H - image.shape[2])) for image in images]
    return Batch(sum(names, ()), torch.cat(padded), sizes, torch.cat(file_sizes))
