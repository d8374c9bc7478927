"""Which object every anchor is responsible for (section 4 of the paper)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from retinanet.boxes import box_area, box_intersection
from retinanet.checks import check_all, check_thresholds
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


@dataclass(kw_only=True, eq=False)
class Matcher:
    """Assigns anchors to ground truth by overlap.

    An anchor that is positive because it is the best of some box still takes the box that it
    overlaps most itself, as in detectron2 and torchvision. A box that no anchor overlaps has no
    best anchor: otherwise all anchors, tied at IoU 0, would be positive.

    Raises:
        ValueError: a threshold out of range, or the negative above the positive one.
    """

    positive_iou: float = 0.5  # positive from this IoU with the box it overlaps most
    negative_iou: float = 0.4  # background below this, ignored between the two
    low_quality: bool = True  # all tied best anchors of every box are positive, whatever their IoU
    ignore_crowd: bool = True  # background that lies in a crowd region is ignored
    crowd_iof: float = 0.5  # share of an anchor's area in a crowd box from which it lies in it

    def __post_init__(self) -> None:
        check_all("matching", vars(self))
        check_thresholds(self.positive_iou, self.negative_iou)

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

        Args:
            anchors: (A, 4) in pixels.
            boxes: (B, G, 4) in pixels, padded.
            labels: (B, G) int64 class, negative where padded.
            crowds: (B, C, 4) crowd regions in pixels, padded with boxes without area.
            windows: of the same anchors. Gives the same match in a fraction of the time and memory,
                on a CPU; a GPU would wait for the number of pairs, so it compares all pairs.

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
            in_crowd = _crowd_share(anchors, crowds) >= self.crowd_iof  # (B, A)
            match.label.masked_fill_((match.label == NEGATIVE) & in_crowd, IGNORED)
        return match

    def _match_all(self, anchors: Tensor, boxes: Tensor, labels: Tensor) -> Match:
        """The match before crowds, from the overlaps of all anchors: the definition."""
        (B, G), A = labels.shape, len(anchors)
        best_iou = anchors.new_zeros(B, A)  # the highest of every anchor
        best_box = labels.new_zeros(B, A)  # the index of its box
        is_best = torch.zeros_like(best_iou, dtype=torch.bool)  # tied for the best of some box
        chunk = _boxes_at_once(B, A)
        for start in range(0, G, chunk):
            part = boxes[:, start : start + chunk]  # (B, g, 4)
            iou = box_intersection(part, anchors)  # (B, g, A)
            iou /= box_area(part)[..., None] + box_area(anchors) - iou
            iou *= (labels[:, start : start + chunk] >= 0)[..., None]  # padding overlaps nothing
            if self.low_quality:
                highest = iou.amax(dim=2, keepdim=True)  # (B, g, 1)
                is_best |= ((iou == highest) & (highest > 0)).any(dim=1)
            top, index = iou.max(dim=1)  # (B, A)
            better = top > best_iou
            best_iou = torch.where(better, top, best_iou)
            best_box = torch.where(better, index + start, best_box)
        label = self._label(best_iou, is_best, labels.gather(1, best_box))  # (B, A)
        matched = boxes.gather(1, best_box[..., None].expand(-1, -1, 4))  # (B, A, 4)
        return Match(label, torch.where(label[..., None] >= 0, matched, anchors))

    def _match_near(
        self, anchors: Tensor, boxes: Tensor, labels: Tensor, windows: AnchorWindows
    ) -> Match | None:
        """The same match from the anchors near a box; None where there are too many."""
        near = best_boxes_near(
            anchors, boxes, labels >= 0, windows, self.negative_iou, self.low_quality
        )
        if near is None:
            return None
        image, anchor, best_iou, best_box, is_best = near  # (Q,) each; the rest is background
        label_near = self._label(best_iou, is_best, labels[image, best_box])  # (Q,)
        label = labels.new_full((len(boxes), len(anchors)), NEGATIVE)  # (B, A)
        label[image, anchor] = label_near
        matched = anchors.repeat(len(boxes), 1, 1)  # (B, A, 4)
        positive = label_near >= 0
        image, anchor, best_box = image[positive], anchor[positive], best_box[positive]
        matched[image, anchor] = boxes[image, best_box]
        return Match(label, matched)

    def _label(self, iou: Tensor, is_best: Tensor, box_class: Tensor) -> Tensor:
        """Label of anchors with this IoU and class of their best box; all of one shape."""
        other = torch.where(iou < self.negative_iou, NEGATIVE, IGNORED)
        return torch.where((iou >= self.positive_iou) | is_best, box_class, other)


def _crowd_share(anchors: Tensor, crowds: Tensor) -> Tensor:
    """(B, A) largest share of every anchor's area that lies in one of (B, C, 4) regions."""
    shared = anchors.new_zeros(len(crowds), len(anchors))
    for part in crowds.split(_boxes_at_once(*shared.shape), dim=1):
        shared = shared.maximum(box_intersection(part, anchors).amax(dim=1))
    return shared / box_area(anchors)


def _boxes_at_once(num_images: int, num_anchors: int) -> int:
    """Boxes of each image whose overlaps with all anchors fit into ``MAX_OVERLAPS``."""
    return max(1, MAX_OVERLAPS // (num_images * num_anchors))
