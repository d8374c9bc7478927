"""A run on TensorBoard: numbers, settings, distributions, curves and pictures, in few bytes."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams, pr_curve_raw

from retinanet.checks import value_text
from retinanet.training.run_directory import MAY_DIFFER, flatten

# Quality of the JPEG pictures, of 100: a sheet of four photographs then has about 200 kB.
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


class Board:
    """Writes one run; TensorBoard shows the first of what is written twice for a step."""

    def __init__(self, folder: Path, *, next_step: int) -> None:
        """Open a file of events.

        Args:
            folder: of the run's events.
            next_step: what earlier files have from there on is purged.
        """
        self.writer = SummaryWriter(str(folder), purge_step=next_step)

    def row(self, row: Mapping[str, Any]) -> None:
        """The numbers of a row, visible at once."""
        for name, value in row.items():
            if name != "step" and value is not None:
                self.writer.add_scalar(_tag(name), value, row["step"])
        self.writer.flush()

    def best(self, step: int, precision: float | None) -> None:
        """AP of the best evaluation so far: the first result in the table that compares runs."""
        if precision is not None:
            self.writer.add_scalar("best/AP", precision, step)

    def settings(self, settings: Mapping[str, Any]) -> None:
        """The settings, for the table that compares runs; its results are the numbers of the rows.

        torch's ``add_hparams`` would make a run of its own for them, and tell TensorBoard which
        settings there are: left to itself it begins with those that differ between the runs.
        """
        _, start, _ = hparams(hparams_of(settings), {})
        self._add(start)

    def finished(self) -> None:
        """Mark the run as finished in that table."""
        _, _, end = hparams({}, {})
        self._add(end)

    def histograms(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Distributions of p_t, the probability given to the truth."""
        for name, samples in values.items():
            if len(samples):
                self.writer.add_histogram(f"p_t/{name}", samples, step, bins=P_T_BINS)

    def curves(self, step: int, curves: Mapping[str, np.ndarray], num_objects: int) -> None:
        """Precision over recall.

        Args:
            step: of the weights.
            curves: name -> (R,) precision at recalls from 0 to 1, equally far apart.
            num_objects: what the numbers of true and false positives are reckoned from.
        """
        for name, precision in curves.items():
            recall = np.linspace(1, 0, len(precision))
            precision = np.asarray(precision, dtype=float)[::-1]
            found = recall * num_objects
            wrong = found * (1 - precision) / np.maximum(precision, 1e-6)
            nothing = np.zeros_like(recall)
            summary = pr_curve_raw(
                f"pr/{name}",
                *(found, wrong, nothing, num_objects - found, precision, recall),
                num_thresholds=len(recall),
            )
            summary.value[0].metadata.summary_description = ABOUT_CURVES
            self._add(summary, step)

    def image(self, step: int, name: str, picture: np.ndarray) -> None:
        """One (H, W, 3) uint8 picture, as JPEG."""
        memory = io.BytesIO()
        Image.fromarray(picture).save(memory, format="jpeg", quality=QUALITY)
        height, width, _ = picture.shape
        encoded = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=memory.getvalue()
        )
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
    """Dotted key -> number or text of the settings that runs are compared by.

    Args:
        settings: as plain containers.
    """
    flat = flatten(dict(settings))
    chosen = [key for key in flat if not key.startswith(NO_HPARAMS) or key in HPARAMS_OF_DATA]
    return {key: _plain(flat[key]) for key in chosen}


def _plain(value: Any) -> float | str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else value_text(value)


def _tag(name: str) -> str:
    """TensorBoard groups by the part before the slash."""
    if "/" in name:
        return name
    return f"val/{name}" if name.startswith("A") else f"train/{name}"
