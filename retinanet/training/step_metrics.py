"""Numbers of the steps since the last row of the log, kept on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retinanet.distributed import all_reduce_sum, gather_objects, is_main, world_size
from retinanet.matching import NEGATIVE, Match

# Columns of a step. The first three are means over the ranks, the others sums.
CLASS_LOSS, BOX_LOSS, GRAD_NORM, POSITIVES, BACKGROUND, IMAGES, BAD = range(7)
NUM_MEANS, NUM_COLUMNS = 3, 7


@dataclass(frozen=True, slots=True)
class BadStep:
    """A step that was skipped: a loss on some rank, or the gradient, was not finite."""

    steps_ago: int  # 0: the latest
    class_loss: float  # mean over the ranks, and so the next two
    box_loss: float
    grad_norm: float
    image_ids: list[int]  # of this rank
    blamed: bool  # whether a loss of this rank was not finite


@dataclass(frozen=True, slots=True)
class Means:
    """What one row of the log says; of the steps that were not skipped."""

    steps: int  # skipped or not
    images: int  # of all steps that this process made, over all ranks; right on the main one
    class_loss: float
    box_loss: float
    grad_norm: float
    positives: float  # anchors of a step, over all ranks
    background: float  # likewise
    with_objects: float  # share of the steps that had a positive anchor
    bad: list[BadStep]
    grad_norms: list[float]  # of every step


class Totals:
    """Sums of the steps' numbers on the device; :meth:`take` and :meth:`state_dict` wait for it."""

    def __init__(self, device: torch.device) -> None:
        """Start with no step; the numbers come from ``device``."""
        self.device = device
        self.dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's lack it
        self._clear()

    def _clear(self) -> None:
        self.step_losses = torch.zeros(2, device=self.device, dtype=self.dtype)
        self.rows: list[Tensor] = []  # (NUM_COLUMNS,) of each step on this rank
        self.image_ids: list[list[Tensor]] = []  # of each step's micro-batches
        self.images_before = 0  # in steps of these that another process made

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
        num_images = torch.full_like(positives, sum(map(len, image_ids)))
        counts = torch.stack([grad_norm.to(self.dtype), positives, background, num_images, ~finite])
        self.rows.append(torch.cat([self.step_losses, counts]))
        self.step_losses = torch.zeros_like(self.step_losses)
        self.image_ids.append(image_ids)

    def take(self) -> Means:
        """Means over the steps since the last call, and start again; every rank must call it."""
        rows = self._over_ranks()
        good = rows[rows[:, BAD] == 0]
        means = good.mean(dim=0) if len(good) else torch.full((NUM_COLUMNS,), math.nan)
        class_loss, box_loss, grad_norm, positives, background, *_ = means.tolist()
        result = Means(
            steps=len(rows),
            images=int(rows[:, IMAGES].sum()) - self.images_before,
            class_loss=class_loss,
            box_loss=box_loss,
            grad_norm=grad_norm,
            positives=positives,
            background=background,
            with_objects=(good[:, POSITIVES] > 0).double().mean().item(),
            bad=self._bad_steps(rows),
            grad_norms=rows[:, GRAD_NORM].tolist(),
        )
        self._clear()
        return result

    def _over_ranks(self) -> Tensor:
        """(S, NUM_COLUMNS) of all ranks, on the host."""
        if not self.rows:
            return torch.zeros(0, NUM_COLUMNS)
        rows = all_reduce_sum(torch.stack(self.rows))
        rows[:, :NUM_MEANS] /= world_size()
        return rows.cpu().double()

    def _bad_steps(self, rows: Tensor) -> list[BadStep]:
        return [
            BadStep(
                len(rows) - 1 - step,
                *rows[step, :NUM_MEANS].tolist(),
                image_ids=[int(i) for part in self.image_ids[step] for i in part],
                blamed=not self.rows[step][: BOX_LOSS + 1].isfinite().all(),
            )
            for step in rows[:, BAD].nonzero()[:, 0].tolist()
        ]

    def state_dict(self) -> dict[str, Any]:
        """The steps since the last row, for a checkpoint between rows; every rank must call it."""
        rows = self._over_ranks()
        return {"rows": rows, "suspects": suspects_of(self._bad_steps(rows))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, with any number of ranks: the main one holds the sums."""
        rows = state["rows"].to(self.device, self.dtype, copy=True)  # (S, NUM_COLUMNS)
        rows[:, :NUM_MEANS] *= world_size()
        self._clear()
        self.images_before = int(rows[:, IMAGES].sum()) if is_main() else 0
        self.rows = list(rows if is_main() else torch.zeros_like(rows))
        self.image_ids = [[] for _ in self.rows]
        bad = rows[:, BAD].nonzero()[:, 0].tolist()
        for step, ids in zip(bad, state["suspects"], strict=True):
            self.image_ids[step] = [torch.tensor(ids)] if is_main() else []


def suspects_of(bad: list[BadStep]) -> list[list[int]]:
    """Images that may have spoilt each step, of all ranks; every rank must call it.

    Those of the ranks whose own losses were not finite; where all were, everybody's.
    """
    if not bad:
        return []
    suspects = []
    for ranks in zip(*gather_objects([(step.blamed, step.image_ids) for step in bad]), strict=True):
        blamed = [ids for is_blamed, ids in ranks if is_blamed] or [ids for _, ids in ranks]
        suspects.append([image_id for ids in blamed for image_id in ids])
    return suspects
