"""COCO JSON, as annotation tools write it: read with unambiguous repairs, and written."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
from pycocotools import mask

from retinanet.atomic import write_whole
from retinanet.data.coco import FLAT, OUTSIDE, read_records
from retinanet.data.issues import raise_refused
from retinanet.data.records import MAX_AREA, read_json, rotation
from retinanet.data.splits import find_meant
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
# Field that refers to a record -> the list of such records.
REFERENCES = {"image_id": "images", "category_id": "categories"}
QUOTED = "number in quotes"
RENUMBERED = "id that is no integer of 64 bits, numbered anew"
REPEATED = "record of an image or a category that stands twice, kept once"
MERGED = "record of an image that another record has, put together with it"
OUTLINED = "box made around a polygon or mask"
ROTATED = "rotated box, the upright box around it taken"
BACKWARDS = "box drawn from right to left or from bottom to top, its corners put in order"
SEGMENTATION = re.compile(rb'"segmentation"\s*:(?!\s*(?:\[\s*\]|null))')

Content = dict[str, Any]  # of the JSON file, of any form


def read_coco_file(path: Path, options: Options) -> Dataset:
    """One file, with the repairs that leave no doubt.

    Args:
        path: COCO JSON.
        options: image_folder, look, base_names and drop_unused are read.

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
    ignored = sum(bool(record.get("ignore")) for record in content["annotations"])
    if ignored:
        notes["ignore mark, not kept: set iscrowd to 1 before, to leave such a box out"] = ignored
    masks = len(SEGMENTATION.findall(path.read_bytes())) - notes[OUTLINED]
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
                found = find_meant(root, name)
                hint = "" if found is None else f"; there is {found}"
                fix = "add it, or give another folder with --image-folder, or --images ignore"
                if found == root / PurePosixPath(name).name:
                    fix = "--base-names takes folders off the names"
                raise BadRecord(
                    f"images[{row}] (id {number}): no image {root / name}{hint}; {fix}."
                )
    errors.stop()
    return Dataset([ds.Split(ds.file_split(path), root, images)], class_ids, notes)


def _records(content: Content, name: str) -> list[Content]:
    items = content.get(name)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _repair(content: Content, path: Path, options: Options, notes: Counter[str]) -> Path:
    """Repair the content of a file in place, counted in ``notes``; the folder of its images."""
    counted: Counter[str] = Counter()
    for name, fields in NUMBERS.items():
        counted[QUOTED] += sum(_unquote(record, fields) for record in _records(content, name))
    for name in ("images", "categories"):
        counted[REPEATED] += _drop_repeated(content, name)
    for field, name in REFERENCES.items():
        counted[RENUMBERED] += _renumber(content, name, field)
    boxes = _records(content, "annotations")
    if any(record.get("segmentation") for record in boxes):  # read_json keeps no more of them
        whole = json.loads(ds.read_text(path))["annotations"]
        outlines = [item.get("segmentation") for item in whole if isinstance(item, dict)]
        for record, outline in zip(boxes, outlines, strict=True):
            if record.pop("segmentation", None) and (box := _box_around(outline)) is not None:
                record["bbox"] = box
                counted[OUTLINED] += 1
    for record in boxes:
        if isinstance(record.get("bbox"), list):
            counted[QUOTED] += _unquote(record["bbox"], range(len(record["bbox"])))
            counted[BACKWARDS] += _put_in_order(record)
            counted[ROTATED] += _take_upright(record)
    images = [i for i in _records(content, "images") if isinstance(i.get("file_name"), str)]
    root = ds.find_root(path, [image["file_name"] for image in images], options)
    errors = Errors()
    for image in images:
        name = image["file_name"].replace("\\", "/")
        base = PurePosixPath(name).name
        if options.base_names and base not in ("", image["file_name"]):
            image["file_name"] = name = base
            counted["image name without its folders"] += 1
        plain = unquote(name)
        if options.look and not ds.is_file(root / name) and ds.is_file(root / plain):
            image["file_name"] = name = plain
            counted["image name with %-codes, as in a URL, written as its file has it"] += 1
        if options.look and not all(_is_side(image.get(side)) for side in ("width", "height")):
            with errors.caught(path):
                image["width"], image["height"] = ds.size_of(root / ds.check_name(name, "image"))
                counted["size missing or no number of pixels, read from the image"] += 1
    errors.stop()
    counted[MERGED] += _merge_images(content)
    if options.drop_unused and isinstance(content.get("categories"), list):
        used = {box.get("category_id") for box in boxes if type(box.get("category_id")) is int}
        listed = _records(content, "categories")
        unused = [c for c in listed if type(c.get("id")) is not int or c["id"] not in used]
        content["categories"] = [c for c in content["categories"] if c not in unused]
        dropped = ", ".join(str(category.get("name")) for category in unused)
        counted[f"class that no box has, dropped: {dropped}"] += len(unused)
    notes.update(+counted)
    return root


def _drop_repeated(content: Content, name: str) -> int:
    """Keep one of the equal records of a list, as VIA repeats its categories; how many went."""
    listed = content[name] if isinstance(content.get(name), list) else []
    kept = list({repr(record): record for record in listed}.values())
    if len(kept) < len(listed):
        content[name] = kept
    return len(listed) - len(kept)


def _is_side(value: Any) -> bool:
    return type(value) in (int, float) and 1 <= value < ds.SIZE_LIMIT and value == int(value)


def _renumber(content: Content, name: str, field: str) -> int:
    """Give the records of a list integers as ids, and annotations these; how many got new ones.

    Whole fractions become integers; ids that are integers stay.
    """
    listed, boxes = _records(content, name), _records(content, "annotations")
    for record, key in [*((item, "id") for item in listed), *((box, field) for box in boxes)]:
        value = record.get(key)
        if type(value) is float and value.is_integer():
            record[key] = int(value)
    ids = [item.get("id") for item in listed]
    known = {value for value in ids if type(value) is int and abs(value) < 2**62}
    others = [v for v in ids if type(v) in (int, float, str) and v not in known]
    first = max(known, default=0) + 1
    new = {value: first + row for row, value in enumerate(dict.fromkeys(others))}
    for item in listed:
        if type(item.get("id")) in (int, float, str):
            item["id"] = new.get(item["id"], item["id"])
    for box in boxes:
        if type(box.get(field)) in (int, float, str):
            box[field] = new.get(box[field], box[field])
    return len(new)


def _merge_images(content: Content) -> int:
    """Keep one record of each image file, with the boxes of all of them; how many went."""
    first: dict[str, Any] = {}
    same: dict[Any, Any] = {}  # id -> id of the record that stays
    kept = []
    for record in _records(content, "images"):
        name, number = record.get("file_name"), record.get("id")
        if isinstance(name, str) and type(number) is int:
            name = name.replace("\\", "/")
            if first.setdefault(name, number) != number:
                same[number] = first[name]
                continue
        kept.append(record)
    if same:
        content["images"] = kept
        for box in _records(content, "annotations"):
            if type(box.get("image_id")) is int:
                box["image_id"] = same.get(box["image_id"], box["image_id"])
    return len(same)


def _box_around(outline: Any) -> list[float] | None:
    """x, y, width, height of polygons, or of a mask in COCO's run lengths; None for neither."""
    try:
        if isinstance(outline, dict):
            rle = outline
            if isinstance(rle.get("counts"), list):
                rle = mask.frPyObjects(rle, *rle["size"])
            return mask.toBbox(rle).tolist()
        points = np.concatenate([np.asarray(part, dtype=float).reshape(-1, 2) for part in outline])
        low, high = points.min(axis=0), points.max(axis=0)
    except (ValueError, TypeError, KeyError):
        return None
    return [*low.tolist(), *(high - low).tolist()] if np.isfinite([low, high]).all() else None


def _take_upright(record: Content) -> bool:
    """Write the upright box around a box of CVAT that is rotated about its center."""
    degrees = rotation(record)
    box = record["bbox"]
    if not degrees or len(box) != 4 or not all(type(n) in (int, float) for n in box):
        return False
    record["attributes"].pop("rotation")
    sine, cosine = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    x, y, w, h = box
    width, height = w * cosine + h * sine, w * sine + h * cosine
    sides = [x + (w - width) / 2, y + (h - height) / 2, width, height]
    record["bbox"] = [round(number, 2) for number in sides]
    record.pop("area", None)
    return True


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
