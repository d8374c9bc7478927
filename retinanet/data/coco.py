"""A data set in COCO's format, read once, checked, and kept as flat arrays."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retinanet.data.fields import (
    clip_xywh,
    count_bad_ids,
    find_usable,
    positions,
    read_area,
    read_categories,
    read_crowd,
    read_names,
    read_sizes,
)
from retinanet.data.records import Records, read_json, shown


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


def read_coco(annotations: Path, image_root: Path) -> CocoData:
    """Read and check an annotation file.

    Mended, and counted in ``repairs``: annotation ids that are missing, repeated or not positive
    (0 spoils the AP of pycocotools; ids are given anew, nothing refers to them), missing
    ``iscrowd`` (0) and ``area`` (width times height), boxes without area inside the image (never
    trained on; the evaluator still gets them). Everything else that is wrong is refused.

    Args:
        annotations: COCO JSON. Without a list of annotations it is a test set.
        image_root: folder that file names start from.

    Raises:
        FileNotFoundError: no annotation file or no image folder.
        ValueError: file, record, field, value, what is allowed, what to do.
    """
    annotations, image_root = Path(annotations), Path(image_root)
    found, fingerprint = read_json(annotations)
    if not image_root.is_dir():
        raise FileNotFoundError(
            f"image folder {image_root} does not exist; check data.root and data.*_images."
        )
    images = Records(annotations, "images", found)
    if not len(images):
        raise ValueError(f"{annotations}: images must not be empty; it lists no image at all.")
    image_ids = images.integers("id")
    images.unique("id", image_ids)
    sizes = read_sizes(images)
    names = read_names(images)
    category_ids, category_names = read_categories(Records(annotations, "categories", found))

    annotated = "annotations" in found
    boxes = Records(annotations, "annotations", found if annotated else {"annotations": []})
    image = positions(boxes, "image_id", image_ids, "the id of a listed image")
    labels = positions(boxes, "category_id", category_ids, "the id of a listed category")
    bbox = boxes.boxes("bbox")
    repairs = {"annotation ids renumbered": count_bad_ids(boxes.column("id"))}
    crowd = read_crowd(boxes, repairs)
    area = read_area(boxes, bbox, repairs)
    usable = find_usable(bbox, sizes[image], repairs)

    by_image = np.argsort(image, kind="stable")
    encoded = [name.encode("utf-8", "surrogatepass") for name in names]
    return CocoData(
        path=annotations,
        image_root=image_root,
        image_ids=image_ids,
        sizes=sizes,
        name_bytes=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        name_ends=np.cumsum([0, *map(len, encoded)]),
        first=np.searchsorted(image[by_image], np.arange(len(image_ids) + 1)),
        bbox=bbox[by_image],
        area=area[by_image],
        labels=labels[by_image],
        crowd=crowd[by_image],
        usable=usable[by_image],
        category_ids=tuple(category_ids.tolist()),
        category_names=category_names,
        annotated=annotated,
        repairs={what: count for what, count in repairs.items() if count},
        fingerprint=fingerprint,
    )


def check_same_classes(train: CocoData, val: CocoData) -> None:
    """Refuse two files that do not list the same categories, by name and id.

    One misspelt name would shift the labels of every category after it.

    Raises:
        ValueError: the categories that differ, and what they were probably meant to be.
    """
    ours = dict(zip(train.category_names, train.category_ids, strict=True))
    theirs = dict(zip(val.category_names, val.category_ids, strict=True))
    if ours == theirs:
        return
    differences = []
    for name in [name for name in ours if name not in theirs][:3]:
        differences.append(f"{shown(name)} is only in {train.path}{_near_miss(name, theirs)}")
    for name in [name for name in theirs if name not in ours][:3]:
        differences.append(f"{shown(name)} is only in {val.path}{_near_miss(name, ours)}")
    if not differences:
        name = next(name for name in ours if ours[name] != theirs[name])
        differences = [
            f"{shown(name)} has id {ours[name]} in {train.path} and {theirs[name]} in {val.path}"
        ]
    raise ValueError(
        f"training and validation must list the same categories with the same ids: "
        f"{'; '.join(differences)}. Correct the list of categories of one file."
    )


def check_images_exist(data: CocoData) -> None:
    """Refuse a data set with images missing from its folder.

    Raises:
        FileNotFoundError: the first missing image, and how many are missing.
    """
    lost = data.missing()
    if lost:
        more = f" ({len(lost)} of {len(data)} images are missing)" if len(lost) > 1 else ""
        raise FileNotFoundError(
            f"no image {data.image_path(lost[0])}, listed in {data.path}{more}; complete the "
            f"folder, or set data.on_bad_image=skip to go on without."
        )


def _near_miss(name: str, others: dict[str, int]) -> str:
    """The name that was probably meant, as the end of a sentence."""
    folded = {other.casefold().strip(): other for other in others}
    close = difflib.get_close_matches(name.casefold().strip(), folded, n=1, cutoff=0.75)
    return f" (the other has {shown(folded[close[0]])})" if close else ""
