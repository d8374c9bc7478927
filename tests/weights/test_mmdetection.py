"""mmdetection's checkpoints, of both styles: every name has a place, the detections are theirs."""

import sys
import types

import numpy as np
import pytest
import torch
from emulated import Emulated, assert_same, assert_same_outputs

from retinanet import load
from retinanet.weights.read import read_trained


def names_of(net):
    """The parameters of an emulated network under mmdetection's names."""
    state = {f"backbone.{name}": value for name, value in net.body.state_dict().items()}
    norms = [name for name in state if name.endswith("running_var")]
    state |= {name.replace("running_var", "num_batches_tracked"): torch.tensor(0) for name in norms}
    extra = net.fpn.extra_blocks
    outputs = [*(block[0] for block in net.fpn.layer_blocks), extra.p6, extra.p7]
    for part in ("weight", "bias"):
        for i in range(3):
            lateral = getattr(net.fpn.inner_blocks[i][0], part)
            state[f"neck.lateral_convs.{i}.conv.{part}"] = lateral
        for i, conv in enumerate(outputs):
            state[f"neck.fpn_convs.{i}.conv.{part}"] = getattr(conv, part)
        for i in range(4):
            state[f"bbox_head.cls_convs.{i}.conv.{part}"] = getattr(net.cls[i], part)
            state[f"bbox_head.reg_convs.{i}.conv.{part}"] = getattr(net.box[i], part)
        state[f"bbox_head.retina_cls.{part}"] = getattr(net.cls_pred, part)
        state[f"bbox_head.retina_reg.{part}"] = getattr(net.box_pred, part)
    return {name: value.detach() for name, value in state.items()}


def config(style):
    return f"model = dict(backbone=dict(type='ResNet', style='{style}'), neck=dict(type='FPN'))"


@pytest.mark.parametrize(
    ("trunk", "style"),
    [
        ("resnet18", "pytorch"),
        ("resnet50", "caffe"),
        ("resnet50", "pytorch"),
        ("resnet101", "caffe"),
        ("resnext101_64x4d", "pytorch"),
    ],
)
def test_it_detects_the_same(trunk, style, photo, tmp_path):
    net = Emulated(trunk, caffe=style == "caffe", relu_before_p7=False).eval()
    path = tmp_path / "retinanet.pth"
    torch.save({"meta": {"cfg": config(style)}, "state_dict": names_of(net)}, path)
    detector = load(path)
    detector.settings.data.min_size, detector.settings.data.max_size = 200, 400
    scores, labels, boxes = net.detect(photo, "ratio", clip_first=True)
    assert len(scores) > 50
    found = detector([photo])[0]
    assert_same(found, scores, labels, boxes)
    assert_same_outputs(detector, net, photo, "ratio")


@pytest.fixture(scope="module")
def three_classes():
    return names_of(Emulated("resnet18", num_classes=3, caffe=False, relu_before_p7=False))


def test_a_trunk_that_we_do_not_have_is_refused(three_classes, tmp_path):
    state = {n: v for n, v in three_classes.items() if not n.startswith("backbone.layer4.1.")}
    torch.save({"state_dict": state}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"its backbone, of \(2, 2, 2, 1\) blocks, is none of this"):
        read_trained(tmp_path / "m.pth")


@pytest.mark.parametrize(
    "meta",
    [
        {"dataset_meta": {"classes": ("red", "green", "blue")}},
        {"dataset_meta": {"CLASSES": ("red", "green", "blue")}},
        {"CLASSES": ("red", "green", "blue"), "config": config("pytorch")},
    ],
)
def test_classes_come_from_the_file(three_classes, meta, tmp_path):
    torch.save({"meta": meta, "state_dict": three_classes}, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").names == ("red", "green", "blue")


def test_classes_that_nobody_wrote_down_have_numbers(three_classes, tmp_path):
    torch.save({"state_dict": three_classes}, tmp_path / "m.pth")
    assert load(tmp_path / "m.pth").names == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize("text", ['style="caffe"', "style = 'caffe'", '"style": "caffe"'])
def test_the_style_is_found_however_it_is_written(three_classes, text, tmp_path):
    torch.save({"meta": {"cfg": text}, "state_dict": three_classes}, tmp_path / "m.pth")
    assert read_trained(tmp_path / "m.pth")["origin"] == "mmdetection (caffe style)"


def test_deltas_in_other_units_are_refused(three_classes, tmp_path):
    text = config("pytorch") + ", bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2])"
    torch.save({"meta": {"cfg": text}, "state_dict": three_classes}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"target_stds=\[0.1, 0.1, 0.2, 0.2\]; only 1 is read"):
        read_trained(tmp_path / "m.pth")
    plain = text.replace("0.1, 0.1, 0.2, 0.2", "1.0, 1.0, 1.0, 1.0")
    torch.save({"meta": {"cfg": plain}, "state_dict": three_classes}, tmp_path / "m.pth")
    assert read_trained(tmp_path / "m.pth")["origin"] == "mmdetection (pytorch style)"


class HistoryBuffer:
    """Pickles as mmengine's does: an object with arrays."""

    def __init__(self):
        self.max_length, self._log_history = 3, np.array([1.0, 2.0])

    def mean(self):
        """One of the methods that it pickles by name."""

    def __getstate__(self):
        return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}


def test_logs_beside_the_weights_do_not_matter(three_classes, tmp_path, monkeypatch):
    module = "mmengine.logging.history_buffer"
    monkeypatch.setattr(HistoryBuffer, "__module__", module)
    fake = types.ModuleType(module)
    fake.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging", module):
        monkeypatch.setitem(sys.modules, name, fake)
    log = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"epoch": 3}}
    torch.save({"message_hub": log, "state_dict": three_classes}, tmp_path / "m.pth")
    for name in ("mmengine", "mmengine.logging", module):
        monkeypatch.delitem(sys.modules, name)
    assert read_trained(tmp_path / "m.pth")["origin"] == "mmdetection (pytorch style)"
