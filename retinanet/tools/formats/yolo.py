"""YOLO: one text file for each image, a line for each box, in shares of the image."""

from __future__ import annotations

import os
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from retinanet.csv_text import csv_text
from retinanet.data.records import leaves_folder, shown
from retinanet.terminal import count
from retinanet.tools.formats.dataset import (
    SPLIT_NAMES,
    BadRecord,
    Box,
    Dataset,
    Errors,
    ImageRecord,
    Options,
    Split,
    class_ids_of,
    progress,
    read_number,
    refused,
    split_name,
)
from retinanet.tools.formats.files import (
    CLASSES_FILE,
    files_below,
    find_classes,
    is_file,
    read_classes,
    read_lines,
    read_text,
    size_of,
)
from retinanet.tools.image_files import suffixes

LIST_NAMES = ("classes.txt", "obj.names")
# Darknet's lists of images, as CVAT writes them.
IMAGE_LISTS = ("train.txt", "valid.txt", "val.txt", "test.txt")
# Text files beside labels that are none.
OTHER_TEXTS = (*LIST_NAMES, *IMAGE_LISTS)
EXPECTED = (
    "expected data.yaml, or classes.txt or obj.names beside images/ and labels/, images/train and "
    "labels/train, or train/images and train/labels"
)
# Numbers of a row: class, center x, center y, width, height.
ROW = 5
# A polygon has at least three points.
SHORTEST_POLYGON = 7
# Beyond the image by rounding: tools write six places.
SLACK = Decimal("1e-6")
CROWD_NOTE = "crowd region, left out: YOLO has none (--crowd object writes them as objects)"

# Name of a split, the folder that names of images start from, and the images.
Part = tuple[str, Path, list[Path]]


def read_yolo(source: Path, options: Options) -> Dataset:
    """A folder of labels and images. Images are needed: labels do not hold their sizes.

    Args:
        source: the folder, or its YAML file; see ``EXPECTED``.
        options: classes and polygons are read.

    Raises:
        AnnotationError: everything that is wrong.
        FileNotFoundError: no such folder, no images.
    """
    described = _find_yaml(source)
    folder = described.parent if described else source
    content: dict[str, Any] = {}
    if described:
        with refused(described):
            content = _read_yaml(described)
    class_ids = _find_classes(folder, described, content, options.classes)
    parts = _yaml_parts(described, content) if described else []
    reader = _Reader(class_ids, options.polygons)
    splits = [reader.read_split(*part) for part in parts or _folder_parts(folder)]
    reader.check_lonely()
    reader.errors.stop()
    return Dataset(splits, class_ids, reader.notes)


def _find_yaml(source: Path) -> Path | None:
    if source.is_file() and source.suffix.lower() in (".yaml", ".yml"):
        return source
    if not source.is_dir():
        raise FileNotFoundError(f"no folder or YAML file {source}; {EXPECTED}.")
    named = [source / name for name in ("data.yaml", "data.yml", "dataset.yaml")]
    paths = [path for path in named if path.is_file()] or sorted(source.glob("*.yaml"))
    if len(paths) > 1:
        raise FileNotFoundError(
            f"{source} has several YAML files ({', '.join(path.name for path in paths)}); give "
            f"the one that describes the data."
        )
    return paths[0] if paths else None


def _read_yaml(path: Path) -> dict[str, Any]:
    """All scalars as texts: to YAML, a class called no would be false."""
    text = read_text(path)
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.BaseLoader)):
            raise BadRecord("has aliases (*name), which can grow without limit; write them out.")
        content = yaml.load(text, yaml.BaseLoader)  # makes texts, lists and maps, nothing else
    except BadRecord:
        raise
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = mark.line + 1 if mark else None
        raise BadRecord(f"is not YAML: {problem or error}.", line) from error
    if not isinstance(content, dict):
        raise BadRecord(f"must have names, train and val, got {shown(content)}.")
    return content


def _find_classes(
    folder: Path, described: Path | None, content: dict[str, Any], given: Path | None
) -> dict[str, int]:
    """Classes by index; ids are those of a list of classes, else the index plus 1."""
    own: dict[str, int] = {}
    if described:
        with refused(described):
            own = class_ids_of((name, row) for row, name in enumerate(_yaml_names(content), 1))
    if not own and given is None:
        places = [folder / part / name for part in ("", "labels") for name in LIST_NAMES]
        places += sorted(folder.glob("*.names"))
        listed = next((path for path in places if path.is_file()), None)
        own = read_classes(listed) if listed else {}
    declared = find_classes(given, folder)
    with refused(folder):
        if not own and declared is None:
            raise BadRecord(f"has no class names; {EXPECTED}, or give --classes FILE.")
        if own and declared is not None and [*declared] != [*own]:
            raise BadRecord(
                f"classes.csv and YOLO's own names differ: {shown([*declared])} and "
                f"{shown([*own])}; remove one of the two lists."
            )
    return own if declared is None else declared


def _yaml_names(content: dict[str, Any]) -> list[str]:
    """Class names in the order of their indices."""
    names = content.get("names", [])
    if isinstance(names, dict):
        indices = [str(row) for row in range(len(names))]
        if set(names) != set(indices):
            raise BadRecord(f"names must be numbered from 0 without gaps, got {shown([*names])}.")
        names = [names[index] for index in indices]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadRecord(f"names must be a list of class names, got {shown(names)}.")
    number = content.get("nc")
    if names and number is not None and number != str(len(names)):
        raise BadRecord(f"nc is {shown(number)}, but names has {len(names)} classes; correct one.")
    return names


def _yaml_parts(path: Path, content: dict[str, Any]) -> list[Part]:
    """The splits that a YAML file names: keys that YOLO knows, and others that lead to images."""
    errors = Errors()
    parts = []
    for key, value in content.items():
        # CVAT names subsets as the user did: other keys count where they lead to images.
        leads = isinstance(value, str) and key != "path" and _is_source(path.parent / value)
        if not value or not (leads or key.lower() in SPLIT_NAMES):
            continue
        with errors.caught(path):
            values = [value] if isinstance(value, str) else value
            if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
                raise BadRecord(f"{key} must be a folder or a text file, got {shown(values)}.")
            base = content.get("path")
            places = [_resolve(path.parent, base, key, item) for item in values if item]
            if places:
                parts.append(_part(split_name(key), places))
    errors.stop()
    return parts


def _is_source(place: Path) -> bool:
    return place.is_dir() or (place.suffix == ".txt" and is_file(place))


def _resolve(folder: Path, base: Any, key: str, value: str) -> Path:
    """A folder or list of a split: from ``path`` of the file, or from where the file lies."""
    text = value.replace("\\", "/")
    # Roboflow writes ../train/images for a folder beside the file.
    near = re.sub(r"^(\.\./)+", "", text)
    bases = [folder / base, folder] if isinstance(base, str) and base else [folder]
    tried = [place / name for name in (text, near) for place in bases]
    for place in tried:
        if place.exists():
            return place
    raise BadRecord(
        f"{key}: there is no {shown(value)}; looked for {tried[0]} and {tried[-1]}. Add it, or "
        f"remove this line from the file."
    )


def _folder_parts(folder: Path) -> list[Part]:
    """The splits that folders make, or lists of images."""
    parts = []
    for key in SPLIT_NAMES:
        places = [folder / "images" / key, folder / key / "images", folder / key]
        place = next((place for place in places if place.is_dir()), None)
        if place and files_below(place, suffixes()):
            parts.append(_part(split_name(key), [place]))
    lists = [folder / name for name in IMAGE_LISTS if (folder / name).is_file()]
    parts = parts or [_part(split_name(path.stem), [path]) for path in lists]
    if parts:
        return parts
    root = folder / "images" if (folder / "images").is_dir() else folder
    if not files_below(root, suffixes()):
        raise FileNotFoundError(f"no images in {folder}; {EXPECTED}.")
    return [_part(split_name(folder.resolve().name), [root])]


def _part(name: str, places: list[Path]) -> Part:
    """A split of some folders, or of some lists of images."""
    paths: list[Path] = []
    for place in places:
        if place.is_file():
            paths += _read_image_list(place)
        else:
            paths += [place / below for below in files_below(place, suffixes())]
    if len(places) == 1 and places[0].is_dir():
        return name, places[0], paths
    # The lowest folder that holds all.
    return name, Path(os.path.commonpath([path.parent for path in paths] or places)), paths


def _read_image_list(path: Path) -> list[Path]:
    """Images that a text file lists, below its folder; CVAT writes data/ before each."""
    errors = Errors()
    paths = []
    with refused(path):
        lines = read_lines(path)
    for number, line in lines:
        name = line.strip().replace("\\", "/").removeprefix("./")
        with errors.caught(path, number):
            if leaves_folder(name):
                raise BadRecord(f"must be a path below {path.parent}, without '..', got {name}.")
            below = [path.parent / name, path.parent / name.removeprefix("data/")]
            image = next((place for place in below if is_file(place)), None)
            if image is None:
                raise BadRecord(f"there is no image {below[0]}.")
            paths.append(image)
    errors.stop()
    return paths


def label_path(image: Path) -> Path:
    """The labels of an image: ``labels`` for the last ``images`` of its path, else beside it."""
    beside = image.with_suffix(".txt")
    above = list(image.parent.parts)
    if "images" not in above:
        return beside
    last = len(above) - 1 - above[::-1].index("images")
    mirrored = Path(*above[:last], "labels", *above[last + 1 :], beside.name)
    return beside if beside.is_file() and not mirrored.is_file() else mirrored


class _Reader:
    """What is known while labels are read."""

    def __init__(self, class_ids: dict[str, int], polygons: bool) -> None:
        self.class_names = list(class_ids)  # by index
        self.polygons = polygons
        self.errors = Errors()
        self.notes: Counter[str] = Counter()
        self.labels: set[Path] = set()  # that belong to an image

    def read_split(self, name: str, root: Path, paths: list[Path]) -> Split:
        """A split of the images ``paths``, whose names start from ``root``."""
        split = Split(name, root, [])
        owners: dict[Path, str] = {}  # labels -> image
        for path in progress(paths, f"labels of {name}"):
            image_name, labels = path.relative_to(root).as_posix(), label_path(path)
            self.labels.add(labels)
            with self.errors.caught(labels):
                before = owners.setdefault(labels, image_name)
                if before != image_name:
                    raise BadRecord(
                        f"belongs to two images, {before} and {image_name}; rename one."
                    )
                image = ImageRecord(image_name, *size_of(path))
                split.images.append(image)
                if not labels.is_file():
                    self.notes["image without a label file, taken for one without objects"] += 1
                    continue
                for number, line in read_lines(labels):
                    with self.errors.caught(labels, number):
                        image.boxes.append(self._read_row(line.split(), image))
        return split

    def _read_row(self, words: list[str], image: ImageRecord) -> Box:
        numbers = [read_number(word) for word in words]
        if None in numbers:
            wrong = words[numbers.index(None)]
            raise BadRecord(f"must be finite numbers with a point, got {shown(wrong)}.")
        index, *shares = numbers
        if len(words) != ROW:
            shares = self._box_of_polygon(shares)
        if index != int(index) or not 0 <= index < len(self.class_names):
            most = len(self.class_names)
            raise BadRecord(
                f"the class must be an index from 0 to {most - 1}, got {words[0]}; the list of "
                f"names has {count(most, 'class')}."
            )
        outside = [share for share in shares if not -SLACK <= share <= 1 + SLACK]
        if outside:
            hint = " Pixels? YOLO wants shares of the image." if max(outside) > 2 else ""
            raise BadRecord(f"center, width and height must lie in [0, 1], got {outside[0]}.{hint}")
        x, y, width, height = shares
        left, top = (x - width / 2) * image.width, (y - height / 2) * image.height
        xywh = left, top, width * image.width, height * image.height
        return Box(self.class_names[int(index)], tuple(map(float, xywh)))

    def _box_of_polygon(self, numbers: list[Decimal]) -> list[Decimal]:
        """Center, width and height of the box around a polygon; refuses what is none."""
        got = len(numbers) + 1
        if got == ROW + 1:
            raise BadRecord(
                "has 6 numbers, as detections with their score; annotations have 5: class, center "
                "x, center y, width, height. Remove the score."
            )
        if got < SHORTEST_POLYGON or got % 2 == 0:
            row = "5 numbers, class, center x, center y, width, height"
            raise BadRecord(f"must have {row}, got {got}.")
        if not self.polygons:
            what = f"{'a rotated box or ' * (got == 9)}a polygon of {got // 2} points"
            raise BadRecord(f"has {got} numbers, {what}; --polygons makes the box around it.")
        inside = [min(max(number, Decimal(0)), Decimal(1)) for number in numbers]
        if inside != numbers:  # rotated boxes may reach outside
            self.notes["polygon cut at the border of its image"] += 1
        self.notes["polygon or rotated box, replaced by the box around it"] += 1
        left, right = min(inside[::2]), max(inside[::2])
        top, bottom = min(inside[1::2]), max(inside[1::2])
        return [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]

    def check_lonely(self) -> None:
        """Refuse labels without an image: it was lost, or renamed."""
        folders = {path.parent for path in self.labels}
        for folder in sorted(folder for folder in folders if not folders & set(folder.parents)):
            for path in (folder / name for name in files_below(folder, (".txt",))):
                name = path.name.lower()
                is_label = name not in OTHER_TEXTS and not name.startswith("readme")
                if is_label and path not in self.labels:
                    self.errors.add(path, "has no image of its name; add it or remove the file.")


def write_yolo(dataset: Dataset, output: Path, *, keep_crowd: bool = False) -> Counter[str]:
    """Write ``labels/SPLIT/``, ``data.yaml`` and ``classes.csv``; images go into ``images/SPLIT/``.

    Returns:
        What the format does not hold, and how often; 0: a sentence.

    Raises:
        AnnotationError: two images of a split would have one label file.
    """
    errors = Errors()
    notes: Counter[str] = Counter()
    index = {name: row for row, name in enumerate(dataset.class_ids)}
    for split in dataset.splits:
        owners: dict[Path, str] = {}  # labels -> image
        for image in progress(split.images, f"labels of {split.name}"):
            path = (output / "labels" / split.name / image.name).with_suffix(".txt")
            before = owners.setdefault(path, image.name)
            if before != image.name:
                errors.add(
                    image.name, f"would share its annotation file with {before}; rename one."
                )
            rows = [(box.class_name, _row_of(box, image, keep_crowd, notes)) for box in image.boxes]
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(f"{index[name]} {row}\n" for name, row in rows if row)
            path.write_text(text, encoding="utf-8", newline="\n")
    errors.stop()
    if any(image.id is not None for image in dataset.images()):
        notes["image ids are not kept"] = 0
    folders = {split.name: f"images/{split.name}" for split in dataset.splits}
    description = folders | {"nc": len(index), "names": dict(enumerate(index))}
    text = yaml.safe_dump(description, allow_unicode=True, sort_keys=False, width=1000)
    (output / "data.yaml").write_text(text, encoding="utf-8", newline="\n")
    text = csv_text(["id", "name"], [(i, name) for name, i in dataset.class_ids.items()])
    (output / CLASSES_FILE).write_text(text, encoding="utf-8", newline="\n")
    return notes


def _row_of(box: Box, image: ImageRecord, keep_crowd: bool, notes: Counter[str]) -> str | None:
    """Center, width and height in shares of the image; None for a box that is left out."""
    x, y, width, height = box.xywh
    left, right = (min(max(edge, 0), image.width) for edge in (x, x + width))
    top, bottom = (min(max(edge, 0), image.height) for edge in (y, y + height))
    left_out = {
        "box without width or height, left out": min(width, height) <= 0,
        CROWD_NOTE: box.crowd and not keep_crowd,
        "box outside its image, left out": right <= left or bottom <= top,
    }
    changed = {
        "crowd region, written as an object": box.crowd,
        "area other than width times height, not kept": box.area not in (None, width * height),
        "mark as difficult, not kept": box.difficult,
        "box cut at the border of its image": (left, top, right, bottom)
        != (x, y, x + width, y + height),
    }
    reason = next((what for what, applies in left_out.items() if applies), None)
    notes.update([reason] if reason else [what for what, applies in changed.items() if applies])
    center = (left + right) / 2 / image.width, (top + bottom) / 2 / image.height
    sides = (right - left) / image.width, (bottom - top) / image.height
    return None if reason else " ".join(f"{share:.8g}" for share in (*center, *sides))
