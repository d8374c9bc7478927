"""YOLO: one text file for each image, a line for each box, in shares of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path, PurePosixPath

import numpy as np
import yaml

from retinanet.data.fields import clip_xywh
from retinanet.data.images import BadImage
from retinanet.data.records import shown
from retinanet.terminal import count
from retinanet.tools.formats.annotations import (
    Annotations,
    Box,
    Category,
    Faults,
    Notes,
    Picture,
    Split,
)
from retinanet.tools.formats.decimals import box_of_shares, read_number, shares_of_box
from retinanet.tools.formats.images import Folder, walk
from retinanet.tools.formats.texts import CLASSES_FILE, classes_text, read_lines
from retinanet.tools.formats.yolo_layout import Part, find_layout, is_label, label_path

# Numbers of a row: class, center x, center y, width, height.
ROW = 5
# A polygon has at least three points.
SHORTEST_POLYGON = 7
# Beyond the image by rounding: tools write six places.
SLACK = Decimal("1e-6")


@dataclass(slots=True)
class _Reading:
    """What is known while labels are read."""

    categories: list[Category]
    polygons: bool  # take the extent of polygons
    faults: Faults
    labels: set[Path] = field(default_factory=set)  # that belong to an image
    counted: Notes = field(default_factory=dict)

    def tally(self, what: str) -> None:
        self.counted[what] = self.counted.get(what, 0) + 1


def read_yolo(
    source: Path,
    *,
    classes: Path | None = None,
    polygons: bool = False,
    progress: Callable[[Sequence, str], Iterable] = lambda items, _: items,
) -> Annotations:
    """A folder of labels and images. Images are needed: labels do not say their sizes.

    Args:
        source: the folder, or its YAML file; see ``yolo_layout.EXPECTED``.
        classes: list of classes; None: as the folder says.
        polygons: take the extent of polygons and of rotated boxes; otherwise they are refused.
        progress: wraps what takes long.

    Raises:
        AnnotationError: everything that is wrong.
        FileNotFoundError: no such folder, no images.
    """
    faults = Faults()
    layout = find_layout(source, classes, faults)
    reading = _Reading(layout.categories, polygons, faults)
    splits = [_read_part(part, reading, progress) for part in layout.parts]
    _check_lonely(reading)
    faults.stop()
    return Annotations(splits, layout.categories, reading.counted)


def _read_part(
    part: Part, reading: _Reading, progress: Callable[[Sequence, str], Iterable]
) -> Split:
    folder = Folder(part.root)
    pictures = []
    before: dict[Path, str] = {}  # labels -> image
    for name in progress(part.names, f"labels of {part.name}"):
        labels = label_path(part.root / name)
        reading.labels.add(labels)
        if before.setdefault(labels, name) != name:
            reading.faults.add(
                labels, f"belongs to two images, {before[labels]} and {name}; rename one."
            )
            continue
        try:
            width, height = folder.size(name)
        except (BadImage, OSError) as error:
            reading.faults.add(labels, str(error))
            continue
        boxes = _read_labels(labels, width, height, reading)
        pictures.append(Picture(name, width, height, boxes))
    return Split(part.name, folder, pictures)


def _read_labels(path: Path, width: int, height: int, reading: _Reading) -> list[Box]:
    """The boxes of one file; one that is not there is an image without objects."""
    if not path.is_file():
        reading.tally("image without a label file, taken for one without objects")
        return []
    boxes = []
    for number, line in read_lines(path, reading.faults):
        try:
            boxes.append(_read_row(line.split(), width, height, reading))
        except ValueError as error:
            reading.faults.add(f"{path}:{number}", str(error))
    return boxes


def _read_row(words: list[str], width: int, height: int, reading: _Reading) -> Box:
    """One line.

    Raises:
        ValueError: what is wrong with it.
    """
    numbers = [read_number(word) for word in words]
    if None in numbers:
        wrong = words[numbers.index(None)]
        raise ValueError(f"must be finite numbers with a point, got {shown(wrong)}.")
    shares = _shares_of_row(numbers[1:], reading)
    name = _class_of(words[0], numbers[0], reading.categories)
    outside = [share for share in shares if not -SLACK <= share <= 1 + SLACK]
    if outside:
        hint = " Pixels? YOLO wants shares of the image." * (max(outside) > 2)
        raise ValueError(f"center, width and height must lie in [0, 1], got {outside[0]}.{hint}")
    if min(shares[2:]) <= 0:
        reading.tally("box without width or height, which training leaves out")
    return Box(name, box_of_shares(shares, width, height))


def _shares_of_row(numbers: list[Decimal], reading: _Reading) -> tuple[Decimal, ...]:
    """Center, width and height of a row of any kind.

    Raises:
        ValueError: it is no box.
    """
    got = len(numbers) + 1
    if got == ROW:
        return tuple(numbers)
    if got == ROW + 1:
        raise ValueError(
            "has 6 numbers, as detections with their score; annotations have 5: class, center x, "
            "center y, width, height. Remove the score."
        )
    if got < SHORTEST_POLYGON or got % 2 == 0:
        raise ValueError(
            f"must have 5 numbers, class, center x, center y, width, height, got {got}."
        )
    kind = "a rotated box or a polygon" if got == 9 else "a polygon"
    if not reading.polygons:
        raise ValueError(
            f"has {got} numbers, {kind} of {got // 2} points; --polygons makes the box around it."
        )
    if not all(0 <= number <= 1 for number in numbers):
        # Rotated boxes may reach outside.
        numbers = [min(max(number, Decimal(0)), Decimal(1)) for number in numbers]
        reading.tally("polygon cut at the border of its image")
    reading.tally("polygon or rotated box, replaced by the box around it")
    left, right = min(numbers[::2]), max(numbers[::2])
    top, bottom = min(numbers[1::2]), max(numbers[1::2])
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _class_of(word: str, number: Decimal, categories: list[Category]) -> str:
    """The class of an index."""
    if number != int(number) or not 0 <= number < len(categories):
        raise ValueError(
            f"the class must be an index from 0 to {len(categories) - 1}, got {word}; the list of "
            f"names has {count(len(categories), 'class')}."
        )
    return categories[int(number)].name


def _check_lonely(reading: _Reading) -> None:
    """Refuse labels without an image: it was lost, or renamed."""
    folders = {path.parent for path in reading.labels}
    top = [folder for folder in folders if not folders & set(folder.parents)]
    for folder in sorted(top):
        for name in walk(folder, (".txt",)):
            path = folder / name
            if path not in reading.labels and is_label(PurePosixPath(name)):
                reading.faults.add(path, "has no image of its name; add it or remove the file.")


def write_yolo(
    found: Annotations,
    output: Path,
    *,
    progress: Callable[[Sequence, str], Iterable] = lambda items, _: items,
) -> Notes:
    """Write ``labels/SPLIT/``, ``data.yaml`` and ``classes.csv``.

    Args:
        found: whose image names, without suffix, are different in each split.
        output: the new folder; images belong into ``images/SPLIT/``.
        progress: wraps what takes long.

    Returns:
        What the format does not hold, beside crowds.
    """
    index = {category.name: row for row, category in enumerate(found.categories)}
    counted = {"cut at the border of its image": 0, "outside its image, left out": 0, "rounded": 0}
    for split in found.splits:
        for picture in progress(split.pictures, f"labels of {split.name}"):
            path = output / "labels" / split.name / picture.name
            path = path.with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(_rows_of(picture, index, counted))
            path.write_text(text, encoding="utf-8", newline="\n")
    description = {split.name: f"images/{split.name}" for split in found.splits} | {
        "nc": len(index),
        "names": dict(enumerate(index)),
    }
    text = yaml.safe_dump(description, allow_unicode=True, sort_keys=False, width=1000)
    (output / "data.yaml").write_text(text, encoding="utf-8", newline="\n")
    text = classes_text(found.categories)
    (output / CLASSES_FILE).write_text(text, encoding="utf-8", newline="\n")
    return {f"box {what}": number for what, number in counted.items() if number}


def _rows_of(picture: Picture, index: dict[str, int], counted: Notes) -> Iterable[str]:
    """The lines of one image."""
    for box in picture.boxes:
        xywh = box.xywh
        shares, exact = shares_of_box(xywh, picture.width, picture.height)
        if not all(0 <= Decimal(share) <= 1 for share in shares):
            x1, y1, x2, y2 = clip_xywh(
                np.array(xywh), np.array([picture.height, picture.width])
            ).tolist()
            if x2 <= x1 or y2 <= y1:
                counted["outside its image, left out"] += 1
                continue
            counted["cut at the border of its image"] += 1
            cut = (x1, y1, x2 - x1, y2 - y1)
            shares, exact = shares_of_box(cut, picture.width, picture.height)
        counted["rounded"] += not exact
        yield f"{index[box.name]} {' '.join(shares)}\n"
