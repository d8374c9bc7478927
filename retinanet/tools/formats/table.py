"""Tables: a CSV file with a line for each box."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retinanet.atomic import write_whole
from retinanet.csv_text import csv_text
from retinanet.data.images import BadImage
from retinanet.data.records import shown
from retinanet.tools.formats.annotations import (
    Annotations,
    Box,
    Faults,
    Notes,
    Picture,
    Split,
    leaves_folder,
    name_problem,
)
from retinanet.tools.formats.columns import TITLES, find_columns, rows_of
from retinanet.tools.formats.decimals import (
    CORNERS,
    SIDES,
    box_of_corners,
    corners_of_box,
    read_number,
)
from retinanet.tools.formats.images import Folder
from retinanet.tools.formats.texts import (
    CLASSES_FILE,
    ID,
    classes_text,
    find_classes,
    numbered,
    read_text,
)


@dataclass(slots=True)
class _Rows:
    """A table while it is read."""

    path: Path
    columns: dict[str, int]  # column -> its place in a row
    faults: Faults
    folder: Folder
    allowed: set[str] | None
    first: int  # of CORNERS
    names: set[str] = field(default_factory=set)
    pictures: dict[str, Picture] = field(default_factory=dict)
    empty: dict[str, str] = field(default_factory=dict)  # image -> place of its row without box
    flat: int = 0

    def cell(self, row: Sequence[str], column: str) -> str:
        place = self.columns.get(column)
        return "" if place is None or place >= len(row) else row[place]


def read_table(
    path: Path,
    name: str,
    folder: Folder,
    *,
    corners: str = "edges",
    classes: Path | None = None,
    columns: Sequence[str] | None = None,
) -> Annotations:
    """One CSV file.

    Args:
        path: with a header, comma, semicolon or tab between columns. Images without objects
            have one row without class and numbers.
        name: of the split.
        folder: of the images.
        corners: ``"edges"`` or ``"pixels"``.
        classes: list of classes; None: ``classes.csv`` beside, else all that occur.
        columns: titles, for a file without a header.

    Raises:
        AnnotationError: everything that is wrong.
    """
    faults = Faults()
    declared = find_classes(classes, path.parent, faults)
    text = read_text(path, faults)
    faults.stop()
    allowed = {category.name for category in declared} if declared else None
    rows = rows_of(path, text or "", columns, faults)
    faults.stop()
    titles = next(rows, ("", []))[1]
    faults.stop()
    places, unknown = find_columns(path, titles, faults)
    faults.stop()
    table = _Rows(path, places, faults, folder, allowed, CORNERS[corners])
    for place, row in rows:
        _read_row(place, row, len(titles), table)
    if not table.pictures and not faults.count:
        faults.add(path, "has no row below its header.")
    faults.stop()
    notes = {f"{path}: columns not read: {', '.join(unknown)}": 0} if unknown else {}
    if table.flat:
        notes["box without width or height, which training leaves out"] = table.flat
    split = Split(name, folder, list(table.pictures.values()))
    known = declared or numbered(table.names)
    return Annotations([split], known, notes, invented=declared is None)


def _read_row(place: str, row: list[str], num_titles: int, table: _Rows) -> None:
    """One box, or one image without any."""
    if len(row) != num_titles:
        table.faults.add(place, f"has {len(row)} columns, the header {num_titles}.")
        return
    picture = _picture_of(place, row, table)
    if picture is None:
        return
    texts = [table.cell(row, column).strip() for column in ("class", *SIDES)]
    if not any(texts):
        if picture.boxes or picture.name in table.empty:
            table.faults.add(place, f"says that {picture.name} has no box, other rows differ.")
        table.empty[picture.name] = place
        return
    if picture.name in table.empty:
        before = table.empty[picture.name]
        table.faults.add(place, f"is a box of {picture.name}, which has none by {before}.")
        return
    box = _box_of(place, row, table)
    if box is not None:
        picture.boxes.append(box)


def _picture_of(place: str, row: list[str], table: _Rows) -> Picture | None:
    """The image of a row, or None after a fault."""
    name = table.cell(row, "filename").replace("\\", "/")
    problem = name_problem(name)
    if problem or leaves_folder(name):
        table.faults.add(
            place,
            f"the image name {shown(name)} {problem or 'is absolute or has ..'}; it must be a path "
            f"below the image folder (--image-folder).",
        )
        return None
    told = table.cell(row, "width"), table.cell(row, "height")
    known = table.pictures.get(name)
    if known is None:
        if not table.folder.ignored and not table.folder.holds(name):
            table.faults.add(
                place,
                f"no image {table.folder.root / name}; give the folder with --image-folder.",
            )
            return None
        size = _size_of(place, name, told, table)
        number = table.cell(row, "image_id").strip()
        if size is not None:
            identity = int(number) if ID.fullmatch(number) else None
            table.pictures[name] = Picture(name, *size, id=identity)
        return table.pictures.get(name)
    numbers = [read_number(text) for text in told]
    if any(told) and numbers != [known.width, known.height]:
        table.faults.add(
            place, f"{name} is {told[0]} x {told[1]} here, {known.width} x {known.height} above."
        )
    return known


def _size_of(place: str, name: str, told: tuple[str, str], table: _Rows) -> tuple[int, int] | None:
    """Width and height as the table says, else as the image is."""
    if any(text.strip() for text in told):
        numbers = [read_number(text) for text in told]
        if all(n is not None and n == int(n) and 0 < n < 2**31 for n in numbers):
            return int(numbers[0]), int(numbers[1])
        table.faults.add(
            place, f"width and height must be whole numbers of pixels, got {shown(told)}."
        )
        return None
    if table.folder.ignored:
        table.faults.add(place, "has no width and height; leave out --images ignore.")
        return None
    try:
        return table.folder.size(name)
    except (BadImage, OSError) as error:
        table.faults.add(place, str(error))
        return None


def _box_of(place: str, row: list[str], table: _Rows) -> Box | None:
    """The box of a row, or None after a fault."""
    name = table.cell(row, "class")
    if name_problem(name):
        table.faults.add(place, f"the class {shown(name)} {name_problem(name)}.")
        return None
    if table.allowed is not None and name not in table.allowed:
        table.faults.add(place, f"the class {shown(name)} is not in the list of classes; add it.")
        return None
    numbers = []
    for side in SIDES:
        text = table.cell(row, side)
        number = read_number(text)
        if number is None:
            table.faults.add(place, f"{side} must be a finite number, got {shown(text)}.")
            return None
        numbers.append(number)
    box = box_of_corners(tuple(numbers), table.first)
    if min(box[2:]) < 0:
        told = ", ".join(map(str, numbers))
        table.faults.add(place, f"xmax and ymax must not be below xmin and ymin, got {told}.")
        return None
    table.flat += min(box[2:]) == 0
    table.names.add(name)
    crowd, difficult = (
        table.cell(row, column).strip() == "1" for column in ("iscrowd", "difficult")
    )
    area = read_number(table.cell(row, "area"))
    return Box(name, box, crowd, None if area is None else float(area), difficult)


def write_table(found: Annotations, output: Path, *, corners: str = "edges") -> Notes:
    """Write ``SPLIT.csv`` and ``classes.csv``.

    Args:
        found: any data set.
        output: the new folder.
        corners: ``"edges"`` or ``"pixels"``.

    Returns:
        What the format does not hold: nothing.
    """
    marked = any(box.difficult for box in found.boxes())
    titles = [title for title in TITLES if marked or title != "difficult"]
    for split in found.splits:
        rows = (
            [cells.get(title) for title in titles]
            for picture in split.pictures
            for cells in _cells_of(picture, marked, CORNERS[corners])
        )
        write_whole(output / f"{split.name}.csv", csv_text(titles, rows))
    write_whole(output / CLASSES_FILE, classes_text(found.categories))
    return {}


def _cells_of(picture: Picture, marked: bool, first: int) -> Iterator[dict[str, object]]:
    """The rows of one image."""
    same = {
        "filename": picture.name,
        "width": picture.width,
        "height": picture.height,
        "image_id": "" if picture.id is None else picture.id,
    }
    if not picture.boxes:
        yield same
    for box in picture.boxes:
        cells = same | dict(zip(SIDES, corners_of_box(box.xywh, first), strict=True))
        cells |= {"class": box.name, "iscrowd": int(box.crowd)}
        cells |= {"area": "" if box.area is None else repr(box.area)}
        yield cells | ({"difficult": int(box.difficult)} if marked else {})
