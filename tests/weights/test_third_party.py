"""detectron2's and mmdetection's checkpoints: all names have a place, the detections are theirs."""

import pickle
import sys
import types

import numpy as np
import pytest
import torch
from emulated import MEAN, STD, Emulated, assert_same, assert_same_outputs, detectron2_resnet

from retinanet import load
from retinanet.weights.read import read_trained


def detectron2_names(net):
    """The parameters of an emulated network under detectron2's names."""
    state = detectron2_resnet(net.body.state_dict(), "backbone.bottom_up.")
    extra = net.fpn.extra_blocks
    modules = {"backbone.top_block.p6": extra.p6, "backbone.top_block.p7": extra.p7}
    for i in range(3):
        modules[f"backbone.fpn_lateral{i + 3}"] = net.fpn.inner_blocks[i][0]
        modules[f"backbone.fpn_output{i + 3}"] = net.fpn.layer_blocks[i][0]
    for i in range(4):
        modules[f"head.cls_subnet.{2 * i}"] = net.cls[i]
        modules[f"head.bbox_subnet.{2 * i}"] = net.box[i]
    modules |= {"head.cls_score": net.cls_pred, "head.bbox_pred": net.box_pred}
    state |= {f"anchor_generator.cell_anchors.{i}": torch.zeros(9, 4) for i in range(5)}
    return state | parameters(modules)


def mmdetection_names(net):
    """The parameters of an emulated network under mmdetection's names."""
    state = {f"backbone.{name}": value for name, value in net.body.state_dict().items()}
    norms = [name for name in state if name.endswith("running_var")]
    state |= {name.replace("running_var", "num_batches_tracked"): torch.tensor(0) for name in norms}
    extra = net.fpn.extra_blocks
    outputs = [*(block[0] for block in net.fpn.layer_blocks), extra.p6, extra.p7]
    modules = {f"neck.lateral_convs.{i}.conv": net.fpn.inner_blocks[i][0] for i in range(3)}
    modules |= {f"neck.fpn_convs.{i}.conv": conv for i, conv in enumerate(outputs)}
    modules |= {f"bbox_head.cls_convs.{i}.conv": net.cls[i] for i in range(4)}
    modules |= {f"bbox_head.reg_convs.{i}.conv": net.box[i] for i in range(4)}
    modules |= {"bbox_head.retina_cls": net.cls_pred, "bbox_head.retina_reg": net.box_pred}
    return state | parameters(modules)


def parameters(modules):
    return {
        f"{name}.{part}": getattr(module, part).detach()
        for name, module in modules.items()
        for part in ("weight", "bias")
    }


def config(style):
    return f"model = dict(backbone=dict(type='ResNet', style='{style}'), neck=dict(type='FPN'))"


def saved(path, **contents):
    torch.save(contents, path)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.pth"


@pytest.fixture(scope="module")
def net():
    """Pixels of BGR, strides in the 1x1."""
    torch.manual_seed(1)
    return Emulated("resnet50", caffe=True).eval()


@pytest.fixture(scope="module")
def state(net):
    return detectron2_names(net)


@pytest.fixture(scope="module")
def three_classes():
    return mmdetection_names(Emulated("resnet18", num_classes=3, caffe=False, relu_before_p7=False))


def assert_it_detects_the_same(path, net, image, order, *, clip_first):
    detector = load(path)
    detector.settings.data.min_size, detector.settings.data.max_size = 200, 400
    expected = net.detect(image, order, clip_first=clip_first)
    assert len(expected[0]) > 50
    assert_same(detector([image])[0], *expected)
    assert_same_outputs(detector, net, image, order)


# detectron2


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_detectron2_detects_the_same(net, state, suffix, image, tmp_path):
    path = tmp_path / f"model_final.{suffix}"
    if suffix == "pkl":
        arrays = {name: value.numpy() for name, value in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}))
    else:
        pixels = {"pixel_mean": torch.tensor(MEAN[::-1]).view(3, 1, 1)}
        pixels["pixel_std"] = torch.ones(3, 1, 1)
        saved(path, model=state | pixels, iteration=89999, optimizer={})
    assert_it_detects_the_same(path, net, image, "scale", clip_first=False)
    read = read_trained(path)
    assert read["classes"]["names"][:2] == ["person", "bicycle"]
    assert read["classes"]["ids"][-1] == 90
    assert read["settings"]["model"]["stride_in_1x1"] is True
    assert read["settings"]["postprocess"]["clip"] == "after_nms"
    assert read["settings"]["data"]["resize"] == "antialias"


def test_detectron2_with_a_resnet101_detects_the_same(image, path):
    torch.manual_seed(2)
    net = Emulated("resnet101", num_classes=4, caffe=True).eval()
    detector = load(saved(path, model=detectron2_names(net)))
    detector.settings.data.min_size, detector.settings.data.max_size = 200, 400
    assert detector.settings.model.backbone == "resnet101"
    assert_same_outputs(detector, net, image, "scale")


@pytest.mark.parametrize(
    ("added", "dropped", "message"),
    [
        ("head.centerness.weight", None, r"m\.pth: it looks like a RetinaNet of d.*centerness"),
        ("head.cls_subnet.1.weight", None, r"parameters are none of that model's.*subnet\.1\."),
        (None, "backbone.fpn_output4.bias", r"1 parameters are missing.*fpn\.output\.p4\.bias"),
        (None, "backbone.top_block.p7.weight", "of detectron2, but what would be fpn.p7.weight"),
        (None, "head.bbox_pred.bias", "of detectron2, but what would be head.box.pred.bias"),
    ],
)
def test_parameters_too_many_and_too_few_are_named(state, path, added, dropped, message):
    state = state | ({added: torch.zeros(1)} if added else {})
    saved(path, model={name: value for name, value in state.items() if name != dropped})
    with pytest.raises(ValueError, match=message):
        load(path)


def test_live_norms_are_read_as_frozen_ones(state, path):
    norms = [name for name in state if name.endswith("running_var")]
    counters = {n.replace("running_var", "num_batches_tracked"): torch.tensor(7) for n in norms}
    assert load(saved(path, model=state | counters)).settings.model.norm == "frozen"


@pytest.mark.parametrize(
    ("mean", "std", "factor"),
    [
        # detectron2's configurations of ResNeXt: BGR, divided by the deviations.
        (MEAN[::-1], STD[::-1], None),
        (MEAN, [1.0] * 3, STD),  # ours divides by it first
    ],
    ids=["bgr of unit variance", "rgb"],
)
def test_the_recorded_pixels_decide_the_first_convolution(state, path, mean, std, factor):
    pixels = {"pixel_mean": torch.tensor(mean), "pixel_std": torch.tensor(std)}
    read = read_trained(saved(path, model=state | pixels))
    given = state["backbone.bottom_up.stem.conv1.weight"]
    expected = given * torch.tensor(factor).view(1, 3, 1, 1) if factor else given.flip(1)
    torch.testing.assert_close(read["model"]["backbone.conv1.weight"], expected)
    assert read["settings"]["model"]["stride_in_1x1"] is (factor is not None)


def test_a_resnext_that_does_not_say_takes_pixels_of_unit_variance(path):
    # As every ResNeXt of detectron2's zoo.
    state = detectron2_names(Emulated("resnext50_32x4d", num_classes=3, caffe=False))
    read = read_trained(saved(path, model=state))
    assert read["settings"]["model"]["stride_in_1x1"] is False
    given = state["backbone.bottom_up.stem.conv1.weight"]
    assert torch.equal(read["model"]["backbone.conv1.weight"], given.flip(1))


def test_pixels_of_another_mean_are_refused(state, path):
    pixels = {"pixel_mean": torch.full((3, 1, 1), 127.5), "pixel_std": torch.ones(3, 1, 1)}
    with pytest.raises(ValueError, match="takes the mean .127.5.* off its pixels"):
        load(saved(path, model=state | pixels))


# mmdetection


@pytest.mark.parametrize(
    ("backbone", "style"),
    [
        ("resnet18", "pytorch"),
        ("resnet50", "caffe"),
        ("resnet50", "pytorch"),
        ("resnext101_64x4d", "pytorch"),
    ],
)
def test_mmdetection_detects_the_same(backbone, style, image, path):
    net = Emulated(backbone, caffe=style == "caffe", relu_before_p7=False).eval()
    saved(path, meta={"cfg": config(style)}, state_dict=mmdetection_names(net))
    assert_it_detects_the_same(path, net, image, "ratio", clip_first=True)


def test_a_backbone_that_we_do_not_have_is_refused(three_classes, path):
    state = {n: v for n, v in three_classes.items() if not n.startswith("backbone.layer4.1.")}
    with pytest.raises(ValueError, match=r"its backbone, of \(2, 2, 2, 1\) blocks, is none of"):
        read_trained(saved(path, state_dict=state))


@pytest.mark.parametrize(
    "meta",
    [
        {"dataset_meta": {"classes": ("red", "green", "blue")}},
        {"dataset_meta": {"CLASSES": ("red", "green", "blue")}},
        {"CLASSES": ("red", "green", "blue"), "config": config("pytorch")},
        {},
    ],
)
def test_classes_come_from_the_file_or_have_numbers(three_classes, meta, path):
    names = ("red", "green", "blue") if meta else ("class_0", "class_1", "class_2")
    assert load(saved(path, meta=meta, state_dict=three_classes)).names == names


@pytest.mark.parametrize("text", ['style="caffe"', "style = 'caffe'", '"style": "caffe"'])
def test_the_style_is_found_however_it_is_written(three_classes, text, path):
    saved(path, meta={"cfg": text}, state_dict=three_classes)
    assert read_trained(path)["origin"] == "mmdetection (caffe style)"


def test_deltas_in_other_units_are_refused(three_classes, path):
    text = config("pytorch") + ", bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2])"
    saved(path, meta={"cfg": text}, state_dict=three_classes)
    with pytest.raises(ValueError, match=r"target_stds=\[0.1, 0.1, 0.2, 0.2\]; only 1 is read"):
        read_trained(path)
    plain = text.replace("0.1, 0.1, 0.2, 0.2", "1.0, 1.0, 1.0, 1.0")
    saved(path, meta={"cfg": plain}, state_dict=three_classes)
    assert read_trained(path)["origin"] == "mmdetection (pytorch style)"


class HistoryBuffer:
    """Pickles as mmengine's does: an object with arrays."""

    def __init__(self):
        self.max_length, self._log_history = 3, np.array([1.0, 2.0])

    def mean(self):
        """One of the methods that it pickles by name."""

    def __getstate__(self):
        return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}


def test_logs_beside_the_weights_do_not_matter(three_classes, path, monkeypatch):
    module = "mmengine.logging.history_buffer"
    monkeypatch.setattr(HistoryBuffer, "__module__", module)
    fake = types.ModuleType(module)
    fake.HistoryBuffer = HistoryBuffer
    with monkeypatch.context() as installed:
        for name in ("mmengine", "mmengine.logging", module):
            installed.setitem(sys.modules, name, fake)
        log = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"epoch": 3}}
        saved(path, message_hub=log, state_dict=three_classes)
    assert read_trained(path)["origin"] == "mmdetection (pytorch style)"
