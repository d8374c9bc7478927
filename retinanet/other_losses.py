"""The losses that focal loss is compared with: FL*, OHEM, and focal loss on a softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

from retinanet.checks import check_all

# NMS looks at the anchors with the highest losses, besides all positives: enough for 512 kept, and
# NMS of all 200,000 would take seconds.
CANDIDATES = 10_000
# NMS of this many candidates for each anchor kept mostly leaves enough, in a hundredth of the time.
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


@dataclass(kw_only=True)
class HardAnchors:
    """Selects the hardest anchors of each image; the others do not count in the loss.

    Section 5.1 of the paper, after Shrivastava et al. 2016, arXiv:1604.03540: anchors are scored by
    their loss, NMS takes away near-duplicates, the highest remain. It waits for the GPU: NMS
    returns a number of anchors.
    """

    anchors: int = 128  # kept in each image; the paper tries 128, 256 and 512
    # Of two anchors whose predicted boxes overlap more the easier is dropped; the paper: .5 and .7.
    nms_iou: float = 0.5
    ratio: float | None = (
        None  # background anchors for each positive, as SSD's 3; None: as it comes
    )

    def __post_init__(self) -> None:
        check_all("loss", {f"ohem_{name}": value for name, value in vars(self).items()})

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
        for image, of_image in enumerate(zip(losses, boxes, positive, strict=True)):
            kept[image, self._hardest(*of_image)] = True
        return kept

    def _hardest(self, losses: Tensor, boxes: Tensor, positive: Tensor) -> Tensor:
        """Indices of the anchors of one image that count."""

        def without_duplicates(scores: Tensor, most: int) -> Tensor:
            """Of the anchors with the highest scores, the hardest first."""
            hardest = scores.topk(min(most, len(losses))).indices
            return hardest[nms(boxes[hardest], losses[hardest], self.nms_iou)]

        if self.ratio is None:
            # Which are first to survive depends only on those that are harder still.
            hardest = without_duplicates(losses, CANDIDATES_FOR_EACH * self.anchors)
            if len(hardest) >= self.anchors:
                return hardest[: self.anchors]
        hardest = without_duplicates(losses.masked_fill(positive, torch.inf), CANDIDATES)
        if self.ratio is None:
            return hardest[: self.anchors]
        most = round(self.anchors / (1 + self.ratio))
        positives = hardest[positive[hardest]][:most]
        # An image without positives counts by its hardest background all the same.
        background = min(round(self.ratio * max(len(positives), 1)), self.anchors - len(positives))
        return torch.cat([positives, hardest[~positive[hardest]][:background]])


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
    package does not use it: there every class has its own sigmoid, no class is the background, and
    alpha weighs the yes against the no of each class (:func:`retinanet.losses.focal_loss`). Here
    one number ``alpha`` weighs all foreground, and 1 - alpha background.

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
    if alpha is None:
        return loss
    weight = torch.as_tensor(alpha, dtype=loss.dtype, device=loss.device)
    if weight.dim():
        if weight.shape != (C,):
            raise ValueError(
                f"softmax_focal_loss: alpha has shape {tuple(weight.shape)} for {C} classes; give "
                f"one number, or one for each class."
            )
        return weight[target] * loss
    if background is None or not 0 <= background < C:
        raise ValueError(
            f"softmax_focal_loss: alpha as one number weighs foreground against background, but "
            f"background={background} is none of {C} classes; name the background class, 0 to "
            f"{C - 1}, or give one weight for each class."
        )
    if not isinstance(alpha, Tensor) and not 0 <= alpha <= 1:
        raise ValueError(
            f"softmax_focal_loss: alpha as one number must lie in [0, 1], got {alpha:g}: "
            f"background weighs 1 - alpha."
        )
    return torch.where(target == background, 1 - weight, weight) * loss
