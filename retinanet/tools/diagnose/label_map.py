"""Whether the classes of the annotations are those of the network, by another name."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.evaluation.detect import DetectionArrays
from retinanet.tools.diagnose.overlaps import pairs_of, score

# A detection shows which class an object is taken for when it overlaps by this.
SEEN_IOU = 0.5
# Added to the number of objects of a class, so that one lucky object does not name it.
SMOOTHING = 3.0
# Objects of the renamed classes, over all.
LEAST_RENAMED = 10
# By how much, of 1, renaming must make more objects right in images that it was not learned
# from, and by how many standard deviations. Weak networks reach neither: their mistakes are not
# one to one.
LEAST_GAIN = 0.2
LEAST_SIGNIFICANCE = 4.0


class Naming(NamedTuple):
    """The best one-to-one renaming of classes."""

    new: np.ndarray  # (K,) int64: ground-truth class g is what the network calls new[g]
    counts: np.ndarray  # (K, K) int64: objects of class g taken for class k by the best detection
    gain: float  # share of the renamed classes' objects that it makes right, in other images
    significant: bool

    @property
    def moved(self) -> np.ndarray:
        """Classes that get another name, most objects first."""
        moved = np.flatnonzero(self.new != np.arange(len(self.new)))
        return moved[np.argsort(-self.counts[moved, self.new[moved]], kind="stable")]


def find_naming(data: CocoData, found: DetectionArrays) -> Naming:
    """Rename classes so that detections are right, and try it on images it was not made from.

    Args:
        data: the ground truth.
        found: the detections.
    """
    halves = _taken_for(data, found)  # (2, K, K)
    counts = halves.sum(axis=0)
    trials = [_trial(halves[i], halves[1 - i]) for i in range(2)]
    before, after, variance, classes, objects = np.array(trials).T
    enough = (classes >= 2).all() and objects.sum() >= LEAST_RENAMED
    gain = float((after - before).mean())
    deviation = float(np.sqrt(variance.sum()) / 2)
    return Naming(
        _renaming(counts),
        counts,
        gain,
        bool(enough and gain > max(LEAST_GAIN, LEAST_SIGNIFICANCE * deviation)),
    )


def renamed(data: CocoData, new: np.ndarray) -> CocoData:
    """The data with its classes renamed."""
    return dataclasses.replace(data, labels=new[data.labels])


def score_renamed(data: CocoData, found: DetectionArrays, naming: Naming) -> float:
    """AP after the renaming."""
    return score(renamed(data, naming.new), found)


def _taken_for(data: CocoData, found: DetectionArrays) -> np.ndarray:
    """(2, K, K) objects of class g whose best detection has label k, in each half of the images."""
    K = len(data.category_names)
    pairs = pairs_of(data, found, np.ones(len(found), dtype=bool))
    seen = pairs.iou >= SEEN_IOU
    detection, thing = pairs.detection[seen], pairs.thing[seen]
    order = np.lexsort((-found.scores[detection], thing))
    thing, first = np.unique(thing[order], return_index=True)
    label = found.labels[detection[order][first]]
    image = np.searchsorted(data.first, thing, side="right") - 1
    counts = np.zeros((2, K, K), dtype=np.int64)
    np.add.at(counts, (image % 2, data.labels[thing], label), 1)
    return counts


def _renaming(counts: np.ndarray) -> np.ndarray:
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


def _trial(learned: np.ndarray, held_out: np.ndarray) -> tuple[float, float, float, int, int]:
    """A renaming learned on one half of the images, tried on the other.

    Only classes count that get the name of another class which is to be seen as well, and is not
    seen by that name: where cups are all taken for bowls and there is no bowl, or bowls are bowls,
    nothing says that the names are wrong.

    Returns:
        Share of right objects before and after, mean over the classes; variance of the
        difference; renamed classes; their objects.
    """
    new = _renaming(learned)
    total = held_out.sum(axis=1)
    g = np.flatnonzero(new != np.arange(len(new)))
    both = learned + held_out
    lost = both.diagonal() < 0.5 * both.sum(axis=1)  # seen, and not by their names
    g = g[(total[g] > 0) & lost[new[g]] & (learned[g, new[g]] > 0)]
    if not len(g):
        return 0.0, 0.0, 0.0, 0, 0
    before, after = held_out[g, g] / total[g], held_out[g, new[g]] / total[g]
    variance = ((before + after) / total[g]).sum() / len(g) ** 2
    return before.mean(), after.mean(), variance, len(g), int(total[g].sum())


def describe_names(data: CocoData, naming: Naming) -> str:
    """The rule behind a renaming if there is one, else its clearest examples."""
    moved, new = naming.moved, naming.new
    names = data.category_names
    by_id = np.argsort(np.argsort(data.category_ids))  # rank of every label by category id
    shift = (by_id[new[moved]] - by_id[moved]) % len(names)
    for step, word in ((1, "one too low"), (len(names) - 1, "one too high")):
        if len(names) > 2 and (shift == step).all():
            return f"the category ids are {word}: {_examples(names, naming, 1)}"
    alphabetical = np.argsort(np.argsort(names))
    for order in (alphabetical, np.argsort(alphabetical)):
        if len(moved) > 2 and (by_id[new[moved]] == order[moved]).all():
            return f"one of them numbers the classes by name: {_examples(names, naming, 1)}"
    return _examples(names, naming, 3)


def _examples(names: tuple[str, ...], naming: Naming, most: int) -> str:
    shown = [f"{names[g]!r} is found as {names[naming.new[g]]!r}" for g in naming.moved[:most]]
    more = len(naming.moved) - len(shown)
    return ", ".join(shown) + (f", and {more} more" if more > 0 else "")
