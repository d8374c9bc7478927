"""Images, boxes and weights that every contestant gets."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet.build import load_model, recorded_settings
from retinanet.data.loader import Batch
from retinanet.model.retinanet import RetinaNet
from retinanet.weights.read import read_trained

COCO_SIZE = (800, 1344)
NUM_ANCHORS = 201_600  # of that size
NUM_CLASSES = 80


def torchvision_model(backbone: str, height: int, width: int) -> TorchvisionRetinaNet:
    """torchvision's RetinaNet with frozen norms and weights that do not explode."""
    torch.manual_seed(0)
    resnet = torchvision.models.get_model(backbone, norm_layer=FrozenBatchNorm2d)
    for name, module in resnet.named_modules():
        last = "bn3" if backbone not in ("resnet18", "resnet34") else "bn2"
        if name.endswith(last):
            module.weight.fill_(0.2)
    extra = LastLevelP6P7(256, 256)
    trunk = _resnet_fpn_extractor(resnet, 3, returned_layers=[2, 3, 4], extra_blocks=extra)
    sizes = {"min_size": height, "max_size": width}
    return TorchvisionRetinaNet(trunk, NUM_CLASSES, **sizes)


def same_model(theirs: nn.Module) -> RetinaNet:
    """Ours with the same weights, by way of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "torchvision.pth"
        torch.save(theirs.state_dict(), path)
        state = read_trained(path)
    model = load_model(state, recorded_settings(state))
    model.backbone.freeze(2)
    return model


def some_batch(height: int, width: int, num_images: int, num_boxes: int = 8) -> Batch:
    """Noise with boxes of all sizes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, 3, height, width), generator=generator)
    images = images.byte().contiguous(memory_format=torch.channels_last)
    boxes = some_boxes(height, width, num_images * num_boxes).view(num_images, num_boxes, 4)
    sizes = torch.tensor([[height, width]] * num_images)
    return Batch(
        images=images,
        sizes=sizes,
        boxes=boxes,
        labels=torch.randint(NUM_CLASSES, boxes.shape[:2], generator=generator),
        crowds=torch.zeros(num_images, 0, 4),
        image_ids=torch.arange(num_images),
        original_sizes=sizes,
    )


def some_boxes(height: int, width: int, count: int) -> Tensor:
    """(count, 4) with sides of 5 to 500 pixels, log-uniform."""
    generator = torch.Generator().manual_seed(1)
    limit = torch.tensor([width, height])
    center = torch.rand(count, 2, generator=generator) * limit
    side = 5 * 100 ** torch.rand(count, 2, generator=generator)
    low = (center - side / 2).clamp(min=0)
    high = torch.maximum((center + side / 2).minimum(limit.float()), low + 2)
    return torch.cat([low, high], dim=1)
