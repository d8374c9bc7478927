"""What training asks of its two data sets: classes, image files, and boxes that it can see."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import shlex
import unicodedata
from collections.abc import Set
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np
import torch

from retinanet.data.coco import (
    BACKWARDS,
    DROPPED,
    FLAT,
    OUTSIDE,
    CocoData,
    clip_xywh,
    images_of,
    names_in,
)
from retinanet.data.images import read_header
from retinanet.data.issues import Issue, refusal
from retinanet.data.records import CONVERTER, shown
from retinanet.data.transforms import MIN_BOX_SIDE, Augment, is_visible, resized_sizes

# Similarity, difflib's ratio, from which a name is taken for another one misspelt: two of three
# letters.
NEAR_NAME = 0.65
# With data.on_bad_image=skip a run stops when more than this share of its images is bad: then
# the folder is wrong, not a few files.
MAX_BAD_SHARE = 0.1
VANISHED = f"{DROPPED}a side below {MIN_BOX_SIDE:g} px at the training size"
# Why boxes are dropped -> the fix.
FIXES = {
    BACKWARDS: f"{CONVERTER}` puts their corners in order.",
    FLAT: "Correct the box, [x, y, width, height], or remove the record.",
    OUTSIDE: "Correct the box, or the width and height of the image, or remove the record.",
    VANISHED: "Raise data.min_size, and data.max_size with it, or cut the images into tiles.",
}
SIZE_FIXES = {
    "not those of the file": "The boxes belong to another version of the image: correct width and "
    "height, or restore the file.",
    "those before the file's EXIF orientation": "Its EXIF orientation turns it. Where the boxes "
    "fit the image as viewers show it, exchange width and height (Label Studio writes them so); "
    "where they fit the image as stored, remove the tag from the file.",
    "swapped": "They are swapped: exchange them, and make sure that the boxes are [x, y, width, "
    "height].",
}
CROWD_FIX = "Set iscrowd to 0 where a box holds one object."
SHARES_FIX = "Multiply x and width by the width of the image, y and height by its height."


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
    if not only_train + only_val:
        sources = f"train={shlex.quote(str(train.path))} val={shlex.quote(str(val.path))}"
        fix = f"{CONVERTER} {sources} OUT` gives both the same ids, by name."
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
    # Of two names that may look the same, the first letters that are not, by their names.
    for ours, theirs in zip(name, other, strict=False):
        if ours != theirs and not (ours + theirs).isascii():
            meant, is_ = (unicodedata.name(it, f"U+{ord(it):04X}") for it in (theirs, ours))
            return f" (the other has {shown(other)}, with {meant} for {is_})"
    return f" (the other has {shown(other)})"


def too_many_bad(count: int, total: int) -> bool:
    """Whether so many of ``total`` images are missing or unreadable that skipping them stops."""
    return count > max(1, MAX_BAD_SHARE * total)


def missing_issues(data: CocoData, split: str, *, skip: bool = False) -> list[Issue]:
    """Refused: images of ``"train"`` or ``"val"`` that are missing from their folder.

    With ``skip``, for ``data.on_bad_image=skip``, only where there are too many to be skipped.
    """
    missing = data.missing() if data.image_root.is_dir() else []  # no folder: refused when read
    too_many = too_many_bad(len(missing), len(data))
    if not missing or (skip and not too_many):
        return []
    more = f" ({len(missing)} of {len(data)} images are missing)" if len(missing) > 1 else ""
    name, fix = data.file_name(missing[0]), "complete the folder"
    above = data.image_root.resolve().parent
    found = find_meant(data.image_root, name)
    tops = (above, data.image_root / "images")
    # Not pathlib, which raises for a name that is too long.
    start = next((top for top in tops if os.path.isfile(top / name)), None)  # noqa: PTH113
    if start is not None:
        fix = f"set data.{split}_images={start}, the folder that the names start from"
    elif found is not None and found == data.image_root / unquote(name):
        fix = f"{CONVERTER}` takes the %-codes out of the names"
    elif (
        found is not None and found.parent == data.image_root != data.image_path(missing[0]).parent
    ):
        fix = f"{CONVERTER} --base-names` takes folders off the names"
    elif re.match(r"https?:", name):
        fix = "download the images; file_name must be a path below the image folder"
    elif found is not None:
        fix = "write file_name as the file is named"
    elif not too_many:
        fix = "complete the folder, or set data.on_bad_image=skip to go on without"
    hint = "" if found is None else f"; there is {found}"
    error = FileNotFoundError(
        f"no image {data.image_path(missing[0])}, listed in {data.path}{more}{hint}; {fix}."
    )
    places = (describe_missing(data, index) for index in missing)
    kind = "images: the file is missing"
    fix = fix[0].upper() + fix[1:]
    return [refusal(kind, places, error, f"{fix}.", count=len(missing))]


def describe_missing(data: CocoData, index: int) -> str:
    """A missing image, and the file that was probably meant."""
    found = find_meant(data.image_root, data.file_name(index))
    hint = "" if found is None else f"; there is {found}"
    return f"{data.path}: image id {data.image_ids[index]}: no {data.image_path(index)}{hint}"


def find_meant(root: Path, name: str) -> Path | None:
    """The file that is meant by the name of an image that is missing; None: nothing like it."""
    plain = unquote(name)  # of a URL: %20 is a blank
    base = PurePosixPath(plain).name
    for guess in (root / plain, root / base, root.parent / plain, root / "images" / plain):
        if os.path.isfile(guess):  # noqa: PTH113
            return guess
    beside = (root / name).parent
    for other in sorted(names_in(str(beside))):  # another suffix, or other letters
        if Path(other).stem.casefold() == Path(name).stem.casefold():
            return beside / other
    return None


def describe_size(data: CocoData, index: int, size: tuple[int, int]) -> tuple[str, str, str]:
    """What is wrong with the size of an image: its kind, both sizes, and the fix.

    ``size`` is the height and width of its pixels as displayed, which are not those of the record.
    """
    height, width = data.sizes[index].tolist()
    H, W = size
    path = data.image_path(index)
    sizes = f"width x height is {width} x {height}, but {path} has {W} x {H} pixels"
    if (width, height) != (H, W):
        kind = "not those of the file"
    elif read_header(path).orientation >= 5:
        kind = "those before the file's EXIF orientation"
    else:
        kind = "swapped"
    return f"images: width and height are {kind}", sizes, SIZE_FIXES[kind]


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
        try:
            with os.scandir(where) as entries:
                links = {entry.name for entry in entries if entry.is_symlink()}
        except OSError:  # no such folder
            links = set()
        for name, index in files:
            path = f"{where}/{name}"
            paths[index] = os.path.realpath(path) if name in links else path
    return paths


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


def visible_boxes(data: CocoData, augment: Augment) -> np.ndarray:
    """(M,) bool: usable boxes that are seen at the largest size that ``augment`` gives images."""
    sizes = data.sizes[images_of(data)]  # (M, 2)
    if not len(sizes):
        return data.usable
    resized = resized_sizes(sizes, augment.min_sizes.max(), augment.max_size, augment.rule)
    factors = resized / sizes * (1.0 if augment.scale is None else augment.scale[1])
    corners = torch.from_numpy(clip_xywh(data.bbox, sizes).astype(np.float32))
    factors = torch.from_numpy(np.tile(factors[:, ::-1], 2).astype(np.float32))
    return data.usable & is_visible(corners * factors).numpy()


def drop_vanishing(data: CocoData, augment: Augment) -> CocoData:
    """The training set without the boxes that training never sees, which ``repairs`` counts."""
    seen = visible_boxes(data, augment) | data.crowd
    vanished = int((data.usable & ~seen).sum())
    if not vanished:
        return data
    repairs = data.repairs | {VANISHED: vanished}
    return dataclasses.replace(data, usable=data.usable & seen, repairs=repairs)


def learnable_issues(data: CocoData) -> list[Issue]:
    """Refused: a training set, of :func:`drop_vanishing`, that leaves no box to train on."""
    if data.has_objects or not data.annotated:
        return []
    reason, fix = why_no_objects(data)
    error = ValueError(f"{data.path} has no box to train on: {reason}. {fix}")
    kind = "annotations: no box is left to train on"
    return [refusal(kind, [f"{data.path}: {reason}"], error, fix)]


def are_shares(bbox: np.ndarray) -> bool:
    """Whether (M, 4) xywh boxes look like shares of the image; false where all are zero."""
    return len(bbox) > 0 and bool(bbox.min() >= 0 and 0 < bbox.max() <= 1)


def why_no_objects(data: CocoData) -> tuple[str, str]:
    """What became of all annotations, and the fix for most of them."""
    total = len(data.bbox)
    if are_shares(data.bbox):
        reason = f"every bbox of {total} lies in [0, 1], as if in shares of the image"
        return reason, SHARES_FIX
    if not total:
        return "it lists no annotation", "Annotate its images, or name the file that has the boxes."
    parts = [  # how many, why, fix
        (count, what.removeprefix(DROPPED), FIXES[what])
        for what, count in data.repairs.items()
        if what in FIXES
    ]
    if data.crowd.any():
        counts = np.bincount(data.labels[data.crowd], minlength=len(data.category_names))
        order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        most = ", ".join(f"{data.category_names[label]} {counts[label]}" for label in order[:5])
        most += ", ..." if len(order) > 5 else ""
        parts.append((counts.sum(), f"crowd regions (iscrowd 1): {most}", CROWD_FIX))
    reason = "; ".join(f"{count} of {total} annotations: {why}" for count, why, _ in parts)
    return reason, max(parts, key=lambda part: part[0])[2]


def describe_dropped(data: CocoData) -> list[str]:
    """Lines for the log: boxes that training does without, with their share and the fix."""
    total = max(len(data.bbox), 1)
    return [
        f"warning    {count} of {total} boxes ({100 * count / total:.3g} %) are dropped, and their "
        f"places are taught as background: {what.removeprefix(DROPPED)}. {FIXES[what]}"
        for what, count in data.repairs.items()
        if what in FIXES
    ]


def describe_no_ground_truth(data: CocoData) -> list[str]:
    """A warning for the log where validation has no ground truth; else nothing."""
    if data.has_objects:
        return []
    reason, fix = why_no_objects(data)
    return [
        f"warning    {data.path} has no box to be found, so every AP will be n/a or 0: {reason}. "
        f"{fix}"
    ]
