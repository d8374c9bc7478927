"""Steps whose loss or gradient was not finite: counted, reported, explained."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from retinanet.data.coco import CocoData
from retinanet.training.logs import MetricsLog
from retinanet.training.step_metrics import BadStep, Means, suspects_of
from retinanet.training.trainer import Trainer

logger = logging.getLogger(__name__)

# Norms before a bad step that its report shows, and that are kept from before a row for it.
NORMS_SHOWN = 20
# Boxes of an image that a report lists; crowded images have hundreds.
BOXES_SHOWN = 50
# The norm before a bad step, relative to those before it, above which training was diverging; an
# ordinary step's lies within a factor of a few.
DIVERGING = 10.0


class BadSteps:
    """How many there were in a run, and how many there may be.

    Args:
        allowed: more of them end the run.
        data: the training set.
    """

    def __init__(self, allowed: int, data: CocoData) -> None:
        self.allowed = allowed
        self.data = data
        self.count = 0

    @property
    def too_many(self) -> bool:
        """Whether the run is to end."""
        return self.count > self.allowed

    def add(
        self, means: Means, trainer: Trainer, grad_norms: Sequence[float], log: MetricsLog
    ) -> None:
        """Report those of one row; every rank must call it.

        Args:
            means: of the row.
            trainer: that made the steps.
            grad_norms: of the latest steps, the last one of the row last.
            log: gets the reports.
        """
        for bad, image_ids in zip(means.bad, suspects_of(means.bad), strict=True):
            step = trainer.step - bad.steps_ago
            entry = report(
                bad,
                image_ids,
                grad_norms[: -1 - bad.steps_ago],
                self.data,
                step=step,
                lr=trainer.schedule(step - 1),
                precision=trainer.precision,
            )
            log.bad_step(entry)
            logger.warning("%s", summary(entry))
        self.count += len(means.bad)

    def check(self) -> None:
        """Refuse to go on after too many.

        Raises:
            FloatingPointError: how many there were, and what to do.
        """
        if self.too_many:
            raise FloatingPointError(
                f"{self.count} steps had a loss or gradient that is not finite, and "
                f"max_bad_steps={self.allowed}. They changed no weights; the run has saved, and "
                f"its bad_steps.jsonl has their images and the likely cause. Start anew with the "
                f"remedy, or raise max_bad_steps to go on without such steps."
            )


def report(
    bad: BadStep,
    image_ids: Sequence[int],
    norms: Sequence[float],
    data: CocoData,
    *,
    step: int,
    lr: float,
    precision: str,
) -> dict[str, Any]:
    """All that is known of a bad step, for JSON.

    Args:
        bad: the step.
        image_ids: of its images that may have caused it.
        norms: of the gradients of the steps before it.
        data: the training set.
        step: its number, from 1.
        lr: its learning rate.
        precision: of the forward pass.
    """
    return {
        "step": step,
        "lr": lr,
        "loss/class": _number(bad.class_loss),
        "loss/box": _number(bad.box_loss),
        "grad_norm": _number(bad.grad_norm),
        "grad_norms_before": [_number(norm) for norm in norms[-NORMS_SHOWN:]],
        "precision": precision,
        "likely_cause": likely_cause(bad, norms, step=step, precision=precision),
        "images": [_image(data, image_id) for image_id in image_ids],
    }


def likely_cause(bad: BadStep, norms: Sequence[float], *, step: int, precision: str) -> str:
    """One sentence: what most often leads to such a step, and the remedy."""
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


def summary(entry: dict[str, Any]) -> str:
    """A report as one line of the log."""
    ids = [image["id"] for image in entry["images"]]
    return (
        f"step {entry['step']} is not finite and changed no weights: class loss "
        f"{entry['loss/class']}, box loss {entry['loss/box']}, gradient norm {entry['grad_norm']}, "
        f"learning rate {entry['lr']:.3g}, images {ids}. {entry['likely_cause']}"
    )


def _number(value: float) -> float | str:
    """JSON has no infinity."""
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)


def _image(data: CocoData, image_id: int) -> dict[str, Any]:
    index = int(np.flatnonzero(data.image_ids == image_id)[0])
    boxes, labels = data.boxes(index)
    return {
        "id": image_id,
        "file": str(data.image_path(index)),
        "size": data.sizes[index].tolist(),
        "boxes": boxes[:BOXES_SHOWN].tolist(),
        "classes": [data.category_names[label] for label in labels[:BOXES_SHOWN]],
    }
