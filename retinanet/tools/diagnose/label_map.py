"""Whether the classes of the annotations are those of the network, by another name."""

from __future__ import annotations

import dataclasses

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.matched import match_detections, overlaps
from retinanet.tools.diagnose.evidence import Case, score
from retinanet.tools.diagnose.scored import Cause

# A detection shows which class an object is taken for when it overlaps by this.
SEEN_IOU = 0.5
# Added to the number of objects of a class, so that one lucky object does not name it.
SMOOTHING = 3.0
# A class is renamed when more than this share of its objects is taken for the other class, and so
# many times as many as for its own; at least so many classes must be.
RENAMED_SHARE, RENAMED_MORE, LEAST_CLASSES = 0.5, 2.0, 2
# Renaming must give this AP, and so many times that of the classes as they are.
RENAMED_AP, RENAMED_FACTOR = 0.02, 1.15


def check_classes(case: Case, data: CocoData) -> Cause | None:
    """Classes by other names: AP rises when they are renamed one to one.

    Args:
        case: what is diagnosed.
        data: the ground truth, with its boxes as they should be.
    """
    counts = taken_for(data, case)
    new = best_names(counts)
    moved = np.flatnonzero(new != np.arange(len(new)))
    moved = moved[np.argsort(-counts[moved, new[moved]], kind="stable")]
    names = data.category_names
    renamed = dataclasses.replace(data, labels=new[data.labels])
    AP = score(renamed, case.detections)
    case.numbers |= {
        "AP_renamed": AP,
        "renaming": {names[g]: names[new[g]] for g in moved},
    }
    if len(moved):
        case.evidence.append(f"classes renamed one to one: AP {AP:.3f}")
    before = case.AP if data is case.data else score(data, case.detections)
    if not is_clear(counts, new) or max(RENAMED_AP, RENAMED_FACTOR * before) >= AP:
        return None
    path = case.network.train_path if case.network is not None else None
    against = f"those of {path}" if path else "those that the network was trained on"
    return Cause(
        "label map",
        f"The classes of {data.path} are named otherwise than the network's: "
        f"{_describe(data, new, moved)}. Renamed one to one, AP is {AP:.3f}.",
        f"Compare its categories, and the category_id of its annotations, with {against}: ids and "
        f"names must mean the same in both. Then evaluate again, or train again if the training "
        f"file is the wrong one.",
    )


def taken_for(data: CocoData, case: Case) -> np.ndarray:
    """(K, K) objects of class g whose best detection has label k."""
    matched = match_detections(data, case.detections)
    detection, gt, _ = overlaps(matched, SEEN_IOU)
    order = np.lexsort((-matched.scores[detection], gt))
    gt, first = np.unique(gt[order], return_index=True)
    counts = np.zeros((matched.num_classes,) * 2, dtype=np.int64)
    label = matched.detections.label[detection[order][first]]
    np.add.at(counts, (matched.truth.label[gt], label), 1)
    return counts


def best_names(counts: np.ndarray) -> np.ndarray:
    """(K,) one-to-one names for the classes of (K, K) counts, the clearest first.

    What is left over keeps its name where it is free.
    """
    K = len(counts)
    new = np.full(K, -1)
    free = np.ones(K, dtype=bool)
    rate = counts / (counts.sum(axis=1, keepdims=True) + SMOOTHING)
    rate += 1e-9 * np.eye(K)  # of equals its own
    for g, k in zip(*np.unravel_index(np.argsort(-rate, axis=None), rate.shape), strict=True):
        if rate[g, k] <= 0:
            break
        if new[g] < 0 and free[k]:
            new[g], free[k] = k, False
    left = np.flatnonzero(new < 0)
    new[left] = np.flatnonzero(free)
    return new


def is_clear(counts: np.ndarray, new: np.ndarray) -> bool:
    """Whether enough objects say that classes have changed their names, and not only one.

    Where cups are all taken for bowls and there is no bowl, or bowls are bowls, nothing says that
    the names are wrong: the class whose name is taken must be taken for another one too.
    """
    total, own = counts.sum(axis=1), counts.diagonal()
    g = np.arange(len(new))
    taken = counts[g, new]
    lost = (taken > RENAMED_SHARE * (total + SMOOTHING)) & (taken > RENAMED_MORE * own) & (new != g)
    lost &= (2 * own < total)[new]
    return lost.sum() >= LEAST_CLASSES


def _describe(data: CocoData, new: np.ndarray, moved: np.ndarray) -> str:
    """The rule behind a renaming if there is one, else its clearest examples."""
    names = data.category_names
    by_id = np.argsort(np.argsort(data.category_ids))  # number of every label, by category id
    shift = (by_id[new[moved]] - by_id[moved]) % len(names)
    alphabetical = np.argsort(np.argsort(names))
    rule = ""
    if len(names) > 2 and (shift == 1).all():
        rule = "the category ids are one too low: "
    elif len(names) > 2 and (shift == len(names) - 1).all():
        rule = "the category ids are one too high: "
    elif len(moved) > 2 and any(
        (by_id[new[moved]] == order[moved]).all()
        for order in (alphabetical, np.argsort(alphabetical))
    ):
        rule = "one of them numbers the classes by name: "
    shown = moved[: 1 if rule else 3]
    examples = ", ".join(f"{names[g]!r} is detected as {names[new[g]]!r}" for g in shown)
    more = len(moved) - len(shown)
    return rule + examples + (f", and {more} more" if more else "")
