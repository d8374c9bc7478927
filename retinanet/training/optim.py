"""Optimizers, their parameter groups, and the learning rate of a batch size."""

import torch
from torch import nn

from retinanet.checks import check

NORM_TYPES = (nn.GroupNorm, nn.BatchNorm2d, nn.SyncBatchNorm)


def scaled_lr(lr: float, batch_size: int, reference_batch: int | None) -> float:
    """Learning rate for a batch size: linear in it (Goyal et al. 2017, arXiv:1706.02677).

    Args:
        lr: at ``reference_batch`` images a step.
        batch_size: images of a step, over all ranks and micro-batches.
        reference_batch: None leaves ``lr`` as it is.
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
            if not parameter.requires_grad:
                continue
            if isinstance(module, NORM_TYPES):
                norms.append(parameter)
            elif name == "bias":
                biases.append(parameter)
            else:
                weights.append(parameter)
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": norms, "weight_decay": norm_weight_decay},
        {"params": biases, "weight_decay": bias_weight_decay},
    ]
    return [group for group in groups if group["params"]]


def _start_momentum(optimizer: torch.optim.SGD) -> None:
    """Zeros, which the first step turns into its gradient, as if there had been nothing.

    Torch makes the buffers of fused SGD at the first step, without a value: where that step is
    skipped, whatever lay in memory would move the weights of the second.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


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

    Args:
        model: its trainable parameters are optimized.
        name: ``"sgd"`` or ``"adamw"``.
        lr: already scaled to the batch size.
        momentum: of SGD.
        weight_decay: of convolution weights.
        norm_weight_decay: of normalization parameters.
        bias_weight_decay: of biases.

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
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True)
        if momentum:
            _start_momentum(optimizer)
        return optimizer
    return torch.optim.AdamW(groups, lr=lr, fused=True)
