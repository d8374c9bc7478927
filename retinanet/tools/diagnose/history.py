"""The history of a training, and what in it explains a low AP: rates, losses, steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from retinanet.tools.diagnose.scored import Cause
from retinanet.tools.expected_loss import (
    MAX_BACKGROUND_RATIO,
    balancing_prior,
    expected_class_loss,
    indifferent_score,
)

TOO_EARLY = "too early"  # a verdict that names no fault
# Learning rates, after scaling to the batch, that any recipe in configs/experiment, its sources or
# the built-in set uses, with a factor of 10 of room below and 3 above.
USUAL_RATES = {"sgd": (1e-4, 0.3), "adamw": (1e-6, 3e-3)}
# Steps from which on a loss that has not moved means something, after the warm-up.
FEW_STEPS = 20
# A loss has moved when it lost the first share of its first value: rows of neighboring steps differ
# by as much. It still falls when the latest part of the rows is lower than the one before by FALLS.
MOVED, FALLS, LATEST = 0.03, 0.01, 0.25
# It has exploded when it is so many times its lowest value, and so far above its first, which at
# pi = 0.01 is already above that of one score for all anchors.
EXPLODED, ABOVE_FIRST = 2.0, 1.2
# The class loss of a network that detects something is below this share of the lowest that one
# score for all anchors can have (0.9 after 60 steps in runs that came to AP 0.25); up to SAME times
# it is that loss.
LEARNED, SAME = 0.97, 1.05
# A rate below this share of the final one is still warming up.
WARMING = 0.5
# Above, background outweighs the objects at the start; the paper has 0.01, and 0.1 still trains on
# the built-in set.
HIGH_PRIOR = 0.1
# The paper's table 1b finds its best values from 0.1 to 0.75.
SMALL_ALPHA, LARGE_ALPHA = 0.01, 0.99
# From here on an AP shows that a network has learned; below the share of the AP that the run had
# before, it has lost that.
LEARNED_AP, FALLEN = 0.05, 0.1


class Trend(NamedTuple):
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
        above = self.latest > EXPLODED * max(self.lowest, 1e-3)
        return above and self.latest > ABOVE_FIRST * self.first


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A training run until an evaluation."""

    rows: Sequence[dict[str, Any]] = field(repr=False)  # of metrics.jsonl, those of steps
    step: int
    total_steps: int
    optimizer: str  # "sgd" or "adamw"
    lr: float  # after the warm-up, scaled to the batch
    warmup_steps: int
    batch_size: int
    anchors: int  # of an image
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
            value, share = row.get(name), row.get("with_objects")
            if isinstance(value, int | float) and row.get("positives") != 0:
                known = isinstance(share, int | float) and share > 0
                values.append(value / share if known else value)
        return np.array(values, dtype=float)

    def trend(self, name: str) -> Trend | None:
        """Where a loss comes from and where it goes; None with fewer than two rows."""
        values = self.level(name)
        if len(values) < 2:
            return None
        part = max(1, round(LATEST * len(values)))
        return Trend(
            values[0], values.min(), values[-2 * part : -part].mean(), values[-part:].mean()
        )

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

    @property
    def was_good(self) -> bool:
        """Whether these very weights had an AP: then nothing was wrong with their training."""
        return (self.AP_own or 0.0) >= LEARNED_AP

    @property
    def had_learned(self) -> bool:
        """Whether some weights of the run had an AP."""
        return (self.AP_before or 0.0) >= LEARNED_AP

    def anchor_counts(self) -> dict[str, float] | None:
        """Anchors of a step that has objects; the few ignored ones are taken for background."""
        positives = self.level("positives")
        if not len(positives):
            return None
        mean = float(positives.mean())
        return {
            "num_classes": self.num_classes,
            "num_positives": mean,
            "num_background": max(self.anchors * self.batch_size - mean, 0.0),
        }


def constant_loss(history: History) -> float | None:
    """The lowest class loss of a network with one score for all anchors; None: not known."""
    counts, alpha = history.anchor_counts(), 0.5 if history.alpha is None else history.alpha
    if counts is None or not history.focal or not isinstance(alpha, int | float):
        return None
    if not 0 < alpha < 1 or not counts["num_positives"]:
        return None
    pairs = history.num_classes * (counts["num_positives"] + counts["num_background"])
    score = indifferent_score(alpha, history.gamma, counts["num_positives"] / pairs)
    return expected_class_loss(history.alpha, history.gamma, score, **counts).total


def training_causes(history: History) -> list[Cause]:
    """What in the training explains an AP near zero, the most certain first."""
    if history.step < 2 and not history.loaded:
        untrained = Cause(
            "untrained",
            f"The network is untrained: these are the weights after step {history.step}.",
            "Evaluate a checkpoint of later steps, or train: python train.py with the settings of "
            "this run and more schedule.epochs.",
        )
    elif history.without_objects:
        return [_no_positives(history)]
    else:
        untrained = None
    loss, constant = history.trend("loss/class"), constant_loss(history)
    # Clearly below the loss of one score for all anchors, or where that is not known, fallen.
    learned = loss is not None and (
        loss.moved if constant is None else loss.latest < LEARNED * constant
    )
    causes = [
        untrained,
        _diverged(history, loss, learned),
        _unbalanced(history, learned),
        _at_rest(history, loss),
        _collapsed(history, loss, constant),
    ]
    return [cause for cause in causes if cause is not None]


def _no_positives(history: History) -> Cause:
    return Cause(
        "no positives",
        f"The network was shown background only: no anchor was positive in any of the "
        f"{history.step} steps.",
        "Look at the training set: python -m scripts.check_data with the settings of this run "
        "counts its boxes, and those that are lost: crowd regions, boxes without area, boxes below "
        "1 px at data.min_size. If only few of its images have boxes, train longer.",
    )


def _diverged(history: History, loss: Trend | None, learned: bool) -> Cause | None:
    bad = int(history.column("bad_steps").sum())
    low, high = USUAL_RATES[history.optimizer]
    above = history.peak_lr > high
    signs = [
        f"the {name} loss rose from {trend.lowest:.3g} to {trend.latest:.3g}"
        for name, trend in (("class", loss), ("box", history.trend("loss/box")))
        if trend is not None and trend.exploded
    ]
    if bad:
        signs.append(f"{bad} steps were not finite")
    if not signs and (not above or learned):
        return None
    if not signs:
        signs = [
            "no loss is recorded" if loss is None else f"the class loss stayed at {loss.latest:.3g}"
        ]
    unusual = f" (usual with {history.optimizer}: {low:g} to {high:g})" if above else ""
    return Cause(
        "learning rate too high",
        f"Training diverged: {' and '.join(signs)}; the learning rate reached "
        f"{history.peak_lr:.3g}{unusual}.",
        f"Lower optim.lr to a tenth (the rate of this batch is {history.lr:g}), and start anew "
        f"with overwrite=true; schedule.warmup_steps={max(500, 2 * history.warmup_steps)} and "
        f"optim.max_grad_norm=10 help too.",
    )


def _unbalanced(history: History, learned: bool) -> Cause | None:
    """A start in which pi, alpha and gamma let one side outweigh the other by far."""
    counts = history.anchor_counts()
    if counts is None or not history.focal or history.loaded:
        return None
    prior, alpha, gamma = history.prior, history.alpha, history.gamma
    start = expected_class_loss(alpha, gamma, prior, **counts)
    if not start.positives:
        return Cause(
            "alpha",
            f"Nothing pulls towards the objects: the loss of the positives is 0 with "
            f"loss.alpha={alpha}.",
            "Set loss.alpha=0.25, the paper's with loss.gamma=2.",
        )
    if learned:
        return None
    if start.ratio > MAX_BACKGROUND_RATIO and prior >= HIGH_PRIOR:
        balanced = balancing_prior(alpha, gamma, **counts)
        return Cause(
            "prior",
            f"Background outweighed the objects: at model.prior={prior:g}, loss.alpha={alpha}, "
            f"loss.gamma={gamma:g} it makes up {start.background / start.total:.1%} of the first "
            f"class loss, {start.total:.4g}.",
            f"Set model.prior=0.01, the paper's (at model.prior={balanced:.2g} both sides weigh "
            f"the same), and start anew.",
        )
    if isinstance(alpha, int | float) and not SMALL_ALPHA <= alpha <= LARGE_ALPHA:
        return Cause(
            "alpha",
            f"loss.alpha={alpha:g} weighs objects with {alpha:g} and background with "
            f"{1 - alpha:g}: the class loss cannot tell them apart.",
            "Set loss.alpha=0.25 with loss.gamma=2, the paper's, and start anew.",
        )
    return None


def _at_rest(history: History, loss: Trend | None) -> Cause | None:
    """The loss has not moved, and the gradient or the rate says why."""
    if loss is None or loss.moved or loss.exploded or history.step < FEW_STEPS:
        return None
    low, high = USUAL_RATES[history.optimizer]
    norms = history.column("grad_norm")
    state = f"the class loss is {loss.latest:.4g} after {history.step} steps"
    if len(norms) and not norms.any():
        return Cause(
            "frozen",
            f"Nothing is trained: the gradient is 0, and {state}.",
            "Lower model.frozen_stages; look at loss.alpha and loss.box_weight, which must not "
            "silence both losses.",
        )
    if history.lr < low:
        return Cause(
            "learning rate too low",
            f"The learning rate is too low: {history.lr:.3g}, usual with {history.optimizer} are "
            f"{low:g} to {high:g}, and {state} (at the start {loss.first:.4g}).",
            "Raise optim.lr: 0.01 for 16 images with optim=sgd, 0.0001 with optim=adamw.",
        )
    if history.step <= history.warmup_steps and history.peak_lr < WARMING * history.lr:
        return Cause(
            "warm-up",
            f"The warm-up is not over: {state}, and the learning rate has come to "
            f"{history.peak_lr:.3g} of {history.lr:.3g}.",
            f"Wait, or shorten schedule.warmup_steps={history.warmup_steps}; about "
            f"{max(1, history.total_steps // 20)} would suit {history.total_steps} steps.",
        )
    return None


def _collapsed(history: History, loss: Trend | None, constant: float | None) -> Cause | None:
    """A class loss that has come to rest where one score for all anchors has it."""
    begun = history.step >= history.warmup_steps + FEW_STEPS
    if loss is None or constant is None or loss.falling or not begun:
        return None
    if not LEARNED * constant <= loss.latest < SAME * constant:
        return None
    return Cause(
        "collapsed",
        f"The network gives all anchors the same score: the class loss stays at "
        f"{loss.latest:.4g}, and one score for all anchors costs {constant:.4g}.",
        f"Lower optim.lr to a tenth (the rate is now {history.lr:g}) and lengthen "
        f"schedule.warmup_steps={history.warmup_steps}; if that does not help, the training boxes "
        f"are not where the objects are: look at them with python -m scripts.check_data.",
    )


def too_early(history: History) -> Cause | None:
    """A training in which nothing is wrong but that it is short."""
    loss, step, total = history.trend("loss/class"), history.step, history.total_steps
    begun = step >= history.warmup_steps + FEW_STEPS
    if begun and (loss is None or not loss.moved or (not loss.falling and step >= total)):
        return None
    verdict = f"The network has made {step} of {total} steps"
    if loss is None:
        verdict += "; its log has too few steps with objects to show a trend."
    else:
        falls = ", and still falls" if loss.falling else ""
        verdict += f"; the class loss went from {loss.first:.4g} to {loss.latest:.4g}{falls}."
    longer = (
        f"Train longer: the same command with schedule.epochs or schedule.max_steps raised, such "
        f"as schedule.max_steps={4 * total}, goes on from here."
    )
    return Cause(TOO_EARLY, verdict, longer if step >= total else "Wait for the next evaluations.")


def describe_history(history: History) -> list[str]:
    """The history as evidence, one sentence each."""
    loss, box = history.trend("loss/class"), history.trend("loss/box")
    if loss is None or box is None:
        return [f"training: step {history.step} of {history.total_steps}, no rows to look at"]
    constant, norms = constant_loss(history), history.column("grad_norm")
    same = "" if constant is None else f"; one score for all anchors costs {constant:.4g}"
    norm = f", gradient norm {norms[-1]:.3g}" if len(norms) else ""
    bad = int(history.column("bad_steps").sum())
    return [
        f"class loss {loss.first:.4g} at the start, {loss.latest:.4g} now, {loss.before:.4g} "
        f"before{same}",
        f"box loss {box.first:.4g} at the start, {box.latest:.4g} now",
        f"step {history.step} of {history.total_steps}, warm-up {history.warmup_steps}; learning "
        f"rate at most {history.peak_lr:.3g}{norm}, {bad} bad steps",
    ]
