"""The memory of a GPU: how large a micro-batch it holds, and what to do when one is too large."""

from __future__ import annotations

import contextlib
import copy

import torch
from torch.nn.utils import clip_grad_norm_

from retinanet.data.coco import CocoData
from retinanet.data.loader import Batch, padded_size
from retinanet.data.transforms import Augment, resized_sizes
from retinanet.distributed import any_rank
from retinanet.training.trainer import Trainer


def divisors(count: int) -> list[int]:
    """Numbers of equal parts of ``count``, the fewest first."""
    return [n for n in range(1, count + 1) if count % n == 0]


def explain_out_of_memory(trainer: Trainer, images: int, accumulate: int) -> str:
    """What did not fit in a step of so many images on this rank, and how to make it smaller."""
    B, _, H, W = trainer.latest.images.shape
    most = int((trainer.latest.labels >= 0).sum(dim=1).max())
    peak = total = 0.0
    if trainer.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(trainer.device) / 2**30
        total = torch.cuda.get_device_properties(trainer.device).total_memory / 2**30
    fix = "Lower data.min_size and data.max_size, or use a smaller model"
    parts = next((n for n in divisors(images) if n > accumulate), None)
    if parts is not None:
        fix = f"Set optim.accumulate={parts} (now {accumulate}): the same step in more parts"
    return (
        f"the GPU's memory is too small for step {trainer.step + 1}: {B} images of {H} x {W} "
        f"pixels with up to {most} boxes; {peak:.1f} of {total:.1f} GiB were in use. {fix}; the "
        f"same command then goes on from the last checkpoint."
    )


def worst_batch(data: CocoData, augment: Augment, images: int) -> Batch:
    """A batch that no batch of a run exceeds: the largest padded size and the most boxes.

    One step in an epoch mixes landscape and portrait images, so its size is as high as the highest
    and as wide as the widest of them. ``images`` are those of a step on this rank.
    """
    largest = resized_sizes(data.sizes, augment.min_sizes.max(), augment.max_size, augment.rule)
    H, W = padded_size(largest.max(axis=0)).tolist()
    index = int(data.num_boxes().argmax())
    boxes, labels = data.boxes(index)
    height, width = data.sizes[index].tolist()
    boxes = boxes * torch.tensor([W / width, H / height, W / width, H / height])
    crowds = max((data.crowds(i) for i in range(len(data))), key=len)
    sizes = torch.tensor([[H, W]]).repeat(images, 1)
    pixels = torch.zeros(images, H, W, 3, dtype=torch.uint8)
    return Batch(
        images=pixels.permute(0, 3, 1, 2),  # (B, 3, H, W)
        sizes=sizes,
        boxes=boxes.repeat(images, 1, 1),
        labels=labels.repeat(images, 1),
        crowds=crowds.repeat(images, 1, 1),
        image_ids=torch.zeros(images, dtype=torch.int64),
        original_sizes=sizes,
    )


def fewest_parts(trainer: Trainer, worst: Batch) -> int:
    """The fewest micro-batches with which a step of ``worst`` fits; every rank must call it.

    Tries steps, from one micro-batch on, and takes back all that they changed.

    Raises:
        MemoryError: not even one image fits.
    """
    # On the same device: what this takes there is the margin that the measurement leaves.
    before = copy.deepcopy(trainer.state_dict())
    for parts in divisors(len(worst.images)):
        failed = any_rank(not _fits(trainer, worst, parts))
        trainer.load_state_dict(copy.deepcopy(before))
        if trainer.device.type == "cuda":
            torch.cuda.empty_cache()
        if not failed:
            return parts
    H, W = worst.images.shape[-2:]
    raise MemoryError(
        f"the GPU's memory is too small for one image of {H} x {W} pixels with "
        f"{worst.labels.shape[1]} boxes; lower data.min_size and data.max_size, or use a smaller "
        f"model."
    )


def _fits(trainer: Trainer, worst: Batch, parts: int) -> bool:
    """Whether a step in so many parts runs on this rank, without a word to the others."""
    size = len(worst.images) // parts
    part = Batch(*(tensor[:size] for tensor in worst[:-1])).to(trainer.device)
    divisor = torch.ones(size, device=trainer.device)
    alone = getattr(trainer.network, "no_sync", contextlib.nullcontext)
    trainer.network.train()
    try:
        with alone():
            for _ in range(min(parts, 2)):  # the second finds the gradients of the first
                trainer.backward(trainer.forward_losses(part, trainer.match(part), divisor))
        trainer.update_weights(clip_grad_norm_(trainer.model.parameters(), trainer.max_grad_norm))
    except torch.OutOfMemoryError:
        return False
    finally:
        trainer.optimizer.zero_grad()
    return True
