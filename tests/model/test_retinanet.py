"""The whole network: sizes, first scores, padding, what trains and what does not."""

import math

import pytest
import torch
import torchvision
from torch import nn

from retinanet.losses import RetinaNetLoss
from retinanet.matching import Matcher
from retinanet.model.anchors import AnchorGenerator
from retinanet.model.retinanet import RGB_MEAN, RetinaNet

SMALL = {"weights": None, "norm": "group", "frozen_stages": 0}
SMALL |= {"fpn_channels": 32, "head_depth": 1, "head_channels": 32}


def tiny(num_classes: int = 3, **settings) -> RetinaNet:
    return RetinaNet("tiny", num_classes, **{**SMALL, **settings})


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(128, 256), (128, 128), (96, 70), (33, 47)])
@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_as_many_predictions_as_anchors_at_any_size(size, backbone):
    model = RetinaNet(backbone, 3, **SMALL).eval()
    images = random_images(2, 3, *size)
    logits, deltas, anchors = model(images, torch.tensor([size, size]))
    A = sum(model.level_sizes(*size))
    assert logits.shape == (2, A, 3)
    assert deltas.shape == (2, A, 4)
    assert anchors.shape == (A, 4)
    assert torch.equal(anchors, model.anchors(*size))


@pytest.mark.parametrize(("backbone", "prior"), [("tiny", 0.01), ("tiny", 0.2), ("resnet18", 0.01)])
@pytest.mark.parametrize("num_classes", [1, 80])
def test_the_mean_score_starts_at_the_prior(backbone, prior, num_classes):
    model = RetinaNet(backbone, num_classes, prior, **SMALL).eval()
    images = random_images(1, 3, 128, 128)
    logits, deltas, _ = model(images, torch.tensor([[128, 128]]))
    assert logits.sigmoid().mean().item() == pytest.approx(prior, rel=0.05)
    assert deltas.abs().mean() < 0.1


def test_the_bias_is_exactly_minus_the_log_odds_and_only_there():
    model = tiny(prior=0.02)
    expected = torch.tensor(-math.log(0.98 / 0.02), dtype=torch.float64).float()
    assert (model.head["cls"].pred.bias == expected).all()
    assert (model.head["box"].pred.bias == 0).all()


def test_paddings_bytes_and_the_size_of_the_batch_do_not_matter():
    model = tiny().eval()
    small = random_images(1, 3, 100, 90)
    sizes = torch.tensor([[100, 90]])
    with torch.no_grad():
        outputs = []
        for fill in (0, 255):
            images = torch.full((1, 3, 128, 128), fill, dtype=torch.uint8)
            images[:, :, :100, :90] = small
            outputs.append(model(images, sizes)[:2])
    assert torch.equal(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])


def test_the_padding_is_exactly_the_mean_color():
    model = tiny()
    images = random_images(2, 3, 4, 6)
    normalized = model.normalize(images, torch.tensor([[4, 3], [2, 6]]))
    assert (normalized[0, :, :, 3:] == 0).all()
    assert (normalized[1, :, 2:] == 0).all()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    expected = (images[0, :, :, :3].float() - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalized[0, :, :, :3], expected)
    assert torch.equal(torch.tensor(RGB_MEAN), mean)


def test_floats_from_0_to_255_are_images_too():
    model = tiny().eval()
    images = random_images(1, 3, 64, 64)
    sizes = torch.tensor([[64, 64]])
    assert torch.equal(model(images, sizes)[0], model(images.float(), sizes)[0])


@pytest.mark.parametrize("precision", [torch.bfloat16])
def test_anchors_and_pixels_stay_fp32_under_autocast(precision):
    model = tiny().eval()
    images, sizes = random_images(1, 3, 64, 64), torch.tensor([[64, 64]])
    with torch.autocast("cpu", dtype=precision):
        assert model.normalize(images, sizes).dtype == torch.float32
        logits, _, anchors = model(images, sizes)
    assert logits.dtype == precision
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, model.anchors(64, 64))


def test_training_after_an_evaluation_uses_the_same_anchors():
    # Anchors made in inference mode are kept; the loss of training must accept them.
    model = tiny()
    images, sizes = random_images(1, 3, 128, 128), torch.tensor([[128, 128]])
    with torch.inference_mode():
        model(images, sizes)
    for kind in ("l1", "smooth_l1", "giou", "diou", "ciou"):
        losses = losses_of(model, images, sizes, RetinaNetLoss(box=kind))
        (losses["class"] + losses["box"]).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


def losses_of(model: RetinaNet, images, sizes, loss: RetinaNetLoss | None = None) -> dict:
    """Losses with one object, of class 1, in every image."""
    loss = loss or RetinaNetLoss()
    B = len(images)
    boxes = torch.tensor([[[20.0, 30.0, 80.0, 90.0]]]).expand(B, -1, -1)
    logits, deltas, anchors = model(images, sizes)
    match = Matcher()(anchors, boxes, torch.ones(B, 1).long(), torch.zeros(B, 0, 4))
    (divisors,) = loss.divisors([match])
    return loss(logits, deltas, anchors, match, divisors)


def test_a_delta_moves_the_anchor_of_its_own_channel():
    # Channel 4 * a + 0 of the box head is dx of anchor a: only that anchor may move.
    model = tiny(fpn_channels=8, head_channels=8, head_depth=0)
    pred = model.head["box"].pred
    nn.init.zeros_(pred.weight)
    for a in range(9):
        nn.init.zeros_(pred.bias)
        with torch.no_grad():
            pred.bias[4 * a] = 1.0
        _, deltas, anchors = model(random_images(1, 3, 64, 64), torch.tensor([[64, 64]]))
        moved = deltas[0, :, 0] == 1
        assert torch.equal(moved, torch.arange(len(anchors)) % 9 == a)
        # Ratio-outer: anchors 0 to 2 are wide, 6 to 8 tall.
        width, height = (anchors[moved][0, 2:] - anchors[moved][0, :2]).tolist()
        assert height / width == pytest.approx([0.5, 1.0, 2.0][a // 3])


def backbone_state(model: RetinaNet) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.backbone.state_dict().items()}


def train_once(model: RetinaNet) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.eval().train()  # as after an evaluation
    images, sizes = random_images(2, 3, 128, 128), torch.tensor([[128, 128]] * 2)
    losses = losses_of(model, images, sizes)
    (losses["class"] + losses["box"]).backward()
    optimizer.step()


def test_frozen_norms_do_not_change_in_a_step(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    settings = SMALL | {"weights": str(tmp_path / "w.pth"), "norm": "frozen", "frozen_stages": 2}
    model = RetinaNet("resnet18", 3, **settings)
    before = backbone_state(model)
    train_once(model)
    after = backbone_state(model)
    still = {key for key in before if torch.equal(before[key], after[key])}
    assert {key for key in before if "bn" in key or "downsample.1" in key} <= still
    assert {key for key in before if key.startswith(("conv1", "layer1"))} <= still
    moved = before.keys() - still
    assert moved == {
        key
        for key in before
        if key.startswith(("layer2", "layer3", "layer4"))
        and ("conv" in key or "downsample.0" in key)
    }


def test_everything_that_may_train_does():
    model = tiny()
    before = {key: value.clone() for key, value in model.named_parameters()}
    train_once(model)
    assert [key for key, value in model.named_parameters() if torch.equal(value, before[key])] == []


@pytest.mark.parametrize(
    ("norm", "expected"), [("batch", 33_839_924), ("frozen", 33_839_924 - 53_120)]
)
def test_the_number_of_parameters_is_that_of_torchvisions_layout(norm, expected):
    with torch.device("meta"):
        settings = {"weights": None, "norm": norm, "frozen_stages": 0, "p6_from": "p5"}
        model = RetinaNet("resnet50", 80, load_later=True, **settings)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_the_names_in_a_state_dict_are_the_published_ones():
    with torch.device("meta"):
        names = RetinaNet("resnet18", 3, load_later=True).state_dict().keys()
    groups = {name.split(".")[0] for name in names}
    assert groups == {"backbone", "fpn", "head"}
    for name in ("backbone.layer4.1.bn2.running_var", "fpn.lateral.c3.weight", "fpn.p7.bias"):
        assert name in names
    for name in ("head.cls.convs.3.weight", "head.cls.pred.bias", "head.box.pred.weight"):
        assert name in names


def test_fewer_anchors_make_smaller_predictions():
    model = tiny(anchors=AnchorGenerator(scales=[1.0], ratios=[1.0]))
    logits, _, anchors = model(random_images(1, 3, 64, 64), torch.tensor([[64, 64]]))
    assert logits.shape[1] == len(anchors) == sum(model.level_sizes(64, 64)) == 64 + 16 + 4 + 1 + 1


def test_no_class_is_refused():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        tiny(0)
