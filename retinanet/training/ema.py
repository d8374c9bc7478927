"""Average of the weights over the steps: what is evaluated and shipped."""

import copy

import torch
from torch import nn

from retinanet.checks import check


class WeightAverage:
    """Exponential moving average of a model's parameters; its buffers are copied.

    The decay grows with the steps, min(decay, (1 + step) / (10 + step)), so that the first
    weights do not linger in a short run. Source: TensorFlow, ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the weights of ``model``.

        Args:
            model: not changed.
            decay: in (0, 1); 0.999 averages over about 1000 steps.
        """
        check("ema.decay", decay)
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after a step.

        Args:
            model: the one trained.
            step: number of steps made.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, latest = list(self.model.parameters()), list(model.parameters())
        torch._foreach_lerp_(averages, latest, 1 - decay)
        for average, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(buffer)
