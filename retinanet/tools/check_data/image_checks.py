"""Image files beside their records, and images that are there twice.

From the headers of the files alone, or from all of their pixels: then each has two hashes, of its
pixels to the last one and of what it looks like.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from retinanet.data.coco import CocoData, Reading
from retinanet.data.images import BadImage, Header, read_header, read_image
from retinanet.data.issues import Issue, Sight, refusal
from retinanet.data.splits import (
    MAX_BAD_SHARE,
    describe_missing,
    describe_size,
    shared_images,
    too_many_bad,
)
from retinanet.data.workers import num_cores, receive, share, start_worker
from retinanet.tools.check_data.annotation_checks import describe_image

# When training meets what is wrong with a file.
WHEN_READ = "stops when it first reads the file"
# Validation images that are compared with all training images at once.
CHUNK = 64
# Images are near-duplicates when their perceptual hashes differ in at most so many of 256 bits.
# Of the 25,000 pairs of a training and a validation image in BCCD and in a part of COCO none
# differs in fewer than 72. Copies at half the size, of JPEG quality 40, brighter by a fifth or
# without a border of one percent: nine in ten of each kind differ in at most 20.
MAX_BITS = 20


class ImageFile(NamedTuple):
    """What one image file holds."""

    index: int  # of the image in the data set
    header: Header | None = None  # None: missing or unreadable
    size: tuple[int, int] | None = None  # height, width as training reads it
    error: str | None = None  # why it cannot be read
    pixel_hash: bytes | None = None  # where its pixels were decoded
    perceptual_hash: bytes | None = None  # likewise; None also where there is little to see


class _Files(Dataset):
    """Looks into the files of a data set; arguments as of :func:`read_files`."""

    def __init__(self, data: CocoData, pixels: bool) -> None:
        self.data = data
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> ImageFile:
        path = self.data.image_path(index)
        try:
            header = read_header(path)
            size = header.height, header.width
            as_listed = size == tuple(self.data.sizes[index].tolist())
            # Whether colors of 16 bits are refused depends on their pixels.
            if not self.pixels and header.certain and header.bits == 8 and as_listed:
                return ImageFile(index, header, size)
            image = read_image(path)
        except FileNotFoundError:
            return ImageFile(index)
        except (BadImage, OSError) as error:
            return ImageFile(index, error=str(error))
        file = ImageFile(index, header, tuple(image.shape[1:]))
        if not self.pixels:
            return file
        return file._replace(pixel_hash=pixel_hash(image), perceptual_hash=perceptual_hash(image))


def read_files(data: CocoData, *, pixels: bool, workers: int) -> Iterator[ImageFile]:
    """Every image file, in the order of the data set.

    Args:
        data: where they are listed.
        pixels: decode and hash each; otherwise read headers, and decode where they leave a doubt.
        workers: processes, as far as there are CPU cores; 0 for none.
    """
    loader = DataLoader(
        _Files(data, pixels),
        batch_size=None,
        num_workers=min(workers, num_cores()),
        collate_fn=share,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
    yield from receive(loader)


def pixel_hash(image: Tensor) -> bytes:
    """A hash of the size and all pixels of (3, H, W) uint8."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()


def perceptual_hash(image: Tensor) -> bytes | None:
    """What an image looks like, in 256 bits: where it becomes brighter from left to right.

    A difference hash: the mean brightness of 16 x 17 fields, each compared with its neighbor.

    Args:
        image: (3, H, W) uint8.

    Returns:
        32 bytes; None for an image with too little in it to be known again: where less than
        half of the neighbors differ by a level of brightness.
    """
    height, width = image.shape[1:]
    step = max(1, min(height, width) // 256)  # of large images every n-th pixel is enough
    gray = image[:, ::step, ::step].float().mean(dim=0)
    fields = F.adaptive_avg_pool2d(gray[None], (16, 17))[0]
    differences = fields.diff(dim=1)  # (16, 16)
    if (differences.abs() >= 1).float().mean() < 0.5:
        return None
    return np.packbits((differences > 0).numpy()).tobytes()


def check_files(reading: Reading, files: Sequence[ImageFile], skip: bool) -> Iterator[Issue]:
    """What training will meet when it reads the images.

    Args:
        reading: of the annotation file.
        files: of :func:`read_files`.
        skip: ``data.on_bad_image=skip``: unreadable images do not stop it.
    """
    data = reading.data

    def place(index: int, value: str) -> str:
        return reading.images.place(int(reading.image_rows[index]), value)

    kind = "images: the file cannot be read"
    bad = [file for file in files if file.error is not None]
    places = (place(file.index, file.error) for file in bad)
    if skip:
        does = f"goes on without, unless more than {MAX_BAD_SHARE:.0%} are missing or unreadable"
        missing = [file.index for file in files if file.header is None and file.error is None]
        lost = (describe_missing(data, index) for index in missing)
        fix = "Complete the folder, or remove the records."
        if not too_many_bad(len(missing), len(data)):  # else refused for all of them
            yield Issue("images: the file is missing", len(missing), lost, does, fix)
            num_lost = len(missing) + len(bad)
            if too_many_bad(num_lost, len(data)):
                counts = f"{num_lost} of {len(data)} images are missing or unreadable"
                where = f"{data.path}: {counts}, more than {MAX_BAD_SHARE:.0%}"
                fix = "Complete the folder, and replace the files that cannot be read."
                error = ValueError(f"{where}. {fix}")
                many = "images: too many are missing or unreadable"
                yield refusal(many, [where], error, fix, does="stops when it has met so many")
        yield Issue(kind, len(bad), places, does, "Replace the files.")
    elif bad:
        fix = "Replace the file, or set data.on_bad_image=skip to go on without."
        if too_many_bad(len(bad), len(data)):
            fix = "Replace the files: too many cannot be read to go on without."
        error = ValueError(bad[0].error)
        yield refusal(kind, places, error, fix, count=len(bad), does=WHEN_READ)
    other_size = other_sizes(data, files)
    for file in other_size:
        kind, sizes, fix = describe_size(data, file.index, file.size)
        where = place(file.index, sizes)
        error, sights = ValueError(f"{where}. {fix}"), [(Sight(data, file.index),)]
        yield refusal(kind, [where], error, fix, does=WHEN_READ, sights=sights)

    # Files that are not what they look like; one with the size before turning is refused above.
    formats = Image.registered_extensions()
    refused = {file.index for file in other_size}
    other, deep, turned = {}, {}, {}  # image -> what is odd about its file
    for index, header, *_ in files:
        if header is None:
            continue
        path = data.image_path(index)
        form = "JPEG" if header.format == "MPO" else header.format
        if formats.get(path.suffix.lower(), form) != form:
            other[index] = f"{path} holds {form}"
        if header.bits == 16:
            deep[index] = str(path)
        if header.orientation != 1 and index not in refused:
            turned[index] = f"{path}, orientation {header.orientation}"
    for kind, odd, does, fix in (
        (
            "the suffix is that of another format",
            other,
            "goes by the content",
            "Nothing is needed here; other tools may go by the name.",
        ),
        (
            "16 bits a channel",
            deep,
            "keeps 8 bits: of grey values the upper ones in use, of colors the upper ones",
            "Look at them with --pictures; where they are dark or flat, stretch them to 8 bits.",
        ),
        (
            "turned by their EXIF orientation",
            turned,
            "turns them, as viewers do",
            "Make sure that the boxes were drawn on the image as it is displayed.",
        ),
    ):
        places = [place(*item) for item in odd.items()]
        sights = [(Sight(data, index),) for index in odd if odd is not other]
        yield Issue(f"images: {kind}", len(odd), places, does, fix, sights=sights)


def other_sizes(data: CocoData, files: Sequence[ImageFile]) -> list[ImageFile]:
    """The images of another size than their record says."""
    sizes = data.sizes.tolist()
    return [f for f in files if f.size is not None and list(f.size) != sizes[f.index]]


def check_copies(data: CocoData, files: Sequence[ImageFile]) -> Issue:
    """The same image under two names in one split, of files that were read with pixels."""
    first: dict[bytes, int] = {}
    copies = {}  # image -> the first one with its pixels
    for file in files:
        if file.pixel_hash is not None:
            before = first.setdefault(file.pixel_hash, file.index)
            if before != file.index:
                copies[file.index] = before

    def objects(index: int) -> list[tuple]:  # whatever their order in the file
        boxes, labels = data.boxes(index)
        return sorted(zip(labels.tolist(), boxes.tolist(), strict=True))

    return Issue(
        "images: the same image under two names",
        len(copies),
        (
            f"{describe_image(data, index)} is {data.image_path(before)}, with "
            f"{'the same' if objects(index) == objects(before) else 'other'} boxes"
            for index, before in copies.items()
        ),
        "takes them for different images",
        "Remove one of them. Where their boxes differ, one has wrong or missing boxes.",
        sights=((Sight(data, index), Sight(data, before)) for index, before in copies.items()),
    )


def check_leaks(
    train: CocoData, val: CocoData, train_files: Sequence[ImageFile], val_files: Sequence[ImageFile]
) -> Iterator[Issue]:
    """The same image, or a near-duplicate, in training and in validation.

    Args:
        train: of the splits.
        val: of the splits.
        train_files: of :func:`read_files`, with pixels.
        val_files: likewise.
    """
    known = {file.pixel_hash: file.index for file in train_files if file.pixel_hash is not None}
    shared = set(shared_images(train, val))  # the same file: an issue of its own
    others = [file for file in val_files if file.index not in shared]
    same = {file.index: known[file.pixel_hash] for file in others if file.pixel_hash in known}
    near = near_duplicates(train_files, [file for file in others if file.index not in same])
    for kind, pairs, verb, may, fix in (
        (
            "the same image in training and validation, under two names",
            same,
            "is",
            "will",
            "Remove them from one of the two files.",
        ),
        (
            "near-duplicates in training and validation",
            near,
            "looks like",
            "may",
            "Look at them: copies of another size, and images of one scene or film, belong in one "
            "of the two files.",
        ),
    ):
        places = [
            f"{describe_image(val, index)} {verb} {train.image_path(other)}"
            for index, other in pairs.items()
        ]
        sights = [(Sight(val, index), Sight(train, other)) for index, other in pairs.items()]
        does = f"takes them for different images: AP {may} look better than it is"
        yield Issue(f"images: {kind}", len(pairs), places, does, fix, sights=sights)


def near_duplicates(train: Sequence[ImageFile], val: Sequence[ImageFile]) -> dict[int, int]:
    """Validation images -> the training image of the nearest perceptual hash, where it is near."""
    train = [file for file in train if file.perceptual_hash is not None]
    val = [file for file in val if file.perceptual_hash is not None]
    if not train or not val:
        return {}

    def signs(files: Sequence[ImageFile]) -> Tensor:  # (N, 256) float32, 1 and -1
        packed = np.frombuffer(b"".join(file.perceptual_hash for file in files), dtype=np.uint8)
        return torch.from_numpy(np.unpackbits(packed)).view(len(files), -1).float() * 2 - 1

    train_signs, val_signs = signs(train), signs(val)
    pairs = {}
    for start in range(0, len(val), CHUNK):
        # Of n signs a pair agrees in (n + product) / 2.
        product, nearest = (train_signs @ val_signs[start : start + CHUNK].T).max(dim=0)
        differing = (train_signs.shape[1] - product) / 2
        for i in torch.nonzero(differing <= MAX_BITS).flatten().tolist():
            pairs[val[start + i].index] = train[int(nearest[i])].index
    return pairs
