"""One sentence or two: which errors cost most, and what to look at first."""

from __future__ import annotations

from collections.abc import Sequence

from retinanet.evaluation.coco import SizeResult
from retinanet.tools.diagnose.confusion import Confusion
from retinanet.tools.diagnose.errors import Errors

# What is said of each kind, and what to do about it.
REMEDIES = {
    "class": "the place is right and the class is not{pair}. See confusion.png; then ask whether "
    "the annotations keep these classes apart, and whether there are enough images of each",
    "localization": "the class is right and the box is not tight (IoU 0.1 to 0.5). See the worst "
    "images; then train with larger images, for longer, or with loss.box=giou",
    "both": "neither class nor place is right. See the worst images; more training usually helps "
    "before anything else",
    "duplicate": "one object is found twice. Lower postprocess.nms_iou",
    "background": "detections lie where no object is annotated. See suspects_unlabelled.png: are "
    "these objects that nobody annotated? Otherwise add images of what is mistaken for objects",
    "missed": "objects are not found at all{size}. See the worst images; larger images "
    "(data.min_size) and smaller anchors help with small objects, more examples with rare ones",
}


def first_look(errors: Errors, confusion: Confusion, sizes: Sequence[SizeResult]) -> str:
    """What to look at first.

    Args:
        errors: with what each kind costs.
        confusion: of the classes.
        sizes: how well objects of each size are found.
    """
    if errors.AP50 is None:
        return "There are no objects to find, so nothing can be missed and AP is undefined."
    worst = max(errors.kinds, key=lambda kind: kind.cost)
    if not worst.cost:
        return "No error costs any AP50."
    words = REMEDIES[worst.name].format(pair=_pair(confusion), size=_size(sizes))
    return f"Look at {worst.name} first ({worst.cost:.3f} AP50): {words}."


def _pair(confusion: Confusion) -> str:
    """The classes that are confused most often."""
    pairs = confusion.worst(1)
    return "".join(
        f", most often {name} taken for {other} ({count} times)" for name, other, count in pairs
    )


def _size(sizes: Sequence[SizeResult]) -> str:
    """The size of objects that is found worst, over all classes, if there are several."""
    recall = {}
    for size in dict.fromkeys(row.size for row in sizes):
        rows = [row for row in sizes if row.size == size and row.AR is not None]
        total = sum(row.num_gt for row in rows)
        if total:
            recall[size] = sum(row.AR * row.num_gt for row in rows) / total
    if len(recall) < 2:
        return ""
    size = min(recall, key=recall.get)
    return f", {size} ones least (recall {recall[size]:.2f})"
