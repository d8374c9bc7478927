"""The losses that focal loss is compared with: FL*, OHEM, and focal loss on a softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from retinanet.checks import check

# The anchors with the highest losses, besides all positives, among which NMS chooses: enough for
# batches of 512, and NMS of all 200,000 would take seconds.
CANDIDATES = 10_000
# Most often NMS of this many for each that is wanted leaves enough, in a hundredth of the time.
CANDIDATES_FOR_EACH = 8


def focal_star_loss(
    logits: Tensor,
    is_class: Tensor,
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
    beta: float = 1.0,
) -> Tensor:
    """The other form of focal loss, of every (anchor, class) pair, not reduced.

    ``FL*(p_t) = -alpha_t * log(sigmoid(gamma * x_t + beta)) / gamma``, where x_t is x for y = 1 and
    -x for y = 0: appendix A of the paper, weighted as its equation 5 is.

    Args:
        logits: (..., K), any real number.
        is_class: (..., K) bool, true where y = 1.
        alpha: as in :func:`retinanet.losses.focal_loss`.
        gamma: steepness, above 0.
        beta: shift. The paper's table 3 has gamma 2, beta 1 and gamma 4, beta 0.

    Returns:
        (..., K) of the logits' type, at least 0.
    """
    margin = torch.where(is_class, logits, -logits)
    loss = F.softplus(-(gamma * margin + beta)) / gamma
    if alpha is None:
        return loss
    alpha = torch.as_tensor(alpha, dtype=loss.dtype, device=loss.device)
    return torch.where(is_class, alpha, 1 - alpha) * loss


class HardAnchors:
    """Chooses the anchors of each image that teach; the others do not count.

    Section 5.1 of the paper, after Shrivastava et al. 2016, arXiv:1604.03540: anchors are scored by
    their loss, NMS takes away near-duplicates, the highest remain. It waits for the GPU: NMS
    returns a number of anchors.
    """

    def __init__(self, *, anchors: int = 128, nms_iou: float = 0.5, ratio: float | None = None):
        """Check and remember.

        Args:
            anchors: kept in each image; the paper tries 128, 256 and 512.
            nms_iou: of two anchors whose predicted boxes overlap more the easier is dropped; the
                paper tries 0.5 and 0.7.
            ratio: background anchors for each positive, as SSD has 3; None: as it comes.
        """
        check("loss.ohem_anchors", anchors)
        check("loss.ohem_nms_iou", nms_iou)
        check("loss.ohem_ratio", ratio)
        self.anchors = anchors
        self.nms_iou = nms_iou
        self.ratio = ratio

    @torch.no_grad()
    def __call__(self, losses: Tensor, boxes: Tensor, positive: Tensor) -> Tensor:
        """Which anchors count.

        Args:
            losses: (B, A) class loss of every anchor, 0 where it is ignored.
            boxes: (B, A, 4) predicted, in pixels.
            positive: (B, A) bool.

        Returns:
            (B, A) bool. Where there is room, anchors without a loss are among them.
        """
        kept = torch.zeros_like(positive)
        for image in range(len(losses)):
            apart = self._apart(losses[image], boxes[image], positive[image])
            kept[image, self._first(apart, positive[image, apart])] = True
        return kept

    def _apart(self, losses: Tensor, boxes: Tensor, positive: Tensor) -> Tensor:
        """Anchors of one image without near-duplicates, the hardest first; enough of them."""
        if self.ratio is None:
            # Which are first to survive depends only on those that are harder still.
            hardest = losses.topk(min(CANDIDATES_FOR_EACH * self.anchors, len(losses))).indices
            apart = hardest[nms(boxes[hardest], losses[hardest], self.nms_iou)]
            if len(apart) >= self.anchors:
                return apart
        order = losses.masked_fill(positive, torch.inf)
        hardest = order.topk(min(CANDIDATES, len(losses))).indices
        return hardest[nms(boxes[hardest], losses[hardest], self.nms_iou)]

    def _first(self, anchors: Tensor, positive: Tensor) -> Tensor:
        """As many as wanted of the anchors, the hardest first."""
        if self.ratio is None:
            return anchors[: self.anchors]
        most = round(self.anchors / (1 + self.ratio))
        positives = anchors[positive][:most]
        # An image without positives teaches by its hardest background all the same.
        background = min(round(self.ratio * max(len(positives), 1)), self.anchors - len(positives))
        return torch.cat([positives, anchors[~positive][:background]])


def softmax_focal_loss(
    logits: Tensor,
    target: Tensor,
    alpha: float | Tensor | None = None,
    gamma: float = 2.0,
    *,
    background: int | None = 0,
) -> Tensor:
    """Focal loss of classes that exclude each other, of every sample, not reduced.

    ``FL(p_t) = -alpha_t * (1 - p_t) ** gamma * log(p_t)`` with p_t the softmax probability of the
    true class. With ``gamma=0`` and ``alpha=None`` it is the cross entropy. The network of this
    package does not use it: there every class has its own sigmoid and there is no background
    class. Beside :func:`retinanet.losses.focal_loss`:

    - sigmoid: K outputs; alpha weights y = 1, 1 - alpha weights y = 0, in every class's own
      yes-or-no question. An anchor of class 3 is y = 1 once and y = 0 K - 1 times.
    - softmax: K + 1 outputs, or K without background; each sample has one p_t and one weight. A
      number ``alpha`` is the weight of all foreground and 1 - alpha that of background.

    A weight per class ("I have 95 % background, so alpha = [0.05, 0.95]") does what it does in
    ``cross_entropy(weight=...)``; gamma has then already turned easy background down, so that the
    rare side may need less weight than its rarity suggests.

    Args:
        logits: (..., C). Computed in fp32 if they are narrower.
        target: (...) int64 in [0, C). There is no index to ignore: leave such samples out.
        alpha: None: all weigh 1. A number in [0, 1]: weight of every class but ``background``,
            which gets 1 - alpha. A (C,) tensor: weight of each class, at least 0, as in
            ``torch.nn.functional.cross_entropy(weight=...)`` with ``reduction="none"``.
        gamma: focusing exponent, at least 0.
        background: its class; None: there is none.

    Returns:
        (...) at least 0, fp32 or wider. The gradient is finite while differences of logits are.

    Raises:
        ValueError: fewer than two classes, a setting outside its range, a number alpha without a
            background, or as many weights as there are no classes.
    """
    C = logits.shape[-1]
    if C < 2:
        raise ValueError(f"softmax_focal_loss needs at least 2 classes, got {C}.")
    if gamma < 0:
        raise ValueError(f"softmax_focal_loss: gamma must be at least 0, got {gamma:g}.")
    chosen = target[..., None] == torch.arange(C, device=logits.device)  # (..., C)
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    # The probability of all other classes, in log space: 1 - p_t is 0 once p_t rounds to 1.
    log_rest = log_p.masked_fill(chosen, -torch.inf).logsumexp(dim=-1)
    log_p = log_p.gather(-1, target[..., None]).squeeze(-1)
    loss = -torch.exp(gamma * log_rest) * log_p
    return loss if alpha is None else _class_weights(alpha, target, log_rest, C, background) * loss


def _class_weights(
    alpha: float | Tensor, target: Tensor, like: Tensor, num_classes: int, background: int | None
) -> Tensor:
    """Weight of every sample by its class; see :func:`softmax_focal_loss`."""
    weight = torch.as_tensor(alpha, dtype=like.dtype, device=like.device)
    if weight.dim() == 0:
        if background is None:
            raise ValueError(
                "softmax_focal_loss: alpha as one number weighs foreground against background; "
                "name the background class, or give one weight for each class."
            )
        if not 0 <= background < num_classes:
            raise ValueError(
                f"softmax_focal_loss: background={background} is none of {num_classes} classes, 0 "
                f"to {num_classes - 1}."
            )
        if not isinstance(alpha, Tensor) and not 0 <= alpha <= 1:
            raise ValueError(
                f"softmax_focal_loss: alpha as one number must lie in [0, 1], got {alpha:g}: "
                f"background weighs 1 - alpha."
            )
        return torch.where(target == background, 1 - weight, weight)
    if weight.shape != (num_classes,):
        raise ValueError(
            f"softmax_focal_loss: alpha has shape {tuple(weight.shape)} for {num_classes} classes; "
            f"give one number, or one for each class."
        )
    return weight[target]
