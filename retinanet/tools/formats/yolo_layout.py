"""Where a YOLO data set keeps its images, its labels and its names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from retinanet.data.records import shown
from retinanet.tools.formats.annotations import Category, Faults, check_class_names, leaves_folder
from retinanet.tools.formats.images import walk
from retinanet.tools.formats.splits import SPLIT_NAMES, split_name
from retinanet.tools.formats.texts import find_classes, read_classes, read_lines, read_text
from retinanet.tools.image_files import suffixes

LIST_NAMES = ("classes.txt", "obj.names")
# Text files beside labels that are none.
OTHER_TEXTS = (*LIST_NAMES, "train.txt", "val.txt", "valid.txt", "test.txt", "readme.txt")
EXPECTED = (
    "expected data.yaml, or classes.txt or obj.names beside images/ and labels/, images/train and "
    "labels/train, or train/images and train/labels"
)


@dataclass(slots=True)
class Part:
    """One split, before its labels are read."""

    name: str
    root: Path  # that image names start from
    names: list[str]  # of images, below the root


@dataclass(slots=True)
class Layout:
    """What was found."""

    parts: list[Part]
    categories: list[Category]  # in the order of YOLO's indices


def find_layout(source: Path, classes: Path | None, faults: Faults) -> Layout:
    """Splits and classes of a data set.

    Args:
        source: the folder, or its YAML file.
        classes: list of classes; None: in YAML, classes.txt or obj.names.
        faults: gets what is wrong.

    Raises:
        AnnotationError: of the YAML file or the list of classes.
        FileNotFoundError: nothing of the kind is there.
    """
    described = _find_yaml(source)
    folder = described.parent if described else source
    content = _read_yaml(described, faults) if described else {}
    faults.stop()
    names = _yaml_names(described, content, faults) if described else []
    if not names and classes is None:
        names = _listed_names(folder, faults)
    categories = _with_ids(names, find_classes(classes, folder, faults), folder, faults)
    faults.stop()
    if described and _split_keys(described, content):
        parts = _yaml_parts(described, content, faults)
    else:
        parts = _folder_parts(folder)
    faults.stop()
    return Layout(parts, categories)


def _find_yaml(source: Path) -> Path | None:
    if source.is_file() and source.suffix.lower() in (".yaml", ".yml"):
        return source
    if not source.is_dir():
        raise FileNotFoundError(f"no folder or YAML file {source}; {EXPECTED}.")
    named = [source / name for name in ("data.yaml", "data.yml", "dataset.yaml")]
    found = [path for path in named if path.is_file()] or sorted(source.glob("*.yaml"))
    if len(found) > 1:
        raise FileNotFoundError(
            f"{source} has several YAML files ({', '.join(path.name for path in found)}); give "
            f"the one that describes the data."
        )
    return found[0] if found else None


def _read_yaml(path: Path, faults: Faults) -> dict[str, Any]:
    """All scalars as texts: to YAML, a class called no would be false."""
    text = read_text(path, faults)
    if text is None:
        return {}
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.BaseLoader)):
            faults.add(path, "has aliases (*name), which can grow without limit; write them out.")
            return {}
        content = yaml.load(text, yaml.BaseLoader)  # makes texts, lists and maps, nothing else
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        faults.add(f"{path}{line}", f"is not YAML: {getattr(error, 'problem', None) or error}.")
        return {}
    if not isinstance(content, dict):
        faults.add(path, f"must have names, train and val, got {shown(content)}.")
        return {}
    return content


def _yaml_names(path: Path, content: dict[str, Any], faults: Faults) -> list[str]:
    """Class names in the order of their indices."""
    names = content.get("names", [])
    if isinstance(names, dict):
        expected = [str(row) for row in range(len(names))]
        if sorted(names, key=lambda key: (len(key), key)) != expected:
            faults.add(path, f"names must be numbered from 0 without gaps, got {shown([*names])}.")
            return []
        names = [names[key] for key in expected]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        faults.add(path, f"names must be a list of class names, got {shown(names)}.")
        return []
    told = content.get("nc")
    if names and told is not None and told != str(len(names)):
        faults.add(path, f"nc is {shown(told)}, but names has {len(names)} classes; correct one.")
    check_class_names(names, path, faults)
    return names


def _listed_names(folder: Path, faults: Faults) -> list[str]:
    """Class names of classes.txt or obj.names, one a line."""
    places = [folder / part / name for part in ("", "labels") for name in LIST_NAMES]
    places += sorted(folder.glob("*.names"))
    path = next((path for path in places if path.is_file()), None)
    return [category.name for category in read_classes(path, faults)] if path else []


def _with_ids(
    names: list[str], declared: list[Category] | None, folder: Path, faults: Faults
) -> list[Category]:
    """Classes by index; ids are those of a list of classes, else the index plus 1."""
    if declared is None:
        if not names:
            faults.add(folder, f"has no class names; {EXPECTED}, or give --classes FILE.")
        return [Category(row + 1, name) for row, name in enumerate(names)]
    if names and [category.name for category in declared] != names:
        faults.add(
            folder,
            f"classes.csv and YOLO's own names differ: {shown([c.name for c in declared])} and "
            f"{shown(names)}; remove one of the two lists.",
        )
    return declared


def _split_keys(path: Path, content: dict[str, Any]) -> list[str]:
    """Keys of splits: those that YOLO knows, and others that lead to images, as CVAT has them."""
    keys = [key for key, value in content.items() if value and key.lower() in SPLIT_NAMES]
    for key, value in content.items():
        if key in (*keys, "path") or not isinstance(value, str) or not value:
            continue
        place = path.parent / value
        if place.is_dir() or (place.suffix == ".txt" and place.is_file()):
            keys.append(key)
    return keys


def _yaml_parts(path: Path, content: dict[str, Any], faults: Faults) -> list[Part]:
    """The splits that a YAML file names."""
    parts: list[Part] = []
    for key in _split_keys(path, content):
        values = content[key]
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            faults.add(path, f"{key} must be a folder or a text file, got {shown(values)}.")
            continue
        found = [_resolve(path, content, key, value, faults) for value in values if value]
        places = [place for place in found if place is not None]
        if places:
            parts.append(_part(split_name(key), places, faults))
    return parts


def _resolve(
    path: Path, content: dict[str, Any], key: str, value: str, faults: Faults
) -> Path | None:
    """A folder or list of a split: from ``path`` of the file, or from where the file lies."""
    base = content.get("path")
    bases = [path.parent / base] if isinstance(base, str) and base else []
    bases.append(path.parent)
    # Roboflow writes ../train/images for a folder beside the file.
    plain = value.replace("\\", "/")
    near = plain
    while near.startswith("../"):
        near = near.removeprefix("../")
    tried = [folder / text for text in (plain, near) for folder in bases]
    found = next((place for place in tried if place.exists()), None)
    if found is None:
        faults.add(
            path,
            f"{key}: there is no {shown(value)}; looked for {tried[0]} and {tried[-1]}. Add it, or "
            f"remove this line from the file.",
        )
    return found


def _part(name: str, places: list[Path], faults: Faults) -> Part:
    """A split of some folders, or of some lists of images."""
    images = []
    for place in places:
        images += _images_of_list(place, faults) if place.is_file() else _images_below(place)
    folders = [place.parent if place.is_file() else place for place in places]
    root = folders[0]
    if len(folders) > 1 or places[0].is_file():
        root = _common([image.parent for image in images] or folders)
    return Part(name, root, [image.relative_to(root).as_posix() for image in images])


def _common(folders: list[Path]) -> Path:
    """The lowest folder that holds all."""
    root = folders[0]
    while not all(folder.is_relative_to(root) for folder in folders):
        root = root.parent
    return root


def _images_below(folder: Path) -> list[Path]:
    return [folder / name for name in walk(folder, suffixes())]


def _images_of_list(path: Path, faults: Faults) -> list[Path]:
    """Images that a text file lists, below its folder; CVAT writes data/ before each."""
    folder = path.parent
    found = []
    for number, line in read_lines(path, faults):
        name = line.strip().replace("\\", "/").removeprefix("./")
        if leaves_folder(name):
            faults.add(
                f"{path}:{number}", f"must be a path below {folder}, without '..', got {name}."
            )
            continue
        below = [name, name.removeprefix("data/")]
        image = next((folder / text for text in below if (folder / text).is_file()), None)
        if image is None:
            faults.add(f"{path}:{number}", f"there is no image {folder / name}.")
        else:
            found.append(image)
    return found


def _folder_parts(folder: Path) -> list[Part]:
    """The splits that folders make.

    Raises:
        FileNotFoundError: no images.
    """
    parts = []
    for key in SPLIT_NAMES:
        places = [folder / "images" / key, folder / key / "images", folder / key]
        place = next((place for place in places if place.is_dir()), None)
        if place and _images_below(place):
            parts.append(Part(split_name(key), place, list(walk(place, suffixes()))))
    if parts:
        return parts
    # Darknet's lists, as CVAT writes them.
    lists = [folder / name for name in ("train.txt", "valid.txt", "val.txt", "test.txt")]
    faults = Faults()
    parts = [_part(split_name(path.stem), [path], faults) for path in lists if path.is_file()]
    faults.stop()
    if parts:
        return parts
    root = folder / "images" if (folder / "images").is_dir() else folder
    names = list(walk(root, suffixes()))
    if not names:
        raise FileNotFoundError(f"no images in {folder}; {EXPECTED}.")
    return [Part(split_name(folder.resolve().name), root, names)]


def label_path(image: Path) -> Path:
    """The labels of an image: ``labels`` for the last ``images`` of its path, else beside it."""
    parts = list(image.parts)
    beside = image.with_suffix(".txt")
    if "images" not in parts[:-1]:
        return beside
    last = len(parts) - 2 - parts[-2::-1].index("images")
    mirrored = Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
    return beside if beside.is_file() and not mirrored.is_file() else mirrored


def is_label(path: PurePosixPath) -> bool:
    """Whether a text file beside labels can be one."""
    name = path.name.lower()
    return name not in OTHER_TEXTS and not name.startswith("readme")
