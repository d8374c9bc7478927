"""What must hold between a data set and its files, and between two splits."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Set
from pathlib import Path

from retinanet.data.coco import CocoData
from retinanet.data.records import shown
from retinanet.data.verdict import STOP, Verdict

# Likeness, in difflib's ratio, from which a name is taken for another one misspelt: two of three
# letters.
NEAR_NAME = 0.65


def check_annotated(data: CocoData, split: str, verdict: Verdict = STOP) -> None:
    """Refuse a test set, which has no list of annotations.

    Args:
        data: as read.
        split: ``"train"`` or ``"val"``, for the message.
        verdict: raises, or keeps the problem.

    Raises:
        ValueError: the setting that names the file.
    """
    remedy = "training needs boxes in both sets."
    verdict.refuse(
        "annotations: no such list",
        [] if data.annotated else [0],
        lambda _: f"{data.path}: which is missing",
        lambda _: (
            f"data.{split}_annotations={data.path} has no list of annotations; {remedy} eval.py "
            f"takes such a file, to detect without scoring."
        ),
        remedy.capitalize(),
    )


def check_same_classes(train: CocoData, val: CocoData, verdict: Verdict = STOP) -> None:
    """Refuse two files that do not list the same categories, by name and id.

    One misspelt name would shift the labels of every category after it.

    Raises:
        ValueError: the categories that differ, and what they were probably meant to be.
    """
    if {(data.path, "categories") for data in (train, val)} & verdict.left_out:
        return  # refused before, and not all of them are known
    ours = dict(zip(train.category_names, train.category_ids, strict=True))
    theirs = dict(zip(val.category_names, val.category_ids, strict=True))
    only_ours = [
        f"{shown(name)} is only in {train.path}{_near_miss(name, theirs.keys() - ours.keys())}"
        for name in ours
        if name not in theirs
    ]
    only_theirs = [
        f"{shown(name)} is only in {val.path}{_near_miss(name, ours.keys() - theirs.keys())}"
        for name in theirs
        if name not in ours
    ]
    other_ids = [
        f"{shown(name)} has id {ours[name]} in {train.path} and {theirs[name]} in {val.path}"
        for name in ours
        if ours[name] != theirs.get(name, ours[name])
    ]
    told = [*only_ours[:3], *only_theirs[:3]] or other_ids[:1]
    differences = [*only_ours, *only_theirs, *other_ids]
    remedy = "Correct the list of categories of one file."
    verdict.refuse(
        "categories: training and validation must list the same, with the same ids",
        range(len(differences)),
        lambda row: differences[row],
        lambda _: (
            f"training and validation must list the same categories with the same ids: "
            f"{'; '.join(told)}. {remedy}"
        ),
        remedy,
    )


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


def check_images_exist(data: CocoData, verdict: Verdict = STOP) -> None:
    """Refuse a data set with images missing from its folder.

    Raises:
        FileNotFoundError: the first missing image, and how many are missing.
    """
    lost = data.missing() if data.image_root.is_dir() else []  # no folder: refused when read
    more = f" ({len(lost)} of {len(data)} images are missing)" if len(lost) > 1 else ""
    remedy = "complete the folder, or set data.on_bad_image=skip to go on without"
    verdict.refuse(
        "images: the file is missing",
        lost,
        lambda index: describe_missing(data, index),
        lambda index: f"no image {data.image_path(index)}, listed in {data.path}{more}; {remedy}.",
        f"{remedy.capitalize()}.",
        FileNotFoundError,
    )


def describe_missing(data: CocoData, index: int) -> str:
    """A missing image, and the file that was probably meant."""
    path = data.image_path(index)
    meant = Path(str(path).replace("\\", "/"))
    if not meant.exists():
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
    folders: dict[str, tuple[str, set[str]]] = {}
    paths = []
    for index in range(len(data)):
        folder, name = os.path.split(data.file_name(index))
        if folder not in folders:
            where = os.path.realpath(data.image_root / folder)
            folders[folder] = where, _links(where)
        where, links = folders[folder]
        path = f"{where}/{name}"
        paths.append(os.path.realpath(path) if name in links else path)
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
