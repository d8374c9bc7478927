"""The verdicts of a diagnosis in words: what explains a low AP, and what to do."""

from __future__ import annotations

import numpy as np

from retinanet.data.coco import DROPPED, FLAT
from retinanet.data.learnable import FIXES, VANISHED, are_shares, visible_boxes
from retinanet.data.transforms import MIN_BOX_SIDE, Augment, resized_size
from retinanet.evaluation.detect import DetectionArrays
from retinanet.tools.diagnose.anchor_reach import MANY
from retinanet.tools.diagnose.box_format import are_fractions
from retinanet.tools.diagnose.causes import (
    PROVEN_AP,
    PROVEN_FACTOR,
    UNDECIDED,
    Case,
    Cause,
    Network,
)
from retinanet.tools.diagnose.history import LEARNED_AP, Course, has_fallen
from retinanet.tools.diagnose.label_map import describe_names
from retinanet.tools.diagnose.overlaps import counted_things

# A threshold above this hides what AP is made of: its curve needs weak detections too.
HIGH_THRESHOLD = 0.1
# Detections per object, below which a high threshold explains a low AP.
FEW_DETECTIONS = 0.5
# The median over images of the best score, from which on a network is sure of what it finds.
SURE = 0.3
# Scores whose 5 % and 95 % quantiles differ by less than this factor are all alike.
ALIKE = 1.3
ALIKE_DETECTIONS = 100
# Readings of the boxes whose fault is not the format.
BOX_FAULTS = {
    "other size": "box size",
    "from below": "mirrored boxes",
    "mirrored": "mirrored boxes",
    "turned": "mirrored boxes",
}
# Objects that are so many times as large as in training, or as small, are hardly found.
OTHER_SIZE = 2.0


def no_ground_truth_cause(case: Case) -> Cause | None:
    """Objects that no detection can match, because their boxes have no area in the image."""
    data = case.data
    counted = counted_things(data, case.found)
    if not counted.any() or (data.usable & counted).any():
        return None
    dropped = {what: count for what, count in data.repairs.items() if what in FIXES}
    most = max(dropped, key=dropped.get, default=FLAT)
    return Cause(
        "no ground truth",
        f"No detection can match the {counted.sum()} objects of {data.path}: none of their boxes "
        f"has an area inside its image ({most.removeprefix(DROPPED)}).",
        FIXES[most],
    )


def vanishing_cause(case: Case, network: Network | None) -> Cause | None:
    """Boxes of less than a pixel at the size of the network."""
    if network is None:
        return None
    data = case.data
    counted = counted_things(data, case.found) & data.usable
    if not counted.any() or are_shares(data.bbox[counted]):
        return None
    augment = Augment(min_size=network.min_size, max_size=network.max_size)
    share = 1 - float(visible_boxes(data, augment)[counted].mean())
    if share < MANY:
        return None
    return Cause(
        "vanishing boxes",
        f"{share:.0%} of the {counted.sum()} boxes of {data.path} have a side below "
        f"{MIN_BOX_SIDE:g} px at data.min_size={network.min_size}, data.max_size="
        f"{network.max_size}: nothing of them is to be seen.",
        FIXES[VANISHED],
    )


def fractions_cause(case: Case) -> Cause:
    """Boxes that are no pixels; the annotations alone show it."""
    return Cause(
        "normalized boxes",
        f"The boxes of {case.data.path} are fractions: none reaches beyond the first pixel or so "
        f"of its image.",
        "COCO wants [x, y, width, height] in pixels, x and y of the upper left corner: multiply x "
        "and width by the image's width, y and height by its height.",
    )


def box_cause(case: Case) -> Cause:
    """Boxes that must be read in another way."""
    if not case.rescued:
        return fractions_cause(case)
    best = case.best
    name = BOX_FAULTS.get(best.reading.name, "box format")
    name = "normalized boxes" if are_fractions(case.data, case.found) else name
    if case.best_rank is None:
        then = f"AP is {best.AP:.3f} and AP50 {best.AP50:.3f}"
        now = f"classes ignored; now {case.AP_any:.3f} and {case.AP50_any:.3f}"
    else:
        then = f"they fit the detections better than those of {case.best_rank:.0%} of other images"
        now = f"now {case.pairing.own_rank:.0%}; chance: 50%"
    return Cause(
        name,
        f"The boxes of {case.data.path} are not where the detections are, and fit when "
        f"{best.reading.meant}: then {then} ({now}).",
        f"{best.reading.remedy}.",
    )


def name_cause(case: Case, network: Network | None) -> Cause:
    """Classes by other names."""
    trained = network.train_path if network is not None else None
    against = f"those of {trained}" if trained else "those that the network was trained on"
    return Cause(
        "label map",
        f"The classes of {case.data.path} are named otherwise than the network's: "
        f"{describe_names(case.data, case.naming)}. Renamed one to one, AP is "
        f"{case.AP_renamed:.3f}.",
        f"Compare its categories, and the category_id of its annotations, with {against}: ids and "
        f"names must mean the same in both. Then evaluate again, or train again if the training "
        f"file is the wrong one.",
    )


def exchange_cause(case: Case) -> Cause:
    """Annotations that belong to other images of the set."""
    pairing = case.pairing
    first, second = pairing.examples[0]
    return Cause(
        "wrong images",
        f"Annotations of {case.data.path} belong to other images: what is found in an image fits "
        f"its own boxes no better than any other's, but in {pairing.partners} of "
        f"{pairing.num_images} images those of one other (AP {pairing.AP:.3f}), such as in "
        f"{first} those of {second}.",
        "Correct file_name of the images, or image_id of the annotations: files were renamed, or "
        "a list was sorted or has slipped.",
    )


def threshold_cause(case: Case, whole: DetectionArrays, network: Network | None) -> Cause | None:
    """A threshold that leaves too little to make AP of."""
    few = len(whole) < FEW_DETECTIONS * case.evaluation.num_gt
    if network is None or not few or network.score_threshold <= HIGH_THRESHOLD:
        return None
    return Cause(
        "score threshold",
        f"The threshold hides the detections: {len(whole)} of them for {case.evaluation.num_gt} "
        f"objects have a score above postprocess.score_threshold={network.score_threshold:g}.",
        "Evaluate with postprocess.score_threshold=0.05, the paper's: AP is about the order of "
        "the detections, and weak ones cost nothing.",
    )


def unlabelled_cause(case: Case) -> Cause:
    """Images without boxes in which the network finds objects."""
    num_images, num_empty = len(case.found.evaluated), case.num_empty
    return Cause(
        "images without boxes",
        f"{num_empty} of {num_images} images of {case.data.path} have no box, but the network "
        f"finds objects in them: without these images AP is {case.AP_with_boxes:.3f}.",
        "If they show objects, label them or leave them out of the file. If they show none, train "
        "with more images that show none.",
    )


def size_cause(case: Case, network: Network | None, course: Course | None) -> Cause | None:
    """Images of another size than in training."""
    if network is None or network.trained_size is None or not len(case.data):
        return None
    if course is not None and (course.AP_before or 0.0) < LEARNED_AP:
        return None  # it had learned nothing at its own size
    height, width = map(int, np.median(case.data.sizes, axis=0))
    now = min(resized_size(height, width, network.min_size, network.max_size))
    then = min(resized_size(height, width, *network.trained_size))
    if max(now / then, then / now) < OTHER_SIZE:
        return None
    min_size, max_size = network.trained_size
    return Cause(
        "image size",
        f"The shorter side of these images is {now} px in the network, and would have been {then} "
        f"px in its training: objects are {now / then:.2g} times as large as those that it knows.",
        f"Evaluate with data.min_size={min_size} data.max_size={max_size}.",
    )


def anchor_cause(case: Case) -> Cause | None:
    """Boxes that no anchor reaches."""
    reach = case.reach
    if reach is None or reach.uncovered < MANY:
        return None
    small, large = reach.anchors
    verdict = (
        f"The anchors do not fit: {reach.uncovered:.0%} of the boxes have none with enough overlap "
        f"at the size of the network. Half of the boxes have a side of less than {reach.side:.3g} "
        f"px there; anchors have {small:.3g} to {large:.3g} px."
    )
    remedies = []
    if reach.proposals:
        best = reach.proposals[0]
        left = f"leaves {best.uncovered:.0%} of the boxes without one"
        remedies.append(f"{' '.join(best.typed)}, which {left}")
    if reach.side < small:
        factor = min(small / max(reach.side, 1.0), 4.0)
        remedies.append(f"data.min_size and data.max_size about {factor:.2g} times as large")
    remedy = "; or ".join(remedies) or "other anchors.sizes and anchors.ratios"
    return Cause("anchors", verdict, f"Train with {remedy}.")


def other_images_cause(case: Case) -> Cause | None:
    """A network that is sure of what it finds, in images that the boxes do not fit."""
    pairing = case.pairing
    if pairing is None or not pairing.by_chance or _median_best(case.found) < SURE:
        return None
    return Cause(
        "misplaced boxes",
        f"The network is sure of what it finds, but that fits the boxes of its image no better "
        f"than those of any other image ({pairing.own_rank:.0%} of them fit worse; chance: 50%).",
        f"Look at plots/predictions_1.png: in {case.data.path} file_name or image_id may belong to "
        f"other images than the boxes, or the boxes be in a form that was not recognized; or "
        f"these images show what the network was not trained on.",
    )


def alike_cause(case: Case, whole: DetectionArrays) -> Cause | None:
    """Without a training log: scores that say that there was no training."""
    if not len(whole):
        return Cause(
            "untrained",
            "There are no detections: no score is above the threshold.",
            "The network is untrained or its training failed: look at train.log of its run; "
            "postprocess.score_threshold=0 shows what it finds.",
        )
    low, high = np.quantile(whole.scores, [0.05, 0.95])
    if len(whole) < ALIKE_DETECTIONS or high > ALIKE * low:
        return None
    return Cause(
        "untrained",
        f"All scores are alike, {low:.3g} to {high:.3g}: the network says the same everywhere.",
        "It is untrained or its training failed: look at train.log of its run, and evaluate the "
        "checkpoint of a later step.",
    )


def undecided(case: Case, course: Course | None) -> Cause:
    """Nothing was found."""
    more = "" if course is not None else " The log of the training would tell more."
    seen = "classes, boxes and images agree as far as can be seen"
    if case.AP_any > max(PROVEN_AP, PROVEN_FACTOR * case.AP):
        seen = (
            f"the boxes are right, with an AP of {case.AP_any:.3f} when classes are ignored, and "
            f"the classes are not; if they are named otherwise in the annotations, there are too "
            f"few objects to see how"
        )
    if has_fallen(case.evaluation, course):
        more = (
            f" But the run had AP {course.AP_before:.3f} before: either its training went wrong "
            f"since, or {case.data.path} is unlike the data of that time."
        )
    return Cause(
        UNDECIDED,
        f"No cause was found: {seen}.{more}",
        "Look at plots/predictions_1.png; python -m scripts.check_data looks at the data, "
        "train.log at the training. If the loss still fell at the end, train longer.",
    )


def _median_best(found: DetectionArrays) -> float:
    """Median over the images of the best score; 0 for images without detections."""
    best = np.zeros(len(found.evaluated))
    np.maximum.at(best, np.searchsorted(found.evaluated, found.image_ids), found.scores)
    return float(np.median(best)) if len(best) else 0.0
