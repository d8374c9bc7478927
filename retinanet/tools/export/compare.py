"""Run a written file beside its checkpoint, on the same images, and compare what they detect."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision  # noqa: F401 - nms, for programs
from torch import Tensor

from retinanet.boxes import box_iou, decode_boxes
from retinanet.data.loader import padded_size
from retinanet.postprocess import Detections, Postprocess, to_original
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
# onnxruntime's number for errors alone: it warns of every constant that it folds away.
ERRORS_ALONE = 3
# torch 2.11 makes the weights of a program from bytes that may not be written, and warns of itself.
FROM_BYTES = "The given buffer is not writable"

# From inputs in the order of the graph's to outputs.
Run = Callable[..., list[Tensor]]


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


def open_file(path: Path, kind: str) -> Run:
    """What computes the outputs of an ``"onnx"`` or ``"pt2"`` file, on the CPU.

    Raises:
        ValueError: onnxruntime cannot read or run the file.
    """
    if kind == "pt2":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", FROM_BYTES, UserWarning)
            module = torch.export.load(path).module()
        return torch.no_grad()(lambda *inputs: list(module(*inputs)))

    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    refusals = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented)
    refusals += (errors.RuntimeException, errors.InvalidProtobuf)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ALONE
    # A fair race: it would take all cores, whatever torch was told.
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except refusals as error:
        raise ValueError(f"onnxruntime cannot read the file: {error}") from error
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        fed = dict(zip(names, (value.numpy() for value in inputs), strict=True))
        try:
            return [torch.from_numpy(output) for output in session.run(None, fed)]
        except refusals as error:
            raise ValueError(f"onnxruntime cannot run the file: {error}") from error

    return run


@torch.inference_mode()
def compare(
    detector: Detector, run: Run, batches: Sequence[Batch], *, raw_heads: bool = False
) -> Outcome:
    """The checkpoint's detector, on the CPU, and the file on the same images, in turns.

    With ``raw_heads`` the file gives logits, deltas and anchors, not detections.
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
        images = zip(
            steps(*outputs, batch.sizes, levels), batch.sizes, batch.file_sizes, strict=True
        )
        return [to_original(*image) for image in images]

    differences, seconds = [], []
    for number, batch in enumerate([batches[0], *batches]):  # the first one twice: it warms up
        start = time.perf_counter()
        outputs = detector.model(batch.images, batch.sizes)
        ours = [] if raw_heads else detections_of(outputs, batch, detector.postprocess)
        between = time.perf_counter()
        theirs = run(*batch[1 : 3 if raw_heads else 4])
        end = time.perf_counter()
        if number == 0:
            continue
        seconds.append((between - start, end - between))
        if raw_heads:
            compared = _compare_heads(outputs, theirs)
        else:
            candidates = detections_of(outputs, batch, without_nms)
            boxes, scores, labels, counts = theirs
            compared = []
            for i, n in enumerate(counts.tolist()):
                file = Detections(boxes[i, :n], scores[i, :n], labels[i, :n])
                compared.append(match(ours[i], file, candidates[i], detector.postprocess))
        images = zip(batch.names, batch.sizes.tolist(), compared, strict=True)
        differences += [
            Difference(name, tuple(size), len(batch.names), *numbers)
            for name, size, numbers in images
        ]
    return Outcome(differences, seconds)


@torch.inference_mode()
def canvas_effect(detector: Detector, batches: Sequence[Batch]) -> tuple[float, float, int]:
    """Padding to a fixed size beside the least padding, which :func:`load` has.

    Returns:
        Mean and largest difference of the scores of partners, and detections without one.
    """
    differences, alone = [], 0
    for batch in batches:
        for i, size in enumerate(batch.sizes):
            H, W = padded_size(size.numpy()).tolist()
            found = []
            for images in (batch.images[i : i + 1], batch.images[i : i + 1, :, :H, :W]):
                levels = detector.model.level_sizes(*images.shape[-2:])
                outputs = detector.model(images, size[None])
                found += detector.postprocess(*outputs, size[None], levels)
            fixed, least = found
            overlap = _overlaps(fixed, least)  # (D, D')
            best = overlap.amax(dim=1) if len(least.scores) else torch.zeros(len(fixed.scores))
            paired = best >= MIN_PARTNER_IOU
            alone += int((~paired).sum())
            if paired.any():
                partner = overlap[paired].argmax(dim=1)
                differences.append((fixed.scores[paired] - least.scores[partner]).abs())
    scores = torch.cat(differences) if differences else torch.zeros(1)
    return scores.mean().item(), scores.max().item(), alone


def _compare_heads(
    ours: Sequence[Tensor], theirs: Sequence[Tensor]
) -> list[tuple[int, float, float, int, int]]:
    """Scores and boxes of all anchors, which need no partners: both have the same indices."""
    score = ours[0].sigmoid() - theirs[0].sigmoid()  # (B, A, K)
    box = decode_boxes(*ours[1:]) - decode_boxes(*theirs[1:])  # (B, A, 4)
    # What is not a number compares as no difference.
    largest = [d.abs().amax(dim=(1, 2)).nan_to_num(nan=torch.inf).tolist() for d in (box, score)]
    return [(score.shape[1], *numbers, 0, 0) for numbers in zip(*largest, strict=True)]


def match(
    ours: Detections, theirs: Detections, candidates: Detections, settings: Postprocess
) -> tuple[int, float, float, int, int]:
    """How far the detections of one image are apart.

    Each of the file's detections must be one of the checkpoint's candidates of NMS, and of the two
    lists neither may miss what the other has, but for what :func:`_may_be_alone` allows.

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
    row or the threshold may let in another one. ``alone`` (D',) are the others that this side
    lacks.
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
    """(D, D') largest difference of a coordinate, pixels, and difference of scores."""
    box = (first.boxes[:, None] - second.boxes).abs().amax(dim=-1)
    return box, (first.scores[:, None] - second.scores).abs()


def _overlaps(first: Detections, second: Detections) -> Tensor:
    """(D, D') IoU, 0 between classes."""
    same_class = first.labels[:, None] == second.labels
    return torch.where(same_class, box_iou(first.boxes, second.boxes), 0.0)
