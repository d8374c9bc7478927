"""YOLO: one text file for each image, a line for each box, in shares of the image."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from retinanet.csv_text import csv_text
from retinanet.data.records import shown
from retinanet.terminal import count
from retinanet.tools.formats import dataset as ds
from retinanet.tools.formats.dataset import BadRecord, Box, Dataset, ImageRecord, Options, Split
from retinanet.tools.image_files import suffixes

CLASS_LISTS = ("classes.txt", "obj.names")
# Darknet's lists of images, as CVAT writes them.
IMAGE_LISTS = ("train.txt", "valid.txt", "val.txt", "test.txt")
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
    own: dict[str, int] = {}
    if described:
        with ds.refused(described):
            content = _read_yaml(described)
            own = ds.class_ids_of((name, row) for row, name in enumerate(_yaml_names(content), 1))
    class_ids = _find_classes(folder, own, options.classes)
    places = _yaml_places(described, content) if described else []
    with ds.refused(described or source):
        reader = _Reader(list(class_ids), options.polygons, _pose_row(content))
    splits = [reader.read_split(*split) for split in places or _folder_places(folder)]
    reader.check_lonely()
    reader.errors.stop()
    return Dataset(splits, class_ids, reader.notes)


def _find_yaml(source: Path) -> Path | None:
    if source.is_file() and source.suffix.lower() in (".yaml", ".yml"):
        return source
    if not source.is_dir():
        raise FileNotFoundError(f"no folder or YAML file {source}; {EXPECTED}.")
    named = [source / name for name in ("data.yaml", "data.yml", "dataset.yaml")]
    paths = [path for path in named if path.is_file()] or ds.matches(source, "*.yaml")
    if len(paths) > 1:
        raise FileNotFoundError(
            f"{source} has several YAML files ({', '.join(path.name for path in paths)}); give "
            f"the one that describes the data."
        )
    return paths[0] if paths else None


def _read_yaml(path: Path) -> dict[str, Any]:
    """All scalars as texts: to YAML, a class called no would be false."""
    text = ds.read_text(path)
    try:
        aliases = [e for e in yaml.parse(text, yaml.BaseLoader) if isinstance(e, yaml.AliasEvent)]
        # Makes texts, lists and maps, nothing else.
        content = None if aliases else yaml.load(text, yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = mark.line + 1 if mark else None
        raise BadRecord(f"is not YAML: {problem or error}.", line) from error
    if aliases:
        raise BadRecord("has aliases (*name), which can grow without limit; write them out.")
    if not isinstance(content, dict):
        raise BadRecord(f"must have names, train and val, got {shown(content)}.")
    return content


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


def _pose_row(content: dict[str, Any]) -> int | None:
    """Numbers of a row whose box is followed by keypoints; None: the data has none."""
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    if not isinstance(shape, list) or not all(re.fullmatch("[0-9]{1,4}", str(n)) for n in shape):
        raise BadRecord(f"kpt_shape must be [keypoints, numbers of each], got {shown(shape)}.")
    return ROW + math.prod(map(int, shape))


def _find_classes(folder: Path, own: dict[str, int], given: Path | None) -> dict[str, int]:
    """Classes by index; ids are those of a list of classes, else the index plus 1."""
    if not own and given is None:
        listed = [folder / part / name for part in ("", "labels") for name in CLASS_LISTS]
        listed = [path for path in [*listed, *ds.matches(folder, "*.names")] if path.is_file()]
        own = ds.read_classes(listed[0]) if listed else {}
    declared = ds.find_classes(given, folder)
    with ds.refused(folder):
        if not own and declared is None:
            raise BadRecord(f"has no class names; {EXPECTED}, or give --classes FILE.")
        if own and declared is not None and [*declared] != [*own]:
            raise BadRecord(
                f"classes.csv and YOLO's own names differ: {shown([*declared])} and "
                f"{shown([*own])}; remove one of the two lists."
            )
    return own if declared is None else declared


def _yaml_places(path: Path, content: dict[str, Any]) -> list[tuple[str, list[Path]]]:
    """Split and its folders or lists: keys that YOLO knows, and others that lead to images."""
    errors = ds.Errors()
    splits = []
    base = content.get("path")
    bases = [path.parent / base, path.parent] if isinstance(base, str) and base else [path.parent]
    for key, value in content.items():
        # CVAT names subsets as the user did: other keys count where they lead to images.
        is_split = key.lower() in ds.SPLIT_NAMES
        if not is_split and (key == "path" or not isinstance(value, str)):
            continue
        places = []
        with errors.caught(path):
            values = [value] if isinstance(value, str) else value
            if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
                raise BadRecord(f"{key} must be a folder or a text file, got {shown(values)}.")
            for item in filter(None, values):
                text = item.replace("\\", "/")
                # Roboflow writes ../train/images for a folder beside the file; of a path of
                # another computer the end may be here.
                tried = [below / text for below in bases]
                ends = [end for end in ds.ends_of(text) if "/" in end or end in ds.SPLIT_NAMES]
                tried += [below / end for end in ends for below in bases]
                # Not pathlib, which raises for a text that is too long for a name.
                found = [
                    place
                    for place in tried
                    if os.path.isdir(place)  # noqa: PTH112
                    or (ds.is_file(place) and (is_split or place.suffix == ".txt"))
                ]
                if is_split and not found:
                    where = " and ".join(map(str, bases))
                    hint = "Add it, or remove this line from the file."
                    raise BadRecord(f"{key}: there is no {shown(item)} in {where}. {hint}")
                places += found[:1]
        if places:
            splits.append((ds.split_name(key), places))
    errors.stop()
    return splits


def _folder_places(folder: Path) -> list[tuple[str, list[Path]]]:
    """Split and its folder or list, where no YAML file says so."""
    splits = []
    for key in ds.SPLIT_NAMES:
        places = [folder / "images" / key, folder / key / "images", folder / key]
        place = next((place for place in places if place.is_dir()), None)
        if place and ds.files_below(place, suffixes()):
            splits.append((ds.split_name(key), [place]))
    if not splits:
        lists = [folder / name for name in IMAGE_LISTS if (folder / name).is_file()]
        splits = [(ds.split_name(path.stem), [path]) for path in lists]
    if not splits:
        root = folder / "images" if (folder / "images").is_dir() else folder
        if not ds.files_below(root, suffixes()):
            raise FileNotFoundError(f"no images in {folder}; {EXPECTED}.")
        splits = [(ds.split_name(folder.resolve().name), [root])]
    return splits


def _read_image_list(path: Path) -> list[Path]:
    """Images that a text file lists, by the end of their paths that leads on from its folder.

    CVAT writes data/ before each, Darknet's lists begin where it is started.
    """
    errors = ds.Errors()
    paths = []
    with errors.caught(path):
        for number, line in ds.read_lines(path):
            with errors.caught(path, number):
                name = line.strip()
                below = [path.parent / end for end in ds.ends_of(name)]
                found = [place for place in below if ds.is_file(place)]
                if not found:
                    where = f"in {path.parent}, also by the end of that path"
                    raise BadRecord(f"there is no image {shown(name)} {where}; add it.")
                paths.append(found[0])
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


@dataclass(slots=True)
class _Reader:
    """What is known while labels are read."""

    class_names: list[str]  # by index
    polygons: bool
    pose_row: int | None = None  # numbers of a row with keypoints
    errors: ds.Errors = field(default_factory=ds.Errors)
    notes: Counter[str] = field(default_factory=Counter)
    labels: set[Path] = field(default_factory=set)  # that belong to an image

    def read_split(self, name: str, places: list[Path]) -> Split:
        """A split of some folders, or of some lists of images."""
        paths: list[Path] = []
        for place in places:
            if place.is_dir():
                paths += [place / name for name in ds.files_below(place, suffixes())]
            else:
                is_image = place.suffix.lower() in suffixes()
                paths += [place] if is_image else _read_image_list(place)
        root = places[0]
        if len(places) > 1 or not root.is_dir():  # the lowest folder that holds all
            root = Path(os.path.commonpath([path.parent for path in paths] or places))
        split = Split(name, root, [])
        owners: dict[Path, str] = {}  # labels -> image
        for path in ds.progress(paths, f"labels of {name}"):
            image_name, labels = path.relative_to(root).as_posix(), label_path(path)
            self.labels.add(labels)
            with self.errors.caught(labels):
                before = owners.setdefault(labels, image_name)
                if before != image_name:
                    raise BadRecord(
                        f"belongs to two images, {before} and {image_name}; rename one."
                    )
                image = ImageRecord(image_name, *ds.size_of(path))
                split.images.append(image)
                if not labels.is_file():
                    self.notes["image without a label file, taken for one without objects"] += 1
                    continue
                for number, line in ds.read_lines(labels):
                    with self.errors.caught(labels, number):
                        image.boxes.append(self._read_row(line.split(), image))
        return split

    def _read_row(self, words: list[str], image: ImageRecord) -> Box:
        index, *shares = (ds.read_number(word, "each value") for word in words)
        if len(words) == self.pose_row:
            shares = shares[: ROW - 1]
            self.notes["keypoints of an object, not kept: its box is"] += 1
        elif len(words) != ROW:
            shares = self._box_of_polygon(shares)
        K = len(self.class_names)
        if index != int(index) or not 0 <= index < K:
            allowed = f"an index from 0 to {K - 1}"
            has = f"the list of names has {count(K, 'class')}"
            raise BadRecord(f"the class must be {allowed}, got {words[0]}; {has}.")
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
        row = "5 numbers, class, center x, center y, width, height"
        if got == ROW + 1:
            what = "has 6 numbers, as detections with their score"
            raise BadRecord(f"{what}; annotations have {row}. Remove the score.")
        if got < SHORTEST_POLYGON or got % 2 == 0:
            raise BadRecord(f"must have {row}, got {got}.")
        if not self.polygons:
            what = f"{'a rotated box or ' * (got == 9)}a polygon of {got // 2} points"
            raise BadRecord(
                f"has {got} numbers, {what}; --polygons makes the box around it. Are they "
                f"keypoints? Then data.yaml must state kpt_shape."
            )
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
            for path in (folder / name for name in ds.files_below(folder, (".txt",))):
                name = path.name.lower()
                is_label = name not in (*CLASS_LISTS, *IMAGE_LISTS) and name[:6] != "readme"
                if is_label and path not in self.labels:
                    self.errors.add(path, "has no image of its name; add it or remove the file.")


def write_yolo(dataset: Dataset, output: Path, *, keep_crowd: bool = False) -> Counter[str]:
    """Write ``labels/SPLIT/``, ``data.yaml`` and ``classes.csv``; images go into ``images/SPLIT/``.

    Returns:
        What the format does not hold, as ``Dataset.notes``.

    Raises:
        AnnotationError: two images of a split would have one label file.
    """
    errors = ds.Errors()
    notes: Counter[str] = Counter()
    index = {name: row for row, name in enumerate(dataset.class_ids)}
    for split in dataset.splits:
        owners: dict[Path, str] = {}  # labels -> image
        for image in ds.progress(split.images, f"labels of {split.name}"):
            path = (output / "labels" / split.name / image.name).with_suffix(".txt")
            before = owners.setdefault(path, image.name)
            if before != image.name:
                what = f"would share its annotation file with {before}; rename one."
                errors.add(image.name, what)
            rows = [(box.class_name, _row_of(box, image, keep_crowd, notes)) for box in image.boxes]
            path.parent.mkdir(parents=True, exist_ok=True)
            text = "".join(f"{index[name]} {row}\n" for name, row in rows if row)
            path.write_text(text, encoding="utf-8", newline="\n")
            if image.id is not None:
                notes["image ids are not kept"] = 0
    errors.stop()
    folders = {split.name: f"images/{split.name}" for split in dataset.splits}
    description = folders | {"nc": len(index), "names": dict(enumerate(index))}
    text = yaml.safe_dump(description, allow_unicode=True, sort_keys=False, width=1000)
    (output / "data.yaml").write_text(text, encoding="utf-8", newline="\n")
    text = csv_text(["id", "name"], [(i, name) for name, i in dataset.class_ids.items()])
    (output / ds.CLASSES_FILE).write_text(text, encoding="utf-8", newline="\n")
    return notes


def _row_of(box: Box, image: ImageRecord, keep_crowd: bool, notes: Counter[str]) -> str | None:
    """Center, width and height in shares of the image; None for a box that is left out."""
    x, y, width, height = box.xywh
    left, right = (min(max(edge, 0), image.width) for edge in (x, x + width))
    top, bottom = (min(max(edge, 0), image.height) for edge in (y, y + height))
    cut = (left, top, right, bottom) != (x, y, x + width, y + height)
    left_out = {
        "box without width or height, left out": min(width, height) <= 0,
        CROWD_NOTE: box.crowd and not keep_crowd,
        "box outside its image, left out": right <= left or bottom <= top,
    }
    changed = {
        "crowd region, written as an object": box.crowd,
        "area other than width times height, not kept": box.area not in (None, width * height),
        "mark as difficult, not kept": box.difficult,
        "box cut at the border of its image": cut,
    }
    reasons = [what for what, applies in left_out.items() if applies]
    notes.update(reasons[:1] or [what for what, applies in changed.items() if applies])
    center = (left + right) / 2 / image.width, (top + bottom) / 2 / image.height
    sides = (right - left) / image.width, (bottom - top) / image.height
    return None if reasons else " ".join(f"{share:.8g}" for share in (*center, *sides))
