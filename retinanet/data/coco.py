"""A data set in COCO's format, read once, checked, and kept as flat arrays."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from retinanet.data.fields import (
    clip_xywh,
    find_bad_ids,
    has_area,
    in_order,
    positions,
    read_area,
    read_categories,
    read_crowd,
    read_names,
    read_sizes,
)
from retinanet.data.records import Records, read_json
from retinanet.data.verdict import STOP, Verdict

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
    labels: np.ndarray  # (M,) int64; as read, the rank of the category id
    crowd: np.ndarray  # (M,) bool
    usable: np.ndarray  # (M,) bool: false for boxes without area inside the image
    category_ids: tuple[int, ...]  # category_ids[label]; sorted as read
    category_names: tuple[str, ...]  # category_names[label]
    annotated: bool  # false: a test set, the file has no list of annotations
    repairs: dict[str, int]  # what was mended while reading -> how often
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
        """The objects of one image: what training is to find.

        Returns:
            (G, 4) float32 boxes in pixels of the file, clipped to the image, and (G,) int64
            labels.
        """
        rows = self._rows(index, crowd=False)
        return self._clipped(index, rows), torch.from_numpy(self.labels[rows])

    def crowds(self, index: int) -> Tensor:
        """The crowd boxes of one image, (C, 4) float32, clipped to the image."""
        return self._clipped(index, self._rows(index, crowd=True))

    def num_boxes(self) -> np.ndarray:
        """(N,) int64: objects in every image, as :meth:`boxes` counts them."""
        total = np.concatenate([[0], np.cumsum(self.usable & ~self.crowd)])
        return total[self.first[1:]] - total[self.first[:-1]]

    def missing(self) -> list[int]:
        """Indices of the images whose file does not exist.

        Each folder is listed once: asking for every file takes minutes on network disks. With
        os.path: pathlib fails where a name is too long, or none that the file system knows.
        """
        present: dict[str, set[str]] = {}
        lost = []
        for index in range(len(self)):
            folder, name = os.path.split(self.file_name(index))
            if folder not in present:
                where = os.path.join(self.image_root, folder)  # noqa: PTH118
                found = os.listdir(where) if os.path.isdir(where) else []  # noqa: PTH112, PTH208
                present[folder] = set(found)
            # Some file systems find names that they list in another spelling.
            if name not in present[folder] and not os.path.exists(self.image_path(index)):  # noqa: PTH110
                lost.append(index)
        return lost

    def file_sizes(self) -> list[int | None]:
        """Bytes of a few image files, evenly spaced by image id; None where there is none.

        They tell other images under the same names: the annotation file says nothing of them.
        """
        places = np.linspace(0, len(self) - 1, min(len(self), SAMPLED_FILES)).round().astype(int)
        sizes: list[int | None] = []
        for index in np.argsort(self.image_ids, kind="stable")[places].tolist():
            try:
                sizes.append(self.image_path(index).stat().st_size)
            except (OSError, ValueError):
                sizes.append(None)
        return sizes

    def relabelled(self, names: Sequence[str]) -> CocoData:
        """The same data with the classes in another order.

        Args:
            names: the same names as ``category_names``.
        """
        if tuple(names) == self.category_names:
            return self
        old = [self.category_names.index(name) for name in names]  # new label -> old label
        return dataclasses.replace(
            self,
            labels=np.argsort(old)[self.labels],
            category_ids=tuple(self.category_ids[label] for label in old),
            category_names=tuple(names),
        )

    def _rows(self, index: int, crowd: bool) -> np.ndarray:
        """Usable annotations of one image that are crowds, or that are not."""
        start, end = self.first[index : index + 2]
        return start + np.flatnonzero(self.usable[start:end] & (self.crowd[start:end] == crowd))

    def _clipped(self, index: int, rows: np.ndarray) -> Tensor:
        """(len(rows), 4) float32 xyxy."""
        return torch.from_numpy(clip_xywh(self.bbox[rows], self.sizes[index]).astype(np.float32))


def images_of(data: CocoData) -> np.ndarray:
    """(M,) int64: the image of every annotation."""
    return np.repeat(np.arange(len(data)), np.diff(data.first))


class Reading(NamedTuple):
    """An annotation file as read: its data, and the records that it comes from."""

    data: CocoData
    images: Records
    boxes: Records
    image_rows: np.ndarray  # (N,) the record of every image
    box_rows: np.ndarray  # (M,) the record of every annotation
    mended: dict[str, np.ndarray]  # what was mended -> records of annotations, ascending


def read_coco(annotations: Path, image_root: Path) -> CocoData:
    """Read and check an annotation file.

    Mended, and counted in ``repairs``: annotation ids that are missing, repeated or not positive
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
    return read_all(annotations, image_root, STOP).data


def read_all(
    annotations: Path,
    image_root: Path,
    verdict: Verdict,
    mend: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Reading:
    """:func:`read_coco` with its records; where ``verdict`` goes on, without those it refuses.

    ``mend`` may change the content of the file before it is read.

    Raises:
        FileNotFoundError: no annotation file.
        ValueError: the annotation file is not a JSON object; when stopping, any problem.
    """
    annotations, image_root = Path(annotations), Path(image_root)
    found, fingerprint = read_json(annotations)
    mend(found)
    _check_folder(image_root, verdict)
    images = Records(annotations, "images", found, verdict)
    images.refuse_empty("it lists no image at all", "List the images.")
    image_ids = images.integers("id")
    images.unique("id", image_ids)
    sizes = read_sizes(images)
    names = read_names(images)
    categories = Records(annotations, "categories", found, verdict)
    category_ids, category_names = read_categories(categories)

    annotated = "annotations" in found
    listed = found if annotated else {"annotations": []}
    boxes = Records(annotations, "annotations", listed, verdict)
    image = positions(boxes, "image_id", images, image_ids)
    labels = positions(boxes, "category_id", categories, category_ids)
    columns, mended = _read_columns(boxes)

    # Only what is sound: images in the order of the file, categories by id, boxes by image.
    image_rows = np.flatnonzero(images.sound())
    category_rows = np.flatnonzero(categories.sound())
    category_rows = category_rows[np.argsort(category_ids[category_rows])]
    image, labels = _ranks(image_rows, image, images), _ranks(category_rows, labels, categories)
    rows = np.flatnonzero(boxes.sound() & (image >= 0) & (labels >= 0))
    rows = rows[np.argsort(image[rows], kind="stable")]
    columns = {name: column[rows] for name, column in columns.items()}
    bbox, of_image = columns["bbox"], sizes[image_rows][image[rows]]
    usable = has_area(bbox, of_image)
    backwards = ~usable & (bbox[:, 2:] < 0).any(axis=1) & has_area(in_order(bbox), of_image)
    flat = ~backwards & (bbox[:, 2:] <= 0).any(axis=1)
    mended = {what: np.sort(rows[mask[rows]]) for what, mask in mended.items()}
    mended[BACKWARDS] = np.sort(rows[backwards])
    mended[FLAT] = np.sort(rows[flat])
    mended[OUTSIDE] = np.sort(rows[~flat & ~usable & ~backwards])
    data = CocoData(
        path=annotations,
        image_root=image_root,
        image_ids=image_ids[image_rows],
        sizes=sizes[image_rows],
        **_packed([names[row] for row in image_rows]),
        first=np.searchsorted(image[rows], np.arange(len(image_rows) + 1)),
        **columns,
        labels=labels[rows],
        usable=usable,
        category_ids=tuple(category_ids[category_rows].tolist()),
        category_names=tuple(category_names[row] for row in category_rows),
        annotated=annotated,
        repairs=_counts(mended, images),
        fingerprint=fingerprint,
    )
    return Reading(data, images, boxes, image_rows, rows, mended)


def _read_columns(boxes: Records) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Columns of the data, and what was mended in them: what -> (M,) bool, where."""
    bbox = boxes.boxes("bbox")
    bad_id = find_bad_ids(boxes.column("id"))
    crowd, no_crowd = read_crowd(boxes)
    area, no_area = read_area(boxes, bbox)
    columns = {"bbox": bbox, "area": area, "crowd": crowd}
    return columns, {
        "annotation ids renumbered": bad_id,
        "iscrowd filled in": no_crowd,
        "area filled in": no_area,
    }


def _counts(mended: dict[str, np.ndarray], images: Records) -> dict[str, int]:
    """What was mended -> how often."""
    counts = {what: len(rows) for what, rows in mended.items()}
    texts = [name for name in images.column("file_name") if isinstance(name, str)]
    counts["backslashes in file names taken for folders"] = sum("\\" in name for name in texts)
    return {what: number for what, number in counts.items() if number}


def _packed(names: Sequence[str]) -> dict[str, np.ndarray]:
    """Names as two arrays."""
    encoded = [name.encode("utf-8", "surrogatepass") for name in names]
    return {
        "name_bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        "name_ends": np.cumsum([0, *map(len, encoded)]),
    }


def _check_folder(image_root: Path, verdict: Verdict) -> None:
    problem = f"image folder {image_root} does not exist"
    remedy = "check data.root and data.*_images."
    verdict.refuse(
        "no image folder",
        [] if image_root.is_dir() else [0],
        lambda _: problem,
        lambda _: f"{problem}; {remedy}",
        remedy.capitalize(),
        FileNotFoundError,
    )


def _ranks(rows: np.ndarray, positions: np.ndarray, records: Records) -> np.ndarray:
    """Where records stand among ``rows``; -1 for those that are not, and for -1."""
    rank = np.full(len(records) + 1, -1)
    rank[rows] = np.arange(len(rows))
    return rank[positions]
