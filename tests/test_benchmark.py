"""The benchmark measures what it says, and both sides of a race do the same work."""

import json
import math

import numpy as np
import pytest
import torch

from retinanet.model.retinanet import RetinaNet
from scripts import benchmark
from scripts.benchmarks import ends, networks, parts
from scripts.benchmarks.clock import Stage, Timing, race, ratios
from scripts.benchmarks.document import document

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """COCO's size is too large for a test."""
    monkeypatch.setattr(parts, "COCO_SIZE", (256, 320))
    monkeypatch.setattr(parts, "NUM_ANCHORS", 500)


def test_a_ratio_is_to_the_turn_just_before():
    peer, ours = Timing(seconds=[2.0, 4.0, 6.0]), Timing(seconds=[1.0, 1.0, 2.0])
    assert ratios(peer, ours) == (3.0, 2.0, 4.0)
    assert peer.median == 4.0


def test_contestants_take_turns():
    turns = []
    stage = Stage("x", {name: lambda name=name: turns.append(name) for name in "ab"})
    timings = race(stage, repeats=3)
    # Each warms up, is weighed and profiled by itself first.
    assert "".join(turns) == "aaabbb" + "ababab"
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]


def test_memory_is_what_the_work_added():
    def work():
        return torch.ones(64 * 2**20 // 4).sum()  # 64 MiB

    peak = race(Stage("x", {"a": work}), repeats=1)["a"].peak_mib
    if peak is None:
        pytest.skip("this system does not tell the peak of a process")
    assert 60 < peak < 80


def test_the_slowest_operators_are_named():
    def work():
        x = torch.ones(400, 400)
        for _ in range(20):
            x = x @ x

    shares = benchmark.slowest(race(Stage("x", {"a": work}), repeats=1)["a"].operators)
    assert max(shares, key=shares.get) == "aten::mm"
    assert 0.5 < shares["aten::mm"] <= sum(shares.values()) <= 1
    assert len(benchmark.slowest({str(i): 1.0 for i in range(9)})) == benchmark.SLOWEST


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_focal_losses_have_one_gradient(small, dtype):
    stage = parts.focal_loss_stage(dtype, CPU)
    gradients = []
    for work in stage.contestants.values():
        gradients.append(work().float())
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert gradients[0].abs().max() > 0
    assert (gradients[0] - gradients[1]).abs().max() <= tolerance * gradients[0].abs().max()


def test_both_matchers_find_the_same_positives(small):
    stage = parts.matching_stage(20, CPU)
    theirs, ours = (work() for work in stage.contestants.values())
    assert (theirs >= 0).sum() > 20
    assert torch.equal(theirs >= 0, ours.label[0] >= 0)


@pytest.mark.parametrize("crowded", [False, True])
def test_both_postprocesses_find_the_same(small, crowded):
    theirs, ours = (w() for w in parts.postprocess_stage(crowded, CPU).contestants.values())
    assert len(theirs[0]["scores"]) > 20
    torch.testing.assert_close(ours[0].scores, theirs[0]["scores"], rtol=0, atol=1e-5)


def test_both_evaluators_give_the_same_curves():
    stage = ends.evaluation_stage(num_images=20, num_objects=150, num_detections=900)
    for theirs, ours in zip(*(work() for work in stage.contestants.values()), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert (ours > 0).any()


def test_arrays_hold_what_the_dicts_hold():
    stage = ends.detections_stage(num_images=8, per_image=5)
    dicts, arrays = (work() for work in stage.contestants.values())
    dicts.sort(key=lambda row: (row["image_id"], -row["score"]))
    np.testing.assert_allclose(arrays.boxes, [row["bbox"] for row in dicts], rtol=1e-6)
    np.testing.assert_array_equal(arrays.labels, [row["category_id"] for row in dicts])


@pytest.mark.slow
def test_a_step_of_each_is_timed_and_kept(tmp_path, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(
        benchmark, "chosen", lambda args: [networks.training_step("resnet18", 64, 96, 1, CPU)]
    )
    file = tmp_path / "figures.json"
    typed = ["step", "--repeats", "1", "--allocator", "shipped", "--output", str(file)]
    assert benchmark.main(typed) == 0
    rows = json.loads(file.read_text())
    names = ["torchvision fp32", "torchvision bf16", networks.BEST, "retinanet fp32"]
    names.append("retinanet bf16")
    assert [row["contestant"] for row in rows] == names
    assert all(0 < row["seconds"] < math.inf and 0 < row["share_of_limit"] < 2 for row in rows)
    assert rows[0]["speed"] == 1.0
    assert [row["same_precision"] is None for row in rows] == [True, True, True, True, False]
    assert benchmark.main(typed) == 0  # again: rows are replaced
    assert len(json.loads(file.read_text())) == len(names)

    text = document(rows)
    assert "## Training step, resnet18, 64 x 96, batch 1" in text
    seconds = rows[3]["seconds"]  # of a busy machine, some
    time = f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    assert f"| retinanet fp32 | {time} " in text
    assert "`convolution_backward` " in text.splitlines()[-3]
    assert "Nearly all of it is convolution" in text.splitlines()[-1]


def test_the_loss_of_a_step_is_on_the_device_of_its_model():
    model = RetinaNet("tiny", 2, weights=None, norm="group", frozen_stages=0).to("meta")
    trainer = networks._trainer(model, "fp32")
    tensors = [*trainer.model.parameters(), *trainer.model.buffers(), *trainer.loss.buffers()]
    tensors += [group["params"][0] for group in trainer.optimizer.param_groups]
    assert trainer.loss.alpha is not None
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["loss", "matching", "postprocess", "step", "inference"])
def test_a_stage_runs_on_a_gpu(small, monkeypatch, name):
    step, inference = networks.training_step, networks.inference_stage
    monkeypatch.setattr(
        networks,
        "training_step",
        lambda backbone, height, width, images, device: step("resnet18", 64, 96, 1, device),
    )
    monkeypatch.setattr(
        networks, "inference_stage", lambda height, width, device: inference(64, 96, device)
    )
    typed = [name, "--device", "cuda", "--repeats", "1", "--allocator", "shipped"]
    assert benchmark.main(typed) == 0


def test_unknown_stages_are_named(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["matching", "fast"])
    assert "no stage fast; there are loss, matching" in capsys.readouterr().err


def test_photos_must_be_given(capsys, tmp_path):
    with pytest.raises(SystemExit):
        benchmark.main(["data"])
    assert "--photos FOLDER" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds 0 .jpg files; 4 make a batch"):
        ends.data_stage(tmp_path, 64)
