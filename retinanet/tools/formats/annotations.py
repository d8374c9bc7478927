"""What every format is read into and written from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath

from retinanet.data.fields import CONTROL, HALF
from retinanet.data.records import shown
from retinanet.tools.formats.images import Folder

# Faults kept in memory; a wrong option makes one for every box.
KEPT_FAULTS = 1000


# What is worth saying -> how often it was met; 0 where it is not counted.
Notes = dict[str, int]


@dataclass(slots=True)
class Box:
    """One object."""

    name: str  # of its class
    xywh: tuple[float, float, float, float]  # pixels from the top left corner
    crowd: bool = False
    area: float | None = None  # square pixels; None: width times height
    difficult: bool = False  # VOC's mark, left out of its evaluation


@dataclass(slots=True)
class Picture:
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
    folder: Folder
    pictures: list[Picture]


@dataclass(frozen=True, slots=True)
class Category:
    """One class."""

    id: int  # COCO's
    name: str


@dataclass(slots=True)
class Annotations:
    """A data set, whatever the format.

    ``notes`` has what reading decided, mended or left out, and how often; 0: a sentence.
    ``invented``: the format has no class ids, so they are numbers in alphabetical order.
    """

    splits: list[Split]
    categories: list[Category]
    notes: Notes = field(default_factory=dict)
    invented: bool = False

    def pictures(self) -> Iterator[Picture]:
        """Those of all splits."""
        for split in self.splits:
            yield from split.pictures

    def boxes(self) -> Iterator[Box]:
        """Those of all images."""
        for picture in self.pictures():
            yield from picture.boxes


class AnnotationError(ValueError):
    """Everything that is wrong with a data set; ``lines`` has one for each fault."""

    def __init__(self, lines: list[str], count: int) -> None:
        more = f" ({count - 1} more)" if count > 1 else ""
        super().__init__(f"{lines[0]}{more}")
        self.lines = lines
        self.count = count


class Faults:
    """Collects what is wrong: who corrects annotations by hand wants the whole list.

    All faults of the files are told together, because reading on costs nothing. Nothing is
    written when there is one.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def add(self, place: object, message: str) -> None:
        """Remember one fault, as one line.

        Args:
            place: file, or ``file:line``.
            message: value, what is allowed, what to do.
        """
        self.count += 1
        if len(self.lines) < KEPT_FAULTS:
            self.lines.append(" ".join(f"{place}: {message}".splitlines()))

    def stop(self) -> None:
        """Raise if there is any.

        Raises:
            AnnotationError: all of them.
        """
        if self.count:
            raise AnnotationError(self.lines, self.count)


def leaves_folder(name: str) -> bool:
    """Whether a file name is absolute or climbs, to POSIX or to Windows."""
    windows = PureWindowsPath(name)
    return PurePosixPath(name).is_absolute() or bool(windows.anchor) or ".." in windows.parts


def name_problem(name: str) -> str | None:
    """Why a text cannot name a class or an image in every format, or None."""
    if not name.strip():
        return "is empty"
    if CONTROL.search(name):
        return "has a line break or another control character"
    if HALF.search(name) or "\ufffe" in name or "\uffff" in name:
        return "is not text in UTF-8"
    return None


def check_class_names(names: Iterable[str], place: object, faults: Faults) -> None:
    """Refuse class names that some format cannot hold, and those that stand twice."""
    seen: set[str] = set()
    for name in names:
        problem = name_problem(name)
        if problem:
            faults.add(place, f"the class name {shown(name)} {problem}; rename the class.")
        if name in seen:
            faults.add(place, f"the class name {shown(name)} stands twice; rename one of them.")
        seen.add(name)


def add_notes(notes: Notes, more: Notes) -> None:
    """Add to ``notes`` in place."""
    for what, number in more.items():
        notes[what] = notes.get(what, 0) + number
