"""A data set in COCO's format, read once, checked, and kept as flat arrays."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from retinanet.data.issues import Issue, raise_refused, refusal
from retinanet.data.records import BOX, CONVERTER, MAX_AREA, OUTLINE_FIX, Records, read_json

# What is filled in while reading, as `repairs` counts it.
RENUMBERED = "annotation ids renumbered"
NO_CROWD = "iscrowd filled in"
NO_AREA = "area filled in"
BACKSLASHES = "backslashes in file names taken for folders"
# Boxes that are never trained on, as `repairs` counts them.
DROPPED = "boxes dropped: "
BACKWARDS = f"{DROPPED}drawn from right to left or from bottom to top"
FLAT = f"{DROPPED}width or height not positive"
OUTSIDE = f"{DROPPED}outside the image"
# Image files whose size tells a data set from another with the same annotation file.
SAMPLED_FILES = 16


@dataclass(frozen=True, slots=True, eq=False)
class CocoData:
    """Images, boxes and categories of one annotation file.

    N images, M annotations of any kind, sorted by image in the order of the file. There is no
    Python object per image or box: loader processes share these arrays, and their memory does
    not grow as they read them.
    """

    path: Path  # the annotation file
    image_root: Path
    image_ids: np.ndarray  # (N,) int64
    sizes: np.ndarray  # (N, 2) int32 height, width of the image as displayed
    name_bytes: np.ndarray  # uint8: every file name in UTF-8, one after the other
    name_ends: np.ndarray  # (N + 1,) int64: name i is name_bytes[name_ends[i]:name_ends[i + 1]]
    first: np.ndarray  # (N + 1,) int64: annotations of image i are rows first[i]:first[i + 1]
    bbox: np.ndarray  # (M, 4) float64 x, y, width, height, exactly as in the file
    area: np.ndarray  # (M,) float64
    labels: np.ndarray  # (M,) int64; as read, in the order of the category ids
    crowd: np.ndarray  # (M,) bool
    usable: np.ndarray  # (M,) bool: false for boxes without area inside the image
    category_ids: tuple[int, ...]  # category_ids[label]; sorted as read
    category_names: tuple[str, ...]  # category_names[label]
    annotated: bool  # false: a test set, the file has no list of annotations
    repairs: dict[str, int]  # what was repaired or dropped while reading -> how often
    fingerprint: str  # SHA-256 of the annotation file

    def __len__(self) -> int:
        return len(self.image_ids)

    def file_name(self, index: int) -> str:
        """Path of an image below the image folder, as the file gives it."""
        start, end = self.name_ends[index : index + 2]
        return self.name_bytes[start:end].tobytes().decode("utf-8", "surrogatepass")

    def image_path(self, index: int) -> Path:
        """Path of an image."""
        return self.image_root / self.file_name(index)

    def boxes(self, index: int) -> tuple[Tensor, Tensor]:
        """The objects of one image, which training is to find.

        Returns:
            (G, 4) float32 boxes in pixels of the file, clipped to the image, and (G,) int64 labels.
        """
        rows = self._rows(index, crowd=False)
        return self._clipped(index, rows), torch.from_numpy(self.labels[rows])

    def crowds(self, index: int) -> Tensor:
        """The crowd boxes of one image, (C, 4) float32, clipped to the image."""
        return self._clipped(index, self._rows(index, crowd=True))

    def _rows(self, index: int, crowd: bool) -> np.ndarray:
        start, end = self.first[index : index + 2]
        return start + np.flatnonzero(self.usable[start:end] & (self.crowd[start:end] == crowd))

    def _clipped(self, index: int, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(clip_xywh(self.bbox[rows], self.sizes[index]).astype(np.float32))

    def num_boxes(self) -> np.ndarray:
        """(N,) int64: objects in every image, as :meth:`boxes` counts them."""
        total = np.concatenate([[0], np.cumsum(self.usable & ~self.crowd)])
        return total[self.first[1:]] - total[self.first[:-1]]

    @property
    def has_objects(self) -> bool:
        """Whether there is any box to be trained on, or scored."""
        return bool((self.usable & ~self.crowd).any())

    def folders(self) -> dict[str, list[tuple[str, int]]]:
        """Folder below the image folder -> name and index of each of its images."""
        folders: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for index in range(len(self)):
            folder, name = os.path.split(self.file_name(index))
            folders[folder].append((name, index))
        return folders

    def missing(self) -> list[int]:
        """Indices of the images whose file does not exist.

        Each folder is listed once: asking for every file takes minutes on network disks.
        """
        missing = []
        for folder, files in self.folders().items():
            present = names_in(os.path.join(self.image_root, folder))  # noqa: PTH118
            # Some file systems find names that they list in another spelling. With os.path:
            # pathlib fails where a name is too long, or none that the file system knows.
            missing += [
                index
                for name, index in files
                if name not in present and not os.path.exists(self.image_path(index))  # noqa: PTH110
            ]
        return sorted(missing)

    def file_sizes(self) -> list[int | None]:
        """Bytes of a few image files, evenly spaced by image id; None where there is none.

        They tell other images under the same names: the annotation file says nothing of them.
        """
        rows = np.linspace(0, len(self) - 1, min(len(self), SAMPLED_FILES)).round().astype(int)
        sizes: list[int | None] = []
        for index in np.argsort(self.image_ids, kind="stable")[rows].tolist():
            try:
                sizes.append(self.image_path(index).stat().st_size)
            except (OSError, ValueError):
                sizes.append(None)
        return sizes

    def relabelled(self, names: Sequence[str]) -> CocoData:
        """The same data with the classes in another order, that of ``names``."""
        if tuple(names) == self.category_names:
            return self
        old = [self.category_names.index(name) for name in names]  # new label -> old label
        return dataclasses.replace(
            self,
            labels=np.argsort(old)[self.labels],
            category_ids=tuple(self.category_ids[label] for label in old),
            category_names=tuple(names),
        )


def names_in(folder: str) -> set[str]:
    """What lies in a folder; nothing where there is none."""
    return set(os.listdir(folder)) if os.path.isdir(folder) else set()  # noqa: PTH112, PTH208


def images_of(data: CocoData) -> np.ndarray:
    """(M,) int64: the image of every annotation."""
    return np.repeat(np.arange(len(data)), np.diff(data.first))


def class_counts(data: CocoData) -> list[int]:
    """Boxes of every class, as training counts them."""
    labels = data.labels[data.usable & ~data.crowd]
    return np.bincount(labels, minlength=len(data.category_names)).tolist()


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


def read_coco(annotations: Path, image_root: Path) -> CocoData:
    """Read and check an annotation file; what each field must be stands in records.py.

    Repaired, and counted in ``repairs``: annotation ids that are missing, repeated or not positive
    (0 spoils the AP of pycocotools; ids are given anew, nothing refers to them), missing
    ``iscrowd`` (0) and ``area`` (width times height), backslashes in file names (taken for
    folders). Lost, and counted there too: boxes without area inside the image, or with a negative
    side (never trained on; the evaluator still gets them). Everything else that is wrong is
    refused.

    Args:
        annotations: COCO JSON. Without a list of annotations it is a test set.
        image_root: folder that file names start from.

    Raises:
        FileNotFoundError: no annotation file or no image folder.
        ValueError: file, record, field, value, what is allowed, what to do.
    """
    content, fingerprint = read_json(Path(annotations))
    reading = read_records(content, Path(annotations), Path(image_root), fingerprint)
    raise_refused(reading.issues)
    return reading.data


class Reading(NamedTuple):
    """An annotation file as read: its data, without the records that have an issue."""

    data: CocoData
    issues: list[Issue]  # that training refuses
    images: Records
    categories: Records
    boxes: Records
    image_rows: np.ndarray  # (N,) the record of every image
    box_rows: np.ndarray  # (M,) the record of every annotation
    repaired: dict[str, np.ndarray]  # what was repaired or dropped -> rows of boxes, ascending

    @property
    def whole(self) -> bool:
        """Whether no record is left out."""
        return not (self.images.issues or self.categories.issues or self.boxes.issues)


def read_records(
    content: dict[str, Any], annotations: Path, image_root: Path, fingerprint: str
) -> Reading:
    """What :func:`read_coco` reads of a file's content, and every issue that it would refuse."""
    annotated = "annotations" in content
    images = Records(annotations, "images", content)
    categories = Records(annotations, "categories", content)
    boxes = Records(annotations, "annotations", {"annotations": []} | content)

    image_ids = images.read("id")
    images.unique("id", image_ids)
    sizes = np.stack([images.read("height"), images.read("width")], axis=1).astype(np.int32)
    # Label Studio on Windows writes the folders with backslashes, which only Windows understands.
    names = [name.replace("\\", "/") for name in images.read("file_name")]
    images.unique("file_name", names, f"{CONVERTER}` makes one of them.")

    category_ids, category_names = categories.read("id"), categories.read("name")
    categories.unique("id", category_ids)
    # Roboflow adds a class that only groups the others, and may give it the name of one of them.
    unused = f"if no box has it, {CONVERTER} --drop-unused-classes` does."
    categories.unique("name", category_names, f"Remove or rename one of them; {unused}")

    # Index among all images and all categories, -1 for none.
    image = _referred(boxes, "image_id", images, image_ids, "image")
    labels = _referred(boxes, "category_id", categories, category_ids, "category")
    outlined = [row for row, item in enumerate(boxes.items) if item.get("segmentation")]
    boxes.refuse(outlined, "bbox", BOX.allowed, OUTLINE_FIX, OUTLINE_FIX)
    bbox = np.array(boxes.read("bbox"), dtype=np.float64).reshape(-1, 4)
    crowd = boxes.read("iscrowd")
    given_area = np.array(boxes.read("area"), dtype=np.float64)  # nan where it is left open
    no_area = np.isnan(given_area)
    area = np.where(no_area, box_area(bbox).clip(max=MAX_AREA), given_area)

    # Only what is sound: images in the order of the file, categories by id, boxes by image.
    image_rows = np.flatnonzero(images.sound())
    category_rows = np.flatnonzero(categories.sound())
    category_rows = category_rows[np.argsort(np.take(category_ids, category_rows))]
    image = _renumbered(image, image_rows, len(images))
    labels = _renumbered(labels, category_rows, len(categories))
    rows = np.flatnonzero(boxes.sound() & (image >= 0) & (labels >= 0))
    rows = rows[np.argsort(image[rows], kind="stable")]

    sizes = sizes[image_rows]
    of_image = sizes[image[rows]]  # (M, 2)
    xywh = bbox[rows]
    usable = has_area(xywh, of_image)
    sides = xywh[:, 2:]
    in_order = np.concatenate([xywh[:, :2] + sides.clip(max=0), np.abs(sides)], axis=1)
    backwards = ~usable & (sides < 0).any(axis=1) & has_area(in_order, of_image)
    flat = ~backwards & (sides <= 0).any(axis=1)
    repaired = {
        RENUMBERED: rows[_bad_ids(boxes.column("id"))[rows]],
        NO_CROWD: rows[np.array([value is None for value in crowd], dtype=bool)[rows]],
        NO_AREA: rows[no_area[rows]],
        BACKWARDS: rows[backwards],
        FLAT: rows[flat],
        OUTSIDE: rows[~flat & ~usable & ~backwards],
    }
    slashes = sum(isinstance(name, str) and "\\" in name for name in images.column("file_name"))
    repairs = {what: len(some) for what, some in repaired.items()} | {BACKSLASHES: slashes}
    encoded = [names[row].encode("utf-8", "surrogatepass") for row in image_rows]
    data = CocoData(
        path=annotations,
        image_root=image_root,
        image_ids=np.array(image_ids, dtype=np.int64)[image_rows],
        sizes=sizes,
        name_bytes=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        name_ends=np.cumsum([0, *map(len, encoded)]),
        first=np.searchsorted(image[rows], np.arange(len(image_rows) + 1)),
        bbox=xywh,
        area=area[rows],
        labels=labels[rows],
        crowd=np.array([value == 1 for value in crowd], dtype=bool)[rows],
        usable=usable,
        category_ids=tuple(category_ids[row] for row in category_rows),
        category_names=tuple(category_names[row] for row in category_rows),
        annotated=annotated,
        repairs={what: count for what, count in repairs.items() if count},
        fingerprint=fingerprint,
    )
    issues = images.issues + categories.issues + boxes.issues
    if not image_root.is_dir():
        problem, fix = (
            f"image folder {image_root} does not exist",
            "check data.root and data.*_images.",
        )
        error = FileNotFoundError(f"{problem}; {fix}")
        issues = [refusal("no image folder", [problem], error, fix.capitalize()), *issues]
    repaired = {what: np.sort(some) for what, some in repaired.items()}
    return Reading(data, issues, images, categories, boxes, image_rows, rows, repaired)


def _referred(
    boxes: Records, field: str, listed: Records, ids: Sequence[int], singular: str
) -> np.ndarray:
    """(M,) int64: the record of ``listed`` that each annotation refers to, by its id; -1 for none.

    That is refused, unless what is meant may be among the records left out of ``listed``.
    """
    record = {number: row for row, number in reversed([*enumerate(ids)])}  # the first, if repeated
    rows = np.array([record.get(number, -1) for number in boxes.read(field)], dtype=np.int64)
    if listed.complete and ids and not listed.refused["id"]:
        fix = "Remove the annotation, or list what it refers to."
        boxes.refuse(np.flatnonzero(rows < 0), field, f"the id of a listed {singular}", fix)
    return rows


def _renumbered(indices: np.ndarray, kept: np.ndarray, count: int) -> np.ndarray:
    """Indices among ``count`` records -> among those that are kept; -1 for others, and for -1."""
    new = np.full(count + 1, -1)
    new[kept] = np.arange(len(kept))
    return new[indices]


def _bad_ids(ids: Sequence[Any]) -> np.ndarray:
    """(M,) bool: annotations whose id is missing, repeated, not an integer, or below 1."""
    seen: set[int] = set()
    bad = np.zeros(len(ids), dtype=bool)
    for row, value in enumerate(ids):
        bad[row] = type(value) is not int or value < 1 or value in seen
        seen.add(value if type(value) is int else 0)
    return bad
