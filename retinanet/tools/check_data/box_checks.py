"""Boxes that are odd: in other units, of another format, partly outside, thin, or there twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retinanet.data.coco import Reading, images_of
from retinanet.data.fields import box_area, has_area
from retinanet.data.learnable import SHARES_FIX, are_shares
from retinanet.data.records import shown
from retinanet.data.verdict import Look, Sight, Verdict

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


def check_boxes(reading: Reading, judged: np.ndarray, verdict: Verdict) -> None:
    """Boxes in other units, of another format, or partly outside.

    Args:
        reading: of the file.
        judged: (M,) bool, of those to look at.
        verdict: gets what is odd.
    """
    data = reading.data
    limits = data.sizes[images_of(data)]  # (M, 2) height, width
    judged = judged & has_area(data.bbox, limits)
    bbox, rows = data.bbox[judged], reading.box_rows[judged]
    if not len(bbox):
        return
    place = places(reading, "bbox")
    if are_shares(bbox):
        if not data.usable.any():
            return  # no box of them is seen: refused
        verdict.note(
            "annotations: every bbox lies in [0, 1], as if in shares of the image",
            np.sort(rows),
            place,
            "takes them for pixels",
            SHARES_FIX,
            look_at(reading),
        )
        return
    limits = limits[judged][:, ::-1]  # width, height
    with np.errstate(over="ignore"):
        outside = (bbox[:, :2] + bbox[:, 2:] > limits + BORDER).any(axis=1)
    form = _other_form(bbox, limits, outside)
    if form is not None:
        verdict.note(
            f"annotations: bbox looks like {form[0]}",
            np.sort(rows[outside]),
            lambda row: f"{place(row)} reaches outside its image",
            "takes it for [x, y, width, height], and cuts it at the border",
            form[1],
            look_at(reading),
        )
        return
    outside |= (bbox[:, :2] < -BORDER).any(axis=1)
    verdict.mend(
        "annotations: bbox reaches outside its image",
        np.sort(rows[outside]),
        place,
        "cuts it at the border",
        "Nothing is needed where objects are cut by the border; else correct the box.",
        look_at(reading),
    )


def _other_form(
    bbox: np.ndarray, limits: np.ndarray, outside: np.ndarray
) -> tuple[str, str] | None:
    """What boxes look like that are not [x, y, width, height], and what to write instead.

    Args:
        bbox: (M, 4) as the file has them.
        limits: (M, 2) width and height of their images.
        outside: (M,) bool, whether they reach beyond those.
    """
    ordered = (bbox[:, 2:] > bbox[:, :2]).all(axis=1).mean() >= NEARLY_ALL
    if ordered and len(bbox) >= CORNERS_BOXES and outside.mean() >= CORNERS_OUTSIDE:
        remedy = "If they are corners, write [x1, y1, x2 - x1, y2 - y1]."
        return "two corners [x1, y1, x2, y2]", remedy
    half = bbox[:, 2:] / 2
    room = ((bbox[:, :2] >= half - BORDER) & (bbox[:, :2] + half <= limits + BORDER)).all(axis=1)
    some = outside.mean() >= CENTERS_OUTSIDE and outside.sum() >= CENTERS_BOXES_OUTSIDE
    if some and room.mean() >= NEARLY_ALL:
        remedy = "If x and y are centers, write [x - width / 2, y - height / 2, width, height]."
        return "a center and two sides [x, y, width, height]", remedy
    return None


def check_thin(reading: Reading, verdict: Verdict) -> None:
    """Boxes without an extent to speak of, as a click leaves them."""
    data = reading.data
    thin = data.usable & (data.bbox[:, 2:] < THIN).any(axis=1) & (data.bbox[:, 2:] > 0).all(axis=1)
    shares = data.bbox[data.usable].max(initial=0.0) <= 1
    verdict.note(
        f"annotations: bbox is less than {THIN:g} px wide or high",
        np.sort(reading.box_rows[thin & (not shares)]),
        places(reading, "bbox"),
        "trains on it, and evaluation wants it found",
        "Correct the box, or remove the record: a click without a drag leaves such boxes.",
        look_at(reading),
    )


def check_areas(reading: Reading, verdict: Verdict) -> None:
    """Areas that no object in its box can have."""
    data = reading.data
    place = places(reading, "area")
    does = "takes it as it is: only APs, APm and APl depend on it"
    remedy = "Correct the area, or leave it out for width times height."
    none = data.usable & (data.area <= 0)
    verdict.note(
        "annotations: area is not positive",
        np.sort(reading.box_rows[none]),
        place,
        does,
        remedy,
        look_at(reading),
    )
    with np.errstate(over="ignore"):
        most = box_area(data.bbox) * AREA_SLACK + BORDER
    large = data.usable & (data.area > most)
    verdict.note(
        "annotations: area is larger than the box",
        np.sort(reading.box_rows[large]),
        lambda row: f"{place(row)}, bbox {shown(reading.boxes.items[row]['bbox'])}",
        does,
        remedy,
        look_at(reading),
    )


def check_repeated(reading: Reading, verdict: Verdict) -> None:
    """Objects that are annotated twice: same image, class and box; a crowd region is no object."""
    data = reading.data
    columns = [*data.bbox.T, data.labels, images_of(data)]
    order = np.lexsort(columns)  # stable: the first of the file comes first
    same = ~(data.crowd[order][1:] | data.crowd[order][:-1])
    for column in columns:
        same &= column[order][1:] == column[order][:-1]
    again = order[1:][same]
    first = dict(zip(reading.box_rows[again], reading.box_rows[order[:-1][same]], strict=True))
    verdict.note(
        "annotations: the same box of the same class in the same image",
        sorted(first),
        lambda row: f"{reading.boxes.place(row)}: as {reading.boxes.where(first[row])}",
        "trains on both, and evaluation wants both found",
        "Remove one of them.",
        look_at(reading),
    )


def places(reading: Reading, field: str) -> Callable[[int], str]:
    """How findings name an annotation and the value of a field."""
    boxes = reading.boxes

    def place(row: int) -> str:
        found = f"{field} {shown(boxes.items[row][field])}" if field in boxes.items[row] else ""
        return boxes.place(row, "" if field == "id" else found)

    return place


def look_at(reading: Reading) -> Look:
    """The image and the box of an annotation, by its record."""

    def look(row: int) -> tuple[Sight]:
        box = int(np.flatnonzero(reading.box_rows == row)[0])
        index = int(np.searchsorted(reading.data.first, box, side="right")) - 1
        return (Sight(reading.data, index, box),)

    return look
