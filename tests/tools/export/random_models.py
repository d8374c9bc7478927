"""Checkpoints of untrained models whose scores differ from each other, so that they detect."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from retinanet import build
from retinanet.cli.main import composer
from retinanet.training.checkpoint import FORMAT, save_checkpoint

NAMES = ("cat", "dog", "bird")
IDS = (1, 3, 17)
THRESHOLDS = {"iou": 0.5, "score": 0.4, "f1": 0.3, "classes": [0.1, 0.2, None]}
# A run on data that is not there.
DATA = [
    "data=custom",
    "data.root=nowhere",
    *(f"data.{s}_{p}=x" for s in ("train", "val") for p in ("images", "annotations")),
]
TINY = [
    "model=tiny",
    "model.norm=batch",
    "model.fpn_channels=16",
    "model.head_channels=16",
    "model.head_depth=1",
    "data.min_size=96",
    "data.max_size=160",
]


def make_checkpoint(path, *typed, names=NAMES, ids=IDS, **more):
    """Write one; ``more`` are further keys of the file."""
    torch.manual_seed(0)
    with composer("train") as reader:
        settings = reader.command([*DATA, *typed]).settings
    model = build.build_model(settings, len(names), load_later=True).eval()
    spread(model)
    state = {
        "format": FORMAT,
        "model": model.state_dict(),
        "settings": dataclasses.asdict(settings),
        "classes": {"names": list(names), "ids": list(ids)},
        "step": 7,
        **more,
    }
    save_checkpoint(path, state)
    return path


@torch.no_grad()
def spread(model):
    """Random norms, and predictions of standard deviation 1 (logits) and 0.3 (deltas)."""
    for module in model.modules():
        if hasattr(module, "running_var"):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1)
            module.bias.uniform_(-0.2, 0.2)
    for head in model.head.values():
        for conv in head.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    blobs = F.interpolate(torch.rand(1, 3, 16, 16), size=(256, 256), mode="bicubic").clamp(0, 1)
    outputs = model(255 * blobs, torch.tensor([[256, 256]]))
    for name, values, std, mean in (("cls", outputs[0], 1.0, -4.0), ("box", outputs[1], 0.3, 0.0)):
        pred = model.head[name].pred
        pred.weight *= std / values.std()
        pred.bias.uniform_(-0.1, 0.1).add_(mean)
