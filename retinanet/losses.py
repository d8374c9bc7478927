"""Focal loss, box losses, and what both are divided by."""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retinanet.boxes import decode_boxes, encode_boxes, paired_iou
from retinanet.checks import check_all, check_gamma
from retinanet.distributed import all_reduce_sum, world_size
from retinanet.fast.focal import focal_loss_sum, is_equal
from retinanet.matching import NEGATIVE, Match
from retinanet.other_losses import HardAnchors, focal_star_loss

logger = logging.getLogger(__name__)

FUSED_OFF_WARNING = (
    "the fused form of focal loss is off because losses.focal_loss was changed; training follows "
    "the change and needs more time and memory."
)

# loss.normalizer=ema: start and momentum. Source: detectron2, meta_arch/retinanet.py.
AVERAGE_START = 100.0
AVERAGE_MOMENTUM = 0.9


def focal_loss(
    logits: Tensor, is_class: Tensor, alpha: float | Tensor | None = 0.25, gamma: float = 2.0
) -> Tensor:
    """Alpha-balanced focal loss of every (anchor, class) pair, not reduced.

    ``FL(p_t) = -alpha_t * (1 - p_t) ** gamma * log(p_t)``: equation 5 of Lin et al. 2017,
    arXiv:1708.02002. With ``gamma=0`` and ``alpha=0.5`` it is half the cross entropy.

    This is the definition: edit it, and training follows. Training runs the fused form of
    :mod:`retinanet.fast.focal` while that equals this function, and otherwise this function.

    Args:
        logits: (..., K), any real number.
        is_class: (..., K) bool, true where the anchor's object has that class (y = 1).
        alpha: weight of y = 1 in [0, 1]; y = 0 gets ``1 - alpha``. A (K,) tensor gives every
            class its own; None weights both sides with 1.
        gamma: focusing exponent, at least 0.

    Returns:
        (..., K) of the logits' type, at least 0. The gradient is finite for every finite logit.
    """
    # A positive margin means the prediction is on the right side: p_t = sigmoid(margin), so
    # log(p_t) = -softplus(-margin) and log(1 - p_t) = -softplus(margin).
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
    if kind not in ("l1", "smooth_l1"):
        return 1 - paired_iou(decode_boxes(deltas, anchors), target, kind)
    wanted = encode_boxes(target, anchors)
    if kind == "l1":
        return (deltas - wanted).abs().sum(dim=-1)
    return F.smooth_l1_loss(deltas, wanted, reduction="none", beta=beta).sum(dim=-1)


class RetinaNetLoss(nn.Module):
    """Class loss and box loss, two scalars whose sum is the training loss.

    Both are divided by the number of positive anchors, not of all anchors: almost all of them
    are easy negatives with a loss near zero (section 4.1 of the paper). ``normalizer`` says which
    positives: ``"batch"`` those of the step, over all ranks; ``"image"`` each image's own, and then
    the mean (torchvision); ``"ema"`` their average over the steps (detectron2), which is state that
    a checkpoint must keep: so this is a module.
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
        """Check and remember; :class:`retinanet.config.LossConfig` says what each one is.

        Raises:
            ValueError: a setting outside its range.
        """
        check_all("loss", locals())
        check_gamma(name, gamma)
        super().__init__()
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
        self.register_buffer("average_positives", torch.tensor(AVERAGE_START))
        self._choose_form()

    def _choose_form(self) -> None:
        """Use the fused form only while it gives what :func:`focal_loss` gives."""
        self._definition = focal_loss
        self.fused = self.name == "focal" and is_equal(focal_loss, self.alpha, self.gamma)
        if self.name == "focal" and not self.fused:
            logger.warning(FUSED_OFF_WARNING)

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
            local_images = sum(map(len, positives))
            return [p.clamp(min=1) * local_images for p in positives]
        total = all_reduce_sum(torch.cat(positives).sum())
        if self.normalizer == "ema":
            # The mean over ranks, so that the average is one number that a checkpoint can keep.
            latest = (total / world_size()).clamp(min=1)
            self.average_positives.lerp_(latest, 1 - AVERAGE_MOMENTUM)
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
        if self._definition is not focal_loss:  # replaced at run time, as in a notebook
            self._choose_form()
        if self.fused:
            weight = counted / divisors[:, None]  # (B, A)
            class_loss = focal_loss_sum(logits, match.label, weight, self.alpha, self.gamma)
        else:
            of_anchors = self._class_loss(_at_least_fp32(logits), match.label).where(counted, 0)
            if self.name == "ohem":
                hard = self.ohem(of_anchors, decode_boxes(deltas, anchors), positive)  # (B, A)
                # The divisors count all positives; this share makes them those that OHEM kept.
                share = (hard & positive).sum().clamp(min=1) / positive.sum().clamp(min=1)
                of_anchors = of_anchors.where(hard, 0) / share
            class_loss = (of_anchors.sum(dim=1) / divisors).sum()
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
            # OHEM takes cross entropy, gamma 0. Alpha counts too: configs/loss/ohem.yaml has null.
            gamma = 0.0 if self.name == "ohem" else self.gamma
            loss = focal_loss(logits, is_class, self.alpha, gamma)
        return loss.sum(dim=-1)


def _at_least_fp32(x: Tensor) -> Tensor:
    """What autocast made narrow, wide; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
