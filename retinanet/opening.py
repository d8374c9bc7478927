"""What a new run says before its first step, and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retinanet import build
from retinanet.config import LossConfig, TrainConfig
from retinanet.data.coco import CocoData
from retinanet.data.splits import describe_shared
from retinanet.model.retinanet import RetinaNet
from retinanet.training import announce
from retinanet.training.loop import Trainer
from retinanet.training.survey import describe, survey
from retinanet.training.totals import Means


def announcement(
    settings: TrainConfig,
    data: CocoData,
    val_data: CocoData,
    trainer: Trainer,
    init_lines: Sequence[str],
    *,
    total_steps: int,
) -> list[str]:
    """What to expect of the first step.

    Args:
        settings: of the run.
        data: the training set.
        val_data: the validation set.
        trainer: with the model, before its first step.
        init_lines: how the weights were taken from ``init_from``.
        total_steps: length of the run.
    """
    found = survey(
        data,
        trainer.model.anchor_generator,
        trainer.matcher,
        min_size=settings.data.min_size,
        max_size=settings.data.max_size,
        keep_empty=settings.data.keep_empty,
    )
    lines = [f"repaired   {what}: {count}" for what, count in data.repairs.items()]
    lines += describe(found, data.category_names)
    lines += describe_shared(data, val_data)
    lines.append(
        announce.describe_rate(
            settings.optim.lr, settings.optim.batch_size, settings.optim.reference_batch
        )
    )
    loss = _loss_settings(settings, data)
    lines.append(announce.describe_alpha(loss["alpha"], data.category_names))
    lines += announce.warn_of_warmup(settings.schedule.warmup_steps, total_steps)
    if settings.init_from is not None:
        return [*lines, *init_lines]
    if settings.loss.name != "focal":
        return [*lines, announce.NO_FORECAST]
    lines += announce.announce_loss(found, num_classes=trainer.model.num_classes, **loss)
    return lines if _closed_form_holds(settings.loss) else [*lines, announce.FORECAST_LIMITS]


def first_step(settings: TrainConfig, data: CocoData, model: RetinaNet, means: Means) -> str:
    """The class loss of the first step beside what it should be."""
    if not _closed_form_holds(settings.loss):
        return f"first step class loss {means.class_loss:.4g}, not compared"
    return announce.compare_first_loss(
        means, num_classes=model.num_classes, **_loss_settings(settings, data)
    )


def _loss_settings(settings: TrainConfig, data: CocoData) -> dict[str, Any]:
    return {
        "alpha": build.resolve_alpha(settings.loss.alpha, data.category_names),
        "gamma": settings.loss.gamma,
        "prior": settings.model.prior,
    }


def _closed_form_holds(loss: LossConfig) -> bool:
    """Whether it gives the loss of a batch, and not only an average over the data."""
    one_alpha = loss.alpha is None or isinstance(loss.alpha, int | float)
    return loss.normalizer == "batch" and one_alpha and loss.name == "focal"
