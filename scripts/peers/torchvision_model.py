"""torchvision's own RetinaNet class, of the size and with the weights of one of ours."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet.config import TrainConfig
from retinanet.data.batches import DIVISOR
from retinanet.model.backbone import build_resnet, norm_layer
from retinanet.model.heads import group_norm
from retinanet.model.retinanet import RetinaNet
from retinanet.weights.names import TORCHVISION, rename

# Hidden layers of each of torchvision's subnets.
MAX_DEPTH = 4


class SameInput(GeneralizedRCNNTransform):
    """Neither resizes nor normalizes: what it is given has been; only pads, as our batches do."""

    def normalize(self, image: Tensor) -> Tensor:
        """The image as it is."""
        return image

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
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
        "model.head_depth": (model.head_depth <= MAX_DEPTH, f"at most {MAX_DEPTH}"),
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

    Its loss and its post-processing are its own. Its subnets have four layers; of them as many
    are kept as ours have.

    Args:
        settings: of ``ours``.
        ours: on the CPU; not changed. What does not train in it does not train in the copy.
        same_input: it gets the pixels and the anchors of our batches; else its own resizing,
            padding and (rounded) anchors, and images with values from 0 to 1.
    """
    anchors, post = settings.anchors, settings.postprocess
    head_norm = group_norm if settings.model.head_norm == "group" else None
    backbone = _backbone(settings, ours)
    head = RetinaNetHead(
        backbone.out_channels, ours.anchor_generator.num_per_cell, ours.num_classes, head_norm
    )
    for subnet in (head.classification_head, head.regression_head):
        subnet.conv = subnet.conv[: settings.model.head_depth]
    own_anchors = AnchorGenerator(
        tuple(tuple(int(size * scale) for scale in anchors.scales) for size in anchors.sizes),
        (tuple(anchors.ratios),) * len(anchors.sizes),
    )
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
        fg_iou_thresh=settings.matching.positive_iou,
        bg_iou_thresh=settings.matching.negative_iou,
    )
    if same_input:
        model.transform = SameInput(1, 1, [], [], size_divisible=DIVISOR)
    copy_weights(ours, model)
    return model


def _backbone(settings: TrainConfig, ours: RetinaNet) -> BackboneWithFPN:
    """torchvision's trunk and pyramid; of the tiny trunk, which is ours, a copy."""
    name, channels = settings.model.backbone, settings.model.fpn_channels
    make_norm = norm_layer(settings.model.norm, settings.model.norm_eps)
    if name == "mobilenet_v2":
        trunk = torchvision.models.mobilenet_v2(norm_layer=make_norm).features
        layers = ("6", "13", "18")
    elif name == "tiny":
        parts = OrderedDict(copy.deepcopy(ours.backbone).named_children())
        stem = nn.Sequential(*parts.pop("stem"), nn.ReLU())
        trunk = nn.Sequential(OrderedDict(stem=stem, **parts))
        layers = ("block3", "block4", "block5")
    else:
        trunk = build_resnet(name, make_norm)
        layers = ("layer2", "layer3", "layer4")
    c5 = ours.backbone.channels[-1]
    if settings.model.p6_from == "c5" and c5 == channels:
        raise ValueError(
            f"model.fpn_channels={channels} equals the channels of C5: torchvision's class would "
            f"make P6 from P5; set model.p6_from=p5, or another width."
        )
    p6_from = c5 if settings.model.p6_from == "c5" else channels
    return BackboneWithFPN(
        trunk,
        {layer: str(level) for level, layer in enumerate(layers)},
        list(ours.backbone.channels),
        channels,
        LastLevelP6P7(p6_from, channels),
    )


def copy_weights(ours: RetinaNet, theirs: TorchvisionRetinaNet) -> None:
    """Give torchvision's model every weight of ours, and train the same ones.

    Raises:
        RuntimeError: the two are not the same network.
    """
    weights, _ = rename(ours.state_dict(), TORCHVISION)
    theirs.load_state_dict(weights)
    parameters, _ = rename(dict(ours.named_parameters()), TORCHVISION)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(parameters[name].requires_grad)


def same_pixels(model: TorchvisionRetinaNet, images: list[Tensor], expected: Tensor) -> bool:
    """Whether ``images`` enter the trunk of ``model`` as exactly these normalized pixels.

    Args:
        model: made with ``same_input``.
        images: as given to it.
        expected: (B, 3, H, W), what enters the trunk of our model.
    """
    with torch.no_grad():
        entering = model.transform(images)[0].tensors
    return torch.equal(entering, expected)
