"""COCO JSON, as annotation tools write it: read with unambiguous repairs, and written."""

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
from retinanet.tools.formats import dataset as ds
from retinanet.tools.formats.dataset import BadRecord, Box, Dataset, Errors, ImageRecord, Options

# Fields of records that are numbers, which some tools write in quotes; other fields that are kept.
NUMBERS = {
    "images": ("id", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "area", "iscrowd"),
    "categories": ("id",),
}
OTHERS = {
    "images": {"file_name"},
    "annotations": {"bbox", "difficult", "ignore"},
    "categories": {"name"},
}
QUOTED = "number in quotes"
BACKWARDS = "box drawn from right to left or from bottom to top, its corners put in order"
SEGMENTATION = re.compile(rb'"segmentation"\s*:\s*(?!\[\s*\]|null)')

Content = dict[str, Any]  # of the JSON file, of any form


def read_coco_file(path: Path, options: Options) -> Dataset:
    """One file, with the repairs that leave no doubt.

    Args:
        path: COCO JSON.
        options: image_folder, look, base_names and used_ids are read.

    Raises:
        AnnotationError: images are not there, or class names that other formats cannot hold.
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
    with ds.refused(path):
        class_ids = ds.class_ids_of(zip(data.category_names, data.category_ids, strict=True))
    for what, number in data.repairs.items():
        if what == OUTSIDE:  # kept here
            notes["box outside its image, which train.py never trains on"] = number
        elif what != FLAT:  # counted for all formats
            notes[what] = number
    masks = len(SEGMENTATION.findall(path.read_bytes()))
    if masks:
        notes["segmentation, not kept: boxes are"] = masks
    lost = [key for key in content if key not in NUMBERS and content[key]]
    for name in NUMBERS:
        fields = {field for record in content[name] for field in record}
        lost += [f"{name}.{field}" for field in sorted(fields - {*NUMBERS[name]} - OTHERS[name])]
    if lost:
        notes[f"not kept: {', '.join(lost)}"] = 0
    notes["annotation ids are given anew, in the order of images"] = 0

    class_names = {number: name for name, number in class_ids.items()}
    boxes: dict[int, list[Box]] = defaultdict(list)
    for record in content["annotations"]:
        name, xywh = class_names[record["category_id"]], tuple(map(float, record["bbox"]))
        crowd, difficult = record.get("iscrowd") == 1, record.get("difficult") == 1
        boxes[record["image_id"]].append(Box(name, xywh, crowd, record.get("area"), difficult))
    errors = Errors()
    images = []
    for row, record in enumerate(content["images"]):
        name, number = record["file_name"].replace("\\", "/"), record["id"]
        images.append(
            ImageRecord(name, int(record["width"]), int(record["height"]), boxes[number], number)
        )
        with errors.caught(path):
            if options.look and not ds.is_file(root / ds.check_name(name, "image")):
                raise BadRecord(
                    f"images[{row}] (id {number}): no image {root / name}; give the folder with "
                    f"--image-folder, or --images ignore."
                )
    errors.stop()
    return Dataset([ds.Split(ds.file_split(path), root, images)], class_ids, notes)


def used_ids(path: Path) -> set[int]:
    """The category ids that boxes of a file have."""
    boxes = _records(read_json(path)[0], "annotations")
    for record in boxes:
        _unquote(record, ["category_id"])
    return {box["category_id"] for box in boxes if isinstance(box.get("category_id"), int)}


def _records(content: Content, name: str) -> list[Content]:
    items = content.get(name)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _repair(content: Content, path: Path, options: Options, notes: Counter[str]) -> Path:
    """Repair the content of a file in place, counted in ``notes``; the folder of its images."""
    counted: Counter[str] = Counter()
    for name, fields in NUMBERS.items():
        counted[QUOTED] += sum(_unquote(record, fields) for record in _records(content, name))
    for record in _records(content, "annotations"):
        if isinstance(record.get("bbox"), list):
            counted[QUOTED] += _unquote(record["bbox"], range(len(record["bbox"])))
            counted[BACKWARDS] += _put_in_order(record)
    images = [i for i in _records(content, "images") if isinstance(i.get("file_name"), str)]
    root = ds.find_root(path, images[0]["file_name"] if images else "", options)
    for image in images:
        name = image["file_name"].replace("\\", "/")
        base = PurePosixPath(name).name
        if options.base_names and base not in ("", image["file_name"]):
            image["file_name"] = name = base
            counted["image name without its folders"] += 1
        if options.look and not image.get("width") and not image.get("height"):
            with suppress(BadRecord):  # refused as a missing size
                image["width"], image["height"] = ds.size_of(root / name)
                counted["size missing in the file, read from the image"] += 1
    if options.used_ids is not None and isinstance(content.get("categories"), list):
        unused = [c for c in _records(content, "categories") if c.get("id") not in options.used_ids]
        content["categories"] = [c for c in content["categories"] if c not in unused]
        dropped = ", ".join(str(category.get("name")) for category in unused)
        counted[f"class that no box has, dropped: {dropped}"] += len(unused)
    notes.update(+counted)
    return root


def _unquote(holder: Any, keys: Any) -> int:
    """Turn texts that are numbers into numbers, in a record or a list; how many there were."""
    count = 0
    for key in keys:
        value = holder[key] if isinstance(holder, list) else holder.get(key)
        number = ds.parse_number(value) if isinstance(value, str) else None
        if number is not None:
            holder[key] = int(number) if number == int(number) else float(number)
            count += 1
    return count


def _put_in_order(record: Content) -> bool:
    """Write a box that was drawn from another corner from the upper left one; whether it was."""
    box = record["bbox"]
    if len(box) != 4 or not all(type(n) in (int, float) and abs(n) < ds.LARGEST for n in box):
        return False
    x, y, width, height = box
    if 0 in (width, height) or min(width, height) > 0:
        return False
    record["bbox"] = [x + min(width, 0), y + min(height, 0), abs(width), abs(height)]
    if type(record.get("area")) in (int, float):
        record["area"] = abs(record["area"])
    return True


def write_coco(dataset: Dataset, output: Path) -> None:
    """Write ``SPLIT.json``, one record a line.

    Args:
        dataset: images without an id get one, from 1 in the order of the list.
        output: the new folder.
    """
    categories = [{"id": i, "name": name} for name, i in dataset.class_ids.items()]
    for split in dataset.splits:
        ids = [image.id for image in split.images]
        if None in ids or len(set(ids)) < len(ids):
            ids = list(range(1, len(ids) + 1))
        images, annotations = [], []
        for i, image in zip(ids, split.images, strict=True):
            sides = {"width": image.width, "height": image.height}
            images.append({"id": i, "file_name": image.name, **sides})
            for box in image.boxes:
                area = box.area
                if area is None:
                    area = min(max(box.xywh[2], 0) * max(box.xywh[3], 0), MAX_AREA)
                # Whole numbers without a point.
                numbers = [
                    int(n) if n.is_integer() and abs(n) < 2**53 else n
                    for n in (*box.xywh, float(area))
                ]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": i}
                    | {"category_id": dataset.class_ids[box.class_name], "bbox": numbers[:4]}
                    | {"area": numbers[4], "iscrowd": int(box.crowd)}
                    | ({"difficult": 1} if box.difficult else {})
                )
        parts = []
        lists = {"images": images, "annotations": annotations, "categories": categories}
        for name, records in lists.items():
            lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
            parts.append(f'"{name}": [\n{lines}\n]')
        write_whole(output / f"{split.name}.json", "{\n" + ",\n".join(parts) + "\n}\n")
