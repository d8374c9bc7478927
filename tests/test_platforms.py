"""What other systems lack, taken away here: modules, signals, forked processes, float64."""

import ctypes
import dataclasses
import json
import pickle
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from emulated_device import emulated
from small_runs import (
    ROOT,
    assert_same_bits,
    command,
    rows,
    settings_of,
    train,
    write_split,
)
from torch import multiprocessing

from retinanet import platforms
from retinanet.atomic import check_writable
from retinanet.cli import jobs
from retinanet.data.coco import read_coco
from retinanet.data.loader import BatchDataset
from retinanet.data.transforms import Augment
from retinanet.devices import choose_device
from retinanet.tools.predict.detector import load

# A Python without what Windows lacks, which then runs a program.
WINDOWS = """
import builtins, os, runpy, signal, sys, types
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "SIGHUP"):
    delattr(signal, name)
for name in ("sched_getaffinity", "killpg", "getuid"):
    delattr(os, name)
held = types.SimpleNamespace(LK_NBLCK=2, locking=lambda descriptor, mode, size: None)
plain = builtins.__import__
def give(name, scope=None, *others, **more):  # others go by it to tell whether this is Windows
    ours = name == "msvcrt" and (scope or {}).get("__name__") == "retinanet.platforms"
    return held if ours else plain(name, scope, *others, **more)
builtins.__import__ = give
class Memory:
    def GetProcessMemoryInfo(self, process, counters, size):
        counters._obj[1] = 3 * 2**30
import ctypes
ctypes.WinDLL = lambda name: Memory()
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
program = sys.argv[0]
if program.endswith(".py"):
    runpy.run_path(program, run_name="__main__")
else:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_split(root, "train", range(1, 7))
    write_split(root, "val", range(20, 23))
    return root


def on_windows(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_program_starts_without_the_modules_of_unix(data, tmp_path):
    on_windows("train.py", *command(data, tmp_path / "run", "schedule.max_steps=2"))
    rows = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["memory_gib"] == 3.0
    best = tmp_path / "run/checkpoints/best.pt"
    on_windows("eval.py", f"checkpoint={best}", "log_images=0")
    on_windows("scripts.predict", best, data / "images", "--output", tmp_path / "found")
    assert (tmp_path / "found/coco.json").exists()


def test_every_script_is_imported_without_the_modules_of_unix(tmp_path):
    names = [path.stem for path in (ROOT / "scripts").glob("*.py")]
    program = tmp_path / "all.py"
    program.write_text("".join(f"import scripts.{name}\n" for name in names))
    on_windows(program)


def test_a_lock_of_windows_keeps_another_process_out(monkeypatch, tmp_path):
    class Held:
        LK_NBLCK = 2

        @staticmethod
        def locking(descriptor, mode, size):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(platforms, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", Held)
    with pytest.raises(BlockingIOError):
        platforms.lock(tmp_path / ".lock")


def test_the_counters_of_windows_have_the_peak_behind_two_of_32_bits():
    class Counters(ctypes.Structure):  # PROCESS_MEMORY_COUNTERS of psapi.h
        _fields_ = [("cb", ctypes.c_uint32), ("faults", ctypes.c_uint32)]
        _fields_ += [(f"size{i}", ctypes.c_size_t) for i in range(8)]

    assert ctypes.sizeof(Counters) == 9 * ctypes.sizeof(ctypes.c_size_t)
    assert Counters.size0.offset == ctypes.sizeof(ctypes.c_size_t)


def test_memory_of_this_process_is_between_a_tenth_and_a_hundred_gib():
    assert 0.1 < platforms.peak_memory() < 100


def test_spawned_workers_load_the_same(data, tmp_path):
    train(data, tmp_path / "forked", "schedule.max_steps=3", "data.workers=2")
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        train(data, tmp_path / "spawned", "schedule.max_steps=3", "data.workers=2")
    finally:
        multiprocessing.set_start_method(before, force=True)
    assert_same_bits(tmp_path / "forked", tmp_path / "spawned")


def test_spawned_workers_get_no_copy_of_the_annotations(data):
    few = read_coco(data / "train.json", data / "images")
    boxes = np.random.default_rng(0).uniform(size=(100_000, 4))
    many = dataclasses.replace(few, bbox=boxes)
    dataset = BatchDataset(many, Augment(min_size=96, max_size=128), 0, "stop")
    pickles = [bytes(ForkingPickler.dumps(dataset)) for _ in range(2)]
    assert max(map(len, pickles)) < 20_000  # of 3.2 MB
    first, second = map(pickle.loads, pickles)
    np.testing.assert_array_equal(first.data.bbox, boxes)
    assert np.shares_memory(first.data.bbox, second.data.bbox) or first.data.bbox.base is not None
    assert first.data.file_name(2) == many.file_name(2)


CHECKS_HELP = """
import argparse, sys
plain = argparse._ActionsContainer.add_argument
def add_argument(self, *names, **settings):  # as Python 3.14 does
    action = plain(self, *names, **settings)
    if action.help and hasattr(self, "_get_formatter"):
        self._get_formatter()._expand_help(action)
    return action
argparse._ActionsContainer.add_argument = add_argument
import importlib
from retinanet.cli.main import composer, read_arguments
for job in ("train", "eval"):
    read_arguments(job, ["-h"])
with composer("train") as reader:
    assert len(reader.sweep(["data=shapes", "loss.gamma=0,1"])[1]) == 2
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        importlib.import_module(f"scripts.{name}").main()
    except SystemExit as end:
        assert end.code == 0, name
"""


def test_help_is_well_formed_as_python_3_14_checks_it():
    scripts = [path for path in (ROOT / "scripts").glob("*.py") if "def main(" in path.read_text()]
    names = [path.stem for path in scripts]
    program = [sys.executable, "-c", CHECKS_HELP, *names]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == len(names)


def test_the_emulated_device_refuses_float64_and_tensors_of_the_host():
    with emulated("mps", float64=False):
        x = torch.ones(3, device="mps")
        assert (x + 1).device == torch.device("mps", 0)
        assert (x + 1).cpu().tolist() == [2, 2, 2]
        for wrong in (lambda: x.double(), lambda: torch.ones(1, device="mps", dtype=torch.float64)):
            with pytest.raises(TypeError, match="no float64"):
                wrong()
        with pytest.raises(RuntimeError, match="on the same device"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="to numpy"):
            np.asarray(x)


@pytest.mark.parametrize("settings", [[], ["loss=ohem", "optim=adamw"], ["loss.normalizer=ema"]])
def test_without_float64_training_evaluation_and_prediction_are_the_same(data, tmp_path, settings):
    settings = ["schedule.max_steps=3", "log_images=2", *settings]
    train(data, tmp_path / "cpu", *settings)
    on_cpu = load(tmp_path / "cpu/checkpoints/best.pt")
    image = data / "images/20.png"
    with emulated("mps", float64=False):
        typed = [t for t in command(data, tmp_path / "mps", *settings) if t != "device=cpu"]
        jobs.train(settings_of([*typed, "device=mps"]), typed)
        detector = load(tmp_path / "mps/checkpoints/best.pt", "mps")
        assert detector.device.type == "mps"
        found = detector([image], score=0.0)[0]
    assert rows(tmp_path / "mps") == rows(tmp_path / "cpu")
    expected = on_cpu([image], score=0.0)[0]
    torch.testing.assert_close(found.boxes, expected.boxes)
    torch.testing.assert_close(found.scores, expected.scores)


def test_a_mac_without_its_gpu_is_told_so():
    with pytest.raises(ValueError, match="device=mps, but torch finds no GPU of Apple; use dev"):
        choose_device("mps")


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(OSError, match=r"cannot write to .* \(.*\); choose another output_dir"):
            check_writable(folder, "output_dir")
    check_writable(tmp_path / "new/folder", "output_dir")
    assert list((tmp_path / "new/folder").iterdir()) == []
