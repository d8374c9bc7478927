"""One optimizer step, and the loop around it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grad_norm_

from retinanet.data.loader import Batch
from retinanet.devices import autocast
from retinanet.losses import RetinaNetLoss
from retinanet.matching import Match, Matcher
from retinanet.model.retinanet import RetinaNet
from retinanet.training.optim import EMA, Schedule
from retinanet.training.step_metrics import Totals


class Trainer:
    """Everything that a step changes, and the step."""

    def __init__(
        self,
        model: RetinaNet,
        matcher: Matcher,
        loss: RetinaNetLoss,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        *,
        network: nn.Module | None = None,
        ema: EMA | None = None,
        precision: str = "fp32",
        max_grad_norm: float | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            model: trained in place, on its device.
            matcher: assigns anchors to boxes.
            loss: its divisors span the whole step.
            optimizer: over the model's parameters, fused.
            schedule: rate of every step.
            network: ``model`` or DistributedDataParallel around it.
            ema: updated after every step.
            precision: of the forward pass: ``"fp32"``, ``"bf16"`` or ``"fp16"`` (with a scaler).
            max_grad_norm: gradients are clipped to this L2 norm; None: off.
        """
        self.model = model
        self.matcher = matcher
        self.loss = loss
        self.optimizer = optimizer
        self.schedule = schedule
        self.network = model if network is None else network
        self.ema = ema
        self.precision = precision
        self.max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self.device = next(model.parameters()).device
        self.autocast = autocast(self.device, precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.totals = Totals(self.device)
        # Running averages change before a step is known to be bad; then they are put back.
        norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        self.averages = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self.averages.append(loss.average_positives)
        self.step = 0
        self.wait_seconds = 0.0  # seconds for batches, since whoever reads it set it to 0
        self.latest: Batch | None = None  # last micro-batch, for pictures and error reports

    def steps(self, batches: Iterable[list[Batch]]) -> Iterator[int]:
        """Make one optimizer step for each item of ``batches``.

        Args:
            batches: this rank's micro-batches of every step.

        Yields:
            The number of steps made so far, after each.
        """
        self.network.train()
        batches = iter(batches)
        while True:
            asked = time.perf_counter()
            micro_batches = next(batches, None)
            self.wait_seconds += time.perf_counter() - asked
            if micro_batches is None:
                return
            self.latest = micro_batches[-1]
            self.one_step(micro_batches)
            yield self.step

    def one_step(self, micro_batches: list[Batch]) -> None:
        """Match, predict, compare, differentiate, update: the algorithm in its order.

        Nothing here waits for the GPU, except anchors of a padded size that is new, and OHEM
        (``loss.name=ohem``). Outside the step, a row of the log, a save and an evaluation wait.
        """
        # From pinned memory a copy that does not block; anything else blocks as ever.
        batches = [batch.to(self.device, non_blocking=True) for batch in micro_batches]
        # All micro-batches are matched first: the divisor counts positives of the whole step.
        matches = [self.match(batch) for batch in batches]
        averages = [average.clone() for average in self.averages]
        divisors = self.loss.divisors(matches)

        self.optimizer.zero_grad()
        # DDP sums gradients over the ranks once a step, after the last micro-batch.
        keep_local = getattr(self.network, "no_sync", contextlib.nullcontext)
        for i, (batch, match, divisor) in enumerate(zip(batches, matches, divisors, strict=True)):
            with keep_local() if i < len(batches) - 1 else contextlib.nullcontext():
                self.backward(self.forward_losses(batch, match, divisor))
        self.scaler.unscale_(self.optimizer)
        grad_norm = clip_grad_norm_(self.model.parameters(), self.max_grad_norm)

        self.schedule.apply(self.optimizer, self.step)
        self.update_weights(grad_norm)
        for average, before in zip(self.averages, averages, strict=True):
            average.copy_(torch.where(grad_norm.isfinite(), average, before))
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, self.step, grad_norm.isfinite())
        # With a scaler an overflow of the gradient is ordinary: it lowers the scale and goes on.
        checked = self.totals.step_losses.sum() + (0 if self.scaler.is_enabled() else grad_norm)
        image_ids = [batch.image_ids for batch in micro_batches]
        self.totals.add_step(image_ids, matches, grad_norm, checked.isfinite())

    def match(self, batch: Batch) -> Match:
        """Assign the anchors of a batch; needs the sizes of the images only."""
        H, W = batch.images.shape[-2:]
        anchors = self.model.anchors(H, W, self.device)
        on_cpu = self.device.type == "cpu"  # a GPU compares all anchors: see Matcher
        windows = self.model.anchor_generator.windows(H, W) if on_cpu else None
        return self.matcher(anchors, batch.boxes, batch.labels, batch.crowds, windows)

    def forward_losses(self, batch: Batch, match: Match, divisor: Tensor) -> dict[str, Tensor]:
        """Forward pass and both losses of one micro-batch."""
        with self.autocast:
            logits, deltas, anchors = self.network(batch.images, batch.sizes)
        losses = self.loss(logits, deltas, anchors, match, divisor)
        self.totals.add_loss(losses)
        return losses

    def backward(self, losses: dict[str, Tensor]) -> None:
        """Add the gradient of both losses to that of the step."""
        loss = losses["class"] + losses["box"]
        # An infinite loss may have a finite gradient, and on one rank only. A nan seed makes the
        # gradient nan, DDP's sum spreads it, and all ranks skip the step.
        seed = torch.where(loss.isfinite(), torch.ones_like(loss), math.nan)
        self.scaler.scale(loss).backward(seed)

    def update_weights(self, grad_norm: Tensor) -> None:
        """Update the weights unless the gradient is not finite."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            step_if_finite(self.optimizer, grad_norm)

    def state_dict(self) -> dict:
        """All that a resumed run needs to go on exactly; every rank must call it."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loss": self.loss.state_dict(),
            "totals": self.totals.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from :meth:`state_dict`."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.loss.load_state_dict(state["loss"])
        if "totals" in state:  # older checkpoints were saved right after a row
            self.totals.load_state_dict(state["totals"])


def step_if_finite(optimizer: torch.optim.Optimizer, grad_norm: Tensor) -> None:
    """Update the weights unless the gradient is infinite or NaN, decided on the device.

    Fused optimizers skip everything, momentum and weight decay included, when ``found_inf`` is
    1: the undocumented attributes by which torch.amp.GradScaler tells them.

    Args:
        optimizer: fused SGD or AdamW.
        grad_norm: () norm of all gradients.
    """
    optimizer.grad_scale = None
    optimizer.found_inf = (~grad_norm.isfinite()).float()
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf
