"""Learning rates that follow the time instead of the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from retinanet.config import TrainConfig
from retinanet.training.optim import Schedule, scaled_lr

# Positions in the run that a schedule of shares knows.
TICKS = 100_000


class Rates(Protocol):
    """Learning rate of every step: :class:`retinanet.training.optim.Schedule` or ours here."""

    def __call__(self, step: int) -> float:
        """Rate of a step, counted from 0."""

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Give every parameter group the rate of ``step``."""


class RatesByTime:
    """A schedule that is over when the time is, however many steps that makes.

    The decay is read at the share of the time that is gone; the warm-up counts steps, as usual.
    """

    def __init__(
        self, decay: Schedule, clock: Callable[[], float], *, warmup_steps: int, factor: float
    ) -> None:
        """Remember all of them.

        Args:
            decay: of ``TICKS`` steps, without warm-up.
            clock: share of the time that is gone, from 0 to 1.
            warmup_steps: the rate rises linearly over these.
            factor: share of the rate at the first step.
        """
        self.decay = decay
        self.clock = clock
        self.warmup_steps = warmup_steps
        self.factor = factor

    def __call__(self, step: int) -> float:
        """Rate of a step that is made now."""
        rate = self.decay(min(int(self.clock() * TICKS), TICKS - 1))
        if step < self.warmup_steps:
            rate *= self.factor + (1 - self.factor) * step / self.warmup_steps
        return rate

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Give every parameter group the rate of ``step``."""
        for group in optimizer.param_groups:
            group["lr"] = self(step)


def make_rates(
    settings: TrainConfig, *, total_steps: int | None, clock: Callable[[], float], num_images: int
) -> Rates:
    """The schedule of the settings, over the steps or over the time.

    Args:
        settings: of the training.
        total_steps: its length; None: it follows the time.
        clock: share of the time that is gone, from 0 to 1.
        num_images: of the training set.
    """
    optim, schedule = settings.optim, settings.schedule
    by_steps = total_steps is not None
    decay = Schedule(
        lr=scaled_lr(optim.lr, optim.batch_size, optim.reference_batch),
        total_steps=total_steps if by_steps else TICKS,
        warmup_steps=schedule.warmup_steps if by_steps else 0,
        warmup_factor=schedule.warmup_factor,
        decay=schedule.decay,
        milestones=schedule.milestones,
        decay_factor=schedule.decay_factor,
    )
    if by_steps:
        return decay
    # torchvision's references: no warm-up is longer than the first epoch.
    first_epoch = max(num_images // optim.batch_size - 1, 0)
    return RatesByTime(
        decay,
        clock,
        warmup_steps=min(schedule.warmup_steps, first_epoch),
        factor=schedule.warmup_factor,
    )
