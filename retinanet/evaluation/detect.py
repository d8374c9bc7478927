"""Detections of a model on a data set, in pixels of the image files."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from retinanet.data.loader import Batch
from retinanet.devices import autocast
from retinanet.distributed import any_rank, gather_objects, is_main
from retinanet.fast.fold_batchnorm import for_inference
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Detections, Postprocess, to_original
from retinanet.signals import Stopped
from retinanet.terminal import has_bar

logger = logging.getLogger(__name__)

# The weakest of 100 detections is mostly just above postprocess.score_threshold: then the others
# do not matter. From this score on they may.
CONFIDENT_SCORE = 0.3
# Seconds between two log lines where there is no progress bar.
LOG_EVERY_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class DetectionArrays:
    """Detections of a set of images, sorted by image id, then score, best first."""

    image_ids: np.ndarray  # (D,) int64
    boxes: np.ndarray  # (D, 4) float64 x, y, width, height in pixels of the file
    scores: np.ndarray  # (D,) float64
    labels: np.ndarray  # (D,) int64 in [0, K)
    evaluated: np.ndarray  # (N,) int64, increasing: the images looked at, also without a row
    num_capped: int  # images with postprocess.detections, all CONFIDENT_SCORE or more

    def __len__(self) -> int:
        return len(self.scores)


def detect(
    model: RetinaNet,
    postprocess: Postprocess,
    loader: Iterable[Batch],
    device: torch.device,
    precision: str,
    *,
    compiled: bool = False,
    progress: bool = False,
    stop_requested: Callable[[], bool] = lambda: False,
) -> DetectionArrays:
    """Detections of the images of all ranks' loaders; every rank must call this.

    Args:
        model: on ``device``, in any mode. A copy runs, so it is left as it is.
        postprocess: threshold, NMS and caps.
        loader: this rank's share of the images.
        device: where the batches go.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``; of the forward pass only.
        compiled: by torch.compile.
        progress: show a bar with images/s on rank 0, or log a line each minute.
        stop_requested: asked after each batch, on each rank by itself.

    Returns:
        The detections of all ranks, the same on every rank.

    Raises:
        FloatingPointError: the model's output is not a number.
        ValueError: an image came twice.
        Stopped: a rank received a signal to stop.
    """
    network = for_inference(model, precision, compiled=compiled)
    parts = []
    for batch in _with_progress(loader, progress and is_main()):
        batch = batch.to(device, non_blocking=True)
        parts.append(detect_batch(network, postprocess, batch, precision))
        if stop_requested():
            break
    if any_rank(stop_requested()):
        raise Stopped
    return merge(gather_objects(merge(parts)))


def detect_batch(
    model: RetinaNet, postprocess: Postprocess, batch: Batch, precision: str
) -> DetectionArrays:
    """Detections of one batch that is on the model's device already."""
    images = batch.images, batch.sizes, batch.original_sizes
    detections = detect_images(model, postprocess, images, precision, batch.image_ids.tolist())
    return as_arrays(detections, batch.image_ids, postprocess.detections)


@torch.inference_mode()
def detect_images(
    model: RetinaNet,
    postprocess: Postprocess,
    batch: tuple[Tensor, Tensor, Tensor],
    precision: str,
    names: Sequence[object],
) -> list[Detections]:
    """Detections of images that are on the model's device, in pixels of their files.

    Args:
        model: ready to predict.
        postprocess: logits to detections.
        batch: images (B, 3, H, W), their sizes without padding (B, 2), those of the files (B, 2).
        precision: of the forward pass.
        names: B things that an error calls the images.

    Raises:
        FloatingPointError: the model's output is not a number.
    """
    images, sizes, original_sizes = batch
    with autocast(images.device, precision):
        logits, deltas, anchors = model(images, sizes)
    undefined = logits.amax(dim=(1, 2)).isnan()  # (B,)
    if undefined.any():
        fix = "" if precision == "fp32" else f", or precision={precision} overflows: try fp32"
        which = ", ".join(str(names[i]) for i in undefined.nonzero().flatten().tolist())
        raise FloatingPointError(
            f"the model gives nan as logits of images [{which}]; its weights are not finite{fix}."
        )
    level_sizes = model.level_sizes(*images.shape[-2:])
    detections = postprocess(logits, deltas, anchors, sizes, level_sizes)
    return [to_original(*image) for image in zip(detections, sizes, original_sizes, strict=True)]


def as_arrays(detections: Sequence[Detections], image_ids: Tensor, cap: int) -> DetectionArrays:
    """Detections of one batch as arrays on the CPU.

    Args:
        detections: of B images, best first.
        image_ids: (B,).
        cap: ``postprocess.detections``.
    """
    ids = image_ids.cpu().numpy()
    row_ids = ids.repeat([len(image.scores) for image in detections])
    fields = zip(*detections, strict=True)
    boxes, scores, labels = (torch.cat(field).cpu().numpy() for field in fields)
    boxes = boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]  # x, y, width, height
    num_capped = count_capped(row_ids, scores, cap)
    return DetectionArrays(row_ids, boxes, scores.astype(np.float64), labels, ids, num_capped)


def count_capped(image_ids: np.ndarray, scores: np.ndarray, cap: int) -> int:
    """Images with ``cap`` detections of at least ``CONFIDENT_SCORE``, so that some may be cut off.

    Args:
        image_ids: (D,) of each detection.
        scores: (D,).
        cap: ``postprocess.detections``.
    """
    _, counts = np.unique(image_ids[scores >= CONFIDENT_SCORE], return_counts=True)
    return int((counts == cap).sum())


def merge(parts: Sequence[DetectionArrays]) -> DetectionArrays:
    """Several sets of images as one, sorted by image id.

    Args:
        parts: each with the detections of an image next to each other, best first, as
            post-processing leaves them. So they stay.

    Raises:
        ValueError: an image is in two of them.
    """
    ids = np.zeros(0, np.int64)  # a rank may have no image at all
    nothing = DetectionArrays(ids, np.zeros((0, 4)), np.zeros(0), ids, ids, num_capped=0)
    parts = [nothing, *parts]
    evaluated, count = np.unique(np.concatenate([p.evaluated for p in parts]), return_counts=True)
    if (count > 1).any():
        raise ValueError(
            f"images {evaluated[count > 1][:10].tolist()} were evaluated twice; each must come "
            f"from one rank and one batch."
        )
    order = np.argsort(np.concatenate([part.image_ids for part in parts]), kind="stable")
    columns = ("image_ids", "boxes", "scores", "labels")
    return DetectionArrays(
        **{name: np.concatenate([getattr(p, name) for p in parts])[order] for name in columns},
        evaluated=evaluated,
        num_capped=sum(part.num_capped for part in parts),
    )


def _with_progress(loader: Iterable[Batch], show: bool) -> Iterable[Batch]:
    """The batches, behind a bar that counts images, or a line of the log now and then."""
    total = len(loader) if hasattr(loader, "__len__") else None
    num_images, start = 0, time.monotonic()
    logged = start
    with tqdm(
        total=total,
        desc="detect",
        bar_format="{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} batches, {remaining} left"
        "{postfix}",
        dynamic_ncols=True,
        disable=not (show and has_bar()),
        leave=False,
    ) as bar:
        for number, batch in enumerate(loader, start=1):
            yield batch
            num_images += len(batch.image_ids)
            now = time.monotonic()
            rate = f"{num_images / max(now - start, 1e-9):.1f} images/s"
            bar.set_postfix_str(rate, refresh=False)
            bar.update()
            if show and bar.disable and now - logged >= LOG_EVERY_SECONDS:
                logged = now
                of_all = "" if total is None else f" of {total}"
                logger.info("detect     batch %d%s, %s", number, of_all, rate)
