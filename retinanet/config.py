"""Every setting: type, meaning, unit, range, and when it is read.

One dataclass for each folder of ``configs/``, whose YAML files hold the values.
:mod:`retinanet.checks` checks the ranges, for commands and for constructors alike. Neither imports
torch or Hydra, so a wrong setting fails at once.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass, field
from typing import Any, get_type_hints


@dataclass(frozen=True, slots=True)
class Limit:
    """What a number, or each number of a list, may be; or which words are allowed.

    ``low`` and ``high`` are included unless ``open_low`` or ``open_high``. ``length`` is the
    number of items of a list (None: any but zero). ``word`` may stand instead of a number.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    length: int | None = None
    increasing: bool = False
    word: str | None = None

    def __str__(self) -> str:
        if self.choices:
            return "be one of " + ", ".join(self.choices)
        if self.high == math.inf:
            text = f"be {'above' if self.open_low else 'at least'} {self.low:.10g}"
        else:
            left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
            text = f"lie in {left}{self.low:.10g}, {self.high:.10g}{right}"
        return text if self.word is None else f"{text} or {self.word}"

    def admits(self, value: Any) -> bool:
        """Whether one value is a number within the limit; inf and nan never are."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if not abs(value) <= sys.float_info.max:  # inf, nan, an integer beyond the largest float
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below


class When:
    """A condition on another setting: it has one of ``values``, or with ``other`` none of them."""

    def __init__(self, key: str, *values: Any, other: bool = False) -> None:
        self.key, self.values, self.other = key, values, other

    def holds(self, value: Any) -> bool:
        """Whether it does for this value of ``key``."""
        return (value in self.values) != self.other


def one_of(*choices: str) -> Limit:
    """A limit to a few words."""
    return Limit(choices=choices)


def setting(
    meaning: str, limit: Limit | None = None, *, read: When | None = None, train_only: bool = False
) -> Any:
    """A dataclass field without a value.

    Args:
        meaning: one line.
        limit: what is allowed.
        read: the setting has an effect only when this holds, and is refused where it is typed
            and it does not; None: it always has.
        train_only: eval.py has no use for it, and refuses it.
    """
    about = {"meaning": meaning, "limit": limit, "read": read, "train_only": train_only}
    return field(metadata=about)


# Backbones whose blocks begin with a 1x1 convolution that could have the stride.
BOTTLENECKS = (
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
DEVICES = one_of("auto", "cpu", "cuda", "mps")
PRECISIONS = one_of("auto", "fp32", "bf16", "fp16")
FRACTION = Limit(0, 1)
PROBABILITY = Limit(0, 1, open_low=True, open_high=True)
NOT_NEGATIVE = Limit(low=0)
POSITIVE = Limit(low=0, open_low=True)
COUNT = Limit(1, 2**31 - 1)
# More than any camera's; sides of images that fit in no memory are mistakes.
PIXELS = Limit(1, 2**16)
SEED = Limit(0, 2**31 - 1)
# When several settings are read.
HIDDEN_LAYERS = When("model.head_depth", 0, other=True)
OHEM = When("loss.name", "ohem")
STEPS = When("schedule.decay", "steps")


@dataclass(slots=True, kw_only=True)
class DataConfig:
    """configs/data -> retinanet/data"""

    name: str = setting(
        "built-in shapes, COCO's layout, or your own", one_of("shapes", "coco", "custom")
    )
    root: str | None = setting("folder of the data set; the four paths below start here")
    train_images: str | None = setting("folder of the training images", train_only=True)
    train_annotations: str | None = setting("COCO JSON of the training images", train_only=True)
    val_images: str | None = setting("folder of the validation images")
    val_annotations: str | None = setting("COCO JSON of the validation images")
    min_size: int = setting(
        "shorter side after resizing, pixels; training, evaluation, prediction", PIXELS
    )
    max_size: int = setting("the longer side is never resized above this, pixels", PIXELS)
    resize: str = setting(
        "resampling: antialias, or what torchvision's or OpenCV's checkpoints were trained with",
        one_of("antialias", "torchvision", "opencv"),
    )
    workers: int = setting(
        "loader processes on each rank, at most one per core; 0: main process", NOT_NEGATIVE
    )
    keep_empty: bool = setting("train on images without boxes too", train_only=True)
    on_bad_image: str = setting(
        "unreadable image: stop, or count it and use another", one_of("stop", "skip")
    )


@dataclass(slots=True, kw_only=True)
class AugmentConfig:
    """configs/augment -> retinanet/data/transforms.py"""

    flip: float = setting("probability of a left-right flip", FRACTION)
    min_sizes: list[int] | None = setting(
        "shorter sides to draw from, pixels; null: data.min_size", PIXELS
    )
    scale: list[float] | None = setting(
        "factor range [low, high] on the resized image, cropped back where larger; null: off",
        Limit(0, 10, open_low=True, length=2, increasing=True),
    )
    color: float = setting(
        "strength of brightness, contrast and saturation changes; 0: off",
        Limit(0, 1, open_high=True),
    )


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    """configs/model -> retinanet/model"""

    backbone: str = setting(
        "network that makes C3 to C5",
        one_of("resnet18", "resnet34", *BOTTLENECKS, "mobilenet_v2", "tiny"),
    )
    weights: str | None = setting(
        "backbone weights: torchvision's name, a path, or null for random",
        read=When("init_from", None),
    )
    norm: str = setting("normalization of the backbone", one_of("frozen", "batch", "sync", "group"))
    head_norm: str = setting(
        "normalization of the heads", one_of("none", "group"), read=HIDDEN_LAYERS
    )
    frozen_stages: int = setting(
        "backbone stages that do not train: 1 is the stem, 2 adds C2, ...", Limit(0, 5)
    )
    norm_eps: float = setting(
        "added to the variance by the backbone's frozen and batch norms",
        NOT_NEGATIVE,
        read=When("model.norm", "group", other=True),
    )
    stride_in_1x1: bool = setting(
        "bottlenecks shrink in their first convolution (Caffe, MSRA)",
        read=When("model.backbone", *BOTTLENECKS),
    )
    fpn_channels: int = setting("channels of P3 to P7", COUNT)
    p6_from: str = setting("input of P6's convolution", one_of("c5", "p5"))
    relu_before_p7: bool = setting("ReLU between P6 and P7's convolution")
    head_depth: int = setting("3x3 convolutions in each head before its last", NOT_NEGATIVE)
    head_channels: int = setting("channels of each head", COUNT, read=HIDDEN_LAYERS)
    prior: float = setting("pi: probability of every class at the start", PROBABILITY)


@dataclass(slots=True, kw_only=True)
class AnchorsConfig:
    """configs/anchors -> retinanet/model/anchors.py"""

    sizes: list[float] = setting(
        "side of the square anchor of P3, ..., P7, pixels", Limit(low=0, open_low=True, length=5)
    )
    scales: list[float] = setting("factors on each size", POSITIVE)
    ratios: list[float] = setting("height / width", POSITIVE)
    offset: float = setting("center of the first anchor of a level, in strides", Limit(0, 1))
    rounding: str = setting(
        "none, or whole pixels and strides from the padded size, for torchvision's checkpoints",
        one_of("none", "torchvision"),
    )


@dataclass(slots=True, kw_only=True)
class MatchingConfig:
    """configs/matching -> retinanet/matching.py"""

    positive_iou: float = setting("an anchor with at least this IoU is positive", PROBABILITY)
    negative_iou: float = setting(
        "an anchor below this IoU is background; between the two it is ignored", PROBABILITY
    )
    low_quality: bool = setting(
        "the best anchors of a box are positive whatever their IoU, if above 0"
    )
    ignore_crowd: bool = setting("background anchors inside crowd boxes are ignored")
    crowd_iof: float = setting(
        "inside: intersection / anchor area, at least this",
        PROBABILITY,
        read=When("matching.ignore_crowd", True),
    )


@dataclass(slots=True, kw_only=True)
class LossConfig:
    """configs/loss -> retinanet/losses.py"""

    name: str = setting(
        "class loss: focal; its other form FL* (appendix A); or cross entropy of hard anchors",
        one_of("focal", "focal_star", "ohem"),
    )
    alpha: float | list[float] | dict[str, float] | None = setting(
        "weight of y = 1, 1 - alpha of y = 0; a list or name map per class; null: off", FRACTION
    )
    gamma: float = setting(
        "focusing exponent; 0 is alpha-balanced cross entropy",
        NOT_NEGATIVE,
        read=When("loss.name", "focal", "focal_star"),
    )
    star_beta: float = setting(
        "focal_star only: shift of the logits",
        Limit(-100, 100),
        read=When("loss.name", "focal_star"),
    )
    ohem_anchors: int = setting("ohem only: anchors that count in each image", COUNT, read=OHEM)
    ohem_nms_iou: float = setting(
        "ohem only: anchors with more overlap count once", FRACTION, read=OHEM
    )
    ohem_ratio: float | None = setting(
        "ohem only: background anchors for each positive; null: as it comes", POSITIVE, read=OHEM
    )
    normalizer: str = setting(
        "losses are divided by positives of the batch, the image, or their average over steps",
        one_of("batch", "image", "ema"),
    )
    box: str = setting("box loss", one_of("l1", "smooth_l1", "giou", "diou", "ciou"))
    box_weight: float = setting("multiplier of the box loss", NOT_NEGATIVE)
    box_beta: float = setting(
        "smooth_l1 only: quadratic below this, in delta units",
        POSITIVE,
        read=When("loss.box", "smooth_l1"),
    )


@dataclass(slots=True, kw_only=True)
class OptimConfig:
    """configs/optim -> retinanet/training/optim.py"""

    name: str = setting("optimizer", one_of("sgd", "adamw"))
    lr: float = setting("learning rate at reference_batch images a step", POSITIVE)
    momentum: float = setting(
        "sgd only: momentum", Limit(0, 1, open_high=True), read=When("optim.name", "sgd")
    )
    weight_decay: float = setting("weight decay of convolution weights", NOT_NEGATIVE)
    norm_weight_decay: float = setting("weight decay of normalization parameters", NOT_NEGATIVE)
    bias_weight_decay: float = setting("weight decay of biases", NOT_NEGATIVE)
    batch_size: int = setting("images per step, over all ranks and micro-batches", COUNT)
    reference_batch: int | None = setting(
        "lr is scaled by batch_size / this; null: not scaled", COUNT
    )
    accumulate: int | str = setting(
        "micro-batches per step; auto: the fewest with which the GPU's memory suffices",
        dataclasses.replace(COUNT, word="auto"),
    )
    max_grad_norm: float | None = setting(
        "gradients are clipped to this L2 norm; null: off", POSITIVE
    )


@dataclass(slots=True, kw_only=True)
class ScheduleConfig:
    """configs/schedule -> retinanet/training/optim.py"""

    epochs: int = setting(
        "passes over the training images", COUNT, read=When("schedule.max_steps", None)
    )
    max_steps: int | None = setting("length in steps instead of epochs; null: epochs", COUNT)
    warmup_steps: int = setting("steps of linear warm-up", NOT_NEGATIVE)
    warmup_factor: float = setting(
        "learning rate of the first step, as a share of lr",
        Limit(0, 1, open_low=True),
        read=When("schedule.warmup_steps", 0, other=True),
    )
    decay: str = setting("learning rate after the warm-up", one_of("steps", "cosine", "constant"))
    milestones: list[float] = setting(
        "steps only: drops at these shares of the run", PROBABILITY, read=STEPS
    )
    decay_factor: float = setting(
        "steps only: factor of each drop", Limit(0, 1, open_low=True), read=STEPS
    )


@dataclass(slots=True, kw_only=True)
class EmaConfig:
    """configs/ema -> retinanet/training/optim.py"""

    decay: float | None = setting(
        "decay of the EMA weights, which are then evaluated; null: off", PROBABILITY
    )


@dataclass(slots=True, kw_only=True)
class PostprocessConfig:
    """configs/postprocess -> retinanet/postprocess.py"""

    score_threshold: float = setting("scores must be above this", Limit(0, 1, open_high=True))
    pre_nms: int = setting("best (anchor, class) pairs kept on each level", COUNT)
    nms_iou: float = setting(
        "of two boxes of one class with more IoU the weaker is dropped", FRACTION
    )
    detections: int = setting("best detections kept in each image", COUNT)
    clip: str = setting(
        "boxes are cut at the image's edges before or after NMS", one_of("before_nms", "after_nms")
    )


@dataclass(slots=True, kw_only=True)
class EvaluationConfig:
    """configs/evaluation -> retinanet/evaluation"""

    backend: str = setting(
        "COCO evaluator; both give the same numbers", one_of("arrays", "pycocotools")
    )
    every_epochs: float = setting(
        "in training: epochs between evaluations, fractions allowed; the last step always",
        POSITIVE,
        train_only=True,
    )
    max_images: int | None = setting("evaluate only the first images of the list; null: all", COUNT)
    max_dets: list[int] = setting(
        "detections per image for AR1, AR10, AR100 and AP", Limit(low=1, length=3, increasing=True)
    )
    batch_size: int = setting("images of one padded size per forward pass", COUNT)
    patience: int | None = setting(
        "early stopping: end after this many evaluations without a better AP; null: off",
        COUNT,
        train_only=True,
    )


@dataclass(slots=True, kw_only=True)
class TrainConfig:
    """configs/train.yaml -> train.py"""

    data: DataConfig
    augment: AugmentConfig
    model: ModelConfig
    anchors: AnchorsConfig
    matching: MatchingConfig
    loss: LossConfig
    optim: OptimConfig
    schedule: ScheduleConfig
    ema: EmaConfig
    postprocess: PostprocessConfig
    evaluation: EvaluationConfig
    output_dir: str | None = setting(
        "where this run keeps everything; null: a name made from the command"
    )
    init_from: str | None = setting(
        "start from the weights of this checkpoint; null: model.weights only"
    )
    overwrite: bool = setting("move an older run with other settings aside")
    seed: int = setting("seed of weights, order and augmentation", SEED)
    device: str = setting("auto takes the GPU if there is one", DEVICES)
    precision: str = setting(
        "of the model's forward pass; losses are always fp32. auto: bf16 where the device has it",
        PRECISIONS,
    )
    compile: bool = setting("torch.compile the model; pays on GPUs")
    log_every_steps: int = setting("steps between rows of metrics.jsonl", COUNT)
    log_images: int = setting("validation images drawn at each evaluation", NOT_NEGATIVE)
    save_every_steps: int | None = setting(
        "also save between evaluations, in steps; null: off", COUNT
    )
    on_failed_save: str = setting(
        "a full disk or the like: stop, or warn and go on without that file",
        one_of("stop", "continue"),
    )
    max_bad_steps: int = setting(
        "a step with a loss or gradient that is not finite is skipped; more of them end the run",
        NOT_NEGATIVE,
    )


def optional(cls: type) -> type:
    """A copy of a settings class in which every setting may be null: "as recorded"."""
    hints = get_type_hints(cls)
    fields = [
        (f.name, hints[f.name] | None, dataclasses.field(metadata=dict(f.metadata)))
        for f in dataclasses.fields(cls)
    ]
    made = dataclasses.make_dataclass(f"Recorded{cls.__name__}", fields, slots=True, kw_only=True)
    made.__module__, made.__doc__ = __name__, cls.__doc__
    return made


RecordedDataConfig = optional(DataConfig)
RecordedPostprocessConfig = optional(PostprocessConfig)
RecordedEvaluationConfig = optional(EvaluationConfig)


@dataclass(slots=True, kw_only=True)
class EvalConfig:
    """configs/eval.yaml -> eval.py"""

    checkpoint: str = setting("checkpoint to evaluate")
    data: RecordedDataConfig  # type: ignore[valid-type]
    postprocess: RecordedPostprocessConfig  # type: ignore[valid-type]
    evaluation: RecordedEvaluationConfig  # type: ignore[valid-type]
    output_dir: str | None = setting(
        "files go to output_dir/eval; null: the run, or <run>/eval_<data>"
    )
    device: str = setting("auto takes the GPU if there is one", DEVICES)
    precision: str | None = setting("of the model's forward pass; null: as recorded", PRECISIONS)
    compile: bool = setting("torch.compile the model; pays for thousands of images")
    log_images: int = setting("images drawn", NOT_NEGATIVE)


@dataclass(slots=True, kw_only=True)
class DetectorConfig:
    """What a trained model needs to detect: the part of TrainConfig read from checkpoints."""

    data: RecordedDataConfig  # type: ignore[valid-type]
    model: ModelConfig
    anchors: AnchorsConfig
    postprocess: PostprocessConfig
    precision: str = setting("of the model's forward pass", PRECISIONS)
    seed: int = setting("seed of weights", SEED)


# What versions did that had not yet the setting, so that their checkpoints still detect.
BEFORE: dict[type, dict[str, Any]] = {
    RecordedDataConfig: {"resize": "antialias"},
    ModelConfig: {"norm_eps": 1e-5, "stride_in_1x1": False},
    AnchorsConfig: {"rounding": "none"},
    PostprocessConfig: {"clip": "before_nms"},
}
