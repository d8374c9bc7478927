"""Online hard example mining: what the paper compares focal loss with (its table 1d)."""

import torch
from torch import Tensor
from torchvision.ops import nms

from retinanet.checks import check

# The anchors with the highest losses, besides all positives, among which NMS chooses: enough for
# batches of 512, and NMS of all 200,000 would take seconds.
CANDIDATES = 10_000
# Most often NMS of this many for each that is wanted leaves enough, in a hundredth of the time.
CANDIDATES_FOR_EACH = 8


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
