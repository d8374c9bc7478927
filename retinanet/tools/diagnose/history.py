"""A training run as the rows of its log tell it: rates, losses, steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retinanet.evaluation.coco import Evaluation
from retinanet.tools.expected_loss import ClassLoss, expected_class_loss, indifferent_score

# A loss that lost less than this share of its first value has not moved: rows of neighbouring
# steps differ by as much.
MOVED = 0.03
# A loss that grew to this many times its lowest or first value has exploded. At pi = 0.01 the first
# value is already above that of saying the same everywhere.
EXPLODED = 2.0
# Share of the latest rows that are compared with those before to see a loss fall.
LATEST = 0.25
# A share of the loss by which it falls from one such part of the rows to the next when it still
# falls.
FALLS = 0.01
# An AP below this share of that of the run's own evaluations is not that of other images alone.
FALLEN = 0.1
# From here on an AP says that a network has learned something.
LEARNED_AP = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A training run until an evaluation."""

    rows: Sequence[dict[str, Any]] = field(repr=False)  # of metrics.jsonl, those of steps
    step: int
    total_steps: int
    optimizer: str  # "sgd" or "adamw"
    lr: float  # after the warm-up, scaled to the batch
    warmup_steps: int
    batch_size: int
    anchors: float | None  # of an image; None: not known
    num_classes: int
    prior: float  # model.prior
    alpha: float | Sequence[float] | None  # loss.alpha, as resolved
    gamma: float
    focal: bool  # loss.name=focal with loss.normalizer=batch
    loaded: bool  # the run started from the weights of a checkpoint
    AP_before: float | None = None  # the highest of its own evaluations; None: there was none
    AP_own: float | None = None  # of its own evaluation of these weights

    def column(self, name: str) -> np.ndarray:
        """The values of one column that are numbers."""
        values = [row.get(name) for row in self.rows]
        return np.array([value for value in values if isinstance(value, int | float)], dtype=float)

    def level(self, name: str) -> np.ndarray:
        """The values of a column that depends on objects, of the steps that had any.

        Both losses are next to 0 in a step without a positive anchor, whose loss nothing
        divides. Rows are means over steps, so each is divided by its share of steps with
        positives; rows without one are left out.
        """
        values = []
        for row in self.rows:
            value, positives = row.get(name), row.get("positives")
            share = row.get("with_objects")
            if not isinstance(value, int | float) or positives == 0:
                continue
            values.append(value / share if isinstance(share, int | float) and share > 0 else value)
        return np.array(values, dtype=float)

    @property
    def without_objects(self) -> bool:
        """Whether the rows say that no step had a positive anchor."""
        positives = self.column("positives")
        return len(positives) > 0 and not positives.any()

    @property
    def peak_lr(self) -> float:
        """The largest rate of the rows; without any, that of after the warm-up."""
        rates = self.column("lr")
        return float(rates.max()) if len(rates) else self.lr


@dataclass(frozen=True, slots=True)
class Trend:
    """One loss from the first row to the latest."""

    first: float
    lowest: float
    before: float  # mean of the part of the rows before the latest part
    latest: float  # mean of the latest part

    @property
    def moved(self) -> bool:
        """Whether it has fallen since the first step."""
        return self.latest < (1 - MOVED) * self.first

    @property
    def falling(self) -> bool:
        """Whether it still falls."""
        return self.latest < (1 - FALLS) * self.before

    @property
    def exploded(self) -> bool:
        """Whether it is far above where it was."""
        return self.latest > EXPLODED * max(self.lowest, 1e-3) and self.latest > 1.2 * self.first


def has_fallen(evaluation: Evaluation, course: Course | None) -> bool:
    """Whether AP is far below what the run had before: then it is no lack of training."""
    if course is None or (course.AP_before or 0.0) < LEARNED_AP:
        return False
    return evaluation.metrics["AP"] < FALLEN * course.AP_before


def was_good(course: Course) -> bool:
    """Whether these very weights had an AP: then nothing was wrong with their training."""
    return (course.AP_own or 0.0) >= LEARNED_AP


def trend(values: np.ndarray) -> Trend | None:
    """Where a column comes from and where it goes; None with fewer than two rows."""
    if len(values) < 2:
        return None
    part = max(1, round(LATEST * len(values)))
    before = values[-2 * part : -part]
    return Trend(values[0], values.min(), before.mean(), values[-part:].mean())


def start_losses(course: Course) -> ClassLoss | None:
    """The class loss at ``model.prior`` everywhere, for the positives of the rows."""
    counts = anchor_counts(course)
    if counts is None or not course.focal:
        return None
    return expected_class_loss(course.alpha, course.gamma, course.prior, **counts)


def constant_loss(course: Course) -> float | None:
    """The lowest class loss of a network that says the same of all anchors."""
    counts = anchor_counts(course)
    alpha = 0.5 if course.alpha is None else course.alpha
    if counts is None or not course.focal or not isinstance(alpha, int | float):
        return None
    if not 0 < alpha < 1 or not counts["num_positives"]:
        return None
    pairs = course.num_classes * (counts["num_positives"] + counts["num_background"])
    score = indifferent_score(alpha, course.gamma, counts["num_positives"] / pairs)
    return expected_class_loss(course.alpha, course.gamma, score, **counts).total


def anchor_counts(course: Course) -> dict[str, float] | None:
    """Anchors of a step that has objects; the few ignored ones are taken for background."""
    positives = course.level("positives")
    if course.anchors is None or not len(positives):
        return None
    mean = float(positives.mean())
    return {
        "num_classes": course.num_classes,
        "num_positives": mean,
        "num_background": max(course.anchors * course.batch_size - mean, 0.0),
    }


def describe(course: Course) -> list[str]:
    """The course as evidence, one line each."""
    loss, box = trend(course.level("loss/class")), trend(course.level("loss/box"))
    if loss is None or box is None:
        return [f"training: step {course.step} of {course.total_steps}, no rows to look at"]
    constant = constant_loss(course)
    same = "" if constant is None else f"; one score for all anchors costs {constant:.4g}"
    norms = course.column("grad_norm")
    norm = f", gradient norm {norms[-1]:.3g}" if len(norms) else ""
    bad = int(course.column("bad_steps").sum())
    return [
        f"class loss {loss.first:.4g} at the start, {loss.latest:.4g} now, {loss.before:.4g} "
        f"before{same}",
        f"box loss {box.first:.4g} at the start, {box.latest:.4g} now",
        f"step {course.step} of {course.total_steps}, warm-up {course.warmup_steps}; learning rate "
        f"at most {course.peak_lr:.3g}{norm}, {bad} bad steps",
    ]
