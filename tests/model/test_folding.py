"""A folded model predicts the same."""

import pytest
import torch

from retinanet import RetinaNet
from retinanet.fast.fold_batchnorm import for_inference

SIZES = torch.tensor([[64, 96], [50, 80]])


def make(backbone="tiny", norm="group"):
    """A small model whose norms have statistics and scales that are not 0 and 1."""
    settings = {"fpn_channels": 32, "head_channels": 32, "head_depth": 1, "load_later": True}
    model = RetinaNet(backbone, 3, weights=None, norm=norm, frozen_stages=0, **settings)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if "running_var" in name or (value.dim() == 1 and name.endswith("weight")):
            value.data.uniform_(0.5, 1.5)
        elif "running_mean" in name or name.endswith("bias"):
            value.data.uniform_(-0.3, 0.3)
    return model.eval()


def largest_error(model, folded):
    """Of logits and deltas, beside their largest number."""
    images = torch.randint(0, 256, (2, 3, 64, 96))
    with torch.inference_mode():
        pairs = list(zip(folded(images, SIZES)[:2], model(images, SIZES)[:2], strict=True))
    return max(float((a.float() - b.float()).abs().max() / b.abs().max()) for a, b in pairs)


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
    model = make(backbone, norm)
    folded = for_inference(model, "fp32")
    assert largest_error(model, folded) <= 1e-4
    assert not any("BatchNorm" in type(m).__name__ for m in folded.modules())
    assert any("Norm" in type(m).__name__ for m in model.modules())  # the model itself keeps them


def test_weights_are_kept_in_the_precision_of_the_pass():
    model = make("resnet18", "frozen")
    folded = for_inference(model, "bf16")
    assert folded.backbone.conv1.weight.dtype == torch.bfloat16
    assert model.backbone.conv1.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert largest_error(model, folded) <= 0.05


def test_a_compiled_method_is_not_copied():
    model = make()
    model.predict = lambda images: pytest.fail("bound to another model")
    for_inference(model, "fp32")(torch.zeros(2, 3, 64, 96), SIZES)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_copy_is_compiled_if_asked_for(monkeypatch, compiled):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda method, **_: asked.append(method) or method)
    network = for_inference(make(), "fp32", compiled=compiled)
    assert [method.__self__ for method in asked] == [network] * compiled


def test_gradients_stay_with_the_model():
    model = make()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert all(parameter.grad is None for parameter in for_inference(model, "fp32").parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())
