"""Backbones: equal to torchvision's, frozen where they are to be, and particular about weights."""

import os
import pickle
import socket
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from retinanet.model.backbone import build_backbone, residual

# The smallest of each family, and one of every kind of block.
SMALL = ["resnet18", "resnet50", "mobilenet_v2", "tiny"]
LARGE = ["resnet34", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x4d"]
LARGE += ["resnext101_32x8d", "resnext101_64x4d"]
IMAGES = torch.randn(2, 3, 96, 64)
PRETRAINED = {"norm": "frozen", "frozen_stages": 0}


def backbone_of(name: str, **settings) -> nn.Module:
    settings = {"weights": None, "norm": "batch", "frozen_stages": 0} | settings
    return build_backbone(name, **settings, load_later=True)


def classifier(name: str) -> nn.Module:
    """torchvision's, with random numbers everywhere."""
    model = torchvision.models.get_model(name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(classifier("resnet18").state_dict(), path)
    return path


@pytest.mark.parametrize("name", SMALL)
def test_stages_halve_the_image_and_channels_are_announced(name):
    backbone = backbone_of(name)
    outputs = backbone(torch.zeros(1, 3, 100, 70))
    assert [tuple(c.shape[2:]) for c in outputs] == [(13, 9), (7, 5), (4, 3)]
    assert tuple(c.shape[1] for c in outputs) == tuple(backbone.channels)


@pytest.mark.parametrize("name", LARGE)
def test_the_large_backbones_have_the_channels_they_announce(name):
    with torch.device("meta"):
        backbone = backbone_of(name)
        outputs = backbone(torch.zeros(1, 3, 64, 64))
    assert tuple(c.shape[1] for c in outputs) == backbone.channels


@pytest.mark.parametrize(
    ("name", "norm"), [("resnet18", "frozen"), ("resnet18", "batch"), ("mobilenet_v2", "frozen")]
)
def test_features_equal_torchvisions(tmp_path, name, norm):
    theirs = classifier(name)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    if name == "mobilenet_v2":
        expected = [theirs.features[:end](IMAGES) for end in (7, 14, 19)]
    else:
        nodes = {"layer2": "c3", "layer3": "c4", "layer4": "c5"}
        expected = IntermediateLayerGetter(theirs, nodes)(IMAGES).values()
    backbone = build_backbone(name, weights=str(tmp_path / "w.pth"), norm=norm, frozen_stages=2)
    for ours, other in zip(backbone.eval()(IMAGES), expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "stride"), [(Bottleneck, 2), (Bottleneck, 1), (BasicBlock, 2)])
def test_folding_frozen_norms_changes_neither_outputs_nor_gradients(kind, stride):
    outputs = 16 * kind.expansion
    inputs = outputs if stride == 1 else 24
    down = nn.Conv2d(inputs, outputs, 1, 2, bias=False), FrozenBatchNorm2d(outputs)
    down = nn.Sequential(*down) if stride == 2 else None
    block = kind(inputs, 16, stride, down, norm_layer=FrozenBatchNorm2d).double()
    for name, buffer in block.named_buffers():
        buffer.uniform_(0.5, 1.5) if "mean" not in name and "bias" not in name else buffer.normal_()
    x = torch.randn(2, inputs, 9, 7, dtype=torch.float64, requires_grad=True)
    results = []
    for forward in (block, partial(residual, block)):
        y = forward(x + 0)  # not a leaf: blocks may work in place
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])])
    for plain, folded in zip(*results, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-10, atol=1e-10)


def test_real_mobilenet_weights_fit():
    data = os.environ.get("RETINANET_TEST_DATA", "")
    path = Path(data).parent / "weights" / "mobilenet_v2_features_torchvision.pth"
    if not data or not path.is_file():
        pytest.skip("put mobilenet_v2_features_torchvision.pth into weights/ beside the test data")
    own = build_backbone("mobilenet_v2", weights=str(path), **PRETRAINED).state_dict()
    for key, value in torch.load(path, weights_only=True).items():
        assert key.endswith("num_batches_tracked") or torch.equal(own[key], value)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("frozen_stages", [0, 2, 5])
def test_frozen_stages_have_no_gradient_and_their_statistics_stand_still(name, frozen_stages):
    backbone = backbone_of(name, frozen_stages=frozen_stages)
    prefixes = [tuple(f"{part}." for part in stage) for stage in backbone.stages]
    frozen = sum(prefixes[:frozen_stages], ())
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.eval().train()  # as every epoch does
    backbone(IMAGES)
    for key, parameter in backbone.named_parameters():
        assert parameter.requires_grad != key.startswith(frozen), key
        assert sum(key.startswith(stage) for stage in prefixes) == 1, key
    statistics = [key for key in before if key.endswith(("running_mean", "running_var"))]
    assert statistics
    for key in statistics:
        assert torch.equal(backbone.state_dict()[key], before[key]) == key.startswith(frozen), key


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "tiny"])
def test_group_norm_fits_every_backbone(name):
    backbone = backbone_of(name, norm="group")
    assert any(isinstance(module, nn.GroupNorm) for module in backbone.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert all(c.isfinite().all() for c in backbone(IMAGES))


def test_frozen_norms_are_buffers_with_the_usual_epsilon(weights):
    backbone = build_backbone("resnet18", weights=str(weights), **PRETRAINED)
    norms = [module for module in backbone.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(norms) == 20
    assert {norm.eps for norm in norms} == {1e-5}
    assert not any("bn" in key for key, _ in backbone.named_parameters())


@pytest.mark.parametrize("name", SMALL)
def test_frozen_norms_with_random_weights_are_refused(name):
    with pytest.raises(ValueError, match="model.norm=frozen with model.weights=null.*norm=group"):
        build_backbone(name, weights=None, **PRETRAINED)
    build_backbone(name, weights=None, **PRETRAINED, load_later=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "layer"}, "model.norm must be one of"),
        ({"norm_eps": -1.0}, "model.norm_eps must"),
        ({"frozen_stages": 6}, "model.frozen_stages must"),
        ({"stride_in_1x1": True}, "model.stride_in_1x1=true with model.backbone=resnet18"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        backbone_of("resnet18", **settings)


# Weights


def test_an_unknown_name_of_weights_lists_those_there_are():
    with pytest.raises(ValueError, match="model.weights=COCO: resnet50 has IMAGENET1K_V1"):
        build_backbone("resnet50", weights="COCO", **PRETRAINED)


def load_file(path: Path, **settings) -> nn.Module:
    return build_backbone("resnet18", weights=str(path), **PRETRAINED | settings)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file .*none.pth; check model.weights"):
        load_file(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00.", b"PK\x03\x04" + b"x" * 50])
def test_a_file_of_something_else_is_refused(tmp_path, content):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.pth"):
        load_file(path)


@pytest.mark.parametrize("share", [0.3, 0.999])
def test_a_truncated_file_is_refused(tmp_path, weights, share):
    path, content = tmp_path / "w.pth", weights.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="not a readable state dict"):
        load_file(path)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_code_in_a_file_does_not_run(tmp_path):
    torch.save({"conv1.weight": Evil(tmp_path / "ran")}, tmp_path / "w.pth")
    (tmp_path / "p.pth").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    for name in ("w.pth", "p.pth"):
        with pytest.raises(ValueError, match="not a readable state dict"):
            load_file(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("state", [{"model": {"a": 1}}, [torch.ones(1)], {}])
def test_a_file_without_tensors_is_refused(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="holds no state dict of tensors"):
        load_file(tmp_path / "w.pth")


def test_parameters_missing_left_over_or_of_another_shape_are_counted(tmp_path, weights):
    state = torch.load(weights, weights_only=True)
    del state["layer1.0.conv1.weight"]
    state |= {"layer9.weight": torch.ones(1), "conv1.weight": torch.ones(64, 1, 7, 7)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="1 parameters missing.*1 left over.*1 of another shape"):
        load_file(tmp_path / "w.pth")


def test_batch_norm_weights_do_not_become_group_norms(weights):
    with pytest.raises(ValueError, match="do not fit model.norm=group"):
        load_file(weights, norm="group")


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    with socket.socket() as closed:  # a port where nobody listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/resnet18-00000000.pth"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    original = torch.hub.load_state_dict_from_url
    monkeypatch.setattr(
        torchvision.models._api,
        "load_state_dict_from_url",
        lambda _, **settings: original(url, **settings),
    )
    with pytest.raises(ValueError, match="could not be downloaded.*model.weights=PATH.*norm=group"):
        build_backbone("resnet18", weights="IMAGENET1K_V1", norm="frozen", frozen_stages=2)
