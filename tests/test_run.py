"""Whole runs on a few small images: complete, exact after interruptions, strict on mistakes."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from small_runs import (
    CLASSES,
    ROOT,
    assert_same_bits,
    command,
    rows,
    settings_of,
    steps_on_board,
    train,
    write_split,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch._dynamo.testing import CompileCounter

from retinanet import build, run
from retinanet.cli import jobs
from retinanet.cli.main import composer
from retinanet.evaluation import detect
from retinanet.fast.fold_batchnorm import for_inference
from retinanet.model.retinanet import RetinaNet
from retinanet.signals import Stopped
from retinanet.tools.first_loss import describe_model
from retinanet.tools.predict.detector import load
from retinanet.training.checkpoint import load_checkpoint, save_checkpoint
from retinanet.training.progress import EarlyStopping
from retinanet.training.run_directory import read_rows
from retinanet.training.trainer import Trainer

# pycocotools 2.0 calls numpy the way numpy 1 expected.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_split(root, "train", range(10, 16))
    write_split(root, "val", range(20, 23))
    return root


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    """A run of six steps with an evaluation after the third, not interrupted."""
    output = tmp_path_factory.mktemp("runs") / "whole"
    train(data, output, *WHOLE)
    return output


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    """Plots take most of the time of a small run; ``whole`` draws them, before this begins."""
    monkeypatch.setattr("retinanet.cli.jobs.save_png", lambda *_: None)
    monkeypatch.setattr("retinanet.tools.report.publish.save_png", lambda *_: None)
    monkeypatch.setattr("retinanet.tools.report.run_report.inline_svg", lambda _: None)


# How ``whole`` was started.
WHOLE = ("evaluation.every_epochs=1", "log_images=2")


class Killed(BaseException):
    """Ends a run where it stands."""


def interrupt(monkeypatch, when: int) -> None:
    """Kill the run before it has made ``when`` steps."""
    original = Trainer.one_step

    def one_step(self, micro_batches):
        if self.step == when:
            raise Killed
        original(self, micro_batches)

    monkeypatch.setattr(Trainer, "one_step", one_step)


def train_and_kill(data: Path, output: Path, when: int, *overrides: str) -> None:
    """A run that is killed before it has made ``when`` steps."""
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        interrupt(patched, when)
        train(data, output, *overrides)


def assert_same_run(first: Path, second: Path, *, board: bool = False) -> None:
    assert rows(first) == rows(second)
    assert_same_bits(first, second)
    if board:
        assert steps_on_board(first) == steps_on_board(second)


def step_of(output: Path, name: str = "last") -> int:
    return load_checkpoint(output / f"checkpoints/{name}.pt")["step"]


def metrics_of(folder: Path) -> dict:
    return json.loads((folder / "eval/metrics.json").read_text())


def log_of(output: Path) -> str:
    return (output / "train.log").read_text()


# A run


def test_a_run_leaves_what_the_readme_says(whole):
    files = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    expected = {"config.yaml", "overrides.txt", "environment.json", "train.log", "metrics.jsonl"}
    expected |= {f"checkpoints/{name}.pt" for name in ("last", "previous", "best")}
    expected |= {f"eval/{name}" for name in ("metrics.json", "detections.json", "per_class.csv")}
    expected |= {"plots/curves.png", "plots/pr_curves.png", "plots/train_batch.png"}
    assert expected <= files
    assert any(name.startswith("plots/predictions") for name in files)
    assert any(name.startswith("tensorboard/events") for name in files)
    assert not any("partial" in name for name in files)


def test_rows_carry_the_promised_names(whole):
    training = [row for row in rows(whole) if "AP" not in row]
    evaluations = [row for row in rows(whole) if "AP" in row]
    assert [row["step"] for row in training] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in evaluations] == [3, 6]
    assert {"step", "epoch", "loss/class", "loss/box", "lr"} <= training[0].keys()
    assert "images_per_s" in (whole / "metrics.jsonl").read_text()
    names = {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"}
    assert evaluations[0].keys() == {"step", "epoch"} | names
    assert metrics_of(whole).keys() >= names


def test_the_board_has_the_rows_and_the_pictures(whole):
    board = EventAccumulator(str(whole / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    tags = board.Tags()
    assert set(tags["images"]) == {"train_batch", "predictions", "anchors"}
    assert set(tags["histograms"]) == {"p_t/positives", "p_t/background"}
    expected = [(row["step"], row["loss/class"]) for row in rows(whole) if "loss/class" in row]
    found = [(event.step, event.value) for event in board.Scalars("loss/class")]
    assert found == [(step, pytest.approx(value)) for step, value in expected]
    assert len(board.Scalars("val/AP")) == sum("AP" in row for row in rows(whole))


def test_the_rates_of_the_rows_follow_the_schedule(whole):
    lr = settings_of(command(whole, whole)).optim.lr
    expected = [
        lr * (0.1 + 0.9 * min(step / 2, 1)) * 0.5 * (1 + math.cos(math.pi * step / 6))
        for step in range(6)
    ]
    assert [row["lr"] for row in rows(whole) if "lr" in row] == pytest.approx(expected)


def test_the_log_says_what_to_expect_and_compares(whole):
    log = log_of(whole)
    for words in ("6 (2 without objects), 4 boxes", "first loss class", "anchors", "as expected"):
        assert words in log
    assert "NOT as expected" not in log
    assert "training images too" not in log
    # "first step class loss 1.13, closed form for its 9 positives 1.13: as expected"
    (line,) = [line for line in log.splitlines() if "closed form" in line]
    predicted = float(line.split("positives ")[1].split(":")[0])
    assert rows(whole)[0]["loss/class"] == pytest.approx(predicted, rel=0.05)


def test_the_best_checkpoint_is_all_that_detection_needs(whole, data):
    state = load_checkpoint(whole / "checkpoints/best.pt")
    assert state["classes"] == {"names": list(CLASSES), "ids": [1, 2]}
    assert state["settings"] == dataclasses.asdict(settings_of(command(data, whole, *WHOLE)))
    detector = load(whole / "checkpoints/best.pt", device="cpu")
    detector.postprocess.score_threshold = 0.0
    (detections,) = detector([data / "images" / "20.png"])
    assert len(detections.boxes) == len(detections.scores) == len(detections.names) > 0
    assert (detections.boxes[:, 2:] <= torch.tensor([128, 96])).all()
    assert set(detections.names) <= set(CLASSES)


def test_the_best_checkpoint_holds_the_average(whole):
    last = load_checkpoint(whole / "checkpoints/last.pt")
    best = load_checkpoint(whole / "checkpoints/best.pt")
    assert best["step"] == last["best"]["step"]
    if best["step"] == last["step"]:
        assert all(torch.equal(best["model"][key], last["ema"][key]) for key in last["ema"])
    name = "head.cls.pred.bias"
    assert not torch.equal(last["ema"][name], last["model"][name])


def test_both_checkpoints_hold_the_thresholds_of_the_evaluation(whole, tmp_path):
    best, last = (load_checkpoint(whole / f"checkpoints/{name}.pt") for name in ("best", "last"))
    written = metrics_of(whole)
    assert best["thresholds"] == {
        "iou": 0.5,
        "score": written["score_threshold"],
        "f1": written["F1"],
        "classes": [row["score_threshold"] for row in written["classes"]],
    }
    assert best["thresholds"].keys() == last["thresholds"].keys()
    assert load(whole / "checkpoints/best.pt", device="cpu").thresholds == best["thresholds"]
    del best["thresholds"]  # as in older ones
    save_checkpoint(tmp_path / "older.pt", best)
    assert load(tmp_path / "older.pt", device="cpu").thresholds is None


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ([0.5], "must list a score for each of its 2 classes, got no such list"),
        ({"iou": 0.5, "score": 0.5, "f1": 0.5}, "got no such list"),
        ({"iou": 0.5, "score": 0.5, "f1": 0.5, "classes": [0.5]}, "2 classes, got 1 of them"),
        ({"iou": 0.5, "score": 1.5, "f1": 0.5, "classes": [None, 0.5]}, "from 0 to 1, .* got 1.5"),
        ({"iou": 0.5, "score": 0.5, "f1": 0.5, "classes": [True, 0.5]}, "got True"),
        ({"iou": None, "score": 0.5, "f1": 0.5, "classes": [None, 0.5]}, "got None"),
        ({"iou": 0.5, "score": "0.5", "f1": None, "classes": [None, 0.5]}, "got '0.5'"),
    ],
)
def test_thresholds_that_are_none_are_refused(whole, tmp_path, thresholds, message):
    state = load_checkpoint(whole / "checkpoints/best.pt") | {"thresholds": thresholds}
    save_checkpoint(tmp_path / "changed.pt", state)
    with pytest.raises(ValueError, match=rf"changed\.pt: the checkpoint's thresholds .*{message}"):
        load(tmp_path / "changed.pt", device="cpu")


# Continued


@pytest.mark.parametrize(("when", "workers"), [(4, 0), (5, 2)])
def test_interrupted_and_continued_is_the_same_to_the_bit(data, whole, tmp_path, when, workers):
    overrides = [*WHOLE, f"data.workers={workers}"]
    train_and_kill(data, tmp_path / "run", when, *overrides)
    assert step_of(tmp_path / "run") == 3
    train(data, tmp_path / "run", *overrides)
    assert_same_run(tmp_path / "run", whole)


def test_rows_are_the_same_when_saving_and_logging_do_not_meet(data, tmp_path):
    overrides = ["save_every_steps=2", "log_every_steps=3", "schedule.epochs=3"]
    train(data, tmp_path / "whole", *overrides)
    train_and_kill(data, tmp_path / "run", 5, *overrides)
    train(data, tmp_path / "run", *overrides)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_killed_during_an_evaluation_it_is_made_again_once(data, whole, tmp_path, monkeypatch):
    overrides = WHOLE
    # After the row of the evaluation is written, before the checkpoint knows of it.
    with monkeypatch.context() as patched:
        patched.setattr(
            "retinanet.cli.jobs.publish", lambda *_, **__: (_ for _ in ()).throw(Killed)
        )
        with pytest.raises(Killed):
            train(data, tmp_path / "run", *overrides)
    assert [row["step"] for row in rows(tmp_path / "run") if "AP" in row] == [3]
    train(data, tmp_path / "run", *overrides)
    assert_same_run(tmp_path / "run", whole, board=True)


@pytest.mark.slow
def test_a_process_killed_without_warning_continues_to_the_same_bits(data, whole, tmp_path):
    output = tmp_path / "run"
    typed = command(data, output, *WHOLE, "data.workers=2")
    line = [sys.executable, str(ROOT / "train.py"), *typed]
    # Sums are split over threads: equal bits need as many as the run in this process has.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not (output / "checkpoints/last.pt").exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (output / "eval/metrics.json").exists() or rows(output)[-1]["step"] < 6
    subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert_same_run(output, whole)


def test_a_finished_run_is_reported_and_left_alone(data, whole, monkeypatch):
    before = (whole / "checkpoints/last.pt").read_bytes(), rows(whole)
    interrupt(monkeypatch, 6)
    train(data, whole, *WHOLE)
    assert ((whole / "checkpoints/last.pt").read_bytes(), rows(whole)) == before
    assert log_of(whole).count("finished   6 steps") == 2


def test_another_setting_is_refused_before_anything_changes(data, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    with pytest.raises(ValueError, match="loss.gamma=2.0, this command asks for loss.gamma=1.0"):
        train(data, whole, *WHOLE, "loss.gamma=1")
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_auto_is_recorded_as_what_it_was_and_continues_as_that(data, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "choose_precision", lambda name, device: "bf16")
    train(data, tmp_path / "run", "precision=auto", "schedule.max_steps=2")
    config = tmp_path / "run/config.yaml"
    assert "\nprecision: bf16\n" in config.read_text()
    assert load_checkpoint(tmp_path / "run/checkpoints/best.pt")["settings"]["precision"] == "bf16"

    monkeypatch.setattr(run, "choose_precision", lambda name, device: "fp32")  # another machine
    train(data, tmp_path / "run", "precision=auto", "schedule.max_steps=3")
    assert rows(tmp_path / "run")[-1]["step"] == 3
    assert "\nprecision: bf16\n" in config.read_text()
    with pytest.raises(ValueError, match="holds a run with precision=bf16"):
        train(data, tmp_path / "run", "precision=fp32", "schedule.max_steps=3")


@pytest.mark.parametrize(("split", "more"), [("train", range(10, 15)), ("val", range(20, 22))])
def test_changed_annotations_are_not_continued_on(tmp_path, split, more):
    write_split(tmp_path / "data", "train", range(10, 14))
    write_split(tmp_path / "data", "val", range(20, 21))
    train(tmp_path / "data", tmp_path / "run", "schedule.epochs=1")
    write_split(tmp_path / "data", split, more)
    with pytest.raises(ValueError, match=rf"{split}\.json is not the file that .*init_from="):
        train(tmp_path / "data", tmp_path / "run", "schedule.epochs=2")


def test_a_run_stopped_by_a_bad_image_continues_without_it(tmp_path):
    write_split(tmp_path / "data", "train", range(10, 14))
    write_split(tmp_path / "data", "val", range(20, 21))
    (tmp_path / "data/images/12.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"12\.png.*data\.on_bad_image=skip"):
        train(tmp_path / "data", tmp_path / "run")
    train(tmp_path / "data", tmp_path / "run", "data.on_bad_image=skip")
    assert "finished   4 steps" in log_of(tmp_path / "run")


def test_a_damaged_checkpoint_gives_way_to_the_one_before(data, tmp_path):
    output = tmp_path / "run"
    train(data, output, "save_every_steps=2", "schedule.epochs=1")
    last = output / "checkpoints/last.pt"
    last.write_bytes(last.read_bytes()[:-500])
    train(data, output, "save_every_steps=2", "schedule.epochs=2")
    assert load_checkpoint(last)["step"] == 6
    assert "The checkpoint before it is used" not in (output / "metrics.jsonl").read_text()


def test_a_model_alone_is_nothing_to_continue_from(data, tmp_path):
    output = tmp_path / "run"
    train(data, output, "schedule.epochs=1")
    shutil.copy(output / "checkpoints/best.pt", output / "checkpoints/last.pt")
    with pytest.raises(ValueError, match=r"last\.pt holds a model without the state of its train"):
        train(data, output, "schedule.epochs=2")


def copy_with_other_images(data: Path, other: Path) -> None:
    shutil.copytree(data, other)
    for path in (other / "images").iterdir():
        path.write_bytes(path.read_bytes() + b"0")


def test_a_moved_data_set_is_named_and_other_images_are_refused(data, tmp_path):
    output, moved, other = (tmp_path / name for name in ("run", "moved", "other"))
    train(data, output, "schedule.epochs=1")
    shutil.copytree(data, moved)
    copy_with_other_images(data, other)
    kept = (output / "config.yaml").read_bytes()
    for epochs in (1, 2):  # finished, and extended
        with pytest.raises(ValueError, match="have the same names and other sizes") as refused:
            train(other, output, f"schedule.epochs={epochs}")
        assert f"data.root={data};" in str(refused.value)
        assert f"data.root={other} " in str(refused.value)
    assert (output / "config.yaml").read_bytes() == kept
    train(moved, output, "schedule.epochs=2")
    log = log_of(output)
    assert f"moved      data.root from {data} to {moved} (image files of the same sizes)" in log
    assert rows(output)[-1]["step"] == 6
    train(other, output, "schedule.epochs=2", "overwrite=true")
    assert rows(tmp_path / "run.old-1")[-1]["step"] == 6
    stored = load_checkpoint(output / "checkpoints/last.pt")
    assert stored["settings"]["data"]["root"] == str(other)
    # One replaced image of the same folder is a repair; older checkpoints say nothing.
    one = next((other / "images").iterdir())
    one.write_bytes(one.read_bytes() + b"0")
    train(other, output, "schedule.epochs=2")
    for name in ("last", "previous"):
        path = output / f"checkpoints/{name}.pt"
        if path.exists():
            state = load_checkpoint(path)
            save_checkpoint(path, {k: v for k, v in state.items() if not k.endswith("_files")})
    train(data, output, "schedule.epochs=2")
    assert "not compared: an older checkpoint" in log_of(output)


def test_an_evaluation_of_other_images_is_not_that_of_the_run(data, whole, tmp_path):
    other = tmp_path / "other"
    copy_with_other_images(data, other)
    before = (whole / "eval/metrics.json").read_bytes()
    evaluate(whole / "checkpoints/best.pt", f"data.root={other}")
    assert (whole / "eval/metrics.json").read_bytes() == before
    assert (whole / "eval_val/eval/metrics.json").exists()
    shutil.rmtree(whole / "eval_val")


def test_early_stopping_ends_a_run_that_does_not_get_better(data, tmp_path):
    # The rate is too small to change anything: no evaluation is better than the first.
    overrides = ["evaluation.every_epochs=1", "evaluation.patience=2", "optim.lr=1e-12"]
    train(data, tmp_path / "run", *overrides, "schedule.epochs=9")
    assert [row["step"] for row in rows(tmp_path / "run") if "AP" in row] == [3, 6, 9]
    # A longer run does not help, and the log says what does.
    train(data, tmp_path / "run", *overrides, "schedule.epochs=12")
    assert max(row["step"] for row in rows(tmp_path / "run")) == 9
    first, second = re.findall("finished   (.*)", log_of(tmp_path / "run"))
    why = "early stopping: 2 evaluations without a better one, and evaluation.patience=2. The same"
    assert first.startswith("9 of 27 steps; ") and why in first
    assert second.startswith("9 of 36 steps; ") and why in second
    train(data, tmp_path / "run", *overrides[:1], *overrides[2:], "schedule.epochs=12")
    assert log_of(tmp_path / "run").rpartition("finished   ")[2].startswith("36 steps; best AP")


def test_more_epochs_beside_a_number_of_steps_are_no_longer_run(data, tmp_path):
    for epochs in (4, 9):
        typed = command(data, tmp_path / "run", "schedule.max_steps=3")
        settings = settings_of(typed)
        settings.schedule.epochs = epochs  # as a settings file gives them
        jobs.train(settings, typed)
    assert "extended" not in log_of(tmp_path / "run")


def test_without_objects_to_find_the_latest_weights_are_best_and_patience_does_not_count(
    data, tmp_path
):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    found = json.loads((root / "val.json").read_text())
    (root / "val.json").write_text(json.dumps(found | {"annotations": []}))
    output = tmp_path / "run"
    train(root, output, "evaluation.every_epochs=1", "evaluation.patience=1", "schedule.epochs=3")
    evaluations = [(row["step"], row["AP"]) for row in rows(output) if "AP" in row]
    assert evaluations == [(3, None), (6, None), (9, None)]
    assert step_of(output, "best") == 9
    log = log_of(output)
    assert "finished   9 steps; AP n/a: nothing to find; best.pt is the latest, step 9" in log


def test_undefined_numbers_lose_against_no_defined_one():
    stopping = EarlyStopping()
    APs = [None, None, 0.2, None, 0.1, 0.3]
    assert [stopping.add(s, {"AP": AP}) for s, AP in enumerate(APs, start=1)] == [
        *(True, True, True, False, False, True)
    ]
    assert stopping.best == {"AP": 0.3, "step": 6}
    # Patience counts evaluations with an AP only, also those of a checkpoint that counted others.
    assert stopping.add(7, {"AP": 0.1}) is stopping.add(8, {"AP": None}) is False
    assert stopping.without_improvement == 1
    older = {"best": {"AP": None, "step": 3}, "evaluated_step": 9, "fruitless": 2}
    assert EarlyStopping.of(older).without_improvement == 0


def test_early_stopping_that_was_interrupted_makes_no_further_step(data, tmp_path, monkeypatch):
    overrides = ["evaluation.every_epochs=1", "evaluation.patience=1", "optim.lr=1e-12"]
    train(data, tmp_path / "whole", *overrides, "schedule.epochs=9")

    def tell(*_: object, **__: object) -> None:
        if len(rows(tmp_path / "run")) == 8:  # six steps and the second evaluation
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("retinanet.cli.jobs.log_evaluation", tell)
        with pytest.raises(Killed):
            train(data, tmp_path / "run", *overrides, "schedule.epochs=9")
    train(data, tmp_path / "run", *overrides, "schedule.epochs=9")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# Other starts


def test_a_run_may_start_from_another_with_other_classes(data, whole, tmp_path):
    write_split(tmp_path / "data", "train", range(10, 14), classes=("disc", "square"))
    write_split(tmp_path / "data", "val", range(20, 21), classes=("disc", "square"))
    best = whole / "checkpoints/best.pt"
    train(tmp_path / "data", tmp_path / "run", f"init_from={best}", "schedule.max_steps=1")
    log = log_of(tmp_path / "run")
    assert "kept square; restarted from model.prior: disc" in log
    assert "closed form" not in log


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (range(12, 17), "2 of 5 validation images are training images too (12.png, 13.png)"),
        (range(10, 14), "every validation image is a training image too (10.png, 11.png, 12.png,"),
    ],
)
def test_images_in_both_sets_are_warned_of_before_the_first_step(tmp_path, ids, words):
    write_split(tmp_path / "data", "train", range(10, 14))
    write_split(tmp_path / "data", "val", ids)
    train(tmp_path / "data", tmp_path / "run", "schedule.max_steps=1")
    log = log_of(tmp_path / "run")
    assert f"warning    {words}" in log
    assert log.index(words) < log.index("first step")


@pytest.mark.parametrize("name", ["train", "val"])
def test_training_needs_annotations_in_both_sets(tmp_path, name):
    for split, ids in (("train", range(10, 14)), ("val", range(20, 21))):
        write_split(tmp_path / "data", split, ids)
    path = tmp_path / "data" / f"{name}.json"
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"data.{name}_annotations=.*no list of annotations"):
        train(tmp_path / "data", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def spoil(monkeypatch, *when: int) -> list[int]:
    """Make a loss not a number in the steps after so many; the ids of their images come here."""
    original = Trainer.one_step
    seen: list[int] = []

    def one_step(self, micro_batches):
        if self.step in when:
            first = micro_batches[0]
            micro_batches = [first._replace(images=first.images.float() * math.nan)]
            seen.extend(first.image_ids.tolist())
        original(self, micro_batches)

    monkeypatch.setattr(Trainer, "one_step", one_step)
    return seen


def test_a_loss_that_is_not_a_number_stops_the_run_with_a_report(data, tmp_path, monkeypatch):
    seen = spoil(monkeypatch, 4)
    overrides = ["log_every_steps=3", "save_every_steps=1"]
    with pytest.raises(FloatingPointError, match="1 steps had a loss .* max_bad_steps=0"):
        train(data, tmp_path / "run", *overrides)
    state = load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    assert state["step"] == 6  # seen when the row was due
    assert all(value.isfinite().all() for value in state["model"].values())
    (entry,) = read_rows(tmp_path / "run/bad_steps.jsonl")
    assert (entry["step"], entry["loss/class"], entry["grad_norm"]) == (5, "nan", "nan")
    assert [image["id"] for image in entry["images"]] == seen
    assert entry["images"][0]["file"] == str(data / "images" / f"{seen[0]}.png")
    assert len(entry["grad_norms_before"]) == 4
    assert "gradients before were ordinary" in entry["likely_cause"]
    assert (
        f"warning    step 5 is not finite and changed no weights: class loss nan, box loss nan, "
        f"gradient norm nan, learning rate {entry['lr']:.3g}, images {seen}. The loss is not finite"
    ) in log_of(tmp_path / "run")
    # The same command stops at once, and makes no step.
    with pytest.raises(FloatingPointError, match="max_bad_steps=0"):
        train(data, tmp_path / "run", *overrides)


def test_bad_steps_are_skipped_and_counted_up_to_a_number(data, tmp_path, monkeypatch):
    spoil(monkeypatch, 1, 4)
    with pytest.raises(FloatingPointError, match="2 steps"):
        train(data, tmp_path / "run", "max_bad_steps=1")
    train(data, tmp_path / "whole", "max_bad_steps=2")
    assert sum(row["bad_steps"] for row in rows(tmp_path / "whole") if "AP" not in row) == 2
    # With more allowed it goes on, to where a run would be that was allowed as many from the start.
    train(data, tmp_path / "run", "max_bad_steps=2")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    reports = [read_rows(tmp_path / name / "bad_steps.jsonl") for name in ("run", "whole")]
    assert reports[0] == reports[1]
    assert [entry["step"] for entry in reports[0]] == [2, 5]


def test_a_report_over_a_restart_is_the_report_without_it(data, tmp_path, monkeypatch):
    overrides = ["schedule.max_steps=12", "save_every_steps=4", "log_every_steps=10"]
    overrides.append("max_bad_steps=1")
    spoil(monkeypatch, 2)
    train(data, tmp_path / "whole", *overrides)
    for when in (5, 11):  # before and after the row that reports it
        train_and_kill(data, tmp_path / "run", when, *overrides)
    train(data, tmp_path / "run", *overrides)
    reports = [read_rows(tmp_path / name / "bad_steps.jsonl") for name in ("run", "whole")]
    assert reports[0] == reports[1]
    assert [(entry["step"], len(entry["images"])) for entry in reports[0]] == [(3, 2)]
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


# What cannot be written


def refuse_to_save(monkeypatch, name: str, *when: int) -> None:
    def save(path, state, **options):
        if path.name == name and state["step"] in when:
            raise OSError(28, "No space left on device", str(path))
        save_checkpoint(path, state, **options)

    monkeypatch.setattr(run, "save_checkpoint", save)


def test_the_checkpoint_before_the_last_is_of_an_older_step_after_an_evaluation_too(whole):
    # The last step is saved before its evaluation, and again with its result.
    assert (step_of(whole), step_of(whole, "previous")) == (6, 3)


def test_a_failed_save_stops_the_run_and_the_one_before_is_left(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        refuse_to_save(patched, "last.pt", 4)
        with pytest.raises(OSError, match="No space left on device"):
            train(data, tmp_path / "run", "save_every_steps=1")
    assert step_of(tmp_path / "run") == 3
    train(data, tmp_path / "run", "save_every_steps=1")
    assert step_of(tmp_path / "run") == 6


def test_a_failed_save_may_be_warned_of(data, whole, tmp_path, monkeypatch, capsys):
    refuse_to_save(monkeypatch, "last.pt", 2, 4)
    overrides = ["save_every_steps=1", "on_failed_save=continue", "evaluation.every_epochs=1"]
    train(data, tmp_path / "run", *overrides)
    said = capsys.readouterr().out
    assert said.count("No space left on device") == 2
    assert "Training goes on without it." in said
    assert_same_bits(tmp_path / "run", whole)


def test_a_damaged_checkpoint_does_not_replace_the_good_one_before_it(data, tmp_path, monkeypatch):
    overrides = ["save_every_steps=1", "schedule.epochs=3"]
    train_and_kill(data, tmp_path / "run", 5, *overrides)
    folder = tmp_path / "run/checkpoints"
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:-1000])
    original = Path.replace

    def replace(self, target):
        if Path(target).name == "last.pt":
            raise Killed
        return original(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        with pytest.raises(Killed):
            train(data, tmp_path / "run", *overrides)
    assert load_checkpoint(folder / "previous.pt")["step"] == 4
    train(data, tmp_path / "run", *overrides)
    assert load_checkpoint(folder / "last.pt")["step"] == 9


def test_a_best_checkpoint_that_was_not_written_can_be_replaced_by_a_worse(
    data, tmp_path, monkeypatch
):
    refuse_to_save(monkeypatch, "best.pt", 3)
    train(data, tmp_path / "run", "on_failed_save=continue", "evaluation.every_epochs=1")
    best = load_checkpoint(tmp_path / "run/checkpoints/best.pt")
    assert best["step"] == best["best"]["step"] == 6


def test_rows_without_a_checkpoint_are_not_dropped_in_silence(data, tmp_path, monkeypatch, capsys):
    train(data, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    train(data, tmp_path / "run")
    assert "has no checkpoint although it has rows" in capsys.readouterr().out


def test_a_batch_norm_over_one_value_is_refused_with_what_helps(data, tmp_path):
    small = ["data.min_size=32", "data.max_size=32", "model.norm=batch", "optim.batch_size=1"]
    with pytest.raises(ValueError, match="one value per channel.*model.norm=frozen or group, or"):
        train(data, tmp_path / "run", *small)
    assert (
        "model.norm=frozen"
        in json.loads((tmp_path / "run/run.json").read_text())["stops"][0]["why"]
    )


def test_an_evaluation_that_does_not_fit_names_its_own_setting(data, tmp_path, monkeypatch):
    def detect_batch(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(detect, "detect_batch", detect_batch)
    with pytest.raises(MemoryError, match="lower evaluation.batch_size="):
        train(data, tmp_path / "run")


# Told to stop


def stop_in_step(monkeypatch, when: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal in the middle of a step."""
    original = Trainer.one_step

    def one_step(self, micro_batches):
        if self.step == when - 1:
            os.kill(os.getpid(), number)
        original(self, micro_batches)

    monkeypatch.setattr(Trainer, "one_step", one_step)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
@pytest.mark.parametrize("when", [1, 3, 4])
def test_a_signal_ends_the_run_after_its_step_and_loses_nothing(
    data, whole, tmp_path, monkeypatch, name, when
):
    overrides = WHOLE
    before = signal.getsignal(getattr(signal, name))
    with monkeypatch.context() as patched:
        stop_in_step(patched, when, getattr(signal, name))
        with pytest.raises(Stopped):
            train(data, tmp_path / "run", *overrides)
    assert signal.getsignal(getattr(signal, name)) == before
    assert step_of(tmp_path / "run") == when
    log = log_of(tmp_path / "run")
    assert f"stopped    by {name} after step {when} of 6" in log
    train(data, tmp_path / "run", *overrides)
    assert_same_run(tmp_path / "run", whole, board=True)


@pytest.mark.slow
def test_a_signal_between_rows_changes_no_row(data, tmp_path, monkeypatch):
    overrides = ["log_every_steps=4", "schedule.max_steps=9"]
    train(data, tmp_path / "whole", *overrides)
    with monkeypatch.context() as patched:
        stop_in_step(patched, 6)
        with pytest.raises(Stopped):
            train(data, tmp_path / "run", *overrides)
    train(data, tmp_path / "run", *overrides)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_signal_ends_an_evaluation_between_two_batches(data, whole, tmp_path, monkeypatch):
    overrides = [*WHOLE, "evaluation.batch_size=1"]
    batches = []

    def detect_batch(*given):
        batches.append(given)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*given)

    original = detect.detect_batch
    with monkeypatch.context() as patched:
        patched.setattr(detect, "detect_batch", detect_batch)
        with pytest.raises(Stopped):
            train(data, tmp_path / "run", *overrides)
    assert len(batches) == 1
    assert load_checkpoint(tmp_path / "run/checkpoints/last.pt")["evaluated_step"] == 0
    train(data, tmp_path / "run", *overrides)
    assert_same_run(tmp_path / "run", whole)


def test_epochs_may_rise_and_the_log_says_what_the_rate_does(data, tmp_path):
    overrides = ["schedule=cosine", "schedule.warmup_steps=0"]
    train(data, tmp_path / "run", *overrides)
    train(data, tmp_path / "run", *overrides, "schedule.epochs=4")
    assert [row["step"] for row in rows(tmp_path / "run") if "lr" in row] == [*range(1, 13)]
    log = log_of(tmp_path / "run")
    assert "extended   schedule.epochs from 2 to 4; the rate follows the schedule of the" in log
    assert "longer run from here on" in log


def test_a_compiled_model_is_not_what_the_average_predicts_with(monkeypatch, data, tmp_path):
    monkeypatch.setattr(torch, "compile", lambda method, **_: lambda *given: method(*given))
    settings = settings_of(command(data, tmp_path, "compile=true"))
    model = build.build_model(settings, 2)
    trainer = build.build_trainer(
        settings, model, CLASSES, total_steps=1, device=torch.device("cpu")
    )
    images, sizes = torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]])
    torch.nn.init.constant_(trainer.ema.model.head["cls"].pred.bias, 5.0)
    assert trainer.ema.model.eval()(images, sizes)[0].mean() > 3
    assert model.eval()(images, sizes)[0].mean() < 0


def test_a_compiled_model_is_compiled_once_for_images_of_all_sizes(monkeypatch, data, tmp_path):
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    torch.compiler.reset()
    settings = settings_of(command(data, tmp_path, "compile=true"))
    model = build.build_model(settings, 2)
    cpu = torch.device("cpu")
    trainer = build.build_trainer(settings, model, CLASSES, total_steps=1, device=cpu)
    # As wide, as high and as square as the paper's images get.
    for height, width in ((320, 544), (544, 320), (320, 320), (352, 448), (512, 352)):
        trainer.network(torch.zeros(2, 3, height, width), torch.tensor([[height, width]] * 2))
    assert counter.frame_count == 1
    network = for_inference(model, "fp32", compiled=True)
    for height, width in ((320, 544), (544, 320)):
        network(torch.zeros(2, 3, height, width), torch.tensor([[height, width]] * 2))
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["precision=fp16"], "precision=fp16 needs a GPU"),
        (["model.norm=sync"], "model.norm=sync needs GPUs"),
        (["device=cuda"], "device=cuda, but torch finds no GPU"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_needs_a_gpu_says_so_and_leaves_nothing(data, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        train(data, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


# The three settings of the paper


def closed_form(output: Path, alpha: float | None, gamma: float, prior: float) -> float:
    """Written out again: alpha (1 - pi)^gamma (-ln pi), (1 - alpha) pi^gamma (-ln(1 - pi))."""
    ones, zeros = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    P = rows(output)[0]["positives"]
    # Of the two images of a step.
    anchors = 2 * float(log_of(output).split("anchors    ")[1].split()[0])
    positive = ones * (1 - prior) ** gamma * -math.log(prior)
    negative = zeros * prior**gamma * -math.log(1 - prior)
    # Between 1 and 2 y = 0 of every anchor; ignored anchors are few.
    return positive + (P * 1 + (anchors - P) * 2) * negative / P


@pytest.mark.parametrize(
    ("overrides", "alpha", "gamma", "prior"),
    [
        ([], 0.25, 2.0, 0.01),
        (["loss.alpha=0.75"], 0.75, 2.0, 0.01),
        (["loss.alpha=null"], None, 2.0, 0.01),
        (["loss.gamma=0"], 0.25, 0.0, 0.01),
        (["loss.gamma=0.5"], 0.25, 0.5, 0.01),
        (["model.prior=0.1"], 0.25, 2.0, 0.1),
        (["loss.alpha=0.5", "loss.gamma=1", "model.prior=0.5"], 0.5, 1.0, 0.5),
    ],
)
def test_alpha_gamma_and_prior_make_the_first_loss(data, tmp_path, overrides, alpha, gamma, prior):
    train(data, tmp_path / "run", "schedule.max_steps=1", *overrides)
    expected = closed_form(tmp_path / "run", alpha, gamma, prior)
    assert rows(tmp_path / "run")[0]["loss/class"] == pytest.approx(expected, rel=0.05)


def test_the_three_settings_arrive_from_the_command_line(data, tmp_path):
    typed = ["schedule.max_steps=1", "loss.alpha=0.5", "loss.gamma=1", "model.prior=0.1"]
    line = [sys.executable, str(ROOT / "train.py"), *command(data, tmp_path / "run", *typed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(line, env=environment, check=True, capture_output=True)
    expected = closed_form(tmp_path / "run", 0.5, 1.0, 0.1)
    assert rows(tmp_path / "run")[0]["loss/class"] == pytest.approx(expected, rel=0.05)


def test_alpha_by_name_reaches_the_loss(data, tmp_path):
    settings = settings_of(command(data, tmp_path, "loss.alpha={square: 0.1, default: 0.9}"))
    loss = build.build_loss(settings, CLASSES)
    assert loss.alpha.tolist() == pytest.approx([0.1, 0.9])
    with pytest.raises(ValueError, match="loss.alpha names circle.*its classes are square, bar"):
        build.resolve_alpha({"circle": 0.1, "default": 0.5}, CLASSES)
    with pytest.raises(ValueError, match="no value for bar; add them, or an entry 'default'"):
        build.resolve_alpha({"square": 0.1}, CLASSES)
    with pytest.raises(ValueError, match="3 numbers for 2 classes"):
        build.resolve_alpha([0.1, 0.2, 0.3], CLASSES)


@pytest.mark.parametrize("override", ["loss.normalizer=ema", "loss.alpha=[0.2,0.4]"])
def test_a_first_loss_without_closed_form_is_not_compared(data, tmp_path, override):
    train(data, tmp_path / "run", "schedule.max_steps=1", override)
    log = log_of(tmp_path / "run")
    assert "so the first step may differ too" in log
    assert ", not compared" in log
    assert "as expected" not in log


# Evaluation of a checkpoint


def evaluate(checkpoint: Path, *overrides: str) -> None:
    typed = [f"checkpoint={checkpoint}", "device=cpu", "log_images=0", *overrides]
    with composer("eval") as reader:
        settings = reader.command(typed).settings
    jobs.evaluate(settings, typed)


def custom(root: Path, output: Path) -> list[str]:
    typed = ["data=custom", "data.val_images=images", "data.val_annotations=val.json"]
    return [*typed, f"data.root={root}", f"output_dir={output}"]


def test_the_checkpoint_gives_the_ap_of_its_run(whole, tmp_path):
    evaluate(whole / "checkpoints/best.pt", f"output_dir={tmp_path}")
    ours, of_run = metrics_of(tmp_path), metrics_of(whole)
    assert all(ours[key] == of_run[key] for key in ("AP", "AP50", "AR100"))
    files = [(root / "eval/detections.json").read_text() for root in (tmp_path, whole)]
    assert json.loads(files[0]) == json.loads(files[1])


def test_the_checkpoint_keeps_how_it_was_scored(data, tmp_path):
    run = tmp_path / "run"
    how = ["evaluation.max_dets=[1,5,300]", "postprocess.detections=300", "evaluation.batch_size=2"]
    train(data, run, "schedule.max_steps=1", *how)
    evaluate(run / "checkpoints/best.pt", f"output_dir={tmp_path / 'same'}")
    same, of_run = metrics_of(tmp_path / "same"), metrics_of(run)
    assert same["max_dets"] == [1, 5, 300]
    assert (same["AP"], same["AR100"]) == (of_run["AP"], of_run["AR100"])
    # Without a choice it is the evaluation of the training: it belongs to the run.
    evaluate(run / "checkpoints/best.pt")
    assert not (run / "eval_changed").exists()
    evaluate(run / "checkpoints/best.pt", "evaluation.max_dets=[1,10,100]")
    assert metrics_of(run / "eval_changed")["max_dets"] == [1, 10, 100]


def test_data_of_other_classes_is_refused(whole, tmp_path):
    write_split(tmp_path / "data", "val", range(20, 21), classes=("disc", "ring"))
    overrides = custom(tmp_path / "data", tmp_path / "out")
    with pytest.raises(ValueError, match="checkpoint has square, bar, only the data disc, ring"):
        evaluate(whole / "checkpoints/best.pt", *overrides)
    assert not (tmp_path / "out").exists()


def test_classes_are_the_same_by_name_in_any_order(whole, tmp_path, data):
    ids = range(20, 23)
    write_split(tmp_path / "data", "val", ids, classes=CLASSES)
    file = tmp_path / "data/val.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 9, "name": "square"}, {"id": 4, "name": "bar"}]
    for annotation in content["annotations"]:
        annotation["category_id"] = {1: 9, 2: 4}[annotation["category_id"]]
    file.write_text(json.dumps(content))
    for root, output in ((data, "same"), (tmp_path / "data", "other")):
        evaluate(
            whole / "checkpoints/best.pt",
            *custom(root, tmp_path / output),
            *("data.workers=0", "postprocess.score_threshold=0"),
        )
    same, other = (metrics_of(tmp_path / output)["classes"] for output in ("same", "other"))
    for first, second in zip(same, other, strict=True):
        assert (first["name"], first["AP"]) == (second["name"], second["AP"])
    assert {row["name"]: row["category_id"] for row in other} == {"square": 9, "bar": 4}
    detections = json.loads((tmp_path / "other/eval/detections.json").read_text())
    assert {row["category_id"] for row in detections} == {4, 9}


@pytest.mark.parametrize(
    ("name", "override", "folder"),
    [
        ("last.pt", None, "eval_last"),
        ("best.pt", "evaluation.max_images=1", "eval_changed"),
        ("best.pt", "postprocess.score_threshold=0.5", "eval_changed"),
    ],
)
def test_only_the_best_as_trained_is_written_over_the_run(whole, name, override, folder):
    before = (whole / "eval/metrics.json").read_bytes()
    evaluate(whole / "checkpoints" / name, *([override] if override else []))
    assert (whole / folder / "eval/metrics.json").exists()
    assert (whole / "eval/metrics.json").read_bytes() == before
    shutil.rmtree(whole / folder)


def test_a_folder_that_cannot_be_written_is_named_before_the_evaluation(whole, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        evaluate(whole / "checkpoints/best.pt", f"output_dir={tmp_path / 'file'}")


# What the log says of the network


def test_the_log_names_the_network_and_what_of_it_is_frozen():
    with composer("train") as reader:
        settings = reader.command(["model=resnet18", "model.frozen_stages=2"]).settings.model
    model = RetinaNet(
        backbone="resnet18", num_classes=3, prior=0.01, weights=settings.weights, load_later=True,
        norm="frozen", frozen_stages=2, fpn_channels=16, head_depth=1, head_channels=16,
    )  # fmt: skip
    first, second = describe_model(model, settings)
    # The stem has 64 filters of 7 x 7 x 3, C2 four convolutions of 3 x 3 x 64 x 64.
    assert second == f"frozen     stem, C2: {(64 * 147 + 4 * 9 * 64**2) / 1e6:.2f} M parameters"
    assert first.startswith("model      resnet18, IMAGENET1K_V1, frozen norm; 11.")
