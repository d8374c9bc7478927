"""detectron2's checkpoints: every name has a place, and its conventions give its detections."""

import pickle

import pytest
import torch
from emulated import MEAN, STD, Emulated, assert_same, assert_same_outputs

from retinanet import load
from retinanet.weights.read import read_trained


def name_in_trunk(name):
    first, *rest = name.split(".")
    if first in ("conv1", "bn1"):
        return "stem.conv1." + ("norm." if first == "bn1" else "") + rest[-1]
    block, part, *rest = rest
    stage = f"res{int(first[-1]) + 1}.{block}."
    if part == "downsample":
        return stage + ("shortcut.norm." if rest[0] == "1" else "shortcut.") + rest[-1]
    return stage + (f"conv{part[-1]}.norm." if part[0] == "b" else f"{part}.") + rest[-1]


def names_of(net):
    """The parameters of an emulated network under detectron2's names."""
    body = net.body.state_dict()
    state = {f"backbone.bottom_up.{name_in_trunk(name)}": body[name] for name in body}
    for i in range(3):
        for part in ("weight", "bias"):
            inner, layer = net.fpn.inner_blocks[i][0], net.fpn.layer_blocks[i][0]
            state[f"backbone.fpn_lateral{i + 3}.{part}"] = getattr(inner, part)
            state[f"backbone.fpn_output{i + 3}.{part}"] = getattr(layer, part)
    for part in ("weight", "bias"):
        for p in ("p6", "p7"):
            module = getattr(net.fpn.extra_blocks, p)
            state[f"backbone.top_block.{p}.{part}"] = getattr(module, part)
        for i in range(4):
            state[f"head.cls_subnet.{2 * i}.{part}"] = getattr(net.cls[i], part)
            state[f"head.bbox_subnet.{2 * i}.{part}"] = getattr(net.box[i], part)
        state[f"head.cls_score.{part}"] = getattr(net.cls_pred, part)
        state[f"head.bbox_pred.{part}"] = getattr(net.box_pred, part)
    state |= {f"anchor_generator.cell_anchors.{i}": torch.zeros(9, 4) for i in range(5)}
    return {name: value.detach() for name, value in state.items()}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    return Emulated("resnet50", caffe=True).eval()


@pytest.fixture(scope="module", params=["pkl", "pth"])
def checkpoint(net, request, tmp_path_factory):
    path = tmp_path_factory.mktemp("d2") / f"model_final.{request.param}"
    state = names_of(net)
    if request.param == "pkl":
        arrays = {name: value.numpy() for name, value in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    else:
        pixels = {"pixel_mean": torch.tensor(MEAN[::-1]).view(3, 1, 1)}
        pixels["pixel_std"] = torch.ones(3, 1, 1)
        torch.save({"model": state | pixels, "iteration": 89999, "optimizer": {}}, path)
    return path


def test_it_detects_the_same(net, checkpoint, photo):
    detector = load(checkpoint)
    detector.settings.data.min_size, detector.settings.data.max_size = 200, 400
    scores, labels, boxes = net.detect(photo, "scale", clip_first=False)
    assert len(scores) > 50
    found = detector([photo])[0]
    assert_same(found, scores, labels, boxes)
    assert_same_outputs(detector, net, photo, "scale")
    assert found.category_ids[0] == detector.category_ids[int(found.labels[0])]


def test_resnet101_is_read_too(photo, tmp_path):
    torch.manual_seed(2)
    net = Emulated("resnet101", num_classes=4, caffe=True).eval()
    torch.save({"model": names_of(net)}, tmp_path / "m.pth")
    detector = load(tmp_path / "m.pth")
    detector.settings.data.min_size, detector.settings.data.max_size = 200, 400
    assert detector.settings.model.backbone == "resnet101"
    assert_same_outputs(detector, net, photo, "scale")


def test_classes_and_conventions_are_recorded(checkpoint):
    state = read_trained(checkpoint)
    assert state["classes"]["names"][:2] == ["person", "bicycle"]
    assert state["classes"]["ids"][-1] == 90
    assert state["settings"]["model"]["stride_in_1x1"] is True
    assert state["settings"]["postprocess"]["clip"] == "after_nms"
    assert state["settings"]["data"] | {"resize": "antialias"} == state["settings"]["data"]


def test_a_parameter_of_another_model_is_named(net, tmp_path):
    state = names_of(net) | {"head.centerness.weight": torch.zeros(1)}
    torch.save({"model": state}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"m\.pth: it looks like a RetinaNet of d.*centerness"):
        read_trained(tmp_path / "m.pth")


def test_a_missing_parameter_is_named(net, tmp_path):
    state = names_of(net)
    del state["backbone.fpn_output4.bias"]
    torch.save({"model": state}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"1 parameters are missing.*fpn\.output\.p4\.bias"):
        load(tmp_path / "m.pth")


@pytest.mark.parametrize("name", ["backbone.top_block.p7.weight", "head.bbox_pred.bias"])
def test_a_missing_parameter_that_settings_are_read_from_is_named(net, tmp_path, name):
    state = names_of(net)
    del state[name]
    torch.save({"model": state}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="looks like a RetinaNet of detectron2, but what would be"):
        load(tmp_path / "m.pth")


def test_live_norms_are_read_as_frozen_ones(net, tmp_path):
    state = names_of(net)
    norms = [name for name in state if name.endswith("running_var")]
    counters = {n.replace("running_var", "num_batches_tracked"): torch.tensor(7) for n in norms}
    torch.save({"model": state | counters}, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").settings.model.norm == "frozen"


def test_pixels_of_unit_variance_go_with_strides_in_the_3x3(net, tmp_path):
    # detectron2's configurations of ResNeXt: BGR, divided by the deviations.
    state = names_of(net) | {"pixel_mean": torch.tensor(MEAN[::-1]).view(3, 1, 1)}
    state |= {"pixel_std": torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1)}
    torch.save({"model": state}, tmp_path / "m.pth")
    read = read_trained(tmp_path / "m.pth")
    assert read["settings"]["model"]["stride_in_1x1"] is False
    given = state["backbone.bottom_up.stem.conv1.weight"]
    assert torch.equal(read["model"]["backbone.conv1.weight"], given.flip(1))


def test_pixels_may_be_rgb(net, tmp_path):
    state = names_of(net) | {"pixel_mean": torch.tensor(MEAN).view(3, 1, 1)}
    torch.save({"model": state | {"pixel_std": torch.ones(3, 1, 1)}}, tmp_path / "m.pth")
    read = read_trained(tmp_path / "m.pth")
    given = state["backbone.bottom_up.stem.conv1.weight"]
    expected = given * torch.tensor(STD).view(1, 3, 1, 1)  # ours divides by it first
    torch.testing.assert_close(read["model"]["backbone.conv1.weight"], expected)


def test_a_resnext_that_does_not_say_takes_pixels_of_unit_variance(tmp_path):
    # As every ResNeXt of detectron2's zoo.
    net = Emulated("resnext50_32x4d", num_classes=3, caffe=False)
    state = names_of(net)
    torch.save({"model": state}, tmp_path / "m.pth")
    read = read_trained(tmp_path / "m.pth")
    assert read["settings"]["model"]["stride_in_1x1"] is False
    given = state["backbone.bottom_up.stem.conv1.weight"]
    assert torch.equal(read["model"]["backbone.conv1.weight"], given.flip(1))


def test_pixels_of_another_mean_are_refused(net, tmp_path):
    state = names_of(net) | {"pixel_mean": torch.full((3, 1, 1), 127.5)}
    torch.save({"model": state | {"pixel_std": torch.ones(3, 1, 1)}}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match="takes the mean .127.5.* off its pixels"):
        load(tmp_path / "m.pth")
