"""A data set to another format: say what is lost, write a new folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from retinanet.tools.formats import coco, table, voc, yolo
from retinanet.tools.formats.annotations import (
    Annotations,
    Box,
    Faults,
    Notes,
    Picture,
    name_problem,
)
from retinanet.tools.formats.images import Placing, place


def prepare(found: Annotations, target: str, *, keep_crowd: bool = False) -> Notes:
    """Take out what a format cannot hold, and refuse names that it cannot.

    Args:
        found: changed in place.
        target: one of ``FORMATS``.
        keep_crowd: YOLO gets crowd regions as objects.

    Returns:
        What was taken out.

    Raises:
        AnnotationError: names.
    """
    _check_names(found, target)
    if target == "coco":
        return {}
    notes = _take_out(found, "box without width or height, left out", _is_flat)
    if target == "yolo":
        if not keep_crowd:
            what = "crowd region, left out: YOLO has none (--crowd object writes them as objects)"
            notes |= _take_out(found, what, lambda box: box.crowd)
        notes |= _not_in_yolo(found)
    return notes


def _check_names(found: Annotations, target: str) -> None:
    """Refuse image names that a format cannot hold.

    Raises:
        AnnotationError: all of them.
    """
    faults = Faults()
    for picture in found.pictures():
        problem = name_problem(picture.name)
        if problem:
            faults.add(ascii(picture.name), f"{problem}; rename the file.")
    # One file for each image, of the same name but for the suffix.
    if target == "voc":
        _check_stems(found.pictures(), faults)
    if target == "yolo":
        for split in found.splits:
            _check_stems(split.pictures, faults)
    faults.stop()


def _is_flat(box: Box) -> bool:
    return min(box.xywh[2:]) <= 0


def _take_out(found: Annotations, what: str, is_lost: Callable[[Box], bool]) -> Notes:
    """Remove some boxes, and say how many."""
    number = sum(map(is_lost, found.boxes()))
    for picture in found.pictures() if number else ():
        picture.boxes = [box for box in picture.boxes if not is_lost(box)]
    return {what: number} if number else {}


def _not_in_yolo(found: Annotations) -> Notes:
    """What YOLO's rows do not hold."""
    counted = {
        "crowd region, written as an object": lambda box: box.crowd,
        "area other than width times height, not kept": lambda box: (
            box.area is not None and box.area != box.xywh[2] * box.xywh[3]
        ),
        "mark as difficult, not kept": lambda box: box.difficult,
    }
    numbers = {what: sum(map(holds, found.boxes())) for what, holds in counted.items()}
    notes = {what: number for what, number in numbers.items() if number}
    known = any(picture.id is not None for picture in found.pictures())
    return notes | ({"image ids are not kept": 0} if known else {})


def _check_stems(pictures: Iterable[Picture], faults: Faults) -> None:
    """Refuse two images that would have one annotation file."""
    seen: dict[str, Picture] = {}
    for picture in pictures:
        stem = str(PurePosixPath(picture.name).with_suffix(""))
        before = seen.setdefault(stem, picture)
        if before is not picture:
            faults.add(
                picture.name,
                f"would share its annotation file with {before.name}; rename one, or convert each "
                f"split into its own folder.",
            )


def write(
    found: Annotations,
    target: str,
    output: Path,
    *,
    images: Placing,
    corners: str | None = None,
    overwrite: bool = False,
    progress: Callable[[Sequence, str], Iterable] = lambda items, _: items,
) -> Notes:
    """Write a folder, whole or not at all.

    Args:
        found: after :func:`prepare`.
        target: one of ``FORMATS``.
        output: the folder to make.
        images: what becomes of the image files.
        corners: of voc and csv; None: what is usual.
        overwrite: move a folder that is there aside.
        progress: wraps what takes long.

    Returns:
        What the format does not hold.

    Raises:
        OSError: it cannot be written.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        if target == "coco":
            notes = coco.write_coco(found, partial)
        elif target == "csv":
            notes = table.write_table(found, partial, corners=corners or "edges")
        elif target == "voc":
            notes = voc.write_voc(found, partial, corners=corners or "pixels", progress=progress)
        else:
            notes = yolo.write_yolo(found, partial, progress=progress)
        if images in ("link", "copy"):
            _place_all(found, target, partial, images, progress)
        if overwrite and output.exists() and any(output.iterdir()):
            aside = _aside(output)
            output.rename(aside)
            notes[f"the folder that was there is now {aside}"] = 0
        elif output.is_dir():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return notes


def _place_all(
    found: Annotations,
    target: str,
    output: Path,
    how: Placing,
    progress: Callable[[Sequence, str], Iterable],
) -> None:
    for split in found.splits:
        folder = output / image_place(target, split.name)
        for picture in progress(split.pictures, f"images of {split.name}"):
            place(split.folder.root / picture.name, folder / picture.name, how)


def image_place(target: str, split: str) -> str:
    """Where a format keeps the images of a split, below its folder."""
    return "JPEGImages" if target == "voc" else f"images/{split}"


def _aside(output: Path) -> Path:
    """A name beside it that is free."""
    numbers = (output.with_name(f"{output.name}.old{number}") for number in range(1, 10**6))
    return next(path for path in numbers if not path.exists())
