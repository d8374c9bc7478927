"""From a model and a data set to detections and COCO's numbers: the one way to evaluate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch

from retinanet.data.coco import CocoData
from retinanet.data.loader import eval_plan, make_loader
from retinanet.data.transforms import Augment
from retinanet.distributed import on_main, rank, share_buffers, world_size
from retinanet.evaluation.coco import Evaluation, evaluate
from retinanet.evaluation.detect import DetectionArrays, detect
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Postprocess

logger = logging.getLogger(__name__)


def validate(
    model: RetinaNet,
    data: CocoData,
    augment: Augment,
    postprocess: Postprocess,
    *,
    device: torch.device,
    precision: str = "fp32",
    compiled: bool = False,
    batch_size: int = 8,
    workers: int = 0,
    on_bad_image: str = "stop",
    max_images: int | None = None,
    backend: str = "arrays",
    max_dets: Sequence[int] = (1, 10, 100),
    told_to_stop: Callable[[], bool] = lambda: False,
) -> tuple[Evaluation | None, DetectionArrays]:
    """Detect on every image once, shared out over the ranks, and score; every rank must call it.

    Batches are made before they are shared out, and hold images of one padded size: what is
    found in an image depends neither on the other images nor on the number of ranks.

    Args:
        model: on ``device``; left in the mode it came in.
        data: the images, and the ground truth if there is one.
        augment: resizing only.
        postprocess: logits to detections.
        device: of this rank.
        precision: of the forward pass.
        compiled: by torch.compile.
        batch_size: images per forward pass.
        workers: loader processes on each rank.
        on_bad_image: ``"stop"`` or ``"skip"``.
        max_images: only the first images; None: all.
        backend: of the COCO evaluator.
        max_dets: see :func:`retinanet.evaluation.coco.evaluate`.
        told_to_stop: see :func:`retinanet.evaluation.detect.detect`.

    Returns:
        The evaluation (None for data without annotations) and all detections, on every rank.

    Raises:
        Stopped: a rank was told to stop.
    """
    requests = eval_plan(data, augment, batch_size=batch_size, max_images=max_images)
    loader = make_loader(
        data,
        augment,
        requests[rank() :: world_size()],
        seed=0,
        workers=workers,
        on_bad_image=on_bad_image,
        pin_memory=device.type == "cuda",
    )
    share_buffers(model)
    start = time.perf_counter()
    found = detect(
        model,
        postprocess,
        loader,
        device,
        precision,
        compiled=compiled,
        progress=True,
        told_to_stop=told_to_stop,
    )
    seconds, num_images = time.perf_counter() - start, len(found.evaluated)
    logger.info("detected   %d images, %.1f images/s", num_images, num_images / seconds)
    if not data.annotated:
        return None, found
    return on_main(lambda: evaluate(data, found, found.evaluated, backend, max_dets)), found
