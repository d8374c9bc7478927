"""torchvision's own RetinaNet class with weights of ours, and the loop that trains it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.transforms.functional import pil_to_tensor

from retinanet import build
from retinanet.config import TrainConfig
from retinanet.data.coco import CocoData
from retinanet.data.loader import DIVISOR, Batch, BatchLoader, eval_plan
from retinanet.devices import autocast
from retinanet.evaluation.average_precision import Evaluation, evaluate
from retinanet.evaluation.detect import DetectionArrays, as_arrays, merge
from retinanet.model.backbone import build_resnet, norm_layer
from retinanet.model.heads import group_norm
from retinanet.model.retinanet import RGB_MEAN, RGB_STD, RetinaNet
from retinanet.postprocess import Detections, to_original
from retinanet.training.optim import EMA, Schedule, build_optimizer, scaled_lr
from retinanet.weights.names import TORCHVISION, rename

# What torchvision's class is fed with: images (3, H, W), and boxes and labels of each.
Sample = tuple[Tensor, dict[str, Tensor]]
Samples = tuple[list[Tensor], list[dict[str, Tensor]]]

# The class


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


def check_comparable(settings: TrainConfig) -> None:
    """Refuse what torchvision's class cannot be built as, or the comparison does not do.

    Raises:
        ValueError: the setting, and what it must be.
    """
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


def torchvision_model(
    settings: TrainConfig, ours: RetinaNet, *, same_input: bool
) -> TorchvisionRetinaNet:
    """torchvision's class with the architecture of ``ours`` and a copy of its weights.

    Its loss and its post-processing are its own. Its heads have four layers; of them as many are
    kept as ours have.

    Args:
        settings: of ``ours``.
        ours: on the CPU; not changed. What does not train in it does not train in the copy.
        same_input: it gets the pixels and the anchors of our batches; else its own resizing,
            padding and (rounded) anchors, and images with values from 0 to 1.

    Raises:
        ValueError: ``model.fpn_channels`` is a width with which torchvision takes P6 from P5.
    """
    anchors, post, matching = settings.anchors, settings.postprocess, settings.matching
    channels = settings.model.fpn_channels
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
    c5 = ours.backbone.channels[-1]
    if settings.model.p6_from == "c5" and c5 == channels:
        raise ValueError(
            f"model.fpn_channels={channels} equals the channels of C5: torchvision's class would "
            f"make P6 from P5; set model.p6_from=p5, or another width."
        )
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
    sizes = tuple(tuple(int(size * scale) for scale in anchors.scales) for size in anchors.sizes)
    own_anchors = AnchorGenerator(sizes, (tuple(anchors.ratios),) * len(anchors.sizes))
    model = TorchvisionRetinaNet(
        backbone,
        ours.num_classes,
        min_size=settings.data.min_size,
        max_size=settings.data.max_size,
        anchor_generator=SameAnchors(ours) if same_input else own_anchors,
        head=head,
        score_thresh=post.score_threshold,
        nms_thresh=post.nms_iou,
        detections_per_img=post.detections,
        topk_candidates=post.pre_nms,
        fg_iou_thresh=matching.positive_iou,
        bg_iou_thresh=matching.negative_iou,
    )
    if same_input:
        model.transform = SameInput(1, 1, [], [], size_divisible=DIVISOR)
    weights, _ = rename(ours.state_dict(), TORCHVISION)
    model.load_state_dict(weights)
    parameters, _ = rename(dict(ours.named_parameters()), TORCHVISION)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameters[name].requires_grad)
    return model


# Its training


class TorchvisionTraining:
    """The loop of torchvision's references around torchvision's class."""

    def __init__(
        self,
        settings: TrainConfig,
        splits: tuple[CocoData, CocoData],
        device: torch.device,
        *,
        same_input: bool,
    ) -> None:
        """Build torchvision's model with the initial weights of one of ours.

        Args:
            settings: of the training.
            splits: training and validation set.
            device: of the model.
            same_input: the batches of ``train.py``, its anchors and its resized validation images;
                else images as torchvision's references read them.
        """
        self.settings = settings
        self.train, self.val = splits
        self.device = device
        self.same_input = same_input
        self.step = 0
        ours = build.build_model(settings, len(self.train.category_names))
        self.model = torchvision_model(settings, ours, same_input=same_input).to(device)
        optim = settings.optim
        self.optimizer = build_optimizer(
            self.model,
            name=optim.name,
            lr=scaled_lr(optim.lr, optim.batch_size, optim.reference_batch),
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            norm_weight_decay=optim.norm_weight_decay,
            bias_weight_decay=optim.bias_weight_decay,
        )
        decay = settings.ema.decay
        self.ema = None if decay is None else EMA(self.model, decay)

    def batches(self, end: int) -> Iterable[Samples]:
        """Images and targets of the steps from the present one on, at least to ``end``."""
        if not self.same_input:
            return train_loader(self.train, self.settings, self.step)
        train = build.drop_unseen(self.settings, self.train)
        stream = build.build_loader(self.settings, train, self.device)
        return (as_lists(batch) for (batch,) in stream.steps(self.step, end))

    def one_step(self, samples: Samples, schedule: Schedule) -> None:
        """One optimizer step.

        Raises:
            FloatingPointError: the loss is not a finite number.
        """
        self.model.train()
        images = [image.to(self.device) for image in samples[0]]
        targets = [{k: v.to(self.device) for k, v in target.items()} for target in samples[1]]
        with autocast(self.device, self.settings.precision):
            loss = sum(self.model(images, targets).values())
        if not loss.isfinite():
            raise FloatingPointError(
                f"torchvision's loss is {loss.item()} at step {self.step}; lower optim.lr (mode "
                f"time: --theirs optim.lr=...) and choose another --output."
            )
        self.optimizer.zero_grad()
        loss.backward()
        if self.settings.optim.max_grad_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.settings.optim.max_grad_norm)
        schedule.apply(self.optimizer, self.step)
        self.optimizer.step()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, self.step)

    @torch.inference_mode()
    def validate(self) -> tuple[Evaluation, DetectionArrays]:
        """Numbers and detections of the validation images, in fp32, by averaged weights if any."""
        model = self.model if self.ema is None else self.ema.model
        model.eval()
        how, cap = self.settings.evaluation, self.settings.postprocess.detections
        parts = []
        for images, image_ids, sizes in self._val_batches():
            outputs = model([image.to(self.device) for image in images])
            detections = [Detections(one["boxes"], one["scores"], one["labels"]) for one in outputs]
            if sizes is not None:  # else torchvision gave pixels of the file
                detections = [to_original(*one) for one in zip(detections, *sizes, strict=True)]
            parts.append(as_arrays(detections, image_ids, cap))
        detections = merge(parts)
        numbers = evaluate(self.val, detections, detections.evaluated, how.backend, how.max_dets)
        return numbers, detections

    def _val_batches(self) -> Iterator[tuple[list[Tensor], Tensor, tuple[Tensor, Tensor] | None]]:
        """Images, their ids, and sizes of resized images and of their files."""
        how, workers = self.settings.evaluation, self.settings.data.workers
        if not self.same_input:
            count = len(self.val) if how.max_images is None else how.max_images
            first = Subset(PlainImages(self.val, flip=0.0), range(min(count, len(self.val))))
            for images, targets in plain_loader(first, workers, batch_size=how.batch_size):
                index = torch.stack([target["index"] for target in targets])
                yield images, torch.as_tensor(self.val.image_ids)[index], None
            return
        augment = build.build_augment(self.settings, train=False)
        size, most = how.batch_size, how.max_images
        plan = eval_plan(self.val, augment, batch_size=size, max_images=most)
        for batch in BatchLoader(
            self.val,
            augment,
            plan,
            seed=0,
            workers=workers,
            on_bad_image=self.settings.data.on_bad_image,
            pin_memory=False,
        ):
            yield as_lists(batch)[0], batch.image_ids, (batch.sizes, batch.original_sizes)

    def state_dict(self) -> dict[str, Any]:
        """What a later process needs to continue."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])


def as_lists(batch: Batch) -> Samples:
    """A batch of ours as torchvision's class takes it: without padding, normalized."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (RGB_MEAN, RGB_STD))
    images = [
        (image[:, :height, :width].float() - mean) / std
        for image, (height, width) in zip(batch.images, batch.sizes.tolist(), strict=True)
    ]
    targets = [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]}
        for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
    ]
    return images, targets


class PlainImages(Dataset):
    """Images at the size of their files, with boxes, as torchvision's references read them.

    Source: pytorch/vision, references/detection: Pillow decodes, left-right flips, values from 0
    to 1, images without boxes left out of training, what does not fill a batch dropped; the model
    resizes and pads.
    """

    def __init__(self, data: CocoData, flip: float) -> None:
        """Remember both; ``flip`` is the probability of a left-right flip."""
        self.data = data
        self.flip = flip

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        """(3, H, W) from 0 to 1, and boxes (G, 4), labels (G,) and the image's index."""
        image = read(self.data.image_path(index))
        boxes, labels = self.data.boxes(index)
        if torch.rand(()) < self.flip:
            image = image.flip(-1)
            boxes = boxes[:, [2, 1, 0, 3]] * boxes.new_tensor([-1, 1, -1, 1])
            boxes[:, [0, 2]] += image.shape[-1]
        return image, {"boxes": boxes, "labels": labels, "index": torch.tensor(index)}


def train_loader(data: CocoData, settings: TrainConfig, step: int) -> DataLoader:
    """Shuffled batches of the references without end, from the one of ``step`` on.

    Raises:
        ValueError: fewer images than a batch.
    """
    images, size = np.flatnonzero(data.num_boxes()), settings.optim.batch_size
    if len(images) < size:
        raise ValueError(
            f"optim.batch_size={size}, but {data.path} has only {len(images)} images with "
            f"a box; lower it."
        )

    def batches() -> Iterator[list[int]]:
        epoch, done = divmod(step, len(images) // size)
        while True:
            order = np.random.default_rng([settings.seed, epoch]).permutation(len(images))
            rows = images[order[: len(images) // size * size]].reshape(-1, size)
            yield from rows[done:].tolist()
            epoch, done = epoch + 1, 0

    return plain_loader(
        PlainImages(data, settings.augment.flip),
        settings.data.workers,
        settings.seed + step,
        batch_sampler=batches(),
    )


def plain_loader(images: Dataset, workers: int, seed: int = 0, **batches: Any) -> DataLoader:
    """Batches as lists of images and of targets."""
    return DataLoader(
        images,
        num_workers=workers,
        collate_fn=_collate,
        generator=torch.Generator().manual_seed(seed),
        **batches,
    )


def _collate(samples: list[Sample]) -> Samples:
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


def read(path: Path) -> Tensor:
    """(3, H, W) from 0 to 1, as torchvision's references read an image."""
    with Image.open(path) as file:
        return pil_to_tensor(file.convert("RGB")) / 255
