"""Trunks of other projects: the same features from their pixels and from ours."""

import pickle

import pytest
import torch
import torchvision
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from retinanet.model.backbone import build_trunk
from retinanet.weights.names import rename

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
NODES = {"layer2": "c3", "layer3": "c4", "layer4": "c5"}


def caffe_resnet(neutral):
    """ResNet-50 with strides in the 1x1 and random norms; neutral: without statistics."""
    torch.manual_seed(2)
    resnet = torchvision.models.resnet50(norm_layer=FrozenBatchNorm2d)
    for layer in (resnet.layer2, resnet.layer3, resnet.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    for norm in (m for m in resnet.modules() if isinstance(m, FrozenBatchNorm2d)):
        norm.weight.uniform_(0.2, 0.5)
        norm.bias.uniform_(-0.2, 0.2)
        if neutral:
            norm.eps = 0.0
        else:
            norm.running_var.uniform_(0.5, 2)
    return resnet


def features(resnet, pixels):
    return IntermediateLayerGetter(resnet, NODES)(pixels).values()


def msra_blobs(resnet):
    """Arrays under the names of Detectron's pickles."""
    blobs = {"conv1_w": resnet.conv1.weight, "conv1_b": torch.zeros(64)}
    blobs |= {"res_conv1_bn_s": resnet.bn1.weight, "res_conv1_bn_b": resnet.bn1.bias}
    for stage in range(1, 5):
        for i, block in enumerate(getattr(resnet, f"layer{stage}")):
            parts = {"2a": ("conv1", "bn1"), "2b": ("conv2", "bn2"), "2c": ("conv3", "bn3")}
            modules = {k: (getattr(block, c), getattr(block, n)) for k, (c, n) in parts.items()}
            if block.downsample is not None:
                modules["1"] = tuple(block.downsample)
            for branch, (conv, norm) in modules.items():
                prefix = f"res{stage + 1}_{i}_branch{branch}"
                blobs[f"{prefix}_w"] = conv.weight
                blobs[f"{prefix}_bn_s"], blobs[f"{prefix}_bn_b"] = norm.weight, norm.bias
    blobs |= {"fc1000_w": torch.zeros(1000, 2048), "fc1000_b": torch.zeros(1000)}
    return {name: value.detach().numpy() for name, value in blobs.items()}


@torch.no_grad()
def same_features(trunk, resnet):
    image = torch.randint(0, 256, (2, 3, 64, 96)).float()
    theirs = features(resnet, (image - MEAN).flip(1))  # BGR
    for ours, expected in zip(trunk((image - MEAN) / STD), theirs, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_msra_weights_give_the_features_of_their_bgr_pixels(tmp_path, wrapped, protocol):
    resnet = caffe_resnet(neutral=True)
    blobs = msra_blobs(resnet)
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs} if wrapped else blobs, protocol=protocol))
    trunk = build_trunk(
        "resnet50", weights=str(path), norm="frozen", frozen_stages=2, stride_in_1x1=True
    )
    same_features(trunk.eval(), resnet.eval())


def detectron2_names(state):
    def new(name):
        first, *rest = name.split(".")
        if first in ("conv1", "bn1"):
            return "stem.conv1." + ("norm." if first == "bn1" else "") + rest[-1]
        if first == "fc":
            return "stem.fc." + rest[-1]
        block, part, *rest = rest
        stage = f"res{int(first[-1]) + 1}.{block}."
        if part == "downsample":
            return stage + ("shortcut.norm." if rest[0] == "1" else "shortcut.") + rest[-1]
        return stage + (f"conv{part[-1]}.norm." if part[0] == "b" else f"{part}.") + rest[-1]

    return {new(name): value.numpy() for name, value in state.items()}


def test_detectron2s_weights_of_msra_take_bgr(tmp_path):
    resnet = caffe_resnet(neutral=False)
    path = tmp_path / "R-50.pkl"
    named = {"model": detectron2_names(resnet.state_dict()), "__author__": "MSRA"}
    path.write_bytes(pickle.dumps(named))
    trunk = build_trunk(
        "resnet50", weights=str(path), norm="frozen", frozen_stages=2, stride_in_1x1=True
    )
    same_features(trunk.eval(), resnet.eval())


def test_detectron2s_weights_of_torchvision_are_torchvisions(tmp_path):
    state = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d).state_dict()
    path = tmp_path / "r18.pkl"
    named = {"model": detectron2_names(state), "__author__": "torchvision"}
    path.write_bytes(pickle.dumps(named))
    trunk = build_trunk("resnet18", weights=str(path), norm="frozen", frozen_stages=2)
    assert all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items())


def test_msra_weights_want_their_strides(tmp_path):
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(msra_blobs(caffe_resnet(neutral=True))))
    with pytest.raises(ValueError, match="first 1x1 convolution; set model.stride_in_1x1=true"):
        build_trunk("resnet50", weights=str(path), norm="frozen", frozen_stages=2)


def test_strides_move_only_where_there_are_bottlenecks():
    with pytest.raises(ValueError, match="model.stride_in_1x1=true with model.backbone=resnet18"):
        build_trunk("resnet18", weights=None, norm="group", frozen_stages=0, stride_in_1x1=True)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_wrapped_with_a_prefix_are_found(tmp_path, key):
    state = torchvision.models.resnet18().state_dict()
    wrapped = {f"module.backbone.{name}": value for name, value in state.items()}
    wrapped = {name: value for name, value in wrapped.items() if ".fc." not in name}
    torch.save({key: wrapped, "epoch": 3, "arch": "resnet18"}, tmp_path / "w.pth")
    trunk = build_trunk("resnet18", weights=str(tmp_path / "w.pth"), norm="frozen", frozen_stages=2)
    assert torch.equal(trunk.conv1.weight, state["conv1.weight"])


def timm_mobilenet(state):
    """torchvision's MobileNetV2 under timm's names, by the order of their layers."""
    stages = (1, 2, 3, 4, 3, 3, 1)
    layers = ["conv_stem", "bn1"]
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            parts = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
            parts = ("conv_dw", "bn1", "conv_pw", "bn2") if stage == 0 else parts
            layers += [f"blocks.{stage}.{block}.{part}" for part in parts]
    layers += ["conv_head", "bn2"]
    theirs = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    names = dict(zip(theirs, layers, strict=True))
    return {f"{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v for n, v in state.items()}


def test_timms_mobilenet_is_torchvisions(tmp_path):
    features = torchvision.models.mobilenet_v2().features
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(timm_mobilenet(state), tmp_path / "timm.pth")
    trunk = build_trunk(
        "mobilenet_v2", weights=str(tmp_path / "timm.pth"), norm="frozen", frozen_stages=0
    )
    assert all(torch.equal(value, state[name]) for name, value in trunk.state_dict().items())


def test_a_detector_is_not_a_trunk(tmp_path):
    torch.save({"head.cls.pred.weight": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="whole detector's checkpoint, which belongs into init_f"):
        build_trunk("resnet18", weights=str(tmp_path / "w.pth"), norm="frozen", frozen_stages=0)


def test_renaming_takes_the_first_pair_and_keeps_numbers():
    pairs = [("a.{}.x.", "b{}."), ("a.", "rest."), ("whole", "all")]
    names = ["a.12.x.weight", "a.12.y", "whole", "wholesome"]
    renamed, left_over = rename(dict.fromkeys(names, torch.ones(1)), pairs)
    assert list(renamed) == ["b12.weight", "rest.12.y", "all"]
    assert left_over == ["wholesome"]


def test_weights_of_a_compiled_model_are_found(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    torch.save({f"module._orig_mod.{n}": v for n, v in state.items()}, tmp_path / "w.pth")
    trunk = build_trunk("resnet18", weights=str(tmp_path / "w.pth"), norm="frozen", frozen_stages=2)
    assert torch.equal(trunk.conv1.weight, state["conv1.weight"])


def test_resnexts_of_detectron2_take_bgr_of_unit_variance(tmp_path):
    state = torchvision.models.resnext50_32x4d(norm_layer=FrozenBatchNorm2d).state_dict()
    named = {"model": detectron2_names(state), "__author__": "FAIR"}
    (tmp_path / "X.pkl").write_bytes(pickle.dumps(named))
    trunk = build_trunk(
        "resnext50_32x4d", weights=str(tmp_path / "X.pkl"), norm="frozen", frozen_stages=2
    )
    assert torch.equal(trunk.conv1.weight, state["conv1.weight"].flip(1))
