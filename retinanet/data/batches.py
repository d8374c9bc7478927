"""Which images make a batch, and the loader that makes it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from retinanet.checks import check
from retinanet.data import draws
from retinanet.data.coco import CocoData
from retinanet.data.padding import Batch, pad
from retinanet.data.samples import Samples
from retinanet.data.transforms import Augment
from retinanet.data.workers import (
    PREFETCH,
    check_shared_memory,
    receive,
    share,
    start_worker,
)

logger = logging.getLogger(__name__)

# Padded sizes are multiples of this, as in torchvision, detectron2 and mmdetection: the stride of
# C5. The strides of P6 and P7 are given, not derived, so their last cells may reach beyond.
DIVISOR = 32

# With data.on_bad_image=skip a run stops when more than this share of its images is bad: then
# the folder is wrong, not a few files.
MAX_BAD_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Request:
    """A batch that is to be made."""

    epoch: int
    indices: tuple[int, ...]  # of images in CocoData
    padded: tuple[int, int]  # H, W


def train_plan(
    data: CocoData,
    augment: Augment,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    accumulate: int,
    rank: int,
    world_size: int,
    keep_empty: bool,
) -> list[list[Request]]:
    """One epoch for one rank.

    The images are shuffled by (seed, epoch, image id). Those beyond a multiple of
    ``batch_size`` are left out, other ones in each epoch and every image with the same
    probability; with fewer images than that, images repeat to make one step. Landscape images
    come together, and so do portrait images; at most one step mixes them. Each step has one
    padded size, on every rank and in every micro-batch.

    Which images make step i depends on the data, ``seed``, ``epoch``, ``batch_size`` and
    ``keep_empty`` alone; ranks and micro-batches share them out.

    Args:
        data: the training set.
        augment: decides the size of every sample.
        seed: of the run.
        epoch: from 0.
        batch_size: images of one step over all ranks and micro-batches.
        accumulate: micro-batches of a step.
        rank: of this process.
        world_size: number of processes.
        keep_empty: also images without a box.

    Returns:
        The micro-batches of every step.

    Raises:
        ValueError: no image is left, or ``batch_size`` cannot be shared out.
    """
    parts = accumulate * world_size
    if batch_size % parts:
        raise ValueError(
            f"optim.batch_size={batch_size} cannot be shared out equally over {world_size} "
            f"rank(s) with optim.accumulate={accumulate}; make it a multiple of {parts}."
        )
    steps = _steps(data, seed, epoch, batch_size, keep_empty)  # (steps, batch_size)
    geometries = augment.plan_all(data.sizes, seed, epoch, data.image_ids)
    padded = padded_size(geometries.window[steps, 2:].max(axis=1)).tolist()
    mine = steps.reshape(len(steps), accumulate, world_size, -1)[:, :, rank].tolist()
    return [
        [Request(epoch, tuple(indices), (H, W)) for indices in step]
        for step, (H, W) in zip(mine, padded, strict=True)
    ]


def _steps(data: CocoData, seed: int, epoch: int, batch_size: int, keep_empty: bool) -> np.ndarray:
    """(steps, batch_size) indices of images."""
    images = np.arange(len(data)) if keep_empty else np.flatnonzero(data.num_boxes())
    if not len(images):
        raise ValueError(
            f"{data.path} has no image with a box to train on; set data.keep_empty=true to train "
            f"on images without boxes, or check the annotations."
        )
    keys = draws.uniform(seed, epoch, data.image_ids[images], draws.ORDER)
    images = images[np.argsort(keys, kind="stable")]
    images = np.resize(images, max(len(images) // batch_size, 1) * batch_size)
    # Stable: within landscape and within portrait the images stay shuffled.
    portrait = data.sizes[images, 0] > data.sizes[images, 1]
    steps = images[np.argsort(portrait, kind="stable")].reshape(-1, batch_size)
    keys = draws.uniform(seed, epoch, np.arange(len(steps)), draws.STEPS)
    return steps[np.argsort(keys, kind="stable")]


def padded_size(size: np.ndarray) -> np.ndarray:
    """Heights and widths rounded up to multiples of ``DIVISOR``."""
    return -(-np.asarray(size) // DIVISOR) * DIVISOR


def eval_plan(
    data: CocoData, augment: Augment, *, batch_size: int, max_images: int | None = None
) -> list[Request]:
    """Batches that hold each image once, of one padded size each, the largest first.

    Args:
        data: the set to evaluate.
        augment: one made with ``train=False``.
        batch_size: images at most.
        max_images: only the first images of the file; None: all.
    """
    count = len(data) if max_images is None else min(max_images, len(data))
    geometries = augment.plan_all(data.sizes[:count], 0, 0, data.image_ids[:count])
    padded = padded_size(geometries.window[:, 2:])
    shapes, group = np.unique(padded, axis=0, return_inverse=True)
    requests = []
    for number in np.argsort(-shapes.prod(axis=1), kind="stable"):
        members = np.flatnonzero(group.reshape(-1) == number).tolist()
        H, W = shapes[number].tolist()
        requests += [
            Request(0, tuple(members[start : start + batch_size]), (H, W))
            for start in range(0, len(members), batch_size)
        ]
    return requests


class Batches(Dataset):
    """Makes the batch of a request, in whatever process it is asked."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, request: Request) -> Batch | Exception:
        """The batch; or the user's mistake that prevents it, for :class:`Loader` to raise.

        Raised in a worker it would reach the user as a traceback in a traceback.
        """
        replaced: list[str] = []
        try:
            samples = [
                self.samples.read(index, request.epoch, request.padded, replaced)
                for index in request.indices
            ]
        except (ValueError, OSError) as error:
            return error.with_traceback(None)
        return pad(samples, request.padded, self.samples.data, tuple(replaced))


class Loader:
    """Batches in the order of their requests, whatever the number of workers.

    ``bad`` holds the message of every unreadable image that was replaced so far.
    """

    def __init__(
        self,
        samples: Samples,
        requests: Iterable[Request],
        workers: int,
        pin_memory: bool,
    ) -> None:
        self.bad: set[str] = set()
        self._num_images = len(samples.data)
        self._training = samples.augment.train
        self._requests = requests
        self._loader = DataLoader(
            Batches(samples),
            batch_size=None,
            sampler=requests,
            num_workers=workers,
            collate_fn=share,
            pin_memory=pin_memory,
            worker_init_fn=start_worker,
            # An own generator: the loader would draw from the global one, and change what the
            # training draws after a restart.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Batch]:
        """Make the batches.

        Raises:
            ValueError: an image is unreadable or of another size than the file says, or too many
                were replaced.
            FileNotFoundError: an image does not exist.
            LoaderError: a worker failed.
        """
        for batch in receive(self._loader):
            if isinstance(batch, Exception):
                raise batch
            self._count(batch.replaced)
            yield batch

    def _count(self, messages: Sequence[str]) -> None:
        """Warn once of every bad image, and stop when there are too many."""
        what = "Another image takes its place." if self._training else "Its objects are missed."
        for message in messages:
            if message not in self.bad:
                self.bad.add(message)
                logger.warning("%s %s", message, what)
        if len(self.bad) > max(1, MAX_BAD_SHARE * self._num_images):
            raise ValueError(
                f"{len(self.bad)} of {self._num_images} images are unreadable, more than "
                f"{MAX_BAD_SHARE:.0%}; the last: {messages[-1]} Check the image folder."
            )


def make_loader(
    data: CocoData,
    augment: Augment,
    requests: Iterable[Request],
    *,
    seed: int,
    workers: int,
    on_bad_image: str,
    pin_memory: bool,
) -> Loader:
    """A loader of the batches that are requested.

    To continue in mid-epoch, leave out the requests already used.

    Args:
        data: where images and boxes come from.
        augment: what happens to them.
        requests: from :func:`train_plan` or :func:`eval_plan`; several epochs may follow on each
            other.
        seed: of the run, as given to the plan.
        workers: processes, as far as there are CPU cores; 0 for none.
        on_bad_image: ``stop`` or ``skip``.
        pin_memory: for a GPU.

    Raises:
        LoaderError: /dev/shm cannot hold what the workers of a list of requests read ahead.
    """
    check("data.workers", workers)
    workers = min(workers, num_cores())
    if isinstance(requests, Sequence):
        check_shared_memory(shared_bytes(requests, augment, workers, limit=len(requests)))
    return Loader(Samples(data, augment, seed, on_bad_image), requests, workers, pin_memory)


def shared_bytes(
    requests: Sequence[Request],
    augment: Augment,
    workers: int,
    *,
    steps_held: int = 1,
    limit: int | None = None,
) -> int:
    """Shared memory that workers fill at most, in bytes: with batches of the largest size.

    Args:
        requests: among them the largest batch.
        augment: of these images.
        workers: processes, as far as there are CPU cores; 0 for none.
        steps_held: batches of a step; those of one may be in use while the next ones come.
        limit: batches at most; None: any number.
    """
    workers = min(workers, num_cores())
    if not workers or not requests:
        return 0
    pixels = max(len(r.indices) * r.padded[0] * r.padded[1] for r in requests)
    batches = PREFETCH * workers + 2 * steps_held
    num_batches = batches if limit is None else min(batches, limit)
    # torchvision's rule does not round: float32.
    return num_batches * 3 * pixels * (4 if augment.rule == "torchvision" else 1)


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
