"""Backbones of other projects: the same features from their pixels and from ours."""

import pickle

import pytest
import torch
import torchvision
from emulated import MEAN, STD, detectron2_resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from retinanet.model.backbone import build_backbone
from retinanet.weights.names import rename

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


def pickled(path, state, author, protocol=4):
    """A pickle as detectron2's model zoo has them."""
    arrays = {name: value.numpy() for name, value in detectron2_resnet(state).items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": author}, protocol))
    return path


def build(name, path, stride_in_1x1=False, frozen_stages=2):
    return build_backbone(
        name,
        weights=str(path),
        norm="frozen",
        frozen_stages=frozen_stages,
        stride_in_1x1=stride_in_1x1,
    )


@torch.no_grad()
def assert_same_features(backbone, resnet):
    image = torch.randint(0, 256, (2, 3, 64, 96)).float() - torch.tensor(MEAN).view(3, 1, 1)
    expected = IntermediateLayerGetter(resnet.eval(), NODES)(image.flip(1)).values()  # BGR
    features = backbone.eval()(image / torch.tensor(STD).view(3, 1, 1))
    for ours, theirs in zip(features, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.std()))


@pytest.mark.parametrize(("wrapped", "protocol"), [(True, 2), (False, 4)])
def test_msra_weights_give_the_features_of_their_bgr_pixels(tmp_path, wrapped, protocol):
    resnet, path = caffe_resnet(neutral=True), tmp_path / "R-50.pkl"
    blobs = msra_blobs(resnet)
    path.write_bytes(pickle.dumps({"blobs": blobs} if wrapped else blobs, protocol=protocol))
    assert_same_features(build("resnet50", path, stride_in_1x1=True), resnet)
    with pytest.raises(ValueError, match="first 1x1 convolution; set model.stride_in_1x1=true"):
        build("resnet50", path)


def test_detectron2s_weights_of_msra_take_bgr(tmp_path):
    resnet = caffe_resnet(neutral=False)
    path = pickled(tmp_path / "R-50.pkl", resnet.state_dict(), "MSRA")
    assert_same_features(build("resnet50", path, stride_in_1x1=True), resnet)


def test_detectron2s_weights_of_torchvision_are_torchvisions(tmp_path):
    state = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d).state_dict()
    backbone = build("resnet18", pickled(tmp_path / "r18.pkl", state, "torchvision"))
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


def test_resnexts_of_detectron2_take_bgr_of_unit_variance(tmp_path):
    state = torchvision.models.resnext50_32x4d(norm_layer=FrozenBatchNorm2d).state_dict()
    backbone = build("resnext50_32x4d", pickled(tmp_path / "X.pkl", state, "FAIR"))
    assert torch.equal(backbone.conv1.weight, state["conv1.weight"].flip(1))


def test_strides_move_only_where_there_are_bottlenecks():
    with pytest.raises(ValueError, match="model.stride_in_1x1=true with model.backbone=resnet18"):
        build_backbone("resnet18", weights=None, norm="group", frozen_stages=0, stride_in_1x1=True)


@pytest.mark.parametrize(
    ("key", "prefix"),
    [
        ("state_dict", "module.backbone."),
        ("model", "module.backbone."),
        (None, "module._orig_mod."),  # of a compiled model
    ],
)
def test_wrapped_weights_are_found(tmp_path, key, prefix):
    state = torchvision.models.resnet18().state_dict()
    wrapped = {f"{prefix}{name}": value for name, value in state.items()}
    if key is not None:
        wrapped = {name: value for name, value in wrapped.items() if ".fc." not in name}
        wrapped = {key: wrapped, "epoch": 3, "arch": "resnet18"}
    torch.save(wrapped, tmp_path / "w.pth")
    assert torch.equal(build("resnet18", tmp_path / "w.pth").conv1.weight, state["conv1.weight"])


def test_timms_mobilenet_is_torchvisions(tmp_path):
    features = torchvision.models.mobilenet_v2().features
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    # timm's names by the order of the layers.
    layers = ["conv_stem", "bn1"]
    for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)):
        parts = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
        parts = ("conv_dw", "bn1", "conv_pw", "bn2") if stage == 0 else parts
        layers += [f"blocks.{stage}.{block}.{part}" for block in range(blocks) for part in parts]
    ours = list(dict.fromkeys(name.rpartition(".")[0] for name in state))
    names = dict(zip(ours, [*layers, "conv_head", "bn2"], strict=True))
    timm = {f"{names[n.rpartition('.')[0]]}.{n.rpartition('.')[2]}": v for n, v in state.items()}
    torch.save(timm, tmp_path / "timm.pth")
    backbone = build("mobilenet_v2", tmp_path / "timm.pth", frozen_stages=0)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())


def test_a_detector_is_not_a_backbone(tmp_path):
    torch.save({"head.cls.pred.weight": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="whole detector's checkpoint, which belongs into init_f"):
        build("resnet18", tmp_path / "w.pth")


def test_renaming_takes_the_first_pair_and_keeps_numbers():
    pairs = [("a.{}.x.", "b{}."), ("a.", "rest."), ("whole", "all")]
    names = ["a.12.x.weight", "a.12.y", "whole", "wholesome"]
    renamed, left_over = rename(dict.fromkeys(names, torch.ones(1)), pairs)
    assert list(renamed) == ["b12.weight", "rest.12.y", "all"]
    assert left_over == ["wholesome"]
