"""What goes into the contestants and what comes out, in the form each of them wants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retinanet import build
from retinanet.config import TrainConfig
from retinanet.data.coco import CocoData
from retinanet.data.loader import Batch, BatchLoader, Loader, Request, eval_plan, train_plan
from retinanet.data.transforms import Augment
from retinanet.evaluation.detect import DetectionArrays, merge
from retinanet.model.retinanet import RGB_MEAN, RGB_STD
from retinanet.postprocess import Detections
from scripts.peers.rates import Rates


@dataclass(frozen=True, slots=True)
class Setup:
    """What a contestant is made of."""

    settings: TrainConfig
    train: CocoData
    val: CocoData
    device: torch.device
    rates: Rates  # learning rate of every step


def train_batches(setup: Setup, step: int) -> Iterable[Batch]:
    """The batches of ``train.py``, from the one of ``step`` on, without end."""
    settings = setup.settings
    augment = build.build_augment(settings, train=True)

    def plan(epoch: int) -> list[list[Request]]:
        return train_plan(
            setup.train,
            augment,
            seed=settings.seed,
            epoch=epoch,
            batch_size=settings.optim.batch_size,
            accumulate=1,
            rank=0,
            world_size=1,
            keep_empty=settings.data.keep_empty,
        )

    def requests() -> Iterator[Request]:
        epoch, done = divmod(step, len(plan(0)))
        while True:
            yield from (request for (request,) in plan(epoch)[done:])
            epoch, done = epoch + 1, 0

    return _loader(setup, augment, requests(), setup.train)


def val_batches(setup: Setup) -> Iterable[Batch]:
    """The batches that ``train.py`` evaluates on."""
    evaluation = setup.settings.evaluation
    augment = build.build_augment(setup.settings, train=False)
    requests = eval_plan(
        setup.val, augment, batch_size=evaluation.batch_size, max_images=evaluation.max_images
    )
    return _loader(setup, augment, requests, setup.val)


def _loader(setup: Setup, augment: Augment, requests: Iterable[Request], data: CocoData) -> Loader:
    settings = setup.settings
    return BatchLoader(
        data,
        augment,
        requests,
        seed=settings.seed,
        workers=settings.data.workers,
        on_bad_image=settings.data.on_bad_image,
        pin_memory=False,
    )


def normalized(batch: Batch) -> list[Tensor]:
    """The images of a batch as torchvision's class takes them: without padding, normalized."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (RGB_MEAN, RGB_STD))
    return [
        (image[:, :height, :width].float() - mean) / std
        for image, (height, width) in zip(batch.images, batch.sizes.tolist(), strict=True)
    ]


def targets_of(batch: Batch) -> list[dict[str, Tensor]]:
    """The boxes of a batch as torchvision's class takes them: a list, without padding."""
    return [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]}
        for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
    ]


def collect(found: Iterable[tuple[int, Detections]], cap: int) -> DetectionArrays:
    """Detections of single images as the evaluator takes them.

    Args:
        found: image id and detections, boxes in pixels of the file; each image once.
        cap: detections that an image can have.
    """
    return merge([_arrays(image_id, detections, cap) for image_id, detections in found])


def _arrays(image_id: int, found: Detections, cap: int) -> DetectionArrays:
    boxes, scores, labels = (field.cpu().numpy() for field in found)
    boxes = boxes.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]  # x, y, width, height
    return DetectionArrays(
        image_ids=np.full(len(scores), image_id, dtype=np.int64),
        boxes=boxes,
        scores=scores.astype(np.float64),
        labels=labels,
        evaluated=np.array([image_id], dtype=np.int64),
        num_capped=int(len(scores) == cap),
    )
