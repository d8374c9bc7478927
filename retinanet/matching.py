"""Which object every anchor is responsible for (section 4 of the paper)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from retinanet.boxes import box_area, box_intersection
from retinanet.checks import check, check_thresholds
from retinanet.fast.sparse_matching import AnchorWindows, best_boxes_near

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
    def __call__(
        self,
        anchors: Tensor,
        boxes: Tensor,
        labels: Tensor,
        crowds: Tensor,
        windows: AnchorWindows | None = None,
    ) -> Match:
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
            windows: of the same anchors. Gives the same match in a fraction of the time and memory,
                on a CPU; a GPU would wait for the number of pairs and looks at all of them.

        Returns:
            The match of every anchor.
        """
        if boxes.shape[1] == 0:  # no image has a box: one of padding keeps the shapes
            boxes, labels = F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1), value=NEGATIVE)
        match = None
        if windows is not None and not anchors.is_cuda:
            match = self._match_near(anchors, boxes, labels, windows)
        if match is None:
            match = self._match_all(anchors, boxes, labels)
        if self.ignore_crowd and crowds.shape[1]:
            in_crowd = self._crowd_overlap(anchors, crowds) >= self.crowd_iof  # (B, A)
            match.label.masked_fill_((match.label == NEGATIVE) & in_crowd, IGNORED)
        return match

    def _match_all(self, anchors: Tensor, boxes: Tensor, labels: Tensor) -> Match:
        """The match before crowds, from the overlaps of all anchors: the definition."""
        best_iou, best_box, forced = self._best_boxes(anchors, boxes, labels >= 0)
        label = self._decide(best_iou, forced, labels.gather(1, best_box))  # (B, A)
        matched = boxes.gather(1, best_box[..., None].expand(-1, -1, 4))  # (B, A, 4)
        return Match(label, torch.where(label[..., None] >= 0, matched, anchors))

    def _decide(self, iou: Tensor, forced: Tensor, label: Tensor) -> Tensor:
        """Label of anchors with this IoU and class of their best box; all of one shape."""
        other = torch.where(iou < self.negative_iou, NEGATIVE, IGNORED)
        return torch.where((iou >= self.positive_iou) | forced, label, other)

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

    def _match_near(
        self, anchors: Tensor, boxes: Tensor, labels: Tensor, windows: AnchorWindows
    ) -> Match | None:
        """The same match from the anchors near a box; None where there are too many."""
        B, A = len(boxes), len(anchors)
        near = best_boxes_near(
            anchors, boxes, labels >= 0, windows, self.negative_iou, self.low_quality
        )
        if near is None:
            return None
        place, best_iou, best_box, forced = near  # (Q,) of B * A; all others are background
        decided = self._decide(best_iou, forced, labels[place // A, best_box])  # (Q,)
        label = labels.new_full((B * A,), NEGATIVE)
        label[place] = decided
        matched = anchors.repeat(B, 1)  # (B * A, 4)
        positive = decided >= 0
        matched[place[positive]] = boxes[place[positive] // A, best_box[positive]]
        return Match(label.view(B, A), matched.view(B, A, 4))

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
