"""The data loader: which images make a batch, each read and transformed, padded, in order.

What is loaded is a function of data, settings, seed and step, so that a run can go on at any step,
with any number of workers, ranks and micro-batches.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from retinanet.checks import check
from retinanet.data import draws
from retinanet.data.coco import CocoData
from retinanet.data.images import BadImage, read_image
from retinanet.data.splits import MAX_BAD_SHARE, describe_size, too_many_bad
from retinanet.data.transforms import Augment, Geometry
from retinanet.data.workers import (
    SharesArrays,
    check_shared_memory,
    num_cores,
    receive,
    share,
    shared_bytes,
    start_worker,
)

logger = logging.getLogger(__name__)

# Padded sizes are multiples of this, as in torchvision, detectron2 and mmdetection: the stride of
# C5. The strides of P6 and P7 are given, not derived, so their last cells may reach beyond.
DIVISOR = 32
# Label where a row of boxes is padding.
NO_BOX = -1


class Batch(NamedTuple):
    """Images of one padded size with their boxes."""

    # (B, 3, H, W) RGB, zeros at right and bottom; channels last in memory. uint8, or float32 from
    # 0 to 255 where resizing does not round.
    images: Tensor
    sizes: Tensor  # (B, 2) int64 valid height, width
    boxes: Tensor  # (B, G, 4) float32, zeros where there are fewer than G
    labels: Tensor  # (B, G) int64, NO_BOX there
    crowds: Tensor  # (B, C, 4) float32, zeros where there are fewer than C
    image_ids: Tensor  # (B,) int64
    original_sizes: Tensor  # (B, 2) int64 height, width of the files
    replaced: tuple[str, ...] = ()  # why images were replaced, one message each

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        tensors = (tensor.to(device, non_blocking=non_blocking) for tensor in self[:-1])
        return Batch(*tensors, self.replaced)

    def pin_memory(self) -> Batch:
        """The batch in memory that a GPU reads without waiting."""
        return Batch(*(tensor.pin_memory() for tensor in self[:-1]), self.replaced)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """A batch that is to be made."""

    epoch: int
    indices: tuple[int, ...]  # of images in CocoData
    geometries: tuple[Geometry, ...]  # of each image, drawn once
    padded: tuple[int, int]  # H, W


def padded_size(size: np.ndarray) -> np.ndarray:
    """Heights and widths rounded up to multiples of ``DIVISOR``."""
    return -(-np.asarray(size) // DIVISOR) * DIVISOR


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
) -> list[list[BatchPlan]]:
    """One epoch for one rank: the micro-batches of every step.

    The images are shuffled by (seed, epoch, image id); those without a box take part only with
    ``keep_empty``. ``batch_size`` counts the images of one step over all ranks and micro-batches;
    what does not fill a last step is left out, other images in each epoch. With fewer images than
    one step takes, they repeat. Landscape images come together, and so do portrait images; at most
    one step mixes them. Each step has one padded size.

    Which images make step i does not depend on ranks and micro-batches: they share them out.

    Raises:
        ValueError: no image is left, or ``batch_size`` cannot be shared out.
    """
    parts = accumulate * world_size
    if batch_size % parts:
        raise ValueError(
            f"optim.batch_size={batch_size} cannot be shared out equally over {world_size} "
            f"rank(s) with optim.accumulate={accumulate}; make it a multiple of {parts}."
        )
    images = np.arange(len(data)) if keep_empty else np.flatnonzero(data.num_boxes())
    if not len(images):
        raise ValueError(
            f"{data.path} has no image with a box to train on; set data.keep_empty=true to train "
            f"on images without boxes, or check the annotations."
        )
    keys = draws.uniform(seed, epoch, data.image_ids[images], draws.ORDER)
    images = images[np.argsort(keys, kind="stable")]
    images = np.resize(images, max(len(images) // batch_size, 1) * batch_size)  # cut, or repeated
    # Stable: within landscape and within portrait the images stay shuffled.
    portrait = data.sizes[images, 0] > data.sizes[images, 1]
    steps = images[np.argsort(portrait, kind="stable")].reshape(-1, batch_size)  # (S, batch)
    keys = draws.uniform(seed, epoch, np.arange(len(steps)), draws.STEPS)
    steps = steps[np.argsort(keys, kind="stable")]  # (S, batch)

    geometries = augment.plan_all(data.sizes, seed, epoch, data.image_ids)
    padded = padded_size(geometries.window[steps, 2:].max(axis=1)).tolist()
    mine = steps.reshape(len(steps), accumulate, world_size, -1)[:, :, rank].tolist()
    return [
        [
            BatchPlan(epoch, tuple(indices), tuple(geometries[i] for i in indices), (H, W))
            for indices in step
        ]
        for step, (H, W) in zip(mine, padded, strict=True)
    ]


def eval_plan(
    data: CocoData, augment: Augment, *, batch_size: int, max_images: int | None = None
) -> list[BatchPlan]:
    """Batches that hold each image once, of one padded size each, the largest first.

    Only the first ``max_images`` of the file, if given; ``augment`` is one with ``train=False``.
    """
    count = len(data) if max_images is None else min(max_images, len(data))
    geometries = augment.plan_all(data.sizes[:count], 0, 0, data.image_ids[:count])
    padded = padded_size(geometries.window[:, 2:])
    shapes, group = np.unique(padded, axis=0, return_inverse=True)
    plans = []
    for number in np.argsort(-shapes.prod(axis=1), kind="stable"):
        members = np.flatnonzero(group.reshape(-1) == number).tolist()
        for start in range(0, len(members), batch_size):
            some = tuple(members[start : start + batch_size])
            each = tuple(geometries[i] for i in some)
            plans.append(BatchPlan(0, some, each, tuple(shapes[number].tolist())))
    return plans


def plan_batch(
    data: CocoData,
    augment: Augment,
    indices: Sequence[int],
    padded: tuple[int, int] | None = None,
    *,
    epoch: int = 0,
) -> BatchPlan:
    """One batch of chosen images; padded as far as they need, or to ``padded`` height and width."""
    chosen = np.asarray(indices)
    geometries = augment.plan_all(data.sizes[chosen], 0, epoch, data.image_ids[chosen])
    if padded is None:
        padded = tuple(padded_size(geometries.window[:, 2:].max(axis=0)).tolist())
    each = tuple(geometries[i] for i in range(len(chosen)))
    return BatchPlan(epoch, tuple(chosen.tolist()), each, padded)


class Sample(NamedTuple):
    """One image of a batch, before padding."""

    image: Tensor  # (3, H, W)
    boxes: Tensor  # (G, 4) pixels
    labels: Tensor  # (G,)
    crowds: Tensor  # (C, 4) pixels
    index: int


class BatchDataset(SharesArrays, Dataset):
    """Makes the batch of a plan, in whatever process it is asked.

    With ``on_bad_image="skip"``, another image takes the place of an unreadable one.
    """

    def __init__(self, data: CocoData, augment: Augment, seed: int, on_bad_image: str) -> None:
        check("data.on_bad_image", on_bad_image)
        self.data = data
        self.augment = augment
        self.seed = seed
        self.skip = on_bad_image == "skip"

    def __getitem__(self, plan: BatchPlan) -> Batch | Exception:
        """The batch; or the user's mistake that prevents it, for :class:`BatchLoader` to raise.

        Raised in a worker it would reach the user as a traceback in a traceback.
        """
        replaced: list[str] = []
        try:
            samples = [
                self.read_or_replace(index, geometry, plan, replaced)
                for index, geometry in zip(plan.indices, plan.geometries, strict=True)
            ]
        except (ValueError, OSError) as error:
            return error.with_traceback(None)
        B, (H, W) = len(samples), plan.padded
        rounded = all(sample.image.dtype == torch.uint8 for sample in samples)
        dtype = torch.uint8 if rounded else torch.float32
        images = torch.zeros(B, H, W, 3, dtype=dtype).permute(0, 3, 1, 2)  # (B, 3, H, W)
        for i, sample in enumerate(samples):
            _, height, width = sample.image.shape
            images[i, :, :height, :width] = sample.image
        _, boxes, labels, crowds, indices = zip(*samples, strict=True)
        return Batch(
            images=images,
            sizes=torch.tensor([sample.image.shape[1:] for sample in samples]),
            boxes=pad_sequence(boxes, batch_first=True),  # (B, G, 4)
            labels=pad_sequence(labels, batch_first=True, padding_value=NO_BOX),  # (B, G)
            crowds=pad_sequence(crowds, batch_first=True),  # (B, C, 4)
            image_ids=torch.from_numpy(self.data.image_ids[list(indices)]),
            original_sizes=torch.from_numpy(self.data.sizes[list(indices)].astype(np.int64)),
            replaced=tuple(replaced),
        )

    def read_or_replace(
        self, index: int, geometry: Geometry, plan: BatchPlan, replaced: list[str]
    ) -> Sample:
        """One image, or what stands in for it where it is unreadable.

        In evaluation that is a black image, so that its objects count as missed. In training it is
        the next readable image of the file that fits into the batch, with objects if the
        unreadable one has some: the choice depends on the files alone. ``replaced`` gets the cause
        of every unreadable image met.

        Raises:
            BadImage: the image is unreadable and must not, or cannot, be replaced.
            FileNotFoundError: likewise, there is no such file.
            ValueError: the image has another size than the annotations say.
        """
        try:
            return self._read(index, geometry)
        except (BadImage, FileNotFoundError) as error:
            if not self.skip:
                train = self.augment.train
                instead = "use another image in its place" if train else "miss its objects"
                raise type(error)(
                    f"{str(error).rstrip('.')}, listed in {self.data.path} as {self._where(index)}."
                    f" Replace the file, or set data.on_bad_image=skip to {instead}."
                ) from error
            replaced.append(str(error))
        if not self.augment.train:
            black = torch.zeros(3, *geometry.valid, dtype=torch.uint8)
            none = torch.zeros(0, 4)
            return Sample(black, none, torch.zeros(0, dtype=torch.int64), none, index)
        N = len(self.data)
        has_boxes = len(self.data.boxes(index)[0]) > 0
        for other in ((index + step) % N for step in range(1, N)):
            height, width = self.data.sizes[other].tolist()
            image_id = int(self.data.image_ids[other])
            geometry = self.augment.plan(height, width, self.seed, plan.epoch, image_id)
            fits = geometry.valid[0] <= plan.padded[0] and geometry.valid[1] <= plan.padded[1]
            if not fits or (has_boxes and not len(self.data.boxes(other)[0])):
                continue
            try:
                return self._read(other, geometry)
            except (BadImage, FileNotFoundError) as error:
                replaced.append(str(error))
        raise BadImage(f"{replaced[-1]} No other image can take its place.")

    def _read(self, index: int, geometry: Geometry) -> Sample:
        """One image from its file, transformed."""
        image = read_image(self.data.image_path(index))
        size = tuple(image.shape[1:])
        if size != tuple(self.data.sizes[index].tolist()):
            _, sizes, fix = describe_size(self.data, index, size)
            raise ValueError(f"{self.data.path}: {self._where(index)}: {sizes}. {fix}")
        boxes, labels = self.data.boxes(index)
        return Sample(*self.augment(image, boxes, labels, self.data.crowds(index), geometry), index)

    def _where(self, index: int) -> str:
        return f"images[{index}] (id {self.data.image_ids[index]})"


class BatchLoader:
    """Batches in the order of their plans, whatever the number of workers.

    To continue in mid-epoch, leave out the plans already used. ``bad`` holds the message of every
    unreadable image that was replaced so far.
    """

    def __init__(
        self,
        data: CocoData,
        augment: Augment,
        plans: Iterable[BatchPlan],
        *,
        seed: int = 0,
        workers: int = 0,
        on_bad_image: str = "stop",
        pin_memory: bool = False,
    ) -> None:
        """Prepare the workers.

        Args:
            data: where images and boxes come from.
            augment: what happens to them.
            plans: a list, or an iterator over several epochs.
            seed: of the run, as given to the plan.
            workers: processes, as far as there are CPU cores; no effect on what is loaded.
            on_bad_image: ``"stop"``, or ``"skip"`` to replace unreadable images.
            pin_memory: for a GPU.

        Raises:
            LoaderError: /dev/shm cannot hold what the workers of a list of plans read ahead.
        """
        check("data.workers", workers)
        workers = min(workers, num_cores())
        if isinstance(plans, Sequence):
            check_shared_memory(shared_bytes(plans, augment.rule, workers, limit=len(plans)))
        self.bad: set[str] = set()
        self._num_images = len(data)
        self._training = augment.train
        self._plans = plans
        self._loader = DataLoader(
            BatchDataset(data, augment, seed, on_bad_image),
            batch_size=None,
            sampler=plans,
            num_workers=workers,
            collate_fn=share,
            pin_memory=pin_memory,
            worker_init_fn=start_worker,
            # An own generator: the loader would draw from the global one, and change what the
            # training draws after a restart.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._plans)

    def __iter__(self) -> Iterator[Batch]:
        """Make the batches; warn once of every bad image, and stop when there are too many.

        Raises:
            ValueError: an image is unreadable or of another size than the file says, or too many
                were replaced.
            FileNotFoundError: an image does not exist.
            LoaderError: a worker failed.
        """
        for batch in receive(self._loader):
            if isinstance(batch, Exception):
                raise batch
            what = "Another image takes its place." if self._training else "Its objects are missed."
            for message in batch.replaced:
                if message not in self.bad:
                    self.bad.add(message)
                    logger.warning("%s %s", message, what)
            if too_many_bad(len(self.bad), self._num_images):
                raise ValueError(
                    f"{len(self.bad)} of {self._num_images} images are unreadable, more than "
                    f"{MAX_BAD_SHARE:.0%}; the last: {batch.replaced[-1]} Check the image folder."
                )
            yield batch


class TrainingLoader:
    """What this rank sees at every step: a function of the step, so a run can go on anywhere."""

    def __init__(
        self,
        data: CocoData,
        augment: Augment,
        *,
        seed: int,
        batch_size: int,
        accumulate: int,
        keep_empty: bool,
        on_bad_image: str,
        workers: int,
        rank: int,
        world_size: int,
        pin_memory: bool,
    ) -> None:
        """Plan the first epoch, to know its length.

        Args and Raises: of :func:`train_plan` and :class:`BatchLoader`.
        """
        self.bad_images: set[str] = set()
        self.data = data
        self.augment = augment
        self.accumulate = accumulate
        planned = {"seed": seed, "batch_size": batch_size, "accumulate": accumulate}
        planned |= {"rank": rank, "world_size": world_size, "keep_empty": keep_empty}
        self._epoch = partial(train_plan, data, augment, **planned)
        loaded = {"seed": seed, "workers": workers, "on_bad_image": on_bad_image}
        self._load = partial(BatchLoader, data, augment, pin_memory=pin_memory, **loaded)
        first = self._epoch(epoch=0)
        self.steps_per_epoch = len(first)
        # Of /dev/shm, for batches as large as the largest of the first epoch.
        plans = list(itertools.chain.from_iterable(first))
        self.shared_bytes = shared_bytes(plans, augment.rule, workers, steps_held=accumulate)

    def steps(self, first: int, end: int) -> Iterator[list[Batch]]:
        """Micro-batches of the steps ``first``, counted from 0, to ``end - 1``, loaded ahead."""
        loader = self._load(self._plans(first, end))
        self.bad_images = loader.bad  # messages; grows while the loader works
        batches = iter(loader)
        while step := list(itertools.islice(batches, self.accumulate)):
            yield step

    def _plans(self, step: int, end: int) -> Iterator[BatchPlan]:
        """Plans of the batches in the order of steps, planned epoch by epoch."""
        while step < end:
            epoch, done = divmod(step, self.steps_per_epoch)
            plan = self._epoch(epoch=epoch)[done : done + end - step]
            yield from itertools.chain.from_iterable(plan)
            step += len(plan)
