"""Sums over the steps since the last row of the log, kept on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from retinanet.distributed import all_reduce_sum, world_size
from retinanet.matching import NEGATIVE, Match


@dataclass(frozen=True, slots=True)
class Means:
    """What one row of the log says."""

    steps: int
    images: int  # over all ranks
    class_loss: float
    box_loss: float
    grad_norm: float
    positives: float  # anchors of a step, over all ranks
    background: float  # likewise
    bad_steps: int  # whose loss or gradient was not finite
    bad_images: list[int]  # image ids of the first such step on this rank


class Totals:
    """Adds up a step's numbers without reading them; reading is the only host sync."""

    def __init__(self, device: torch.device) -> None:
        """Start at zero.

        Args:
            device: where the numbers come from.
        """
        self.device = device
        self._clear()

    def _clear(self) -> None:
        # Class loss, box loss, gradient norm, positives, background, bad steps.
        self.sums = torch.zeros(6, device=self.device, dtype=torch.float64)
        self.step_losses = torch.zeros(2, device=self.device, dtype=torch.float64)
        self.first_bad = torch.tensor(-1, device=self.device)
        self.image_ids: list[list[Tensor]] = []

    def add_loss(self, losses: dict[str, Tensor]) -> None:
        """Losses of one micro-batch."""
        self.step_losses += torch.stack([losses["class"], losses["box"]]).detach()

    def add_step(
        self, image_ids: list[Tensor], matches: list[Match], grad_norm: Tensor, finite: Tensor
    ) -> None:
        """What remains to be counted of a step.

        Args:
            image_ids: of its micro-batches, on the host.
            matches: of its micro-batches.
            grad_norm: () before clipping.
            finite: () bool, whether the step counted.
        """
        positives = sum((match.label >= 0).sum() for match in matches)
        background = sum((match.label == NEGATIVE).sum() for match in matches)
        counts = torch.stack([grad_norm.double(), positives, background, ~finite])
        self.sums += torch.cat([self.step_losses, counts])
        self.step_losses = torch.zeros_like(self.step_losses)
        first = ~finite & (self.first_bad < 0)
        self.first_bad = torch.where(first, len(self.image_ids), self.first_bad)
        self.image_ids.append(image_ids)

    def take(self) -> Means:
        """Means over the steps since the last call, and start again; every rank must call it."""
        images = torch.tensor([sum(map(len, step)) for step in self.image_ids]).sum()
        packed = torch.cat([self.sums, images.to(self.sums)[None]])
        packed = all_reduce_sum(packed).tolist()
        class_loss, box_loss, grad_norm, positives, background, bad, num_images = packed
        steps, ranks = len(self.image_ids), world_size()
        first_bad = int(self.first_bad)
        bad_images = torch.cat(self.image_ids[first_bad]).tolist() if first_bad >= 0 else []
        self._clear()
        return Means(
            steps=steps,
            images=int(num_images),
            class_loss=class_loss / ranks / steps,
            box_loss=box_loss / ranks / steps,
            grad_norm=grad_norm / ranks / steps,
            positives=positives / steps,
            background=background / steps,
            # Up, not to the nearest: a loss may be infinite on one rank alone.
            bad_steps=math.ceil(bad / ranks),
            bad_images=bad_images,
        )
