"""What the columns of a COCO file must hold, and what is mended in them."""

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


def clip_xywh(bbox: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(..., 4) xywh -> xyxy inside images of (..., 2) height and width."""
    limits = sizes[..., ::-1]
    corner = np.clip(bbox[..., :2] + bbox[..., 2:], 0, limits)
    return np.concatenate([np.clip(bbox[..., :2], 0, limits), corner], axis=-1)


def read_sizes(images: Records) -> np.ndarray:
    """(N, 2) int32 height, width."""
    columns = []
    for field in ("height", "width"):
        values = images.numbers(field)
        wrong = (values < 1) | (values != np.floor(values)) | (values >= 2**31)
        if wrong.any():
            raise images.problem(
                int(wrong.argmax()),
                field,
                "a whole number of pixels, at least 1",
                "Write the size of the image as it is displayed.",
            )
        columns.append(values.astype(np.int32))
    return np.stack(columns, axis=1)


def read_names(images: Records) -> list[str]:
    """File names, none of which leads out of the image folder."""
    names = images.texts("file_name")
    for index, name in enumerate(names):
        plain = name[0] not in "/\\" and ".." not in name and ":" not in name
        if not plain and _leaves_folder(name):
            raise images.problem(
                index,
                "file_name",
                "a path below the image folder, neither absolute nor with '..'",
                "Point data.*_images at the folder that the names start from.",
            )
        if CONTROL.search(name):
            raise images.problem(
                index, "file_name", "a path without control characters", "Rename the file."
            )
    images.unique("file_name", names)
    return names


def _leaves_folder(name: str) -> bool:
    """Whether a file name is absolute or climbs, to POSIX or to Windows."""
    windows = PureWindowsPath(name)
    return PurePosixPath(name).is_absolute() or bool(windows.anchor) or ".." in windows.parts


def read_categories(categories: Records) -> tuple[np.ndarray, tuple[str, ...]]:
    """Sorted ids, and the names in that order."""
    if not len(categories):
        raise ValueError(f"{categories.path}: categories must not be empty; list every class.")
    ids = categories.integers("id")
    names = categories.texts("name")
    categories.unique("id", ids)
    categories.unique("name", names)
    for index, name in enumerate(names):
        if HALF.search(name):
            raise categories.problem(index, "name", "a text of whole characters", "Correct it.")
    order = np.argsort(ids)
    return ids[order], tuple(names[i] for i in order)


def positions(boxes: Records, field: str, ids: np.ndarray, allowed: str) -> np.ndarray:
    """(M,) int64: where the ids in a column stand among ``ids``."""
    values = boxes.integers(field)
    order = np.argsort(ids)
    place = np.searchsorted(ids, values, sorter=order).clip(max=len(ids) - 1)
    position = order[place]
    unknown = ids[position] != values
    if unknown.any():
        remedy = "Remove the annotation, or list what it refers to."
        raise boxes.problem(int(unknown.argmax()), field, allowed, remedy)
    return position


def count_bad_ids(ids: list[Any]) -> int:
    """Annotations whose id is missing, repeated, not an integer, or below 1."""
    good = [value for value in ids if type(value) is int and value > 0]
    return len(ids) - len(set(good))


def read_crowd(boxes: Records, repairs: dict[str, int]) -> np.ndarray:
    """(M,) bool."""
    values = boxes.column("iscrowd")
    repairs["iscrowd filled in"] = values.count(None)
    for index, value in enumerate(values):
        if value is not None and value not in (0, 1):
            raise boxes.problem(index, "iscrowd", "0 or 1", "Correct it, or leave it out for 0.")
    return np.array([value == 1 for value in values], dtype=bool)


def read_area(boxes: Records, bbox: np.ndarray, repairs: dict[str, int]) -> np.ndarray:
    """(M,) float64: of the object as the file says, else of its box, up to ``MAX_AREA``.

    Of an area that COCO's evaluator does not look at its AP would say nothing.
    """
    values = boxes.column("area")
    missing = np.array([value is None for value in values], dtype=bool)
    repairs["area filled in"] = int(missing.sum())
    for index, value in enumerate(values):
        if value is not None and not (is_finite(value) and 0 <= value <= MAX_AREA):
            raise boxes.problem(
                index,
                "area",
                "a finite number of pixels, from 0 to 1e10",
                "Correct it, or leave it out.",
            )
    given = np.array([0.0 if value is None else value for value in values], dtype=np.float64)
    of_box = bbox[:, 2:].clip(min=0).prod(axis=1).clip(max=MAX_AREA)
    return np.where(missing, of_box, given)


def find_usable(bbox: np.ndarray, sizes: np.ndarray, repairs: dict[str, int]) -> np.ndarray:
    """(M,) bool: boxes that have area inside their image, whose sizes are (M, 2)."""
    corners = clip_xywh(bbox, sizes).astype(np.float32)
    positive = (bbox[:, 2:] > 0).all(axis=1)
    usable = positive & (corners[:, 2:] > corners[:, :2]).all(axis=1)
    repairs["boxes dropped: width or height not positive"] = int((~positive).sum())
    repairs["boxes dropped: outside the image"] = int((positive & ~usable).sum())
    return usable
