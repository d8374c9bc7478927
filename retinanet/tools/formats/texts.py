"""Text files of annotations, and the lists of classes beside them."""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path

from retinanet.csv_text import csv_text
from retinanet.data.records import shown
from retinanet.tools.formats.annotations import Category, Faults, check_class_names

# Written beside annotations of every format: the class ids of COCO, and classes without a box.
CLASSES_FILE = "classes.csv"
# An integer of at most 18 digits, which int64 holds.
ID = re.compile(r"-?[0-9]{1,18}")


def read_text(path: Path, faults: Faults) -> str | None:
    """The text of a file, without a byte order mark; None after a fault."""
    try:
        content = path.read_bytes()
    except OSError as error:
        faults.add(path, f"cannot be read: {error.strerror or error}.")
        return None
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        faults.add(f"{path}:{line}", "is not text in UTF-8; save the file as UTF-8.")
        return None


def read_lines(path: Path, faults: Faults) -> list[tuple[int, str]]:
    """The lines of a file that are not empty, with their numbers."""
    text = read_text(path, faults) or ""
    # Not splitlines: it also splits at characters that may stand in a name.
    lines = text.replace("\r\n", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def read_classes(path: Path, faults: Faults) -> list[Category]:
    """A list of classes.

    Args:
        path: ``.csv`` with the columns id and name, with a header, or name and id without one;
            anything else has one name a line, in the order of ids from 1.
        faults: gets what is wrong.
    """
    if path.suffix.lower() == ".csv":
        found = _read_pairs(path, faults)
    else:
        names = [line for _, line in read_lines(path, faults)]
        found = [Category(row + 1, name) for row, name in enumerate(names)]
    check_class_names([category.name for category in found], path, faults)
    ids = [category.id for category in found]
    for number in sorted({number for number in ids if ids.count(number) > 1}):
        faults.add(path, f"the class id {number} stands twice; every class has its own.")
    if not found and not faults.count:
        faults.add(path, "lists no class; write one name a line.")
    return found


def _read_pairs(path: Path, faults: Faults) -> list[Category]:
    """The classes of a table: ``id,name`` with a header, or ``name,id`` without."""
    text = read_text(path, faults) or ""
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: list[Category] = []
    name_column, id_column, width = 0, 1, 2
    try:
        for row in filter(None, rows):
            titles = [title.strip().lower() for title in row]
            if not found and {"id", "name"} <= set(titles):
                name_column, id_column = titles.index("name"), titles.index("id")
                width = len(row)
            elif len(row) == width and ID.fullmatch(row[id_column].strip()):
                found.append(Category(int(row[id_column]), row[name_column]))
            else:
                faults.add(
                    f"{path}:{rows.line_num}",
                    f"must be a class: id and name, got {shown(','.join(row))}.",
                )
    except csv.Error as error:
        faults.add(f"{path}:{rows.line_num}", f"is not CSV: {error}.")
    return found


def classes_text(categories: list[Category]) -> str:
    """The list of classes as a table."""
    return csv_text(["id", "name"], [(category.id, category.name) for category in categories])


def find_classes(given: Path | None, folder: Path, faults: Faults) -> list[Category] | None:
    """The classes that the user names, or that lie beside the annotations; None: neither."""
    path = given or folder / CLASSES_FILE
    if given is None and not path.is_file():
        return None
    return read_classes(path, faults)


def numbered(names: set[str]) -> list[Category]:
    """Ids from 1 in alphabetical order, where no list says it."""
    return [Category(row + 1, name) for row, name in enumerate(sorted(names))]
