"""The benchmark measures what it says, and both sides of a race do the same work."""

import json
import math

import numpy as np
import pytest
import torch

from scripts import benchmark, benchmark_stages
from scripts.benchmark import Timing, race, rows_of, table
from scripts.benchmark_stages import Stage

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    """COCO's size is too large for a test."""
    monkeypatch.setattr(benchmark_stages, "COCO_SIZE", (256, 320))
    monkeypatch.setattr(benchmark_stages, "NUM_ANCHORS", 500)


def results(stage):
    return [work() for work in stage.contestants.values()]


def test_a_speed_is_relative_to_the_turn_of_the_same_round():
    timings = {"peer": Timing([2.0, 4.0, 6.0]), "ours": Timing([1.0, 1.0, 2.0])}
    _, row = rows_of(Stage("x", {}), timings, "shipped")
    assert (row["speed"], row["speed_min"], row["speed_max"]) == (3.0, 2.0, 4.0)
    assert row["seconds"] == 1.0


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

    stage = Stage("x", {"a": work})
    (row,) = rows_of(stage, race(stage, repeats=1), "shipped")
    assert max(row["slowest"], key=row["slowest"].get) == "aten::mm"
    assert 0.5 < row["slowest"]["aten::mm"] <= sum(row["slowest"].values()) <= 1
    assert len(row["slowest"]) <= benchmark.SLOWEST


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_focal_losses_have_one_gradient(small, dtype):
    theirs, ours = (one.float() for one in results(benchmark_stages.focal_loss(dtype, CPU)))
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert theirs.abs().max() > 0
    assert (theirs - ours).abs().max() <= tolerance * theirs.abs().max()


def test_both_matchers_find_the_same_positives(small):
    theirs, ours = results(benchmark_stages.matching(20, CPU))
    assert (theirs >= 0).sum() > 20
    assert torch.equal(theirs >= 0, ours.label[0] >= 0)


@pytest.mark.parametrize("crowded", [False, True])
def test_both_postprocesses_find_the_same(small, crowded):
    theirs, ours = results(benchmark_stages.postprocess(crowded, CPU))
    assert len(theirs[0]["scores"]) > 20
    torch.testing.assert_close(ours[0].scores, theirs[0]["scores"], rtol=0, atol=1e-5)


def test_both_evaluators_give_the_same_curves():
    stage = benchmark_stages.evaluation(num_images=20, num_objects=150, num_detections=900)
    for theirs, ours in zip(*results(stage), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert (ours > 0).any()


def test_arrays_hold_what_the_dicts_hold():
    dicts, arrays = results(benchmark_stages.detections(num_images=8, per_image=5))
    dicts.sort(key=lambda row: (row["image_id"], -row["score"]))
    np.testing.assert_allclose(arrays.boxes, [row["bbox"] for row in dicts], rtol=1e-6)
    np.testing.assert_array_equal(arrays.labels, [row["category_id"] for row in dicts])


def test_both_allocators_are_measured_in_processes_of_their_own(tmp_path, capsys):
    file = tmp_path / "figures.json"
    typed = ["postprocess", "--repeats", "1", "--output", str(file)]
    assert benchmark.main(typed) == 0
    assert benchmark.main([*typed, "--allocator", "shipped"]) == 0  # rows are replaced
    rows = json.loads(file.read_text())
    assert sorted(row["allocator"] for row in rows) == ["fixed"] * 4 + ["shipped"] * 4
    shown = capsys.readouterr().out
    assert shown.count("## Postprocess, crowded") == 2
    assert shown.count("|  | as shipped |  | fixed |  | memory |") == 2
    assert shown.count("|  | as shipped |  | memory |") == 2


@pytest.mark.slow
def test_a_step_of_each_is_timed():
    stage = benchmark_stages.training_step("resnet18", 64, 96, 1, CPU)
    rows = rows_of(stage, race(stage, 1), "shipped")
    names = ["torchvision fp32", "torchvision bf16", benchmark_stages.BEST, "retinanet fp32"]
    names.append("retinanet bf16")
    assert [row["contestant"] for row in rows] == names
    assert all(0 < row["seconds"] < math.inf for row in rows)
    assert rows[0]["speed"] == 1.0
    assert [row["same_precision"] is None for row in rows] == [True, True, True, True, False]
    assert 0 < rows[-1]["loss_error"] < 0.1

    text = table(rows)
    assert "## Training step, resnet18, 64 x 96, batch 1" in text
    seconds = rows[3]["seconds"]  # of a busy machine, some
    time = f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    assert f"| retinanet fp32 | {time} " in text
    assert "`convolution_backward` " in text.splitlines()[-1]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["loss", "matching", "postprocess", "step", "inference"])
def test_a_stage_runs_on_a_gpu(small, monkeypatch, name):
    step, inference = benchmark_stages.training_step, benchmark_stages.inference
    monkeypatch.setattr(
        benchmark_stages,
        "training_step",
        lambda backbone, height, width, images, device: step("resnet18", 64, 96, 1, device),
    )
    monkeypatch.setattr(
        benchmark_stages, "inference", lambda height, width, device: inference(64, 96, device)
    )
    typed = [name, "--device", "cuda", "--repeats", "1", "--allocator", "shipped"]
    assert benchmark.main(typed) == 0


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["matching", "fast"], "no stage fast; there are loss, matching"),
        (["data"], "--photos FOLDER"),
        (["--repeats", "0"], "at least one repeat"),
    ],
)
def test_mistakes_are_named(capsys, typed, message):
    with pytest.raises(SystemExit):
        benchmark.main(typed)
    assert message in capsys.readouterr().err


def test_a_batch_needs_some_files(capsys, tmp_path):
    typed = ["data", "--photos", str(tmp_path), "--allocator", "shipped"]
    assert benchmark.main(typed) == 1
    assert "holds 0 .jpg files; 4 make a batch" in capsys.readouterr().err
