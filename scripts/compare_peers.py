"""Train this package and torchvision's own RetinaNet class on equal terms, and compare their AP.

steps   Both get the same batches, initial weights, anchors, optimizer, schedule, clipping,
        precision and EMA weights, all from the settings. torchvision's loss and post-processing
        are its own. Both are evaluated in fp32 by the same COCO evaluator on the same images.
parity  Equal weights: random ones in torchvision's class, read from its file into ours; the
        outputs of both on images.

Settings are those of train.py. The same command trains only what is not finished yet, and a later
one may add seeds.

  python -m scripts.compare_peers steps --steps 400 --output runs/compare -- \\
    data=custom data.root=/data/cells ... model=mobilenet_v2
  python -m scripts.compare_peers parity images/*.jpg
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import platform
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from tqdm import tqdm

from retinanet import build
from retinanet.atomic import write_whole
from retinanet.cli.main import composer
from retinanet.config import TrainConfig
from retinanet.csv_text import csv_text
from retinanet.data.coco import CocoData
from retinanet.data.loader import DIVISOR, Batch, BatchLoader, eval_plan
from retinanet.devices import autocast, choose_device, choose_precision
from retinanet.evaluation.average_precision import Evaluation, evaluate, validate
from retinanet.evaluation.detect import DetectionArrays, as_arrays, merge
from retinanet.model.backbone import build_resnet, norm_layer
from retinanet.model.heads import group_norm
from retinanet.model.retinanet import RGB_MEAN, RGB_STD, RetinaNet
from retinanet.postprocess import Detections, to_original
from retinanet.training.optim import EMA, build_optimizer, scaled_lr
from retinanet.training.run_directory import flatten
from retinanet.weights.names import TORCHVISION, rename

from .command_line import exit_status, new_parser
from .torchvision_parity import VERSIONS, parity

OURS, THEIRS = "retinanet", "torchvision"
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Settings that leave a comparison the same.
FREE = ("data.root", "data.workers", "seed", "output_dir")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a comparison."""
    parser = new_parser("compare_peers", __doc__)
    modes = parser.add_subparsers(dest="mode", required=True)
    steps = modes.add_parser("steps", help="equal steps, equal everything")
    steps.add_argument("--steps", type=_positive, required=True, help="of each training")
    steps.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    steps.add_argument("--evaluations", type=_positive, default=1, help="default: %(default)s")
    steps.add_argument("--output", type=Path, required=True, help="folder for the results")
    steps.add_argument("settings", nargs="*", help="KEY=VALUE of train.py, after --")
    same = modes.add_parser("parity", help="equal weights")
    same.add_argument("images", type=Path, nargs="+", help="image files")
    same.add_argument("--min-size", type=_positive, default=800, help="default: 800")
    same.add_argument("--max-size", type=_positive, default=1333, help="default: 1333")
    same.add_argument("--seed", type=int, default=0, help="of the weights; default: 0")
    args = parser.parse_args(arguments)
    return exit_status(lambda: print_parity(args) if args.mode == "parity" else compare(args))


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return int(text)


def print_parity(args: argparse.Namespace) -> int:
    """Print how far the outputs are apart, for both versions of torchvision's model."""
    print(f"machine: {machine()}")
    sizes = {"min_size": args.min_size, "max_size": args.max_size}
    for version in VERSIONS:
        lines = parity(version, args.images, seed=args.seed, **sizes)
        print("\n".join(["", f"torchvision {version}", "", *lines]))
    return 0


def compare(args: argparse.Namespace) -> int:
    """Train both peers with every seed that has no result yet; write the results after each.

    Raises:
        ValueError: settings that cannot be compared, or an --output of another comparison.
    """
    settings = read_settings(args.settings, args.steps)
    contest = {
        "unit": "steps",
        "amount": args.steps,
        "turns": args.evaluations,
        "settings": dataclasses.asdict(settings),
    }
    rows = finished_rows(args.output / "results.json", contest)
    print(f"machine: {machine()}")
    splits = build.build_splits(settings.data)
    for seed in dict.fromkeys(args.seeds):
        seeded = dataclasses.replace(settings, seed=seed)
        for peer in (OURS, THEIRS):
            if any((row["peer"], row["seed"]) == (peer, seed) for row in rows):
                continue
            training = OurTraining(seeded, splits, args.steps)
            if peer == THEIRS:
                training = TorchvisionTraining(training)
            rows += train(peer, training, args.steps, args.evaluations)
            content = {"machine": machine(), **contest, "rows": rows}
            write_whole(args.output / "results.json", json.dumps(content, indent=2) + "\n")
            text = csv_text(rows[0], [row.values() for row in rows])
            write_whole(args.output / "results.csv", text)
    print(
        f"\nEqual steps: the same {args.steps} batches of {settings.optim.batch_size} images, "
        f"initial weights, anchors, {settings.optim.name}, schedule, clipping, "
        f"{settings.precision}.\n"
        f"Each has its own post-processing and loss: {OURS} divides by the positives of the "
        f"{settings.loss.normalizer}, {THEIRS} by those of each image.\n"
    )
    print("\n".join([*table(rows), ""]))
    print(f"files: {args.output}/results.json, results.csv")
    return 0


def read_settings(typed: Sequence[str], steps: int) -> TrainConfig:
    """Settings of both peers.

    Raises:
        ValueError: a setting that does not exist, or with which the two cannot be compared.
    """
    with composer("train") as reader:
        settings = reader.command([*typed, f"schedule.max_steps={steps}"]).settings
    settings.precision = choose_precision(settings.precision, choose_device(settings.device))
    model = settings.model
    wanted = {
        "model.head_depth": (model.head_depth <= 4, "at most 4"),
        "model.head_channels": (
            model.head_channels == model.fpn_channels,
            f"model.fpn_channels={model.fpn_channels}",
        ),
        "model.relu_before_p7": (model.relu_before_p7, "true"),
        "model.stride_in_1x1": (not model.stride_in_1x1, "false"),
        "model.norm": (model.norm in ("frozen", "group"), "frozen or group"),
        "matching.low_quality": (settings.matching.low_quality, "true"),
        "optim.accumulate": (settings.optim.accumulate == 1, "1"),
        "precision": (settings.precision != "fp16", "fp32 or bf16"),
    }
    for key, (fits, allowed) in wanted.items():
        if not fits:
            raise ValueError(f"{key} must be {allowed} to be compared with torchvision's class.")
    return settings


def finished_rows(path: Path, contest: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier command with the same settings.

    Raises:
        ValueError: the results are those of another comparison.
    """
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    now = flatten(json.loads(json.dumps(contest)))
    before = flatten({key: content.get(key) for key in contest})
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed := [key for key in keys if not key.endswith(FREE)]:
        raise ValueError(
            f"{path.parent} holds a comparison with other settings ({', '.join(changed)}); choose "
            f"another --output."
        )
    return content["rows"]


# The trainings


class OurTraining:
    """This package: the trainer and the evaluation of ``train.py``."""

    def __init__(
        self, settings: TrainConfig, splits: tuple[CocoData, CocoData], total_steps: int
    ) -> None:
        """Build loader, model and trainer."""
        self.settings, self.val = settings, splits[1]
        self.device = choose_device(settings.device)
        train = build.drop_unseen(settings, splits[0])
        self.loader = build.build_loader(settings, train, self.device)
        names = train.category_names
        model = build.build_model(settings, len(names))
        self.trainer = build.build_trainer(
            settings, model, names, total_steps=total_steps, device=self.device
        )

    def one_step(self, batch: Batch) -> None:
        """The step of ``train.py``."""
        self.trainer.network.train()
        self.trainer.one_step([batch])

    def validate(self) -> tuple[Evaluation, DetectionArrays]:
        """Metrics and detections of the validation images, by EMA weights if there are any."""
        ema = self.trainer.ema
        # fp32, as torchvision's references do: in bf16 torchvision would round its boxes to 8 bits.
        settings = dataclasses.replace(self.settings, precision="fp32")
        how = build.build_validation(settings, settings.evaluation, self.device)
        return validate(self.trainer.model if ema is None else ema.model, self.val, **how)


class TorchvisionTraining:
    """The loop of torchvision's references around torchvision's class."""

    def __init__(self, ours: OurTraining) -> None:
        """Take settings, data, schedule and initial weights of one of ours, not begun."""
        self.settings, self.device = ours.settings, ours.device
        self.loader, self.val = ours.loader, ours.val
        self.model = torchvision_model(ours.settings, ours.trainer.model).to(ours.device)
        self.schedule, self.step = ours.trainer.schedule, 0
        optim, decay = ours.settings.optim, ours.settings.ema.decay
        self.optimizer = build_optimizer(
            self.model,
            name=optim.name,
            lr=scaled_lr(optim.lr, optim.batch_size, optim.reference_batch),
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            norm_weight_decay=optim.norm_weight_decay,
            bias_weight_decay=optim.bias_weight_decay,
        )
        self.ema = None if decay is None else EMA(self.model, decay)

    def one_step(self, batch: Batch) -> None:
        """One optimizer step.

        Raises:
            FloatingPointError: the loss is not a finite number.
        """
        self.model.train()
        images, targets = as_lists(batch.to(self.device))
        with autocast(self.device, self.settings.precision):
            loss = sum(self.model(images, targets).values())
        if not loss.isfinite():
            raise FloatingPointError(
                f"torchvision's loss is {loss.item()} at step {self.step}; lower optim.lr and "
                f"choose another --output."
            )
        self.optimizer.zero_grad()
        loss.backward()
        if self.settings.optim.max_grad_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.settings.optim.max_grad_norm)
        self.schedule.apply(self.optimizer, self.step)
        self.optimizer.step()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, self.step)

    @torch.inference_mode()
    def validate(self) -> tuple[Evaluation, DetectionArrays]:
        """Metrics and detections of the validation images, in fp32, by EMA weights if any."""
        model = self.model if self.ema is None else self.ema.model
        model.eval()
        how, cap = self.settings.evaluation, self.settings.postprocess.detections
        data = self.settings.data
        augment = build.build_augment(self.settings, train=False)
        plan = eval_plan(self.val, augment, batch_size=how.batch_size, max_images=how.max_images)
        loader = BatchLoader(
            self.val, augment, plan, workers=data.workers, on_bad_image=data.on_bad_image
        )
        parts = []
        for batch in loader:
            outputs = model(as_lists(batch.to(self.device))[0])
            images = zip(outputs, batch.sizes, batch.original_sizes, strict=True)
            detections = [
                to_original(Detections(one["boxes"], one["scores"], one["labels"]), *sizes)
                for one, *sizes in images
            ]
            parts.append(as_arrays(detections, batch.image_ids, cap))
        detections = merge(parts)
        metrics = evaluate(self.val, detections, detections.evaluated, how.backend, how.max_dets)
        return metrics, detections


def as_lists(batch: Batch) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A batch of ours as torchvision's class takes it: without padding, normalized."""
    mean, std = (batch.boxes.new_tensor(v).view(3, 1, 1) for v in (RGB_MEAN, RGB_STD))
    images = [
        (image[:, :height, :width].float() - mean) / std
        for image, (height, width) in zip(batch.images, batch.sizes.tolist(), strict=True)
    ]
    targets = [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]}
        for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
    ]
    return images, targets


def train(
    peer: str, training: OurTraining | TorchvisionTraining, steps: int, evaluations: int
) -> list[dict[str, Any]]:
    """Rows of the evaluations of one training, at equal distances, the last one at its end.

    Reading images counts as training time, evaluations do not.
    """
    ends = {round(steps * turn / evaluations) for turn in range(1, evaluations + 1)}
    settings = training.settings
    rows, seconds, started = [], 0.0, time.perf_counter()
    batches = tqdm(
        training.loader.steps(0, steps), f"{peer} seed {settings.seed}", steps, unit="step"
    )
    for step, (batch,) in enumerate(batches, start=1):
        training.one_step(batch)
        if step in ends:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds += time.perf_counter() - started
            rows.append(
                {
                    "peer": peer,
                    "seed": settings.seed,
                    "step": step,
                    "images": step * settings.optim.batch_size,
                    "seconds": round(seconds, 1),
                    "seconds_per_step": round(seconds / step, 4),
                    "load": round(os.getloadavg()[0], 2),
                    **training.validate()[0].metrics,
                }
            )
            started = time.perf_counter()
    return rows


# torchvision's class


class SameInput(GeneralizedRCNNTransform):
    """Only pads, as our batches do: its images have been resized and normalized already."""

    def normalize(self, image: Tensor) -> Tensor:
        """The image as it is."""
        return image

    def resize(self, image: Tensor, target: dict | None = None) -> tuple[Tensor, dict | None]:
        """Both as they are."""
        return image, target


class SameAnchors(AnchorGenerator):
    """Gives the anchors of one of our models: fp32 and unrounded."""

    def __init__(self, model: RetinaNet) -> None:
        """Take the anchors from ``model``."""
        super().__init__()
        self.ours = model.anchor_generator

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """(A, 4) for each image."""
        height, width = image_list.tensors.shape[-2:]
        anchors = self.ours(height, width, image_list.tensors.device)
        return [anchors for _ in image_list.image_sizes]


def torchvision_model(settings: TrainConfig, ours: RetinaNet) -> TorchvisionRetinaNet:
    """torchvision's class with architecture, anchors and a copy of the weights of ``ours``.

    It takes the pixels of our batches; its loss and its post-processing are its own. Its heads
    have four layers, of which as many are kept as ours have.

    Args:
        settings: of ``ours``.
        ours: not changed. What does not train in it does not train in the copy.

    Raises:
        ValueError: ``model.fpn_channels`` is a width with which torchvision takes P6 from P5.
    """
    post, matching = settings.postprocess, settings.matching
    channels, c5 = settings.model.fpn_channels, ours.backbone.channels[-1]
    if settings.model.p6_from == "c5" and c5 == channels:
        raise ValueError(
            f"model.fpn_channels={channels} equals the channels of C5: torchvision's class would "
            f"make P6 from P5; set model.p6_from=p5, or another width."
        )
    make_norm = norm_layer(settings.model.norm, settings.model.norm_eps)
    if settings.model.backbone == "mobilenet_v2":
        body = torchvision.models.mobilenet_v2(norm_layer=make_norm).features
        layers = ("6", "13", "18")
    elif settings.model.backbone == "tiny":  # ours alone: a copy
        parts = OrderedDict(copy.deepcopy(ours.backbone).named_children())
        stem = nn.Sequential(*parts.pop("stem"), nn.ReLU())
        body = nn.Sequential(OrderedDict(stem=stem, **parts))
        layers = ("block3", "block4", "block5")
    else:
        body = build_resnet(settings.model.backbone, make_norm)
        layers = ("layer2", "layer3", "layer4")
    backbone = BackboneWithFPN(
        body,
        {layer: str(level) for level, layer in enumerate(layers)},
        list(ours.backbone.channels),
        channels,
        LastLevelP6P7(c5 if settings.model.p6_from == "c5" else channels, channels),
    )
    head_norm = group_norm if settings.model.head_norm == "group" else None
    head = RetinaNetHead(channels, ours.anchor_generator.num_per_cell, ours.num_classes, head_norm)
    for part in (head.classification_head, head.regression_head):
        part.conv = part.conv[: settings.model.head_depth]
    model = TorchvisionRetinaNet(
        backbone,
        ours.num_classes,
        anchor_generator=SameAnchors(ours),
        head=head,
        score_thresh=post.score_threshold,
        nms_thresh=post.nms_iou,
        detections_per_img=post.detections,
        topk_candidates=post.pre_nms,
        fg_iou_thresh=matching.positive_iou,
        bg_iou_thresh=matching.negative_iou,
    )
    model.transform = SameInput(1, 1, [], [], size_divisible=DIVISOR)
    model.load_state_dict(rename(ours.state_dict(), TORCHVISION)[0])
    parameters, _ = rename(dict(ours.named_parameters()), TORCHVISION)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameters[name].requires_grad)
    return model


# Results


def machine() -> str:
    """Where the numbers come from."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{platform.machine()}, {cores} cores{gpu}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}"
    )


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines: the last evaluation of every training, then the means over seeds."""
    last = {(row["peer"], row["seed"]): row for row in rows}
    head = f"{'peer':<12} {'seed':>4} {'steps':>6} {'s/step':>7}"
    lines = [head + "".join(f"{name:>7}" for name in COLUMNS)]
    for row in last.values():
        numbers = ("n/a" if row[name] is None else f"{row[name]:.3f}" for name in COLUMNS)
        lines.append(
            f"{row['peer']:<12} {row['seed']:>4} {row['step']:>6} {row['seconds_per_step']:>7.2f}"
            + "".join(f"{number:>7}" for number in numbers)
        )
    # Means over the seeds for which both have an AP.
    AP = {key: row["AP"] for key, row in last.items() if row["AP"] is not None}
    seeds = [seed for peer, seed in AP if peer == OURS and (THEIRS, seed) in AP]
    if not seeds:
        return [*lines, ""]
    a, b = ([AP[peer, seed] for seed in seeds] for peer in (OURS, THEIRS))
    lines += [
        "",
        f"mean AP over {len(seeds)} seed(s): {OURS} {mean(a):.4f}, {THEIRS} {mean(b):.4f}: "
        f"{mean(a) - mean(b):+.4f}",
    ]
    if len(seeds) == 1:
        return [*lines, "One seed each: a small difference may be chance."]
    spread = max(max(a) - min(a), max(b) - min(b))
    return [
        *lines,
        f"Seeds of one peer lie up to {spread:.4f} apart; a difference of that size may be chance.",
    ]


if __name__ == "__main__":
    sys.exit(main())
