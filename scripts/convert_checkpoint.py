"""Turn a RetinaNet of torchvision, detectron2 or mmdetection into a checkpoint of this project, or
any of them into one that torchvision's class loads.

    python -m scripts.convert_checkpoint retinanet_resnet50_fpn_coco-eeacb38b.pth coco.pt
    python -m scripts.convert_checkpoint runs/NAME/checkpoints/best.pt theirs.pth --to torchvision

Nothing in the source is executed. What it needs to give its own outputs (resizing, anchors, order
of clipping and NMS) is recorded in the checkpoint. eval.py, load() and init_from= read the
originals too: converting saves the work of doing it each time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from retinanet.detector import known_classes, load_model, recorded_settings
from retinanet.exchange import torchvision
from retinanet.exchange.foreign import ANCHORS
from retinanet.exchange.read import read_trained
from retinanet.limits import value_text
from retinanet.training.checkpoint import save_checkpoint, shipped_weights
from retinanet.training.transfer import CONVENTIONS, describe_source

# What else decides the detections of a checkpoint, beside the conventions of a transfer.
SHOWN = (("data", "min_size"), ("data", "max_size"), *CONVENTIONS, ("postprocess", "clip"))


def main() -> None:
    """Read, check that the model can be built, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help=".pt, .pth or .pkl")
    parser.add_argument("target", type=Path, help="file to write; must not exist yet")
    parser.add_argument(
        "--to",
        choices=("retinanet", "torchvision"),
        default="retinanet",
        help="whose layout (default: %(default)s)",
    )
    args = parser.parse_args()
    if args.target.exists():
        parser.error(f"{args.target} already exists; remove it or choose another file")
    if not args.target.parent.is_dir():
        parser.error(f"there is no folder {args.target.parent}; make it first")
    try:
        print(convert(args.source, args.target, args.to))
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))


def convert(source: Path, target: Path, layout: str) -> str:
    """Write ``target``.

    Args:
        source: any checkpoint that :func:`retinanet.exchange.read.read_trained` reads.
        target: where to.
        layout: ``"retinanet"`` or ``"torchvision"``.

    Returns:
        What was read and how the result is used, in some lines.

    Raises:
        FileNotFoundError: no such source.
        ValueError: the source is damaged, nobody's RetinaNet, or has no such layout.
    """
    state = read_trained(source)
    settings = recorded_settings(state)
    model = load_model(state, settings)
    lines = [
        f"read       {source}: {describe_source(state)}, {settings.model.backbone}, "
        f"{model.num_classes} classes",
        f"settings   {' '.join(_shown(state))}",
    ]
    if layout == "retinanet":
        save_checkpoint(target, state)
        lines.append(f"evaluate   python eval.py checkpoint={target} data=coco data.root=PATH")
    else:
        _, ids = known_classes(state, model.num_classes)
        weights = torchvision.write(shipped_weights(state), state["settings"], ids)
        torch.save(weights, target)
        lines += _how_to_load(target, state, weights)
    return "\n".join([*lines, f"written    {target}"])


def _shown(state: dict[str, Any]) -> list[str]:
    settings = state["settings"]
    return [f"{group}.{key}={value_text(settings[group][key])}" for group, key in SHOWN]


def _how_to_load(
    target: Path, state: dict[str, Any], weights: dict[str, torch.Tensor]
) -> list[str]:
    """The lines of Python that load a file in torchvision's layout."""
    model = state["settings"]["model"]
    a = weights["head.regression_head.bbox_reg.bias"].shape[0] // 4
    K = weights["head.classification_head.cls_logits.bias"].shape[0] // a
    builders = {
        ("resnet50", "p5", "none"): "retinanet_resnet50_fpn",
        ("resnet50", "c5", "group"): "retinanet_resnet50_fpn_v2",
    }
    builder = builders.get((model["backbone"], model["p6_from"], model["head_norm"]))
    if builder is None:
        return [
            f"load       torchvision has no builder for {model['backbone']} with model.p6_from="
            f"{model['p6_from']} model.head_norm={model['head_norm']}; make its RetinaNet from "
            f"parts, with {K} classes"
        ]
    data, anchors = state["settings"]["data"], state["settings"]["anchors"]
    lines = [
        f"load       model = torchvision.models.detection.{builder}(",
        f"               weights=None, weights_backbone=None, num_classes={K},",
        f"               min_size={data['min_size']}, max_size={data['max_size']})",
        f"           model.load_state_dict(torch.load({str(target)!r}, weights_only=True))",
    ]
    if model["norm_eps"] != 1e-5:
        lines.append(
            f"           then set eps={model['norm_eps']:g} on every norm of model.backbone.body"
        )
    if any(anchors[key] != value for key, value in ANCHORS.items()):
        lines.append(
            f"note       its builders have other anchors: also give anchor_generator= with "
            f"{' '.join(f'{key} {value_text(anchors[key])}' for key in ANCHORS)}"
        )
    if anchors["rounding"] != "torchvision" or data["resize"] != "torchvision":
        lines.append(
            "note       torchvision rounds anchors and resizes in its own way, this model was "
            "trained otherwise: scores and boxes will differ a little"
        )
    return lines


if __name__ == "__main__":
    main()
