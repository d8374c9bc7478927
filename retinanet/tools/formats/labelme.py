"""LabelMe: a JSON file for each image, with the shapes that were drawn in it."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from retinanet.data.records import leaves_folder, shown
from retinanet.tools.formats import dataset as ds
from retinanet.tools.formats.dataset import BadRecord, Box, Dataset, ImageRecord, Options, Split
from retinanet.tools.image_files import suffixes

NO_AREA = "point or line, left out: it has no area"
NOT_LABELME = "JSON file without shapes and imagePath, so not LabelMe's, left out"
FLAT_SHAPES = ("point", "points", "line", "linestrip")


def read_labelme(source: Path, options: Options) -> Dataset:
    """A folder of JSON files, or of the splits' folders with such files.

    Args:
        source: the folder; images lie beside the files, where ``imagePath`` says, or below
            ``image_folder``.
        options: image_folder, look and classes are read.

    Raises:
        AnnotationError: everything that is wrong.
        FileNotFoundError: no such folder, no JSON files.
    """
    folders = [
        source / name for name in ds.SPLIT_NAMES if ds.files_below(source / name, (".json",))
    ]
    folders = folders or [source]
    declared = ds.find_classes(options.classes, source)
    errors, dataset = ds.Errors(), Dataset([], declared or {})
    for folder in folders:
        names = ds.files_below(folder, (".json",))
        if not names:
            raise FileNotFoundError(
                f"no JSON files in {folder}; --from labelme takes their folder."
            )
        root = options.image_folder or folder
        split = Split(ds.split_name(folder.resolve().name), root, [])
        owners: dict[str, Path] = {}  # image -> its file
        others = 0
        for name in ds.progress(names, f"files of {split.name}"):
            path = folder / name
            with errors.caught(path):
                content = _read(path)
                if content is None:
                    others += 1
                    continue
                image = _image_of(content, path, root, options)
                if owners.setdefault(image.name, path) != path:
                    raise BadRecord(f"is of the image {image.name}, as {owners[image.name]} is.")
                for row, shape in enumerate(content["shapes"]):
                    with errors.caught(path):
                        box = _box_of(shape, row, declared, dataset.notes)
                        image.boxes += [] if box is None else [box]
                split.images.append(image)
        if others == len(names):
            what = "they have neither shapes nor imagePath"
            raise FileNotFoundError(f"no JSON file of LabelMe in {folder}: {what}.")
        if others:
            dataset.notes[NOT_LABELME] += others
        dataset.splits.append(split)
    errors.stop()
    if options.look:
        known = {split.root / image.name for split in dataset.splits for image in split.images}
        roots = {split.root for split in dataset.splits}
        there = {root / name for root in roots for name in ds.files_below(root, suffixes())}
        if there - known:
            dataset.notes["image without a JSON file, left out"] = len(there - known)
    return dataset


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a file; None if nothing in it is LabelMe's, as in lists of colors or COCO."""
    try:
        content = json.loads(ds.read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRecord(f"is not JSON: {error}.") from error
    if not isinstance(content, dict) or not content.keys() & {"shapes", "imagePath"}:
        return None
    if not isinstance(content.get("shapes"), list):
        raise BadRecord("has no list 'shapes'; --from labelme takes files that LabelMe wrote.")
    return content


def _image_of(content: dict[str, Any], path: Path, root: Path, options: Options) -> ImageRecord:
    """The image of a file, without boxes yet."""
    given = str(content.get("imagePath") or "").replace("\\", "/")
    base = PurePosixPath(given).name
    beside = path.parent.relative_to(root) if path.is_relative_to(root) else Path()
    for name in (beside / given, Path(given), beside / base, Path(base)):
        inside = given and not leaves_folder(name.as_posix())
        if inside and (not options.look or ds.is_file(root / name)):
            break
    else:
        fix = "add it or remove this file, or give the folder of the images with --image-folder"
        raise BadRecord(f"no image {shown(given)} in {root}; {fix}.")
    size = ds.read_size(str(content.get("imageWidth") or ""), str(content.get("imageHeight") or ""))
    if size is None and not options.look:
        raise BadRecord(ds.NO_SIZE)
    return ImageRecord(ds.check_name(name.as_posix(), "image"), *(size or ds.size_of(root / name)))


def _box_of(shape: Any, row: int, declared: dict | None, notes: Any) -> Box | None:
    """The upright box around a shape; None for one without area."""
    where = f"shapes[{row}]"
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        raise BadRecord(f"{where} must be an object with a label, got {shown(shape)}.")
    name, kind = ds.check_class(shape["label"], declared), shape.get("shape_type") or "polygon"
    points = shape.get("points")
    try:
        points = [(float(x), float(y)) for x, y in points]
        if not points or not all(abs(n) < ds.LARGEST for point in points for n in point):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise BadRecord(f"{where}: points must be [x, y] pairs, got {shown(points)}.") from None
    if kind in FLAT_SHAPES or len(points) < 2:
        notes[NO_AREA] += 1
        return None
    if kind == "circle":  # center, and a point on it
        (x, y), (px, py) = points[:2]
        radius = ((px - x) ** 2 + (py - y) ** 2) ** 0.5
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    if kind != "rectangle":
        notes[f"{kind}, replaced by the box around it"] += 1
    xs, ys = zip(*points, strict=True)
    return Box(name, (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)))
