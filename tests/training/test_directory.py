"""The run directory: recorded, continued, refused, moved aside."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from retinanet.training.run_directory import (
    RunDirectory,
    changed_keys,
    flatten,
    read_rows,
    read_run,
)

SETTINGS = {
    "data": {"root": "data/shapes", "workers": 2, "min_size": 192},
    "loss": {"alpha": {"cell": 0.3, "default": 0.25}, "gamma": 2.0},
    "optim": {"lr": 1e-5},
    "schedule": {"epochs": 12, "max_steps": None, "milestones": [0.5, 0.9]},
    "evaluation": {"backend": "arrays"},
    "output_dir": "runs/try",
    "init_from": None,
    "overwrite": False,
    "device": "auto",
    "compile": False,
    "log_every_steps": 20,
    "save_every_steps": None,
}


def changed(**values) -> dict:
    """The settings with other values: ``changed(loss__gamma=1.0)``."""
    settings = copy.deepcopy(SETTINGS)
    for key, value in values.items():
        group, _, name = key.rpartition("__")
        (settings[group] if group else settings)[name] = value
    return settings


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "runs" / "try")
    directory.make(SETTINGS, ["loss.gamma=2.0"], train_data="abc")
    return directory


def test_what_runs_is_recorded(run):
    assert yaml.safe_load((run.root / "config.yaml").read_text()) == SETTINGS
    assert (run.root / "overrides.txt").read_text() == "loss.gamma=2.0\n"
    (start,) = json.loads((run.root / "environment.json").read_text())
    assert start["train_data"] == "abc"
    assert start["versions"]["torch"]
    assert run.checkpoints.is_dir()


def test_the_same_command_continues_and_every_start_is_recorded(run):
    assert run.check(SETTINGS, overwrite=False) is False
    run.make(SETTINGS, [])
    assert len(json.loads((run.root / "environment.json").read_text())) == 2
    (run.root / "environment.json").write_text("")  # damaged
    run.make(SETTINGS, [])
    assert len(json.loads((run.root / "environment.json").read_text())) == 1


def test_another_setting_is_refused_by_key_and_both_values(run):
    with pytest.raises(ValueError) as error:
        run.check(changed(loss__gamma=1.0, data__min_size=224), overwrite=False)
    message = str(error.value)
    assert "holds a run with data.min_size=192, loss.gamma=2.0" in message
    assert "this command asks for data.min_size=224, loss.gamma=1.0" in message
    assert "overwrite=true" in message


MAY_DIFFER = {"data__root": "/elsewhere", "data__workers": 0, "device": "cpu", "compile": True}
MAY_DIFFER |= {"log_every_steps": 1, "save_every_steps": 5, "evaluation__backend": "pycocotools"}
MAY_DIFFER |= {"output_dir": "/moved/try", "overwrite": True, "schedule__epochs": 24}


@pytest.mark.parametrize("key", MAY_DIFFER)
def test_what_does_not_change_the_weights_may_differ_and_epochs_may_rise(run, key):
    for overwrite in (False, True):
        assert run.check(changed(**{key: MAY_DIFFER[key]}), overwrite=overwrite) is False


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"schedule__epochs": 6}, "schedule.epochs"),
        ({"schedule__max_steps": 100}, "schedule.max_steps"),
        ({"schedule__milestones": [0.5]}, "schedule.milestones"),
        ({"loss__alpha": {"cell": 0.4, "default": 0.25}}, "loss.alpha"),
        ({"loss__alpha": 0.25}, "loss.alpha"),
        ({"optim__lr": 2e-5}, "optim.lr"),
        ({"init_from": "x.pt"}, "init_from"),
    ],
)
def test_everything_else_may_not(values, key):
    assert list(changed_keys(SETTINGS, changed(**values))) == [key]


def test_a_key_that_came_or_went_is_a_difference():
    old = copy.deepcopy(SETTINGS)
    del old["loss"]["gamma"]
    assert changed_keys(old, SETTINGS) == {"loss.gamma": (None, 2.0)}


def test_groups_are_flattened_and_maps_of_alpha_are_values():
    flat = flatten(SETTINGS)
    assert flat["loss.alpha"] == {"cell": 0.3, "default": 0.25}
    assert flat["schedule.milestones"] == [0.5, 0.9]
    assert flat["output_dir"] == "runs/try"


def test_overwrite_moves_the_old_run_aside_and_loses_nothing(run):
    (run.checkpoints / "last.pt").write_bytes(b"first")
    for number, gamma in enumerate((1.0, 0.5), start=1):
        settings = changed(loss__gamma=gamma)
        assert run.check(settings, overwrite=True) is True
        assert not run.root.with_name(f"try.old-{number}").exists()
        run.make(settings, [])
        assert run.root.with_name(f"try.old-{number}").exists()
        assert not (run.checkpoints / "last.pt").exists()
    assert (run.root.with_name("try.old-1") / "checkpoints/last.pt").read_bytes() == b"first"
    assert yaml.safe_load((run.root / "config.yaml").read_text())["loss"]["gamma"] == 0.5


def test_checking_changes_nothing(tmp_path):
    directory = RunDirectory(tmp_path / "new")
    assert directory.check(SETTINGS, overwrite=False) is False
    assert not directory.root.exists()


@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_and_files_of_others_are_never_touched(tmp_path, name, overwrite):
    (tmp_path / name).write_text("- important\n")
    for root in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match="exists and is not a run of this program"):
            RunDirectory(root).check(SETTINGS, overwrite=overwrite)
    assert (tmp_path / name).read_text() == "- important\n"


def test_a_run_killed_at_its_first_write_can_be_started_again(tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path / "try")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            directory.make(SETTINGS, [])
    assert directory.root.exists()
    assert directory.check(SETTINGS, overwrite=False) is False
    directory.make(SETTINGS, [])
    assert directory.check(SETTINGS, overwrite=False) is False


HOLD = """
import sys, time
from pathlib import Path
from retinanet.training.run_directory import RunDirectory
RunDirectory(Path(sys.argv[1])).make({"schedule": {}}, [])
sys.stdout.write("ready\\n")
sys.stdout.flush()
time.sleep(60)
"""


def test_two_processes_cannot_train_in_one_directory(tmp_path):
    root = tmp_path / "run"
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, env=place
    ) as other:
        assert other.stdout.readline() == b"ready\n"
        for settings in ({"schedule": {}}, {"schedule": {"epochs": 2}}):
            with pytest.raises(ValueError, match="another process trains in"):
                RunDirectory(root).make(settings, [])
        other.kill()
        other.wait()
    RunDirectory(root).make({"schedule": {}}, [])
    assert len(json.loads((root / "environment.json").read_text())) == 2


def test_rows_after_the_checkpoint_are_forgotten(run):
    rows = [
        {"step": 10, "loss/class": 1.0},
        {"step": 10, "AP": 0.1},
        {"step": 20, "loss/class": 0.5},
        {"step": 20, "AP": 0.2},  # the checkpoint does not know of this evaluation
        {"step": 25, "loss/class": 0.4},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 26, "lo'
    run.metrics.write_text(text)
    run.forget_after(20, evaluated_step=10, reported_step=20)
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == rows[:3]
    run.forget_after(0, evaluated_step=0, reported_step=0)
    assert run.metrics.read_text() == ""


def test_reports_of_steps_whose_row_will_be_written_again_are_forgotten(run):
    run.bad_steps.write_text('{"step": 3}\n{"step": 12}\n')
    run.forget_after(16, evaluated_step=0, reported_step=10)
    assert read_rows(run.bad_steps) == [{"step": 3}]
    assert not run.metrics.exists()  # without rows there is nothing to forget


def test_every_start_is_recorded_also_after_a_kill_and_replaced_images_stay(run):
    run.root.mkdir(exist_ok=True)
    facts = {"state": "running", "step": 0, "total_steps": 9, "best": {}, "replaced": ["a"]}
    run.record_run(facts | {"expected": []}, started=True)
    run.record_run(facts | {"step": 4})  # a save; then it is killed
    run.record_run(facts | {"step": 4, "replaced": ["b"]}, started=True)
    run.record_run(facts | {"state": "finished", "step": 9, "replaced": []})
    record = read_run(run.root)
    assert [start["step"] for start in record["starts"]] == [0, 4]
    assert [stop["state"] for stop in record["stops"]] == ["finished"]
    assert record["replaced"] == ["a", "b"]


def test_damaged_rows_are_left_out(run):
    run.metrics.write_bytes(b'{"step": 1}\n\xff\xfe{"step"\n{"step": 2}\n')
    assert [row["step"] for row in read_rows(run.metrics)] == [1, 2]
