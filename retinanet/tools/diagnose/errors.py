"""What AP50 is lost to: wrong detections and missed objects by kind, and what each kind costs.

The kinds and their order are those of TIDE (Bolya et al. 2020, arXiv:2008.08115, section 2): a
wrong detection is, by the first that applies,

    localization  IoU 0.1 to 0.5 with an object of its class
    class         IoU 0.5 or more with an object of another class
    duplicate     IoU 0.5 or more with an object of its class, which a better one has detected
    background    IoU below 0.1 with every object
    both          all others: neither class nor place is right

and an object that nothing detects is missed, unless fixing a class or a localization would detect
it. A kind costs what AP50 gains when it alone is fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinanet.evaluation.matched import IOU, Matched, overlaps
from retinanet.fast.coco_eval import precision_at_recalls

# Below this IoU with every object a detection has nothing to do with any: t_b of the paper.
BACKGROUND_IOU = 0.1

KINDS = ("class", "localization", "both", "duplicate", "background", "missed")
CLASS, LOCALIZATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
NO_ERROR = -1


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One kind of error."""

    name: str  # of KINDS, or "false positives", "false negatives": all of them together
    count: int  # at any score
    count_at_score: int  # among the detections of at least the score that is looked at
    cost: float | None  # AP50 that fixing it would gain; None where there are no objects


@dataclass(frozen=True, slots=True)
class Errors:
    """Every error of a set of detections, and what its kind costs."""

    AP50: float | None  # of the detections as they are
    score: float  # the score that counts and pictures look at
    kinds: tuple[ErrorKind, ...]  # in the order of KINDS
    false_positives: ErrorKind
    false_negatives: ErrorKind
    kind: np.ndarray  # (D,) int64 of every detection in Matched: into KINDS, or NO_ERROR
    target: np.ndarray  # (D,) int64, the object that it overlaps and is wrong about; -1: none
    iou: np.ndarray  # (D,) with the target; without one the largest with any object, below 0.5
    missed: np.ndarray  # (G,) bool of every object: nothing detects it at any score
    missed_at_score: np.ndarray  # (G,) bool: nothing of at least ``score`` detects it


def find_errors(matched: Matched, score: float) -> Errors:
    """Tell apart and count the errors, and fix each kind in turn.

    Args:
        matched: from :func:`retinanet.evaluation.matched.match_detections`.
        score: errors of at least this score are counted once more.
    """
    ground_truth, label, scores = matched.ground_truth, matched.detections.label, matched.scores
    kind, target, iou = _tell_apart(matched)
    above, counted = scores >= score, ~matched.ignored
    # Objects that no detection of any score, or of at least ``score``, detects: all of them, and
    # without those that it nearly detects.
    nearly = (kind == CLASS) | (kind == LOCALIZATION)
    undetected, missed = np.ones((2, 2, len(matched.owner)), dtype=bool)
    for row, enough in enumerate((np.ones(len(scores), dtype=bool), above)):
        detected = matched.owner >= 0
        detected[detected] = enough[matched.owner[detected]]
        undetected[row] = missed[row] = ~detected
        missed[row, target[nearly & enough]] = False

    def ap(
        keep: np.ndarray,
        right: np.ndarray = matched.right,
        label: np.ndarray = label,
        gone: np.ndarray | None = None,
    ) -> float | None:
        """AP50 of the detections to ``keep``, without the objects that are ``gone``."""
        num_objects = matched.num_objects()
        if gone is not None:
            num_objects = num_objects - np.bincount(
                ground_truth.label[gone], minlength=len(num_objects)
            )
        return mean_ap(label[keep], scores[keep], right[keep], num_objects)

    AP50 = ap(counted)

    def error(
        name: str, all_of: np.ndarray, at_score: np.ndarray, after: float | None
    ) -> ErrorKind:
        # A class of which no object is left to ask for leaves the mean, as one without objects
        # does. When none is left of any class, nothing is wrong any more: AP50 is 1.
        cost = None if AP50 is None else (1.0 if after is None else after) - AP50
        return ErrorKind(name, int(all_of.sum()), int(at_score.sum()), cost)

    kinds = []
    for number in range(MISSED):
        of_kind = kind == number
        keep, right, fixed = counted & ~of_kind, matched.right.copy(), label.copy()
        if number in (CLASS, LOCALIZATION):
            # Put right where nothing detects its object, for one detection of each object: the
            # best of those with a wrong class or place, as in the paper's own program.
            near = np.flatnonzero(nearly)
            near = near[matched.owner[target[near]] < 0]
            near = near[np.argsort(-scores[near], kind="stable")]
            best = near[np.unique(target[near], return_index=True)[1]]
            best = best[of_kind[best]]
            keep[best] = right[best] = True
            fixed[best] = ground_truth.label[target[best]]
        kinds.append(error(KINDS[number], of_kind, of_kind & above, ap(keep, right, fixed)))
    kinds.append(error(KINDS[MISSED], *missed, ap(counted, gone=missed[0])))
    wrong = matched.wrong
    return Errors(
        AP50=AP50,
        score=score,
        kinds=tuple(kinds),
        false_positives=error("false positives", wrong, wrong & above, ap(counted & ~wrong)),
        false_negatives=error("false negatives", *undetected, ap(counted, gone=undetected[0])),
        kind=kind,
        target=target,
        iou=iou,
        missed=missed[0],
        missed_at_score=missed[1],
    )


def _tell_apart(matched: Matched) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(D,) kind of every detection, (D,) the object that it was about, (D,) their IoU.

    The object is the one of its class that it overlaps most, for errors of class the one of
    another class, and -1 where there is none; then the IoU is the largest with any.
    """
    label = matched.detections.label
    detection, gt, iou = overlaps(matched, BACKGROUND_IOU)
    order = np.lexsort((-gt, iou, detection))  # of equal IoUs the object that comes first
    detection, gt, iou = detection[order], gt[order], iou[order]
    same = matched.ground_truth.label[gt] == label[detection]
    most, best = np.zeros((2, len(label))), np.full((2, len(label)), -1)
    for row, chosen in enumerate((same, ~same)):  # of values for one place the last one stays
        most[row, detection[chosen]] = iou[chosen]
        best[row, detection[chosen]] = gt[chosen]
    (own, other), (own_target, other_target) = most, best

    # The first that applies: the last one here.
    kind = np.full(len(label), BOTH)
    kind[np.maximum(own, other) < BACKGROUND_IOU] = BACKGROUND
    kind[own >= IOU] = DUPLICATE
    kind[other >= IOU] = CLASS
    kind[(own >= BACKGROUND_IOU) & (own < IOU)] = LOCALIZATION
    kind[~matched.wrong] = NO_ERROR
    target = np.where(kind == CLASS, other_target, own_target)
    target[(kind == BOTH) | (kind == BACKGROUND) | (kind == NO_ERROR)] = -1
    iou = np.where(kind == CLASS, other, np.where(target >= 0, own, np.maximum(own, other)))
    return kind, target, iou


def mean_ap(
    label: np.ndarray, scores: np.ndarray, right: np.ndarray, num_objects: np.ndarray
) -> float | None:
    """COCO's AP at one IoU: mean over the classes that have objects; None without any.

    Args:
        label: (D,) of every detection.
        scores: (D,).
        right: (D,) bool.
        num_objects: (K,) of every class.
    """
    order = np.lexsort((-scores, label))
    right, starts = right[order], np.searchsorted(label[order], np.arange(len(num_objects) + 1))
    precision = []
    for k in np.flatnonzero(num_objects):
        mine = right[starts[k] : starts[k + 1]][None]
        true, false = mine.cumsum(axis=1, dtype=float), (~mine).cumsum(axis=1, dtype=float)
        precision.append(precision_at_recalls(true, false, num_objects[k]).mean())
    return float(np.mean(precision)) if precision else None
