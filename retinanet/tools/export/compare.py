"""Detections of a written file beside those of its checkpoint, on the same images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from retinanet.boxes import box_iou, decode_boxes
from retinanet.postprocess import Detections, Postprocess, to_original
from retinanet.tools.export.running import Run
from retinanet.tools.export.sample_images import Batch
from retinanet.tools.predict.detector import Detector

# Two detections are the same when no coordinate differs by more (pixels of the file) and the
# scores by no more. Rounding moves scores by about 1e-5.
MAX_BOX = 0.5
MAX_SCORE = 1e-3
# Two IoUs that differ by no more may fall on different sides of NMS's limit.
MAX_IOU = 1e-3
# Detections of one class that overlap by less are no partners.
MIN_PARTNER_IOU = 0.5
# More boxes than any image has candidates.
ALL = 10**6


class Difference(NamedTuple):
    """One image."""

    name: str
    size: tuple[int, int]  # height and width without padding, pixels
    batch: int  # images that came together
    detections: int  # of the checkpoint
    box: float  # largest difference of a coordinate, pixels of the file
    score: float  # largest difference
    ties: int  # detections of one side alone that rounding explains
    unmatched: int  # detections of one side alone that nothing explains

    @property
    def is_same(self) -> bool:
        """Whether it is within the limits."""
        return self.box <= MAX_BOX and self.score <= MAX_SCORE and not self.unmatched


class Outcome(NamedTuple):
    """All images."""

    differences: list[Difference]
    seconds: list[tuple[float, float]]  # of each batch: the checkpoint's detector, the file

    @property
    def is_same(self) -> bool:
        """Whether every image is."""
        return all(difference.is_same for difference in self.differences)


@torch.inference_mode()
def compare(
    detector: Detector, run: Run, batches: Sequence[Batch], *, raw_heads: bool = False
) -> Outcome:
    """Both on the same images, in turns.

    Args:
        detector: of the checkpoint, on the CPU.
        run: computes the file's outputs.
        batches: from :func:`retinanet.tools.export.sample_images.batches`.
        raw_heads: the file gives logits and deltas, not detections.
    """
    settings = detector.settings.postprocess
    # Candidates of NMS, those just below the threshold too.
    without_nms = Postprocess(
        score_threshold=max(settings.score_threshold - MAX_SCORE, 0.0),
        pre_nms=settings.pre_nms,
        nms_iou=1.0,
        detections=ALL,
        clip=settings.clip,
    )

    def detections_of(
        outputs: Sequence[Tensor], batch: Batch, steps: Postprocess
    ) -> list[Detections]:
        """Of each image in pixels of its file: the last steps of :class:`Detector`."""
        levels = detector.model.level_sizes(*batch.images.shape[-2:])
        detections = steps(*outputs, batch.sizes, levels)
        images = zip(detections, batch.sizes, batch.file_sizes, strict=True)
        return [to_original(*image) for image in images]

    differences, seconds = [], []
    for number, batch in enumerate([batches[0], *batches]):  # the first one twice: it warms up
        start = time.perf_counter()
        outputs = detector.model(batch.images, batch.sizes)
        ours = [] if raw_heads else detections_of(outputs, batch, detector.postprocess)
        between = time.perf_counter()
        inputs = (batch.images, batch.sizes, batch.file_sizes)
        theirs = run(*(inputs[:2] if raw_heads else inputs))
        if number == 0:
            continue
        seconds.append((between - start, time.perf_counter() - between))
        if raw_heads:
            compared = _compare_heads(outputs, theirs)
        else:
            boxes, scores, labels, counts = theirs
            candidates = detections_of(outputs, batch, without_nms)
            compared = [
                match(
                    ours[i],
                    Detections(boxes[i, :n], scores[i, :n], labels[i, :n]),
                    candidates[i],
                    detector.postprocess,
                )
                for i, n in enumerate(counts.tolist())
            ]
        images = zip(batch.names, batch.sizes.tolist(), compared, strict=True)
        differences += [
            Difference(name, tuple(size), len(batch.names), *numbers)
            for name, size, numbers in images
        ]
    return Outcome(differences, seconds)


def _compare_heads(
    ours: Sequence[Tensor], theirs: Sequence[Tensor]
) -> list[tuple[int, float, float, int, int]]:
    """Scores and boxes of all anchors, which need no partners: both have the same places."""
    (logits, deltas, anchors), (their_logits, their_deltas, their_anchors) = ours, theirs
    score = (logits.sigmoid() - their_logits.sigmoid()).abs().amax(dim=(1, 2))  # (B,)
    boxes = decode_boxes(deltas, anchors) - decode_boxes(their_deltas, their_anchors)
    # What is not a number compares as no difference.
    box = boxes.abs().amax(dim=(1, 2)).nan_to_num(nan=torch.inf).tolist()
    score = score.nan_to_num(nan=torch.inf).tolist()
    A = logits.shape[1]
    return [(A, *numbers, 0, 0) for numbers in zip(box, score, strict=True)]


def match(
    ours: Detections, theirs: Detections, candidates: Detections, settings: Postprocess
) -> tuple[int, float, float, int, int]:
    """How far the detections of one image are apart.

    Each of the file's detections must be one of the checkpoint's candidates of NMS, and of the two
    lists neither may miss what the other has, but for what :func:`_may_be_alone` allows.

    Args:
        ours: detections of the checkpoint.
        theirs: of the file.
        candidates: of the checkpoint before NMS.
        settings: threshold, IoU and number of detections.

    Returns:
        Number of the checkpoint's detections; largest difference of coordinates and of scores;
        ties; unmatched detections of either side.
    """
    box, score = _differences(theirs, candidates)  # (D', C)
    partner = _overlaps(theirs, candidates) >= MIN_PARTNER_IOU
    far = torch.where(partner, torch.maximum(box / MAX_BOX, score / MAX_SCORE), torch.inf)
    known = partner.any(dim=1)  # (D',)
    largest = [0.0, 0.0]
    if known.any():
        nearest = far[known].argmin(dim=1, keepdim=True)
        largest = [part[known].gather(1, nearest).max().item() for part in (box, score)]

    box, score = _differences(ours, theirs)  # (D, D')
    same = (box <= MAX_BOX) & (score <= MAX_SCORE) & (ours.labels[:, None] == theirs.labels)
    mine, other = ~same.any(dim=1), ~same.any(dim=0)  # alone
    explained = mine & _may_be_alone(ours, theirs, other, settings)
    explained_other = other & known & _may_be_alone(theirs, ours, mine, settings)
    ties = int(explained.sum() + explained_other.sum())
    # As many partners on both sides: one detection does not stand for two.
    doubled = int(((~mine).sum() - (~other).sum()).abs())
    unmatched = int(mine.sum() + other.sum()) - ties + doubled
    return len(ours.scores), *largest, ties, unmatched


def _may_be_alone(
    detections: Detections, others: Detections, alone: Tensor, settings: Postprocess
) -> Tensor:
    """(D,) bool: which detections the other side may lack because scores round differently there.

    Of two overlapping candidates with all but equal scores NMS may keep the other one, and the last
    place or the threshold may let in another one.

    Args:
        detections: of one side.
        others: of the other side.
        alone: (D',) bool, those of the other side that this one lacks.
        settings: threshold, IoU and number of detections.
    """
    scores = detections.scores
    limit = settings.score_threshold
    # Clipping after NMS takes out some of a full list.
    if len(others.scores) == settings.detections or not settings.clips_first:
        last = [side.scores[-1].item() for side in (detections, others) if len(side.scores)]
        limit = max(limit, min(last, default=0.0))
    # One of the other side suppresses it: one that this side lacks, or by a hair.
    better = others.scores >= scores[:, None] - MAX_SCORE  # (D, D')
    overlap = _overlaps(detections, others)
    suppressed = better & alone & (overlap > settings.nms_iou - MAX_IOU)
    border = better & ((overlap - settings.nms_iou).abs() <= MAX_IOU)
    return (scores <= limit + MAX_SCORE) | (suppressed | border).any(dim=1)


def _differences(first: Detections, second: Detections) -> tuple[Tensor, Tensor]:
    """(D, D') largest difference of a coordinate, pixels; (D, D') difference of scores."""
    box = (first.boxes[:, None] - second.boxes).abs().amax(dim=-1)
    return box, (first.scores[:, None] - second.scores).abs()


def _overlaps(first: Detections, second: Detections) -> Tensor:
    """(D, D') IoU, 0 between classes."""
    same_class = first.labels[:, None] == second.labels
    return torch.where(same_class, box_iou(first.boxes, second.boxes), 0.0)
