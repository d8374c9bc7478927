"""What to expect, said before the first step; what came, said after it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from retinanet.tools.expected_loss import (
    FIRST_LOSS_TOLERANCE,
    MAX_BACKGROUND_RATIO,
    balancing_alpha,
    balancing_prior,
    expected_class_loss,
)
from retinanet.tools.first_loss.survey import Survey
from retinanet.training.optim import scaled_lr
from retinanet.training.step_metrics import Means

# A warm-up longer than this share of the run is probably meant for a longer one.
MAX_WARMUP_SHARE = 0.25
# An alpha that leaves background a smaller weight than this is no advice.
LEAST_BACKGROUND_WEIGHT = 1e-6
# Said where the closed form gives the mean over the data, not the loss of a batch.
FORECAST_LIMITS = (
    "           it is for loss.normalizer=batch and one alpha for all classes; yours differ, so "
    "the first step may differ too"
)
# Said instead, for the losses that focal loss is compared with.
NO_FORECAST = "first loss not forecast: the closed form is that of loss.name=focal"
NO_FORECAST_OF_CHANGED = (
    "first loss not forecast: losses.focal_loss was changed, the closed form is that of the paper"
)

Alpha = float | Sequence[float] | None


def describe_rate(lr: float, batch_size: int, reference_batch: int | None) -> str:
    """One line: the learning rate and where it comes from."""
    rate = scaled_lr(lr, batch_size, reference_batch)
    if reference_batch is None:
        return f"lr         {rate:g}, not scaled to the {batch_size} images of a step"
    return f"lr         {rate:g} = {lr:g} x {batch_size} images a step / {reference_batch}"


def describe_alpha(alpha: Alpha, class_names: Sequence[str]) -> str:
    """One line: which side alpha weights, as resolved for the classes."""
    if alpha is None:
        return "alpha      off: y = 1 and y = 0 both weigh 1"
    if isinstance(alpha, Sequence):
        pairs = zip(class_names, alpha, strict=True)
        return "alpha      of y = 1: " + ", ".join(f"{name} {a:g}" for name, a in pairs)
    return f"alpha      {alpha:g} weighs y = 1 (the object's class), {1 - alpha:g} weighs y = 0"


def warn_of_warmup(warmup_steps: int, total_steps: int) -> list[str]:
    """A warning when the learning rate is still rising for much of the run."""
    if warmup_steps <= MAX_WARMUP_SHARE * total_steps:
        return []
    return [
        f"warning    schedule.warmup_steps={warmup_steps} of {total_steps} steps in all: the "
        f"learning rate hardly gets where it should; set about {total_steps // 20}"
    ]


def announce_loss(
    found: Survey, *, alpha: Alpha, gamma: float, prior: float, num_classes: int
) -> list[str]:
    """The first class loss to expect, and a warning when background would drown the positives.

    Args:
        found: counts of the training set.
        alpha: as resolved for the classes.
        gamma: focusing exponent.
        prior: pi.
        num_classes: K.
    """
    counts = {
        "num_classes": num_classes,
        "num_positives": found.positives,
        "num_background": found.background,
    }
    loss = expected_class_loss(alpha, gamma, prior, **counts)
    lines = [
        f"first loss class {loss.total:.4g} = positives {loss.positives:.4g} + background "
        f"{loss.background:.4g}, from alpha={_short(alpha)} gamma={gamma:g} pi={prior:g}",
    ]
    if not loss.positives:
        lines.append("warning    nothing pulls towards the objects: no positives, or alpha is 0")
    elif loss.ratio > MAX_BACKGROUND_RATIO:
        remedy = f"model.prior={balancing_prior(alpha, gamma, **counts):.2g}"
        if isinstance(alpha, int | float) and 0 < alpha < 1:
            balancing = balancing_alpha(loss, alpha)
            if 1 - balancing >= LEAST_BACKGROUND_WEIGHT:
                remedy += f" or loss.alpha={inside(balancing)}"
        lines.append(
            f"warning    background outweighs positives {loss.ratio:.3g} : 1 at the start; the "
            f"first steps go into unlearning it. {remedy} would balance them"
        )
    elif loss.ratio < 1:
        lines.append(
            f"balance    positives outweigh background {1 / max(loss.ratio, 1e-9):.3g} : 1 at the "
            f"start, as is normal with few classes"
        )
    return lines


def compare_first_loss(
    means: Means, *, alpha: Alpha, gamma: float, prior: float, num_classes: int
) -> str:
    """One line: the class loss of the first step beside its closed form for the same batch."""
    loss = expected_class_loss(
        alpha,
        gamma,
        prior,
        num_classes=num_classes,
        num_positives=means.positives,
        num_background=means.background,
    )
    line = (
        f"first step class loss {means.class_loss:.4g}, closed form for its "
        f"{means.positives:.0f} positives {loss.total:.4g}"
    )
    if not means.positives:
        # Of background alone the loss is a few thousandths: the spread of the first logits.
        return f"{line}: no object in this batch, so not compared"
    if abs(means.class_loss - loss.total) <= FIRST_LOSS_TOLERANCE * loss.total:
        return line + ": as expected"
    return (
        f"{line}: NOT as expected. The class subnet does not start at model.prior={prior:g} "
        f"(weights loaded over it?) or its features are out of scale"
    )


def inside(share: float) -> str:
    """A number between 0 and 1 with four decimals, or as many as keep it from both ends.

    Args:
        share: in (0, 1).
    """
    # Two digits of the distance to the nearer end.
    decimals = max(4, 1 + math.ceil(-math.log10(min(share, 1 - share))))
    return f"{share:.{decimals}f}".rstrip("0")


def _short(alpha: Alpha) -> str:
    return "per class" if isinstance(alpha, Sequence) else str(alpha)
