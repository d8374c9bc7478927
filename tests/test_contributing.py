"""The patches of docs/contributing.md fit the code, and what they add works."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import command, rows, write_split

from retinanet.losses import FUSED_OFF_WARNING

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs/contributing.md").read_text()
PATCHES = re.findall(r"```diff\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = re.findall(r"^python train\.py (.*)$", TEXT, flags=re.MULTILINE)
NAMES = ["loss", "backbone", "data"]


@pytest.fixture
def patched(tmp_path):
    """A copy of the project with one patch applied: ``patched(0)``."""

    def apply(number: int) -> Path:
        copy = tmp_path / "project"
        for part in ("retinanet", "configs"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "train.py", copy)
        patch = tmp_path / "change.diff"
        patch.write_text(PATCHES[number])
        # Outside of any repository: there git would take the paths for those of another tree.
        subprocess.run(
            ["git", "apply", str(patch)],
            cwd=copy,
            check=True,
            env={"GIT_CEILING_DIRECTORIES": str(tmp_path), "PATH": "/usr/bin:/bin"},
        )
        return copy

    return apply


def test_every_change_has_a_patch_and_a_command():
    assert len(PATCHES) == len(COMMANDS) == len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3), ids=NAMES)
def test_a_patched_project_trains(number, patched, tmp_path):
    project, data, output = patched(number), tmp_path / "data", tmp_path / "run"
    write_split(data, "train", range(1, 7))
    write_split(data, "val", range(7, 10))
    typed = COMMANDS[number].split()
    small = command(data, output, "schedule.epochs=1", "model.norm=group")
    typed = [word for word in typed if not word.startswith("output_dir=")]
    if number == 2:  # its paths are those of the set that it names
        small = [word for word in small if not word.startswith(("data=", "data.train", "data.val"))]
        typed = ["data=cells", *(f"data.{split}_images=images" for split in ("train", "val"))]
        typed += [f"data.{split}_annotations={split}.json" for split in ("train", "val")]
    else:
        typed = [word for word in typed if word not in small]
    done = subprocess.run(
        [sys.executable, "train.py", *small, *typed], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    losses = [row["loss/class"] for row in rows(output) if "loss/class" in row]
    assert len(losses) == 3
    assert all(0 < loss < 10 for loss in losses)
    if number == 0:  # the edited function is what was trained with
        assert FUSED_OFF_WARNING in " ".join(done.stdout.split())
        assert "not forecast: losses.focal_loss was changed" in (output / "train.log").read_text()
        main = [sys.executable, "train.py", *small, f"output_dir={tmp_path / 'unchanged'}"]
        main = [word for word in main if word != f"output_dir={output}"]
        subprocess.run(main, cwd=ROOT, check=True, capture_output=True)
        first = rows(tmp_path / "unchanged")[0]["loss/class"]
        assert losses[0] > 1.1 * first
