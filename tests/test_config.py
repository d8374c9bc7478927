"""Settings, YAML files and constructors agree; every setting has a use."""

import ast
import dataclasses
import inspect
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml

from retinanet import config
from retinanet.checks import check, check_settings
from retinanet.cli.files import configs_folder
from retinanet.cli.keys import groups_of, keys_of
from retinanet.cli.main import composer
from retinanet.config import EvalConfig, TrainConfig
from retinanet.limits import check_value
from retinanet.losses import RetinaNetLoss
from retinanet.matching import Matcher
from retinanet.model.anchors import AnchorGenerator
from retinanet.model.retinanet import RetinaNet
from retinanet.postprocess import Postprocess

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = configs_folder()
GROUPS = groups_of(keys_of(TrainConfig))
SCHEMAS = [
    value
    for value in vars(config).values()
    if dataclasses.is_dataclass(value) and value.__module__ == config.__name__
]
PATHS = [
    f"data.{name}=x"
    for name in ("root", "train_images", "train_annotations", "val_images", "val_annotations")
]

# Keys that no code reads, with the reason. There should be none.
INERT: dict[str, str] = {}


def group_files():
    files = [*CONFIGS.glob("*/*.yaml"), *CONFIGS.glob("eval_only/*/*.yaml")]
    return sorted(path for path in files if path.parent.name != "experiment")


def given(path):
    """What a group file says about its group."""
    values = yaml.safe_load(path.read_text())
    is_bundle = path.read_text().startswith("# @package _global_\n")
    return values[path.parent.name] if is_bundle else values


def file_id(path):
    return str(path.relative_to(CONFIGS))


# YAML files.


@pytest.mark.parametrize("path", group_files(), ids=file_id)
def test_a_group_file_gives_every_key_of_its_group_in_order(path):
    fields = get_type_hints(TrainConfig)[path.parent.name]
    assert list(given(path)) == [f.name for f in dataclasses.fields(fields)]


@pytest.mark.parametrize(("job", "schema"), [("train", TrainConfig), ("eval", EvalConfig)])
def test_a_root_file_gives_every_key_of_the_root_and_every_group(job, schema):
    root = yaml.safe_load((CONFIGS / f"{job}.yaml").read_text())
    chosen = {name for item in root.pop("defaults") if isinstance(item, dict) for name in item}
    hints = get_type_hints(schema)
    groups = {name for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    assert set(root) == set(hints) - groups
    assert chosen - {"experiment"} == groups


def test_every_folder_is_a_group_and_every_group_a_folder():
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    assert folders == {*GROUPS, "experiment", "eval_only"}


def test_eval_reads_the_same_values_as_train():
    for path in CONFIGS.glob("eval_only/*/*.yaml"):
        training = given(CONFIGS / path.relative_to(CONFIGS / "eval_only"))
        own = given(path)
        assert own.keys() == training.keys()
        assert all(training[key] == value for key, value in own.items() if value is not None)
        assert own["min_size"] is own["max_size"] is None  # they belong to the checkpoint


def all_choices():
    with composer("train") as train, composer("eval") as evaluation:
        return [
            (reader.job, f"{group}={name}")
            for reader in (train, evaluation)
            for group, names in reader.choices.items()
            for name in names
        ]


@pytest.mark.parametrize(("job", "choice"), all_choices())
def test_every_choice_composes_within_its_ranges(job, choice):
    needed = PATHS if choice == "data=custom" else []
    if choice == "augment=multiscale":  # its sizes are for images of COCO's size
        needed = ["data=coco"]
    if job == "eval":
        needed = ["checkpoint=x", *(path for path in needed if "train" not in path)]
    with composer(job) as reader:
        command = reader.command([choice, *needed])
    check_settings(command.settings)
    expected = TrainConfig if job == "train" else EvalConfig
    assert type(command.settings) is expected


@pytest.mark.parametrize("path", group_files(), ids=lambda path: f"{path.parent.name}={path.stem}")
def test_a_choice_keeps_its_values_on_the_built_in_set(path):
    group = path.parent.name
    if group == "data" or path.stem == "recorded":
        pytest.skip("chooses the data itself, or is for eval.py")
    needed = ["data.min_size=256", "data.max_size=2000"] if group == "augment" else []
    with composer("train") as reader:
        settings = reader.command([f"{group}={path.stem}", *needed]).settings
    found = dataclasses.asdict(getattr(settings, group))
    assert {key: found[key] for key in given(path)} == given(path)


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
        is_text_or_switch = key.type in (str, bool)
        assert is_text_or_switch or key.limit is not None, key.name


def test_a_recorded_setting_may_be_null_and_is_else_the_same():
    train, evaluation = keys_of(TrainConfig), keys_of(EvalConfig)
    for name in evaluation:
        if name.startswith(("data.", "postprocess.")):
            assert evaluation[name] == dataclasses.replace(train[name], nullable=True)


def outside(limit):
    """Numbers just outside a limit, and what no limit admits."""
    values = [float("nan"), float("inf"), -float("inf")]
    for end, is_open, step in ((limit.low, limit.open_low, -1), (limit.high, limit.open_high, 1)):
        if abs(end) != float("inf"):
            values.append(end if is_open else end + step * max(abs(end), 1) * 1e-9)
    return values


NUMBERS = [k for k in keys_of(TrainConfig).values() if k.limit and not k.limit.choices]


@pytest.mark.parametrize("key", NUMBERS, ids=lambda key: key.name)
def test_numbers_outside_a_range_are_refused_and_its_ends_are_not(key):
    limit = key.limit
    wrap = [limit.length or 1] if key.is_list and key.name != "loss.alpha" else None
    for value in outside(limit):
        with pytest.raises(ValueError, match=key.name.replace(".", r"\.")):
            check(key.name, [value] * wrap[0] if wrap else value)
    for end, is_open in ((limit.low, limit.open_low), (limit.high, limit.open_high)):
        if abs(end) != float("inf") and not is_open:
            check(key.name, [end] * wrap[0] if wrap else end)
    with pytest.raises(ValueError, match="must"):
        check_value(key.name, True, limit)


# Constructors.


@pytest.mark.parametrize(
    ("cls", "files"),
    [
        (AnchorGenerator, {"anchors": "paper"}),
        (Matcher, {"matching": "paper"}),
        (RetinaNetLoss, {"loss": "focal"}),
        (Postprocess, {"postprocess": "paper"}),
        (RetinaNet, {"model": "resnet50"}),
    ],
    ids=lambda value: value.__name__ if inspect.isclass(value) else None,
)
def test_defaults_of_constructors_are_the_files_values(cls, files):
    ((group, name),) = files.items()
    values = given(CONFIGS / group / f"{name}.yaml")
    parameters = inspect.signature(cls).parameters
    assert set(values) <= set(parameters), "a setting that the constructor does not take"
    for key, value in values.items():
        default = parameters[key].default
        default = list(default) if isinstance(default, tuple) else default
        assert default is inspect.Parameter.empty or default == pytest.approx(value), key


# Use.


class Reads(ast.NodeVisitor):
    """Dotted keys that a module reads from objects whose settings class is known.

    A name has a class by its annotation (``loss: LossConfig``) or because it was assigned from
    one (``loss = settings.loss``, ``a, b = settings.a, settings.b``).
    """

    def __init__(self):
        self.read = set()
        self.classes = {"settings": TrainConfig}
        self.owner = {get_type_hints(TrainConfig)[group]: f"{group}." for group in GROUPS}
        self.owner[TrainConfig] = ""

    def class_of(self, node):
        if isinstance(node, ast.Name):
            return self.classes.get(node.id)
        if isinstance(node, ast.Attribute):
            if node.attr == "settings":
                return TrainConfig
            hint = get_type_hints(self.class_of(node.value) or object).get(node.attr)
            return hint if hint in self.owner else None
        return None

    def visit_arg(self, node):
        for schema in self.owner:
            if node.annotation is not None and schema.__name__ == ast.unparse(node.annotation):
                self.classes[node.arg] = schema

    def visit_Assign(self, node):
        self.generic_visit(node)
        (target,) = node.targets[:1]
        pairs = [(target, node.value)]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = zip(target.elts, node.value.elts, strict=True)
        for name, value in pairs:
            if isinstance(name, ast.Name) and self.class_of(value):
                self.classes[name.id] = self.class_of(value)

    def visit_Attribute(self, node):
        self.generic_visit(node)
        schema = self.class_of(node.value)
        if schema is not None:
            self.read.add(self.owner[schema] + node.attr)

    def visit_Call(self, node):
        # getattr(data, f"{split}_images") reads every key of data that it could name.
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) == 2:
            schema = self.class_of(node.args[0])
            if schema is not None and isinstance(node.args[1], ast.JoinedStr):
                self.read |= {
                    self.owner[schema] + f.name
                    for f in dataclasses.fields(schema)
                    if f.name.endswith(("_images", "_annotations"))
                }


def keys_read():
    """Keys that the package reads below the command line."""
    reads = set()
    for path in (ROOT / "retinanet").rglob("*.py"):
        if path.name not in ("config.py", "cli.py", "command.py"):
            visitor = Reads()
            visitor.visit(ast.parse(path.read_text()))
            reads |= visitor.read
    return reads


def test_every_key_is_read_or_named_as_inert():
    unread = set(keys_of(TrainConfig)) - keys_read()
    assert unread == set(INERT)


def test_the_search_for_reads_finds_what_is_read_and_no_more():
    source = """
def build(settings: TrainConfig, data: DataConfig):
    loss, ema = settings.loss, settings.ema
    other.gamma, data.workers, loss.alpha, settings.seed, ema.decay
"""
    visitor = Reads()
    visitor.visit(ast.parse(source))
    found = visitor.read & set(keys_of(TrainConfig))
    assert found == {"data.workers", "loss.alpha", "seed", "ema.decay"}


def test_settings_objects_stop_at_the_builder():
    """Below build.py plain arguments are passed: no module of the detector imports a config."""
    above = {"build.py", "checks.py", "recorded.py", "run.py", "trained.py"}
    homes = (config.__name__, "retinanet.recorded")
    package = ROOT / "retinanet"
    importing = set()
    for path in (p for p in package.rglob("*.py") if not {"cli", "tools"} & {*p.parts}):
        tree = ast.parse(path.read_text())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names = [n.name for node in nodes if node.module in homes for n in node.names]
        if any(name.endswith("Config") for name in names):
            importing.add(path.relative_to(package).as_posix())
    assert importing == above
