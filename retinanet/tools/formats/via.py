"""VGG Image Annotator (VIA 1 and 2): one JSON or CSV file with the regions of all images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retinanet.data.records import shown
from retinanet.tools.formats import dataset as ds
from retinanet.tools.formats.dataset import BadRecord, Box, Dataset, ImageRecord, Options, Split
from retinanet.tools.formats.labelme import NO_AREA

# Attributes of a region that hold its class where it has several.
CLASS_NAMES = ("class", "label", "name", "category", "type", "object")


def read_via(path: Path, options: Options) -> Dataset:
    """One file.

    Args:
        path: project or annotations, JSON or CSV. Sizes are read from the images.
        options: image_folder, classes and attribute are read.

    Raises:
        AnnotationError: everything that is wrong.
        FileNotFoundError: the images are nowhere.
    """
    if not options.look:
        raise ValueError(f"{path} {ds.NO_SIZE}")
    declared = ds.find_classes(options.classes, path.parent)
    errors, notes = ds.Errors(), Dataset([], {}).notes
    with ds.refused(path):
        files = _read(path)
        attribute = options.attribute or _class_attribute(files, declared)
    root = ds.find_root(path, list(files), options, ends=True)
    images = []
    owners: dict[str, str] = {}  # image -> its name in the file
    for name, regions in files.items():
        boxes: list[Box] = []
        with errors.caught(path):
            image = ds.find_image(root, name, owners)
            images.append(ImageRecord(image, *ds.size_of(root / image), boxes))
        for row, (shape, attributes) in enumerate(regions):
            with errors.caught(path):
                xywh = _box_around(shape, f"{name}, region {row}", notes)
                if xywh is None:
                    continue
                if attribute is None:
                    (value,) = declared
                else:
                    value = _class_of(attributes.get(attribute), f"{name}, region {row}", attribute)
                boxes.append(Box(ds.check_class(value, declared), xywh))
    errors.stop()
    notes.update(ds.count_ends(owners))
    return Dataset([Split(ds.file_split(path), root, images)], declared or {}, notes)


def _read(path: Path) -> dict[str, list[tuple[dict, dict]]]:
    """Image -> shape and attributes of each of its regions."""
    text = ds.read_text(path)
    files: dict[str, list[tuple[dict, dict]]] = {}
    line = None
    try:
        if path.suffix.lower() == ".csv":
            (_, titles), *rows = ds.csv_rows(text)
            titles = [title.lstrip("#").strip() for title in titles]
            for line, cells in rows:  # noqa: B007 - read where a row cannot be
                row = dict(zip(titles, cells, strict=False))
                regions = files.setdefault(row["filename"].replace("\\", "/"), [])
                shape = json.loads(row["region_shape_attributes"])
                if shape:
                    regions.append((shape, json.loads(row["region_attributes"])))
            return files
        content = json.loads(text)
        for record in content.get("_via_img_metadata", content).values():
            regions = record["regions"]
            regions = regions.values() if isinstance(regions, dict) else regions
            files.setdefault(record["filename"].replace("\\", "/"), []).extend(
                (region["shape_attributes"], region["region_attributes"]) for region in regions
            )
    except json.JSONDecodeError as error:
        where = "" if line else f" at line {error.lineno}, column {error.colno}"
        what = f"has {shown(error.doc)}, which is" if line else "is"
        raise BadRecord(f"{what} not JSON: {error.msg}{where}; correct it.", line) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise BadRecord(f"is not as VIA 1 or 2 writes it ({shown(what)}).", line) from error
    if not all(isinstance(d, dict) for regions in files.values() for each in regions for d in each):
        raise BadRecord("has a region whose shape or attributes are no object.")
    return files


def _class_attribute(
    files: dict[str, list[tuple[dict, dict]]], declared: dict[str, int] | None
) -> str | None:
    """The attribute of regions that is their class; None: all are of the one declared class."""
    known = {key for regions in files.values() for _, attributes in regions for key in attributes}
    named = [key for key in sorted(known) if key.casefold() in CLASS_NAMES]
    found = named if len(known) > 1 else sorted(known)
    if len(found) == 1:
        return found[0]
    if known:
        has = ", ".join(sorted(known))
        fix = "name the class with --attribute"
        raise BadRecord(f"has several attributes of regions ({has}); {fix}.")
    if any(files.values()) and len(declared or {}) != 1:
        fix = "write the class of all, one name, into a text file and add --classes FILE"
        raise BadRecord(f"has no attribute of regions, so nothing says their class; {fix}.")
    return None


def _class_of(value: Any, where: str, attribute: str) -> str:
    """A text, or of several boxes to tick the one that is ticked."""
    if isinstance(value, dict):
        ticked = [name for name, is_ticked in value.items() if is_ticked]
        value = ticked[0] if len(ticked) == 1 else None
    if not isinstance(value, str) or not value.strip():
        raise BadRecord(f"{where}: {attribute} must be one class, got {shown(value)}.")
    return value.strip()


def _box_around(shape: dict, where: str, notes: Any) -> tuple[float, ...] | None:
    """x, y, width and height of the upright box around a shape; None for one without area."""

    def numbers(values: Iterable[Any]) -> list[float]:
        values = list(values)
        for value in values:
            if type(value) not in (int, float) or not abs(value) < ds.LARGEST:
                raise BadRecord(f"{where}: the shape needs numbers, got {shown(shape)}.")
        return [float(value) for value in values]

    kind = shape.get("name")
    if kind in ("point", "polyline"):
        notes[NO_AREA] += 1
        return None
    if kind == "rect":
        return tuple(numbers(shape.get(key) for key in ("x", "y", "width", "height")))
    if kind == "polygon":
        xs, ys = (shape.get(key) for key in ("all_points_x", "all_points_y"))
        if not (isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys) > 0):
            raise BadRecord(f"{where}: a polygon needs as many x as y, got {shown(shape)}.")
        xs, ys = numbers(xs), numbers(ys)
    elif kind in ("circle", "ellipse"):
        radii = ("r", "r") if kind == "circle" else ("rx", "ry")
        x, y, rx, ry = numbers(shape.get(key) for key in ("cx", "cy", *radii))
        (turn,) = numbers([shape.get("theta", 0)])
        half_width = math.hypot(rx * math.cos(turn), ry * math.sin(turn))
        half_height = math.hypot(rx * math.sin(turn), ry * math.cos(turn))
        xs, ys = [x - half_width, x + half_width], [y - half_height, y + half_height]
    else:
        raise BadRecord(f"{where}: no shape of VIA: {shown(shape)}.")
    notes[f"{kind}, replaced by the box around it"] += 1
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
