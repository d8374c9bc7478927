"""What a run tells: console, train.log, metrics.jsonl and TensorBoard, from the main rank."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

logger = logging.getLogger("retinanet")


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def start_logging(file: Path | None, *, main: bool) -> None:
    """Send the package's messages to the console and to ``file``; other ranks keep quiet.

    Args:
        file: appended to; None: console only.
        main: whether this is the main rank.
    """
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    logger.propagate = False
    logger.setLevel(logging.INFO if main else logging.ERROR)
    console = _ConsoleHandler()
    console.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(console)
    if file is not None and main:
        to_file = logging.FileHandler(file)
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(to_file)


class MetricsLog:
    """Rows of numbers, each flushed to metrics.jsonl and TensorBoard as it is written."""

    def __init__(self, metrics: Path, tensorboard: Path, *, step: int) -> None:
        """Open both.

        Args:
            metrics: appended to.
            tensorboard: folder of event files; steps above ``step`` are purged.
            step: number of steps made so far.
        """
        self.file = metrics.open("a")
        self.board = SummaryWriter(str(tensorboard), purge_step=step + 1 if step else None)

    def write(self, row: dict[str, Any]) -> None:
        """One row: ``step`` and numbers; None is null and does not reach TensorBoard."""
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for name, value in row.items():
            if name != "step" and value is not None:
                self.board.add_scalar(_tag(name), value, row["step"])
        self.board.flush()

    def histograms(self, step: int, values: dict[str, Tensor]) -> None:
        """Distributions of p_t, the probability given to the truth."""
        for name, samples in values.items():
            if len(samples):
                self.board.add_histogram(f"p_t/{name}", samples, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """One (H, W, 3) uint8 picture."""
        self.board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both."""
        self.file.close()
        self.board.close()


def _tag(name: str) -> str:
    """TensorBoard groups by the part before the slash."""
    if "/" in name:
        return name
    return f"val/{name}" if name.startswith("A") else f"train/{name}"
