"""torchvision's RetinaNets: read from their files they detect the same, and they go back."""

import argparse
import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import retinanet_resnet50_fpn

from retinanet import RetinaNet, load
from retinanet.build import load_model, recorded_settings
from retinanet.cli import jobs
from retinanet.cli.main import composer
from retinanet.losses import RetinaNetLoss
from retinanet.matching import Matcher
from retinanet.model.anchors import AnchorGenerator
from retinanet.training.checkpoint import save_checkpoint
from retinanet.training.start import transfer
from retinanet.weights.names import TORCHVISION, rename
from retinanet.weights.read import read_trained
from retinanet.weights.torchvision import write
from scripts.convert_checkpoint import convert
from scripts.torchvision_parity import differences, fit_norms, freeze_norms, spread_model

SIDE, LONG_SIDE = 224, 300


@pytest.fixture(scope="module")
def checkpoint(theirs, tmp_path_factory):
    path = tmp_path_factory.mktemp("tv") / "retinanet.pth"
    torch.save(theirs.state_dict(), path)
    return path


def load_small(path):
    detector = load(path)
    detector.settings.data.min_size, detector.settings.data.max_size = SIDE, LONG_SIDE
    return detector


def width_over_height(path):
    with Image.open(path) as file:
        return np.divide(*file.size)


@pytest.fixture(scope="module")
def photos(real_data):
    """Of several sizes and shapes, the narrowest and the widest among them."""
    paths = sorted((real_data("coco_slice") / "val2017").glob("*.jpg"))
    paths.sort(key=width_over_height)
    return [paths[0], paths[len(paths) // 3], paths[2 * len(paths) // 3], paths[-1]]


@pytest.fixture(scope="module", params=["v1", "v2"])
def theirs(request, photos):
    model = spread_model(request.param, seed=0, images=photos)
    model.transform.min_size, model.transform.max_size = (SIDE,), LONG_SIDE
    return model


def test_files_become_the_same_detections(theirs, checkpoint, photos):
    for difference in differences(theirs, load_small(checkpoint), photos):
        assert difference.logits < 1e-4, difference
        assert difference.deltas < 1e-4, difference
        assert difference.detections > 20, difference
        assert difference.unmatched == 0, difference
        assert difference.score < 1e-4, difference
        assert difference.box < 0.1, difference


def test_without_its_conventions_the_boxes_differ(theirs, checkpoint, photos):
    # The comparison above can fail.
    detector = load_small(checkpoint)
    detector.model.anchor_generator = AnchorGenerator()
    (difference,) = differences(theirs, detector, photos[:1])
    assert difference.box > 0.1 or difference.unmatched
    detector = load_small(checkpoint)
    detector.settings.data.resize = "antialias"
    (difference,) = differences(theirs, detector, photos[:1])
    assert difference.logits > 1e-3


def test_old_names_mean_the_same(tmp_path):
    new = spread_model("v1", seed=0).state_dict()
    old = {}  # as files of before torchvision 0.13 have them
    for name, value in new.items():
        name = re.sub(r"(_blocks\.\d)\.0\.", r"\1.", name)
        name = re.sub(r"_head\.conv\.(\d)\.0", lambda m: f"_head.conv.{2 * int(m[1])}", name)
        old[name] = value
    assert {"head.classification_head.conv.6.weight", "backbone.fpn.inner_blocks.2.bias"} <= {*old}
    models = []
    for state in (new, old):
        torch.save(state, tmp_path / "m.pth")
        models.append(read_trained(tmp_path / "m.pth")["model"])
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_it_goes_there_and_back(theirs, checkpoint, tmp_path, photos):
    convert(checkpoint, tmp_path / "ours.pt", "retinanet")
    convert(tmp_path / "ours.pt", tmp_path / "theirs.pth", "torchvision")
    back = torch.load(tmp_path / "theirs.pth", weights_only=True)
    given = theirs.state_dict()
    assert back.keys() == given.keys()
    for name in given:
        if "cls_logits" not in name:
            assert torch.equal(back[name], given[name]), name
    with torch.no_grad():
        theirs.load_state_dict(back)
    (difference,) = differences(theirs, load_small(tmp_path / "ours.pt"), photos[:1])
    assert (difference.unmatched, difference.score < 1e-4) == (0, True)


def made_as_printed(printed):
    """The model that the printed lines make."""
    lines = printed[printed.index("load ") :].splitlines()
    code = [line[11:] for line in lines if line.startswith(("load ", " " * 11))]
    scope = {}
    exec("\n".join(code), scope)
    return scope["model"]


def test_the_printed_lines_load_what_was_written(tmp_path):
    model = spread_model("v1", seed=1)
    torch.save(model.state_dict(), tmp_path / "v1.pth")
    printed = convert(tmp_path / "v1.pth", tmp_path / "theirs.pth", "torchvision")
    assert "retinanet_resnet50_fpn(" in printed
    made = made_as_printed(printed)
    assert made.head.classification_head.num_classes == 91
    assert (made.detections_per_img, made.topk_candidates) == (300, 1000)
    assert {m.eps for m in made.backbone.body.modules() if hasattr(m, "running_var")} == {0.0}


@pytest.mark.parametrize("num_classes", [3, 91])
def test_norms_and_classes_are_those_of_the_file(tmp_path, num_classes):
    frozen = num_classes == 91
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=num_classes)
    if frozen:
        freeze_norms(model.backbone, eps=0.0)
    # As torchvision's references write it, options included.
    options = argparse.Namespace(lr=0.01, data_path="/coco")
    torch.save({"model": model.state_dict(), "args": options, "epoch": 3}, tmp_path / "m.pth")
    settings = read_trained(tmp_path / "m.pth")["settings"]["model"]
    expected = ("frozen", 0.0) if frozen else ("batch", 1e-5)
    assert (settings["norm"], settings["norm_eps"]) == expected
    detector = load(tmp_path / "m.pth")
    if frozen:
        assert (detector.names[0], detector.category_ids[-1]) == ("person", 90)
    else:
        names = ("class_0", "class_1", "class_2")
        assert (detector.names, detector.category_ids) == (names, (0, 1, 2))


def test_it_trains_alike(tmp_path):
    # torchvision divides by the positives of each image; so can we, and then nothing differs.
    torch.manual_seed(5)
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    fit_norms(theirs, torch.randn(2, 3, SIDE, SIDE))
    freeze_norms(theirs.backbone, eps=1e-5)
    torch.save(theirs.state_dict(), tmp_path / "m.pth")
    theirs.transform.min_size, theirs.transform.max_size = (SIDE,), LONG_SIDE
    # In float64: forty layers of random weights make much of what float32 rounds.
    state = read_trained(tmp_path / "m.pth")
    ours = load_model(state, recorded_settings(state)).train().double()
    theirs = theirs.double()
    images = [torch.rand(3, 200, 250).double(), torch.rand(3, 224, 224).double()]
    boxes = [[[20, 30, 90, 120], [100, 10, 240, 190], [5, 5, 14, 12]], [[50, 60, 180, 190]]]
    targets = [
        {"boxes": torch.tensor(b, dtype=torch.float64), "labels": torch.arange(len(b))}
        for b in boxes
    ]
    expected = theirs.train()(images, targets)
    sum(expected.values()).backward()

    batch, resized = theirs.transform(images, targets)
    logits, deltas = ours.predict(batch.tensors)
    anchors = ours.anchors(*batch.tensors.shape[-2:])
    padded = torch.zeros(2, 3, 4)
    labels = torch.full((2, 3), -1)
    for i, target in enumerate(resized):
        padded[i, : len(target["boxes"])] = target["boxes"]
        labels[i, : len(target["labels"])] = target["labels"]
    match = Matcher()(anchors, padded, labels, torch.zeros(2, 0, 4))
    loss = RetinaNetLoss(normalizer="image", box="l1")
    losses = loss(logits, deltas, anchors, match, *loss.divisors([match]))
    sum(losses.values()).backward()
    for name, other in (("class", "classification"), ("box", "bbox_regression")):
        torch.testing.assert_close(losses[name].double(), expected[other], rtol=1e-5, atol=0)

    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    trained = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    assert len(trained) > 60
    for name, gradient in rename(trained, TORCHVISION)[0].items():
        scale = gradients[name].abs().max()
        assert (gradient - gradients[name]).abs().max() < 1e-5 * scale, name


def test_it_is_evaluated_from_the_command_line(tmp_path, real_data):
    torch.save(spread_model("v1", seed=0).state_dict(), tmp_path / "theirs.pth")
    typed = [
        f"checkpoint={tmp_path / 'theirs.pth'}",
        "data=coco",
        f"data.root={real_data('coco_slice')}",
        "data.min_size=64",
        "data.max_size=96",
        "data.workers=0",
        "evaluation.max_images=3",
        "log_images=0",
        f"output_dir={tmp_path / 'out'}",
        "device=cpu",
    ]
    with composer("eval") as reader:
        jobs.evaluate(reader.command(typed).settings, typed)
    metrics = json.loads((tmp_path / "out/eval/metrics.json").read_text())
    assert 0 <= metrics["AP"] < 0.5
    with composer("eval") as reader, pytest.raises(ValueError, match="does not say which data"):
        jobs.evaluate(reader.command(typed[:1]).settings, typed[:1])


def test_nameless_classes_want_data_with_as_many(tmp_path, real_data):
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=5)
    torch.save(model.state_dict(), tmp_path / "five.pth")
    typed = [f"checkpoint={tmp_path / 'five.pth'}", "data=coco", "device=cpu"]
    typed += [f"data.root={real_data('coco_slice')}", f"output_dir={tmp_path / 'out'}"]
    with composer("eval") as reader, pytest.raises(ValueError, match="detects 5 classes and does"):
        jobs.evaluate(reader.command(typed).settings, typed)
    assert not (tmp_path / "out").exists()


def test_a_run_starts_from_it(tmp_path):
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    freeze_norms(model.backbone, eps=0.0)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    state = read_trained(tmp_path / "theirs.pth")
    names = ["zebra", "unicorn"]
    ours = RetinaNet("resnet50", 2, p6_from="p5", load_later=True)
    lines = transfer(ours, state, "theirs.pth", names)
    assert "theirs.pth (torchvision v1)" in lines[0]
    assert "kept zebra; restarted from model.prior: unicorn" in lines[1]
    zebra = model.head.classification_head.cls_logits.bias.view(9, 91)[:, 24]
    assert torch.equal(ours.head["cls"].pred.bias.view(9, 2)[:, 0], zebra)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.norm", "group"),
        ("model.backbone", "tiny"),
        ("model.stride_in_1x1", True),
        ("model.head_channels", 64),
        ("anchors.offset", 0.5),
    ],
)
def test_what_torchvision_cannot_be_is_not_written(key, value):
    state = read_trained_of_ours(RetinaNet("resnet50", 2, p6_from="p5", load_later=True))
    group, name = key.split(".")
    state["settings"][group][name] = value
    with pytest.raises(ValueError, match=rf"cannot have {key}={str(value).lower()}[, ]"):
        write(state["model"], state["settings"], [1, 2])


def test_other_anchors_and_sizes_are_printed(tmp_path):
    model = RetinaNet("resnet50", 2, p6_from="p5", load_later=True)
    state = read_trained_of_ours(model)
    state["settings"]["anchors"]["sizes"] = [16.0, 32.0, 64.0, 128.0, 256.0]
    state["settings"]["data"]["min_size"] = 320
    state["settings"]["postprocess"]["score_threshold"] = 0.2
    save_checkpoint(tmp_path / "ours.pt", state)
    printed = convert(tmp_path / "ours.pt", tmp_path / "theirs.pth", "torchvision")
    theirs = made_as_printed(printed)
    assert (theirs.transform.min_size, theirs.transform.max_size) == ((320,), 1333)
    assert (theirs.score_thresh, theirs.detections_per_img) == (0.2, 100)
    assert theirs.anchor_generator.sizes[0] == pytest.approx(
        [16, 16 * 2 ** (1 / 3), 16 * 4 ** (1 / 3)]
    )


def test_a_model_of_other_width_is_made_from_parts(tmp_path):
    model = RetinaNet("resnet50", 2, fpn_channels=64, head_channels=64, load_later=True)
    state = read_trained_of_ours(model)
    state["settings"]["model"] |= {"fpn_channels": 64, "head_channels": 64, "p6_from": "c5"}
    save_checkpoint(tmp_path / "ours.pt", state)
    printed = convert(tmp_path / "ours.pt", tmp_path / "theirs.pth", "torchvision")
    assert "model.fpn_channels=64; make its RetinaNet from parts, with 2 classes" in printed


def read_trained_of_ours(model):
    with composer("train") as reader:
        settings = reader.command(["data=coco", "model.p6_from=p5"]).settings
    classes = {"names": ["a", "b"], "ids": [1, 2]}
    plain = dataclasses.asdict(settings)
    return {"model": model.state_dict(), "settings": plain, "classes": classes, "step": 1}


def test_checkpoints_from_before_a_setting_existed_still_detect(tmp_path):
    state = read_trained_of_ours(RetinaNet("resnet50", 2, p6_from="p5", load_later=True))
    for group, key in (("data", "resize"), ("model", "norm_eps"), ("model", "stride_in_1x1")):
        del state["settings"][group][key]
    del state["settings"]["anchors"]["rounding"], state["settings"]["postprocess"]["clip"]
    save_checkpoint(tmp_path / "old.pt", state)
    assert load(tmp_path / "old.pt").settings.data.resize == "antialias"
