"""What a new run says before its first step, and after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retinanet import build
from retinanet.config import LossConfig, ModelConfig, TrainConfig
from retinanet.data.coco import CocoData
from retinanet.data.learnable import FIXES, describe_dropped, describe_no_ground_truth
from retinanet.data.splits import describe_shared
from retinanet.model.retinanet import RetinaNet
from retinanet.tools.first_loss import forecast
from retinanet.tools.first_loss.survey import describe, survey
from retinanet.training.step_metrics import Means
from retinanet.training.trainer import Trainer

# Of the trunk, in the order of model.frozen_stages.
STAGES = ("stem", "C2", "C3", "C4", "C5")


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
    # First the data, then the network, then what it will be told.
    repairs = {what: count for what, count in data.repairs.items() if what not in FIXES}
    lines = [f"repaired   {what}: {count}" for what, count in repairs.items()]
    lines += describe_dropped(data)
    lines += describe(found, data.category_names)
    lines.append(f"validation {len(val_data)} images, {describe_limit(settings)}")
    lines += describe_no_ground_truth(val_data)
    lines += describe_shared(data, val_data)
    lines += describe_model(trainer.model, settings.model)
    optim = settings.optim
    epoch = found.num_images if settings.data.keep_empty else found.num_images - found.num_empty
    epochs = total_steps * optim.batch_size / epoch
    lines.append(f"steps      {total_steps} of {optim.batch_size} images: {epochs:.3g} epochs")
    lines.append(forecast.describe_rate(optim.lr, optim.batch_size, optim.reference_batch))
    lines += forecast.warn_of_warmup(settings.schedule.warmup_steps, total_steps)
    loss = _loss_settings(settings, data)
    lines.append(forecast.describe_alpha(loss["alpha"], data.category_names))
    if settings.init_from is not None:
        return [*lines, *init_lines]
    if settings.loss.name != "focal":
        return [*lines, forecast.NO_FORECAST]
    if not trainer.loss.fused:
        return [*lines, forecast.NO_FORECAST_OF_CHANGED]
    lines += forecast.announce_loss(found, num_classes=trainer.model.num_classes, **loss)
    return lines if _closed_form_holds(settings.loss) else [*lines, forecast.FORECAST_LIMITS]


def describe_limit(settings: TrainConfig) -> str:
    """How often, and on how much, the validation set is evaluated."""
    every, most = settings.evaluation.every_epochs, settings.evaluation.max_images
    some = "" if most is None else f", the first {most} of them"
    return ("each epoch" if every == 1 else f"every {every:g} epochs") + some


def describe_model(model: RetinaNet, settings: ModelConfig) -> list[str]:
    """The network, and what of it does not train."""
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    weights = "random weights" if settings.weights is None else settings.weights
    lines = [
        f"model      {settings.backbone}, {weights}, {settings.norm} norm; "
        f"{_millions(sum(counts.values()))} M parameters, " + ("" if counts[False] else "all train")
    ]
    if counts[False]:
        stages = ", ".join(STAGES[: settings.frozen_stages])
        lines[0] += f"{_millions(counts[True])} M train"
        lines.append(f"frozen     {stages}: {_millions(counts[False])} M parameters")
    return lines


def _millions(count: int) -> str:
    """Three digits and more of a number of parameters."""
    return f"{count / 1e6:.1f}" if count > 1e7 else f"{count / 1e6:.2f}"


def first_step(settings: TrainConfig, data: CocoData, trainer: Trainer, means: Means) -> str:
    """The class loss of the first step beside what it should be."""
    if not (_closed_form_holds(settings.loss) and trainer.loss.fused):
        return f"first step class loss {means.class_loss:.4g}, not compared"
    return forecast.compare_first_loss(
        means, num_classes=trainer.model.num_classes, **_loss_settings(settings, data)
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
