"""Killed at any moment, a run goes on as if nothing had been: same weights, rows and steps."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import (
    PATIENCE,
    TORCHRUN,
    count_starts,
    environment,
    fields_of,
    finish,
    kill,
    kill_all,
    random_moment,
    ranks_of,
    started,
    train_line,
    wait_for_start,
    write_data,
)
from small_runs import ROOT, assert_same_bits, rows, steps_on_board

from retinanet.signals import STATUS
from retinanet.training.checkpoint import load_checkpoint
from retinanet.training.run_directory import read_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def clean(data, tmp_path_factory) -> dict[int, Path]:
    """A run that nothing disturbs, for each number of ranks, and the seconds it took."""
    folder = tmp_path_factory.mktemp("clean")
    for ranks in (1, 2):
        status = finish(train_line(data, folder / str(ranks), ranks), folder / f"{ranks}.log")
        assert status == 0, (folder / f"{ranks}.log").read_text()[-3000:]
    return {ranks: folder / str(ranks) for ranks in (1, 2)}


def seconds_of(output: Path) -> float:
    """From a run's first file to its last row."""
    first, last = (output / name for name in ("config.yaml", "metrics.jsonl"))
    return last.stat().st_mtime - first.stat().st_mtime


def wait_for_rows(output: Path, number: int, process: subprocess.Popen) -> None:
    while process.poll() is None and len(read_rows(output / "metrics.jsonl")) < number:
        time.sleep(0.01)


def assert_same_run(run: Path, clean: Path) -> None:
    assert rows(run) == rows(clean)
    assert_same_bits(run, clean)
    assert steps_on_board(run) == steps_on_board(clean)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)])
def test_the_same_command_again_gives_the_same_run(
    data, clean, tmp_path, times, tally, ranks, workers
):
    kills = times(int((ranks, workers) in ((1, 1), (2, 0))), 9)
    if not kills:
        pytest.skip("with --long only")
    generator = random.Random(10 * ranks + workers)
    done = number = 0
    while done < kills:
        number += 1
        output = tmp_path / str(number)
        line = train_line(data, output, ranks, f"data.workers={workers}")
        done += run_with_kills(line, output, generator, seconds_of(clean[ranks]) / 4, kills - done)
        assert_same_run(output, clean[ranks])
    tally(f"{done} SIGKILLs of {number} runs, {ranks} ranks, {workers} workers: all identical")


def run_with_kills(
    line: list[str], output: Path, generator: random.Random, longest: float, kills: int
) -> int:
    """Carry a run to its end, killed at most so often, each time within ``longest`` seconds."""
    done, log = 0, output.with_suffix(".log")
    while True:
        with started(line, log) as process:
            if done < kills and wait_for_start(output, process, count_starts(output) + 1):
                random_moment(generator, longest)
                if process.poll() is None:
                    kill_all(process.pid)
                    done += 1
                    continue
            assert process.wait(timeout=PATIENCE) == 0, log.read_text()[-3000:]
            return done


@pytest.mark.parametrize("number", range(4))
def test_a_dead_rank_is_started_again_by_torchrun(data, clean, tmp_path, times, tally, number):
    kills = times(int(number == 0), 5)
    if not kills:
        pytest.skip("with --long only")
    generator = random.Random(number)
    output, log = tmp_path / "run", tmp_path / "log"
    line = train_line(data, output, 2, options=["--max-restarts=9"])
    span, done = seconds_of(clean[2]), 0
    with started(line, log) as process:
        while done < kills and wait_for_start(output, process, done + 1):
            random_moment(generator, span / 2)
            pids = ranks_of(process.pid)
            if len(pids) == 2 and process.poll() is None:
                kill(generator.choice(pids))
                done += 1
        status = process.wait(timeout=PATIENCE)
    assert status == 0, log.read_text()[-3000:]
    assert_same_run(output, clean[2])
    tally(f"{done} killed ranks under torchrun --max-restarts: recovered, identical")


def test_another_number_of_ranks_goes_on(data, clean, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    for ranks in (2, 1, 2):
        line = train_line(data, output, ranks)
        with started(line, log) as process:
            assert wait_for_start(output, process, count_starts(output) + 1)
            wait_for_rows(output, len(read_rows(output / "metrics.jsonl")) + 3, process)
            kill_all(process.pid)
    assert (output / "checkpoints/last.pt").exists()
    assert finish(train_line(data, output, 1), log) == 0, log.read_text()[-3000:]
    found, expected = rows(output), rows(clean[1])
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        for name in row.keys() - {"step", "epoch"}:
            # The order of sums differs: rounding, which training makes larger.
            near = other[name] and pytest.approx(other[name], rel=0.02, abs=0.02)
            assert row[name] == near, name


# Signals


# Who gets which signal, and torchrun's options: it passes on what it is told to handle.
HANDLED = ["--signals-to-handle=SIGTERM,SIGINT,SIGUSR1"]
SIGNALED = {
    "one rank, SIGUSR1": ("rank", signal.SIGUSR1, []),
    "one rank, SIGTERM": ("rank", signal.SIGTERM, []),
    "torchrun, SIGTERM": ("agent", signal.SIGTERM, []),
    "torchrun, SIGUSR1": ("agent", signal.SIGUSR1, HANDLED),
    "torchrun, SIGUSR1 that it does not handle": ("agent", signal.SIGUSR1, []),
    "torchrun, SIGKILL": ("agent", signal.SIGKILL, []),
    "all, SIGINT": ("all", signal.SIGINT, []),
}


ALWAYS = ("one rank, SIGUSR1", "torchrun, SIGUSR1 that it does not handle")


@pytest.mark.parametrize("case", SIGNALED)
def test_a_signal_ends_all_ranks_after_one_step(data, clean, tmp_path, times, tally, case):
    if not times(int(case in ALWAYS), 1):
        pytest.skip("with --long only")
    whom, number, options = SIGNALED[case]
    output, log = tmp_path / "run", tmp_path / "log"
    line = train_line(data, output, 2, options=options)
    with started(line, log) as process:
        assert wait_for_start(output, process, 1)
        wait_for_rows(output, 3, process)
        pids = ranks_of(process.pid)
        assert len(pids) == 2
        targets = {"rank": pids[1:], "agent": [process.pid], "all": [process.pid, *pids]}[whom]
        before = time.monotonic()
        for pid in targets:
            os.kill(pid, number)
        while any(fields_of(pid)[0] not in ("", "Z") for pid in pids):  # a Z has ended
            assert time.monotonic() - before < 30, log.read_text()[-3000:]
            time.sleep(0.01)
        seconds = time.monotonic() - before
        process.wait(timeout=PATIENCE)
    said = (output / "train.log").read_text()
    assert said.count("stopped    by ") == 1
    step = load_checkpoint(output / "checkpoints/last.pt")["step"]
    assert f"after step {step} of 24; the same command goes on" in said
    assert seconds < 6  # a step takes a tenth of a second
    assert finish(train_line(data, output, 2), log) == 0, log.read_text()[-3000:]
    assert_same_run(output, clean[2])
    tally(f"{case}: all ranks saved and ended after step {step}, {seconds:.1f} s later; identical")


def test_the_exit_status_tells_an_ended_run_from_a_finished_one(data, tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    with started(train_line(data, output, 1), log) as process:
        assert wait_for_start(output, process, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == STATUS
    assert "Traceback" not in log.read_text()


# Saving


def test_killed_while_it_saves_a_whole_checkpoint_is_left(tmp_path, times, tally):
    kills = times(40, 100)
    program = Path(__file__).with_name("save_and_be_killed.py")
    done = subprocess.run(
        [sys.executable, program, tmp_path, str(kills)],
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    counts = json.loads(done.stdout)
    assert counts["kills"] == counts["readable"] == kills
    assert counts["lost"] == 0
    assert counts["saved"] > kills  # it was killed in the middle of it, not before
    tally(
        f"{kills} kills while saving: {kills - counts['readable']} unreadable, none older than said"
    )


def test_on_a_full_disk_the_old_checkpoint_is_left(data, tmp_path, tally):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        log = tmp_path / "log"
        line = train_line(data, disk / "run", 1, "log_images=0")
        assert finish(line, log) == 1
        said = log.read_text()
        assert "No space left on device" in said or "could not write checkpoint" in said
        assert "Traceback" not in said
        assert load_checkpoint(disk / "run/checkpoints/last.pt")["step"] > 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    tally("full disk: the run ended with one line, its last checkpoint is whole")


# Several machines


def start_nodes(data: Path, output: Path, port: int, *options: str) -> list[list[str]]:
    """The commands of two nodes with a rank each."""
    own = train_line(data, output, 1)[1:]
    together = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=7"]
    return [[*TORCHRUN, *together, f"--rdzv-endpoint=localhost:{port}", *options, *own]] * 2


def test_two_nodes_on_one_machine_train_and_evaluate(data, clean, tmp_path, tally):
    output = tmp_path / "run"
    lines = start_nodes(data, output, 29517)
    logs = [tmp_path / f"{node}.log" for node in range(2)]
    with started(lines[0], logs[0]) as first, started(lines[1], logs[1]) as second:
        assert [first.wait(timeout=PATIENCE), second.wait(timeout=PATIENCE)] == [0, 0]
    assert_same_run(output, clean[2])
    assert "AP" in rows(output)[-1]
    tally("two torchrun agents on loopback: identical to two ranks of one")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_rank_of_two_nodes_is_started_again(
    data, clean, tmp_path, times, tally, monkeypatch, victim
):
    if not times(0, 1):
        pytest.skip("with --long only")
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    output = tmp_path / "run"
    lines = start_nodes(data, output, 29518 + victim, "--max-restarts=3")
    logs = [tmp_path / f"{node}.log" for node in range(2)]
    with started(lines[0], logs[0]) as first, started(lines[1], logs[1]) as second:
        assert wait_for_start(output, first, 1)
        wait_for_rows(output, 3, first)
        kill(ranks_of((first, second)[victim].pid)[0])
        assert [first.wait(timeout=PATIENCE), second.wait(timeout=PATIENCE)] == [0, 0]
    assert_same_run(output, clean[2])
    tally(f"a killed rank of node {victim} of two under --max-restarts: recovered, identical")
