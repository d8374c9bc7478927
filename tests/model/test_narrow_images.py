"""Small and narrow images, in each precision on the device at hand.

Features, losses and gradients are those of fp32, and those of fp32 are those of float64. Kernels
of CPUs for bf16 are wrong for maps of one column (see retinanet/model/convolution.py). On a machine
without those kernels the first test injects the fault.
"""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from retinanet.devices import autocast
from retinanet.fast.fold_batchnorm import for_inference
from retinanet.losses import RetinaNetLoss
from retinanet.matching import Matcher
from retinanet.model.anchors import AnchorGenerator
from retinanet.model.convolution import Conv2d
from retinanet.model.retinanet import RetinaNet

CPU = torch.device("cpu")
QUICK = ["tiny", "resnet18", "mobilenet_v2"]
FAMILIES = [*QUICK, "resnet50", "resnext50_32x4d"]
# Height and width after padding, 32 to 160 in both directions, and a long strip each way.
SIDES = range(32, 161, 32)
SIZES = [*itertools.product(SIDES, SIDES), (64, 320), (320, 64)]
ONE_SHAPE = {"scales": (1.0,), "ratios": (1.0,)}


def make(backbone: str, norm: str = "group", num_classes: int = 3, anchors=None) -> RetinaNet:
    torch.manual_seed(0)
    settings = {"weights": None, "norm": norm, "frozen_stages": 0, "head_norm": "group"}
    settings["load_later"] = True  # frozen norms of random weights
    settings |= {"fpn_channels": 32, "head_depth": 1, "head_channels": 32}
    return RetinaNet(backbone, num_classes, anchors=AnchorGenerator(**anchors or {}), **settings)


def step(model: RetinaNet, size: tuple[int, int], precision: str, num_images: int = 2):
    """Logits and deltas, losses, and the gradient of every parameter, of one step.

    ``size`` is the valid one; the images are padded to multiples of 32.
    """
    torch.manual_seed(1)
    device = model.rgb_mean.device
    height, width = size
    H, W = (-(-side // 32) * 32 for side in size)
    images = torch.randint(0, 256, (num_images, 3, H, W), dtype=torch.uint8)
    whole, part = [0.0, 0, width, height], [8.0, 8, 24, 24]
    boxes = torch.tensor([whole, part])[:num_images, None]  # (B, 1, 4)
    labels = torch.tensor([0, model.num_classes - 1])[:num_images, None]  # (B, 1)
    match = Matcher()(
        model.anchors(H, W, device), *(t.to(device) for t in (boxes, labels, boxes[:, :0]))
    )
    model.zero_grad()
    with autocast(device, precision):
        sizes = torch.tensor([size] * num_images, device=device)
        logits, deltas, anchors = model(images.to(device), sizes)
    loss = RetinaNetLoss()
    losses = loss(logits, deltas, anchors, match, *loss.divisors([match]))
    # A constant that keeps gradients above fp16's smallest number, as GradScaler does.
    (sum(losses.values()) * 1024).backward()
    gradients = {name: p.grad.clone() / 1024 for name, p in model.named_parameters()}
    return (logits.detach(), deltas.detach()), losses, gradients


def assert_close(reference, result, *, outputs: float, losses: float, backbone: float, rest: float):
    """Errors as shares of the largest output, of a loss, and of a gradient's norm."""
    (exact, exact_losses, exact_gradients), (rounded, rounded_losses, gradients) = reference, result
    for a, b in zip(exact, rounded, strict=True):  # garbage is off by its own size and more
        assert (a - b).abs().max() < outputs * a.abs().max()
    for name, loss in exact_losses.items():
        torch.testing.assert_close(
            rounded_losses[name].double(), loss.double(), rtol=losses, atol=1e-6
        )
    largest = max(gradient.norm() for gradient in exact_gradients.values())
    for name, gradient in exact_gradients.items():
        error = (gradients[name] - gradient).norm()
        # Deep in a backbone the roundings of all layers above add up, at any size.
        share = backbone if name.startswith("backbone") else rest
        assert error < share * gradient.norm() + rest / 20 * largest, name


@pytest.mark.parametrize("norm", ["group", "frozen"])
@pytest.mark.parametrize("backbone", FAMILIES)
def test_no_map_of_one_row_or_column_is_computed_in_bf16(backbone, norm, monkeypatch):
    original = F.conv2d

    def wrong_where_narrow(x, *others, **steps):
        y = original(x, *others, **steps)
        narrow = torch.is_autocast_enabled("cpu") and min(y.shape[-2:]) == 1
        return y * torch.nan if narrow else y

    monkeypatch.setattr(F, "conv2d", wrong_where_narrow)
    model = make(backbone, norm)
    for size in [(32, 32), (64, 160), (160, 64)]:
        outputs, losses, gradients = step(model, size, "bf16")
        assert all(output.isfinite().all() for output in outputs)
        assert all(loss.isfinite() for loss in losses.values())
        assert all(gradient.isfinite().all() for gradient in gradients.values())
        with torch.no_grad(), autocast(CPU, "bf16"):
            ready = for_inference(model.eval(), "bf16")
            logits, deltas, _ = ready(torch.zeros(1, 3, *size), torch.tensor([size]))
        model.train()
        assert logits.isfinite().all() and deltas.isfinite().all()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups"),
    [(3, 2, 1), (3, 1, 1), (1, 1, 1), (1, 2, 1), (7, 2, 1), (3, 2, 32), (3, 1, 64), (3, 2, 64)],
)
def test_a_convolution_and_its_gradients_agree_for_every_small_map(
    kernel, stride, groups, channels_last
):
    torch.manual_seed(0)
    layer = Conv2d(64, 64, kernel, stride, padding=kernel // 2, groups=groups)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    layer.to(memory_format=layout)
    with torch.no_grad():  # numbers that bf16 holds exactly: only the sums are rounded
        layer.weight.copy_(layer.weight.bfloat16())
    for size in [(1, 1), (2, 2), (4, 2), (2, 4), (5, 2), (3, 3), (4, 1), (1, 4), (8, 3), (8, 8)]:
        x = torch.randn(2, 64, *size).bfloat16().float().contiguous(memory_format=layout)
        x.requires_grad_()
        wide = layer(x)
        with autocast(CPU, "bf16"):
            near = layer(x)
        incoming = torch.randn_like(wide).bfloat16()
        expected = torch.autograd.grad(wide, [x, *layer.parameters()], incoming.float())
        # What a kernel leaves unwritten is what was freed here, not the zeros of a fresh page.
        freed = [torch.full_like(layer.weight, torch.nan, dtype=near.dtype) for _ in range(8)]
        del freed
        found = torch.autograd.grad(near, [x, *layer.parameters()], incoming)
        for a, b in zip([wide, *expected], [near, *found], strict=True):
            assert (b.float() - a).abs().max() <= 0.02 * a.abs().max(), size


# How far a precision may be from the next better one.
FP32 = {"outputs": 1e-4, "losses": 1e-4, "backbone": 0.02, "rest": 1e-3}
BF16 = {"outputs": 0.1, "losses": 0.02, "backbone": 1.0, "rest": 0.4}
FP16 = {"outputs": 0.02, "losses": 0.005, "backbone": 0.5, "rest": 0.1}
# Whole backbones take longer.
EACH_FAMILY = pytest.mark.parametrize(
    "backbone",
    [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[len(QUICK) :])],
)


@EACH_FAMILY
def test_bf16_agrees_with_fp32_for_narrow_images(backbone, device):
    model = make(backbone).to(device)
    for size in SIZES:
        assert_close(step(model, size, "fp32"), step(model, size, "bf16"), **BF16)


@EACH_FAMILY
def test_each_precision_agrees_for_one_image_of_a_few_pixels_one_class_and_one_anchor_shape(
    backbone, device
):
    model = make(backbone, num_classes=1, anchors=ONE_SHAPE).to(device)
    exact = copy.deepcopy(model).double()
    for size in [(1, 1), (2, 2), (33, 33), (64, 64), (1, 64), (64, 1), (33, 2)]:
        fp32 = step(model, size, "fp32", num_images=1)
        assert_close(step(exact, size, "fp32", num_images=1), fp32, **FP32)
        assert_close(fp32, step(model, size, "bf16", num_images=1), **BF16)
        assert_close(fp32, step(model, size, "fp16", num_images=1), **FP16)


def test_only_maps_of_one_row_or_column_are_multiplied_in_fp32_and_all_come_out_in_bf16(
    monkeypatch,
):
    in_bf16 = []
    original = F.conv2d

    def watched(x, *others, **more):
        in_bf16.append(torch.is_autocast_enabled("cpu"))
        return original(x, *others, **more)

    monkeypatch.setattr(F, "conv2d", watched)
    layer = Conv2d(8, 8, 3, stride=2, padding=1)
    with autocast(CPU, "bf16"):
        for size in [(3, 3), (4, 4), (9, 9), (2, 9), (9, 2)]:
            assert layer(torch.zeros(1, 8, *size)).dtype == torch.bfloat16
    assert in_bf16 == [True] * 3 + [False] * 2
