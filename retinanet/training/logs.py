"""Logging of a run: console, train.log, metrics.jsonl and TensorBoard, from the main rank."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams, pr_curve_raw
from tqdm import tqdm

from retinanet import platforms
from retinanet.checks import value_text
from retinanet.terminal import LABELS, has_bar, lay_out, paint
from retinanet.training.run_directory import MAY_DIFFER, RunDirectory, flatten, read_rows

package_logger = logging.getLogger("retinanet")

# How a warning begins; the text of all lines begins in one column.
WARNING = f"{'warning':<{LABELS}}"
# Words of a line that somebody looks for: at its beginning, and at the end of the best evaluation.
STYLE_OF = {"warning": "yellow", "finished": "green", "stopped": "yellow"}
BEST = " (best)"

# Quality of the JPEG pictures, of 100: a sheet of four images then has about 200 kB.
QUALITY = 75
# Histograms of p_t have bins of equal width; TensorBoard's own grow with the value, so that all
# that is above 0.94 would share one.
P_T_BINS = np.linspace(0, 1, 51)
# Settings that do not say how well a run can do, or that no column has room for.
NO_HPARAMS = (*MAY_DIFFER, "data.", "evaluation.", "postprocess.")
HPARAMS_OF_DATA = ("data.min_size", "data.max_size", "data.keep_empty")
ABOUT_CURVES = (
    "COCO's interpolated precision at 101 levels of recall. What TensorBoard calls the threshold "
    "is 1 - recall here, not a score."
)


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
        line = lay_out(line, sys.stdout)
        for start, style in STYLE_OF.items():
            if line.startswith(start):
                line = paint(start, style, sys.stdout) + line.removeprefix(start)
        if line.endswith(BEST):
            line = line.removesuffix(BEST) + paint(BEST, "green", sys.stdout)
        with contextlib.suppress(OSError):  # whoever was reading may be gone; train.log has it
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()


class _Labelled(logging.Formatter):
    """Warnings begin with the word, whoever gives them."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        if record.levelno == logging.WARNING and not record.message.startswith(WARNING):
            record.message = WARNING + record.message
        return super().formatMessage(record)


def start_logging(file: Path | None, *, main: bool) -> None:
    """Send the package's messages to the console and append them to ``file``, on the main rank."""
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

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """What cannot be written is an error, or warned of once, as set."""
        try:
            yield
        except OSError as error:
            if self.must_write:
                raise
            if not self.warned:
                package_logger.warning("%s Training goes on without rows.", error)
            self.warned = True

    def write(self, row: dict[str, Any]) -> None:
        """One row: ``step`` and numbers; None is null and does not reach TensorBoard.

        Raises:
            OSError: it cannot be written, and must be; likewise in the other methods.
        """
        if self.file is not None:
            with self._writing():
                self.file.write(json.dumps(row) + "\n")
                self.file.flush()
                self.board.row(row)

    def show(self, draw: Callable[[Board], Any]) -> None:
        """Put more on TensorBoard; nothing happens on other ranks than the first."""
        if self.board is not None:
            with self._writing():
                draw(self.board)

    def bad_step(self, entry: dict[str, Any]) -> None:
        """One report for bad_steps.jsonl."""
        if self.file is not None:
            with self._writing(), self.directory.bad_steps.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def sync(self) -> None:
        """Bring the rows to the disk: a checkpoint must not be there before them."""
        if self.file is not None:
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Flush and close both."""
        for part in (self.file, self.board):
            if part is not None:
                with self._writing():
                    part.close()


class Board:
    """Writes one run; TensorBoard shows the first of what is written twice for a step."""

    def __init__(self, folder: Path, *, next_step: int) -> None:
        """Open a file of events in ``folder``; earlier ones are purged from ``next_step`` on."""
        self.writer = SummaryWriter(str(folder), purge_step=next_step)

    def row(self, row: Mapping[str, Any]) -> None:
        """The numbers of a row, visible at once; TensorBoard groups by what precedes the slash."""
        for name, value in row.items():
            if name != "step" and value is not None:
                group = "" if "/" in name else "val/" if name.startswith("A") else "train/"
                self.writer.add_scalar(f"{group}{name}", value, row["step"])
        self.writer.flush()

    def best(self, step: int, precision: float | None) -> None:
        """AP of the best evaluation so far: the first result in the table that compares runs."""
        if precision is not None:
            self.writer.add_scalar("best/AP", precision, step)

    def settings(self, settings: Mapping[str, Any]) -> None:
        """The settings, for the table that compares runs; the rows are its results."""
        # Not add_hparams: it would make a run of its own for them, and tell TensorBoard which
        # settings there are; left to itself it begins with those that differ between the runs.
        self._add(hparams(hparams_of(settings), {})[1])

    def finished(self) -> None:
        """Mark the run as finished in that table."""
        self._add(hparams({}, {})[2])

    def histograms(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Distributions of p_t, the probability given to the ground truth."""
        for name, samples in values.items():
            if len(samples):
                self.writer.add_histogram(f"p_t/{name}", samples, step, bins=P_T_BINS)

    def curves(self, step: int, curves: Mapping[str, np.ndarray], num_objects: int) -> None:
        """Precision over recall: name -> (R,) precision at recalls evenly spaced from 0 to 1."""
        for name, precision in curves.items():
            recall = np.linspace(1, 0, len(precision))
            precision = np.asarray(precision, dtype=float)[::-1]
            true = recall * num_objects
            false = true * (1 - precision) / np.maximum(precision, 1e-6)
            summary = pr_curve_raw(
                f"pr/{name}",
                *(true, false, np.zeros_like(recall), num_objects - true, precision, recall),
                num_thresholds=len(recall),
            )
            summary.value[0].metadata.summary_description = ABOUT_CURVES
            self._add(summary, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """One (H, W, 3) uint8 picture, as JPEG."""
        memory = io.BytesIO()
        Image.fromarray(picture).save(memory, format="jpeg", quality=QUALITY)
        height, width, _ = picture.shape
        size = {"height": height, "width": width, "colorspace": 3}
        encoded = Summary.Image(encoded_image_string=memory.getvalue(), **size)
        self._add(Summary(value=[Summary.Value(tag=name, image=encoded)]), step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()

    def _add(self, summary: Summary, step: int = 0) -> None:
        self.writer.file_writer.add_summary(summary, step, walltime=time.time())


def few(number: int) -> bool:
    """Whether the pictures of the ``number``-th evaluation are kept: about eight of each doubling.

    TensorBoard loads ten of a kind; 100 evaluations keep 36, 1000 keep 63.
    """
    return number % 2 ** max(number.bit_length() - 4, 0) == 0


def hparams_of(settings: Mapping[str, Any]) -> dict[str, float | str]:
    """Dotted key -> number or text of the settings that runs are compared by."""
    chosen = {
        key: value
        for key, value in flatten(dict(settings)).items()
        if not key.startswith(NO_HPARAMS) or key in HPARAMS_OF_DATA
    }
    return {k: v if type(v) in (int, float) else value_text(v) for k, v in chosen.items()}


def peak_memory(device: torch.device) -> float:
    """Most memory held so far, GiB: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return platforms.peak_memory()
