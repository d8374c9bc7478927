"""What is odd about annotations: of one file alone, and of training and validation set together."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator

import numpy as np

from retinanet.data import coco
from retinanet.data.coco import (
    CocoData,
    Reading,
    box_area,
    class_counts,
    has_area,
    images_of,
    names_in,
)
from retinanet.data.issues import Effect, Issue, Sight
from retinanet.data.records import CONVERTER, rotation, shown
from retinanet.data.splits import (
    FIXES,
    SHARES_FIX,
    VANISHED,
    are_shares,
    shared_images,
    why_no_objects,
)
from retinanet.data.transforms import MIN_BOX_SIDE
from retinanet.tools.image_files import suffixes

# What reading fills in -> field, rule, what training does, fix.
FILLED_IN = {
    coco.RENUMBERED: (
        "id",
        "id is missing, repeated, below 1 or not an integer",
        "gives new ids, in memory",
        "Nothing is needed here; other tools want ids that are unique and at least 1.",
    ),
    coco.NO_CROWD: (
        "iscrowd",
        "iscrowd is missing",
        "takes 0",
        "Nothing is needed, unless some boxes hold groups of objects: those have iscrowd 1.",
    ),
    coco.NO_AREA: (
        "area",
        "area is missing",
        "takes width times height",
        "Nothing is needed; where there are masks, give their areas: APs, APm and APl use them.",
    ),
}
# Boxes that are dropped -> rule.
DROPPED = {
    coco.BACKWARDS: "bbox is drawn from right to left or from bottom to top",
    coco.FLAT: "bbox has no positive width and height",
    coco.OUTSIDE: "bbox lies outside its image",
    VANISHED: f"bbox has a side below {MIN_BOX_SIDE:g} px at the training size",
}
DROPS = "drops it, and learns its place as background; evaluation still gets it"
CUTS = "cuts it at the border"

# Pixels beyond the border that are no mistake: boxes of polygons are rounded.
BORDER = 1.0
# Boxes are taken for two corners when there are at least so many, nearly all have their third and
# fourth number above the first and second, and some reach outside. Of a thousand boxes of COCO
# 10 % are so ordered; written as corners all of them are, and three in four reach outside.
CORNERS_BOXES = 4
CORNERS_OUTSIDE = 0.2
# They are taken for centers when some reach outside, and around their first two numbers nearly all
# have room. Of a thousand boxes of COCO 76 % have; written as centers all have, and 25 % reach
# outside, less where objects are small. Fewer boxes may do both by chance.
CENTERS_OUTSIDE = 0.05
CENTERS_BOXES_OUTSIDE = 10
NEARLY_ALL = 0.99
# Nothing that people see in an image is thinner, pixels.
THIN = 1.0
# An area may exceed that of its box by this factor: masks are counted in whole pixels.
AREA_SLACK = 1.01


def check_annotations(reading: Reading, other_size: Collection[int] = ()) -> Iterator[Issue]:
    """Every issue of one annotation file that training does not refuse.

    Args:
        reading: of the file.
        other_size: images whose files have another size; where their boxes are is not judged.
    """
    data, repaired, box_rows = reading.data, reading.repaired, reading.box_rows
    bbox, usable = data.bbox, data.usable
    judged = ~np.isin(images_of(data), list(other_size))  # (M,)

    for what, (field, rule, does, fix) in FILLED_IN.items():
        yield _issue(reading, rule, repaired[what], does, fix, Effect.REPAIRED, field)
    for what, rule in DROPPED.items():
        rows = repaired.get(what, ())
        if what == VANISHED and are_shares(bbox):
            continue  # in shares of the image, which is an issue of its own
        if what == coco.OUTSIDE:
            rows = np.intersect1d(rows, box_rows[judged])
        yield _issue(reading, rule, rows, DROPS, FIXES[what], Effect.LOST, out_of=len(bbox))

    names = reading.images.column("file_name")
    rows = [row for row in reading.image_rows if "\\" in names[row]]
    yield Issue(
        "images: file_name has backslashes",
        len(rows),
        (reading.images.place(row, shown(names[row])) for row in rows),
        "takes them for folders",
        "Nothing is needed here; other tools want a/b.jpg.",
        Effect.REPAIRED,
    )
    yield from _check_format(reading, judged)
    rows = [row for row in box_rows.tolist() if rotation(reading.boxes.items[row])]
    does = "takes the box as if it were upright"
    fix = f"{CONVERTER}` takes the upright box around it."
    yield _issue(reading, "bbox is rotated", rows, does, fix, field="attributes", out_of=len(bbox))

    rows = [row for row in box_rows.tolist() if reading.boxes.items[row].get("ignore")]
    does = "takes the box as any other, as COCO's evaluator does"
    fix = "To leave it out of training and of AP, set iscrowd to 1; else remove the mark."
    yield _issue(reading, "ignore is set", rows, does, fix, field="ignore", out_of=len(bbox))

    thin = usable & (bbox[:, 2:] < THIN).any(axis=1) & (bbox[:, 2:] > 0).all(axis=1)
    in_shares = bbox[usable].max(initial=0.0) <= 1
    yield _issue(
        reading,
        f"bbox is less than {THIN:g} px wide or high",
        box_rows[thin & (not in_shares)],
        "trains on it, and evaluation wants it found",
        "Correct the box, or remove the record: a click without a drag leaves such boxes.",
    )
    does = "takes it as it is: only APs, APm and APl depend on it"
    fix = "Correct the area, or leave it out for width times height."
    rows = box_rows[usable & (data.area <= 0)]
    yield _issue(reading, "area is not positive", rows, does, fix, field="area")
    with np.errstate(over="ignore"):
        most = box_area(bbox) * AREA_SLACK + BORDER
    yield _issue(
        reading,
        "area is larger than the box",
        box_rows[usable & (data.area > most)],
        does,
        fix,
        field="area",
        detail=lambda row: f", bbox {shown(reading.boxes.items[row]['bbox'])}",
    )

    # Same image, class and box; a crowd region is no object.
    columns = [*bbox.T, data.labels, images_of(data)]
    order = np.lexsort(columns)  # stable: the first of the file comes first
    same = ~(data.crowd[order][1:] | data.crowd[order][:-1])
    for column in columns:
        same &= column[order][1:] == column[order][:-1]
    rows = box_rows[order]
    before = dict(zip(rows[1:][same].tolist(), rows[:-1][same].tolist(), strict=True))
    yield _issue(
        reading,
        "the same box of the same class in the same image",
        before,
        "trains on both, and evaluation wants both found",
        "Remove one of them.",
        field=None,
        detail=lambda row: f": as {reading.boxes.where(before[row])}",
    )

    seen: dict[str, str] = {}
    places = []
    for name in data.category_names:
        folded = " ".join(name.split()).casefold()
        if seen.setdefault(folded, name) != name:
            places.append(f"{data.path}: {shown(name)} and {shown(seen[folded])}")
    yield Issue(
        "categories: names that differ only in case or spaces",
        len(places),
        places,
        "takes them for different classes",
        "If they are one class, give their annotations one category_id and remove the other.",
    )


def _issue(
    reading: Reading,
    rule: str,
    rows: Iterable[int],
    does: str,
    fix: str,
    effect: Effect = Effect.NOTED,
    field: str | None = "bbox",
    *,
    detail: Callable[[int], str] = lambda row: "",
    out_of: int = 0,
) -> Issue:
    """An issue of some annotations, by their records; each is shown with a field and a detail."""
    rows, boxes = sorted(map(int, rows)), reading.boxes

    def place(row: int) -> str:
        record = boxes.items[row]
        has_value = field in record and field != "id"  # the id names the record
        return boxes.place(row, f"{field} {shown(record[field])}" if has_value else "")

    def sights(row: int) -> tuple[Sight]:
        box = int(np.flatnonzero(reading.box_rows == row)[0])
        index = int(np.searchsorted(reading.data.first, box, side="right")) - 1
        return (Sight(reading.data, index, box),)

    places = (place(row) + detail(row) for row in rows)
    kind = f"annotations: {rule}"
    return Issue(kind, len(rows), places, does, fix, effect, map(sights, rows), out_of)


def _check_format(reading: Reading, judged: np.ndarray) -> Iterator[Issue]:
    """Boxes in other units, of another format, or partly outside: at most one of these."""
    data = reading.data
    limits = data.sizes[images_of(data)]  # (M, 2) height, width
    judged = judged & has_area(data.bbox, limits)
    bbox, rows, limits = data.bbox[judged], reading.box_rows[judged], limits[judged][:, ::-1]
    if not len(bbox):
        return
    if are_shares(bbox):
        if data.usable.any():  # else none is seen, which is refused
            rule = "every bbox lies in [0, 1], as if in shares of the image"
            yield _issue(reading, rule, rows, "takes them for pixels", SHARES_FIX)
        return
    with np.errstate(over="ignore"):
        outside = (bbox[:, :2] + bbox[:, 2:] > limits + BORDER).any(axis=1)
    ordered = (bbox[:, 2:] > bbox[:, :2]).all(axis=1)
    half = bbox[:, 2:] / 2
    room = ((bbox[:, :2] >= half - BORDER) & (bbox[:, :2] + half <= limits + BORDER)).all(axis=1)
    share = outside.mean()
    if ordered.mean() >= NEARLY_ALL and len(bbox) >= CORNERS_BOXES and share >= CORNERS_OUTSIDE:
        form = "two corners [x1, y1, x2, y2]"
        fix = "If they are corners, write [x1, y1, x2 - x1, y2 - y1]."
    elif (
        room.mean() >= NEARLY_ALL
        and outside.sum() >= CENTERS_BOXES_OUTSIDE
        and share >= CENTERS_OUTSIDE
    ):
        form = "a center and two sides [x, y, width, height]"
        fix = "If x and y are centers, write [x - width / 2, y - height / 2, width, height]."
    else:
        rows = rows[outside | (bbox[:, :2] < -BORDER).any(axis=1)]
        fix = "Nothing is needed where objects are cut by the border; else correct the box."
        yield _issue(reading, "bbox reaches outside its image", rows, CUTS, fix, Effect.REPAIRED)
        return
    yield _issue(
        reading,
        f"bbox looks like {form}",
        rows[outside],
        f"takes it for [x, y, width, height], and {CUTS}",
        fix,
        detail=lambda _: " reaches outside its image",
    )


def check_pair(train: Reading, val: Reading, keep_empty: bool) -> Iterator[Issue]:
    """What is odd about two splits together, from their annotations and folders.

    Where records were refused, what seems to be missing may be among those, and is no issue.

    Args:
        train: of them.
        val: of them.
        keep_empty: images without a box are trained on.
    """
    shared = shared_images(train.data, val.data)
    yield Issue(
        "images: the same file in training and validation",
        len(shared),
        (describe_image(val.data, index) for index in shared),
        "warns, and goes on: AP will look better than it is",
        "Remove them from one of the two files.",
        sights=((Sight(val.data, index),) for index in shared),
    )
    if val.whole and val.data.annotated and not val.data.has_objects:
        reason, fix = why_no_objects(val.data)
        does = "goes on, but every AP will be n/a or 0, and best.pt is the latest checkpoint"
        places = [f"{val.data.path}: {reason}"]
        yield Issue("annotations: no box in validation", 1, places, does, fix)
    if not (train.images.issues or val.images.issues):
        others = _unlisted([train.data, val.data])
        yield Issue(
            "images: files that no record lists",
            len(others),
            others,
            "never reads them",
            "Nothing is needed if they are meant to be left out.",
        )
    if train.whole and train.data.annotated:
        yield from _check_classes(train.data, val.data)
        empty = np.flatnonzero(np.diff(train.data.first) == 0).tolist()
        rows, items = train.image_rows[empty].tolist(), train.images.items
        yield Issue(
            "images: no annotation, in training",
            len(empty),
            (train.images.place(row, shown(items[row]["file_name"])) for row in rows),
            "trains on them as background" if keep_empty else "leaves them out",
            "Nothing is needed if they show no object; else annotate them.",
            sights=((Sight(train.data, index),) for index in empty),
        )


def describe_image(data: CocoData, index: int) -> str:
    """An image as a place of an issue."""
    return f"{data.path}: image id {data.image_ids[index]}: {data.image_path(index)}"


def _unlisted(splits: Iterable[CocoData]) -> list[str]:
    """Image files beside the listed ones that no record lists."""
    listed: dict[str, set[str]] = {}  # folder, free of links -> names
    for data in splits:
        for folder, files in data.folders().items():
            where = os.path.realpath(data.image_root / folder)
            listed.setdefault(where, set()).update(name for name, _ in files)
    return [
        f"{folder}/{name}"
        for folder, names in listed.items()
        for name in sorted(names_in(folder) - names)
        if name.lower().endswith(suffixes()) and not name.startswith(".")
    ]


def _check_classes(train: CocoData, val: CocoData) -> Iterator[Issue]:
    """Classes that cannot be learnt: nothing in training shows them."""
    in_val = dict(zip(val.category_names, class_counts(val), strict=True))
    scored, unused = [], []
    for label, (name, count) in enumerate(
        zip(train.category_names, class_counts(train), strict=True)
    ):
        if count:
            continue
        crowds = int((train.crowd & (train.labels == label)).sum())
        only = f": {crowds} crowd regions, which are not trained on" if crowds else ""
        place = f"{train.path}: {shown(name)}{only}"
        if in_val.get(name):
            scored.append(f"{place}: {in_val[name]} in {val.path}")
        else:
            unused.append(place)
    yield Issue(
        "categories: boxes in validation, none in training",
        len(scored),
        scored,
        "cannot learn them: their AP will be 0",
        "Annotate some in training, or remove the class from both files.",
    )
    yield Issue(
        "categories: no box in training",
        len(unused),
        unused,
        "cannot learn them",
        "Nothing is needed if that is intended; else annotate some, or remove the class, as "
        "`python -m scripts.convert_dataset --from coco --to coco --drop-unused-classes` does. "
        "Roboflow adds one that only groups the others.",
    )
