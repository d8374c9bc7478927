"""CSV: one table for each split, a row for each box, a header that names the columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from retinanet.data.records import leaves_folder, shown
from retinanet.tools.formats import dataset as ds
from retinanet.tools.formats.dataset import SIDES, BadRecord, Box, Dataset, ImageRecord, Options

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
    "x": ("x", "bbox_x", "box_x"),
    "y": ("y", "bbox_y", "box_y"),
    "w": ("w", "bbox_width", "box_width", "bbox_w"),
    "h": ("h", "bbox_height", "box_height", "bbox_h"),
    "iscrowd": ("iscrowd",),
}
CORNER_AND_SIDES = ("x", "y", "w", "h")
# The boxes of an image in one row: a.jpg 10,20,30,40,0 50,60,70,80,1.
KERAS_YOLO = re.compile(r".*\s-?\d+(,-?\d+){4}(\s|$)")
KERAS_YOLO_FIX = (
    "has all boxes of an image in one row, as keras-yolo3 and Roboflow's YOLO Keras TXT; write a "
    "row for each, or export another format."
)
EXAMPLE = (
    "filename,width,height,class,xmin,ymin,xmax,ymax or path,x1,y1,x2,y2,class or "
    "path,x,y,w,h,class"
)


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
    declared = ds.find_classes(options.classes, path.parent)
    with ds.refused(path):
        text = ds.read_text(path)
        head = text.lstrip("\n").partition("\n")[0]
        mark = next((mark for mark in ",;\t" if mark in head), ",")
        rows = list(ds.csv_rows(text, delimiter=mark, skipinitialspace=f"{mark} " in head))
        if not rows:
            what = "has only empty cells" if text.strip() else "is empty"
            raise BadRecord(f"{what}; expected a header such as {EXAMPLE}.")
        if KERAS_YOLO.match(rows[0][1][0] + "," + ",".join(rows[0][1][1:])):
            raise BadRecord(KERAS_YOLO_FIX, 1)
        titles = options.columns or rows.pop(0)[1]
        columns, unread = _find_columns(titles)
        if options.columns and not _has_number(rows[0][1]):
            rows.pop(0)  # a header, which --columns replaces
        if not rows:
            raise BadRecord("has no row below its header.")
    # A row that is too short is refused below.
    names = [cells[columns["filename"]] for _, cells in rows if len(cells) == len(titles)]
    root = ds.find_root(path, list(dict.fromkeys(names)), options, ends=True)
    errors = ds.Errors()
    images: dict[str, ImageRecord] = {}
    owners: dict[str, str] = {}  # image -> its name in the file
    empty: dict[str, str] = {}  # image -> file:line of its row without a box
    for line, cells in rows:
        with errors.caught(path, line):
            if len(cells) != len(titles):
                raise BadRecord(f"has {len(cells)} columns, the header {len(titles)}.")
            row = {column: cells[index] for column, index in columns.items()}
            image = _image_of(row, root, images, owners, options)
            numbered = _numbers_of_box(columns)
            if not any(row[column].strip() for column in ("class", *numbered)):
                if image.boxes or image.name in empty:
                    raise BadRecord(f"says that {image.name} has no box, other rows differ.")
                empty[image.name] = f"{path}:{line}"
                continue
            if image.name in empty:
                before = empty[image.name]
                raise BadRecord(f"is a box of {image.name}, which has none by {before}.")
            name = ds.check_class(row["class"], declared)
            numbers = [ds.read_number(row[column], column) for column in numbered]
            if numbered is CORNER_AND_SIDES:
                x, y, width, height = numbers
                first = options.corners == "pixels"
                numbers = [x, y, x + width - first, y + height - first]
            xywh = ds.box_of_corners(numbers, options.corners or "edges")
            image.boxes.append(Box(name, xywh, row.get("iscrowd", "").strip() == "1"))
    errors.stop()
    split = ds.Split(ds.file_split(path), root, list(images.values()))
    dataset = Dataset([split], declared or {}, ds.count_ends(owners))
    if unread:
        dataset.notes[f"{path}: columns not read: {', '.join(unread)}"] = 0
    return dataset


def _find_columns(titles: list[str]) -> tuple[dict[str, int], list[str]]:
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
    if "region_shape_attributes" in unread:
        raise BadRecord("is a table of VIA; --from via reads it.", 1)
    if {"ImageID", "LabelName"} <= {*titles}:
        what = "is a table of Open Images, with boxes in shares of the image"
        raise BadRecord(f"{what}; write pixels, and titles such as {EXAMPLE}.", 1)
    if {"x", "y", "width", "height"} <= columns.keys() and not columns.keys() & {*SIDES, "w", "h"}:
        # Of the box: with the size of the image there would be none.
        columns["w"], columns["h"] = columns.pop("width"), columns.pop("height")
    if {"w", "xmin"} <= columns.keys() and "xmax" not in columns:  # x1, y1, w, h
        columns["x"], columns["y"] = columns.pop("xmin"), columns.pop("ymin", None)
        columns = {column: index for column, index in columns.items() if index is not None}
    needed = ("filename", "class", *_numbers_of_box(columns))
    missing = [column for column in needed if column not in columns]
    if missing:
        got = f"got {shown(','.join(titles))}"
        usual = "path,x1,y1,x2,y2,class"
        if columns or not _has_number(titles):
            got += ". Rename the columns, or title all of them with --columns A,B,..."
        elif len(titles) == len(usual.split(",")):
            got += f" without a header? Add --columns {usual}"
        else:
            got += f" without a header? Add --columns with titles for its {len(titles)} columns"
        raise BadRecord(f"has no column {', '.join(missing)}; {got}. Titles are {EXAMPLE}.", 1)
    return columns, unread


def _has_number(cells: Sequence[str]) -> bool:
    return any(ds.parse_number(cell) is not None for cell in cells)


def _numbers_of_box(columns: dict[str, int]) -> tuple[str, ...]:
    """The four columns that are a box: its corner and sides, or its two corners."""
    return CORNER_AND_SIDES if "w" in columns and not {*SIDES} <= columns.keys() else SIDES


def _image_of(
    row: dict[str, str],
    root: Path,
    images: dict[str, ImageRecord],
    owners: dict[str, str],
    options: Options,
) -> ImageRecord:
    """The image of a row, among ``images``, by their names in the file, from now on."""
    given = row["filename"].replace("\\", "/")
    size = ds.read_size(row.get("width", ""), row.get("height", ""))
    known = images.get(given)
    if known is None:
        name = ds.find_image(root, given, owners) if options.look else ds.check_name(given, "image")
        if leaves_folder(name):
            what = f"the image name {shown(name)} is absolute or has .."
            raise BadRecord(f"{what}; leave out --images ignore, so that the image is looked for.")
        if size is None and not options.look:
            raise BadRecord(ds.NO_SIZE)
        known = images[given] = ImageRecord(name, *(size or ds.size_of(root / name)))
    elif size not in (None, (known.width, known.height)):
        above = f"{known.width} x {known.height} above"
        raise BadRecord(f"{given} is {size[0]} x {size[1]} here, {above}.")
    return known
