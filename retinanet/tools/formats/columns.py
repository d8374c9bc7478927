"""The rows of a CSV file, and what its columns are."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from retinanet.data.records import shown
from retinanet.tools.formats.annotations import Faults
from retinanet.tools.formats.decimals import SIDES
from retinanet.tools.formats.texts import read_text

# Column -> titles that tools give it.
TITLES = {
    "filename": ("filename", "file_name", "path", "image", "image_path", "img_path", "image_name"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
    "class": ("class", "label", "class_name", "category", "label_name"),
    "xmin": ("xmin", "x1", "x_min", "left"),
    "ymin": ("ymin", "y1", "y_min", "top"),
    "xmax": ("xmax", "x2", "x_max", "right"),
    "ymax": ("ymax", "y2", "y_max", "bottom"),
    "image_id": ("image_id",),
    "iscrowd": ("iscrowd",),
    "difficult": ("difficult",),
    "area": ("area",),
}
NEEDED = ("filename", "class", *SIDES)
EXAMPLE = "filename,width,height,class,xmin,ymin,xmax,ymax or path,x1,y1,x2,y2,class"


def first_image(path: Path, columns: Sequence[str] | None = None) -> str:
    """The image name in the first row; empty where there is none, or something is wrong."""
    faults = Faults()
    rows = rows_of(path, read_text(path, faults) or "", columns, faults)
    titles = next(rows, ("", []))[1]
    places, _ = find_columns(path, titles, faults)
    row = next(rows, ("", []))[1]
    place = places.get("filename", len(row))
    return row[place] if place < len(row) and not faults.count else ""


def rows_of(
    path: Path, text: str, columns: Sequence[str] | None, faults: Faults
) -> Iterator[tuple[str, list[str]]]:
    """``file:line`` and cells of every row that is not empty, the titles first."""
    head = text.lstrip("\n").partition("\n")[0]
    if not text.strip():
        faults.add(path, f"is empty; expected a header such as {EXAMPLE}.")
    separator = next((mark for mark in ",;\t" if mark in head), ",")
    rows = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        strict=True,
        skipinitialspace=f"{separator} " in head,
    )

    def read() -> Iterator[tuple[str, list[str]]]:
        if columns is not None:
            yield f"{path}:0", list(columns)
        try:
            for row in rows:
                if any(cell.strip() for cell in row):
                    yield f"{path}:{rows.line_num}", row
        except csv.Error as error:
            faults.add(f"{path}:{rows.line_num}", f"is not CSV: {error}.")

    return read()


def find_columns(
    path: Path, titles: Sequence[str], faults: Faults
) -> tuple[dict[str, int], list[str]]:
    """Where columns are, and the titles of those that nothing reads."""
    plain = [title.strip().lower() for title in titles]
    found: dict[str, int] = {}
    unknown = []
    for place, title in enumerate(plain):
        column = next((column for column, known in TITLES.items() if title in known), None)
        if column is None:
            unknown.append(titles[place].strip() or "(no title)")
        elif column in found:
            faults.add(
                f"{path}:1",
                f"the columns {shown(titles[found[column]])} and {shown(titles[place])} both mean "
                f"{column}; remove or rename one.",
            )
        else:
            found[column] = place
    missing = [column for column in NEEDED if column not in found]
    if missing:
        headless = not found and len(plain) == len(NEEDED)
        hint = " without a header? Add --columns path,x1,y1,x2,y2,class" if headless else ""
        faults.add(
            f"{path}:1",
            f"has no column {', '.join(missing)}; got {shown(','.join(titles))}{hint}. Titles are "
            f"{EXAMPLE}.",
        )
    return found, unknown
