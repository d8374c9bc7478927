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
from typing import NamedTuple

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


class Curve(NamedTuple):
    """What AP is computed from."""

    label: np.ndarray  # (D,)
    scores: np.ndarray  # (D,)
    right: np.ndarray  # (D,) bool; what is not is wrong
    num_objects: np.ndarray  # (K,)


def find_errors(matched: Matched, score: float) -> Errors:
    """Tell apart and count the errors, and fix each kind in turn.

    Args:
        matched: from :func:`retinanet.evaluation.matched.match_detections`.
        score: errors of at least this score are counted once more.
    """
    kind, target, iou = tell_apart(matched)
    above = matched.scores >= score
    missed = _missed(matched, kind, target, -np.inf)
    missed_at_score = _missed(matched, kind, target, score)
    as_is = _with_kind_fixed(matched, kind, target, NO_ERROR)
    AP50 = mean_ap(as_is)

    def error(name: str, every: np.ndarray, at_score: np.ndarray, fixed: Curve) -> ErrorKind:
        # A class of which no object is left to ask for leaves the mean, as one without objects
        # does. When none is left of any class, nothing is wrong any more: AP50 is 1.
        after = mean_ap(fixed)
        cost = None if AP50 is None else (1.0 if after is None else after) - AP50
        return ErrorKind(name, int(every.sum()), int(at_score.sum()), cost)

    def without_objects(lost: np.ndarray) -> Curve:
        counts = np.bincount(matched.truth.label[lost], minlength=matched.num_classes)
        return as_is._replace(num_objects=as_is.num_objects - counts)

    kinds = [
        error(
            KINDS[number],
            kind == number,
            (kind == number) & above,
            _with_kind_fixed(matched, kind, target, number),
        )
        for number in range(MISSED)
    ]
    kinds.append(error(KINDS[MISSED], missed, missed_at_score, without_objects(missed)))
    only_right = Curve(*(column[as_is.right] for column in as_is[:3]), as_is.num_objects)
    undetected = matched.owner < 0
    return Errors(
        AP50=AP50,
        score=score,
        kinds=tuple(kinds),
        false_positives=error("false positives", matched.wrong, matched.wrong & above, only_right),
        false_negatives=error(
            "false negatives",
            undetected,
            ~_detected_at(matched, score),
            without_objects(undetected),
        ),
        kind=kind,
        target=target,
        iou=iou,
        missed=missed,
        missed_at_score=missed_at_score,
    )


def tell_apart(matched: Matched) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(D,) kind of every detection, (D,) the object that it was about, (D,) their IoU.

    The object is the one of its class that it overlaps most, for errors of class the one of
    another class, and -1 where there is none; then the IoU is the largest with any.
    """
    label, D = matched.detections.label, len(matched.scores)
    detection, gt, iou = overlaps(matched, BACKGROUND_IOU)
    same = matched.truth.label[gt] == label[detection]
    own, own_target = _most(detection[same], gt[same], iou[same], D)
    other, other_target = _most(detection[~same], gt[~same], iou[~same], D)

    # The first that applies: the last one here.
    kind = np.full(D, BOTH)
    kind[np.maximum(own, other) < BACKGROUND_IOU] = BACKGROUND
    kind[own >= IOU] = DUPLICATE
    kind[other >= IOU] = CLASS
    kind[(own >= BACKGROUND_IOU) & (own < IOU)] = LOCALIZATION
    kind[~matched.wrong] = NO_ERROR
    target = np.where(kind == CLASS, other_target, own_target)
    target[(kind == BOTH) | (kind == BACKGROUND) | (kind == NO_ERROR)] = -1
    iou = np.where(kind == CLASS, other, np.where(target >= 0, own, np.maximum(own, other)))
    return kind, target, iou


def _most(
    detection: np.ndarray, gt: np.ndarray, iou: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(count,) largest IoU of every detection, and its object; 0 and -1 without a pair."""
    order = np.lexsort((-gt, iou, detection))  # of equal IoUs the object that comes first
    most, target = np.zeros(count), np.full(count, -1)
    # Of values for one place the last one stays.
    most[detection[order]] = iou[order]
    target[detection[order]] = gt[order]
    return most, target


def _missed(matched: Matched, kind: np.ndarray, target: np.ndarray, score: float) -> np.ndarray:
    """(G,) bool: objects that no detection of at least ``score`` detects, or nearly detects."""
    missed = ~_detected_at(matched, score)
    nearly = ((kind == CLASS) | (kind == LOCALIZATION)) & (matched.scores >= score)
    missed[target[nearly]] = False
    return missed


def _detected_at(matched: Matched, score: float) -> np.ndarray:
    """(G,) bool: objects detected with at least ``score``."""
    detected = matched.owner >= 0
    detected[detected] = matched.scores[matched.owner[detected]] >= score
    return detected


def _with_kind_fixed(matched: Matched, kind: np.ndarray, target: np.ndarray, number: int) -> Curve:
    """The detections after fixing one kind of error; ``NO_ERROR``: as they are.

    A wrong class or place is put right where nothing detects its object, for one detection of each
    object: the best of those with a wrong class or place, as in the paper's own program. All
    others of the kind are taken away.
    """
    label, right, keep = matched.detections.label.copy(), matched.right.copy(), ~matched.ignored
    if number != NO_ERROR:
        keep &= kind != number
    if number in (CLASS, LOCALIZATION):
        near = np.flatnonzero((kind == CLASS) | (kind == LOCALIZATION))
        near = near[matched.owner[target[near]] < 0]
        near = near[np.argsort(-matched.scores[near], kind="stable")]
        best = near[np.unique(target[near], return_index=True)[1]]
        best = best[kind[best] == number]
        keep[best] = right[best] = True
        label[best] = matched.truth.label[target[best]]
    return Curve(label[keep], matched.scores[keep], right[keep], matched.num_objects())


def mean_ap(curve: Curve) -> float | None:
    """COCO's AP at one IoU: mean over the classes that have objects; None without any."""
    order = np.lexsort((-curve.scores, curve.label))
    right = curve.right[order]
    starts = np.searchsorted(curve.label[order], np.arange(len(curve.num_objects) + 1))
    precision = []
    for k in np.flatnonzero(curve.num_objects):
        mine = right[starts[k] : starts[k + 1]][None]
        true, false = mine.cumsum(axis=1, dtype=float), (~mine).cumsum(axis=1, dtype=float)
        precision.append(precision_at_recalls(true, false, curve.num_objects[k]).mean())
    return float(np.mean(precision)) if precision else None
