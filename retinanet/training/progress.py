"""Progress of a run: the bar, and the rows of the training log."""

from __future__ import annotations

import logging
import math
import sys
import time

from tqdm import tqdm

from retinanet.terminal import has_bar, width
from retinanet.training.bad_steps import NORMS_SHOWN
from retinanet.training.logs import MetricsLog, peak_memory
from retinanet.training.step_metrics import Means
from retinanet.training.trainer import Trainer

logger = logging.getLogger(__name__)

# A line of its own instead of tqdm's, whose numbers fill a terminal of 80 columns.
BAR = "{desc}{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"
# Columns that the bar itself keeps, and those of the longest time left: "23:59:59 left".
BAR_WIDTH, TIME_WIDTH = 6, 13
# Share of the time spent waiting for batches above which the log says what to do about it.
MUCH_WAITING = 0.2


class Progress:
    """Turns a trainer's sums into rows; the bar shows the latest."""

    def __init__(
        self, log: MetricsLog, *, step: int, total_steps: int, steps_per_epoch: int, main: bool
    ) -> None:
        """Start the clock and, on a terminal, the bar.

        Args:
            log: rows go there.
            step: steps made so far.
            total_steps: length of the run.
            steps_per_epoch: to tell the epoch.
            main: whether this is the main rank.
        """
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
        self.grad_norms: list[float] = []  # of the latest steps, for reports of bad ones
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave the time until now out of the next images_per_s."""
        self.since = time.perf_counter()

    def epoch(self, step: int) -> float:
        """Passes over the training images after ``step`` steps."""
        return round(step / self.steps_per_epoch, 4)

    def row(self, trainer: Trainer) -> Means:
        """Read the sums since the last row and log them: the only wait for the GPU in an
        ordinary step.

        Args:
            trainer: its totals are taken; every rank must call this.

        Steps whose loss or gradient was not finite are left out of the means; the caller decides
        what they lead to.
        """
        means = trainer.totals.take()
        now = time.perf_counter()
        row = {
            "step": trainer.step,
            "epoch": self.epoch(trainer.step),
            "loss/class": _finite(means.class_loss),
            "loss/box": _finite(means.box_loss),
            "lr": trainer.schedule(trainer.step - 1),
            "grad_norm": _finite(means.grad_norm),  # with fp16 one may overflow now and then
            "positives": _finite(means.positives),
            "with_objects": _finite(means.with_objects),
            "bad_steps": len(means.bad),
            "images_per_s": means.images / (now - self.since),
            "data_wait": min(trainer.waited / (now - self.since), 1.0),
            "memory_gib": peak_memory(trainer.device),
        }
        self.since, trainer.waited = now, 0.0
        self.grad_norms = [*self.grad_norms, *means.grad_norms][-NORMS_SHOWN - means.steps :]
        self.log.write(row)
        self._show(row, means)
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
        return means

    def _show(self, row: dict[str, float], means: Means) -> None:
        """The numbers of a row behind the bar: as many as the terminal has room for."""
        epoch = f"epoch {row['epoch']:.2f} "
        room = width(sys.stderr) - len(epoch) - len(f"100% || {self.total_steps}/, ")
        room -= BAR_WIDTH + len(str(self.total_steps)) + TIME_WIDTH + 1
        shown = ""
        for part in (
            f"class {means.class_loss:.3f}",
            f"box {means.box_loss:.3f}",
            f"{row['images_per_s']:.1f} images/s",
            f"lr {row['lr']:.2g}",
            f"{row['memory_gib']:.1f} GiB",
        ):
            if len(shown) + len(part) + 2 > room:
                break
            shown += f", {part}"
        self.bar.set_description_str(epoch, refresh=False)
        self.bar.set_postfix_str(shown.removeprefix(", "))

    def close(self) -> None:
        """Close the bar and the log."""
        self.bar.close()
        self.log.close()


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None
