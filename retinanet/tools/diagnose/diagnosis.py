"""Why AP is near zero: a verdict with its evidence and what fixes it.

What can be tried is tried: AP is computed anew with the classes ignored or renamed, with the boxes
read in another form or scaled, with the annotations exchanged between images. Where one of these
brings the AP back, that is the cause. Where none does, the network and its training are looked at.
"""

from __future__ import annotations

import numpy as np

from retinanet.boxes import box_area
from retinanet.data.coco import DROPPED, FLAT, CocoData
from retinanet.data.learnable import FIXES, VANISHED, are_shares, visible_boxes
from retinanet.data.transforms import MIN_BOX_SIDE, Augment, resized_size
from retinanet.evaluation.average_precision import Evaluation
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.matched import match_detections, overlaps
from retinanet.terminal import DEFAULT_WIDTH, LABELS, wrap
from retinanet.tools.anchor_coverage import best_overlaps, objects_at
from retinanet.tools.anchor_search import propose_anchors
from retinanet.tools.diagnose.box_format import are_fractions, check_boxes, fractions_cause
from retinanet.tools.diagnose.evidence import (
    PROVEN_AP,
    PROVEN_FACTOR,
    Case,
    Network,
    restrict,
    score,
    top_detections,
)
from retinanet.tools.diagnose.history import (
    FALLEN,
    TOO_EARLY,
    History,
    describe_history,
    too_early,
    training_causes,
)
from retinanet.tools.diagnose.image_ids import check_image_ids
from retinanet.tools.diagnose.label_map import check_classes
from retinanet.tools.diagnose.scored import Cause, Diagnosis

UNDECIDED = "undecided"  # a verdict that names no fault
# An AP below this is always explained.
NEAR_ZERO = 0.01
# A low one is looked at, and explained if a fault is found. Healthy runs pass through it. Mirrored
# boxes still give a network that has 0.5 on COCO 0.07: many objects lie in the middle.
LOW = 0.1
# AR says which objects have a box among the detections, AP whether those come first. In healthy
# runs AP is 0.4 to 0.8 of AR; classes in disorder bring it below 0.1.
FAR_BELOW_RECALL = 0.25
# Share of the boxes that are too small or without a good anchor, from which on that explains a
# failure (a run in which 29 % had no anchor learned its images by heart, thanks to
# matching.low_quality), and from which on it does so even while the loss falls.
MANY, NEARLY_ALL = 0.5, 0.9
# A threshold above this hides what AP is made of, its curve needs weak detections too, when it
# leaves fewer detections than this for each object.
HIGH_THRESHOLD, FEW_DETECTIONS = 0.1, 0.5
# The median over images of the best score, from which on a network is sure of its detections.
SURE = 0.3
# Scores of so many detections whose 5 % and 95 % quantiles differ by less than this factor are
# all alike.
ALIKE_DETECTIONS, ALIKE = 100, 1.3
# Objects that are so many times as large as in training, or as small, are hardly detected.
OTHER_SIZE = 2.0
# Lines of the log that a diagnosis may fill.
MOST_LINES = 25


def suspicious(evaluation: Evaluation) -> bool:
    """Whether an evaluation is worth looking into; cheap, and often true of healthy runs.

    Args:
        evaluation: of any data.
    """
    AP, AR = evaluation.metrics["AP"], evaluation.metrics["AR100"]
    if AP is None or not evaluation.num_gt:
        return False
    poor = [row for row in evaluation.per_class if row.num_gt and _is_poor(row.AP, row.AR100)]
    return AP < LOW or _is_poor(AP, AR) or len(poor) >= 2


def _is_poor(precision: float | None, recall: float | None) -> bool:
    """Whether AP is far below what AR promises, or next to nothing."""
    if precision is None:
        return False
    return precision < NEAR_ZERO or precision < FAR_BELOW_RECALL * (recall or 0.0)


def diagnose(
    data: CocoData,
    detections: DetectionArrays,
    evaluation: Evaluation | None,
    *,
    network: Network | None = None,
    history: History | None = None,
) -> Diagnosis | None:
    """Explain an AP near zero, or one far below what the boxes promise.

    Args:
        data: the ground truth.
        detections: what the network detected there.
        evaluation: of both; None for data without annotations.
        network: how the detections were made, for what concerns anchors and thresholds.
        history: of the training, for what concerns rates and losses.

    Returns:
        None where nothing is to be explained: no fault was found and AP is above 0.01 and not far
        below that of the run before, or there is nothing to be detected. Else always a verdict.
    """
    if evaluation is None or not suspicious(evaluation):
        return None
    case = Case(data, detections, evaluation, network, history)
    near_zero = evaluation.metrics["AP"] < NEAR_ZERO or _has_fallen(case)
    causes = _nothing_to_learn(case)
    nothing = bool(causes)
    if not nothing:
        causes = _annotation_faults(case)
    if not near_zero and (nothing or not causes):
        return None
    if near_zero:
        _measure_overlap(case)
        anchors = _anchors(case)
        if not nothing:
            causes += _likely(case, anchors, proven=bool(causes))
    _compare_ids(case)
    if history is not None:
        case.evidence += describe_history(history)
    return Diagnosis(evaluation.metrics["AP"], tuple(causes), tuple(case.evidence), case.numbers)


def _has_fallen(case: Case) -> bool:
    """Whether AP is far below what the run had before: then it is no lack of training."""
    history = case.history
    if history is None or not history.had_learned:
        return False
    return case.evaluation.metrics["AP"] < FALLEN * history.AP_before


def _nothing_to_learn(case: Case) -> list[Cause]:
    """What must be there before anything else can be wrong: ground truth, boxes, positives."""
    causes = [_no_ground_truth(case), _vanishing_boxes(case)]
    history = case.history
    if history is not None and history.without_objects and not history.was_good:
        causes += [c for c in training_causes(history) if c.name == "no positives"]
    return [cause for cause in causes if cause is not None]


def _annotation_faults(case: Case) -> list[Cause]:
    """Faults of the annotation file, each proven by the AP that undoing it gives back."""
    if not len(case.detections):
        return [fractions_cause(case.data)] if are_fractions(case) else []
    causes, data = [], case.data
    if case.AP < LOW or _is_poor(case.AP, case.evaluation.metrics["AR100"]):
        cause, data = check_boxes(case)
        causes.append(cause or check_image_ids(case))
    causes.append(check_classes(case, data))
    return [cause for cause in causes if cause is not None]


def _likely(case: Case, anchors: Cause | None, *, proven: bool) -> list[Cause]:
    """Causes that explain what is seen, the most certain first; never empty unless one is proven.

    What is certain of the training comes first; then what the network could not have learned;
    then that it learned little.
    """
    history = case.history
    blamed = history is not None and not history.was_good
    of_training = {c.name: c for c in training_causes(history)} if blamed else {}
    short = None if history is None or _has_fallen(case) else too_early(history)
    done = short is None or history.step >= history.total_steps
    collapsed = of_training.pop("collapsed", None)
    causes = [
        of_training.pop("untrained", None),
        _score_threshold(case),
        _image_size(case),
        *of_training.values(),
    ]
    if not proven:
        sure = (case.numbers["boxes_without_anchor"] or 0.0) >= NEARLY_ALL
        causes += [anchors if sure or done else None, collapsed]
        if done and not any(causes):
            causes.append(_images_without_boxes(case) or _misplaced_boxes(case))
        if history is None and not any(causes):
            causes.append(_all_alike(case))
        if not any(causes):
            causes.append(short)
        if anchors not in causes:
            causes.append(anchors)
        if not any(causes):
            causes.append(_undecided(case))
    return [cause for cause in causes if cause is not None]


# What the annotations lack


def _no_ground_truth(case: Case) -> Cause | None:
    """Objects that no detection can match, because their boxes have no area in the image."""
    data, objects = case.data, case.objects()
    if not objects.any() or (data.usable & objects).any():
        return None
    dropped = {what: count for what, count in data.repairs.items() if what in FIXES}
    most = max(dropped, key=dropped.get, default=FLAT)
    return Cause(
        "no ground truth",
        f"No detection can match the {objects.sum()} objects of {data.path}: none of their boxes "
        f"has an area inside its image ({most.removeprefix(DROPPED)}).",
        FIXES[most],
    )


def _vanishing_boxes(case: Case) -> Cause | None:
    """Boxes of less than a pixel at the size of the network."""
    data, network = case.data, case.network
    objects = case.objects() & data.usable
    if network is None or not objects.any() or are_shares(data.bbox[objects]):
        return None
    augment = Augment(min_size=network.min_size, max_size=network.max_size)
    share = 1 - float(visible_boxes(data, augment)[objects].mean())
    if share < MANY:
        return None
    return Cause(
        "vanishing boxes",
        f"{share:.0%} of the {objects.sum()} boxes of {data.path} have a side below "
        f"{MIN_BOX_SIDE:g} px at data.min_size={network.min_size}, "
        f"data.max_size={network.max_size}: nothing of them is to be seen.",
        FIXES[VANISHED],
    )


def _images_without_boxes(case: Case) -> Cause | None:
    """Images without boxes in which the network detects objects: without them AP is back."""
    data, image_ids = case.data, case.detections.evaluated
    kept = image_ids[np.isin(image_ids, data.image_ids[data.num_boxes() > 0])]
    num_empty = len(image_ids) - len(kept)
    if not num_empty:
        return None
    AP = score(data, restrict(case.detections, kept), case.evaluation.max_dets)
    case.numbers["AP_of_images_with_boxes"] = AP
    if max(PROVEN_AP, PROVEN_FACTOR * case.AP) >= AP:
        return None
    return Cause(
        "images without boxes",
        f"{num_empty} of {len(image_ids)} images of {data.path} have no box, but the network "
        f"detects objects in them: without these images AP is {AP:.3f}.",
        "If they show objects, label them or leave them out of the file. If they show none, train "
        "with more images that show none.",
    )


def _misplaced_boxes(case: Case) -> Cause | None:
    """A network that is sure of its detections, in images that the boxes do not fit."""
    detections = case.detections
    best = np.zeros(len(detections.evaluated))
    rows = np.searchsorted(detections.evaluated, detections.image_ids)
    np.maximum.at(best, rows, detections.scores)
    if not case.fits_no_image or np.median(best) < SURE:
        return None
    rank = case.numbers["rank_of_own_image"]
    return Cause(
        "misplaced boxes",
        f"The network is sure of its detections, but they fit the boxes of their image no better "
        f"than those of any other image ({rank:.0%} of them fit worse; chance: 50%).",
        f"Look at plots/predictions_1.png: in {case.data.path} file_name or image_id may belong to "
        f"other images than the boxes, or the boxes be in a form that was not recognized; or "
        f"these images show what the network was not trained on.",
    )


# How the network looks at the images


def _score_threshold(case: Case) -> Cause | None:
    """A threshold that leaves too little to make AP of."""
    network, num_detections, num_gt = case.network, len(case.whole), case.evaluation.num_gt
    few = num_detections < FEW_DETECTIONS * num_gt
    if network is None or not few or network.score_threshold <= HIGH_THRESHOLD:
        return None
    return Cause(
        "score threshold",
        f"The threshold hides the detections: {num_detections} of them for {num_gt} objects have "
        f"a score above postprocess.score_threshold={network.score_threshold:g}.",
        "Evaluate with postprocess.score_threshold=0.05, the paper's: AP is about the order of "
        "the detections, and weak ones cost nothing.",
    )


def _image_size(case: Case) -> Cause | None:
    """Images of another size than in training, unless nothing was learned at that size either."""
    network, history = case.network, case.history
    if network is None or network.trained_size is None or not len(case.data):
        return None
    if history is not None and not history.had_learned:
        return None
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


def _anchors(case: Case) -> Cause | None:
    """Boxes without an anchor, and anchors or sizes that would have one."""
    network = case.network
    if network is None:
        return None
    generator = network.generator
    objects = objects_at(case.data, min_size=network.min_size, max_size=network.max_size)
    if not len(objects.boxes):
        return None
    best = best_overlaps(objects, generator)  # (N,) IoU
    uncovered = float((best < network.positive_iou).float().mean())
    background = float((best < network.negative_iou).float().mean())
    side = float(box_area(objects.boxes).sqrt().median())
    case.numbers["boxes_without_anchor"] = uncovered
    case.evidence.append(
        f"{uncovered:.0%} of {len(best)} boxes have no anchor of IoU {network.positive_iou:g}, "
        f"{background:.0%} none of {network.negative_iou:g}; their median side is {side:.3g} px in "
        f"the network"
    )
    if uncovered < MANY:
        return None
    small = min(generator.sizes) * min(generator.scales)
    large = max(generator.sizes) * max(generator.scales)
    fixes = []
    for proposal in propose_anchors(objects, generator, network.positive_iou, uncovered)[:1]:
        left = f"leaves {proposal.uncovered:.0%} of the boxes without one"
        fixes.append(f"{' '.join(proposal.typed)}, which {left}")
    if side < small:
        factor = min(small / max(side, 1.0), 4.0)
        fixes.append(f"data.min_size and data.max_size about {factor:.2g} times as large")
    fix = "; or ".join(fixes) or "other anchors.sizes and anchors.ratios"
    return Cause(
        "anchors",
        f"The anchors do not fit: {uncovered:.0%} of the boxes have none with enough overlap at "
        f"the size of the network. Half of the boxes have a side of less than {side:.3g} px there; "
        f"anchors have {small:.3g} to {large:.3g} px.",
        f"Train with {fix}.",
    )


def _all_alike(case: Case) -> Cause | None:
    """Without a training log: scores as before any training."""
    scores = case.whole.scores
    if not len(scores):
        return Cause(
            "untrained",
            "There are no detections: no score is above the threshold.",
            "The network is untrained or its training failed: look at train.log of its run; "
            "postprocess.score_threshold=0 shows what it detects.",
        )
    low, high = np.quantile(scores, [0.05, 0.95])
    if len(scores) < ALIKE_DETECTIONS or high > ALIKE * low:
        return None
    return Cause(
        "untrained",
        f"All scores are alike, {low:.3g} to {high:.3g}, wherever the detections are.",
        "The network is untrained or its training failed: look at train.log of its run, and "
        "evaluate the checkpoint of a later step.",
    )


def _undecided(case: Case) -> Cause:
    """No check explains it."""
    seen = "classes, boxes and images agree as far as can be seen"
    if case.AP_any > max(PROVEN_AP, PROVEN_FACTOR * case.AP):
        seen = (
            f"the boxes are right, with an AP of {case.AP_any:.3f} when classes are ignored, and "
            f"the classes are not; if they are named otherwise in the annotations, there are too "
            f"few objects to see how"
        )
    more = "" if case.history is not None else " The log of the training would show more."
    if _has_fallen(case):
        more = (
            f" But the run had AP {case.history.AP_before:.3f} before: either its training went "
            f"wrong since, or {case.data.path} is unlike the data of that time."
        )
    return Cause(
        UNDECIDED,
        f"No cause was found: {seen}.{more}",
        "Look at plots/predictions_1.png; python -m scripts.check_data looks at the data, "
        "train.log at the training. If the loss still fell at the end, train longer.",
    )


# More evidence


def _measure_overlap(case: Case) -> None:
    """How well the objects are detected when classes are ignored."""
    matched = match_detections(case.data, case.detections)
    if not len(case.detections) or not len(matched.owner):
        return
    detection, gt, iou = overlaps(matched, np.finfo(float).tiny)
    top = top_detections(case.detections)[matched.detection_row]
    best, best_of_top = np.zeros((2, len(matched.owner)))
    np.maximum.at(best, gt, iou)
    np.maximum.at(best_of_top, gt, iou * top[detection])
    case.numbers["mean_best_iou"] = float(best.mean())
    case.evidence.append(
        f"mean IoU of the objects with their best detection {best.mean():.2f}, with the best of "
        f"an image's first 20 {best_of_top.mean():.2f}, classes ignored"
    )


def _compare_ids(case: Case) -> None:
    """Category ids that are not those of the training."""
    data, train_ids = case.data, case.network and case.network.train_ids
    if train_ids is None or train_ids == data.category_ids:
        return
    differ = [
        f"{name} {there}, here {here}"
        for name, there, here in zip(data.category_names, train_ids, data.category_ids, strict=True)
        if there != here
    ]
    more = ", ..." if len(differ) > 3 else ""
    case.evidence.append(f"category ids in training differ: {'; '.join(differ[:3])}{more}")


def describe(diagnosis: Diagnosis) -> list[str]:
    """A diagnosis for the log: verdict and fix, other causes, evidence.

    Args:
        diagnosis: from :func:`diagnose`.

    Returns:
        At most ``MOST_LINES`` lines of at most ``DEFAULT_WIDTH`` columns, unless a word is longer.
        Of what is only too early no evidence: diagnosis.json has it.
    """

    def wrapped(label: str, text: str) -> list[str]:
        return wrap(f"{label:<{LABELS}}{text}", DEFAULT_WIDTH)

    first, *others = diagnosis.causes
    lines = wrapped("diagnosis", f"AP {diagnosis.AP:.4f}: {first.name}. {first.verdict}")
    lines += wrapped("fix", first.fix)
    for cause in others[:2]:
        lines += wrapped("or else", f"{cause.name}. {cause.verdict}")
    for sentence in diagnosis.evidence if first.name != TOO_EARLY else ():
        more = wrapped("evidence", sentence)
        if len(lines) + len(more) > MOST_LINES:
            break
        lines += more
    return lines
