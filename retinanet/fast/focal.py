"""Focal loss of a whole batch as one number, with its gradient in closed form.

:func:`retinanet.losses.focal_loss` is the definition, and the place for changes. This computes the
same in less memory, and training takes it only while :func:`is_equal`. Next to the logits it needs
memory for their gradient and for one piece at a time, where autograd keeps a dozen tensors of 16
million numbers each for one image of COCO's size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits worked on at once. On a CPU 1 MiB of fp32, so that the few tensors of a piece stay in its
# caches and are not mapped afresh; on a GPU, where a piece costs a dozen kernels, 128 MiB.
PIECE_CPU = 2**18
PIECE_GPU = 2**25
# Where this form must equal the definition: around 0, where float64 rounds, and beyond.
CHECKED_LOGITS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 19.0, 40.0, 100.0, 1e4)


def focal_loss_sum(
    logits: Tensor, label: Tensor, weight: Tensor, alpha: Tensor | None, gamma: float
) -> Tensor:
    """Sum of the weighted focal loss over all (anchor, class) pairs, in fp32 or more.

    Args:
        logits: (B, A, K) of any floating type.
        label: (B, A) int64 class of each anchor in [0, K); negative: no object.
        weight: (B, A) factor of each anchor's loss, 0 for ignored ones. It takes no gradient.
        alpha: weight of y = 1, () or (K,); None weights both sides with 1.
        gamma: focusing exponent, at least 0.

    Returns:
        () of fp32 or wider. It can be differentiated once.
    """
    return _FocalLossSum.apply(logits, label, weight, alpha, gamma)


class _FocalLossSum(torch.autograd.Function):
    """The gradient is made on the way to the loss, from the same numbers."""

    @staticmethod
    def forward(ctx, logits, label, weight, alpha, gamma):
        rows = logits.reshape(-1, logits.shape[-1])  # (B * A, K)
        label, weight = label.reshape(-1, 1), weight.reshape(-1, 1)  # (B * A, 1)
        # Not in fp16: there the gradient of easy background is 0 until a scaler multiplies it.
        dtype = torch.float32 if logits.dtype == torch.float16 else logits.dtype
        gradient = torch.empty_like(rows, dtype=dtype)
        pieces = (PIECE_GPU if logits.is_cuda else PIECE_CPU) // logits.shape[-1] or 1
        total = 0
        for start in range(0, len(rows), pieces):
            part = slice(start, start + pieces)
            loss, gradient[part] = _loss_and_gradient(
                rows[part], label[part], weight[part], alpha, gamma
            )
            total = total + loss
        ctx.save_for_backward(gradient.view_as(logits))
        ctx.dtype = logits.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        # In place: a second backward pass through the same loss is refused by autograd itself,
        # which sees that what was saved has changed.
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(upstream).to(ctx.dtype), None, None, None, None


def _loss_and_gradient(
    logits: Tensor, label: Tensor, weight: Tensor, alpha: Tensor | None, gamma: float
) -> tuple[Tensor, Tensor]:
    """Loss of some anchors, (), and its gradient by their logits, (n, K)."""
    x = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)  # (n, K)
    positive = label >= 0  # (n, 1)
    label = label.clamp(min=0)
    own = x.gather(1, label)  # (n, 1) the logit of the anchor's own class
    weight_1 = weight if alpha is None else weight * alpha.expand(x.shape[1])[label]  # (n, 1)
    weight_0 = weight if alpha is None else weight * (1 - alpha)  # (n, 1) or (n, K)

    # All pairs as if y = 0, but those with y = 1: there a logit of minus infinity costs nothing.
    loss_0, gradient = _one_sided(
        x.scatter_(1, label, own.masked_fill(positive, -torch.inf)), weight_0, gamma
    )
    # The few with y = 1 are the same in the mirror.
    own = own.masked_fill(~positive, 0)
    loss_1, mirrored = _one_sided(-own, weight_1 * positive, gamma)
    gradient.scatter_(1, label, torch.where(positive, -mirrored, gradient.gather(1, label)))
    return loss_0 + loss_1, gradient


def _one_sided(x: Tensor, weight: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Loss of logits that should be low, and its gradient; overwrites ``x``.

    With p = sigmoid(x) and s = -log(1 - p) the loss is p ** gamma * s. Because dp/dx = p * (1 - p)
    and ds/dx = p, its gradient is p ** gamma * (p + gamma * s * (1 - p)).
    """
    p = x.sigmoid()
    minus_s = F.logsigmoid(x.neg_())  # a quarter of softplus's time on CPUs
    weight = p.pow(gamma).mul_(weight)
    loss = -torch.mul(weight, minus_s, out=x).sum()
    torch.neg(p, out=x).add_(1)  # 1 - p
    return loss, p.addcmul_(minus_s, x, value=-gamma).mul_(weight)


@torch.enable_grad()
def is_equal(definition: Callable[..., Tensor], alpha: Tensor | None, gamma: float) -> bool:
    """Whether :func:`focal_loss_sum` has the values and the gradient of a definition.

    Compared in float64 on the CPU, on a few hundred fixed numbers: logits of both signs up to
    10,000, anchors of every kind.

    Args:
        definition: such as :func:`retinanet.losses.focal_loss`, as it stands now.
        alpha: weight of y = 1, () or (K,); None weights both sides with 1.
        gamma: focusing exponent.
    """
    alpha = None if alpha is None else alpha.detach().cpu().double()
    K = 3 if alpha is None or alpha.dim() == 0 else len(alpha)
    x = torch.tensor(CHECKED_LOGITS, dtype=torch.float64)
    x = torch.cat([-x, x])[:, None] * torch.linspace(1, -0.9, K, dtype=torch.float64)  # (n, K)
    logits = x.repeat(4, 1, 1).requires_grad_()  # (4, n, K)
    label = torch.tensor([-1, 0, K // 2, K - 1])[:, None].expand(-1, len(x))  # (4, n)

    # Each anchor by itself: beside a logit of 10,000 a sum hides a small one.
    anchors = zip(logits.view(-1, 1, 1, K), label.reshape(-1, 1, 1), strict=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    fused = torch.stack([focal_loss_sum(*anchor, one, alpha, gamma) for anchor in anchors])
    (fused_gradient,) = torch.autograd.grad(fused.sum(), logits)
    try:
        loss = definition(logits, label[..., None] == torch.arange(K), alpha, gamma).sum(-1)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
    except (RuntimeError, IndexError, ValueError, AssertionError):
        # An edited definition may be for other shapes than these. Training calls it with its own.
        return False
    pairs = (loss.flatten(), fused), (gradient, fused_gradient)
    return all(torch.allclose(a.double(), b, rtol=1e-6, atol=1e-30) for a, b in pairs)
