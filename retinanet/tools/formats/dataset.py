"""A data set in memory, whatever its format; what a name, a number and a box in a file may be."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from tqdm import tqdm

from retinanet.data.records import shown
from retinanet.terminal import has_bar

# Where counting begins. Edges: a box from 0 to 10 is ten pixels wide. Pixels, as in PASCAL VOC: a
# box from 1 to 10 is, xmax is the last pixel inside.
CORNERS = {"edges": 0, "pixels": 1}
SIDES = ("xmin", "ymin", "xmax", "ymax")
# Folders that tools make for the splits of a data set.
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test")
# Python's own reading also takes nan, inf, 1_000 and the digits of other scripts.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
LARGEST = 10**100
# Sides of images are int32.
SIZE_LIMIT = 2**31


@dataclass(slots=True)
class Box:
    """One object."""

    class_name: str
    xywh: tuple[float, ...]  # x, y, width, height: pixels from the top left corner
    crowd: bool = False
    area: float | None = None  # square pixels; None: width times height
    difficult: bool = False  # VOC's mark, left out of its evaluation


@dataclass(slots=True)
class ImageRecord:
    """One image and its objects."""

    name: str  # path below the image folder, with "/"
    width: int  # as displayed, pixels
    height: int
    boxes: list[Box] = field(default_factory=list)
    id: int | None = None  # of COCO; None: numbered in the order of the list


@dataclass(slots=True)
class Split:
    """The images of training, of validation, or of whatever a file holds."""

    name: str
    root: Path  # the folder that names of images start from
    images: list[ImageRecord]


@dataclass(slots=True)
class Dataset:
    """Splits and classes."""

    splits: list[Split]
    class_ids: dict[str, int]  # name -> COCO's category id; empty: the source lists no classes
    notes: Counter[str] = field(default_factory=Counter)  # of reading; 0: a sentence, not counted

    def images(self) -> Iterator[ImageRecord]:
        """Those of all splits."""
        return (image for split in self.splits for image in split.images)

    def boxes(self) -> Iterator[Box]:
        """Those of all images."""
        return (box for image in self.images() for box in image.boxes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one source is read."""

    image_folder: Path | None = None  # where images are, if elsewhere
    look: bool = True  # for the images; otherwise the annotations must say all
    corners: str | None = None  # of voc and csv, one of CORNERS; None: what is usual
    classes: Path | None = None  # list of classes; None: as the source says
    columns: Sequence[str] | None = None  # of csv without a header
    polygons: bool = False  # of yolo: take the boxes around polygons and rotated boxes
    base_names: bool = False  # of coco: image names lose their folders
    used_ids: Sequence[int] | None = None  # of coco: categories to keep; None: all


class BadRecord(ValueError):  # noqa: N818 - reads as what it is
    """One thing that is wrong with a file; ``line`` where it is known better than by the caller."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


class AnnotationError(ValueError):
    """Everything that is wrong with a data set; ``lines`` has one for each error."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(lines[0] + (f" ({len(lines) - 1} more)" if len(lines) > 1 else ""))
        self.lines = lines


class Errors:
    """Collects what is wrong: whoever corrects annotations by hand wants the whole list."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, place: object, message: str) -> None:
        """Keep one error, as one line; ``place``: file, or ``file:line``."""
        self.lines.append(" ".join(f"{place}: {message}".splitlines()))

    @contextmanager
    def caught(self, path: Path, line: int | None = None) -> Iterator[None]:
        """Keep a BadRecord, or a file that cannot be read, as an error of ``path``."""
        try:
            yield
        except BadRecord as error:
            line = error.line or line
            self.add(f"{path}:{line}" if line else path, str(error))
        except OSError as error:
            self.add(path, f"cannot be read: {error.strerror or error}.")

    def stop(self) -> None:
        """Raise an AnnotationError if there is any error."""
        if self.lines:
            raise AnnotationError(self.lines)


@contextmanager
def refused(path: Path) -> Iterator[None]:
    """Raise what :meth:`Errors.caught` keeps, at once."""
    errors = Errors()
    with errors.caught(path):
        yield
    errors.stop()


def progress(items: Sequence, what: str) -> Iterable:
    """The items, with a bar on a terminal."""
    return tqdm(items, desc=what, leave=False, disable=not has_bar())


def split_name(text: str) -> str:
    """``train``, ``val`` or ``test`` where a name says so, as in ``instances_train2017``."""
    known = re.search(r"(?<![a-z])(train|val|test)(ing|id|idation)?(?![a-z])", text.lower())
    return known[1] if known else text


def name_problem(name: str) -> str | None:
    """Why a text cannot name a class or an image in every format, or None."""
    if not name.strip():
        return "is empty"
    if re.search(r"[\x00-\x1f\x7f]", name):
        return "has a line break or another control character"
    if re.search("[\ud800-\udfff\ufffe\uffff]", name):  # half a pair of UTF-16, or no character
        return "is not text in UTF-8"
    return None


def check_class(name: str, class_ids: dict[str, int] | None) -> str:
    """The class of a box; refuses one that cannot be, or is not in the list if there is one."""
    problem = name_problem(name)
    if problem:
        raise BadRecord(f"the class name {shown(name)} {problem}.")
    if class_ids is not None and name not in class_ids:
        raise BadRecord(f"the class {shown(name)} is not in the list of classes; add it.")
    return name


def class_ids_of(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Class name -> id; refuses names that some format cannot hold, and what stands twice."""
    class_ids: dict[str, int] = {}
    for name, number in pairs:
        problem = name_problem(name)
        if problem:
            raise BadRecord(f"the class name {shown(name)} {problem}; rename the class.")
        if name in class_ids:
            raise BadRecord(f"the class name {shown(name)} stands twice; rename one of them.")
        if number in class_ids.values():
            raise BadRecord(f"the class id {number} stands twice; every class has its own.")
        class_ids[name] = number
    return class_ids


def read_number(text: str) -> Decimal | None:
    """The finite number that a text is, or None.

    Decimal: 12.05 - 1.25 is 10.8 to a person, not 10.800000000000001.
    """
    text = text.strip()
    number = Decimal(text) if NUMBER.fullmatch(text) else None
    return number if number is not None and abs(number) < LARGEST else None


def read_size(width: str, height: str) -> tuple[int, int] | None:
    """Width and height in pixels; None where the texts are empty or 0, so that the image counts."""
    numbers = [read_number(text) for text in (width, height)]
    if all(n is not None and n == int(n) and 0 < n < SIZE_LIMIT for n in numbers):
        return int(numbers[0]), int(numbers[1])
    if {width.strip(), height.strip()} <= {"", "0"}:
        return None
    got = f"{shown(width)} and {shown(height)}"
    raise BadRecord(f"width and height must be whole numbers of pixels, got {got}.")


def read_side(text: str | None, side: str) -> Decimal:
    """One of ``SIDES``; None: it is missing."""
    number = read_number(text or "")
    if number is None:
        got = "which is missing" if text is None else f"got {shown(text)}"
        raise BadRecord(f"{side} must be a finite number, {got}.")
    return number


def box_of_corners(numbers: Sequence[Decimal], corners: str) -> tuple[float, ...]:
    """x, y, width and height of the box between two corners; ``numbers`` are its ``SIDES``."""
    first = CORNERS[corners]
    left, top, right, bottom = numbers
    width, height = right - left + first, bottom - top + first
    if width < 0 or height < 0:
        texts = ", ".join(map(str, numbers))
        raise BadRecord(f"xmax and ymax must not be below xmin and ymin, got {texts}.")
    return tuple(map(float, (left - first, top - first, width, height)))
