"""What must hold between a data set and its files, and between two splits."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Set

from retinanet.data.coco import CocoData
from retinanet.data.issues import Issue, raise_refused, refusal
from retinanet.data.records import shown

# Similarity, difflib's ratio, from which a name is taken for another one misspelt: two of three
# letters.
NEAR_NAME = 0.65


def check_annotated(data: CocoData, split: str) -> None:
    """Raise a ValueError for what :func:`annotated_issues` finds."""
    raise_refused(annotated_issues(data, split))


def annotated_issues(data: CocoData, split: str) -> list[Issue]:
    """Refused: a test set, which has no list of annotations, as split ``"train"`` or ``"val"``."""
    if data.annotated:
        return []
    fix = "training needs boxes in both sets."
    error = ValueError(
        f"data.{split}_annotations={data.path} has no list of annotations; {fix} eval.py takes "
        f"such a file, to detect without scoring."
    )
    places = [f"{data.path}: which is missing"]
    return [refusal("annotations: no such list", places, error, fix.capitalize())]


def check_same_classes(train: CocoData, val: CocoData) -> None:
    """Raise a ValueError for what :func:`class_issues` finds."""
    raise_refused(class_issues(train, val))


def class_issues(train: CocoData, val: CocoData) -> list[Issue]:
    """Refused: two files that do not list the same categories, by name and id.

    One misspelt name would shift the labels of every category after it.
    """
    only_train, only_val = _only_in(train, val), _only_in(val, train)
    val_ids = dict(zip(val.category_names, val.category_ids, strict=True))
    other_ids = [
        f"{shown(name)} has id {number} in {train.path} and {val_ids[name]} in {val.path}"
        for name, number in zip(train.category_names, train.category_ids, strict=True)
        if number != val_ids.get(name, number)
    ]
    places = only_train + only_val + other_ids
    if not places:
        return []
    named = "; ".join(only_train[:3] + only_val[:3] or other_ids[:1])
    fix = "Correct the list of categories of one file."
    error = ValueError(
        f"training and validation must list the same categories with the same ids: {named}. {fix}"
    )
    kind = "categories: training and validation must list the same, with the same ids"
    return [refusal(kind, places, error, fix, count=len(places))]


def _only_in(data: CocoData, other: CocoData) -> list[str]:
    """The classes that another data set does not list, with those that were probably meant."""
    others = set(other.category_names) - set(data.category_names)
    return [
        f"{shown(name)} is only in {data.path}{_near_miss(name, others)}"
        for name in data.category_names
        if name not in other.category_names
    ]


def _near_miss(name: str, others: Set[str]) -> str:
    """The name that was probably meant, as the end of a sentence."""
    folded = {other.casefold().strip(): other for other in sorted(others)}
    close = difflib.get_close_matches(name.casefold().strip(), folded, n=1, cutoff=NEAR_NAME)
    if not close:
        return ""
    other = folded[close[0]]
    return f" (the other has {shown(other)}{_foreign_letter(name, other)})"


def _foreign_letter(name: str, other: str) -> str:
    """Of two names that may look the same, the first letters that are not, by their names."""
    for ours, theirs in zip(name, other, strict=False):
        if ours != theirs and not (ours + theirs).isascii():
            named = [unicodedata.name(letter, f"U+{ord(letter):04X}") for letter in (theirs, ours)]
            return f", with {named[0]} for {named[1]}"
    return ""


def check_images_exist(data: CocoData) -> None:
    """Raise a FileNotFoundError for what :func:`missing_issues` finds."""
    raise_refused(missing_issues(data))


def missing_issues(data: CocoData) -> list[Issue]:
    """Refused: images that are missing from their folder."""
    missing = data.missing() if data.image_root.is_dir() else []  # no folder: refused when read
    if not missing:
        return []
    more = f" ({len(missing)} of {len(data)} images are missing)" if len(missing) > 1 else ""
    fix = "complete the folder, or set data.on_bad_image=skip to go on without"
    error = FileNotFoundError(
        f"no image {data.image_path(missing[0])}, listed in {data.path}{more}; {fix}."
    )
    places = (describe_missing(data, index) for index in missing)
    kind = "images: the file is missing"
    return [refusal(kind, places, error, f"{fix.capitalize()}.", count=len(missing))]


def describe_missing(data: CocoData, index: int) -> str:
    """A missing image, and the file that was probably meant."""
    path = data.image_path(index)
    beside = path.parent.iterdir() if path.parent.is_dir() else ()
    stem = path.stem.casefold()
    meant = next((other for other in beside if other.stem.casefold() == stem), None)
    hint = f"; there is {meant}" if meant is not None else ""
    return f"{data.path}: image id {data.image_ids[index]}: no {path}{hint}"


def shared_images(train: CocoData, val: CocoData) -> list[int]:
    """Indices of the validation images whose file is a training image too.

    Symbolic links are followed. Each folder is listed once: asking for every file takes minutes
    on network disks.
    """
    ours = set(_resolved(train))
    return [index for index, path in enumerate(_resolved(val)) if path in ours]


def _resolved(data: CocoData) -> list[str]:
    """The path of every image, free of links."""
    paths = [""] * len(data)
    for folder, files in data.folders().items():
        where = os.path.realpath(data.image_root / folder)
        links = _links(where)
        for name, index in files:
            path = f"{where}/{name}"
            paths[index] = os.path.realpath(path) if name in links else path
    return paths


def _links(folder: str) -> set[str]:
    """Names of the symbolic links in a folder; none where there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        return set()


def describe_shared(train: CocoData, val: CocoData) -> list[str]:
    """A warning for the log when training and validation share images; else nothing."""
    shared = shared_images(train, val)
    if not shared:
        return []
    names = ", ".join(val.file_name(index) for index in shared[:3])
    names += ", ..." if len(shared) > 3 else ""
    if len(shared) == len(val):
        return [
            f"warning    every validation image is a training image too ({names}): AP will tell "
            f"how well they are learnt by heart, not how well others are detected"
        ]
    return [
        f"warning    {len(shared)} of {len(val)} validation images are training images too "
        f"({names}): AP will look better than it is; remove them from one of the files"
    ]
