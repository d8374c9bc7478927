"""What a run tells: console, train.log, metrics.jsonl and TensorBoard, from the main rank."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from retinanet.training.directory import RunDirectory, read_rows

package_logger = logging.getLogger("retinanet")


class _FileHandler(logging.FileHandler):
    """Lets a full disk pass: the console has the line, and what must be kept is not here."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        # A name may hold what the terminal cannot show.
        encoding = sys.stdout.encoding or "utf-8"
        line = self.format(record).encode(encoding, "backslashreplace").decode(encoding)
        with contextlib.suppress(OSError):  # whoever was reading may be gone; train.log has it
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()


def start_logging(file: Path | None, *, main: bool) -> None:
    """Send the package's messages to the console and to ``file``; other ranks keep quiet.

    Args:
        file: appended to; None: console only.
        main: whether this is the main rank.
    """
    for handler in list(package_logger.handlers):
        package_logger.removeHandler(handler)
        handler.close()
    package_logger.propagate = False
    package_logger.setLevel(logging.DEBUG if main else logging.ERROR)
    console = _ConsoleHandler()
    # On a terminal the progress bar shows what the rows of every step say.
    console.setLevel(logging.INFO if sys.stderr.isatty() else logging.DEBUG)
    console.setFormatter(logging.Formatter("%(message)s"))
    package_logger.addHandler(console)
    if file is not None and main:
        to_file = _FileHandler(file, encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        package_logger.addHandler(to_file)


class MetricsLog:
    """Rows of numbers, each flushed to metrics.jsonl and TensorBoard as it is written."""

    def __init__(
        self, directory: RunDirectory | None, *, next_step: int, must_write: bool = True
    ) -> None:
        """Open both, and make them agree.

        Args:
            directory: of the run; None writes nothing (other ranks than the first).
            next_step: what TensorBoard has from there on is purged, and what metrics.jsonl has is
                written to it again.
            must_write: a row that cannot be written is an error, not a warning.
        """
        self.must_write = must_write
        self.warned = False
        self.directory = directory
        self.file = self.board = None
        if directory is not None:
            self.file = directory.metrics.open("a")
            self.board = SummaryWriter(str(directory.tensorboard), purge_step=next_step)
            for row in read_rows(directory.metrics):
                if row["step"] >= next_step:
                    self._show(row)

    def write(self, row: dict[str, Any]) -> None:
        """One row: ``step`` and numbers; None is null and does not reach TensorBoard.

        Raises:
            OSError: it cannot be written, and must be.
        """
        if self.file is None:
            return
        with self._as_set():
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
            self._show(row)

    @contextlib.contextmanager
    def _as_set(self) -> Iterator[None]:
        """What cannot be written is an error, or warned of once."""
        try:
            yield
        except OSError as error:
            if self.must_write:
                raise
            if not self.warned:
                package_logger.warning("%s Training goes on without rows.", error)
            self.warned = True

    def _show(self, row: dict[str, Any]) -> None:
        """The numbers of a row on TensorBoard."""
        for name, value in row.items():
            if name != "step" and value is not None:
                self.board.add_scalar(_tag(name), value, row["step"])
        self.board.flush()

    def bad_step(self, entry: dict[str, Any]) -> None:
        """One report of :mod:`retinanet.training.bad_steps`."""
        if self.file is not None:
            with self._as_set(), self.directory.bad_steps.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def histograms(self, step: int, values: dict[str, Tensor]) -> None:
        """Distributions of p_t, the probability given to the truth."""
        for name, samples in values.items():
            if self.board is not None and len(samples):
                self.board.add_histogram(f"p_t/{name}", samples, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """One (H, W, 3) uint8 picture."""
        if self.board is not None:
            self.board.add_image(name, picture, step, dataformats="HWC")

    def sync(self) -> None:
        """Bring the rows to the disk: a checkpoint must not be there before them."""
        if self.file is not None:
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Flush and close both."""
        if self.file is not None:
            with self._as_set():
                self.file.close()
            with self._as_set():
                self.board.close()


def peak_memory(device: torch.device) -> float:
    """Most memory held so far, GiB: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def _tag(name: str) -> str:
    """TensorBoard groups by the part before the slash."""
    if "/" in name:
        return name
    return f"val/{name}" if name.startswith("A") else f"train/{name}"
