"""What the columns of a COCO file must hold, and what is filled in."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from retinanet.data.records import Records, is_finite

# Areas that COCO's evaluator looks at, square pixels; it ignores objects outside.
MAX_AREA = 1e10
# Half of a pair of UTF-16: no text, and nothing can be written with one.
HALF = re.compile("[\ud800-\udfff]")
# In a path Python has some for bytes that are not UTF-8.
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def read_sizes(images: Records) -> np.ndarray:
    """(N, 2) int32 height, width."""
    fix = (
        "Correct it: write the size of the image as it is displayed. `python -m "
        "scripts.convert_dataset --from coco --to coco` reads missing ones from the images."
    )
    columns = []
    for field in ("height", "width"):
        values = images.numbers(field, fix)
        wrong = (values < 1) | (values != np.floor(values)) | (values >= 2**31)
        images.refuse(np.flatnonzero(wrong), field, "a whole number of pixels, at least 1", fix)
        columns.append(np.where(wrong, 1, values).astype(np.int32))
    return np.stack(columns, axis=1)


def read_names(images: Records) -> list[str]:
    """File names, none of which leads out of the image folder.

    Label Studio on Windows writes the folders with backslashes, which only Windows understands.
    """
    names = images.texts("file_name")
    images.refuse(
        [index for index, name in enumerate(names) if leaves_folder(name)],
        "file_name",
        "a path below the image folder, neither absolute nor with '..'",
        "Point data.*_images at the folder that the names start from; `python -m "
        "scripts.convert_dataset --from coco --to coco --base-names` takes folders off the names.",
    )
    names = [name.replace("\\", "/") for name in names]
    control = [index for index, name in enumerate(names) if CONTROL.search(name)]
    images.refuse(control, "file_name", "a path without control characters", "Rename the file.")
    images.unique("file_name", names)
    return names


def leaves_folder(name: str) -> bool:
    """Whether a file name is absolute or climbs, to POSIX or to Windows."""
    if name[:1] not in "/\\" and ".." not in name and ":" not in name:
        return False  # nearly all: paths are slow
    windows = PureWindowsPath(name)
    return PurePosixPath(name).is_absolute() or bool(windows.anchor) or ".." in windows.parts


def read_categories(categories: Records) -> tuple[np.ndarray, list[str]]:
    """Ids and names, in the order of the file."""
    categories.refuse_empty("list every class", "List every class.")
    ids = categories.integers("id")
    names = categories.texts("name")
    categories.unique("id", ids)
    # Roboflow adds a class that only groups the others, and may give it the name of one of them.
    fix = (
        "Remove or rename one of them; if no box has it, `python -m scripts.convert_dataset --from "
        "coco --to coco --drop-unused-classes` does."
    )
    categories.unique("name", names, fix)
    halves = [index for index, name in enumerate(names) if HALF.search(name)]
    categories.refuse(halves, "name", "a text of whole characters", "Correct it.")
    return ids, names


def read_references(boxes: Records, field: str, listed: Records, ids: np.ndarray) -> np.ndarray:
    """(M,) int64: index among ``ids``, the ids of ``listed``, of every id in a column.

    -1 where there is none; that is refused, unless what is meant may be among the records that
    were left out of ``listed``.
    """
    values = boxes.integers(field)
    if not len(ids):
        return np.full(len(values), -1)
    order = np.argsort(ids, kind="stable")
    index = order[np.searchsorted(ids, values, sorter=order).clip(max=len(ids) - 1)]
    unknown = ids[index] != values
    if listed.complete and not listed.refused["id"]:
        singular = {"images": "image", "categories": "category"}[listed.name]
        fix = "Remove the annotation, or list what it refers to."
        boxes.refuse(np.flatnonzero(unknown), field, f"the id of a listed {singular}", fix)
    return np.where(unknown, -1, index)


def find_bad_ids(ids: list[Any]) -> np.ndarray:
    """(M,) bool: annotations whose id is missing, repeated, not an integer, or below 1."""
    bad = np.zeros(len(ids), dtype=bool)
    good = {value for value in ids if type(value) is int and value > 0}
    if len(good) == len(ids):
        return bad
    for index, value in enumerate(ids):
        bad[index] = type(value) is not int or value not in good
        good.discard(value if type(value) is int else None)
    return bad


def read_crowd(boxes: Records) -> tuple[np.ndarray, np.ndarray]:
    """Two (M,) bool: whether it is a crowd, and whether the file leaves that open."""
    values = boxes.column("iscrowd")
    bad = [row for row, value in enumerate(values) if value is not None and value not in (0, 1)]
    boxes.refuse(bad, "iscrowd", "0 or 1", "Correct it, or leave it out for 0.")
    crowd = np.array([value == 1 for value in values], dtype=bool)
    return crowd, np.array([value is None for value in values], dtype=bool)


def read_area(boxes: Records, bbox: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M,) float64, of the object as the file says, else of its box; and (M,) bool, the latter.

    Of an area above ``MAX_AREA`` or below 0 COCO's AP would say nothing.
    """
    values = boxes.column("area")
    missing = np.array([value is None for value in values], dtype=bool)
    bad = [row for row, value in enumerate(values) if value is not None and not _is_area(value)]
    allowed = "a finite number of pixels, from 0 to 1e10"
    boxes.refuse(bad, "area", allowed, "Correct it, or leave it out.")
    for row in [*bad, *np.flatnonzero(missing).tolist()]:
        values[row] = 0.0
    given = np.array(values, dtype=np.float64)
    return np.where(missing, box_area(bbox).clip(max=MAX_AREA), given), missing


def _is_area(value: Any) -> bool:
    return is_finite(value) and 0 <= value <= MAX_AREA


def clip_xywh(bbox: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(..., 4) xywh -> xyxy inside images of (..., 2) height and width."""
    limits = sizes[..., ::-1]
    corner = np.clip(bbox[..., :2] + bbox[..., 2:], 0, limits)
    return np.concatenate([np.clip(bbox[..., :2], 0, limits), corner], axis=-1)


def box_area(bbox: np.ndarray) -> np.ndarray:
    """(M,) float64: width times height of (M, 4) xywh, 0 where one is not positive."""
    return bbox[:, 2:].clip(min=0).prod(axis=1)


def has_area(bbox: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(M,) bool: (M, 4) xywh boxes with area inside their image of (M, 2) height and width."""
    corners = clip_xywh(bbox, sizes).astype(np.float32)
    return (bbox[:, 2:] > 0).all(axis=1) & (corners[:, 2:] > corners[:, :2]).all(axis=1)


def in_order(bbox: np.ndarray) -> np.ndarray:
    """(..., 4) xywh boxes drawn from any corner -> from the upper left one."""
    sides = bbox[..., 2:]
    return np.concatenate([bbox[..., :2] + sides.clip(max=0), np.abs(sides)], axis=-1)
