"""The class loss of an untrained network in closed form, from alpha, gamma and pi alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple

# A background that outweighs the positives by more than this at the start hides them. The
# reverse is normal with few classes.
MAX_BACKGROUND_RATIO = 20.0

# How far the first measured loss may lie from the forecast, as a share of it: the head's random
# weights spread the first logits a little around the prior's.
FIRST_LOSS_TOLERANCE = 0.15

# No score that is looked for lies further out; exp() and log() are exact up to here.
SEARCHED_LOGIT = 30.0


class ClassLoss(NamedTuple):
    """Class loss of an untrained network, for each positive anchor."""

    positives: float
    background: float

    @property
    def total(self) -> float:
        """Both sides."""
        return self.positives + self.background

    @property
    def ratio(self) -> float:
        """Background over positives; inf when alpha silences the positives."""
        return self.background / self.positives if self.positives else math.inf


def expected_class_loss(
    alpha: float | Sequence[float] | None,
    gamma: float,
    prior: float,
    *,
    num_classes: int,
    num_positives: float,
    num_background: float,
) -> ClassLoss:
    """The class loss when every score is ``prior``, in closed form.

    A y = 1 costs ``alpha (1 - pi)^gamma (-ln pi)``; a y = 0 costs
    ``(1 - alpha) pi^gamma (-ln(1 - pi))``. A positive anchor has one y = 1 and K - 1 of y = 0, a
    background anchor K of y = 0.

    Args:
        alpha: weight of y = 1; one for each class (taken as equally frequent); None: both 1.
        gamma: focusing exponent.
        prior: pi.
        num_classes: K.
        num_positives: anchors assigned to an object.
        num_background: anchors assigned to background.

    Returns:
        Both sides divided by the number of positives, at least 1, as the loss is.
    """
    one, zero = 1.0, 1.0
    if alpha is not None:
        one = sum(alpha) / num_classes if isinstance(alpha, Sequence) else float(alpha)
        zero = 1 - one
    y1 = one * (1 - prior) ** gamma * -math.log(prior)
    y0 = zero * prior**gamma * -math.log1p(-prior)
    num_zeros = num_positives * (num_classes - 1) + num_background * num_classes
    divisor = max(num_positives, 1.0)
    return ClassLoss(num_positives * y1 / divisor, num_zeros * y0 / divisor)


def indifferent_score(alpha: float, gamma: float, share: float) -> float:
    """The score of an anchor of which the network can tell nothing: there the loss is lowest.

    With gamma 0 it is ``share * alpha / (share * alpha + (1 - share) * (1 - alpha))``; with
    ``alpha = 1 - share`` it is 0.5 for every gamma.

    Args:
        alpha: weight of y = 1, in (0, 1).
        gamma: focusing exponent.
        share: of y = 1 among all (anchor, class) pairs, in (0, 1).
    """

    def loss(logit: float) -> float:
        p = 1 / (1 + math.exp(-logit))
        ones = share * alpha * (1 - p) ** gamma * -math.log(p)
        return ones + (1 - share) * (1 - alpha) * p**gamma * -math.log1p(-p)

    low, high = -SEARCHED_LOGIT, SEARCHED_LOGIT
    for _ in range(200):  # it falls, then rises: thirds close in on the lowest point
        third = (high - low) / 3
        if loss(low + third) < loss(high - third):
            high -= third
        else:
            low += third
    return 1 / (1 + math.exp(-low))


def balancing_prior(alpha: float | Sequence[float] | None, gamma: float, **counts: float) -> float:
    """The largest pi at which background weighs no more than the positives at the start.

    ``counts`` are ``num_classes``, ``num_positives`` and ``num_background``, and all arguments as
    in :func:`expected_class_loss`.
    """
    low, high = -16.0, math.log10(0.5)
    for _ in range(60):
        middle = (low + high) / 2
        ratio = expected_class_loss(alpha, gamma, 10**middle, **counts).ratio
        low, high = (middle, high) if ratio < 1 else (low, middle)
    return 10**low
