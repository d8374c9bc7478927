"""The learning rate of every step, as a function of the step alone."""

import math
from collections.abc import Sequence

import torch

from retinanet.checks import check


class Schedule:
    """Linear warm-up, then drops at shares of the run, a cosine, or nothing.

    It has no state: what a step's rate is does not depend on how the run came there, so a
    resumed run continues exactly. Drops are shares of the whole run: one twice as long drops
    twice as late.
    """

    def __init__(
        self,
        *,
        lr: float,
        total_steps: int,
        warmup_steps: int = 0,
        warmup_factor: float = 1.0,
        decay: str = "steps",
        milestones: Sequence[float] = (),
        decay_factor: float = 0.1,
    ) -> None:
        """Check and remember; see :class:`retinanet.config.ScheduleConfig`.

        Args:
            lr: rate after the warm-up, scaled to the batch size.
            total_steps: length of the run.
            warmup_steps: rises linearly over these.
            warmup_factor: share of ``lr`` at the first step.
            decay: ``"steps"``, ``"cosine"`` (to 0 at the end) or ``"constant"``.
            milestones: with ``"steps"``, shares of the run at which the rate drops.
            decay_factor: of each drop.
        """
        check("schedule.decay", decay)
        check("schedule.warmup_factor", warmup_factor)
        self.lr = lr
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.warmup_factor = warmup_factor
        self.decay = decay
        self.milestones = [share * total_steps for share in milestones]
        self.decay_factor = decay_factor

    def __call__(self, step: int) -> float:
        """Learning rate of a step.

        Args:
            step: number of steps made before, from 0 to ``total_steps - 1``.
        """
        rate = self.lr
        if step < self.warmup_steps:
            done = step / self.warmup_steps
            rate *= self.warmup_factor + (1 - self.warmup_factor) * done
        if self.decay == "steps":
            rate *= self.decay_factor ** sum(step >= milestone for milestone in self.milestones)
        elif self.decay == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * step / self.total_steps))
        return rate

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Give every parameter group the rate of ``step``."""
        for group in optimizer.param_groups:
            group["lr"] = self(step)
