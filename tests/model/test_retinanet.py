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
    return RetinaNet("tiny", num_classes, **SMALL | settings)


def inputs(height: int, width: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random images and their sizes."""
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)
    return images, torch.tensor([[height, width]] * batch)


@pytest.mark.parametrize("size", [(128, 256), (128, 128), (96, 70), (33, 47)])
@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_as_many_predictions_as_anchors_at_any_size(size, backbone):
    model = RetinaNet(backbone, 3, **SMALL).eval()
    logits, deltas, anchors = model(*inputs(*size, batch=2))
    A = sum(model.level_sizes(*size))
    assert (logits.shape, deltas.shape, anchors.shape) == ((2, A, 3), (2, A, 4), (A, 4))
    assert torch.equal(anchors, model.anchors(*size))


@pytest.mark.parametrize(("backbone", "prior"), [("tiny", 0.01), ("tiny", 0.2), ("resnet18", 0.01)])
@pytest.mark.parametrize("num_classes", [1, 80])
def test_the_mean_score_starts_at_the_prior(backbone, prior, num_classes):
    model = RetinaNet(backbone, num_classes, prior, **SMALL).eval()
    logits, deltas, _ = model(*inputs(128, 128))
    assert logits.sigmoid().mean().item() == pytest.approx(prior, rel=0.05)
    assert deltas.abs().mean() < 0.1


def test_the_bias_is_exactly_minus_the_log_odds_and_only_there():
    model = tiny(prior=0.02)
    expected = torch.tensor(-math.log(0.98 / 0.02), dtype=torch.float64).float()
    assert (model.head["cls"].pred.bias == expected).all()
    assert (model.head["box"].pred.bias == 0).all()


def test_paddings_bytes_and_the_size_of_the_batch_do_not_matter():
    model = tiny().eval()
    small, sizes = inputs(100, 90)
    outputs = []
    for fill in (0, 255):
        images = torch.full((1, 3, 128, 128), fill, dtype=torch.uint8)
        images[:, :, :100, :90] = small
        outputs.append(model(images, sizes))
    assert all(map(torch.equal, *outputs))


def test_the_padding_is_exactly_the_mean_color():
    images, _ = inputs(4, 6, batch=2)
    normalized = tiny().normalize(images, torch.tensor([[4, 3], [2, 6]]))
    assert (normalized[0, :, :, 3:] == 0).all()
    assert (normalized[1, :, 2:] == 0).all()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    expected = (images[0, :, :, :3].float() - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalized[0, :, :, :3], expected)
    assert torch.equal(torch.tensor(RGB_MEAN), mean)


def test_floats_from_0_to_255_are_images_too():
    model = tiny().eval()
    images, sizes = inputs(64, 64)
    assert torch.equal(model(images, sizes)[0], model(images.float(), sizes)[0])


def test_anchors_and_pixels_stay_fp32_under_autocast():
    model = tiny().eval()
    images, sizes = inputs(64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.normalize(images, sizes).dtype == torch.float32
        logits, _, anchors = model(images, sizes)
    assert logits.dtype == torch.bfloat16
    assert anchors.dtype == torch.float32
    assert torch.equal(anchors, model.anchors(64, 64))


def train_once(model: RetinaNet, loss: RetinaNetLoss | None = None, batch: int = 1) -> None:
    """A step with one object, of class 1, in every image."""
    loss = loss or RetinaNetLoss()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.eval().train()  # as after an evaluation
    boxes = torch.tensor([[[20.0, 30.0, 80.0, 90.0]]]).expand(batch, -1, -1)
    logits, deltas, anchors = model(*inputs(128, 128, batch))
    match = Matcher()(anchors, boxes, torch.ones(batch, 1).long(), torch.zeros(batch, 0, 4))
    losses = loss(logits, deltas, anchors, match, *loss.divisors([match]))
    sum(losses.values()).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "giou", "diou", "ciou"])
def test_training_after_an_evaluation_uses_the_same_anchors(kind):
    # Anchors made in inference mode are kept; the loss of training must accept them.
    model = tiny()
    with torch.inference_mode():
        model(*inputs(128, 128))
    before = {key: value.clone() for key, value in model.named_parameters()}
    train_once(model, RetinaNetLoss(box=kind))
    for key, value in model.named_parameters():
        assert value.grad.isfinite().all()
        assert not torch.equal(value, before[key]), key  # everything that may train does


def test_a_delta_moves_the_anchor_of_its_own_channel():
    # Channel 4 * a + 0 of the box head is dx of anchor a: only that anchor may move.
    model = tiny(fpn_channels=8, head_channels=8, head_depth=0)
    pred = model.head["box"].pred
    nn.init.zeros_(pred.weight)
    for a in range(9):
        nn.init.zeros_(pred.bias)
        pred.bias.data[4 * a] = 1.0
        _, deltas, anchors = model(*inputs(64, 64))
        moved = deltas[0, :, 0] == 1
        assert torch.equal(moved, torch.arange(len(anchors)) % 9 == a)
        # Ratio-outer: anchors 0 to 2 are wide, 6 to 8 tall.
        width, height = (anchors[moved][0, 2:] - anchors[moved][0, :2]).tolist()
        assert height / width == pytest.approx([0.5, 1.0, 2.0][a // 3])


def test_of_a_backbone_with_frozen_norms_and_stages_the_other_convolutions_train(tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "w.pth")
    settings = SMALL | {"weights": str(tmp_path / "w.pth"), "norm": "frozen", "frozen_stages": 2}
    model = RetinaNet("resnet18", 3, **settings)
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    train_once(model, batch=2)
    after = model.backbone.state_dict()
    for key, value in before.items():
        trains = key.startswith(("layer2", "layer3", "layer4"))
        trains &= "conv" in key or "downsample.0" in key
        assert torch.equal(after[key], value) != trains, key


@pytest.mark.parametrize(
    ("norm", "expected"), [("batch", 33_839_924), ("frozen", 33_839_924 - 53_120)]
)
def test_the_number_of_parameters_is_that_of_torchvisions_layout(norm, expected):
    settings = {"weights": None, "norm": norm, "frozen_stages": 0, "p6_from": "p5"}
    with torch.device("meta"):
        model = RetinaNet("resnet50", 80, load_later=True, **settings)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_the_names_in_a_state_dict_are_the_published_ones():
    with torch.device("meta"):
        names = RetinaNet("resnet18", 3, load_later=True).state_dict().keys()
    assert {name.split(".")[0] for name in names} == {"backbone", "fpn", "head"}
    expected = {"backbone.layer4.1.bn2.running_var", "fpn.lateral.c3.weight", "fpn.p7.bias"}
    expected |= {"head.cls.convs.3.weight", "head.cls.pred.bias", "head.box.pred.weight"}
    assert expected <= names


def test_fewer_anchors_make_smaller_predictions():
    model = tiny(anchors=AnchorGenerator(scales=[1.0], ratios=[1.0]))
    logits, _, anchors = model(*inputs(64, 64))
    assert logits.shape[1] == len(anchors) == sum(model.level_sizes(64, 64)) == 64 + 16 + 4 + 1 + 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"prior": 1.0}, r"model.prior must lie in \(0, 1\)"),
        ({"fpn_channels": 0}, "model.fpn_channels must"),
        ({"p6_from": "c4"}, "model.p6_from must be one of"),
        ({"head_norm": "batch"}, "model.head_norm must be one of"),
        ({"head_depth": -1}, "model.head_depth must"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)
