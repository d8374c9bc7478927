"""Parameter names of other projects and ours: one table for both directions."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

# Pairs of templates. "{}" stands for a number, the same ones in the same order on both sides; a
# template that ends in "." stands for all names that begin so.
Pairs = Sequence[tuple[str, str]]

# Backbones: torchvision's names, which are ours, and those of others.

# Source: detectron2, modeling/backbone/resnet.py.
DETECTRON2_RESNET = [
    ("bn1.", "stem.conv1.norm."),
    ("conv1.", "stem.conv1."),
    *(
        (f"layer{stage}.{{}}.{ours}", f"res{stage + 1}.{{}}.{theirs}")
        for stage in (1, 2, 3, 4)
        for ours, theirs in (
            ("bn{}.", "conv{}.norm."),
            ("conv{}.", "conv{}."),
            ("downsample.1.", "shortcut.norm."),
            ("downsample.0.", "shortcut."),
        )
    ),
]
# Detectron's names, of MSRA's weights. Source: detectron2, checkpoint/c2_model_loading.py.
DETECTRON_RESNET = [
    ("conv1.weight", "conv1_w"),
    ("bn1.weight", "res_conv1_bn_s"),
    ("bn1.bias", "res_conv1_bn_b"),
    *(
        (f"layer{stage}.{{}}.{ours}", f"res{stage + 1}_{{}}_branch{branch}_{theirs}")
        for stage in (1, 2, 3, 4)
        for conv, norm, branch in (
            ("conv1", "bn1", "2a"),
            ("conv2", "bn2", "2b"),
            ("conv3", "bn3", "2c"),
            ("downsample.0", "downsample.1", "1"),
        )
        for ours, theirs in (
            (f"{conv}.weight", "w"),
            (f"{norm}.weight", "bn_s"),
            (f"{norm}.bias", "bn_b"),
        )
    ),
]

# RetinaNets: our names and theirs. Sources: torchvision, models/detection/retinanet.py; detectron2,
# modeling/meta_arch/retinanet.py and modeling/backbone/fpn.py; mmdetection,
# models/dense_heads/retina_head.py and models/necks/fpn.py.
TORCHVISION = [
    *((f"fpn.lateral.c{i}.", f"backbone.fpn.inner_blocks.{i - 3}.0.") for i in (3, 4, 5)),
    *((f"fpn.output.p{i}.", f"backbone.fpn.layer_blocks.{i - 3}.0.") for i in (3, 4, 5)),
    ("fpn.p6.", "backbone.fpn.extra_blocks.p6."),
    ("fpn.p7.", "backbone.fpn.extra_blocks.p7."),
    ("head.cls.convs.{}.", "head.classification_head.conv.{}.0."),
    ("head.cls.norms.{}.", "head.classification_head.conv.{}.1."),
    ("head.cls.pred.", "head.classification_head.cls_logits."),
    ("head.box.convs.{}.", "head.regression_head.conv.{}.0."),
    ("head.box.norms.{}.", "head.regression_head.conv.{}.1."),
    ("head.box.pred.", "head.regression_head.bbox_reg."),
    # Before 0.13, as in the published file, a convolution was no block with a norm.
    *((f"fpn.lateral.c{i}.", f"backbone.fpn.inner_blocks.{i - 3}.") for i in (3, 4, 5)),
    *((f"fpn.output.p{i}.", f"backbone.fpn.layer_blocks.{i - 3}.") for i in (3, 4, 5)),
    ("head.cls.convs.{}.", "head.classification_head.conv.#{}."),  # after counted_alone()
    ("head.box.convs.{}.", "head.regression_head.conv.#{}."),
    # MobileNetV2's layers have no names but numbers.
    ("backbone.features.{}.", "backbone.body.{}."),
    ("backbone.", "backbone.body."),
]
DETECTRON2 = [
    *((f"fpn.lateral.c{i}.", f"backbone.fpn_lateral{i}.") for i in (3, 4, 5)),
    *((f"fpn.output.p{i}.", f"backbone.fpn_output{i}.") for i in (3, 4, 5)),
    ("fpn.p6.", "backbone.top_block.p6."),
    ("fpn.p7.", "backbone.top_block.p7."),
    ("head.cls.convs.{}.", "head.cls_subnet.#{}."),  # after counted_alone()
    ("head.cls.pred.", "head.cls_score."),
    ("head.box.convs.{}.", "head.bbox_subnet.#{}."),
    ("head.box.pred.", "head.bbox_pred."),
    *((f"backbone.{ours}", f"backbone.bottom_up.{theirs}") for ours, theirs in DETECTRON2_RESNET),
]
MMDETECTION = [
    *((f"fpn.lateral.c{i}.", f"neck.lateral_convs.{i - 3}.conv.") for i in (3, 4, 5)),
    *((f"fpn.output.p{i}.", f"neck.fpn_convs.{i - 3}.conv.") for i in (3, 4, 5)),
    ("fpn.p6.", "neck.fpn_convs.3.conv."),
    ("fpn.p7.", "neck.fpn_convs.4.conv."),
    ("head.cls.convs.{}.", "bbox_head.cls_convs.{}.conv."),
    ("head.cls.pred.", "bbox_head.retina_cls."),
    ("head.box.convs.{}.", "bbox_head.reg_convs.{}.conv."),
    ("head.box.pred.", "bbox_head.retina_reg."),
    ("backbone.", "backbone."),  # torchvision's names
]


def timm_mobilenet() -> list[tuple[str, str]]:
    """torchvision's names of MobileNetV2 and timm's. Source: timm, models/efficientnet.py."""
    pairs = [
        ("features.0.0.", "conv_stem."),
        ("features.0.1.", "bn1."),
        ("features.1.conv.0.0.", "blocks.0.0.conv_dw."),
        ("features.1.conv.0.1.", "blocks.0.0.bn1."),
        ("features.1.conv.1.", "blocks.0.0.conv_pw."),
        ("features.1.conv.2.", "blocks.0.0.bn2."),
    ]
    parts = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2"}
    parts |= {"2": "conv_pwl", "3": "bn3"}
    number = 2
    for stage, blocks in enumerate((2, 3, 4, 3, 3, 1), start=1):
        for block in range(blocks):
            pairs += [
                (f"features.{number}.conv.{ours}.", f"blocks.{stage}.{block}.{theirs}.")
                for ours, theirs in parts.items()
            ]
            number += 1
    return [*pairs, (f"features.{number}.0.", "conv_head."), (f"features.{number}.1.", "bn2.")]


def counted_alone(name: str) -> str:
    """The name of a head's convolution with its number among convolutions alone, after a "#".

    In detectron2, and in torchvision before 0.13, a head is a flat list of convolutions and ReLUs.
    """
    flat = re.fullmatch(r"(head\.(?:\w+_subnet|\w+_head\.conv)\.)(\d*[02468])(\.\w+)", name)
    return f"{flat[1]}#{int(flat[2]) // 2}{flat[3]}" if flat else name


def rename(weights: dict[str, Tensor], pairs: Pairs) -> tuple[dict[str, Tensor], list[str]]:
    """Weights under their other names, and the names that have none.

    Args:
        weights: by name.
        pairs: (from, to); the first pair that fits a name counts.
    """
    rules = []
    for given, other in pairs:
        rest = "(.*)" if given.endswith(".") else "()"
        rules.append((re.compile(r"(\d+)".join(map(re.escape, given.split("{}"))) + rest), other))
    renamed, left_over = {}, []
    for name, value in weights.items():
        fits = ((pattern.fullmatch(name), other) for pattern, other in rules)
        match, other = next((fit for fit in fits if fit[0]), (None, ""))
        if match is None:
            left_over.append(name)
        else:
            *numbers, rest = match.groups()
            renamed[other.format(*numbers) + rest] = value
    return renamed, left_over


def swapped(pairs: Pairs) -> list[tuple[str, str]]:
    """The pairs for the other direction."""
    return [(second, first) for first, second in pairs]
