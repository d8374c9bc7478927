"""A typed setting that nothing reads in its combination is refused, before anything is written."""

import os
import subprocess
import sys
import time
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path

import pytest

from retinanet.checks import KEYS, check, keys_of, value_text
from retinanet.cli.main import composer
from retinanet.config import BOTTLENECKS, EvalConfig
from retinanet.training.run_directory import changed_keys

ROOT = Path(__file__).resolve().parents[1]
CONDITIONAL = [key for key in KEYS.values() if key.read]

# Command; what is said about it; which choice would read it.
UNREAD = [
    ("loss.star_beta=1", "loss.star_beta=1 has no effect with loss.name=focal", "loss=focal_star"),
    ("loss=ohem loss.star_beta=1", "no effect with loss.name=ohem", "loss=focal_star"),
    ("loss=ohem loss.gamma=2", "loss.gamma=2 has no effect", "loss=focal or loss=focal_star"),
    ("loss=focal_star loss.ohem_anchors=9", "with loss.name=focal_star", "loss=ohem"),
    ("loss.ohem_nms_iou=0.4", "with loss.name=focal", "loss=ohem"),
    ("loss.ohem_ratio=3", "with loss.name=focal", "loss=ohem"),
    ("loss.ohem_ratio=null", "loss.ohem_ratio=null has no effect", "loss=ohem"),
    ("loss.box_beta=0.7", "with loss.box=l1", "loss.box=smooth_l1"),
    ("loss.box=giou loss.box_beta=0.7", "with loss.box=giou", "loss.box=smooth_l1"),
    ("experiment=coco_r50_strong loss.box_beta=1", "with loss.box=giou", "loss.box=smooth_l1"),
    ("optim=adamw optim.momentum=0.5", "with optim.name=adamw", "optim=sgd"),
    ("experiment=coco_r50_v2 optim.momentum=0.5", "with optim.name=adamw", "optim=sgd"),
    ("schedule=cosine schedule.milestones=[0.1]", "schedule.milestones=[0.1]", "decay=steps"),
    ("schedule.decay=constant schedule.decay_factor=1", "decay=constant", "schedule.decay=steps"),
    ("schedule.warmup_steps=0 schedule.warmup_factor=1", "warmup_steps=0", "another schedule."),
    ("schedule.max_steps=9 schedule.epochs=3", "schedule.max_steps=9", "schedule.max_steps=null"),
    ("experiment=paper_r50_600 schedule.epochs=3", "max_steps=90000", "schedule.max_steps=null"),
    ("matching.ignore_crowd=no matching.crowd_iof=0.9", "crowd=false", "ignore_crowd=true"),
    ("model.norm_eps=0.001", "with model.norm=group", "another model.norm"),
    ("model.head_depth=0 model.head_channels=8", "model.head_depth=0", "another model.head_depth"),
    ("model.head_depth=0 model.head_norm=none", "model.head_depth=0", "another model.head_depth"),
    ("model=resnet18 model.stride_in_1x1=false", "backbone=resnet18", "model.backbone=resnet50"),
    ("init_from=x.pt model.weights=y.pth", "with init_from=x.pt", "init_from=null"),
    # Names whose values are those of another file.
    ("loss=ohem loss.name=focal", "keep the other values of loss=ohem", "choose loss=focal"),
    ("loss.name=ohem", "keep the other values of loss=focal", "choose loss=ohem"),
    ("optim.name=adamw", "keep the other values of optim=demo", "choose optim=adamw"),
    ("data=coco data.name=shapes", "keep the other values of data=coco", "choose data=shapes"),
]
UNREAD_BY_EVAL = [
    "data.train_images=x",
    "data.train_annotations=x",
    "data.keep_empty=false",
    "evaluation.every_epochs=5",
    "evaluation.patience=3",
]


@pytest.fixture(scope="module")
def train():
    with composer("train") as reader:
        yield reader


def refusal(read, typed):
    with pytest.raises(ValueError) as caught:
        read(typed)
    return " ".join(str(caught.value).split())


@pytest.mark.parametrize(("typed", "because", "choice"), UNREAD, ids=[row[0] for row in UNREAD])
def test_what_nothing_reads_is_refused_with_the_choice_that_reads_it(train, typed, because, choice):
    message = refusal(train.command, typed.split())
    assert because in message
    assert choice in message


def test_every_condition_has_a_row_of_the_table():
    words = {word.partition("=")[0] for typed, _, _ in UNREAD for word in typed.split()}
    assert {key.name for key in CONDITIONAL} <= words


@pytest.mark.parametrize(
    ("key", "when"),
    [(key, key.read) for key in CONDITIONAL],
    ids=lambda x: getattr(x, "name", getattr(x, "key", None)),
)
def test_a_setting_is_taken_where_its_condition_on_another_one_holds(train, key, when):
    assert when.key in KEYS and when.key != key.name
    for value in when.values:
        check(when.key, value)
    assert not when.holds(object()) or when.other
    value = ("batch" if when.key == "model.norm" else 3) if when.other else when.values[0]
    file = {"loss.name": "loss", "optim.name": "optim"}.get(when.key, when.key)
    needed = [f"{file}={value_text(value)}"]
    if when.key == "model.backbone":
        needed.insert(0, "model=resnet50")
    settings = attrgetter(key.name)(train.command(needed).settings)
    train.command([*needed, f"{key.name}={value_text(settings)}"])


def test_a_setting_without_a_condition_is_taken_by_every_loss_optimizer_and_schedule(train):
    free = [
        key.name
        for key in KEYS.values()
        if not key.read and key.name.startswith(("loss.", "optim.", "schedule."))
    ]
    for choice in ("loss=ohem", "loss=focal_star", "optim=adamw", "schedule=1x", "data=coco"):
        settings = train.command([choice]).settings
        for name in free:
            train.command([choice, f"{name}={value_text(attrgetter(name)(settings))}"])


def test_backbones_with_bottlenecks_are_those_whose_strides_can_move():
    choices = KEYS["model.backbone"].limit.choices
    named = ("resnet50", "resnet101", "resnet152", "resnext")
    assert set(BOTTLENECKS) == {name for name in choices if name.startswith(named)}


def test_a_file_of_the_users_may_hold_what_nothing_reads_and_a_name_without_a_file(tmp_path):
    mine = (ROOT / "configs/loss/ohem.yaml").read_text() + "gamma: 0.0\n"
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss/mine.yaml").write_text(mine)
    with composer("train", str(tmp_path)) as reader:
        assert reader.command(["loss=mine", "loss.ohem_anchors=9"]).settings.loss.ohem_anchors == 9
        assert reader.command(["loss=ohem", "loss.name=ohem"]).settings.loss.name == "ohem"
        assert "values of loss=mine" in refusal(reader.command, ["loss=mine", "loss.name=focal"])


def test_a_run_that_recorded_values_of_what_nothing_reads_is_the_same_run(train):
    now = asdict(train.command([]).settings)
    before = now | {"loss": now["loss"] | {"star_beta": 1.0, "ohem_anchors": 128}}
    assert now["loss"]["star_beta"] is None
    assert changed_keys(before, now) == changed_keys(now, before) == {}
    before["loss"]["gamma"] = 1.0
    assert changed_keys(before, now) == {"loss.gamma": (1.0, 2.0)}


@pytest.mark.parametrize(
    ("typed", "run"),
    [
        ("loss.star_beta=0,1,2", ""),
        ("loss=ohem loss.gamma=0,2", ""),
        ("loss=focal,ohem loss.gamma=0,2", "This is the run loss=ohem loss.gamma=0 of the sweep."),
        ("loss.box=smooth_l1,giou loss.box_beta=0.1,1", "the run loss.box=giou loss.box_beta=0.1"),
        ("loss=ohem,focal loss.ohem_anchors=64", ""),
    ],
)
def test_a_sweep_with_a_run_that_would_not_read_a_setting_is_refused(train, typed, run):
    message = refusal(train.sweep, typed.split())
    assert "has no effect with" in message
    assert run in message


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("train.py", ["loss.star_beta=1"]),
        ("train.py", ["-m", "loss=focal,ohem", "loss.gamma=0,2"]),
        ("eval.py", ["checkpoint=x.pt", "evaluation.patience=3"]),
    ],
)
def test_the_programs_refuse_in_one_line_at_once_and_write_nothing(tmp_path, program, arguments):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / program), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "has no effect" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - start < 10  # torch alone takes seconds more on a busy machine


@pytest.mark.parametrize("typed", UNREAD_BY_EVAL)
def test_eval_refuses_what_only_training_reads(train, typed):
    with composer("eval") as reader:
        message = refusal(reader.command, ["checkpoint=x", typed])
    assert message == f"{typed} has no effect in eval.py: only train.py reads it; drop it."
    train.command(["data=coco", typed])


def test_eval_takes_everything_else():
    refused = {typed.partition("=")[0] for typed in UNREAD_BY_EVAL}
    assert {key.name for key in keys_of(EvalConfig).values() if key.train_only} == refused
    with composer("eval") as reader:
        settings = reader.command(["checkpoint=x", "data=coco"]).settings
        for name in reader.keys.keys() - refused:
            own = f"{name}={value_text(attrgetter(name)(settings))}"
            reader.command(sorted({"checkpoint=x", "data=coco", own}))
