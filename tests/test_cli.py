"""What the command line accepts, refuses and says."""

import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path

import pytest

from retinanet.checks import KEYS, check, value_text
from retinanet.cli.main import composer
from retinanet.cli.sweep import MAX_LENGTH, changes_weights, run_name
from retinanet.signals import STATUS
from retinanet.training.run_directory import changed_keys

ROOT = Path(__file__).resolve().parents[1]
BIG = "1" + "0" * 400
CONDITIONAL = [key for key in KEYS.values() if key.read]

# Runs a program with torch forbidden: whatever it prints, it prints before torch.
WITHOUT_TORCH = f"""
import runpy, sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision"):
            raise SystemExit("torch was imported")
sys.meta_path.insert(0, Forbid())
sys.argv = sys.argv[1:]
sys.path.insert(0, {str(ROOT)!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# train.py with jobs that only write the files a sweep reads.
PRETEND = f"""
import dataclasses, json, os, sys, time, types
import yaml
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import retinanet.cli

def train(settings, overrides):
    root = Path(settings.output_dir)
    root.mkdir(parents=True, exist_ok=True)
    with Path("started").open("a") as file:
        file.write(root.name + "\\n")
    (root / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(settings)))
    if settings.loss.gamma == 1 and not Path("repaired").exists():
        raise ValueError("this run\\nis broken")
    if settings.loss.gamma == 7:
        raise KeyError("a mistake of ours")
    if settings.loss.gamma == 8:
        raise KeyboardInterrupt
    if settings.loss.gamma == 9:
        Path("pid").write_text(str(os.getpid()))
        time.sleep(60)
    if settings.loss.gamma == 6:
        os.kill(os.getpid(), 9)
    folder = root / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    AP = 0.25 + settings.loss.gamma / 10 + settings.seed / 100
    (folder / "metrics.json").write_text(json.dumps({{"AP": AP, "AP50": 0.5, "APs": None}}))
    (root / "train.log").write_text("0:00 run        x\\n0:01 finished   2 steps\\n")

retinanet.cli.jobs = types.ModuleType("retinanet.cli.jobs")
retinanet.cli.jobs.train, retinanet.cli.jobs.evaluate = train, None
sys.modules["retinanet.cli.jobs"] = retinanet.cli.jobs
from retinanet.cli.main import main
main("train")
"""


@pytest.fixture(scope="module")
def train():
    with composer("train") as reader:
        yield reader


def run(program, *arguments, cwd, **env):
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={"PATH": "", "OMP_NUM_THREADS": "1", **env},
    )


def flat(text):
    return " ".join(str(text).split())


def refused(reader, *typed):
    with pytest.raises(ValueError) as caught:
        reader.command(list(typed))
    return flat(caught.value)


def user_file(tmp_path, path, text):
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def refused_file(tmp_path, text, path="experiment/mine.yaml", typed="experiment=mine"):
    user_file(tmp_path, path, text)
    with pytest.raises(ValueError) as caught, composer("train", str(tmp_path)) as reader:
        reader.command([typed])
    return flat(caught.value)


# What is refused.


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("loss.gama=1", "loss.gamma"),
        ("gamma=1", "loss.gamma"),
        ("model.alpha=0.5", "loss.alpha"),
        ("loss/gamma=1", "loss.gamma"),
        ("pi=0.1", "model.prior"),
        ("learning_rate=0.1", "optim.lr"),
        ("bachsize=4", "optim.batch_size"),
        ("modle=tiny", "model"),
        ("name=x", "data.name or loss.name or optim.name?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(train, typed, meant):
    for prefix in ("", "+", "++", "~"):
        message = refused(train, prefix + typed)
        assert message.startswith(f"unknown key {typed.partition('=')[0]}; did you mean {meant}")


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        # Names.
        ("+xyzzy=1", "`python train.py --help` lists every key"),
        ("model.num_classes=3", "comes from the annotation file"),
        ("~loss.gamma", "settings cannot be removed"),
        ("loss.gamma", "write loss.gamma=VALUE"),
        ("hydra.run.dir=x", "would have no effect"),
        ("model@other=tiny", "did you mean model?"),
        ("loss.alpha.person=1", "loss.alpha has no parts; give it whole"),
        ("=1", "unknown key"),
        # Choices.
        ("loss={gamma:1}", "single settings are typed as loss.KEY=VALUE"),
        ("model=resnet51", "did you mean resnet50? (choices: mobilenet_v2, resnet101, "),
        ("data=recorded", "does not exist"),
        ("loss=null", "does not exist"),
        # Types and ranges.
        ("loss.gamma=[1", "cannot read"),
        ("loss.gamma=two", "must be a number such as 0.5 or 1e-4 (at least 0), got 'two'"),
        ("loss.gamma=null", "must be a number"),
        ("loss.gamma=nan", "must be at least 0, got nan"),
        ("loss.gamma=1e400", "must be at least 0, got inf"),
        ("loss.gamma=-1", "must be at least 0, got -1"),
        ("model.prior=0", "must lie in (0, 1)"),
        ("optim.batch_size=16.0", "must be a whole number"),
        ("schedule.max_steps=1e4", "must be a whole number such as 8 or null"),
        ("overwrite=2", "must be true or false"),
        ("data.on_bad_image=ignore", "one of stop, skip"),
        ("init_from=none", "write null"),
        ("output_dir=", "must be text"),
        ("anchors.ratios=1", "must be a list of numbers"),
        ("anchors.sizes=[32,64]", "must have 5 numbers"),
        ("anchors.ratios=[]", "must not be empty"),
        ("augment.scale=[2,1]", "must not decrease"),
        ("loss.alpha=1.5", "must lie in [0, 1]"),
        ("loss.alpha=x", "must be a number, a list"),
        ("loss.alpha=[0.5,2]", "loss.alpha[1] must lie in [0, 1]"),
        ("loss.alpha=[]", "must be a number, a list"),
        ("loss.alpha={}", "must be a number, a list"),
        ("loss.alpha={a:0.5,b:nan}", "loss.alpha[b] must lie in [0, 1]"),
        ("loss.alpha={кот:x}", "got {'кот': 'x'}"),
        ("loss.alpha={a:{b:1}}", "got {'a': {'b': 1}}"),
        ("loss.alpha={a:0.5,a:0.4}", "a is there twice; keep one"),
        ("loss.alpha={a}", "a map is 'loss.alpha={cat: 0.5, \"cat, wild\": 0.4, default: 0.25}'"),
        ("loss.gamma=0,1", "sweep over them with -m"),
        ("anchors.ratios=0.5,1", "give a list: 'anchors.ratios=[0.5,1]'"),
        ("data.max_size=5", "raise data.max_size"),
        ("matching.negative_iou=0.6", "above matching.positive_iou"),
        ("optim.accumulate=3", "equal micro-batches"),
        ("loss.gamma=${nowhere}", "loss.gamma: Interpolation key 'nowhere' not found"),
        ("data.root=${oc.env:NO_SUCH_VARIABLE}", "data.root: "),
        ("output_dir=${now:%H}", "changes with the clock"),
        ("loss.gamma=${data.name}", "loss.gamma"),
        ("data.root=???", "train.py needs data.root=..."),
        # Integers beyond the largest float.
        *((f"{key}={BIG}", f"{key} must ") for key in ("loss.gamma", "seed", "optim.lr")),
        *((f"loss.alpha={x.format(BIG)}", "loss.alpha") for x in ("{}", "[1{}]", "{{a:1{}}}")),
        # Together.
        ("model=resnet50 model.weights=null", "model.norm=group"),
        ("loss.gamma=1 ++loss.gamma=2", "loss.gamma is given twice"),
    ],
)
def test_what_is_wrong_is_refused_by_name_with_what_is_allowed(train, typed, says):
    message = refused(train, *typed.split())
    assert typed.split()[-1].partition("=")[0].lstrip("+~") in message
    assert says in message


def test_what_is_right_is_taken_with_a_plus_or_twice_too(train):
    for prefix in ("", "+", "++"):
        assert train.command([f"{prefix}loss.gamma=1"]).settings.loss.gamma == 1
    assert train.command(["seed=1", "seed=1"]).settings.seed == 1


def test_eval_knows_only_its_own_keys():
    with composer("eval") as reader:
        assert "unknown key loss.gamma" in refused(reader, "checkpoint=x", "loss.gamma=1")
        assert reader.choices.keys() == {"data", "postprocess", "evaluation"}


def test_missing_values_are_named_with_what_to_type(train):
    message = refused(train, "data=custom", "data.root=x")
    assert "train.py needs data.train_images=... data.train_annotations=..." in message
    assert "data.root=" not in message
    with composer("eval") as reader:
        assert "eval.py needs checkpoint=..." in refused(reader)


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("loss.alpha=null", None),
        ("loss.alpha=1", 1),
        ("loss.alpha=[0.25,0.5]", [0.25, 0.5]),
        ("loss.alpha={person:0.5,default:0.25}", {"person": 0.5, "default": 0.25}),
        ("loss.alpha={traffic light:0.5,default:0}", {"traffic light": 0.5, "default": 0}),
        ("loss.alpha={кот: 0.3, 猫:1e-1}", {"кот": 0.3, "猫": 0.1}),
        (
            "loss.alpha={R&D: .3, item#1: .2, light (red): 1}",
            {"R&D": 0.3, "item#1": 0.2, "light (red)": 1},
        ),
        (
            "loss.alpha={true: 0.3, null: 0.2, 1e3: 0.1, 7: 0}",
            {"true": 0.3, "null": 0.2, "1e3": 0.1, "7": 0},
        ),
        (
            r"""loss.alpha={"a, {b}": 0.3, 'it: c': 0.2, "d\"": 0.1}""",
            {"a, {b}": 0.3, "it: c": 0.2, 'd"': 0.1},
        ),
        (
            "loss.alpha={driver's seat: 0.3, x=y: 0.2, 50%: 0.1}",
            {"driver's seat": 0.3, "x=y": 0.2, "50%": 0.1},
        ),
    ],
)
def test_alpha_is_a_number_a_list_or_a_map(train, typed, value):
    assert train.command([typed]).settings.loss.alpha == value


def test_home_is_expanded_in_every_path(train, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    folders = [
        f"data.{split}_{kind}" for split in ("train", "val") for kind in ("images", "annotations")
    ]
    paths = ["output_dir", "init_from", "data.root", *folders]
    settings = train.command(["data=custom", *(f"{path}=~/x" for path in paths)]).settings
    assert {attrgetter(path)(settings) for path in paths} == {str(tmp_path / "x")}


def alpha(reader, *typed):
    return reader.command(list(typed)).settings.loss.alpha


def test_maps_of_two_files_merge_and_a_typed_one_replaces_them(tmp_path):
    ours = (ROOT / "configs/loss/focal.yaml").read_text()
    for path, text in {
        "loss/mine.yaml": ours.replace("alpha: 0.25", "alpha: {a: 0.5, default: 0.25}"),
        "experiment/mine.yaml": """# @package _global_
defaults: [override /loss: mine]
loss: {alpha: {a: 0.75, b: 1}}
""",
        "experiment/number.yaml": """# @package _global_
defaults: [override /loss: mine]
loss: {alpha: 0.5}
""",
        "experiment/words.yaml": """# @package _global_
loss: {alpha: {true: 0.5, 7: 1}}
""",
    }.items():
        user_file(tmp_path, path, text)
    with composer("train", str(tmp_path)) as reader:
        assert alpha(reader, "experiment=mine") == {"a": 0.75, "default": 0.25, "b": 1}
        assert alpha(reader, "experiment=number") == 0.5
        assert alpha(reader, "experiment=words") == {"true": 0.5, "7": 1}
        assert alpha(reader, "experiment=mine", "loss.alpha={b:0.1}") == {"b": 0.1}


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_paths_are_taken_as_typed(train, quote):
    paths = ["runs/shapes,loss.gamma=0/checkpoints/best.pt", "/data/my set/{a}", "C:/x", "007"]
    for path in [*paths, "1e3", "a(b)[c]", "x#y", "back\\slash", *(["a'b"] if not quote else [])]:
        assert train.command([f"init_from={quote}{path}{quote}"]).settings.init_from == path


def test_interpolations_of_keys_and_environment_work(train, monkeypatch):
    monkeypatch.setenv("SOME_FOLDER", "/datasets")
    monkeypatch.setenv("SOME_NUMBER", "1e-1")
    typed = ["data.root=${oc.env:SOME_FOLDER}/x", "optim.lr=${optim.momentum}"]
    settings = train.command([*typed, "loss.gamma=${oc.env:SOME_NUMBER}"]).settings
    assert (settings.data.root, settings.optim.lr, settings.loss.gamma) == ("/datasets/x", 0.9, 0.1)


# Files of the user's.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("loss: {gama: 1}", "unknown key loss.gama in"),
        ("gamma: 1", "did you mean loss.gamma?"),
        ("loss: {gamma: two}", "must be a number such as 0.5 or 1e-4 (at least 0), got 'two' in"),
        ("loss: {gamma: -1}", "loss.gamma must be at least 0"),
        ("loss: {gamma: .nan}", "loss.gamma must be at least 0"),
        ("loss: 3", "loss is a group of settings, got 3"),
        ("loss:\n  gamma: ???", "needs loss.gamma=..."),
        ("hydra: {run: {dir: x}}", "unknown key hydra.run.dir"),
        ("- 1", "must hold keys and values"),
        ("loss: [1", "not valid YAML"),
        ("defaults:\n  - override /modle: tiny", "Could not override 'modle'"),
        ("defaults:\n  - override /model: resnet51", "Could not find 'model/resnet51'"),
        ("defaults:\n  - /loss@other: focal", "unknown key other.name"),
        ("seed: ${nowhere}", "seed: Interpolation key 'nowhere' not found"),
        ("output_dir: runs/${now:%H}", "changes with the clock"),
        ("loss: {alpha: &x [*x]}", "a settings file has values of too many levels"),
    ],
)
def test_a_wrong_experiment_file_is_refused(tmp_path, text, says):
    assert says in refused_file(tmp_path, f"# @package _global_\n{text}\n")


def test_a_file_is_refused_by_its_name_and_place(tmp_path):
    message = refused_file(tmp_path, "loss: {gamma: 1}")
    assert "must begin with the line `# @package _global_`" in message
    message = refused_file(tmp_path, "gama: 1\n", "loss/mine.yaml", "loss=mine")
    assert message.startswith("unknown key loss.gama in ") and "loss/mine.yaml" in message


def test_a_users_files_come_before_ours_and_name_the_run(tmp_path):
    ours = (ROOT / "configs/loss/focal.yaml").read_text()
    user_file(tmp_path, "loss/focal.yaml", ours.replace("gamma: 2.0", "gamma: 3.0"))
    user_file(tmp_path, "experiment/mine.yaml", "# @package _global_\noptim: {lr: 1e-3}\n")
    with composer("train", str(tmp_path)) as reader:
        settings = reader.command(["experiment=mine"]).settings
    assert (settings.loss.gamma, settings.optim.lr) == (3, 0.001)
    assert settings.output_dir == "runs/mine"


def test_a_folder_of_settings_must_exist_and_has_no_root_file(tmp_path):
    with pytest.raises(NotADirectoryError, match="is not a folder"), composer("train", "/no/where"):
        pass
    user_file(tmp_path, "train.yaml", "seed: 1\n")
    message = refused_file(tmp_path, "# @package _global_\nseed: 1\n")
    assert "put what differs into experiment/NAME.yaml" in message


# What nothing reads beside the other settings.

# Command; what is said about it; which choice would read it.
UNREAD = [
    ("loss.star_beta=1", "loss.star_beta=1 has no effect with loss.name=focal", "loss=focal_star"),
    ("loss=ohem loss.gamma=2", "loss.gamma=2 has no effect", "loss=focal or loss=focal_star"),
    ("loss=focal_star loss.ohem_anchors=9", "with loss.name=focal_star", "loss=ohem"),
    ("loss.ohem_nms_iou=0.4", "with loss.name=focal", "loss=ohem"),
    ("loss.ohem_ratio=3", "with loss.name=focal", "loss=ohem"),
    ("loss.ohem_ratio=null", "loss.ohem_ratio=null has no effect", "loss=ohem"),
    ("loss.box_beta=0.7", "with loss.box=l1", "loss.box=smooth_l1"),
    ("optim=adamw optim.momentum=0.5", "with optim.name=adamw", "optim=sgd"),
    ("schedule=cosine schedule.milestones=[0.1]", "schedule.milestones=[0.1]", "decay=steps"),
    ("schedule.decay=constant schedule.decay_factor=1", "decay=constant", "schedule.decay=steps"),
    ("schedule.warmup_steps=0 schedule.warmup_factor=1", "warmup_steps=0", "another schedule."),
    ("schedule.max_steps=9 schedule.epochs=3", "schedule.max_steps=9", "schedule.max_steps=null"),
    ("matching.ignore_crowd=no matching.crowd_iof=0.9", "crowd=false", "ignore_crowd=true"),
    ("model.norm_eps=0.001", "with model.norm=group", "another model.norm"),
    ("model.head_depth=0 model.head_channels=8", "model.head_depth=0", "another model.head_depth"),
    ("model.head_depth=0 model.head_norm=none", "model.head_depth=0", "another model.head_depth"),
    ("model=resnet18 model.stride_in_1x1=false", "backbone=resnet18", "model.backbone=resnet50"),
    ("init_from=x.pt model.weights=y.pth", "with init_from=x.pt", "init_from=null"),
    # Names whose values are those of another file.
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


@pytest.mark.parametrize(("typed", "because", "choice"), UNREAD, ids=[row[0] for row in UNREAD])
def test_what_nothing_reads_is_refused_with_the_choice_that_reads_it(train, typed, because, choice):
    message = refused(train, *typed.split())
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


def test_a_file_of_the_users_may_hold_what_nothing_reads_and_a_name_without_a_file(tmp_path):
    mine = (ROOT / "configs/loss/ohem.yaml").read_text() + "gamma: 0.0\n"
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss/mine.yaml").write_text(mine)
    with composer("train", str(tmp_path)) as reader:
        assert reader.command(["loss=mine", "loss.ohem_anchors=9"]).settings.loss.ohem_anchors == 9
        assert reader.command(["loss=ohem", "loss.name=ohem"]).settings.loss.name == "ohem"
        assert "values of loss=mine" in refused(reader, "loss=mine", "loss.name=focal")


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
        ("loss=focal,ohem loss.gamma=0,2", "This is the run loss=ohem loss.gamma=0 of the sweep."),
        ("loss.box=smooth_l1,giou loss.box_beta=0.1,1", "the run loss.box=giou loss.box_beta=0.1"),
    ],
)
def test_a_sweep_with_a_run_that_would_not_read_a_setting_is_refused(train, typed, run):
    with pytest.raises(ValueError) as caught:
        train.sweep(typed.split())
    assert "has no effect with" in flat(caught.value)
    assert run in flat(caught.value)


@pytest.mark.parametrize("typed", UNREAD_BY_EVAL)
def test_eval_refuses_what_only_training_reads(train, typed):
    with composer("eval") as reader:
        message = refused(reader, "checkpoint=x", typed)
    assert message == f"{typed} has no effect in eval.py: only train.py reads it; drop it."
    train.command(["data=coco", typed])


def test_eval_takes_everything_else():
    unread = {typed.partition("=")[0] for typed in UNREAD_BY_EVAL}
    with composer("eval") as reader:
        settings = reader.command(["checkpoint=x", "data=coco"]).settings
        for name in reader.keys.keys() - unread:
            own = f"{name}={value_text(attrgetter(name)(settings))}"
            reader.command(sorted({"checkpoint=x", "data=coco", own}))


# Run directories.


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("", "shapes"),
        ("loss.gamma=0", "shapes,loss.gamma=0"),
        ("loss.gamma=1.0", "shapes,loss.gamma=1"),
        ("seed=3 loss.gamma=1", "shapes,loss.gamma=1,seed=3"),
        ("model=resnet18", "shapes,model=resnet18"),
        ("data=coco data.root=/d", "coco"),
        ("experiment=coco_r50_1x model=resnet18", "coco_r50_1x,model=resnet18"),
        ("device=cpu data.workers=0 log_images=1 save_every_steps=5", "shapes"),
        ("evaluation.backend=pycocotools overwrite=true compile=true", "shapes"),
        ("evaluation.max_images=5", "shapes,evaluation.max_images=5"),
        ("loss.alpha=null schedule.epochs=2", "shapes,loss.alpha=null,schedule.epochs=2"),
    ],
)
def test_the_run_directory_is_named_by_the_command_or_given(train, typed, name):
    assert train.command(typed.split()).settings.output_dir == f"runs/{name}"
    assert train.command([*typed.split(), "output_dir=a,b=c"]).settings.output_dir == "a,b=c"


def test_names_are_safe_short_and_different():
    names = [
        run_name("shapes", {"init_from": path}) for path in ("a/b", "a_b", "a b", "x" * 200, "é")
    ]
    names.append(run_name("shapes", {"init_from": "x" * 201}))
    assert len(set(names)) == len(names)
    assert all(len(name) <= MAX_LENGTH and "/" not in name and name.isascii() for name in names)
    assert run_name("a", {"x": 1, "b": 2}) == run_name("a", {"b": 2, "x": 1}) == "a,b=2,x=1"
    name = run_name("sweep_shapes", {"seed": 3, "device": "cpu"}, ["model.prior", "loss.gamma"])
    assert name == "sweep_shapes,seed=3,loss.gamma,model.prior"


def test_only_settings_that_give_another_run_are_in_its_name():
    free = {name for name in KEYS if not changes_weights(name)}
    assert free == {
        "data.root", "data.workers", "data.on_bad_image", "device", "compile",
        "overwrite", "output_dir", "on_failed_save", "max_bad_steps", "optim.accumulate",
        "log_every_steps", "log_images", "save_every_steps", "evaluation.backend",
        "evaluation.batch_size", "evaluation.every_epochs", "evaluation.patience",
    }  # fmt: skip


# Sweeps.


def test_a_sweep_is_every_combination_in_order(train):
    swept, commands = train.sweep(["loss.gamma=0,0.5", "seed=range(1,3)", "optim=sgd"])
    assert swept == ["loss.gamma", "seed"]
    found = [(c.settings.loss.gamma, c.settings.seed, c.settings.optim.name) for c in commands]
    assert found == [(0, 1, "sgd"), (0, 2, "sgd"), (0.5, 1, "sgd"), (0.5, 2, "sgd")]


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("loss.alpha=0.1,null", [0.1, None]),
        ("loss.alpha=[0.1,0.2],{a:0.5}", [[0.1, 0.2], {"a": 0.5}]),
        ('loss.alpha={кот: 0.3},{"b, {c}": 0.1}', [{"кот": 0.3}, {"b, {c}": 0.1}]),
        ("init_from='a,b','c d'", ["a,b", "c d"]),
        ("init_from=a b,C:/c,d\\ e", ["a b", "C:/c", "d e"]),
        ("model.prior=range(0.1,0.4,0.1)", [0.1, 0.2, 0.3]),
    ],
)
def test_a_sweep_gives_the_values_as_typed(train, typed, values):
    key = typed.partition("=")[0]
    _, commands = train.sweep([typed])
    assert [c.changed[key] for c in commands] == values
    # Each run's own command line, read again, gives the same settings.
    assert all(train.command(c.typed).settings == c.settings for c in commands)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("loss.gamma=1,-1", "loss.gamma must be at least 0"),
        ("loss.gama=1,2", "did you mean loss.gamma"),
        ("loss=focal,focl", "did you mean focal"),
        ("loss.gamma=interval(0,1)", "interval"),
    ],
)
def test_a_sweep_is_checked_before_its_first_run(train, typed, says):
    with pytest.raises(ValueError, match=says):
        train.sweep([typed])


@pytest.fixture
def pretend(tmp_path):
    (tmp_path / "train.py").write_text(PRETEND)
    return lambda *arguments, **env: run(["train.py"], *arguments, cwd=tmp_path, **env)


def test_a_sweep_runs_every_value_writes_its_table_and_makes_again_what_failed(pretend, tmp_path):
    done = pretend("-m", "loss.gamma=0,1,2", "seed=3")
    assert done.returncode == 1
    name = "sweep_shapes,seed=3,loss.gamma"
    note = f"runs/{name}/failed/shapes,loss.gamma=1,seed=3.txt"
    assert done.stderr.splitlines() == [
        "ValueError: this run is broken",
        "failed     loss.gamma=1: ValueError: this run is broken",
        f"           log: {note}",
    ]
    assert "run 3 of 3: loss.gamma=2" in done.stdout
    assert "2 finished, 1 failed" in done.stdout
    folder = tmp_path / "runs" / name
    header, *rows = (folder / "table.csv").read_text().splitlines()
    metrics = "AP,AP50,AP75,APs,APm,APl,AR1,AR10,AR100,ARs,ARm,ARl"
    assert header == f"loss.gamma,status,{metrics},run,error,log"
    assert rows == [
        '0,finished,0.280000,0.500000,,,,,,,,,,,"runs/shapes,loss.gamma=0,seed=3",,',
        '1,failed,,,,,,,,,,,,,"runs/shapes,loss.gamma=1,seed=3",'
        f'ValueError: this run is broken,"{note}"',
        '2,finished,0.480000,0.500000,,,,,,,,,,,"runs/shapes,loss.gamma=2,seed=3",,',
    ]
    assert (folder / "plot.png").read_bytes()[:4] == b"\x89PNG"
    # The same again, with another value, which joins the table.
    (tmp_path / "repaired").touch()
    (tmp_path / "started").unlink()
    done = pretend("-m", "loss.gamma=0,1,3", "seed=3")
    assert done.returncode == 0 and done.stderr == ""
    started = (tmp_path / "started").read_text().splitlines()
    assert started == ["shapes,loss.gamma=1,seed=3", "shapes,loss.gamma=3,seed=3"]
    assert "run 1 of 3: loss.gamma=0 has finished already" in done.stdout
    assert "4 finished" in done.stdout
    assert len((folder / "table.csv").read_text().splitlines()) == 5


def test_damaged_metrics_of_a_run_end_its_sweep_with_the_fix(pretend, tmp_path):
    assert pretend("-m", "loss.gamma=2,3", "--only", "0").returncode == 0
    (tmp_path / "runs/shapes,loss.gamma=2/eval/metrics.json").write_text('{"AP": 0.')
    done = pretend("-m", "loss.gamma=2,3")
    assert done.returncode == 1
    assert re.search(r"metrics.json is damaged.*eval.py writes it again", flat(done.stderr))


def test_seeds_give_a_mean_and_a_spread(pretend, tmp_path):
    done = pretend("-m", "loss.gamma=2", "seed=0,1,2")
    assert done.returncode == 0
    folder = tmp_path / "runs/sweep_shapes,loss.gamma=2,seed"
    header, row = (folder / "summary.csv").read_text().splitlines()
    assert header.startswith("n,AP,AP_std,AP50,AP50_std,AP75")
    assert row.startswith("3,0.460000,0.010000,0.500000,0.000000,,")
    assert "       3   0.460   0.010   0.500     n/a" in done.stdout


def test_a_run_of_a_sweep_that_is_killed_is_reported_with_the_reason(pretend, tmp_path):
    done = pretend("-m", "loss.gamma=6,7,2")
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("failed ")]
    assert "ended by SIGKILL, as happens when the machine's memory is full" in lines[0]
    assert "KeyError: 'a mistake of ours'" in lines[1]
    note = tmp_path / "runs/sweep_shapes,loss.gamma/failed/shapes,loss.gamma=7.txt"
    assert "Traceback" in note.read_text()
    assert "1 finished, 2 failed" in done.stdout


def test_one_run_of_a_sweep_joins_its_table(pretend, tmp_path):
    folder = tmp_path / "runs/sweep_shapes,loss.gamma"
    for only, count in ((1, 1), (0, 2)):
        done = pretend("-m", "--only", str(only), "loss.gamma=0,2,3")
        assert done.returncode == 0 and "run 1 of 1: " in done.stdout
        rows = (folder / "table.csv").read_text().splitlines()[1:]
        assert sum(",finished," in row for row in rows) == count
    assert [row.split(",")[:2] for row in rows] == [
        ["0", "finished"],
        ["2", "finished"],
        ["3", "not started"],
    ]
    assert not (tmp_path / "runs/shapes,loss.gamma=3").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "--only", "2", "loss.gamma=0,2"], "the sweep has 2 runs, numbered from 0 to 1"),
        (["--only", "0", "loss.gamma=2"], "--only chooses one run of a sweep; it needs -m"),
        (["-m", "device=cpu,cuda"], "two runs of the sweep would write to runs/shapes"),
        (["-m", "loss.gamma=0,2", "output_dir=x"], "two runs of the sweep would write to x"),
        (["-m", "loss.gamma=2"], "-m without values"),
        (["-m", "loss.gamma=0,-2"], "must be at least 0"),
        (["-m", "-c", "job", "loss.gamma=0,2"], "leave out -m"),
    ],
)
def test_a_sweep_that_cannot_work_starts_nothing(pretend, tmp_path, arguments, says):
    done = pretend(*arguments)
    assert done.returncode == 1 and says in done.stderr and done.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_a_sweep_under_torchrun_is_refused(pretend):
    for variables in ({"TORCHELASTIC_RUN_ID": "x"}, {"WORLD_SIZE": "2"}):
        done = pretend("-m", "loss.gamma=0,2", **variables)
        assert done.returncode == 1 and "-m under torchrun" in done.stderr


def test_an_interrupted_sweep_stops(pretend, tmp_path):
    done = pretend("-m", "loss.gamma=8,2")
    assert done.returncode == STATUS and done.stderr == ""
    assert "stopped    1 unfinished, 1 not started; the same command goes on" in done.stdout
    assert not (tmp_path / "runs/shapes,loss.gamma=2").exists()


def test_a_sweep_that_is_ended_takes_its_run_along(tmp_path):
    (tmp_path / "train.py").write_text(PRETEND)
    command = [sys.executable, "train.py", "-m", "loss.gamma=9,2"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as sweep:
        pid = tmp_path / "pid"
        while not (pid.exists() and pid.read_text()):
            assert sweep.poll() is None
            time.sleep(0.05)
        sweep.terminate()
        assert sweep.wait(timeout=20) == STATUS
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (tmp_path / "runs/shapes,loss.gamma=2").exists()


# The programs.


def test_a_users_mistake_is_one_line_and_ours_a_traceback(pretend):
    done = pretend("loss.gamma=1")
    assert (done.returncode, done.stderr) == (1, "ValueError: this run is broken\n")
    assert pretend("loss.gamma=1", RANK="2").stderr.startswith("[rank 2] ValueError")
    assert "Traceback" in pretend("loss.gamma=1", HYDRA_FULL_ERROR="1").stderr
    done = pretend("loss.gamma=7")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_mistakes_are_reported_at_once_without_torch_and_without_a_trace(tmp_path):
    seconds = []
    for typed in (
        "loss.gama=1", "loss.gamma=two", "loss.gamma=-1", "model=resnet51", "data=custom",
        "--gamma=1", "loss.star_beta=1", "-m loss=focal,ohem loss.gamma=0,2",
    ):  # fmt: skip
        started = time.monotonic()
        done = run(["-c", WITHOUT_TORCH, str(ROOT / "train.py")], *typed.split(), cwd=tmp_path)
        seconds.append(time.monotonic() - started)
        assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
        assert done.stderr.startswith("ValueError: "), done.stderr
    assert min(seconds) < 2
    arguments = ["checkpoint=x.pt", "evaluation.patience=3"]
    done = run(["-c", WITHOUT_TORCH, str(ROOT / "eval.py")], *arguments, cwd=tmp_path)
    assert "evaluation.patience=3 has no effect in eval.py" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train", "eval"])
def test_help_lists_every_key_and_choice_without_torch(tmp_path, name):
    program = ["-c", WITHOUT_TORCH, str(ROOT / f"{name}.py")]
    done = run(program, "--help", "evaluation.batch_size=3", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 100
    text = flat(done.stdout)
    with composer(name) as reader:
        for key in reader.keys.values():
            shown = f" {key.name}=" in text and key.meaning in text
            assert shown != (name == "eval" and key.train_only), key.name
            limit = key.allowed.replace("at least", ">=").replace("above", ">")
            assert limit.removeprefix("one of ") in text or not shown
        for group, choices in reader.choices.items():
            assert f"{group}= {', '.join(choices)}" in text
    assert "evaluation.batch_size=3 " in text
    assert name == "eval" or "loss.star_beta=(not read) " in text


def test_settings_are_shown_as_yaml(tmp_path):
    done = run([str(ROOT / "train.py")], "--cfg", "job", "loss.gamma=1", cwd=tmp_path)
    assert "  gamma: 1.0\n" in done.stdout and "runs/shapes,loss.gamma=1" in done.stdout


def test_options_that_do_not_exist_are_refused(tmp_path):
    done = run([str(ROOT / "train.py")], "--loss.gamma=1", cwd=tmp_path)
    assert "settings have no dashes: loss.gamma=1" in done.stderr
    done = run([str(ROOT / "eval.py")], "-m", "checkpoint=a,b", cwd=tmp_path)
    assert "-m sweeps train.py" in done.stderr and done.returncode == 1
