"""CSV: one table for each split, a row for each box, a header that names the columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from retinanet.data.records import leaves_folder, shown
from retinanet.tools.formats.dataset import (
    SIDES,
    BadRecord,
    Box,
    Dataset,
    Errors,
    ImageRecord,
    Options,
    Split,
    box_of_corners,
    check_class,
    name_problem,
    read_side,
    read_size,
    refused,
)
from retinanet.tools.formats.files import (
    csv_rows,
    file_split,
    find_classes,
    find_root,
    is_file,
    read_text,
    size_of,
)

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
    "iscrowd": ("iscrowd",),
}
NEEDED = ("filename", "class", *SIDES)
EXAMPLE = "filename,width,height,class,xmin,ymin,xmax,ymax or path,x1,y1,x2,y2,class"


def read_table(path: Path, options: Options) -> Dataset:
    """One CSV file.

    Args:
        path: with a header, comma, semicolon or tab between columns. Images without objects
            have one row without class and numbers.
        options: image_folder, look, corners, classes and columns are read.

    Raises:
        AnnotationError: everything that is wrong.
        FileNotFoundError: the images are nowhere.
    """
    declared = find_classes(options.classes, path.parent)
    with refused(path):
        titles, rows = _read_rows(path, options.columns)
        columns, unread = _find_columns(titles)
        if not rows:
            raise BadRecord("has no row below its header.")
    # The first row may be short; then nothing is looked for, and the row is refused below.
    first = dict(enumerate(rows[0][1])).get(columns["filename"], "")
    root = find_root(path, first, options)
    errors = Errors()
    images: dict[str, ImageRecord] = {}
    empty: dict[str, str] = {}  # image -> file:line of its row without a box
    for line, cells in rows:
        with errors.caught(path, line):
            if len(cells) != len(titles):
                raise BadRecord(f"has {len(cells)} columns, the header {len(titles)}.")
            row = {column: cells[index] for column, index in columns.items()}
            image = _image_of(row, root, images, options)
            if not any(row[column].strip() for column in ("class", *SIDES)):
                if image.boxes or image.name in empty:
                    raise BadRecord(f"says that {image.name} has no box, other rows differ.")
                empty[image.name] = f"{path}:{line}"
                continue
            if image.name in empty:
                before = empty[image.name]
                raise BadRecord(f"is a box of {image.name}, which has none by {before}.")
            name = check_class(row["class"], declared)
            sides = [read_side(row[side], side) for side in SIDES]
            xywh = box_of_corners(sides, options.corners or "edges")
            image.boxes.append(Box(name, xywh, row.get("iscrowd", "").strip() == "1"))
    errors.stop()
    dataset = Dataset([Split(file_split(path), root, list(images.values()))], declared or {})
    if unread:
        dataset.notes[f"{path}: columns not read: {', '.join(unread)}"] = 0
    return dataset


def _read_rows(
    path: Path, titles: Sequence[str] | None
) -> tuple[Sequence[str], list[tuple[int, list[str]]]]:
    """Titles of columns, given or of the header, and line and cells of every row below."""
    text = read_text(path)
    if not text.strip():
        raise BadRecord(f"is empty; expected a header such as {EXAMPLE}.")
    head = text.lstrip("\n").partition("\n")[0]
    separator = next((mark for mark in ",;\t" if mark in head), ",")
    rows = list(csv_rows(text, delimiter=separator, skipinitialspace=f"{separator} " in head))
    if titles is None:
        if not rows:
            raise BadRecord(f"has only empty cells; expected a header such as {EXAMPLE}.")
        titles = rows.pop(0)[1]
    return titles, rows


def _find_columns(titles: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Column -> its index in a row, and the titles that nothing reads."""
    columns: dict[str, int] = {}
    unread = []
    for index, title in enumerate(map(str.strip, titles)):
        column = next((c for c, known in TITLES.items() if title.lower() in known), None)
        if column is None:
            unread.append(title or "(no title)")
        elif column in columns:
            both = f"{shown(titles[columns[column]])} and {shown(title)}"
            raise BadRecord(f"the columns {both} both mean {column}; remove or rename one.", 1)
        else:
            columns[column] = index
    missing = [column for column in NEEDED if column not in columns]
    if missing:
        headless = not columns and len(titles) == len(NEEDED)
        hint = " without a header? Add --columns path,x1,y1,x2,y2,class" if headless else ""
        raise BadRecord(
            f"has no column {', '.join(missing)}; got {shown(','.join(titles))}{hint}. Titles are "
            f"{EXAMPLE}.",
            1,
        )
    return columns, unread


def _image_of(
    row: dict[str, str], root: Path, images: dict[str, ImageRecord], options: Options
) -> ImageRecord:
    """The image of a row, among ``images`` from now on."""
    name = row["filename"].replace("\\", "/")
    problem = name_problem(name)
    if problem or leaves_folder(name):
        raise BadRecord(
            f"the image name {shown(name)} {problem or 'is absolute or has ..'}; it must be a path "
            f"below the image folder (--image-folder)."
        )
    size = read_size(row.get("width", ""), row.get("height", ""))
    known = images.get(name)
    if known is None:
        if options.look and not is_file(root / name):
            raise BadRecord(f"no image {root / name}; give the folder with --image-folder.")
        if size is None and not options.look:
            raise BadRecord("has no width and height; leave out --images ignore.")
        known = images[name] = ImageRecord(name, *(size or size_of(root / name)))
    elif size not in (None, (known.width, known.height)):
        here = f"{size[0]} x {size[1]} here"
        raise BadRecord(f"{name} is {here}, {known.width} x {known.height} above.")
    return known
