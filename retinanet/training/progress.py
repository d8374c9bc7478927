"""Progress of a run: bar, rows of the training log, bad steps, and the best evaluation."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from retinanet.data.coco import CocoData
from retinanet.terminal import has_bar, width
from retinanet.training.logs import MetricsLog, peak_memory
from retinanet.training.step_metrics import BadStep, Means, suspects_of
from retinanet.training.trainer import Trainer

logger = logging.getLogger(__name__)

# A line of its own instead of tqdm's, whose numbers fill a terminal of 80 columns.
BAR = "{desc}{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
# Columns that the bar itself keeps, and those of the longest time left: "23:59:59 left".
BAR_WIDTH, TIME_WIDTH = 6, 13
# Share of the time spent waiting for batches above which the log says what to do about it.
MUCH_WAITING = 0.2
# A row is slow below this share of the fastest one; after so many slow rows in a row the log says
# what to do about it, where several threads of the CPU may wait for each other.
SLOW, SLOW_ROWS = 1 / 3, 5
# Norms before a bad step that its report shows, and that are kept from before a row for it.
NORMS_SHOWN = 20
# Boxes of an image that a report lists; crowded images have hundreds.
BOXES_SHOWN = 50
# The norm before a bad step, relative to those before it, above which training was diverging; an
# ordinary step's lies within a factor of a few.
DIVERGING = 10.0


@dataclass(slots=True)
class EarlyStopping:
    """The best evaluation of a run, and how many have passed without a better one."""

    best: dict[str, Any] = field(default_factory=lambda: {"AP": None, "step": 0})
    evaluated_step: int = 0
    without_improvement: int = 0

    def add(self, step: int, metrics: dict[str, Any]) -> bool:
        """Count the evaluation of a step; AP is None where there is no ground truth.

        Returns:
            Whether it is the best so far. While no evaluation has an AP, the latest is: nothing
            says that it is worse than one before, and it was trained longer.
        """
        AP, best = metrics["AP"], self.best["AP"]
        better = best is None or (AP is not None and best < AP)
        self.evaluated_step = step
        if better:
            self.best = {"AP": AP, "step": step}
            self.without_improvement = 0
        elif AP is not None:
            self.without_improvement += 1
        return better

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, whose key for evaluations without improvement is ``fruitless``."""
        return {
            "best": self.best,
            "evaluated_step": self.evaluated_step,
            "fruitless": self.without_improvement,
        }

    @classmethod
    def of(cls, checkpoint: dict[str, Any]) -> EarlyStopping:
        """As a checkpoint has it; evaluations without an AP do not count, as older ones did."""
        passed = 0 if checkpoint["best"]["AP"] is None else checkpoint["fruitless"]
        return cls(checkpoint["best"], checkpoint["evaluated_step"], passed)


class Progress:
    """Turns a trainer's sums into rows; the bar shows the latest."""

    def __init__(
        self, log: MetricsLog, *, step: int, total_steps: int, steps_per_epoch: int, main: bool
    ) -> None:
        """Start the clock after ``step`` steps and, on the main rank's terminal, the bar."""
        self.log = log
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch
        self.bar = tqdm(
            total=total_steps,
            initial=step,
            unit="step",
            bar_format=BAR,
            dynamic_ncols=True,
            disable=not (main and has_bar()),
        )
        self.rows, self.hinted = 0, False
        self.fastest, self.slow_rows, self.told_slow = 0.0, 0, False
        self.grad_norms: list[float] = []  # of the latest steps, for reports of bad ones
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave the time until now out of the next images_per_s."""
        self.since = time.perf_counter()

    def epoch(self, step: int) -> float:
        """Passes over the training images after ``step`` steps."""
        return round(step / self.steps_per_epoch, 4)

    def row(self, trainer: Trainer) -> Means:
        """Log the means since the last row; every rank must call it.

        Waits for the GPU, as no step does. Steps whose loss or gradient was not finite
        are left out of the means; the caller decides what they lead to.
        """
        means = trainer.totals.take()
        now = time.perf_counter()
        row = {
            "step": trainer.step,
            "epoch": self.epoch(trainer.step),
            "loss/class": means.class_loss,
            "loss/box": means.box_loss,
            "lr": trainer.schedule(trainer.step - 1),
            "grad_norm": means.grad_norm,  # with fp16 one may overflow now and then
            "positives": means.positives,
            "with_objects": means.with_objects,
            "bad_steps": len(means.bad),
            "images_per_s": means.images / (now - self.since),
            "data_wait": min(trainer.wait_seconds / (now - self.since), 1.0),
            "memory_gib": peak_memory(trainer.device),
        }
        self.since, trainer.wait_seconds = now, 0.0
        self.grad_norms = [*self.grad_norms, *means.grad_norms][-NORMS_SHOWN - means.steps :]
        # JSON has no infinity.
        self.log.write({k: value if math.isfinite(value) else None for k, value in row.items()})
        self._show(row)
        logger.debug(
            f"epoch {row['epoch']:.2f}  step {trainer.step}/{self.total_steps}  "
            f"class {means.class_loss:.4f}  box {means.box_loss:.4f}  lr {row['lr']:.3g}  "
            f"grad norm {means.grad_norm:.3g}  {row['images_per_s']:.1f} images/s  "
            f"{row['memory_gib']:.1f} GiB  data wait {row['data_wait']:.0%}"
        )
        self.rows += 1  # the first ones have the start of the loaders in them
        if row["data_wait"] > MUCH_WAITING and self.rows > 2 and not self.hinted:
            self.hinted = True
            logger.info(
                f"data       {row['data_wait']:.0%} of the time went into waiting for images: "
                f"raise data.workers, up to the CPU cores of this machine, or copy the images to a "
                f"faster disk"
            )
        self._watch_speed(row["images_per_s"], trainer)
        return means

    def _watch_speed(self, images_per_s: float, trainer: Trainer) -> None:
        """Hint once at what else may keep the cores busy."""
        self.fastest = max(self.fastest, images_per_s)
        slow = images_per_s < SLOW * self.fastest
        self.slow_rows = self.slow_rows + 1 if slow else 0
        threads = torch.get_num_threads() if trainer.device.type == "cpu" else 1
        if self.slow_rows >= SLOW_ROWS and threads > 1 and not self.told_slow:
            self.told_slow = True
            logger.info(
                f"speed      {images_per_s:.1f} images/s, {self.fastest:.1f} before: if another "
                f"process keeps the cores busy, torch's {threads} threads wait for each other; "
                f"OMP_NUM_THREADS=1 before the command is then faster"
            )

    def _show(self, row: dict[str, float]) -> None:
        """The numbers of a row behind the bar: as many as the terminal has room for."""
        epoch = f"epoch {row['epoch']:.2f} "
        room = width(sys.stderr) - len(epoch) - len(f"100% || {self.total_steps}/, ")
        room -= BAR_WIDTH + len(str(self.total_steps)) + TIME_WIDTH + 1
        shown = ""
        for part in (
            f"class {row['loss/class']:.3f}",
            f"box {row['loss/box']:.3f}",
            f"{row['images_per_s']:.1f} images/s",
            f"lr {row['lr']:.2g}",
            f"{row['memory_gib']:.1f} GiB",
        ):
            if len(shown) + len(part) + 2 > room:
                break
            shown += f", {part}"
        self.bar.set_description_str(epoch, refresh=False)
        self.bar.set_postfix_str(shown.removeprefix(", "))

    def report_bad_steps(self, means: Means, trainer: Trainer, data: CocoData) -> None:
        """Report every bad step of the latest row; every rank must call it."""
        index_of = {int(image_id): index for index, image_id in enumerate(data.image_ids)}
        for bad, image_ids in zip(means.bad, suspects_of(means.bad), strict=True):
            step, norms = trainer.step - bad.steps_ago, self.grad_norms[: -1 - bad.steps_ago]
            cause = likely_cause(bad, norms, step=step, precision=trainer.precision)
            entry = {
                "step": step,
                "lr": trainer.schedule(step - 1),
                "loss/class": _number(bad.class_loss),
                "loss/box": _number(bad.box_loss),
                "grad_norm": _number(bad.grad_norm),
                "grad_norms_before": [_number(norm) for norm in norms[-NORMS_SHOWN:]],
                "precision": trainer.precision,
                "likely_cause": cause,
                "images": [_describe_image(data, index_of[image_id]) for image_id in image_ids],
            }
            self.log.bad_step(entry)
            logger.warning(
                f"step {step} is not finite and changed no weights: class loss "
                f"{entry['loss/class']}, box loss {entry['loss/box']}, gradient norm "
                f"{entry['grad_norm']}, learning rate {entry['lr']:.3g}, images {image_ids}. "
                f"{cause}"
            )

    def close(self) -> None:
        """Close the bar and the log."""
        self.bar.close()
        self.log.close()


def likely_cause(bad: BadStep, norms: Sequence[float], *, step: int, precision: str) -> str:
    """One sentence: what most often leads to such a step, and the fix.

    Args:
        bad: the step.
        norms: of the gradients of the steps before it.
        step: its number, from 1.
        precision: of the forward pass.
    """
    if precision == "fp16":
        return "fp16 overflows at 65504: use precision=bf16 or fp32."
    norms = [norm for norm in norms[-NORMS_SHOWN:] if math.isfinite(norm)]
    if step == 1 or not norms:
        other = "" if precision == "fp32" else " If they are sound, try precision=fp32."
        return (
            "Nothing before it was finite either: check the weights of init_from or model.weights, "
            f"where set, and these images.{other}"
        )
    # The largest of the first half: a step without objects has a hundredth of the others' norm.
    earlier = max(norms[: max(1, len(norms) // 2)])
    if norms[-1] > DIVERGING * earlier:
        return (
            f"The norm of the gradient rose from {earlier:.3g} to {norms[-1]:.3g} in {len(norms)} "
            f"steps: training diverges. Lower optim.lr, lengthen schedule.warmup_steps, or set "
            f"optim.max_grad_norm."
        )
    part = "box loss alone" if math.isfinite(bad.class_loss) else "loss"
    if math.isfinite(bad.class_loss + bad.box_loss):
        part = "gradient alone"
    return (
        f"The {part} is not finite, and the gradients before were ordinary (norm {norms[-1]:.3g}): "
        f"look at the boxes of these images."
    )


def _number(value: float) -> float | str:
    """JSON has no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


def _describe_image(data: CocoData, index: int) -> dict[str, Any]:
    boxes, labels = data.boxes(index)
    return {
        "id": int(data.image_ids[index]),
        "file": str(data.image_path(index)),
        "size": data.sizes[index].tolist(),
        "boxes": boxes[:BOXES_SHOWN].tolist(),
        "classes": [data.category_names[label] for label in labels[:BOXES_SHOWN]],
    }
