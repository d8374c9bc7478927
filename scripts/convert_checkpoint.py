"""Turn a RetinaNet of torchvision, detectron2 or mmdetection into a checkpoint of this project, or
any of them into one that torchvision's class loads.

    python -m scripts.convert_checkpoint retinanet_resnet50_fpn_coco-eeacb38b.pth coco.pt
    python -m scripts.convert_checkpoint runs/NAME/checkpoints/best.pt theirs.pth --to torchvision

Nothing in the source is executed. What it needs to give its own outputs (resizing, anchors, order
of clipping and NMS) is recorded in the checkpoint. eval.py, load() and init_from= read the
originals too: converting saves the work of doing it each time.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from retinanet.build import known_classes, load_model, recorded_settings
from retinanet.checks import value_text
from retinanet.training.checkpoint import final_weights, save_checkpoint
from retinanet.training.start import CONVENTIONS, describe_source
from retinanet.weights import torchvision
from retinanet.weights.read import ANCHORS, coco_classes, read_trained

from .command_line import new_parser

# What else decides the detections of a checkpoint, beside the conventions of a transfer.
SHOWN = (("data", "min_size"), ("data", "max_size"), *CONVENTIONS, ("postprocess", "clip"))
# torchvision's builders: backbone, source of P6 and norm of the heads; channels of every level.
BUILDERS = {
    ("resnet50", "p5", "none"): "retinanet_resnet50_fpn",
    ("resnet50", "c5", "group"): "retinanet_resnet50_fpn_v2",
}
BUILDERS_CHANNELS = 256


def main() -> None:
    """Read, check that the model can be built, write."""
    parser = new_parser("convert_checkpoint", __doc__)
    parser.add_argument("source", type=Path, help=".pt, .pth or .pkl")
    parser.add_argument("target", type=Path, help="file to write; must not exist yet")
    text = "whose layout (default: %(default)s)"
    parser.add_argument(
        "--to", choices=("retinanet", "torchvision"), default="retinanet", help=text
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
    """Write ``target``; some lines about what was read and how the result is used.

    Args:
        source: any checkpoint that :func:`retinanet.weights.read.read_trained` reads.
        target: file to write.
        layout: ``"retinanet"`` or ``"torchvision"``.

    Raises:
        FileNotFoundError: no such source.
        ValueError: the source is damaged, nobody's RetinaNet, or has no such layout.
    """
    state = read_trained(source)
    settings = recorded_settings(state)
    model = load_model(state, settings)
    plain = state["settings"]
    _, ids = known_classes(state, model.num_classes)
    shown = (f"{group}.{key}={value_text(plain[group][key])}" for group, key in SHOWN)
    lines = [
        f"read       {source}: {describe_source(state)}, {settings.model.backbone}, "
        f"{model.num_classes} classes",
        f"settings   {' '.join(shown)}",
    ]
    if layout == "torchvision":
        weights = torchvision.write(final_weights(state), plain, ids)
        torch.save(weights, target)
        lines += how_to_load(target, plain, weights)
    else:
        save_checkpoint(target, state)
        data = " data=custom data.root=PATH data.val_images=FOLDER data.val_annotations=FILE.json"
        if plain["data"]["val_annotations"] is not None:
            data = ""
        elif ids == coco_classes()[1]:
            data = " data=coco data.root=PATH"
        lines.append(f"evaluate   python eval.py checkpoint={target}{data}")
    return "\n".join([*lines, f"written    {target}"])


def how_to_load(
    target: Path, settings: dict[str, Any], weights: dict[str, torch.Tensor]
) -> list[str]:
    """The lines of Python that load a file in torchvision's layout, with weights of a model."""
    model, anchors = settings["model"], settings["anchors"]
    data, post = settings["data"], settings["postprocess"]
    a = weights["head.regression_head.bbox_reg.bias"].shape[0] // 4
    K = weights["head.classification_head.cls_logits.bias"].shape[0] // a
    builder = BUILDERS.get((model["backbone"], model["p6_from"], model["head_norm"]))
    own_anchors = all(anchors[key] == value for key, value in ANCHORS.items())
    # The second version's builder sets its anchors itself.
    fixed = builder is not None and builder.endswith("v2") and not own_anchors
    if builder is None or fixed or model["fpn_channels"] != BUILDERS_CHANNELS:
        keys = ("p6_from", "head_norm", "fpn_channels")
        shape = " ".join(f"model.{key}={model[key]}" for key in keys)
        return [
            f"load       torchvision has no builder for {model['backbone']} with {shape}"
            f"{' and other anchors' if fixed else ''}; make its RetinaNet from parts, with {K} "
            f"classes"
        ]
    last = ")" if own_anchors else f"anchor_generator={_generator(anchors)})"
    code = [
        "import torch, torchvision",
        "from torchvision.models.detection.anchor_utils import AnchorGenerator",
        f"model = torchvision.models.detection.{builder}(",
        f"    weights=None, weights_backbone=None, num_classes={K},",
        f"    min_size={data['min_size']}, max_size={data['max_size']},",
        f"    score_thresh={post['score_threshold']}, nms_thresh={post['nms_iou']},",
        f"    detections_per_img={post['detections']}, topk_candidates={post['pre_nms']},",
        f"    {last}",
        f"model.load_state_dict(torch.load({str(target)!r}, weights_only=True))",
    ]
    if model["norm_eps"] != 1e-5:
        code += [
            "for module in model.backbone.body.modules():",
            f"    if hasattr(module, 'running_var'): module.eps = {model['norm_eps']:g}",
        ]
    lines = [f"{'' if i else 'load':<11}{line}" for i, line in enumerate(code)]
    if anchors["rounding"] != "torchvision" or data["resize"] != "torchvision":
        lines.append(
            "note       torchvision rounds anchors and resizes in its own way, this model was "
            "trained otherwise: scores and boxes will differ a little"
        )
    return lines


def _generator(anchors: dict[str, Any]) -> str:
    """A torchvision generator of anchors that are not its own, as Python."""
    sides = [[size * scale for scale in anchors["scales"]] for size in anchors["sizes"]]
    if anchors["rounding"] == "torchvision":
        sides = [[math.floor(side) for side in level] for level in sides]
    sizes = ", ".join(f"({', '.join(f'{side:.10g}' for side in level)},)" for level in sides)
    ratios = ", ".join(f"{ratio:.10g}" for ratio in anchors["ratios"])
    return f"AnchorGenerator(({sizes}), (({ratios},),) * 5)"


if __name__ == "__main__":
    main()
