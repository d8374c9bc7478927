"""Starting from another run's weights: rows of classes by name, another backbone refused."""

import copy
from pathlib import Path

import pytest
import torch

from retinanet.model.anchors import AnchorGenerator
from retinanet.model.retinanet import RetinaNet
from retinanet.training import start as module
from retinanet.training.checkpoint import final_weights, save_checkpoint
from retinanet.weights.read import read_trained

OLD = ["cat", "dog", "bird"]


def transfer(model: RetinaNet, path: Path, names: list[str]) -> list[str]:
    return module.transfer(model, read_trained(path), str(path), names)


def write_checkpoint(path: Path, model: RetinaNet, names: list[str], **more) -> Path:
    """What ``best.pt`` holds, with random numbers everywhere so that no two rows are equal."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    state = {
        "model": model.state_dict(),
        "step": 7,
        "classes": {"names": names, "ids": list(range(1, len(names) + 1))},
        "settings": {"model": {"backbone": "tiny", "norm": "group"}},
        **more,
    }
    save_checkpoint(path, state)
    return path


@pytest.fixture
def checkpoint(tmp_path, make_model) -> Path:
    return write_checkpoint(tmp_path / "best.pt", make_model(1), OLD)


def rows(state: dict, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (9, K, ...) and bias (9, K) of the class prediction."""
    weight, bias = (state[f"head.cls.pred.{kind}"] for kind in ("weight", "bias"))
    return weight.unflatten(0, (9, num_classes)), bias.unflatten(0, (9, num_classes))


def test_the_same_classes_take_everything(checkpoint, make_model):
    model = make_model(2)
    lines = transfer(model, checkpoint, OLD)
    given = torch.load(checkpoint, weights_only=True)["model"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, given[name]), name
    assert "kept cat, dog, bird; restarted from model.prior: none" in lines[1]


def test_rows_follow_their_names_and_new_classes_start_from_the_prior(checkpoint, make_model):
    model = make_model(2, num_classes=4, prior=0.03)
    fresh = copy.deepcopy(model.state_dict())
    lines = transfer(model, checkpoint, ["bird", "horse", "cat", "cow"])
    given = torch.load(checkpoint, weights_only=True)["model"]
    for old, new, start in zip(
        rows(given, 3), rows(model.state_dict(), 4), rows(fresh, 4), strict=True
    ):
        assert torch.equal(new[:, 0], old[:, 2])  # bird
        assert torch.equal(new[:, 2], old[:, 0])  # cat
        assert torch.equal(new[:, [1, 3]], start[:, [1, 3]])
    for name, value in model.state_dict().items():
        if not name.startswith("head.cls.pred"):
            assert torch.equal(value, given[name]), name
    assert "kept bird, cat; restarted from model.prior: horse, cow" in lines[1]


def test_without_a_common_class_the_backbone_is_still_taken(checkpoint, make_model):
    model = make_model(2, num_classes=2)
    fresh = copy.deepcopy(model.state_dict())
    lines = transfer(model, checkpoint, ["car", "bus"])
    given = torch.load(checkpoint, weights_only=True)["model"]
    assert torch.equal(model.backbone.stem[0].weight, given["backbone.stem.0.weight"])
    for kind in ("weight", "bias"):
        name = f"head.cls.pred.{kind}"
        assert torch.equal(model.state_dict()[name], fresh[name])
    assert "kept none; restarted from model.prior: car, bus" in lines[1]


def test_a_wider_head_restarts_and_says_so(checkpoint, make_model):
    model = make_model(2, head_channels=24)
    fresh = copy.deepcopy(model.state_dict())
    lines = transfer(model, checkpoint, OLD)
    assert torch.equal(model.state_dict()["head.cls.pred.weight"], fresh["head.cls.pred.weight"])
    assert "kept none" in lines[1]
    assert "head.cls.pred.weight" in lines[2]


def test_class_outputs_of_another_number_of_anchors_restart(tmp_path, make_model):
    # 2 anchors of 3 classes have as many rows as 3 of 2: only the number of anchors differs.
    path = write_checkpoint(
        tmp_path / "best.pt",
        make_model(1, anchors=AnchorGenerator(ratios=(1, 2), scales=(1,))),
        OLD,
    )
    model = make_model(2, num_classes=2, anchors=AnchorGenerator(scales=(1,)))
    fresh = copy.deepcopy(model.state_dict())
    lines = transfer(model, path, OLD[:2])
    for kind in ("weight", "bias"):
        name = f"head.cls.pred.{kind}"
        assert torch.equal(model.state_dict()[name], fresh[name])
    assert "kept none; restarted from model.prior: cat, dog" in lines[1]


def test_the_average_is_preferred(tmp_path, make_model):
    model = make_model(1)
    average = {name: value + 1 for name, value in model.state_dict().items()}
    path = write_checkpoint(tmp_path / "last.pt", make_model(1), OLD, ema=average)
    transfer(model, path, OLD)
    assert torch.equal(model.state_dict()["fpn.p6.bias"], average["fpn.p6.bias"])
    assert final_weights({"model": {"a": 1}, "ema": None}) == {"a": 1}
    assert final_weights({"model": {"a": 1}}) == {"a": 1}


def test_another_backbone_is_refused(checkpoint):
    settings = {"weights": None, "norm": "group", "frozen_stages": 0}
    model = RetinaNet("resnet18", 3, fpn_channels=16, head_depth=1, head_channels=16, **settings)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="only 0% of the backbone.*model.backbone=tiny"):
        transfer(model, checkpoint, OLD)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_norms_may_be_trained_on_as_batch_norms(tmp_path, make_model):
    frozen = make_model(1, norm="frozen", load_later=True)
    path = write_checkpoint(tmp_path / "best.pt", frozen, OLD)
    model = make_model(2, norm="batch")
    transfer(model, path, OLD)
    for name, value in frozen.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(("old", "new"), [("batch", "group"), ("group", "batch")])
def test_batch_norms_do_not_become_group_norms(tmp_path, make_model, old, new):
    path = write_checkpoint(tmp_path / "best.pt", make_model(1, norm=old), OLD)
    with pytest.raises(ValueError, match="of the backbone's parameters fit"):
        transfer(make_model(2, norm=new), path, OLD)


def test_other_conventions_of_the_weights_are_told():
    own = {
        group: dict.fromkeys([k for g, k in module.CONVENTIONS if g == group], 1)
        for group in ("data", "model", "anchors")
    }
    given = copy.deepcopy(own)
    given["data"]["resize"] = "torchvision"
    (line,) = module.other_conventions(given, own)
    assert "trained with data.resize=torchvision; set it" in line
    assert module.other_conventions(own, own) == []
