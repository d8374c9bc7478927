"""A model made ready to predict: norms folded into convolutions, weights in its precision."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops import FrozenBatchNorm2d

from retinanet.devices import AUTOCAST_TYPES
from retinanet.model.retinanet import RetinaNet

# What only scales and shifts once training is over.
FOLDED = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)


@torch.no_grad()
def for_inference(model: RetinaNet, precision: str, *, compiled: bool = False) -> RetinaNet:
    """A copy that computes the same in less time; the model itself is left alone.

    Args:
        model: on its device.
        precision: of the forward pass, which still runs under autocast: ``"fp32"``, ``"bf16"`` or
            ``"fp16"``. Convolutions keep their weights in it, so that they are not cast each time.
        compiled: by torch.compile, at the first call; it takes a minute and pays for many images.
    """
    # Not copied: gradients, and a compiled method, which is bound to the model it was taken from.
    left = [model.__dict__.get("predict"), *(p.grad for p in model.parameters())]
    network = copy.deepcopy(model, {id(thing): None for thing in left})
    network.__dict__.pop("predict", None)
    network.eval().requires_grad_(False)
    for parent in list(network.modules()):
        children = list(parent.named_children())
        # In torchvision's and our backbones a norm is defined right after its convolution.
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, FOLDED):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    if precision != "fp32":
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.to(AUTOCAST_TYPES[precision])
    network = network.to(memory_format=torch.channels_last)
    if compiled:
        network.predict = torch.compile(network.predict, dynamic=True)
    return network
