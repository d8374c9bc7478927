"""What is odd about a data set that can be read: mended, or taken as it is."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

import numpy as np

from retinanet.data.coco import BACKWARDS, FLAT, OUTSIDE, CocoData, Reading, images_of
from retinanet.data.learnable import FIXES, VANISHED, are_shares, note_no_ground_truth
from retinanet.data.records import shown
from retinanet.data.splits import shared_images
from retinanet.data.transforms import MIN_BOX_SIDE
from retinanet.data.verdict import Sight, Verdict
from retinanet.tools.check_data.box_checks import (
    check_areas,
    check_boxes,
    check_repeated,
    check_thin,
    look_at,
    places,
)
from retinanet.tools.image_files import suffixes

# What reading mends -> field, kind, what training does, what the user can do.
MENDED = {
    "annotation ids renumbered": (
        "id",
        "annotations: id is missing, repeated, below 1 or not an integer",
        "gives new ids, in memory",
        "Nothing is needed here; other tools want ids that are unique and at least 1.",
    ),
    "iscrowd filled in": (
        "iscrowd",
        "annotations: iscrowd is missing",
        "takes 0",
        "Nothing is needed, unless some boxes hold groups of objects: those have iscrowd 1.",
    ),
    "area filled in": (
        "area",
        "annotations: area is missing",
        "takes width times height",
        "Nothing is needed; where there are masks, give their areas: APs, APm and APl use them.",
    ),
}
# Boxes that reading drops -> kind.
DROPPED = {
    BACKWARDS: "annotations: bbox is drawn from right to left or from bottom to top",
    FLAT: "annotations: bbox has no positive width and height",
    OUTSIDE: "annotations: bbox lies outside its image",
    VANISHED: f"annotations: bbox has a side below {MIN_BOX_SIDE:g} px at the training size",
}
DROPS = "drops it, and learns its place as background; evaluation still gets it"


def check_reading(reading: Reading, verdict: Verdict, other_size: Collection[int] = ()) -> None:
    """Everything about one annotation file alone.

    Args:
        reading: of the file, without what was refused.
        verdict: gets what is mended and what is odd.
        other_size: images whose files have another size; where their boxes are is not judged.
    """
    judged = ~np.isin(images_of(reading.data), list(other_size))
    for what, rows in reading.mended.items():
        if what in DROPPED:
            if what == VANISHED and are_shares(reading.data.bbox):
                continue  # in shares of the image, which is told itself
            if what == OUTSIDE:
                rows = rows[np.isin(rows, reading.box_rows[judged])]
            place, look = places(reading, "bbox"), look_at(reading)
            total = len(reading.data.bbox)
            verdict.lose(DROPPED[what], rows, place, DROPS, FIXES[what], look, total)
            continue
        field, kind, does, remedy = MENDED[what]
        verdict.mend(kind, rows, places(reading, field), does, remedy, look_at(reading))
    check_slashes(reading, verdict)
    check_boxes(reading, judged, verdict)
    check_thin(reading, verdict)
    check_areas(reading, verdict)
    check_repeated(reading, verdict)
    check_names(reading, verdict)


def check_slashes(reading: Reading, verdict: Verdict) -> None:
    """File names as Windows writes them."""
    names = reading.images.column("file_name")
    verdict.mend(
        "images: file_name has backslashes",
        [row for row in reading.image_rows if "\\" in names[row]],
        lambda row: reading.images.place(row, shown(names[row])),
        "takes them for folders",
        "Nothing is needed here; other tools want a/b.jpg.",
    )


def check_names(reading: Reading, verdict: Verdict) -> None:
    """Categories that were probably meant to be one."""
    data = reading.data
    seen: dict[str, str] = {}
    alike = []
    for name in data.category_names:
        plain = " ".join(name.split()).casefold()
        if seen.setdefault(plain, name) != name:
            alike.append(f"{data.path}: {shown(name)} and {shown(seen[plain])}")
    verdict.note(
        "categories: names that differ only in case or spaces",
        range(len(alike)),
        alike.__getitem__,
        "takes them for different classes",
        "If they are one class, give their annotations one category_id and remove the other.",
    )


# Lists of a file; where records of one were refused, what is missing may be those.
PARTS = ("images", "annotations", "categories")


def check_pair(train: Reading, val: Reading, keep_empty: bool, verdict: Verdict) -> None:
    """What is odd about two splits together, from their annotations and folders.

    Args:
        train: of them.
        val: of them.
        keep_empty: images without a box are trained on.
        verdict: gets what is odd.
    """
    check_shared(train.data, val.data, verdict)
    if not {(val.data.path, name) for name in PARTS} & verdict.left_out:
        note_no_ground_truth(val.data, verdict)
    _check_unlisted([train.data, val.data], verdict)
    if not train.data.annotated or {(train.data.path, name) for name in PARTS} & verdict.left_out:
        return  # what looks empty may be what was refused
    check_classes(train.data, val.data, verdict)
    empty = train.image_rows[np.diff(train.data.first) == 0]
    verdict.note(
        "images: no annotation, in training",
        empty,
        lambda row: f"{train.images.place(row)}: {shown(train.images.items[row]['file_name'])}",
        "trains on them as background" if keep_empty else "leaves them out",
        "Nothing is needed if they show no object; else annotate them.",
        lambda row: (Sight(train.data, int(np.flatnonzero(train.image_rows == row)[0])),),
    )


def check_shared(train: CocoData, val: CocoData, verdict: Verdict) -> None:
    """Images that are in both splits."""
    verdict.note(
        "images: the same file in training and validation",
        shared_images(train, val),
        lambda i: f"{val.path}: image id {val.image_ids[i]}: {val.image_path(i)}",
        "warns, and goes on: AP will look better than it is",
        "Remove them from one of the two files.",
        lambda i: (Sight(val, i),),
    )


def check_classes(train: CocoData, val: CocoData, verdict: Verdict) -> None:
    """Classes that cannot be learnt: nothing in training shows them."""
    wanted = dict(zip(val.category_names, class_counts(val), strict=True))
    counts = class_counts(train)
    absent = [label for label, count in enumerate(counts) if not count]
    tested = [label for label in absent if wanted.get(train.category_names[label])]

    def place(label: int) -> str:
        crowds = int((train.crowd & (train.labels == label)).sum())
        only = f": {crowds} crowd regions, which are not trained on" if crowds else ""
        return f"{train.path}: {shown(train.category_names[label])}{only}"

    verdict.note(
        "categories: boxes in validation, none in training",
        tested,
        lambda label: f"{place(label)}: {wanted[train.category_names[label]]} in {val.path}",
        "cannot learn them: their AP will be 0",
        "Annotate some in training, or remove the class from both files.",
    )
    verdict.note(
        "categories: no box in training",
        [label for label in absent if label not in tested],
        place,
        "cannot learn them",
        "Nothing is needed if that is intended; else annotate some, or remove the class, as "
        "`python -m scripts.convert_dataset --from coco --to coco --drop-unused-classes` does. "
        "Roboflow adds one that only groups the others.",
    )


def class_counts(data: CocoData) -> list[int]:
    """Boxes of every class, as training counts them."""
    labels = data.labels[data.usable & ~data.crowd]
    return np.bincount(labels, minlength=len(data.category_names)).tolist()


def _check_unlisted(splits: Sequence[CocoData], verdict: Verdict) -> None:
    """Image files beside the listed ones that no record lists."""
    if {(data.path, "images") for data in splits} & verdict.left_out:
        return
    listed: dict[str, set[str]] = {}  # folder -> names
    for data in splits:
        folders: dict[str, set[str]] = {}
        for index in range(len(data)):
            folder, name = os.path.split(data.file_name(index))
            if folder not in folders:
                where = os.path.realpath(data.image_root / folder)
                folders[folder] = listed.setdefault(where, set())
            folders[folder].add(name)
    others = [
        f"{folder}/{name}"
        for folder, names in listed.items()
        for name in sorted(set(_names_in(folder)) - names)
        if name.lower().endswith(suffixes())
    ]
    verdict.note(
        "images: files that no record lists",
        range(len(others)),
        others.__getitem__,
        "never reads them",
        "Nothing is needed if they are meant to be left out.",
    )


def _names_in(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []  # noqa: PTH112, PTH208 - names
