"""Causes of a low AP that lie in the training: rates, the balance of the losses, steps."""

from __future__ import annotations

from retinanet.tools.diagnose.causes import TOO_EARLY, Cause
from retinanet.tools.diagnose.history import (
    Course,
    Trend,
    anchor_counts,
    constant_loss,
    start_losses,
    trend,
)
from retinanet.tools.expected_loss import MAX_BACKGROUND_RATIO, balancing_prior

# Learning rates, after scaling to the batch, that any recipe in configs/experiment, its sources or
# the built-in set uses, with a factor of 10 of room below and 3 above.
USUAL_RATES = {"sgd": (1e-4, 0.3), "adamw": (1e-6, 3e-3)}
# Steps from which on a loss that has not moved means something: warm-ups begin with a tenth to a
# thousandth of the rate.
FEW_STEPS = 20
# The class loss of a network that finds something is below this share of the lowest that one score
# for all anchors can have. In runs that came to AP 0.25, it was 0.9 after 60 steps.
SAYS_THE_SAME = 0.97
# Of a rate that is still rising.
WARMING = 0.5
# Within this factor of the loss of one score for all anchors it is that.
SAME = 1.05
# Above, an untrained network gives the background more than the objects can balance; the paper
# has 0.01, and 0.1 still trains on the built-in set.
HIGH_PRIOR = 0.1
# Between, the paper's table 1b finds its best values, from 0.1 to 0.75, with room.
SMALL_ALPHA, LARGE_ALPHA = 0.01, 0.99


def causes_of(course: Course) -> list[Cause]:
    """What in the training explains an AP near zero, the most certain first."""
    loss, box = trend(course.level("loss/class")), trend(course.level("loss/box"))
    untrained = _untrained(course)
    if untrained is None and course.without_objects:
        return [_no_positives(course)]
    found = [
        untrained,
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


def _no_positives(course: Course) -> Cause:
    return Cause(
        "no positives",
        f"The network was shown background only: no anchor was positive in any of the "
        f"{course.step} steps.",
        "Look at the training set: python -m scripts.check_data with the settings of this run "
        "counts its boxes, and those that are lost: crowd regions, boxes without area, boxes below "
        "1 px at data.min_size. If only few of its images have boxes, train longer.",
    )


def _diverged(course: Course, loss: Trend | None, box: Trend | None) -> Cause | None:
    bad = int(course.column("bad_steps").sum())
    low, high = USUAL_RATES[course.optimizer]
    above = course.peak_lr > high
    exploded = [
        f"the {name} loss rose from {t.lowest:.3g} to {t.latest:.3g}"
        for name, t in (("class", loss), ("box", box))
        if t is not None and t.exploded
    ]
    if bad:
        exploded.append(f"{bad} steps were not finite")
    if not exploded and (not above or _learned(course, loss)):
        return None
    if not exploded and loss is not None:
        exploded.append(f"the class loss stopped at {loss.latest:.3g}")
    what = " and ".join(exploded) or "no loss is recorded"
    unusual = f" (usual with {course.optimizer}: {low:g} to {high:g})" if above else ""
    return Cause(
        "learning rate too high",
        f"Training diverged: {what}; the learning rate reached {course.peak_lr:.3g}{unusual}.",
        f"Lower optim.lr to a tenth (the rate of this batch is {course.lr:g}), and start anew with "
        f"overwrite=true; schedule.warmup_steps={max(500, 2 * course.warmup_steps)} and "
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
    if _learned(course, trend(course.level("loss/class"))):
        return None
    if start.ratio <= MAX_BACKGROUND_RATIO or course.prior < HIGH_PRIOR:
        return _extreme_alpha(course)
    prior = balancing_prior(course.alpha, course.gamma, **anchor_counts(course))
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
    low, high = USUAL_RATES[course.optimizer]
    norms = course.column("grad_norm")
    stands = f"the class loss stands at {loss.latest:.4g} after {course.step} steps"
    if len(norms) and not norms.any():
        return Cause(
            "frozen",
            f"Nothing is trained: the gradient is 0, and {stands}.",
            "Lower model.frozen_stages; look at loss.alpha and loss.box_weight, which must not "
            "silence both losses.",
        )
    if course.lr < low:
        return Cause(
            "learning rate too low",
            f"The learning rate is too low: {course.lr:.3g}, usual with {course.optimizer} are "
            f"{low:g} to {high:g}, and {stands} "
            f"(at the start {loss.first:.4g}).",
            "Raise optim.lr: 0.01 for 16 images with optim=sgd, 0.0001 with optim=adamw.",
        )
    if course.step <= course.warmup_steps and course.peak_lr < WARMING * course.lr:
        return Cause(
            "warm-up",
            f"The warm-up is not over: {stands}, and the learning rate has come to "
            f"{course.peak_lr:.3g} of {course.lr:.3g}.",
            f"Wait, or shorten schedule.warmup_steps={course.warmup_steps}; about "
            f"{max(1, course.total_steps // 20)} would suit {course.total_steps} steps.",
        )
    return None


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
    loss = trend(course.level("loss/class"))
    begun = course.step >= course.warmup_steps + FEW_STEPS
    if begun and (loss is None or not loss.moved):
        return None
    if begun and not loss.falling and course.step >= course.total_steps:
        return None
    verdict = f"The network has made {course.step} of {course.total_steps} steps"
    if loss is None:
        verdict += "; its log has too few steps with objects to show a trend."
    else:
        falls = ", and still falls" if loss.falling else ""
        verdict += f"; the class loss went from {loss.first:.4g} to {loss.latest:.4g}{falls}."
    if course.step < course.total_steps:
        return Cause(TOO_EARLY, verdict, "Wait for the next evaluations.")
    return Cause(
        TOO_EARLY,
        verdict,
        f"Train longer: the same command with schedule.epochs or schedule.max_steps raised, such "
        f"as schedule.max_steps={4 * course.total_steps}, goes on from here.",
    )
