"""The batches of a whole run, one optimizer step after the other, from any step on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from retinanet.data.batches import Batch, Request, make_loader, shared_bytes, train_plan
from retinanet.data.coco import CocoData
from retinanet.data.transforms import Augment


class TrainingStream:
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
        """Remember, and plan the first epoch to know its length.

        Args:
            data: the training set.
            augment: decides sizes and pixels.
            seed: of the run.
            batch_size: images of one step over all ranks and micro-batches.
            accumulate: micro-batches of a step.
            keep_empty: also images without a box.
            on_bad_image: ``"stop"`` or ``"skip"``.
            workers: loader processes; no effect on what is loaded.
            rank: of this process.
            world_size: number of processes.
            pin_memory: for a GPU.

        Raises:
            ValueError: no image to train on, or a batch that cannot be shared out.
        """
        self.bad_images: set[str] = set()
        self.data = data
        self.augment = augment
        self.accumulate = accumulate
        self._plan = {"seed": seed, "batch_size": batch_size, "accumulate": accumulate}
        self._plan |= {"rank": rank, "world_size": world_size, "keep_empty": keep_empty}
        self._load = {"seed": seed, "workers": workers, "on_bad_image": on_bad_image}
        self._load["pin_memory"] = pin_memory
        first = self._epoch(0)
        self.steps_per_epoch = len(first)
        # Of /dev/shm, for batches as large as the largest of the first epoch.
        self.shared_bytes = shared_bytes(
            list(itertools.chain.from_iterable(first)), augment, workers, steps_held=accumulate
        )

    def steps(self, first: int, end: int) -> Iterator[list[Batch]]:
        """Micro-batches of the steps ``first`` to ``end - 1``, loaded ahead.

        Args:
            first: number of steps made already.
            end: length of the run.
        """
        requests = self._requests(first, end)
        loader = make_loader(self.data, self.augment, requests, **self._load)
        self.bad_images = loader.bad  # messages; grows while the loader works
        batches = iter(loader)
        while step := list(itertools.islice(batches, self.accumulate)):
            yield step

    def _requests(self, step: int, end: int) -> Iterator[Request]:
        """Requests in the order of steps, planned epoch by epoch."""
        while step < end:
            epoch, done = divmod(step, self.steps_per_epoch)
            plan = self._epoch(epoch)[done : done + end - step]
            yield from itertools.chain.from_iterable(plan)
            step += len(plan)

    def _epoch(self, epoch: int) -> list[list[Request]]:
        return train_plan(self.data, self.augment, epoch=epoch, **self._plan)
