"""COCO JSON, as annotation tools write it."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from retinanet.atomic import write_whole
from retinanet.data.coco import FLAT, OUTSIDE, Reading, read_records
from retinanet.data.images import BadImage
from retinanet.data.issues import raise_refused
from retinanet.data.records import is_finite, read_json
from retinanet.tools.formats.annotations import (
    Annotations,
    Box,
    Category,
    Faults,
    Notes,
    Picture,
    Split,
    add_notes,
    check_class_names,
    name_problem,
)
from retinanet.tools.formats.decimals import read_number
from retinanet.tools.formats.images import Folder

# Fields of records that are numbers; some tools write them in quotes.
NUMBERS = {
    "images": ("id", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "area", "iscrowd"),
    "categories": ("id",),
}
# Fields that every format keeps, or that say nothing.
KEPT = {
    "images": {"id", "file_name", "width", "height"},
    "annotations": {
        *("id", "image_id", "category_id", "bbox", "area", "iscrowd", "difficult", "ignore"),
    },
    "categories": {"id", "name"},
}
# Other lists and objects of the file.
ABOUT = {"images", "annotations", "categories"}
BACKWARDS = "box drawn from right to left or from bottom to top, its corners put in order"
# What train.py would drop, and this keeps.
KEPT_AS_THEY_ARE = {
    FLAT: "box without width or height, which train.py never trains on",
    OUTSIDE: "box outside its image, which train.py never trains on",
}
SEGMENTATION = re.compile(rb'"segmentation"\s*:\s*(?!\[\s*\]|null)')


@dataclass(slots=True)
class Repairs:
    """What is put right in a file before it is read, and how often it was.

    Args:
        base_names: image names lose their folders.
        unused: drop categories whose id is not among these; None: keep all.
    """

    base_names: bool = False
    used: set[Any] | None = None
    counted: Counter[str] = field(default_factory=Counter)

    def apply(self, found: dict[str, Any], folder: Folder) -> None:
        """Mend the content of a file in place.

        Args:
            found: of the JSON file, of any form.
            folder: of its images.
        """
        for kind, fields in NUMBERS.items():
            for record in _records(found, kind):
                self.counted["number in quotes"] += sum(_unquote(record, key) for key in fields)
        for record in _records(found, "annotations"):
            box = record.get("bbox")
            if isinstance(box, list) and any(isinstance(number, str) for number in box):
                cells = dict(enumerate(box))
                self.counted["number in quotes"] += sum(_unquote(cells, key) for key in cells)
                record["bbox"] = list(cells.values())
            self.counted[BACKWARDS] += _put_in_order(record)
        for record in _records(found, "images"):
            self._mend_image(record, folder)
        if self.used is not None and isinstance(found.get("categories"), list):
            kept = [c for c in found["categories"] if _id_of(c, "id") in self.used]
            gone = [str(c.get("name")) for c in _records(found, "categories") if c not in kept]
            self.counted[f"class that no box has, dropped: {', '.join(gone)}"] += len(gone)
            found["categories"] = kept

    def _mend_image(self, record: dict[str, Any], folder: Folder) -> None:
        name = record.get("file_name")
        if not isinstance(name, str) or not name:
            return
        if self.base_names:
            base = PurePosixPath(name.replace("\\", "/")).name
            self.counted["image name without its folders"] += base != name
            record["file_name"] = name = base
        if all(record.get(side) in (None, 0) for side in ("width", "height")) and not (
            folder.ignored
        ):
            try:
                record["width"], record["height"] = folder.size(name.replace("\\", "/"))
            except (BadImage, OSError):
                return  # told as a missing size
            self.counted["size missing in the file, read from the image"] += 1


def read_coco_file(
    path: Path,
    name: str,
    folder: Folder,
    *,
    base_names: bool = False,
    used: set[Any] | None = None,
) -> Annotations:
    """One file, mended as far as nobody can be in doubt.

    Args:
        path: COCO JSON.
        name: of the split.
        folder: of its images.
        base_names: take the last part of image names.
        used: category ids to keep, see :func:`used_ids`; None: all.

    Raises:
        AnnotationError: images are not there, or names that other formats cannot hold.
        FileNotFoundError: no such file or folder.
        ValueError: file, record, field, value, what is allowed, what to do.
    """
    repairs = Repairs(base_names, used)
    content, fingerprint = read_json(path)
    lost = _lost(content)
    repairs.apply(content, folder)
    root = folder.root if not folder.ignored else path.parent
    reading = read_records(content, path, root, fingerprint)
    raise_refused(reading.issues)
    if not reading.data.annotated:
        raise ValueError(f"{path} has no list of annotations: a test set; nothing to convert.")
    faults = Faults()
    _check(reading, folder, faults)
    faults.stop()
    notes = {what: number for what, number in repairs.counted.items() if number}
    repaired = reading.data.repairs.items()
    add_notes(notes, {KEPT_AS_THEY_ARE.get(what, what): number for what, number in repaired})
    masks = len(SEGMENTATION.findall(path.read_bytes()))
    add_notes(notes, {"segmentation, not kept: boxes are": masks} if masks else {})
    add_notes(notes, {f"not kept: {', '.join(lost)}": 0} if lost else {})
    add_notes(notes, {"annotation ids are given anew, in the order of images": 0})
    data = reading.data
    categories = [
        Category(number, title)
        for number, title in zip(data.category_ids, data.category_names, strict=True)
    ]
    return Annotations([Split(name, folder, _pictures(reading))], categories, notes)


def used_ids(path: Path) -> set[Any]:
    """The category ids that boxes of a file have."""
    found, _ = read_json(path)
    return {_id_of(record, "category_id") for record in _records(found, "annotations")}


def _check(reading: Reading, folder: Folder, faults: Faults) -> None:
    data = reading.data
    check_class_names(data.category_names, data.path, faults)
    for index in range(len(data)):
        name = data.file_name(index)
        problem = name_problem(name)
        if problem:
            faults.add(data.path, f"the image name {name!a} {problem}; rename it.")
        elif not folder.ignored and not folder.holds(name):
            faults.add(
                data.path,
                f"{reading.images.where(int(reading.image_rows[index]))}: no image "
                f"{folder.root / name}; give the folder with --image-folder, or --images ignore.",
            )


def _pictures(reading: Reading) -> list[Picture]:
    data = reading.data
    area = data.area.tolist()
    bbox = data.bbox.tolist()
    pictures = []
    for index in range(len(data)):
        height, width = data.sizes[index].tolist()
        boxes = [
            Box(
                data.category_names[data.labels[row]],
                tuple(bbox[row]),
                bool(data.crowd[row]),
                area[row],
                reading.boxes.items[reading.box_rows[row]].get("difficult") == 1,
            )
            for row in range(*data.first[index : index + 2])
        ]
        number = int(data.image_ids[index])
        pictures.append(Picture(data.file_name(index), width, height, boxes, number))
    return pictures


def _put_in_order(record: dict[str, Any]) -> bool:
    """Write a box that was drawn from another corner from the upper left one; whether it was."""
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
        return False
    if 0 in box[2:] or min(box[2:]) > 0:
        return False
    x, y, width, height = box
    record["bbox"] = [x + min(width, 0), y + min(height, 0), abs(width), abs(height)]
    if is_finite(record.get("area")):
        record["area"] = abs(record["area"])
    return True


def _lost(found: dict[str, Any]) -> list[str]:
    """Parts of a file and fields of its records that no format here keeps."""
    lost = [key for key in found if key not in ABOUT and found[key]]
    for kind, kept in KEPT.items():
        fields = {key for record in _records(found, kind) for key in record}
        lost += [f"{kind}.{key}" for key in sorted(fields - kept)]
    return lost


def _records(found: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    items = found.get(kind)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _id_of(record: Any, key: str) -> Any:
    """An id, also where it stands in quotes."""
    holder = {key: record.get(key)} if isinstance(record, dict) else {key: None}
    _unquote(holder, key)
    value = holder[key]
    return value if isinstance(value, int) else None


def _unquote(record: dict[Any, Any], key: Any) -> bool:
    """Make a number of a text that is one; whether it was."""
    value = record.get(key)
    number = read_number(value) if isinstance(value, str) else None
    if number is None:
        return False
    record[key] = int(number) if number == int(number) else float(number)
    return True


def write_coco(found: Annotations, output: Path) -> Notes:
    """Write ``SPLIT.json``, one record a line.

    Args:
        found: any data set. Images without an id get one, from 1 in the order of the list.
        output: the new folder.

    Returns:
        What the format does not hold: nothing.
    """
    ids = {category.name: category.id for category in found.categories}
    for split in found.splits:
        numbers = _image_ids(split.pictures)
        images = [
            {"id": i, "file_name": p.name, "width": p.width, "height": p.height}
            for i, p in zip(numbers, split.pictures, strict=True)
        ]
        annotations = [
            {"image_id": i, "category_id": ids[box.name], **_fields_of(box)}
            for i, p in zip(numbers, split.pictures, strict=True)
            for box in p.boxes
        ]
        lists = {
            "images": images,
            "annotations": [{"id": row + 1} | item for row, item in enumerate(annotations)],
            "categories": [{"id": c.id, "name": c.name} for c in found.categories],
        }
        write_whole(output / f"{split.name}.json", _json(lists))
    return {}


def _image_ids(pictures: list[Picture]) -> list[int]:
    """Their own where every image has one that no other has, else from 1."""
    own = [picture.id for picture in pictures]
    if None not in own and len(set(own)) == len(own):
        return own  # type: ignore[return-value]
    return list(range(1, len(pictures) + 1))


def _fields_of(box: Box) -> dict[str, Any]:
    width, height = box.xywh[2:]
    area = max(width, 0) * max(height, 0) if box.area is None else box.area
    fields = {
        "bbox": [_plain(number) for number in box.xywh],
        "area": _plain(area),
        "iscrowd": int(box.crowd),
    }
    return fields | ({"difficult": 1} if box.difficult else {})


def _plain(number: float) -> int | float:
    """Whole numbers without a point."""
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _json(lists: dict[str, list[dict[str, Any]]]) -> str:
    parts = []
    for name, records in lists.items():
        lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
        parts.append(f'"{name}": [\n{lines}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"
