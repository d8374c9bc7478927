"""Settings become objects: the only place where the names of both meet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from retinanet import distributed
from retinanet.config import DataConfig, EvaluationConfig, TrainConfig
from retinanet.data.coco import CocoData, read_coco
from retinanet.data.learnable import check_learnable, drop_vanishing
from retinanet.data.loader import TrainingLoader
from retinanet.data.splits import check_annotated, check_images_exist, check_same_classes
from retinanet.data.transforms import Augment
from retinanet.data.verdict import STOP, Verdict
from retinanet.losses import RetinaNetLoss
from retinanet.matching import Matcher
from retinanet.model.anchors import AnchorGenerator
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Postprocess
from retinanet.recorded import DetectorConfig
from retinanet.shapes.dataset import ensure_shapes
from retinanet.training.optim import Schedule, WeightAverage, build_optimizer, scaled_lr
from retinanet.training.trainer import Trainer


def build_data(data: DataConfig, split: str) -> CocoData:
    """Read one split's annotations.

    Args:
        data: settings.
        split: ``"train"`` or ``"val"``.

    Raises:
        ValueError: a path is not set, or the annotations are not usable.
        FileNotFoundError: no such file.
    """
    return read_coco(*data_paths(data, split))


def data_paths(data: DataConfig, split: str) -> tuple[Path, Path]:
    """Annotation file and image folder of one split; the built-in set is drawn if need be.

    Args:
        data: settings.
        split: ``"train"`` or ``"val"``.

    Raises:
        ValueError: a path is not set.
    """
    if data.name == "shapes":
        distributed.on_main(lambda: ensure_shapes(Path(data.root)))
    paths = []
    for part in ("annotations", "images"):
        value = getattr(data, f"{split}_{part}")
        if value is None:
            raise ValueError(f"data.{split}_{part} is not set; give its path (under data.root).")
        paths.append(Path(data.root or ".") / value)
    return paths[0], paths[1]


def build_splits(data: DataConfig) -> tuple[CocoData, CocoData]:
    """Both splits, with the same classes.

    Raises:
        ValueError: a split without annotations, or other classes in each.
    """
    train, val = build_data(data, "train"), build_data(data, "val")
    check_splits(data, train, val)
    return train, val


def check_splits(data: DataConfig, train: CocoData, val: CocoData, verdict: Verdict = STOP) -> None:
    """Refuse splits that cannot be trained on together, or whose images are missing.

    Args:
        data: settings.
        train: of them.
        val: of them.
        verdict: raises, or keeps every problem.

    Raises:
        ValueError: a split without annotations, or other classes in each.
        FileNotFoundError: an image that is missing, unless those are skipped.
    """
    check_annotated(train, "train", verdict)
    check_annotated(val, "val", verdict)
    check_same_classes(train, val, verdict)
    if data.on_bad_image == "stop":
        check_images_exist(train, verdict)
        check_images_exist(val, verdict)


def build_augment(settings: TrainConfig | DetectorConfig, *, train: bool) -> Augment:
    """Resizing, and with ``train`` the random changes."""
    data = settings.data
    sizes = {"min_size": data.min_size, "max_size": data.max_size, "rule": data.resize}
    if not train:
        return Augment(**sizes)
    augment = settings.augment
    return Augment(
        **sizes,
        flip=augment.flip,
        min_sizes=augment.min_sizes,
        scale=augment.scale,
        color=augment.color,
        train=True,
    )


def drop_unseen(settings: TrainConfig | DetectorConfig, data: CocoData) -> CocoData:
    """The training set without the boxes that vanish at every size that training draws."""
    return drop_vanishing(data, build_augment(settings, train=True))


def build_loader(
    settings: TrainConfig, data: CocoData, device: torch.device, accumulate: int = 1
) -> TrainingLoader:
    """The training batches of this rank, in so many micro-batches for each step.

    Args:
        settings: of the run.
        data: of :func:`drop_unseen`.
        device: of the model.
        accumulate: micro-batches for each step where ``optim.accumulate`` is ``auto``.

    Raises:
        ValueError: no box or no image to train on, or a batch that cannot be shared out.
    """
    check_learnable(data)
    given = settings.optim.accumulate
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


def build_model(
    settings: TrainConfig | DetectorConfig, num_classes: int, *, load_later: bool = False
) -> RetinaNet:
    """The network; its random weights depend on the seed alone.

    Args:
        settings: of the run.
        num_classes: K.
        load_later: a state dict follows, so no weights are fetched.
    """
    model = settings.model
    torch.manual_seed(settings.seed)
    return RetinaNet(
        backbone=model.backbone,
        num_classes=num_classes,
        prior=model.prior,
        weights=model.weights,
        norm=model.norm,
        head_norm=model.head_norm,
        frozen_stages=model.frozen_stages,
        norm_eps=model.norm_eps,
        stride_in_1x1=model.stride_in_1x1,
        fpn_channels=model.fpn_channels,
        p6_from=model.p6_from,
        relu_before_p7=model.relu_before_p7,
        head_depth=model.head_depth,
        head_channels=model.head_channels,
        anchors=build_anchors(settings),
        load_later=load_later,
    )


def build_anchors(settings: TrainConfig | DetectorConfig) -> AnchorGenerator:
    """Where boxes are looked for."""
    anchors = settings.anchors
    return AnchorGenerator(
        sizes=anchors.sizes,
        scales=anchors.scales,
        ratios=anchors.ratios,
        offset=anchors.offset,
        rounding=anchors.rounding,
    )


def build_matcher(settings: TrainConfig) -> Matcher:
    """Anchors to boxes."""
    matching = settings.matching
    return Matcher(
        positive_iou=matching.positive_iou,
        negative_iou=matching.negative_iou,
        low_quality=matching.low_quality,
        ignore_crowd=matching.ignore_crowd,
        crowd_iof=matching.crowd_iof,
    )


def build_loss(settings: TrainConfig, class_names: Sequence[str]) -> RetinaNetLoss:
    """Both losses of a step."""
    loss = settings.loss
    return RetinaNetLoss(
        name=loss.name,
        alpha=resolve_alpha(loss.alpha, class_names),
        gamma=loss.gamma,
        star_beta=loss.star_beta,
        ohem_anchors=loss.ohem_anchors,
        ohem_nms_iou=loss.ohem_nms_iou,
        ohem_ratio=loss.ohem_ratio,
        normalizer=loss.normalizer,
        box=loss.box,
        box_weight=loss.box_weight,
        box_beta=loss.box_beta,
    )


def resolve_alpha(alpha: Any, class_names: Sequence[str]) -> float | list[float] | None:
    """``loss.alpha`` for the classes at hand.

    Args:
        alpha: a number, None, a list with one number per class, or a map from class names to
            numbers, complete or with an entry ``default``.
        class_names: in the order of labels.

    Returns:
        A number, None, or K numbers in the order of labels.

    Raises:
        ValueError: a list of another length, an unknown name, a class without a number.
    """
    if alpha is None or isinstance(alpha, int | float):
        return alpha
    if isinstance(alpha, Sequence):
        if len(alpha) != len(class_names):
            raise ValueError(
                f"loss.alpha has {len(alpha)} numbers for {len(class_names)} classes "
                f"({', '.join(class_names)}); give one for each, in this order."
            )
        return [float(a) for a in alpha]
    unknown = sorted(set(alpha) - set(class_names) - {"default"})
    if unknown:
        raise ValueError(
            f"loss.alpha names {', '.join(unknown)}, which the data does not have; its classes "
            f"are {', '.join(class_names)}."
        )
    missing = [name for name in class_names if name not in alpha]
    if missing and "default" not in alpha:
        raise ValueError(
            f"loss.alpha has no value for {', '.join(missing)}; add them, or an entry 'default'."
        )
    return [float(alpha.get(name, alpha.get("default"))) for name in class_names]


def build_postprocess(settings: TrainConfig | DetectorConfig) -> Postprocess:
    """Logits and deltas to detections."""
    post = settings.postprocess
    return Postprocess(
        score_threshold=post.score_threshold,
        pre_nms=post.pre_nms,
        nms_iou=post.nms_iou,
        detections=post.detections,
        clip=post.clip,
    )


def build_validation(
    settings: TrainConfig | DetectorConfig, how: EvaluationConfig, device: torch.device
) -> dict[str, Any]:
    """What :func:`retinanet.evaluation.coco.validate` needs beside model and data.

    Args:
        settings: of the run that the model comes from.
        how: that run's ``evaluation``, or that of eval.py, in which what is null has the default
            of ``validate``.
        device: of this rank.
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


def build_trainer(
    settings: TrainConfig,
    model: RetinaNet,
    class_names: Sequence[str],
    *,
    total_steps: int,
    device: torch.device,
) -> Trainer:
    """Everything that a step changes.

    Args:
        settings: of the run.
        model: moved to ``device``.
        class_names: in the order of labels.
        total_steps: length of the run.
        device: of this rank, which :func:`check_device` found fit.
    """
    model.to(device)
    # Copied before compiling: a compiled method stays bound to the model it was taken from.
    ema = None if settings.ema.decay is None else WeightAverage(model, settings.ema.decay)
    if settings.compile:
        # One graph for all sizes of images: batches differ, and each graph takes minutes.
        model.predict = torch.compile(model.predict, dynamic=True)
    optim, schedule = settings.optim, settings.schedule
    lr = scaled_lr(optim.lr, optim.batch_size, optim.reference_batch)
    return Trainer(
        model,
        build_matcher(settings),
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
        Schedule(
            lr=lr,
            total_steps=total_steps,
            warmup_steps=schedule.warmup_steps,
            warmup_factor=schedule.warmup_factor,
            decay=schedule.decay,
            milestones=schedule.milestones,
            decay_factor=schedule.decay_factor,
        ),
        network=distributed.wrap(model, device),
        ema=ema,
        precision=settings.precision,
        max_grad_norm=optim.max_grad_norm,
    )


def check_device(
    settings: TrainConfig | DetectorConfig, device: torch.device, *, train: bool
) -> None:
    """Refuse settings that only a GPU can serve.

    Args:
        settings: of the run.
        device: of this rank.
        train: for training; synchronized norms predict anywhere.

    Raises:
        ValueError: the setting and what to use instead.
    """
    if train and device.type == "cpu" and settings.optim.accumulate == "auto":
        raise ValueError("optim.accumulate=auto measures a GPU's memory; on a CPU give a number.")
    if train and settings.model.norm == "sync" and settings.optim.accumulate == "auto":
        raise ValueError(
            "optim.accumulate=auto tries steps on each rank by itself, which model.norm=sync does "
            "not allow; give a number."
        )
    if device.type == "cpu" and settings.precision == "fp16":
        raise ValueError("precision=fp16 needs a GPU; on a CPU use precision=bf16 or fp32.")
    if train and device.type == "cpu" and settings.model.norm == "sync":
        raise ValueError(
            "model.norm=sync needs GPUs (torch has it for CUDA only); use batch, group or frozen."
        )
