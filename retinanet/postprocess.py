"""From logits and deltas to detections: threshold, best of each level, NMS, best of the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from retinanet.boxes import clip_boxes, decode_boxes
from retinanet.checks import check_all


class Detections(NamedTuple):
    """Objects detected in one image, best first."""

    boxes: Tensor  # (D, 4) float32, pixels
    scores: Tensor  # (D,) float32 in (0, 1)
    labels: Tensor  # (D,) int64 in [0, K)


@dataclass(kw_only=True, eq=False)
class Postprocess:
    """Inference of section 4.1: the best pairs of each level, then NMS of each class.

    The same detections as torchvision's ``RetinaNet.postprocess_detections`` where no scores are
    equal, except that boxes without extent after clipping are dropped and take no place. All
    arithmetic is fp32.

    Raises:
        ValueError: a setting is out of range.
    """

    score_threshold: float = 0.05  # scores must be above this, in [0, 1)
    pre_nms: int = 1000  # (anchor, class) pairs kept on each level, at least 1
    nms_iou: float = 0.5  # of two boxes of one class with a higher IoU the weaker is dropped
    detections: int = 100  # best detections kept in each image, at least 1
    # Boxes are cut at the image's edges "before_nms", as torchvision and mmdetection do, or
    # "after_nms", as detectron2 does.
    clip: str = "before_nms"

    def __post_init__(self) -> None:
        check_all("postprocess", vars(self))
        self.clips_first = self.clip == "before_nms"

    def __call__(
        self,
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        sizes: Tensor,
        level_sizes: Sequence[int],
    ) -> list[Detections]:
        """Detections of every image of a batch.

        Args:
            logits: (B, A, K) class logits, any floating type.
            deltas: (B, A, 4) predicted box deltas.
            anchors: (A, 4) in pixels of the resized image.
            sizes: (B, 2) height and width without padding, pixels.
            level_sizes: anchors of each level, in order; they add up to A.

        Returns:
            B records; boxes are in pixels of the resized image and lie within ``sizes``.
        """
        levels = zip(
            logits.split(level_sizes, dim=1),
            deltas.split(level_sizes, dim=1),
            anchors.split(level_sizes),
            strict=True,
        )
        candidates = zip(*(self._candidates(*level) for level in levels), strict=True)
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in candidates)
        images = zip(boxes, scores, labels, sizes, strict=True)
        return [self._suppress(*image) for image in images]

    def _candidates(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, P, 4), scores (B, P), labels (B, P) of one level's best pairs."""
        B, A, K = logits.shape
        image = torch.arange(B, device=logits.device)[:, None]  # (B, 1)
        # Each of the pre_nms best pairs belongs to one of the pre_nms anchors with the highest
        # logit of any class: only the logits of these anchors are sorted.
        anchor = logits.amax(dim=-1).topk(min(self.pre_nms, A)).indices  # (B, P)
        pairs = logits[image, anchor].float().flatten(1)  # (B, P * K)
        best, pair = pairs.topk(min(self.pre_nms, pairs.shape[1]))
        anchor = anchor.gather(1, pair // K)
        boxes = decode_boxes(deltas[image, anchor].float(), anchors[anchor])
        return boxes, best.sigmoid(), pair % K

    def _suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor, size: Tensor) -> Detections:
        """One image: of (P, 4) boxes drop the weak, the doubled and the empty."""
        inside = clip_boxes(boxes, size)
        boxes = inside if self.clips_first else boxes
        kept = ((scores > self.score_threshold) & _has_extent(boxes)).nonzero().squeeze(1)
        best = batched_nms(boxes[kept], scores[kept], labels[kept], self.nms_iou)
        kept = kept[best[: self.detections]]
        if not self.clips_first:
            kept = kept[_has_extent(inside[kept])]
        return Detections(inside[kept], scores[kept], labels[kept])


def _has_extent(boxes: Tensor) -> Tensor:
    """(P,) bool of (P, 4) boxes: both sides are longer than 0."""
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def to_original(detections: Detections, size: Tensor, original_size: Tensor) -> Detections:
    """Detections in pixels of the image file.

    Args:
        detections: boxes in pixels of the resized image.
        size: (2,) height and width of the resized image.
        original_size: (2,) height and width of the file.

    Returns:
        The same objects; x and y are scaled separately, because both sides were rounded when
        the image was resized, and boxes are clipped to the file.
    """
    boxes = detections.boxes
    scale = (original_size.to(boxes) / size.to(boxes)).flip(0).repeat(2)  # (4,) x, y, x, y
    boxes = clip_boxes(boxes * scale, original_size.to(boxes.device))
    return detections._replace(boxes=boxes)
