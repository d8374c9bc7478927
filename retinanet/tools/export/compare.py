"""What a written file finds beside what the checkpoint's own detector finds on the same images."""

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
    _both(detector, run, batches[0], raw_heads)  # warms up
    differences, seconds = [], []
    for batch in batches:
        outputs, found, theirs, times = _both(detector, run, batch, raw_heads)
        seconds.append(times)
        if raw_heads:
            differences += _compare_heads(batch, outputs, theirs)
        else:
            candidates = _detections(detector, _without_nms(detector), batch, outputs)
            differences += _compare_found(detector, batch, found, theirs, candidates)
    return Outcome(differences, seconds)


def _both(
    detector: Detector, run: Run, batch: Batch, raw_heads: bool
) -> tuple[Sequence[Tensor], list[Detections], list[Tensor], tuple[float, float]]:
    """Outputs of the model, detections made of them, outputs of the file; seconds of both sides."""
    start = time.perf_counter()
    outputs = detector.model(batch.images, batch.sizes)
    found = [] if raw_heads else _detections(detector, detector.postprocess, batch, outputs)
    between = time.perf_counter()
    theirs = run(*batch[1:3]) if raw_heads else run(*batch[1:])
    return outputs, found, theirs, (between - start, time.perf_counter() - between)


def _detections(
    detector: Detector, postprocess: Postprocess, batch: Batch, outputs: Sequence[Tensor]
) -> list[Detections]:
    """Of every image, in pixels of its file: the last steps of :class:`Detector`."""
    levels = detector.model.level_sizes(*batch.images.shape[-2:])
    found = postprocess(*outputs, batch.sizes, levels)
    places = zip(found, batch.sizes, batch.file_sizes, strict=True)
    return [to_original(one, size, file_size) for one, size, file_size in places]


def _compare_heads(
    batch: Batch, ours: Sequence[Tensor], theirs: Sequence[Tensor]
) -> list[Difference]:
    """Scores and boxes of all anchors, which need no partners: both have the same places."""
    (logits, deltas, anchors), (their_logits, their_deltas, their_anchors) = ours, theirs
    score = (logits.sigmoid() - their_logits.sigmoid()).abs().amax(dim=(1, 2))  # (B,)
    boxes = decode_boxes(deltas, anchors) - decode_boxes(their_deltas, their_anchors)
    # What is not a number compares as no difference.
    box = boxes.abs().amax(dim=(1, 2)).nan_to_num(nan=torch.inf)
    score = score.nan_to_num(nan=torch.inf)
    B, A = logits.shape[:2]
    return [
        Difference(name, tuple(size), B, A, box[i].item(), score[i].item(), 0, 0)
        for i, (name, size) in enumerate(zip(batch.names, batch.sizes.tolist(), strict=True))
    ]


def _compare_found(
    detector: Detector,
    batch: Batch,
    ours: Sequence[Detections],
    theirs: Sequence[Tensor],
    candidates: Sequence[Detections],
) -> list[Difference]:
    boxes, scores, labels, counts = theirs
    differences = []
    for i, count in enumerate(counts.tolist()):
        found = Detections(boxes[i, :count], scores[i, :count], labels[i, :count])
        numbers = match(ours[i], found, candidates[i], detector.postprocess)
        size = tuple(batch.sizes[i].tolist())
        differences.append(Difference(batch.names[i], size, len(batch.names), *numbers))
    return differences


def _without_nms(detector: Detector) -> Postprocess:
    """What makes all candidates of NMS, those just below the threshold too."""
    settings = detector.settings.postprocess
    return Postprocess(
        score_threshold=max(settings.score_threshold - MAX_SCORE, 0.0),
        pre_nms=settings.pre_nms,
        nms_iou=1.0,
        detections=ALL,
        clip=settings.clip,
    )


def match(
    ours: Detections, theirs: Detections, candidates: Detections, settings: Postprocess
) -> tuple[int, float, float, int, int]:
    """Partners, and what is left over.

    Equal images give scores that differ in their last digits. So of two candidates with all but
    equal scores NMS may keep the other one, and the last place or the threshold may let in another
    one. Such a detection is a tie: explained, but only if the checkpoint's own candidates of NMS
    hold it too. Everything else is paired with what it overlaps, which shows how far it is off, or
    is unmatched.

    Args:
        ours: detections of the checkpoint in one image.
        theirs: of the file.
        candidates: of the checkpoint before NMS.
        settings: threshold, IoU and number of detections.

    Returns:
        Number of the checkpoint's detections; largest difference of coordinates and of scores;
        ties; unmatched detections of either side.
    """
    pairs = _pairs(_are_same(ours, theirs), _apart(ours, theirs))
    left = [_left_over(len(found.scores), pairs, i) for i, found in enumerate((ours, theirs))]
    known = _are_same(theirs, candidates).any(dim=1)  # (D',) bool
    tied = _ties(ours, theirs, left[0], left[1] & known, settings)
    ties = int(tied[0].sum() + tied[1].sum())
    mine, other = left[0] & ~tied[0], left[1] & ~tied[1]

    overlap = box_iou(ours.boxes, theirs.boxes) >= 0.5
    overlap &= ours.labels[:, None] == theirs.labels
    loose = _pairs(overlap & mine[:, None] & other, _apart(ours, theirs))
    pairs += loose
    box = max((_apart(ours, theirs)[i, j].item() for i, j in pairs), default=0.0)
    score = max(((ours.scores[i] - theirs.scores[j]).abs().item() for i, j in pairs), default=0.0)
    unmatched = int(mine.sum() + other.sum()) - 2 * len(loose)
    return len(ours.scores), box, score, ties, unmatched


def _apart(ours: Detections, theirs: Detections) -> Tensor:
    """(D, D') largest difference of a coordinate, pixels."""
    return (ours.boxes[:, None] - theirs.boxes).abs().amax(dim=-1)


def _are_same(ours: Detections, theirs: Detections) -> Tensor:
    """(D, D') bool: one label, box and score within the limits."""
    near = (ours.scores[:, None] - theirs.scores).abs() <= MAX_SCORE
    return near & (ours.labels[:, None] == theirs.labels) & (_apart(ours, theirs) <= MAX_BOX)


def _pairs(allowed: Tensor, cost: Tensor) -> list[tuple[int, int]]:
    """Pairs of rows and columns that are allowed, each used once, the cheapest first."""
    rows, columns = allowed.nonzero(as_tuple=True)
    order = cost[rows, columns].argsort(stable=True)
    used: tuple[set[int], set[int]] = (set(), set())
    pairs = []
    for i, j in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if i not in used[0] and j not in used[1]:
            used[0].add(i)
            used[1].add(j)
            pairs.append((i, j))
    return pairs


def _left_over(count: int, pairs: Sequence[tuple[int, int]], side: int) -> Tensor:
    """(count,) bool: in no pair."""
    left = torch.ones(count, dtype=torch.bool)
    left[[pair[side] for pair in pairs]] = False
    return left


def _ties(
    ours: Detections, theirs: Detections, mine: Tensor, other: Tensor, settings: Postprocess
) -> tuple[Tensor, Tensor]:
    """Which detections without a partner rounding explains: (D,) and (D',) bool.

    Args:
        ours: of the checkpoint.
        theirs: of the file.
        mine: (D,) bool, those of ours that may be explained.
        other: (D',) bool, those of theirs.
        settings: threshold, IoU and number of detections.
    """
    iou = box_iou(ours.boxes, theirs.boxes)
    iou = torch.where(ours.labels[:, None] == theirs.labels, iou, 0.0)  # (D, D')
    over = iou > settings.nms_iou
    # NMS took one here and the other there.
    equal = (ours.scores[:, None] - theirs.scores).abs() <= MAX_SCORE
    swapped = over & equal & mine[:, None] & other
    # What overlaps one of such two, and so is found where that one is not.
    freed = over & swapped.any(dim=0), over & swapped.any(dim=1)[:, None]
    # It overlaps its better just as much as NMS allows.
    border = (iou - settings.nms_iou).abs() <= MAX_SCORE
    return (
        mine & (_at_limits(ours, theirs, settings) | (border | freed[0]).any(dim=1)),
        other & (_at_limits(theirs, ours, settings) | (border | freed[1]).any(dim=0)),
    )


def _at_limits(found: Detections, other: Detections, settings: Postprocess) -> Tensor:
    """(D,) bool: so near to the threshold, or to the other side's last place, that it may miss."""
    near = found.scores <= settings.score_threshold + MAX_SCORE
    if len(other.scores) == settings.detections:
        near |= found.scores <= other.scores[-1] + MAX_SCORE
    return near
