"""What a new run logs before its first step, and its first loss beside the forecast after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from retinanet import build
from retinanet.config import LossConfig, ModelConfig, TrainConfig
from retinanet.data.coco import CocoData
from retinanet.data.loader import padded_size
from retinanet.data.splits import (
    FIXES,
    describe_dropped,
    describe_no_ground_truth,
    describe_shared,
)
from retinanet.data.transforms import is_visible, resized_size
from retinanet.matching import NEGATIVE, Matcher
from retinanet.model.anchors import AnchorGenerator
from retinanet.model.retinanet import RetinaNet
from retinanet.tools.anchor_coverage import Objects, best_overlaps
from retinanet.tools.expected_loss import (
    FIRST_LOSS_TOLERANCE,
    MAX_BACKGROUND_RATIO,
    balancing_prior,
    expected_class_loss,
)
from retinanet.training.optim import scaled_lr
from retinanet.training.step_metrics import Means
from retinanet.training.trainer import Trainer

# Images whose anchors are matched for the survey; spread evenly over the data set.
SAMPLED_IMAGES = 100
# Classes that a line of the log names.
SHOWN_CLASSES = 8
# Of the backbone, in the order of model.frozen_stages.
STAGES = ("stem", "C2", "C3", "C4", "C5")
# A warm-up longer than this share of the run is probably meant for a longer one.
MAX_WARMUP_SHARE = 0.25
# An alpha that leaves background a smaller weight than this is no advice; seven digits show it.
LEAST_BACKGROUND_WEIGHT = 1e-6

Alpha = float | Sequence[float] | None


def announcement(
    settings: TrainConfig,
    data: CocoData,
    val_data: CocoData,
    trainer: Trainer,
    init_lines: Sequence[str],
    *,
    total_steps: int,
) -> list[str]:
    """Lines for the log: the data, the network, and the first loss to expect.

    ``trainer`` has made no step yet; ``init_lines`` say how weights were taken from ``init_from``.
    """
    counts = survey(
        data,
        trainer.model.anchor_generator,
        trainer.matcher,
        min_size=settings.data.min_size,
        max_size=settings.data.max_size,
        keep_empty=settings.data.keep_empty,
    )
    num_images = counts.num_images - (0 if settings.data.keep_empty else counts.num_empty)
    every, most = settings.evaluation.every_epochs, settings.evaluation.max_images
    how_often = "each epoch" if every == 1 else f"every {every:g} epochs"
    part = "" if most is None else f", the first {most} of them"
    loss = _loss_settings(settings, data)
    lines = [
        *(f"repaired   {what}: {n}" for what, n in data.repairs.items() if what not in FIXES),
        *describe_dropped(data),
        *describe_survey(counts, data.category_names),
        f"validation {len(val_data)} images, {how_often}{part}",
        *describe_no_ground_truth(val_data),
        *describe_shared(data, val_data),
        *describe_model(trainer.model, settings.model),
        *describe_steps(settings, total_steps, num_images),
        describe_alpha(loss["alpha"], data.category_names),
    ]
    if settings.init_from is not None:
        return [*lines, *init_lines]
    if settings.loss.name != "focal":
        return [*lines, "first loss not forecast: the closed form is that of loss.name=focal"]
    if not trainer.loss.fused:
        why = "losses.focal_loss was changed, the closed form is that of the paper"
        return [*lines, f"first loss not forecast: {why}"]
    lines += forecast_loss(counts, num_classes=trainer.model.num_classes, **loss)
    if not _is_exact(settings.loss):
        lines.append(
            "           it is for loss.normalizer=batch and one alpha for all classes; yours "
            "differ, so the first step may differ too"
        )
    return lines


def _loss_settings(settings: TrainConfig, data: CocoData) -> dict[str, Any]:
    return {
        "alpha": build.resolve_alpha(settings.loss.alpha, data.category_names),
        "gamma": settings.loss.gamma,
        "prior": settings.model.prior,
    }


def _is_exact(loss: LossConfig) -> bool:
    """Whether the closed form gives the loss of a batch, and not only the mean over the data."""
    one_alpha = loss.alpha is None or isinstance(loss.alpha, int | float)
    return loss.normalizer == "batch" and one_alpha and loss.name == "focal"


# The data


class Survey(NamedTuple):
    """Counts over a training set; what concerns anchors is from a sample of its images."""

    num_images: int
    num_empty: int  # without a usable box
    num_boxes: int  # usable, crowd regions left out
    num_crowds: int
    class_counts: tuple[int, ...]  # boxes of every class
    anchors: float  # mean per image
    positives: float  # mean per image
    background: float  # mean per image
    uncovered: float  # share of boxes without an anchor of at least matching.positive_iou


def survey(
    data: CocoData,
    generator: AnchorGenerator,
    matcher: Matcher,
    *,
    min_size: int,
    max_size: int,
    keep_empty: bool = True,
) -> Survey:
    """Count images, boxes and anchors at the training size, from annotations alone."""
    images = np.arange(len(data)) if keep_empty else np.flatnonzero(data.num_boxes())
    sampled = images[np.unique(np.linspace(0, len(images) - 1, SAMPLED_IMAGES).astype(int))]
    rows = []  # anchors, boxes, positives, background, boxes without a good anchor
    for index in sampled:
        height, width = map(int, data.sizes[index])
        resized = resized_size(height, width, min_size, max_size)
        padded = padded_size(resized).tolist()
        anchors = generator(*padded)
        factors = torch.tensor([resized[1] / width, resized[0] / height] * 2, dtype=torch.float32)
        boxes, labels = data.boxes(index)
        boxes = boxes * factors
        seen = is_visible(boxes)
        boxes, labels = boxes[seen], labels[seen]
        crowds = data.crowds(index) * factors
        windows = generator.windows(*padded)
        label = matcher(anchors, boxes[None], labels[None], crowds[None], windows).label
        sizes = torch.tensor([padded]).expand(len(boxes), 2)
        uncovered = best_overlaps(Objects(boxes, sizes, labels), generator) < matcher.positive_iou
        counts = (int(mask.sum()) for mask in (label >= 0, label == NEGATIVE, uncovered))
        rows.append((len(anchors), len(boxes), *counts))
    anchors, boxes, positives, background, uncovered = np.sum(rows, axis=0, dtype=float)
    usable = data.usable & ~data.crowd
    classes = np.bincount(data.labels[usable], minlength=len(data.category_names))
    return Survey(
        num_images=len(data),
        num_empty=int((data.num_boxes() == 0).sum()),
        num_boxes=int(usable.sum()),
        num_crowds=int(data.crowd.sum()),
        class_counts=tuple(classes.tolist()),
        anchors=anchors / len(sampled),
        positives=positives / len(sampled),
        background=background / len(sampled),
        uncovered=uncovered / boxes if boxes else 0.0,
    )


def describe_survey(counts: Survey, class_names: tuple[str, ...]) -> list[str]:
    """Lines: images, classes (K names), anchors, and boxes that these do not cover."""
    classes = sorted(zip(counts.class_counts, class_names, strict=True), reverse=True)
    shown = ", ".join(f"{name} {count}" for count, name in classes[:SHOWN_CLASSES])
    more = f", and {len(classes) - SHOWN_CLASSES} more" if len(classes) > SHOWN_CLASSES else ""
    ignored = counts.anchors - counts.positives - counts.background
    lines = [
        f"images     {counts.num_images} ({counts.num_empty} without objects), "
        f"{counts.num_boxes} boxes, {counts.num_crowds} crowd regions",
        f"classes    {len(classes)}: {shown}{more}",
        f"anchors    {counts.anchors:.0f} per image: {counts.positives:.1f} positives, "
        f"{ignored:.1f} ignored, the rest background",
        f"coverage   {100 * counts.uncovered:.1f} % of the boxes have no anchor with enough "
        f"overlap at the training size",
    ]
    without = [name for count, name in classes if count == 0]
    if without:
        shown = ", ".join(without[:SHOWN_CLASSES])
        more = ", ..." if len(without) > SHOWN_CLASSES else ""
        lines.append(f"warning    {len(without)} classes have no box to learn from: {shown}{more}")
    return lines


# The network and its steps


def describe_model(model: RetinaNet, settings: ModelConfig) -> list[str]:
    """Lines: the network that was built with these settings, and what of it does not train."""

    def millions(count: int) -> str:
        return f"{count / 1e6:.1f}" if count > 1e7 else f"{count / 1e6:.2f}"

    total = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    weights = "random weights" if settings.weights is None else settings.weights
    part = f"{millions(total - frozen)} M train" if frozen else "all train"
    lines = [
        f"model      {settings.backbone}, {weights}, {settings.norm} norm; {millions(total)} M "
        f"parameters, {part}"
    ]
    if frozen:
        stages = ", ".join(STAGES[: settings.frozen_stages])
        lines.append(f"frozen     {stages}: {millions(frozen)} M parameters")
    return lines


def describe_steps(settings: TrainConfig, total_steps: int, num_images: int) -> list[str]:
    """Lines: steps, learning rate, and a warning when the rate still rises for much of the run."""
    optim, warmup_steps = settings.optim, settings.schedule.warmup_steps
    batch, reference = optim.batch_size, optim.reference_batch
    source = f", not scaled to the {batch} images of a step"
    if reference is not None:
        source = f" = {optim.lr:g} x {batch} images a step / {reference}"
    epochs = total_steps / max(num_images // batch, 1)  # an epoch ends with its last whole step
    lines = [
        f"steps      {total_steps} of {batch} images: {epochs:.3g} epochs",
        f"lr         {scaled_lr(optim.lr, batch, reference):g}{source}",
    ]
    if batch > num_images:
        lines.append(
            f"warning    a step takes optim.batch_size={batch} images, and there are {num_images}: "
            f"each is in every step {batch / num_images:.3g} times; lower optim.batch_size"
        )
    if warmup_steps > MAX_WARMUP_SHARE * total_steps:
        lines.append(
            f"warning    schedule.warmup_steps={warmup_steps} of {total_steps} steps in all: the "
            f"learning rate peaks late or never; set about {total_steps // 20}"
        )
    return lines


# The loss


def describe_alpha(alpha: Alpha, class_names: Sequence[str]) -> str:
    """One line: which side alpha weighs, as resolved for the classes (K names)."""
    if alpha is None:
        return "alpha      off: y = 1 and y = 0 both weigh 1"
    if isinstance(alpha, Sequence):
        pairs = zip(class_names, alpha, strict=True)
        return "alpha      of y = 1: " + ", ".join(f"{name} {a:g}" for name, a in pairs)
    return f"alpha      {alpha:g} weighs y = 1 (the object's class), {1 - alpha:g} weighs y = 0"


def forecast_loss(
    counts: Survey, *, alpha: Alpha, gamma: float, prior: float, num_classes: int
) -> list[str]:
    """The first class loss to expect, with a warning where background outweighs the positives."""
    anchors = {
        "num_classes": num_classes,
        "num_positives": counts.positives,
        "num_background": counts.background,
    }
    loss = expected_class_loss(alpha, gamma, prior, **anchors)
    shown = "per class" if isinstance(alpha, Sequence) else alpha
    line = (
        f"first loss class {loss.total:.4g} (positives {loss.positives:.4g}, background "
        f"{loss.background:.4g}) with alpha={shown} gamma={gamma:g} pi={prior:g}"
    )
    if not loss.positives:
        return [line, "warning    the loss of positives is 0: there are none, or alpha is 0"]
    if loss.ratio <= MAX_BACKGROUND_RATIO:
        return [f"{line}: balanced"]
    fix = f"model.prior={balancing_prior(alpha, gamma, **anchors):.2g}"
    if isinstance(alpha, int | float) and 0 < alpha < 1:
        odds = loss.ratio * alpha / (1 - alpha)  # of the alpha at which both sides weigh the same
        if 1 / (1 + odds) >= LEAST_BACKGROUND_WEIGHT:
            fix += f" or loss.alpha={odds / (1 + odds):.7g}"
    return [
        line,
        f"warning    background outweighs positives {loss.ratio:.3g} : 1 at the start; the first "
        f"steps only lower its scores. {fix} would balance them",
    ]


def first_step(settings: TrainConfig, data: CocoData, trainer: Trainer, means: Means) -> str:
    """One line: the class loss of the first step beside its closed form for the same batch."""
    if not (_is_exact(settings.loss) and trainer.loss.fused):
        return f"first step class loss {means.class_loss:.4g}, not compared"
    loss = expected_class_loss(
        **_loss_settings(settings, data),
        num_classes=trainer.model.num_classes,
        num_positives=means.positives,
        num_background=means.background,
    )
    line = (
        f"first step class loss {means.class_loss:.4g}, closed form for its "
        f"{means.positives:.0f} positives {loss.total:.4g}"
    )
    if not means.positives:
        # Of background alone the loss is a few thousandths: the spread of the first logits.
        return f"{line}: no object in this batch, so not compared"
    if abs(means.class_loss - loss.total) <= FIRST_LOSS_TOLERANCE * loss.total:
        return f"{line}: as expected"
    return (
        f"{line}: NOT as expected. The classification head does not start at "
        f"model.prior={settings.model.prior:g} (weights loaded over it?) or its features are out "
        f"of scale"
    )
