"""What the rows of a training log say about a low AP: rates, losses, steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retinanet.analysis.causes import TOO_EARLY, Cause
from retinanet.training.expect import (
    MAX_BACKGROUND_RATIO,
    ClassLoss,
    balancing_prior,
    expected_class_loss,
    indifferent_score,
)

# Learning rates, after scaling to the batch, that any recipe in configs/experiment, its sources or
# the built-in set uses, with a factor of 10 of room below and 3 above.
USUAL_RATES = {"sgd": (1e-4, 0.3), "adamw": (1e-6, 3e-3)}
# A loss that lost less than this share of its first value has not moved: rows of neighbouring
# steps differ by as much.
MOVED = 0.03
# A loss that grew to this many times its lowest or first value has exploded. At pi = 0.01 the first
# value is already above that of saying the same everywhere.
EXPLODED = 2.0
# Steps from which on a loss that has not moved means something: warm-ups begin with a tenth to a
# thousandth of the rate.
FEW_STEPS = 20
# The class loss of a network that finds something is below this share of the lowest that one score
# for all anchors can have. In runs that came to AP 0.25, it was 0.9 after 60 steps.
SAYS_THE_SAME = 0.97
# Share of the latest rows that are compared with those before to see a loss fall.
LATEST = 0.25
# A share of the loss by which it falls from one such part of the rows to the next when it still
# falls.
FALLS = 0.01
# Of a rate that is still rising.
WARMING = 0.5
# Within this factor of the loss of one score for all anchors it is that.
SAME = 1.05
# Above, an untrained network gives the background more than the objects can balance; the paper
# has 0.01, and 0.1 still trains on the built-in set.
HIGH_PRIOR = 0.1
# Between, the paper's table 1b finds its best values, from 0.1 to 0.75, with room.
SMALL_ALPHA, LARGE_ALPHA = 0.01, 0.99


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

    def column(self, name: str) -> np.ndarray:
        """The values of one column that are numbers."""
        values = [row.get(name) for row in self.rows]
        return np.array([value for value in values if value is not None], dtype=float)


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


def trend(values: np.ndarray) -> Trend | None:
    """Where a column comes from and where it goes; None with fewer than two rows."""
    if len(values) < 2:
        return None
    part = max(1, round(LATEST * len(values)))
    before = values[-2 * part : -part]
    return Trend(values[0], values.min(), before.mean(), values[-part:].mean())


def start_losses(course: Course) -> ClassLoss | None:
    """The class loss at ``model.prior`` everywhere, for the positives of the rows."""
    counts = _counts(course)
    if counts is None or not course.focal:
        return None
    return expected_class_loss(course.alpha, course.gamma, course.prior, **counts)


def constant_loss(course: Course) -> float | None:
    """The lowest class loss of a network that says the same of all anchors."""
    counts = _counts(course)
    alpha = 0.5 if course.alpha is None else course.alpha
    if counts is None or not course.focal or not isinstance(alpha, int | float):
        return None
    if not 0 < alpha < 1 or not counts["num_positives"]:
        return None
    pairs = course.num_classes * (counts["num_positives"] + counts["num_background"])
    score = indifferent_score(alpha, course.gamma, counts["num_positives"] / pairs)
    return expected_class_loss(course.alpha, course.gamma, score, **counts).total


def _counts(course: Course) -> dict[str, float] | None:
    """Anchors of a step; the few ignored ones are taken for background."""
    positives = course.column("positives")
    if course.anchors is None or not len(positives):
        return None
    mean = float(positives.mean())
    return {
        "num_classes": course.num_classes,
        "num_positives": mean,
        "num_background": max(course.anchors * course.batch_size - mean, 0.0),
    }


def causes_of(course: Course) -> list[Cause]:
    """What in the training explains an AP near zero, the most certain first."""
    loss, box = trend(course.column("loss/class")), trend(course.column("loss/box"))
    found = [
        _untrained(course),
        _diverged(course, loss, box),
        _unbalanced(course),
        _too_slow(course, loss),
        _same_everywhere(course, loss),
    ]
    return [cause for cause in found if cause is not None]


def _untrained(course: Course) -> Cause | None:
    if course.step >= 2 or course.loaded:
        return None
    return Cause(
        "untrained",
        f"The network is untrained: these are the weights after step {course.step}.",
        "Evaluate a checkpoint of later steps, or train: python train.py with the settings of "
        "this run and more schedule.epochs.",
    )


def _diverged(course: Course, loss: Trend | None, box: Trend | None) -> Cause | None:
    bad = int(course.column("bad_steps").sum())
    low, high = USUAL_RATES[course.optimizer]
    peak = _peak(course)
    exploded = [
        f"the {name} loss rose from {t.lowest:.3g} to {t.latest:.3g}"
        for name, t in (("class", loss), ("box", box))
        if t is not None and t.exploded
    ]
    if bad:
        exploded.append(f"{bad} steps were not finite")
    if not exploded and (peak <= high or _learned(course, loss)):
        return None
    if not exploded and loss is not None:
        exploded.append(f"the class loss stopped at {loss.latest:.3g}")
    what = " and ".join(exploded) or "no loss is recorded"
    unusual = f" (usual with {course.optimizer}: {low:g} to {high:g})" if peak > high else ""
    return Cause(
        "learning rate too high",
        f"Training diverged: {what}; the learning rate reached {peak:.3g}{unusual}.",
        f"Lower optim.lr to a tenth (it is {course.lr:g} after scaling to the batch), and start "
        f"anew with overwrite=true; schedule.warmup_steps={max(500, 2 * course.warmup_steps)} and "
        f"optim.max_grad_norm=10 help too.",
    )


def _learned(course: Course, loss: Trend | None) -> bool:
    """Whether the class loss is clearly below that of saying the same everywhere, or still falls.

    Where that value is not known: whether it fell.
    """
    if loss is None:
        return False
    constant = constant_loss(course)
    if constant is None:
        return loss.moved
    return loss.latest < SAYS_THE_SAME * constant


def _unbalanced(course: Course) -> Cause | None:
    """pi, alpha and gamma of a start in which one side drowns the other."""
    start = start_losses(course)
    if start is None or course.loaded:
        return None
    if not start.positives:
        return Cause(
            "alpha",
            f"Nothing pulls towards the objects: the loss of the positives is 0 with "
            f"loss.alpha={course.alpha}.",
            "Set loss.alpha=0.25, the paper's with loss.gamma=2.",
        )
    if _learned(course, trend(course.column("loss/class"))):
        return None
    if start.ratio <= MAX_BACKGROUND_RATIO or course.prior < HIGH_PRIOR:
        return _extreme_alpha(course)
    prior = balancing_prior(course.alpha, course.gamma, **_counts(course))
    return Cause(
        "prior",
        f"Background drowned the objects: at model.prior={course.prior:g}, "
        f"loss.alpha={course.alpha}, loss.gamma={course.gamma:g} it makes up "
        f"{start.background / start.total:.1%} of the first class loss, {start.total:.4g}.",
        f"Set model.prior=0.01, the paper's (at model.prior={prior:.2g} both sides weigh the "
        f"same), and start anew.",
    )


def _extreme_alpha(course: Course) -> Cause | None:
    if not isinstance(course.alpha, int | float) or SMALL_ALPHA <= course.alpha <= LARGE_ALPHA:
        return None
    return Cause(
        "alpha",
        f"loss.alpha={course.alpha:g} weighs objects with {course.alpha:g} and background with "
        f"{1 - course.alpha:g}: the class loss cannot tell them apart.",
        "Set loss.alpha=0.25 with loss.gamma=2, the paper's, and start anew.",
    )


def _too_slow(course: Course, loss: Trend | None) -> Cause | None:
    """The loss has not moved, and the rate says why."""
    if loss is None or loss.moved or loss.exploded or course.step < FEW_STEPS:
        return None
    low, _ = USUAL_RATES[course.optimizer]
    peak, norms = _peak(course), course.column("grad_norm")
    stands = f"the class loss stands at {loss.latest:.4g} after {course.step} steps"
    if len(norms) and not norms.any():
        return Cause(
            "frozen",
            f"Nothing is trained: the gradient is 0, and {stands}.",
            "Lower model.frozen_stages; look at loss.alpha and loss.box_weight, which must not "
            "silence both losses.",
        )
    if peak >= low and course.step <= course.warmup_steps and peak < WARMING * course.lr:
        return _warming(course, stands, peak)
    if course.lr < low:
        return Cause(
            "learning rate too low",
            f"The learning rate is too low: {course.lr:.3g}, usual with {course.optimizer} are "
            f"{low:g} to {USUAL_RATES[course.optimizer][1]:g}, and {stands} "
            f"(at the start {loss.first:.4g}).",
            "Raise optim.lr: 0.01 for 16 images with optim=sgd, 0.0001 with optim=adamw.",
        )
    if peak < WARMING * course.lr and course.step <= course.warmup_steps:
        return _warming(course, stands, peak)
    return None


def _warming(course: Course, stands: str, peak: float) -> Cause:
    return Cause(
        "warm-up",
        f"The warm-up is not over: {stands}, and the learning rate has come to {peak:.3g} of "
        f"{course.lr:.3g}.",
        f"Wait, or shorten schedule.warmup_steps={course.warmup_steps}; about "
        f"{max(1, course.total_steps // 20)} would suit {course.total_steps} steps.",
    )


def _same_everywhere(course: Course, loss: Trend | None) -> Cause | None:
    """A class loss that has come to rest where one score for all anchors has it."""
    constant = constant_loss(course)
    if loss is None or constant is None or loss.falling:
        return None
    if course.step < course.warmup_steps + FEW_STEPS:
        return None
    if not SAYS_THE_SAME * constant <= loss.latest < SAME * constant:
        return None
    return Cause(
        "collapsed",
        f"The network says the same everywhere: the class loss rests at {loss.latest:.4g}, and one "
        f"score for all anchors costs {constant:.4g}.",
        f"Lower optim.lr to a tenth (the rate is now {course.lr:g}) and lengthen "
        f"schedule.warmup_steps={course.warmup_steps}; if that does not help, the training boxes "
        f"are not where the objects are: look at them with python -m scripts.check_data.",
    )


def early(course: Course) -> Cause | None:
    """What to say of a training in which nothing is wrong but that it is short."""
    loss = trend(course.column("loss/class"))
    begun = course.step >= course.warmup_steps + FEW_STEPS
    if loss is None or (begun and not loss.moved):
        return None
    if begun and not loss.falling and course.step >= course.total_steps:
        return None
    falls = ", and still falls" if loss.falling else ""
    verdict = (
        f"The network has made {course.step} of {course.total_steps} steps; the class loss went "
        f"from {loss.first:.4g} to {loss.latest:.4g}{falls}."
    )
    if course.step < course.total_steps:
        return Cause(TOO_EARLY, verdict, "Wait for the next evaluations.")
    return Cause(
        TOO_EARLY,
        verdict,
        f"Train longer: the same command with schedule.epochs or schedule.max_steps raised, such "
        f"as schedule.max_steps={4 * course.total_steps}, goes on from here.",
    )


def describe(course: Course) -> list[str]:
    """The course as evidence, one line each."""
    loss, box = trend(course.column("loss/class")), trend(course.column("loss/box"))
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
        f"at most {_peak(course):.3g}{norm}, {bad} bad steps",
    ]


def _peak(course: Course) -> float:
    rates = course.column("lr")
    return float(rates.max()) if len(rates) else course.lr
