"""Which object every anchor is responsible for (section 4 of the paper)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from retinanet.boxes import box_area, box_intersection
from retinanet.checks import check, check_thresholds

NEGATIVE = -1  # background: contributes to the class loss only
IGNORED = -2  # overlap between the two thresholds, or crowd: contributes to nothing

# Overlaps held at once, over all images; 2^24 of fp32 are 64 MiB. Bounds the memory whatever
# the number of boxes.
MAX_OVERLAPS = 2**24


class Match(NamedTuple):
    """What every anchor of a batch is assigned to."""

    label: Tensor  # (B, A) int64: class in [0, K), NEGATIVE or IGNORED
    box: Tensor  # (B, A, 4) pixels; the anchor itself where label < 0


class Matcher:
    """Assigns anchors to ground truth by overlap."""

    def __init__(
        self,
        *,
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        low_quality: bool = True,
        ignore_crowd: bool = True,
        crowd_iof: float = 0.5,
    ) -> None:
        """Check and remember the thresholds; see :class:`retinanet.config.MatchingConfig`.

        Raises:
            ValueError: a threshold out of range, or the negative above the positive one.
        """
        check("matching.positive_iou", positive_iou)
        check("matching.negative_iou", negative_iou)
        check("matching.crowd_iof", crowd_iof)
        check_thresholds(positive_iou, negative_iou)
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.low_quality = low_quality
        self.ignore_crowd = ignore_crowd
        self.crowd_iof = crowd_iof

    @torch.no_grad()
    def __call__(self, anchors: Tensor, boxes: Tensor, labels: Tensor, crowds: Tensor) -> Match:
        """Assign every anchor of every image.

        An anchor takes the box it overlaps most: positive from ``positive_iou``, background
        below ``negative_iou``, ignored between. With ``low_quality`` the best anchors of a box
        are positive too, for the box that they themselves overlap most (as in detectron2 and
        torchvision), if they overlap at all: without that guard one box that no anchor
        reaches would make every anchor positive.

        Args:
            anchors: (A, 4) in pixels.
            boxes: (B, G, 4) in pixels, padded.
            labels: (B, G) int64 class, negative where padded.
            crowds: (B, C, 4) crowd regions in pixels, padded with boxes without area.

        Returns:
            The match of every anchor.
        """
        if boxes.shape[1] == 0:  # no image has a box: one of padding keeps the shapes
            boxes, labels = F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=NEGATIVE)
        best_iou, best_box, forced = self._best_boxes(anchors, boxes, labels >= 0)
        positive = (best_iou >= self.positive_iou) | forced
        label = torch.where(positive, labels.gather(1, best_box), IGNORED)  # (B, A)
        negative = ~positive & (best_iou < self.negative_iou)
        if self.ignore_crowd and crowds.shape[1]:
            negative &= self._crowd_overlap(anchors, crowds) < self.crowd_iof
        label = label.masked_fill_(negative, NEGATIVE)
        matched = boxes.gather(1, best_box[..., None].expand(-1, -1, 4))  # (B, A, 4)
        return Match(label, torch.where(positive[..., None], matched, anchors))

    def _best_boxes(
        self, anchors: Tensor, boxes: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Highest IoU of every anchor, the index of its box, and whether a box has no better.

        Returns:
            best_iou (B, A), best_box (B, A) int64, forced (B, A) bool.
        """
        B, G = real.shape
        A = len(anchors)
        best_iou = anchors.new_zeros(B, A)
        best_box = torch.zeros(B, A, dtype=torch.int64, device=anchors.device)
        forced = torch.zeros(B, A, dtype=torch.bool, device=anchors.device)
        anchor_area = box_area(anchors)  # (A,)
        chunk = max(1, MAX_OVERLAPS // max(1, B * A))
        for start in range(0, G, chunk):
            part = boxes[:, start : start + chunk]  # (B, g, 4)
            iou = box_intersection(part, anchors)  # (B, g, A)
            iou /= box_area(part)[..., None] + anchor_area - iou
            iou *= real[:, start : start + chunk, None]
            if self.low_quality:
                best_of_box = iou.amax(dim=2, keepdim=True)  # (B, g, 1)
                forced |= ((iou == best_of_box) & (best_of_box > 0)).any(dim=1)
            top, index = iou.max(dim=1)  # (B, A)
            better = top > best_iou
            best_iou = torch.where(better, top, best_iou)
            best_box = torch.where(better, index + start, best_box)
        return best_iou, best_box, forced

    def _crowd_overlap(self, anchors: Tensor, crowds: Tensor) -> Tensor:
        """Largest share of every anchor's area that lies in one crowd region, (B, A)."""
        B, C = crowds.shape[:2]
        A = len(anchors)
        share = anchors.new_zeros(B, A)
        chunk = max(1, MAX_OVERLAPS // max(1, B * A))
        for start in range(0, C, chunk):
            shared = box_intersection(crowds[:, start : start + chunk], anchors)  # (B, c, A)
            share = torch.maximum(share, shared.amax(dim=1) / box_area(anchors))
        return share
