"""The files of a data set: images and their folders, texts, lists of classes."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from retinanet.data.images import BadImage, read_header, read_image
from retinanet.data.records import shown
from retinanet.tools.formats.dataset import (
    SPLIT_NAMES,
    BadRecord,
    Options,
    class_ids_of,
    refused,
    split_name,
)
from retinanet.tools.image_files import walk

# Beside annotations of every format: the class ids of COCO, and classes without a box.
CLASSES_FILE = "classes.csv"


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


def files_below(folder: Path, ends: tuple[str, ...]) -> list[str]:
    """Files with some suffixes, ``ends``, as paths with "/" below a folder, in order."""
    paths = walk(folder) if folder.is_dir() else ()
    names = [path for path in paths if path.name.lower().endswith(ends)]
    return sorted(path.relative_to(folder).as_posix() for path in names)


def is_file(path: Path) -> bool:
    """Whether there is such a file; false also for names that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113 - pathlib raises for a name that is too long


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
    """Class name -> id of a list of classes.

    Args:
        path: ``.csv`` with the columns id and name, with a header, or name and id without one;
            anything else has one name a line, in the order of ids from 1.

    Raises:
        AnnotationError: of the list.
    """
    with refused(path):
        if path.suffix.lower() == ".csv":
            pairs = _read_pairs(path)
        else:
            pairs = [(name, row) for row, (_, name) in enumerate(read_lines(path), 1)]
        if not pairs:
            raise BadRecord("lists no class; write one name a line.")
        return class_ids_of(pairs)


def _read_pairs(path: Path) -> list[tuple[str, int]]:
    pairs: list[tuple[str, int]] = []
    name_column, id_column, width = 0, 1, 2
    for line, row in csv_rows(read_text(path)):
        titles = [title.strip().lower() for title in row]
        if not pairs and {"id", "name"} <= set(titles):
            name_column, id_column, width = titles.index("name"), titles.index("id"), len(row)
            continue
        number = row[id_column].strip() if len(row) == width else ""
        if not re.fullmatch(r"-?[0-9]{1,18}", number):  # which int64 holds
            raise BadRecord(f"must be a class: id and name, got {shown(','.join(row))}.", line)
        pairs.append((row[name_column], int(number)))
    return pairs


def file_split(path: Path) -> str:
    """The split that a file holds by its name, or by that of its folder."""
    name = split_name(path.stem)
    if name != path.stem or name in SPLIT_NAMES:
        return name
    above = path.resolve().parent.name.lower()
    return split_name(above) if above in SPLIT_NAMES else path.name.partition(".")[0].strip("_")


def find_root(path: Path, first: str, options: Options) -> Path:
    """The folder that image names of a file start from: as given, else where the first one is.

    Args:
        path: the annotation file.
        first: its first image name; empty where the file has none.
        options: image_folder, look and base_names are read.

    Raises:
        FileNotFoundError: it is in no folder in which tools keep images.
    """
    if not options.look or options.image_folder or not first:
        return options.image_folder or path.parent
    name = first.replace("\\", "/")
    name = PurePosixPath(name).name if options.base_names else name
    here, above = path.parent, path.parent.parent
    tried = [here, here / "images", above / "images"]
    for part in (path.stem.removeprefix("instances_"), file_split(path), "valid"):
        tried += [above / "images" / part, above / part, here / part, here / "images" / part]
    tried = list(dict.fromkeys([*tried, above]))
    for root in tried:
        if is_file(root / name):
            return root
    raise FileNotFoundError(
        f"no image {name} of {path} in {', '.join(map(str, tried))}; give the folder that "
        f"names start from with --image-folder."
    )
