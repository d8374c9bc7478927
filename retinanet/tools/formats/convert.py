"""From sources on the command line to one data set, and from that to a new folder."""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from retinanet.data.records import leaves_folder, shown
from retinanet.tools.formats.coco import read_coco_file, write_coco
from retinanet.tools.formats.dataset import (
    Dataset,
    Errors,
    ImageRecord,
    Options,
    Split,
    check_name,
    progress,
    split_name,
)
from retinanet.tools.formats.labelme import read_labelme
from retinanet.tools.formats.table import read_table
from retinanet.tools.formats.via import read_via
from retinanet.tools.formats.voc import read_voc
from retinanet.tools.formats.yolo import read_yolo, write_yolo

# Formats that are read, and those that are written.
READERS = {
    "coco": read_coco_file,
    "voc": read_voc,
    "yolo": read_yolo,
    "csv": read_table,
    "labelme": read_labelme,
    "via": read_via,
}
TARGETS = ("coco", "yolo")


def read_sources(
    source_format: str,
    sources: Sequence[str],
    options: Options,
    image_folders: Sequence[Path] = (),
) -> Dataset:
    """All sources as one data set; those of one split are put together, classes go by name.

    Args:
        source_format: of ``READERS``.
        sources: paths; ``NAME=PATH`` names the split of a file.
        options: of every source.
        image_folders: none, one for all sources, or one for each.

    Raises:
        AnnotationError: everything that is wrong.
        FileNotFoundError: a source, or the folder of its images, is not there.
        ValueError: a split that names no file.
    """
    if len(image_folders) not in (0, 1, len(sources)):
        raise ValueError(
            f"--image-folder must be given once, or once for each source, got "
            f"{len(image_folders)} for {len(sources)}."
        )
    for folder in image_folders:
        if not folder.is_dir() and options.look:
            raise FileNotFoundError(f"there is no image folder {folder}.")
    named: list[tuple[str, Path]] = []
    for source in sources:
        name, mark, path = source.partition("=")
        if not mark or not re.fullmatch(r"[\w-]+", name) or Path(source).exists():
            name, path = "", source
        named.append((name, Path(path)))
        if source_format in ("coco", "csv", "via") and not Path(path).is_file():
            what = "is a folder" if Path(path).is_dir() else "does not exist"
            raise FileNotFoundError(f"{path} {what}; --from {source_format} takes files.")
    if len(image_folders) < len(named):
        image_folders = (list(image_folders) or [None]) * len(named)
    parts = []
    for (name, path), folder in zip(named, image_folders, strict=True):
        part = READERS[source_format](path, dataclasses.replace(options, image_folder=folder))
        hidden = sum(1 for _ in path.rglob("._*")) if path.is_dir() else 0
        if hidden:
            part.notes["file of macOS beside another (._NAME), left out"] = hidden
        if name and len(part.splits) == 1:
            part.splits[0].name = split_name(name)
        parts.append(part)
    return _merged(parts)


def _merged(parts: Sequence[Dataset]) -> Dataset:
    """Several sources as one data set."""
    whole = Dataset([], {})
    for name in dict.fromkeys(split.name for part in parts for split in part.splits):
        if leaves_folder(name) or len(Path(name).parts) != 1:
            raise ValueError(
                f"the split {name!a} names files, so it may not be empty or have folders in it."
            )
        same = [split for part in parts for split in part.splits if split.name == name]
        whole.splits.append(same[0] if len(same) == 1 else _joined(same, whole.notes))
    ids: dict[str, int] = {}
    for part in parts:
        whole.notes.update(part.notes)
        for name, number in part.class_ids.items():
            if name not in ids:  # the id of the source that names it first, unless that is taken
                ids[name] = number if number not in ids.values() else max(ids.values()) + 1
            if ids[name] != number:
                whole.notes[f"class {name}: id {ids[name]}, not {number} as in one source"] = 0
    names = {number: name for name, number in ids.items()}
    flat = sum(min(box.xywh[2:]) <= 0 for box in whole.boxes())
    if flat:
        whole.notes["box without width or height, which train.py never trains on"] = flat
    # Where nothing lists the classes: ids from 1 in alphabetical order.
    used = sorted({box.class_name for box in whole.boxes()})
    whole.class_ids = {names[i]: i for i in sorted(names)}
    whole.class_ids = whole.class_ids or {name: row for row, name in enumerate(used, 1)}
    for name in used:
        if name not in whole.class_ids:
            raise ValueError(f"the class {shown(name)} is not in the list of classes; add it.")
    return whole


def _joined(splits: Sequence[Split], notes: Counter[str]) -> Split:
    """Sources of one split in one list, names from the folder that holds all their images.

    An image that several of them have is there once, with the boxes of all.
    """
    roots = [split.root.resolve() for split in splits]
    root = Path(os.path.commonpath(roots))
    images: dict[str, ImageRecord] = {}
    for split, folder in zip(splits, roots, strict=True):
        for image in split.images:
            name = (folder / image.name).relative_to(root).as_posix()
            there = images.setdefault(name, dataclasses.replace(image, name=name, id=None))
            if there.boxes is not image.boxes:
                there.boxes = [*there.boxes, *(b for b in image.boxes if b not in there.boxes)]
                notes["image that several sources have, there once with the boxes of all"] += 1
    return Split(splits[0].name, root, list(images.values()))


def set_aside(dataset: Dataset, share: float, seed: int) -> None:
    """Divide the part ``train``, or all parts together where none is, into ``train`` and ``val``.

    By chance and in place. A part ``test`` beside ``train`` stays.

    Raises:
        ValueError: there is a part ``val``, or there are too few images.
    """
    splits = {split.name: split for split in dataset.splits}
    if "val" in splits:
        raise ValueError(
            f"--val-share makes val, but there are {', '.join(splits)}; leave it out, or name the "
            f"source train=PATH."
        )
    others = [split for name, split in splits.items() if "train" in splits and name != "train"]
    parts = [split for split in dataset.splits if split not in others]
    whole = parts[0] if len(parts) == 1 else _joined(parts, dataset.notes)
    num_images = len(whole.images)
    num_val = round(share * num_images)
    if not 0 < num_val < num_images:
        raise ValueError(
            f"--val-share {share:g} of {num_images} images leaves one part empty; choose another "
            f"share."
        )
    chosen = set(random.Random(seed).sample(range(num_images), num_val))
    divided: dict[str, list[ImageRecord]] = {"train": [], "val": []}
    for row, image in enumerate(whole.images):
        divided["val" if row in chosen else "train"].append(image)
    made = [Split(name, whole.root, images) for name, images in divided.items()]
    dataset.splits = [*made, *others]


def write(
    dataset: Dataset,
    target: str,
    output: Path,
    *,
    images: str,
    keep_crowd: bool = False,
    overwrite: bool = False,
) -> Counter[str]:
    """Write a folder, whole or not at all; what the format does not hold, as ``Dataset.notes``.

    Args:
        dataset: any.
        target: one of ``TARGETS``.
        output: the folder to make.
        images: what becomes of the image files: ``link`` or ``copy`` into the folder, or nothing.
        keep_crowd: YOLO gets crowd regions as objects.
        overwrite: move a folder that is there aside.

    Raises:
        AnnotationError: image names that the format cannot hold.
        OSError: it cannot be written.
    """
    errors = Errors()
    for split in dataset.splits:
        for image in split.images:
            with errors.caught(split.root):
                check_name(image.name, "image")
    errors.stop()
    notes: Counter[str] = Counter()
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        if target == "coco":
            write_coco(dataset, partial)
        else:
            notes = write_yolo(dataset, partial, keep_crowd=keep_crowd)
        for split in dataset.splits if images in ("link", "copy") else ():
            for image in progress(split.images, f"images of {split.name}"):
                source = split.root / image.name
                place = partial / "images" / split.name / image.name
                place.parent.mkdir(parents=True, exist_ok=True)
                if images == "copy":
                    shutil.copyfile(source, place)
                    continue
                try:
                    place.symlink_to(source.resolve())
                except FileExistsError:  # two names of one file
                    raise
                except OSError as error:
                    what = f"cannot make a link {place}: {error.strerror or error}"
                    raise OSError(f"{what}; use --images copy.") from error
        if overwrite and output.exists() and any(output.iterdir()):
            numbers = (output.with_name(f"{output.name}.old{n}") for n in range(1, 10**6))
            aside = next(path for path in numbers if not path.exists())
            output.rename(aside)
            notes[f"the folder that was there is now {aside}"] = 0
        elif output.is_dir():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return notes
