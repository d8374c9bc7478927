"""A data set in memory, and what all readers share: files, names, numbers and their errors."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from tqdm import tqdm

from retinanet.data.images import BadImage, read_header, read_image
from retinanet.data.records import leaves_folder, shown
from retinanet.terminal import has_bar
from retinanet.tools.image_files import walk

SIDES = ("xmin", "ymin", "xmax", "ymax")
# Folders that tools make for the splits of a data set.
SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "test")
# Python's own reading also takes nan, inf, 1_000 and the digits of other scripts.
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
LARGEST = 10**100
NO_SIZE = (
    "has no width and height; leave out --images ignore, so that they are read from the image."
)
BY_END = "image found by the end of its path in the file"
# Image names of a file that are looked for until one is found.
LOOKED_FOR = 100
# Sides of images are int32.
SIZE_LIMIT = 2**31
# Why a text cannot name a class or an image in every format.
BAD_NAMES = {
    r"\A\s*\Z": "is empty",
    r"[\x00-\x1f\x7f]": "has a line break or another control character",
    # Half a pair of UTF-16, or no character.
    "[\ud800-\udfff\ufffe\uffff]": "is not text in UTF-8",
}
# Beside annotations of every format: the class ids of COCO, and classes without a box.
CLASSES_FILE = "classes.csv"


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

    def boxes(self) -> Iterator[Box]:
        """Those of all images."""
        return (box for split in self.splits for image in split.images for box in image.boxes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one source is read."""

    image_folder: Path | None = None  # where images are, if elsewhere
    look: bool = True  # for the images; otherwise the annotations must say all
    corners: str | None = None  # of voc and csv, edges or pixels; None: what is usual
    classes: Path | None = None  # list of classes; None: as the source says
    columns: Sequence[str] | None = None  # of csv without a header
    polygons: bool = False  # of yolo: take the boxes around polygons and rotated boxes
    base_names: bool = False  # of coco: image names lose their folders
    attribute: str | None = None  # of via: the attribute that is the class; None: looked for
    drop_unused: bool = False  # of coco: leave out categories without a box


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


# Names and numbers.


def split_name(text: str) -> str:
    """``train``, ``val`` or ``test`` where a name says so, as in ``instances_train2017``."""
    known = re.search(r"(?<![a-z])(train|val|test)(ing|id|idation)?(?![a-z])", text.lower())
    return known[1] if known else text


def file_split(path: Path) -> str:
    """The split that a file holds by its name, or by that of its folder."""
    name, above = split_name(path.stem), path.resolve().parent.name.lower()
    if name != path.stem or name in SPLIT_NAMES:
        return name
    return split_name(above) if above in SPLIT_NAMES else path.name.partition(".")[0].strip("_")


def check_name(name: str, what: str) -> str:
    """The name of a class or an image; refuses one that some format cannot hold."""
    for pattern, problem in BAD_NAMES.items():
        if re.search(pattern, name):
            raise BadRecord(f"the {what} name {shown(name)} {problem}; rename it.")
    return name


def check_class(name: str, class_ids: dict[str, int] | None) -> str:
    """The class of a box; refuses one that is not in the list, if there is one."""
    if class_ids is not None and check_name(name, "class") not in class_ids:
        raise BadRecord(
            f"the class {shown(name)} is not in the list of classes, that of --classes or else "
            f"{CLASSES_FILE} beside the annotations ({shown(', '.join(class_ids))}); add it."
        )
    return check_name(name, "class")


def class_ids_of(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Class name -> id; refuses names that some format cannot hold, and duplicates."""
    class_ids: dict[str, int] = {}
    for name, number in pairs:
        if check_name(name, "class") in class_ids:
            raise BadRecord(f"the class name {shown(name)} stands twice; rename one of them.")
        if number in class_ids.values():
            raise BadRecord(f"the class id {number} stands twice; every class has its own.")
        class_ids[name] = number
    return class_ids


def parse_number(text: str) -> Decimal | None:
    """The finite number that a text is, or None.

    Decimal: 12.05 - 1.25 is 10.8 to a person, not 10.800000000000001.
    """
    number = Decimal(text.strip()) if NUMBER.fullmatch(text.strip()) else None
    return number if number is not None and abs(number) < LARGEST else None


def read_number(text: str | None, what: str) -> Decimal:
    """The finite number that a text is; None: it is missing."""
    number = parse_number(text or "")
    if number is None:
        got = "which is missing" if text is None else f"got {shown(text)}"
        hint = " Write a point for the comma." if "," in (text or "") else ""
        raise BadRecord(f"{what} must be a finite number, {got}.{hint}")
    return number


def read_size(width: str, height: str) -> tuple[int, int] | None:
    """Width and height in pixels; None where the texts are empty or 0, so that the image counts."""
    numbers = parse_number(width), parse_number(height)
    if all(n is not None and n == int(n) and 0 < n < SIZE_LIMIT for n in numbers):
        return int(numbers[0]), int(numbers[1])
    if {width.strip(), height.strip()} <= {"", "0"}:
        return None
    got = f"{shown(width)} and {shown(height)}"
    raise BadRecord(f"width and height must be whole numbers of pixels, got {got}.")


def box_of_corners(numbers: Sequence[Decimal], corners: str) -> tuple[float, ...]:
    """x, y, width and height of the box between two corners.

    Args:
        numbers: its ``SIDES``.
        corners: ``"edges"``: a box from 0 to 10 is ten pixels wide; ``"pixels"``, as in PASCAL VOC:
            a box from 1 to 10 is, xmax is the last pixel inside.
    """
    first = {"edges": 0, "pixels": 1}[corners]
    left, top, right, bottom = numbers
    width, height = right - left + first, bottom - top + first
    if width < 0 or height < 0:
        texts = ", ".join(map(str, numbers))
        raise BadRecord(f"xmax and ymax must not be below xmin and ymin, got {texts}.")
    return tuple(map(float, (left - first, top - first, width, height)))


# Files.


def is_file(path: Path) -> bool:
    """Whether there is such a file; false also for names that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113 - pathlib raises for a name that is too long


def files_below(folder: Path, ends: tuple[str, ...]) -> list[str]:
    """Files with some suffixes, ``ends``, as paths with "/" below a folder, in order."""
    paths = walk(folder) if folder.is_dir() else ()
    names = [path for path in paths if path.name.lower().endswith(ends)]
    return sorted(path.relative_to(folder).as_posix() for path in names)


def matches(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder that match a pattern, in order, without hidden ones."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of an image as it is displayed, after its EXIF orientation."""
    try:
        header = read_header(path)
        if header.certain:
            return header.width, header.height
        height, width = read_image(path).shape[1:]
    except (BadImage, OSError) as error:
        raise BadRecord(str(error)) from error
    return width, height


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark."""
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadRecord("is not text in UTF-8; save the file as UTF-8.", line) from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that are not empty, with their numbers."""
    # Not splitlines: it also splits at characters that may stand in a name.
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def csv_rows(text: str, **dialect: object) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of every row that is not empty; ``dialect`` as :func:`csv.reader` takes it."""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, **dialect)
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                yield rows.line_num, row
    except csv.Error as error:
        raise BadRecord(f"is not CSV: {error}.", rows.line_num) from error


def find_classes(given: Path | None, folder: Path) -> dict[str, int] | None:
    """Class name -> id, as the user lists them or a file beside the annotations; None: neither."""
    path = given or folder / CLASSES_FILE
    return read_classes(path) if given or path.is_file() else None


def read_classes(path: Path) -> dict[str, int]:
    """Class name -> id of a list of classes, or an AnnotationError.

    Args:
        path: ``.csv`` with the columns id and name, with a header, or name and id without one;
            anything else has one name a line, in the order of ids from 1.
    """
    with refused(path):
        if path.suffix.lower() != ".csv":
            pairs = [(name, row) for row, (_, name) in enumerate(read_lines(path), 1)]
        else:
            pairs = []
            titles = ["name", "id"]
            for index, (line, row) in enumerate(csv_rows(read_text(path))):
                if index == 0 and {"id", "name"} <= {cell.strip().lower() for cell in row}:
                    titles = [cell.strip().lower() for cell in row]
                    continue
                cells = dict(zip(titles, row, strict=False))
                number = cells["id"].strip() if len(row) == len(titles) else ""
                if not re.fullmatch(r"-?[0-9]{1,18}", number):  # which int64 holds
                    got = shown(",".join(row))
                    raise BadRecord(f"must be a class: id and name, got {got}.", line)
                pairs.append((cells["name"], int(number)))
        if not pairs:
            raise BadRecord("lists no class; write one name a line.")
        return class_ids_of(pairs)


def ends_of(name: str) -> list[str]:
    """A path and what is left of it without its first folder, its first two, ...; the name last.

    Lists written on another computer, or for a program that is started elsewhere, name images by
    paths of which only the end fits here.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return ["/".join(parts[first:]) for first in range(len(parts))]


def find_root(path: Path, names: Sequence[str], options: Options, *, ends: bool = False) -> Path:
    """The folder that image names of a file start from: as given, else where one of them is.

    Args:
        path: the file.
        names: of its images; the first ``LOOKED_FOR`` are looked for.
        options: image_folder, look and base_names are read.
        ends: the end of a name is enough, as of ``/content/images/a.jpg``.

    Raises:
        FileNotFoundError: they are in no folder in which tools keep images.
    """
    names = [name.replace("\\", "/") for name in names if name][:LOOKED_FOR]
    if not options.look or options.image_folder or not names:
        return options.image_folder or path.parent
    here, above = path.parent, path.parent.parent
    tried = [here, here / "images", above / "images"]
    for part in (path.stem.removeprefix("instances_"), file_split(path), "valid"):
        tried += [above / "images" / part, above / part, here / part, here / "images" / part]
    tried = list(dict.fromkeys([*tried, above]))
    for name in names:
        wanted = [name, unquote(name), *(ends_of(name) if ends else ())]
        for text in [PurePosixPath(name).name] if options.base_names else wanted:
            for root in tried:
                if is_file(root / text):
                    return root
    raise FileNotFoundError(
        f"no image {names[0]} of {path} in {here}, {above} or the usual folders there; give the "
        f"folder that names start from with --image-folder."
    )


def find_image(root: Path, given: str, owners: dict[str, str]) -> str:
    """The image that a list means by a name: the longest end of it that is a file below ``root``.

    Args:
        root: of the images.
        given: the name.
        owners: image -> the name by which it was found; of two names one image is refused.
    """
    given = check_name(given.replace("\\", "/"), "image")
    plain = unquote(given)  # of a URL: %20 is a blank
    for name in (*ends_of(given), *ends_of(plain)):
        if not leaves_folder(name) and is_file(root / name):
            before = owners.setdefault(name, given)
            if before != given:
                both = f"{shown(before)} and {shown(given)}"
                raise BadRecord(f"{both} would both be the image {root / name}; rename one.")
            return name
    raise no_image(root / (PurePosixPath(given).name if leaves_folder(given) else given))


def count_ends(owners: dict[str, str]) -> Counter[str]:
    """How many images :func:`find_image` found by less than their name, as ``Dataset.notes``."""
    number = sum(unquote(given) != unquote(name) for name, given in owners.items())
    return Counter({BY_END: number} if number else {})


def no_image(path: Path) -> BadRecord:
    """The error of an image that is missing where others are."""
    fix = "add it or remove it from the annotations, or give another folder with --image-folder"
    return BadRecord(f"no image {path}; {fix}.")
