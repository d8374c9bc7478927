"""COCO JSON, as annotation tools write it: read with repairs that nobody can doubt, and written."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from retinanet.atomic import write_whole
from retinanet.data.coco import FLAT, OUTSIDE, read_records
from retinanet.data.issues import raise_refused
from retinanet.data.records import MAX_AREA, read_json
from retinanet.tools.formats.dataset import (
    LARGEST,
    BadRecord,
    Box,
    Dataset,
    Errors,
    ImageRecord,
    Options,
    Split,
    class_ids_of,
    name_problem,
    read_number,
    refused,
)
from retinanet.tools.formats.files import file_split, find_root, is_file, size_of

Content = dict[str, Any]  # of the JSON file, of any form

# Fields of records that are numbers; some tools write them in quotes.
NUMBERS = {
    "images": ("id", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "area", "iscrowd"),
    "categories": ("id",),
}
# Fields that are kept, or empty of meaning here.
KEPT = {
    "images": {"id", "file_name", "width", "height"},
    "annotations": {*NUMBERS["annotations"], "bbox", "difficult", "ignore"},
    "categories": {"id", "name"},
}
QUOTED = "number in quotes"
BACKWARDS = "box drawn from right to left or from bottom to top, its corners put in order"
SEGMENTATION = re.compile(rb'"segmentation"\s*:\s*(?!\[\s*\]|null)')


def read_coco_file(path: Path, options: Options) -> Dataset:
    """One file, repaired as far as nobody can be in doubt.

    Args:
        path: COCO JSON.
        options: image_folder, look, base_names and used_ids are read.

    Raises:
        AnnotationError: images are not there, or names that other formats cannot hold.
        FileNotFoundError: no such file or folder.
        ValueError: file, record, field, value, what is allowed, the fix.
    """
    content, fingerprint = read_json(path)
    notes: Counter[str] = Counter()
    root = _repair(content, path, options, notes)
    # Any folder that is there: images are looked for below.
    reading = read_records(content, path, path.parent, fingerprint)
    raise_refused(reading.issues)
    data = reading.data
    if not data.annotated:
        raise ValueError(f"{path} has no list of annotations: a test set; nothing to convert.")
    with refused(path):
        class_ids = class_ids_of(zip(data.category_names, data.category_ids, strict=True))
    images = _images_of(content, path, root, options)
    for what, number in data.repairs.items():
        if what == OUTSIDE:  # kept here
            notes["box outside its image, which train.py never trains on"] = number
        elif what != FLAT:  # counted for all formats
            notes[what] = number
    masks = len(SEGMENTATION.findall(path.read_bytes()))
    notes.update({"segmentation, not kept: boxes are": masks} if masks else {})
    lost = [key for key in content if key not in KEPT and content[key]]
    for name, kept in KEPT.items():
        fields = {field for record in content[name] for field in record}
        lost += [f"{name}.{field}" for field in sorted(fields - kept)]
    notes.update({f"not kept: {', '.join(lost)}": 0} if lost else {})
    notes["annotation ids are given anew, in the order of images"] = 0
    return Dataset([Split(file_split(path), root, images)], class_ids, notes)


def used_ids(path: Path) -> set[int]:
    """The category ids that boxes of a file have."""
    ids = set()
    for record in _records(read_json(path)[0], "annotations"):
        _unquote(record, "category_id")
        if isinstance(record.get("category_id"), int):
            ids.add(record["category_id"])
    return ids


def _repair(content: Content, path: Path, options: Options, notes: Counter[str]) -> Path:
    """Repair the content of a file in place, counted in ``notes``; the folder of its images."""
    counted: Counter[str] = Counter()
    for name, fields in NUMBERS.items():
        for record in _records(content, name):
            counted[QUOTED] += sum(_unquote(record, field) for field in fields)
    for record in _records(content, "annotations"):
        box = record.get("bbox")
        if isinstance(box, list):
            counted[QUOTED] += sum(_unquote(box, index) for index in range(len(box)))
            counted[BACKWARDS] += _put_in_order(record)
    images = [i for i in _records(content, "images") if isinstance(i.get("file_name"), str)]
    root = find_root(path, images[0]["file_name"] if images else "", options)
    for image in images:
        name = image["file_name"].replace("\\", "/")
        base = PurePosixPath(name).name
        if options.base_names and base not in ("", image["file_name"]):
            image["file_name"] = name = base
            counted["image name without its folders"] += 1
        if options.look and not image.get("width") and not image.get("height"):
            with suppress(BadRecord):  # refused as a missing size
                image["width"], image["height"] = size_of(root / name)
                counted["size missing in the file, read from the image"] += 1
    if options.used_ids is not None and isinstance(content.get("categories"), list):
        unused = [c for c in _records(content, "categories") if c.get("id") not in options.used_ids]
        content["categories"] = [c for c in content["categories"] if c not in unused]
        names = ", ".join(str(category.get("name")) for category in unused)
        counted[f"class that no box has, dropped: {names}"] += len(unused)
    notes.update(+counted)
    return root


def _records(content: Content, name: str) -> list[Content]:
    items = content.get(name)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _unquote(holder: Any, key: Any) -> bool:
    """Make a number of a text that is one, in a record or a list; whether it was."""
    value = holder[key] if isinstance(holder, list) else holder.get(key)
    number = read_number(value) if isinstance(value, str) else None
    if number is not None:
        holder[key] = int(number) if number == int(number) else float(number)
    return number is not None


def _put_in_order(record: Content) -> bool:
    """Write a box that was drawn from another corner from the upper left one; whether it was."""
    box = record["bbox"]
    if len(box) != 4 or not all(type(n) in (int, float) and abs(n) < LARGEST for n in box):
        return False
    x, y, width, height = box
    if 0 in (width, height) or min(width, height) > 0:
        return False
    record["bbox"] = [x + min(width, 0), y + min(height, 0), abs(width), abs(height)]
    if type(record.get("area")) in (int, float):
        record["area"] = abs(record["area"])
    return True


def _images_of(content: Content, path: Path, root: Path, options: Options) -> list[ImageRecord]:
    """The images of a file that passed all checks of train.py, with their boxes."""
    class_names = {category["id"]: category["name"] for category in content["categories"]}
    boxes: dict[int, list[Box]] = defaultdict(list)
    for record in content["annotations"]:
        name, xywh = class_names[record["category_id"]], tuple(map(float, record["bbox"]))
        crowd, difficult = record.get("iscrowd") == 1, record.get("difficult") == 1
        boxes[record["image_id"]].append(Box(name, xywh, crowd, record.get("area"), difficult))
    errors = Errors()
    images = []
    for row, record in enumerate(content["images"]):
        name = record["file_name"].replace("\\", "/")
        problem = name_problem(name)
        if problem:
            errors.add(path, f"the image name {name!a} {problem}; rename it.")
        elif options.look and not is_file(root / name):
            errors.add(
                path,
                f"images[{row}] (id {record['id']}): no image {root / name}; give the folder with "
                f"--image-folder, or --images ignore.",
            )
        sides = int(record["width"]), int(record["height"])
        images.append(ImageRecord(name, *sides, boxes[record["id"]], record["id"]))
    errors.stop()
    return images


def write_coco(dataset: Dataset, output: Path) -> None:
    """Write ``SPLIT.json``, one record a line.

    Args:
        dataset: images without an id get one, from 1 in the order of the list.
        output: the new folder.
    """
    for split in dataset.splits:
        ids = [image.id for image in split.images]
        if None in ids or len(set(ids)) < len(ids):
            ids = list(range(1, len(ids) + 1))
        numbered = list(zip(ids, split.images, strict=True))
        annotations = [
            {"image_id": i, "category_id": dataset.class_ids[box.class_name], **_fields_of(box)}
            for i, image in numbered
            for box in image.boxes
        ]
        lists = {
            "images": [
                {"id": i, "file_name": image.name, "width": image.width, "height": image.height}
                for i, image in numbered
            ],
            "annotations": [{"id": row} | fields for row, fields in enumerate(annotations, 1)],
            "categories": [{"id": i, "name": name} for name, i in dataset.class_ids.items()],
        }
        parts = []
        for name, records in lists.items():
            lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
            parts.append(f'"{name}": [\n{lines}\n]')
        write_whole(output / f"{split.name}.json", "{\n" + ",\n".join(parts) + "\n}\n")


def _fields_of(box: Box) -> Content:
    area = box.area
    if area is None:
        area = min(max(box.xywh[2], 0) * max(box.xywh[3], 0), MAX_AREA)
    # Whole numbers without a point.
    bbox = [int(n) if n.is_integer() and abs(n) < 2**53 else n for n in (*box.xywh, float(area))]
    fields = {"bbox": bbox[:4], "area": bbox[4], "iscrowd": int(box.crowd)}
    return fields | ({"difficult": 1} if box.difficult else {})
