"""Optimizers, the learning rate of every step, and the EMA weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from retinanet.checks import check

NORM_TYPES = (nn.GroupNorm, nn.BatchNorm2d, nn.SyncBatchNorm)


def scaled_lr(lr: float, batch_size: int, reference_batch: int | None) -> float:
    """Learning rate for a batch size: linear in it (Goyal et al. 2017, arXiv:1706.02677).

    ``batch_size`` counts the images of a step; with ``reference_batch=None`` it is ``lr``.
    """
    return lr if reference_batch is None else lr * batch_size / reference_batch


def parameter_groups(
    model: nn.Module, *, weight_decay: float, norm_weight_decay: float, bias_weight_decay: float
) -> list[dict]:
    """Trainable parameters in three groups, each with its own weight decay.

    Returns:
        Groups of convolution weights, normalization parameters and biases; empty ones left out.
    """
    weights, norms, biases = [], [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                is_norm = isinstance(module, NORM_TYPES)
                (norms if is_norm else biases if name == "bias" else weights).append(parameter)
    decays = (weight_decay, norm_weight_decay, bias_weight_decay)
    groups = zip((weights, norms, biases), decays, strict=True)
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def build_optimizer(
    model: nn.Module,
    *,
    name: str,
    lr: float,
    momentum: float,
    weight_decay: float,
    norm_weight_decay: float,
    bias_weight_decay: float,
) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters of ``model``.

    Fused: one kernel for all parameters, and it can be told on the device to change nothing
    (see :func:`retinanet.training.trainer.step_if_finite`).

    :class:`retinanet.config.OptimConfig` says what each argument is; ``lr`` is scaled already.

    Raises:
        ValueError: an unknown name, or nothing to train.
    """
    check("optim.name", name)
    groups = parameter_groups(
        model,
        weight_decay=weight_decay,
        norm_weight_decay=norm_weight_decay,
        bias_weight_decay=bias_weight_decay,
    )
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
    if momentum:
        # Torch makes the buffers of fused SGD at the first step, without a value: were that step
        # skipped, whatever lay in memory would move the weights in the second. From zeros the
        # first step makes its gradient, as if there had been no buffer.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class Schedule:
    """Linear warm-up, then drops at shares of the run, a cosine, or nothing.

    It has no state: the rate of a step does not depend on how the run came there, so a resumed run
    continues exactly. Drops are shares of the whole run: one twice as long drops twice as late.
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
        """Check and remember; see :class:`retinanet.config.ScheduleConfig`, ``lr`` is scaled."""
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
        """Learning rate after ``step`` steps, from 0 to ``total_steps - 1``."""
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


class EMA:
    """Exponential moving average of a model's parameters; its buffers are copied.

    The decay grows with the steps, min(decay, (1 + step) / (10 + step)), so that the first
    weights do not linger in a short run. Source: TensorFlow, ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the weights of ``model``; 0 < decay < 1, 0.999 averages about 1000 steps."""
        check("ema.decay", decay)
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, is_good: bool | torch.Tensor = True) -> None:
        """Take in the trained weights after ``step`` steps, unless the last one changed none.

        ``is_good`` may be a () bool on the model's device, for which nothing waits.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        own, latest = list(self.model.parameters()), list(model.parameters())
        change = torch._foreach_sub(latest, own)
        torch._foreach_mul_(change, (1 - decay) * is_good)
        torch._foreach_add_(own, change)
        for buffer, new in zip(self.model.buffers(), model.buffers(), strict=True):
            buffer.copy_(new)
