"""Imports point one way, and importing a part loads only what it needs."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "retinanet"

# The detector and what a long run needs, in layers: a part may import from the layers above its
# own, and from its own as named in WITHIN.
LAYERS = [
    {
        "config",
        "checks",
        "boxes",
        "platforms",
        "signals",
        "distributed",
        "devices",
        "atomic",
        "csv_text",
        "terminal",
    },
    {
        "data",
        "model",
        "fast",
        "weights",
        "matching",
        "other_losses",
        "losses",
        "postprocess",
        "shapes",
    },
    {"training", "evaluation"},
    {"build"},
    {"run"},
    {"tools"},
    {"cli"},
]
# Inside a layer: who may import whom.
WITHIN = {
    ("checks", "config"),
    ("devices", "distributed"),
    ("devices", "config"),
    ("losses", "matching"),
    ("losses", "other_losses"),
    ("losses", "fast"),
    ("matching", "fast"),
    ("model", "fast"),
    ("fast", "model"),
    ("model", "weights"),
    ("weights", "model"),
    ("training", "weights"),
    ("weights", "training"),
    ("evaluation", "fast"),
}
# Tools do not import each other. Files that lie loose in tools/ are shared by all.
BETWEEN_TOOLS = {
    ("report", "diagnose"),  # the page shows what was diagnosed
    ("check_data", "report"),  # drawing
    ("predict", "report"),  # drawing
    ("export", "predict"),  # an exported model is compared with the detector
}


def layer(part):
    found = [number for number, parts in enumerate(LAYERS) if part in parts]
    assert len(found) == 1, f"name the layer of {part} above"
    return found[0]


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path, *, types=True):
    """Dotted modules that a file imports, in functions too; for type checkers with ``types``."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types:
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # Scripts have two names: scripts.NAME, and retinanet.scripts.NAME once installed.
            assert not node.level or path.parent.name == "scripts", f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner_imports(path):
    """Parts of the package that a file imports."""
    parts = {name.split(".")[1] for name in imports(path) if name.startswith("retinanet.")}
    known = {part_of(module) for module in modules()}
    return parts & known


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part = part_of(path)
    for imported in inner_imports(path) - {part}:
        below = layer(imported) < layer(part)
        assert below or (part, imported) in WITHIN, f"{part} imports {imported}"


def tool_of(parts):
    """Folder of a tool; None for the files that all tools share, and for what is no tool."""
    return parts[1] if len(parts) > 2 and parts[0] == "tools" else None


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.glob("tools/**/*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_tools_do_not_import_each_other(path):
    own = tool_of(path.relative_to(PACKAGE).parts)
    folders = {folder.name for folder in (PACKAGE / "tools").iterdir() if folder.is_dir()}
    for name in imports(path):
        parts = name.split(".")
        if parts[:2] == ["retinanet", "tools"] and len(parts) > 2 and parts[2] in folders - {own}:
            assert (own, parts[2]) in BETWEEN_TOOLS, f"{own or path.name} imports {parts[2]}"


def test_training_loads_no_tool():
    loaded = python("import sys, retinanet.run; print(*sys.modules)").stdout.split()
    loaded = [name for name in loaded if name.split(".")[0] == "retinanet"]
    assert "retinanet.training.trainer" in loaded
    assert [name for name in loaded if ".tools" in name or ".cli" in name] == []
    assert len(loaded) <= 60


def test_no_module_imports_itself_in_a_circle():
    graph = {}
    for path in modules():
        name = "retinanet." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        graph[name.removesuffix(".__init__")] = set(imports(path, types=False))
    done = set()

    def walk(name, above):
        assert name not in above, f"circle: {' -> '.join([*above, name])}"
        if name not in done:
            for other in graph[name] & graph.keys():
                walk(other, [*above, name])
            done.add(name)

    for name in graph:
        walk(name, [])


def test_only_the_command_line_imports_hydra():
    users = {
        str(path.relative_to(ROOT))
        for folder in (PACKAGE, ROOT / "scripts")
        for path in folder.rglob("*.py")
        if any(name.split(".")[0] == "hydra" for name in imports(path))
    }
    assert users == {"retinanet/cli/main.py"}


def test_no_package_imports_scripts_or_tests():
    for path in modules():
        assert not {"scripts", "tests"} & {name.split(".")[0] for name in imports(path)}


def python(code, *forbidden):
    """Run code in a fresh process in which some packages cannot be imported."""
    forbid = f"""
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ImportError("forbidden: " + name)
sys.meta_path.insert(0, Forbid())
"""
    return subprocess.run(
        [sys.executable, "-c", forbid + code], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "module",
    ["retinanet", "retinanet.config", "retinanet.cli.main", "retinanet.tools.report.sweep"],
)
def test_it_is_imported_without_torch(module):
    done = python(f"import {module}", "torch", "torchvision", "matplotlib")
    assert done.returncode == 0, done.stderr


def test_everything_but_the_command_line_is_imported_without_hydra():
    names = [
        "retinanet." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in modules()
        if part_of(path) != "cli" and path.name != "__init__.py"
    ]
    done = python("".join(f"import {name}\n" for name in names), "hydra", "omegaconf")
    assert done.returncode == 0, done.stderr


def test_every_folder_of_the_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")
    }
    assert set(settings["packages"]) == folders | {"retinanet.configs", "retinanet.scripts"}
