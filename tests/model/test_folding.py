"""A folded model predicts the same."""

import pytest
import torch

from retinanet import RetinaNet
from retinanet.fast.fold_batchnorm import for_inference


def spread(model):
    """Statistics and scales that are not 1 and 0."""
    generator = torch.Generator().manual_seed(0)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if "running_var" in name or (value.dim() == 1 and name.endswith("weight")):
            value.data.uniform_(0.5, 1.5, generator=generator)
        elif "running_mean" in name or name.endswith("bias"):
            value.data.uniform_(-0.3, 0.3, generator=generator)
    return model.eval()


SMALL = {"fpn_channels": 32, "head_channels": 32, "head_depth": 1, "load_later": True}


@pytest.mark.parametrize(
    ("backbone", "norm"),
    [
        ("resnet18", "frozen"),
        ("resnet50", "frozen"),
        ("resnet18", "batch"),
        ("mobilenet_v2", "frozen"),
        ("tiny", "batch"),
        ("tiny", "group"),
    ],
)
def test_it_predicts_the_same_without_its_norms(backbone, norm):
    torch.manual_seed(0)
    model = spread(RetinaNet(backbone, 3, weights=None, norm=norm, frozen_stages=0, **SMALL))
    images, sizes = torch.randint(0, 256, (2, 3, 64, 96)), torch.tensor([[64, 96], [50, 80]])
    folded = for_inference(model, "fp32")
    with torch.inference_mode():
        for ours, plain in zip(folded(images, sizes), model(images, sizes), strict=True):
            assert (ours - plain).abs().max() <= 1e-4 * plain.abs().max()
    left = [m for m in folded.modules() if "BatchNorm" in type(m).__name__]
    assert len(left) == 0
    assert any("Norm" in type(m).__name__ for m in model.modules())  # the model itself keeps them


def test_weights_are_kept_in_the_precision_of_the_pass():
    model = spread(RetinaNet("resnet18", 3, weights=None, norm="frozen", **SMALL))
    folded = for_inference(model, "bf16")
    assert folded.backbone.conv1.weight.dtype == torch.bfloat16
    assert model.backbone.conv1.weight.dtype == torch.float32
    images, sizes = torch.randint(0, 256, (1, 3, 64, 64)), torch.tensor([[64, 64]])
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours, plain = folded(images, sizes)[0].float(), model(images, sizes)[0].float()
    assert (ours - plain).abs().max() <= 0.05 * plain.abs().max()


def test_a_compiled_method_is_not_copied():
    model = spread(RetinaNet("tiny", 3, weights=None, norm="group", frozen_stages=0, **SMALL))
    model.predict = lambda images: pytest.fail("bound to another model")
    images, sizes = torch.randint(0, 256, (1, 3, 64, 64)), torch.tensor([[64, 64]])
    for_inference(model, "fp32")(images, sizes)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_copy_is_compiled_if_asked_for(monkeypatch, compiled):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda method, **_: asked.append(method) or method)
    model = spread(RetinaNet("tiny", 3, weights=None, norm="group", frozen_stages=0, **SMALL))
    network = for_inference(model, "fp32", compiled=compiled)
    assert [method.__self__ for method in asked] == [network] * compiled


def test_gradients_stay_with_the_model():
    model = spread(RetinaNet("tiny", 3, weights=None, norm="group", frozen_stages=0, **SMALL))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert all(parameter.grad is None for parameter in for_inference(model, "fp32").parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())
