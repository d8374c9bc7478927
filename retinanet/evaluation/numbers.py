"""COCO's twelve numbers: their names, and what each is the mean of."""

from collections.abc import Sequence
from typing import NamedTuple


class Number(NamedTuple):
    """One of COCO's twelve numbers: what it is the mean of."""

    mean_of: str  # "precision" or "recall"
    threshold: int | slice  # index of the IoU threshold, 0.50 to 0.95 in steps of 0.05
    area: int  # index of the size of objects: all, small, medium, large
    max_dets: int  # index into evaluation.max_dets


ALL_IOUS = slice(None)
SIZES = ("all", "small", "medium", "large")
NUMBERS = {
    "AP": Number("precision", ALL_IOUS, 0, 2),
    "AP50": Number("precision", 0, 0, 2),
    "AP75": Number("precision", 5, 0, 2),
    "APs": Number("precision", ALL_IOUS, 1, 2),
    "APm": Number("precision", ALL_IOUS, 2, 2),
    "APl": Number("precision", ALL_IOUS, 3, 2),
    "AR1": Number("recall", ALL_IOUS, 0, 0),
    "AR10": Number("recall", ALL_IOUS, 0, 1),
    "AR100": Number("recall", ALL_IOUS, 0, 2),
    "ARs": Number("recall", ALL_IOUS, 1, 2),
    "ARm": Number("recall", ALL_IOUS, 2, 2),
    "ARl": Number("recall", ALL_IOUS, 3, 2),
}


# What evaluation.max_dets is where nobody says otherwise: COCO's, which the names above are of.
COCO_MAX_DETS = (1, 10, 100)


def shown_name(name: str, max_dets: Sequence[int]) -> str:
    """A number by the detections that it was computed with: AR100 is AR500 with 500.

    Files keep the keys of ``NUMBERS`` for the three places of ``max_dets``, which metrics.json
    has beside them.

    Args:
        name: key of ``NUMBERS``.
        max_dets: of the evaluation.
    """
    places = {f"AR{limit}": place for place, limit in enumerate(COCO_MAX_DETS)}
    return f"AR{max_dets[places[name]]}" if name in places else name
