"""Focal loss, box losses, and what both are divided by."""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retinanet.boxes import decode_boxes, encode_boxes, paired_iou
from retinanet.checks import check, check_gamma
from retinanet.distributed import all_reduce_sum, world_size
from retinanet.fast.focal import focal_loss_sum, is_equal
from retinanet.matching import NEGATIVE, Match
from retinanet.other_losses import HardAnchors, focal_star_loss, softmax_focal_loss  # noqa: F401

logger = logging.getLogger(__name__)

FUSED_OFF = (
    "the fused form of focal loss is off because losses.focal_loss was changed; training follows "
    "the change and needs more time and memory."
)

# loss.normalizer=ema: start and momentum. Source: detectron2, meta_arch/retinanet.py.
EMA_START = 100.0
EMA_MOMENTUM = 0.9


def focal_loss(
    logits: Tensor,
    is_class: Tensor,
    alpha: float | Tensor | None = 0.25,
    gamma: float = 2.0,
) -> Tensor:
    """Alpha-balanced focal loss of every (anchor, class) pair, not reduced.

    ``FL(p_t) = -alpha_t * (1 - p_t) ** gamma * log(p_t)``: equation 5 of Lin et al. 2017,
    arXiv:1708.02002. With ``gamma=0`` and ``alpha=0.5`` it is half the cross entropy.

    This is the definition: edit it, and training follows. While it is as it stands here, training
    runs its fused form, :mod:`retinanet.fast.focal`, which is compared with it when the loss is
    built; once you edit it, training runs this function.

    Args:
        logits: (..., K), any real number.
        is_class: (..., K) bool, true where the anchor's object has that class (y = 1).
        alpha: weight of y = 1 in [0, 1]; y = 0 gets ``1 - alpha``. A (K,) tensor gives every
            class its own; None weights both sides with 1.
        gamma: focusing exponent, at least 0.

    Returns:
        (..., K) of the logits' type, at least 0. The gradient is finite for every finite logit.
    """
    # A positive margin means the prediction is on the right side: p_t = sigmoid(margin).
    margin = torch.where(is_class, logits, -logits)
    # (1 - p_t) ** gamma in log space. As a power it has gradient 0 * inf = nan once p_t
    # rounds to 1 and gamma < 1.
    modulation = torch.exp(-gamma * F.softplus(margin))
    loss = modulation * F.softplus(-margin)
    if alpha is None:
        return loss
    alpha = torch.as_tensor(alpha, dtype=loss.dtype, device=loss.device)
    return torch.where(is_class, alpha, 1 - alpha) * loss


def box_loss(kind: str, deltas: Tensor, target: Tensor, anchors: Tensor, beta: float) -> Tensor:
    """Loss of every anchor's box, summed over its four numbers.

    Args:
        kind: ``"l1"`` or ``"smooth_l1"`` on deltas; ``"giou"``, ``"diou"`` or ``"ciou"`` on
            decoded boxes.
        deltas: (B, A, 4) predicted.
        target: (B, A, 4) boxes in pixels, with positive sides.
        anchors: (A, 4) in pixels.
        beta: smooth L1 turns from quadratic to linear here, in delta units, above 0.

    Returns:
        (B, A), at least 0.
    """
    if kind == "l1":
        return (deltas - encode_boxes(target, anchors)).abs().sum(dim=-1)
    if kind == "smooth_l1":
        wanted = encode_boxes(target, anchors)
        return F.smooth_l1_loss(deltas, wanted, reduction="none", beta=beta).sum(dim=-1)
    return 1 - paired_iou(decode_boxes(deltas, anchors), target, kind)


class RetinaNetLoss(nn.Module):
    """Focal loss on classes plus a box loss on positives, ready to be summed.

    Both are divided by the number of positive anchors, not of all anchors: almost all of them
    are easy negatives with a loss near zero (section 4.1 of the paper). A module, because
    the average of ``normalizer="ema"`` is state that a checkpoint must keep.
    """

    def __init__(
        self,
        *,
        name: str = "focal",
        alpha: float | Sequence[float] | None = 0.25,
        gamma: float = 2.0,
        star_beta: float = 1.0,
        ohem_anchors: int = 128,
        ohem_nms_iou: float = 0.5,
        ohem_ratio: float | None = None,
        normalizer: str = "batch",
        box: str = "l1",
        box_weight: float = 1.0,
        box_beta: float = 1 / 9,
    ) -> None:
        """Check and remember; see :class:`retinanet.config.LossConfig`.

        Args:
            name: of the class loss: ``"focal"``, ``"focal_star"`` or ``"ohem"``.
            alpha: weight of y = 1, one number or one for each class; None: no balancing.
            gamma: focusing exponent, at least 0; of FL* its steepness, above 0. OHEM has none.
            star_beta: shift of FL*.
            ohem_anchors: of ``"ohem"``, which takes the cross entropy of these; and so on: see
                :class:`retinanet.other_losses.HardAnchors`.
            ohem_nms_iou: likewise.
            ohem_ratio: likewise.
            normalizer: ``"batch"`` (positives of the whole step over all ranks), ``"image"``
                (each image by its own positives, then the mean: torchvision) or ``"ema"``
                (average over the steps: detectron2).
            box: ``"l1"``, ``"smooth_l1"``, ``"giou"``, ``"diou"`` or ``"ciou"``.
            box_weight: multiplier of the box loss.
            box_beta: of smooth L1, in delta units.

        Raises:
            ValueError: a setting outside its range.
        """
        super().__init__()
        settings = {"name": name, "alpha": alpha, "gamma": gamma, "star_beta": star_beta}
        settings |= {"normalizer": normalizer, "box": box}
        settings |= {"box_weight": box_weight, "box_beta": box_beta}
        for key, value in settings.items():
            check(f"loss.{key}", value)
        check_gamma(name, gamma)
        self.name = name
        self.gamma = gamma
        self.star_beta = star_beta
        self.ohem = HardAnchors(anchors=ohem_anchors, nms_iou=ohem_nms_iou, ratio=ohem_ratio)
        self.normalizer = normalizer
        self.box = box
        self.box_weight = box_weight
        self.box_beta = box_beta
        alpha = None if alpha is None else torch.as_tensor(alpha, dtype=torch.float32)
        self.register_buffer("alpha", alpha, persistent=False)
        self.register_buffer("average_positives", torch.tensor(EMA_START))
        self._compare_forms()

    def _compare_forms(self) -> None:
        """Compute by the fused form only if it is equal to the definition as it stands now."""
        self._definition = focal_loss
        self.fused = self.name == "focal" and is_equal(focal_loss, self.alpha, self.gamma)
        if self.name == "focal" and not self.fused:
            logger.warning(FUSED_OFF)

    @torch.no_grad()
    def divisors(self, matches: Sequence[Match]) -> list[Tensor]:
        """What the loss of each image of a step is divided by.

        Called once a step with all its micro-batches, so that one step on N ranks in M
        micro-batches is the step of one process on the whole batch: gradients are averaged
        over ranks and summed over micro-batches. Every rank must call it.

        Args:
            matches: of this rank's micro-batches.

        Returns:
            One (B,) float tensor for each micro-batch, above 0.
        """
        positives = [(match.label >= 0).sum(dim=1).float() for match in matches]
        if self.normalizer == "image":
            num_images = sum(len(p) for p in positives)
            return [p.clamp(min=1) * num_images for p in positives]
        total = all_reduce_sum(torch.cat(positives).sum())
        if self.normalizer == "ema":
            # The mean over ranks, so that the average is one number that a checkpoint can keep.
            latest = (total / world_size()).clamp(min=1)
            self.average_positives.lerp_(latest, 1 - EMA_MOMENTUM)
            divisor = self.average_positives.clone()
        else:
            # Clamped once, on the global count: an all-background step is divided by 1.
            divisor = total.clamp(min=1) / world_size()
        return [divisor.expand(len(p)) for p in positives]

    def forward(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, match: Match, divisors: Tensor
    ) -> dict[str, Tensor]:
        """Both losses of one micro-batch, in fp32 or wider.

        Args:
            logits: (B, A, K).
            deltas: (B, A, 4).
            anchors: (A, 4) in pixels.
            match: what each anchor is assigned to.
            divisors: (B,), from :meth:`divisors`.

        Returns:
            ``{"class": scalar, "box": scalar}``, finite and attached to the graph even when no
            image has an object.
        """
        positive = match.label >= 0  # (B, A)
        counted = match.label >= NEGATIVE  # (B, A), leaves out ignored anchors
        deltas = _at_least_fp32(deltas)
        if self._definition is not focal_loss:  # replaced since
            self._compare_forms()
        if self.fused:
            weight = counted / divisors[:, None]  # (B, A)
            class_loss = focal_loss_sum(logits, match.label, weight, self.alpha, self.gamma)
            class_loss = _at_least_fp32(class_loss)
        else:
            class_loss = self._class_loss(_at_least_fp32(logits), match.label)  # (B, A)
            class_loss = class_loss.where(counted, 0)
            if self.name == "ohem":
                predicted = decode_boxes(deltas, anchors)  # (B, A, 4)
                kept = self.ohem(class_loss, predicted, positive)
                # The divisors count all positives; NMS leaves few of them.
                share = (kept & positive).sum().clamp(min=1) / positive.sum().clamp(min=1)
                class_loss = class_loss.where(kept, 0) / share
            class_loss = (class_loss.sum(dim=1) / divisors).sum()
        of_boxes = box_loss(self.box, deltas, match.box, anchors, self.box_beta)
        of_boxes = (of_boxes.where(positive, 0).sum(dim=1) / divisors).sum()
        return {"class": class_loss, "box": self.box_weight * of_boxes}

    def _class_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """(B, A) loss of every anchor, before any is left out, by the definition."""
        # Dense masks, no indexing with booleans: that would make the GPU wait for a count.
        is_class = label[..., None] == torch.arange(logits.shape[-1], device=logits.device)
        if self.name == "focal_star":
            loss = focal_star_loss(logits, is_class, self.alpha, self.gamma, self.star_beta)
        else:
            gamma = 0.0 if self.name == "ohem" else self.gamma  # OHEM: cross entropy
            loss = focal_loss(logits, is_class, self.alpha, gamma)
        return loss.sum(dim=-1)


def _at_least_fp32(x: Tensor) -> Tensor:
    """What autocast made narrow, wide; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
