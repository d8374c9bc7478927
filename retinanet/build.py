"""Build data, model, loss and optimizer from settings, and the model of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from retinanet import distributed
from retinanet.checks import check_settings, restore
from retinanet.config import DataConfig, DetectorConfig, EvaluationConfig, TrainConfig
from retinanet.data.coco import CocoData, read_coco
from retinanet.data.issues import raise_refused
from retinanet.data.loader import TrainingLoader
from retinanet.data.splits import (
    annotated_issues,
    class_issues,
    drop_vanishing,
    learnable_issues,
    missing_issues,
)
from retinanet.data.transforms import Augment
from retinanet.losses import RetinaNetLoss
from retinanet.matching import Matcher
from retinanet.model.anchors import AnchorGenerator
from retinanet.model.heads import count_classes
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Postprocess
from retinanet.training.checkpoint import final_weights
from retinanet.training.optim import EMA, Schedule, build_optimizer, scaled_lr
from retinanet.training.trainer import Trainer

# How images come into a model, which every checkpoint must say.
IMAGE_SETTINGS = ("min_size", "max_size", "resize")

# Data.


def data_paths(data: DataConfig, split: str) -> tuple[Path, Path]:
    """Annotation file and image folder of ``"train"`` or ``"val"``; the built-in set gets drawn.

    Raises:
        ValueError: a path is not set.
    """
    if data.name == "shapes":
        from retinanet.shapes.dataset import ensure_shapes  # what draws the built-in set: only now

        distributed.on_main(lambda: ensure_shapes(Path(data.root)))
    paths = []
    for part in ("annotations", "images"):
        value = getattr(data, f"{split}_{part}")
        if value is None:
            raise ValueError(f"data.{split}_{part} is not set; give its path (under data.root).")
        paths.append(Path(data.root or ".") / value)
    return paths[0], paths[1]


def build_data(data: DataConfig, split: str) -> CocoData:
    """The images and annotations of ``"train"`` or ``"val"``.

    Raises:
        ValueError: a path is not set, or the annotations are not usable.
        FileNotFoundError: no such file.
    """
    return read_coco(*data_paths(data, split))


def build_splits(data: DataConfig) -> tuple[CocoData, CocoData]:
    """Training and validation data that can be used together.

    Raises:
        ValueError: a split without annotations, or other classes in each.
        FileNotFoundError: an image that is missing; where those are skipped, too many.
    """
    train, val = build_data(data, "train"), build_data(data, "val")
    raise_refused(annotated_issues(train, "train") + annotated_issues(val, "val"))
    raise_refused(class_issues(train, val))
    skip = data.on_bad_image == "skip"
    for split, each in (("train", train), ("val", val)):
        raise_refused(missing_issues(each, split, skip=skip))
    return train, val


def build_augment(settings: TrainConfig | DetectorConfig, *, train: bool) -> Augment:
    """Resizing, and with ``train`` the random changes."""
    data = settings.data
    random = asdict(settings.augment) if train else {}
    return Augment(
        min_size=data.min_size, max_size=data.max_size, rule=data.resize, train=train, **random
    )


def drop_unseen(settings: TrainConfig | DetectorConfig, data: CocoData) -> CocoData:
    """The training set without the boxes that vanish at every size that training draws."""
    return drop_vanishing(data, build_augment(settings, train=True))


def build_loader(
    settings: TrainConfig, data: CocoData, device: torch.device, accumulate: int = 1
) -> TrainingLoader:
    """The training batches of this rank, of data from :func:`drop_unseen`.

    Raises:
        ValueError: no box or no image to train on, or a batch that cannot be shared out.
    """
    raise_refused(learnable_issues(data))
    given = settings.optim.accumulate  # "auto" has been measured
    return TrainingLoader(
        data,
        build_augment(settings, train=True),
        seed=settings.seed,
        batch_size=settings.optim.batch_size,
        accumulate=accumulate if given == "auto" else given,
        keep_empty=settings.data.keep_empty,
        on_bad_image=settings.data.on_bad_image,
        workers=settings.data.workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=device.type == "cuda",
    )


# Network and loss: the names of settings are those of the constructors.


def build_anchors(settings: TrainConfig | DetectorConfig) -> AnchorGenerator:
    """What makes the anchors of a padded image."""
    return AnchorGenerator(**asdict(settings.anchors))


def build_model(
    settings: TrainConfig | DetectorConfig, num_classes: int, *, load_later: bool = False
) -> RetinaNet:
    """The network of K classes; its random weights depend on the seed alone.

    With ``load_later`` a state dict follows, so no weights are fetched.
    """
    torch.manual_seed(settings.seed)
    anchors = build_anchors(settings)
    return RetinaNet(
        num_classes=num_classes, anchors=anchors, load_later=load_later, **asdict(settings.model)
    )


def build_postprocess(settings: TrainConfig | DetectorConfig) -> Postprocess:
    """What makes detections of logits and deltas."""
    return Postprocess(**asdict(settings.postprocess))


def build_loss(settings: TrainConfig, class_names: Sequence[str]) -> RetinaNetLoss:
    """Class loss and box loss of a step; what nothing reads with its name is None there."""
    loss = {name: value for name, value in asdict(settings.loss).items() if value is not None}
    loss["alpha"] = resolve_alpha(settings.loss.alpha, class_names)
    return RetinaNetLoss(**loss)


def resolve_alpha(alpha: Any, class_names: Sequence[str]) -> float | list[float] | None:
    """``loss.alpha`` for the classes at hand.

    Args:
        alpha: a number, None, a list with one number per class, or a map from class names to
            numbers, complete or with an entry ``default``; the last two become K numbers.
        class_names: in the order of labels.

    Raises:
        ValueError: a list of another length, an unknown name, a class without a number.
    """
    if alpha is None or isinstance(alpha, int | float):
        return alpha
    classes = ", ".join(class_names)
    if isinstance(alpha, Sequence):
        if len(alpha) != len(class_names):
            raise ValueError(
                f"loss.alpha has {len(alpha)} numbers for {len(class_names)} classes "
                f"({classes}); give one for each, in this order."
            )
        return [float(a) for a in alpha]
    unknown = sorted(alpha.keys() - {*class_names, "default"})
    if unknown:
        raise ValueError(
            f"loss.alpha names {', '.join(unknown)}, which the data does not have; its classes "
            f"are {classes}."
        )
    missing = [name for name in class_names if name not in alpha]
    if missing and "default" not in alpha:
        raise ValueError(
            f"loss.alpha has no value for {', '.join(missing)}; add them, or an entry 'default'."
        )
    return [float(alpha.get(name, alpha.get("default"))) for name in class_names]


# Training.


def build_trainer(
    settings: TrainConfig,
    model: RetinaNet,
    class_names: Sequence[str],
    *,
    total_steps: int,
    device: torch.device,
) -> Trainer:
    """Everything that a step changes, on a device that :func:`check_device` found fit."""
    model.to(device)
    # Copied before compiling: a compiled method stays bound to the model it was taken from.
    ema = None if settings.ema.decay is None else EMA(model, settings.ema.decay)
    if settings.compile:
        # One graph for all sizes of images: batches differ, and each graph takes minutes.
        model.predict = torch.compile(model.predict, dynamic=True)
    optim, schedule = settings.optim, asdict(settings.schedule)
    del schedule["epochs"], schedule["max_steps"]  # which make total_steps
    lr = scaled_lr(optim.lr, optim.batch_size, optim.reference_batch)
    return Trainer(
        model,
        Matcher(**asdict(settings.matching)),
        build_loss(settings, class_names).to(device),
        build_optimizer(
            model,
            name=optim.name,
            lr=lr,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            norm_weight_decay=optim.norm_weight_decay,
            bias_weight_decay=optim.bias_weight_decay,
        ),
        Schedule(lr=lr, total_steps=total_steps, **schedule),
        network=distributed.wrap(model, device),
        ema=ema,
        precision=settings.precision,
        max_grad_norm=optim.max_grad_norm,
    )


def check_device(
    settings: TrainConfig | DetectorConfig, device: torch.device, *, train: bool
) -> None:
    """Refuse settings that only a GPU can serve; synchronized norms predict anywhere.

    Raises:
        ValueError: the setting and what to use instead.
    """
    on_cpu = device.type == "cpu"
    if train and on_cpu and settings.optim.accumulate == "auto":
        raise ValueError("optim.accumulate=auto measures a GPU's memory; on a CPU give a number.")
    if train and settings.model.norm == "sync" and settings.optim.accumulate == "auto":
        raise ValueError(
            "optim.accumulate=auto tries steps on each rank by itself, which model.norm=sync does "
            "not allow; give a number."
        )
    if on_cpu and settings.precision == "fp16":
        raise ValueError("precision=fp16 needs a GPU; on a CPU use precision=bf16 or fp32.")
    if train and on_cpu and settings.model.norm == "sync":
        raise ValueError(
            "model.norm=sync needs GPUs (torch has it for CUDA only); use batch, group or frozen."
        )


# Evaluation, and the model of a checkpoint.


def build_validation(
    settings: TrainConfig | DetectorConfig, how: EvaluationConfig, device: torch.device
) -> dict[str, Any]:
    """What :func:`retinanet.evaluation.average_precision.validate` needs beside model and data.

    In the ``evaluation`` of eval.py, what is null has the default of ``validate``.
    """
    chosen = {"batch_size": how.batch_size, "backend": how.backend, "max_dets": how.max_dets}
    return {
        "device": device,
        "augment": build_augment(settings, train=False),
        "postprocess": build_postprocess(settings),
        "precision": settings.precision,
        "workers": settings.data.workers,
        "on_bad_image": settings.data.on_bad_image,
        "max_images": how.max_images,
        **{name: value for name, value in chosen.items() if value is not None},
    }


def recorded_settings(state: dict[str, Any]) -> DetectorConfig:
    """The settings of a checkpoint that its model detects with.

    Raises:
        ValueError: they are not those of this version, or out of range.
    """
    names = [f.name for f in fields(DetectorConfig)]
    recorded = {name: value for name, value in state["settings"].items() if name in names}
    settings = restore(DetectorConfig, recorded)
    lacking = [name for name in IMAGE_SETTINGS if getattr(settings.data, name) is None]
    if lacking:
        raise ValueError(f"the recorded settings lack data.{', data.'.join(lacking)}.")
    check_settings(settings)
    return settings


def known_classes(state: dict[str, Any], num_classes: int) -> tuple[list[str], list[int]]:
    """Names and category ids of a checkpoint's classes; numbers where nobody wrote them down.

    Raises:
        ValueError: it names more or fewer classes than its model detects.
    """
    names, ids = state["classes"]["names"], state["classes"]["ids"]
    if names is None:
        return [f"class_{label}" for label in range(num_classes)], list(range(num_classes))
    if len(names) != num_classes:
        raise ValueError(
            f"the checkpoint names {len(names)} classes, and its model detects {num_classes}."
        )
    return names, ids


def load_model(state: dict[str, Any], settings: DetectorConfig) -> RetinaNet:
    """The model of a checkpoint, with the EMA weights where there are some.

    Args:
        state: from :func:`retinanet.weights.read.read_trained`.
        settings: :func:`recorded_settings` of it.

    Raises:
        ValueError: parameters are missing, left over or of another shape.
    """
    weights = final_weights(state)
    shapes = {name: tuple(value.shape) for name, value in weights.items()}

    def refuse(wrong: Sequence[str]) -> None:
        if wrong:
            raise ValueError(
                f"the checkpoint does not hold the model it describes: {len(wrong)} parameters are "
                f"missing, left over or of another shape, such as "
                f"{', '.join(map(str, wrong[:3]))}."
            )

    # First what makes a model large: what is described may fit into no memory.
    model, anchors = settings.model, settings.anchors
    a, C = len(anchors.scales) * len(anchors.ratios), model.fpn_channels
    widths = [C] + [model.head_channels] * min(model.head_depth, 2)
    described = {"fpn.p7.weight": (C, C, 3, 3), "head.box.pred.weight": (4 * a, widths[-1], 3, 3)}
    if model.head_depth:
        last = f"head.cls.convs.{model.head_depth - 1}.weight"
        described[last] = (widths[-1], widths[-2], 3, 3)
    refuse([name for name, shape in described.items() if shapes.get(name) != shape])
    network = build_model(settings, count_classes(weights), load_later=True)
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    wrong = [name for name, shape in wanted.items() if shapes.get(name) != shape]
    refuse([*sorted(shapes.keys() - wanted.keys()), *wrong])
    network.load_state_dict(weights)
    return network.eval()
