"""Logging of a run: console, train.log, metrics.jsonl and TensorBoard, from the main rank."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from retinanet.terminal import LABELS, has_bar, lay_out, paint
from retinanet.training.board import Board
from retinanet.training.run_directory import RunDirectory, read_rows

package_logger = logging.getLogger("retinanet")

# How a line begins that tells of something to look at; the text of all lines begins in one column.
WARNING = f"{'warning':<{LABELS}}"
# How a line ends that tells of the best evaluation so far.
BEST = " (best)"
STYLE_OF = {"warning": "yellow", "finished": "green", "stopped": "yellow"}


class _FileHandler(logging.FileHandler):
    """Lets a full disk pass: the console has the line, and what must be kept is not here."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        pass


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it, in the columns of the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        # A name may hold what the terminal cannot show.
        encoding = sys.stdout.encoding or "utf-8"
        line = self.format(record).encode(encoding, "backslashreplace").decode(encoding)
        line = _emphasize(lay_out(line, sys.stdout))
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
    # On a terminal the progress bar shows what the rows of the training say.
    console.setLevel(logging.INFO if has_bar() else logging.DEBUG)
    console.setFormatter(_Labelled("%(message)s"))
    package_logger.addHandler(console)
    if file is not None and main:
        to_file = _FileHandler(file, encoding="utf-8", errors="backslashreplace")
        to_file.setFormatter(_Labelled("%(asctime)s %(message)s"))
        package_logger.addHandler(to_file)


class _Labelled(logging.Formatter):
    """Warnings begin with the word, whoever gives them."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        if record.levelno == logging.WARNING and not record.message.startswith(WARNING):
            record.message = WARNING + record.message
        return super().formatMessage(record)


def _emphasize(line: str) -> str:
    """Color for the few words of a line that somebody looks for, where there is color."""
    for start, style in STYLE_OF.items():
        if line.startswith(start):
            return paint(start, style, sys.stdout) + line[len(start) :]
    if line.endswith(BEST):
        return line.removesuffix(BEST) + paint(BEST, "green", sys.stdout)
    return line


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
            self.board = Board(directory.tensorboard, next_step=next_step)
            for row in read_rows(directory.metrics):
                if row["step"] >= next_step:
                    self.board.row(row)

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
            self.board.row(row)

    def show(self, draw: Callable[[Board], Any]) -> None:
        """Put more on TensorBoard; nothing happens on other ranks than the first.

        Raises:
            OSError: it cannot be written, and must be.
        """
        if self.board is not None:
            with self._as_set():
                draw(self.board)

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

    def bad_step(self, entry: dict[str, Any]) -> None:
        """One report of :mod:`retinanet.training.bad_steps`."""
        if self.file is not None:
            with self._as_set(), self.directory.bad_steps.open("a") as file:
                file.write(json.dumps(entry) + "\n")

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
