"""A loader that fails ends a run in one line, in seconds, with its last step saved."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from launching import (
    PATIENCE,
    command_of,
    descendants,
    environment,
    finish,
    kill,
    started,
    train_line,
    write_data,
)
from small_runs import ROOT, assert_same_bits, rows

from retinanet.signals import STATUS
from retinanet.training.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="/dev/shm and /proc are Linux's"),
]
# Seconds in which a failure must be reported, on a busy machine.
SECONDS = 30
TWO = "data.workers=2"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def clean(data, tmp_path_factory) -> Path:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("clean")
    assert finish(train_line(data, folder / "run", 1), folder / "log") == 0
    return folder / "run"


@pytest.fixture
def small_shared_memory():
    """Makes a command run with a /dev/shm of so many KiB."""

    def within(line: list[str], size: int) -> list[str]:
        mount = f"mount -t tmpfs -o size={size}k tmpfs /dev/shm"
        return ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *line]

    try:
        subprocess.run(within(["true"], 64), capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small /dev/shm needs unshare and a mount namespace: {error}")
    return within


def wait_for_rows(output: Path, process: subprocess.Popen) -> None:
    file = output / "metrics.jsonl"
    deadline = time.monotonic() + PATIENCE
    while not (file.exists() and file.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers_of(process: subprocess.Popen) -> list[int]:
    return [pid for pid in descendants(process.pid) if "train.py" in command_of(pid)]


def last_line(log: Path) -> str:
    """The only line of an error."""
    said = log.read_text()
    assert "Traceback" not in said, said[-3000:]
    assert said.count("LoaderError: ") == 1
    return " ".join(said[said.index("LoaderError: ") :].split())


def saved_step(output: Path, log: Path) -> int:
    """The step that a run says it saved, which it has."""
    step = int(re.search(r"saved +step (\d+); the same command goes on", log.read_text())[1])
    assert load_checkpoint(output / "checkpoints/last.pt")["step"] == step
    return step


def test_too_little_shared_memory_is_refused_before_anything_is_written(
    data, tmp_path, small_shared_memory
):
    output, log = tmp_path / "run", tmp_path / "log"
    line = train_line(data, output, 1, TWO)
    assert finish(small_shared_memory(line, 256), log) == 1
    said = last_line(log)
    for word in ("/dev/shm", " KiB free", "docker run --shm-size", "--ipc=host", "workers=0"):
        assert word in said
    assert not output.exists()
    # It can be obeyed.
    assert finish(small_shared_memory(train_line(data, output, 1), 256), log) == 0


def test_shared_memory_that_others_fill_ends_the_run_with_its_step_saved(
    data, tmp_path, small_shared_memory
):
    output, log = tmp_path / "run", tmp_path / "log"
    # No evaluation: its loader would refuse to start, in other words.
    settings = TWO, "schedule.epochs=500", "save_every_steps=null", "evaluation.every_epochs=500"
    line = train_line(data, output, 1, *settings)
    with started(small_shared_memory(line, 2048), log) as process:
        wait_for_rows(output, process)
        start = time.monotonic()
        filler = Path(f"/proc/{process.pid}/root/dev/shm/filler")
        while process.poll() is None:
            assert time.monotonic() - start < SECONDS, log.read_text()[-3000:]
            # What the loader gives back is taken.
            with suppress(OSError), filler.open("ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            time.sleep(0.01)
        assert process.wait() == 1
    said = last_line(log)
    for word in ("/dev/shm is full", "docker run --shm-size", "--ipc=host", "data.workers=0"):
        assert word in said
    assert saved_step(output, log) >= 1


def test_eval_refuses_and_predict_goes_without_workers(data, clean, tmp_path, small_shared_memory):
    checkpoint, log = str(clean / "checkpoints/best.pt"), tmp_path / "log"
    line = [sys.executable, str(ROOT / "eval.py"), f"checkpoint={checkpoint}", TWO, "device=cpu"]
    line += [f"output_dir={tmp_path / 'eval'}"]
    assert finish(small_shared_memory(line, 64), log) == 1
    assert "/dev/shm is too small: it has " in last_line(log)
    line = [sys.executable, "-m", "scripts.predict", checkpoint, str(data / "images")]
    line += ["--output", str(tmp_path / "found"), "--no-draw", "--device=cpu"]
    done = subprocess.run(
        small_shared_memory(line, 64), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_killed_worker_ends_the_run_which_then_goes_on_to_the_same_bits(data, clean, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    line = train_line(data, output, 1, TWO, "save_every_steps=null")
    with started(line, log) as process:
        wait_for_rows(output, process)
        start = time.monotonic()
        kill(workers_of(process)[-1])
        assert process.wait(timeout=SECONDS) == 1
    assert time.monotonic() - start < SECONDS
    assert "killed by SIGKILL, probably because memory ran out" in last_line(log)
    assert saved_step(output, log) >= 1
    assert finish(line, log) == 0, log.read_text()[-3000:]
    assert rows(output) == rows(clean)
    assert_same_bits(output, clean)


def test_a_signal_ends_the_wait_for_workers_that_hang(data, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    line = train_line(data, output, 1, TWO, "schedule.epochs=500", "save_every_steps=null")
    with started(line, log) as process:
        wait_for_rows(output, process)
        for pid in workers_of(process):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2)  # what was read ahead is used up
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=SECONDS) == STATUS
    said = log.read_text()
    assert "Traceback" not in said
    step = load_checkpoint(output / "checkpoints/last.pt")["step"]
    assert f"after step {step} of" in said


def test_an_error_while_the_training_loader_waits_ends_the_process(data, tmp_path):
    # The exception keeps the frame of the loop alive, and with it the workers of the training.
    root = tmp_path / "data"
    shutil.copytree(data, root)
    image = root / "images/30.png"  # the first one to evaluate
    image.write_bytes(image.read_bytes()[:100])
    line = train_line(root, tmp_path / "run", 1, "data.workers=1", "schedule.epochs=1")
    assert finish(line, tmp_path / "log") == 1
    assert str(image) in (tmp_path / "log").read_text()
