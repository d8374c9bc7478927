"""Settings, YAML files and constructors agree; every setting has a use."""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml

from retinanet import config
from retinanet.checks import KEYS, Key, check, keys_of
from retinanet.cli.help import groups_of
from retinanet.cli.main import composer, configs_folder
from retinanet.config import EvalConfig, TrainConfig
from retinanet.losses import RetinaNetLoss
from retinanet.matching import Matcher
from retinanet.model.anchors import AnchorGenerator
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Postprocess

PACKAGE = Path(__file__).resolve().parents[1] / "retinanet"
CONFIGS = configs_folder()
GROUPS = groups_of(KEYS)
SCHEMAS = [
    value
    for value in vars(config).values()
    if dataclasses.is_dataclass(value) and getattr(value, "__name__", "").endswith("Config")
]
SPLITS = ("train", "val")
PATHS = [f"data.{key}=x" for key in ("root", "val_images", "val_annotations")]
TRAINING_PATHS = ["data.train_images=x", "data.train_annotations=x"]


def group_files():
    files = [*CONFIGS.glob("*/*.yaml"), *CONFIGS.glob("eval_only/*/*.yaml")]
    return sorted(path for path in files if path.parent.name != "experiment")


def given(path):
    """What a group file gives its group."""
    values = yaml.safe_load(path.read_text())
    is_bundle = path.read_text().startswith("# @package _global_\n")
    return values[path.parent.name] if is_bundle else values


def file_id(path):
    return str(path.relative_to(CONFIGS))


# YAML files.


@pytest.mark.parametrize("path", group_files(), ids=file_id)
def test_a_group_file_gives_in_order_every_key_that_is_read_with_its_name(path):
    group, values = path.parent.name, given(path)
    name = {f"{group}.name": values["name"]} if values.get("name") else {}
    for_eval = "eval_only" in path.parts or path.stem == "recorded"
    assert [f"{group}.{key}" for key in values] == [
        key.name
        for key in KEYS.values()
        if key.group == group and key.is_read(name) and not (for_eval and key.train_only)
    ]


@pytest.mark.parametrize(("job", "schema"), [("train", TrainConfig), ("eval", EvalConfig)])
def test_a_root_file_gives_every_key_of_the_root_and_every_group(job, schema):
    root = yaml.safe_load((CONFIGS / f"{job}.yaml").read_text())
    chosen = {name for item in root.pop("defaults") if isinstance(item, dict) for name in item}
    keys = keys_of(schema)
    assert set(root) == {key for key in keys if "." not in key}
    assert chosen - {"experiment"} == set(groups_of(keys))


def test_every_folder_is_a_group_and_every_group_a_folder():
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    assert folders == {*GROUPS, "experiment", "eval_only"}


def test_eval_reads_the_same_values_as_train_but_sizes_which_belong_to_the_checkpoint():
    for path in CONFIGS.glob("eval_only/*/*.yaml"):
        training = given(CONFIGS / path.relative_to(CONFIGS / "eval_only"))
        own = given(path)
        sizes = {key: own.pop(key) for key in ("min_size", "max_size", "resize")}
        assert set(sizes.values()) == {None}
        assert all(training[key] == value for key, value in own.items() if value is not None)


def all_choices():
    with composer("train") as train, composer("eval") as evaluation:
        return [
            (reader.job, f"{group}={name}")
            for reader in (train, evaluation)
            for group, names in reader.choices.items()
            for name in names
        ]


@pytest.mark.parametrize(("job", "choice"), all_choices())
def test_every_choice_composes_within_its_ranges_and_keeps_its_values(job, choice):
    group, _, name = choice.partition("=")
    needed = ["checkpoint=x"] if job == "eval" else []
    if name == "custom":
        needed += PATHS + (TRAINING_PATHS if job == "train" else [])
    if group == "augment":  # some of their sizes are for images of COCO's size
        needed += ["data=coco"]
    with composer(job) as reader:
        settings = reader.command([choice, *needed]).settings
    assert type(settings) is {"train": TrainConfig, "eval": EvalConfig}[job]
    if group not in ("experiment", "data"):
        found = dataclasses.asdict(getattr(settings, group))
        of_file = given(CONFIGS / group / f"{name}.yaml")
        assert found == dict.fromkeys(found) | of_file


def test_every_experiment_states_its_command():
    for path in (CONFIGS / "experiment").glob("*.yaml"):
        text = path.read_text()
        assert text.startswith("# @package _global_\n")
        assert f"train.py experiment={path.stem}" in text
        assert "Expected: " in text
        assert "not trained by us" in text.lower()


# Settings classes.


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_settings_classes_hold_no_values(schema):
    for field in dataclasses.fields(schema):
        assert field.default is dataclasses.MISSING
        assert field.default_factory is dataclasses.MISSING
    assert "__slots__" in vars(schema)  # a wrong attribute is an error
    with pytest.raises(TypeError):
        schema()


@pytest.mark.parametrize("schema", [TrainConfig, EvalConfig])
def test_every_key_has_a_meaning_and_every_number_a_range(schema):
    for key in keys_of(schema).values():
        assert 8 <= len(key.meaning) <= 90
        assert key.meaning.isascii()
        assert key.type in (str, bool) or key.limit is not None, key.name


def test_a_recorded_setting_may_be_null_and_is_else_the_same():
    for name, key in keys_of(EvalConfig).items():
        if name.startswith(("data.", "postprocess.")):
            assert key == dataclasses.replace(KEYS[name], nullable=True)


NUMBERS = [k for k in KEYS.values() if k.limit and not k.limit.choices]


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: key.name)
def test_numbers_outside_a_range_are_refused_and_its_ends_are_not(key):
    limit = key.limit
    length = (limit.length or 1) if "list" in str(key.type) else 0
    refused, taken = [float("nan"), float("inf"), -float("inf")], []
    for end, is_open, step in ((limit.low, limit.open_low, -1), (limit.high, limit.open_high, 1)):
        if abs(end) != float("inf"):
            refused.append(end if is_open else end + step * max(abs(end), 1) * 1e-9)
            taken += [] if is_open else [end]
    for value in refused:
        with pytest.raises(ValueError, match=key.name.replace(".", r"\.")):
            check(key.name, [value] * length if length else value)
    for value in taken:
        check(key.name, [value] * length if length else value)
    with pytest.raises(ValueError, match="must"):
        check(key.name, True)


# Constructors.


@pytest.mark.parametrize(
    ("cls", "file"),
    [
        (AnchorGenerator, "anchors/paper"),
        (Matcher, "matching/paper"),
        (RetinaNetLoss, "loss/focal"),
        (RetinaNetLoss, "loss/focal_star"),
        (RetinaNetLoss, "loss/ohem"),
        (Postprocess, "postprocess/paper"),
        (RetinaNet, "model/resnet50"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_defaults_of_constructors_are_the_files_values(cls, file):
    values = given(CONFIGS / f"{file}.yaml")
    parameters = inspect.signature(cls).parameters
    assert set(values) <= set(parameters), "a setting that the constructor does not take"
    # What table 1d of the paper trains without, and the name itself.
    others = {"loss/focal_star": {"name"}, "loss/ohem": {"name", "alpha"}}.get(file, set())
    for key, value in values.items():
        default = parameters[key].default
        default = list(default) if isinstance(default, tuple) else default
        is_same = default is inspect.Parameter.empty or default == pytest.approx(value)
        assert is_same or key in others, key


# Use.


def read_by(source, key):
    """Whether source reads it from its group: ``optim.lr``, ``settings.seed``, ``how.max_dets``."""
    last = key.name.rpartition(".")[2]
    owner = {"": "settings|self", "evaluation": "evaluation|how"}.get(key.group, key.group)
    return re.search(rf"\b({owner})\.{last}\b", source) is not None


def test_every_key_is_read_by_the_jobs_or_below():
    reads_for_the_job = ("cli/main.py", "cli/sweep.py", "cli/help.py", "config.py", "checks.py")
    paths = [path for path in PACKAGE.rglob("*.py") if not str(path).endswith(reads_for_the_job)]
    source = "\n".join(path.read_text() for path in paths)
    assert not read_by(source, Key("optim.nesterov", bool, False, "not there", None))
    # Whole groups go to constructors, which take every key: see above; the schedule's two lengths
    # do not.
    whole = set(re.findall(r"asdict\(settings\.(\w+)\)", source)) & set(GROUPS)
    assert whole >= {"anchors", "augment", "loss", "matching", "model", "postprocess", "schedule"}
    lengths = ("schedule.epochs", "schedule.max_steps")
    own = [key for key in KEYS.values() if key.group not in whole or key.name in lengths]
    assert 'getattr(data, f"{split}_{part}")' in source  # which reads the four paths
    unread = {key.name for key in own if not read_by(source, key)}
    assert unread <= {f"data.{split}_{x}" for split in SPLITS for x in ("images", "annotations")}


def test_settings_objects_stop_at_the_builder():
    """Below build.py plain arguments are passed: no module of the detector imports a config."""
    above = {"build.py", "checks.py", "run.py"}
    importing = set()
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ("cli", "tools"):
            continue
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
        names = [a.name for node in nodes if node.module == config.__name__ for a in node.names]
        if any(name.endswith("Config") for name in names):
            importing.add(path.relative_to(PACKAGE).as_posix())
    assert importing == above


def test_a_file_may_leave_out_only_what_checkpoints_do_not_need(tmp_path):
    """A network's settings are all recorded: none may be null because nothing reads it here."""
    (tmp_path / "model").mkdir()
    text = (PACKAGE.parent / "configs/model/tiny.yaml").read_text()
    kept = [line for line in text.splitlines() if not line.startswith("norm_eps")]
    assert len(kept) == len(text.splitlines()) - 1
    (tmp_path / "model" / "mine.yaml").write_text("\n".join(kept))
    with (
        composer("train", str(tmp_path)) as reader,
        pytest.raises(ValueError, match="needs model.norm_eps"),
    ):
        reader.command(["model=mine"])
