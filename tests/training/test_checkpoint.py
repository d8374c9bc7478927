"""Checkpoints: whole or not at all, every bit checked, nothing executed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retinanet.training.checkpoint import FORMAT, load_checkpoint, load_latest, save_checkpoint


def state_of(step: int) -> dict:
    return {"step": step, "model": {"weight": torch.arange(1000.0) + step}, "names": ["a", "b"]}


def same(first: dict, second: dict) -> bool:
    weights = first["model"]["weight"], second["model"]["weight"]
    return first["step"] == second["step"] and torch.equal(*weights)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def last(tmp_path) -> Path:
    path = tmp_path / "last.pt"
    save_checkpoint(path, state_of(1), keep_previous=True)
    return path


def test_what_is_saved_is_loaded_without_trust_and_nothing_else_is_left(last):
    for loaded in (load_checkpoint(last), torch.load(last, weights_only=True)):
        assert same(loaded, state_of(1))
        assert (loaded["names"], loaded["format"]) == (["a", "b"], FORMAT)
    assert files(last.parent) == ["last.pt"]


@pytest.mark.parametrize("links", [True, False])
def test_the_one_before_is_kept_also_where_there_are_no_links(last, monkeypatch, links):
    def refuse(*_: object) -> None:
        raise PermissionError("Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for step in (2, 3):
        save_checkpoint(last, state_of(step), keep_previous=True)
    assert load_checkpoint(last)["step"] == 3
    assert load_checkpoint(last.with_name("previous.pt"))["step"] == 2
    assert files(last.parent) == ["last.pt", "previous.pt"]


def test_a_flipped_bit_in_the_weights_is_an_error_although_torch_takes_it(last):
    content = last.read_bytes()
    weights = state_of(1)["model"]["weight"].numpy().tobytes()
    place = content.index(weights) + 4 * 500 + 2
    last.write_bytes(content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :])
    assert not same(torch.load(last, weights_only=True), state_of(1))
    with pytest.raises(ValueError, match="damaged.*previous.pt or best.pt"):
        load_checkpoint(last)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_an_error(last, share):
    content = last.read_bytes()
    last.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        load_checkpoint(last)


@pytest.mark.parametrize("state", [{"weight": torch.ones(2)}, [1, 2], {"format": 99}])
def test_files_of_others_are_refused(tmp_path, state):
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"not a checkpoint of this project \(format 1\)"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*x\.pt"):
        load_checkpoint(tmp_path / "x.pt")


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    torch.save({"format": 1, "model": Evil(tmp_path / "ran")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        load_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()


# Killed, or out of space, while saving


MOMENTS = 11


@pytest.fixture(scope="module")
def died(tmp_path_factory) -> tuple[Path, dict[str, int]]:
    """Folders in which a save was cut short at every moment, and how it ended."""
    root = tmp_path_factory.mktemp("died")
    for name in [*map(str, range(MOMENTS)), "full"]:
        (root / name).mkdir()
        save_checkpoint(root / name / "last.pt", state_of(1))
        if name != "full":
            save_checkpoint(root / name / "last.pt", state_of(2), keep_previous=True)
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("save_and_die.py"), root],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout)


def test_killed_at_any_moment_a_whole_checkpoint_is_left(died):
    root, statuses = died
    assert statuses["0"] == 9
    assert statuses[str(MOMENTS - 1)] == 0
    for moment in range(MOMENTS):
        last = root / str(moment) / "last.pt"
        latest, problems = load_latest(last.parent)
        assert latest["step"] in (2, 3)
        assert problems == []
        assert load_checkpoint(last.with_name("previous.pt"))["step"] in (1, 2)
        # What was left lying does not disturb the next save.
        save_checkpoint(last, state_of(4), keep_previous=True)
        assert load_checkpoint(last)["step"] == 4


def test_a_full_disk_is_an_error_that_leaves_what_was_there(died):
    root, statuses = died
    assert statuses["full"] == 3
    assert same(load_checkpoint(root / "full" / "last.pt"), state_of(1))
    assert files(root / "full") == ["last.pt"]


# The newest of a folder


def test_the_newest_that_can_be_read_is_taken(last):
    save_checkpoint(last, state_of(2), keep_previous=True)
    assert load_latest(last.parent)[0]["step"] == 2
    last.write_bytes(last.read_bytes()[:-100])
    latest, problems = load_latest(last.parent)
    assert latest["step"] == 1
    assert len(problems) == 1
    assert "last.pt is damaged" in problems[0]
    last.unlink()
    latest, problems = load_latest(last.parent)
    assert (latest["step"], problems) == (1, [])


def test_an_empty_folder_has_none(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "nowhere") is None


def test_when_none_can_be_read_starting_anew_is_not_decided_for_the_user(last):
    last.write_bytes(last.read_bytes()[:-50])
    shutil.copy(last, last.with_name("previous.pt"))
    with pytest.raises(ValueError, match="no readable checkpoint in .*Move the fold") as refused:
        load_latest(last.parent)
    assert "\n" not in str(refused.value)
