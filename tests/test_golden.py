"""What the commands computed and said on the day it was recorded, to the bit.

Only through train.py, eval.py, scripts/check_data.py and the files of run directories, so that
any change of the package's inside leaves this file alone. A change that should give other
numbers, keys or messages records them anew, and says so in its commit:

    RETINANET_TEST_DATA=FOLDER python -m pytest tests/test_golden.py --record-golden

One test alone with that option records its part alone; the run in assets/golden/run is recorded
by the first test of "A stored run".
"""

import hashlib
import json
import lzma
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent / "reliability"))
from broken_sets import FAULTS, REFUSED, DataSet, split_of, write_images

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "assets" / "golden"
STORED = GOLDEN / "run"
# What depends on the clock and on the process.
TIMES = ("images_per_s", "data_wait", "memory_gib")
LOSSES = ("loss/class", "loss/box")
# On other machines. torch's kernels for AVX512, for AVX2 and for no vectors at all were compared
# on the run "tiny": losses differ by 5e-4 or less in the first five steps. Then training spreads
# what rounding begins.
ELSEWHERE = {"steps": 5, "rel": 2e-3}

CPU = ["device=cpu", "precision=fp32", "data.workers=0"]
SMALL = [*CPU, "data.min_size=96", "data.max_size=128", "log_every_steps=1", "log_images=0"]
SMALL += ["schedule.warmup_steps=5"]
SHAPES = ["data=shapes", "data.root=shapes", *SMALL]
TWENTY = ["schedule.max_steps=20", "evaluation.max_images=4"]
RUNS = {
    "tiny": [*SHAPES, *TWENTY, "model=tiny", "optim.lr=0.005"],
    "resnet18": [
        *["data=custom", "data.root=bccd", *SMALL, *TWENTY, "model=resnet18"],
        *["data.train_images=train", "data.train_annotations=annotations/train.json"],
        *["data.val_images=val", "data.val_annotations=annotations/val.json"],
        *["model.weights=null", "model.norm=group", "model.head_norm=group"],
        *["model.frozen_stages=0", "model.fpn_channels=32", "model.head_channels=32"],
        *["model.head_depth=1", "optim.batch_size=4", "optim.reference_batch=null"],
        "optim.lr=0.002",
    ],
    "accumulate": [*SHAPES, *TWENTY, "optim=adamw", "optim.accumulate=2", "ema=average"],
    "ohem": [*SHAPES, *TWENTY, "loss=ohem", "optim.lr=0.005"],
}
# A network small enough to be stored: see narrow().
LIVE = 8
NARROW = [*SHAPES, "output_dir=run", "model=tiny", "model.head_depth=1", "ema=none"]
NARROW += [f"model.{layers}_channels={LIVE}" for layers in ("fpn", "head")]
NARROW += ["evaluation.max_images=40", "postprocess.score_threshold=0.02", "optim.lr=0.05"]
EVALUATE = ["checkpoint=run/checkpoints/last.pt", "output_dir=scored", "log_images=0"]
# Steps to be narrowed, to be stored, to be continued to.
STEPS = (1, 100, 110)


def on_this_machine() -> dict[str, str]:
    """Everything that bits depend on."""
    packages = {name: version(name) for name in ("torchvision", "numpy", "pillow")}
    info = Path("/proc/cpuinfo")
    found = re.findall(r"^(model name|cpu family|model)\s*: (.*)$", info.read_text(), re.M)
    processor = ", ".join(f"{name} {value}" for name, value in sorted(dict(found).items()))
    return {
        "torch": torch.__version__,
        **packages,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": processor or platform.processor(),
    }


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums of several threads have another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def recording(request) -> bool:
    return request.config.getoption("--record-golden")


@pytest.fixture
def folder(request, tmp_path, monkeypatch) -> Path:
    """An empty working folder with the built-in set below it: relative paths are the same always.

    The set is drawn once for many sessions, and anew by the slow test.
    """
    (tmp_path / "shapes").symlink_to(request.config.cache.mkdir("golden") / "shapes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(program: str, *arguments: str) -> int | None:
    """Exit status of a program that runs in this process."""
    before, sys.argv = sys.argv, [program, *arguments]
    try:
        runpy.run_path(str(ROOT / program), run_name="__main__")
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before
    return 0


def rows_of(run: Path) -> list[dict]:
    """Rows of losses as written, without what the clock decides."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    rows = [row for row in rows if "loss/class" in row]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def checksum(run: Path) -> str:
    """Of the weights in last.pt and of their average."""
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    digest = hashlib.sha256()
    for part in ("model", "ema"):
        for _, tensor in sorted((state[part] or {}).items()):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def write_lines(path: Path, content: dict) -> None:
    """JSON with an item of each list on a line."""
    text = json.dumps(content, ensure_ascii=False)
    path.write_text(re.sub(r'(?<=[{\[]|,) ?(?=\{"step"|"\w+": [\[{"])', "\n ", text) + "\n")


def check_losses(name: str, run: Path, recording: bool, *, with_weights: bool = True) -> None:
    """Rows and weights of a run are those of the asset, or become it."""
    asset = GOLDEN / f"losses_{name}.json"
    measured = {"recorded_on": on_this_machine(), "rows": rows_of(run)}
    if with_weights:
        measured["weights"] = checksum(run)
    if recording:
        write_lines(asset, measured)
    recorded = json.loads(asset.read_text())
    if recorded["recorded_on"] == measured["recorded_on"]:
        assert measured == recorded
        return
    assert len(measured["rows"]) == len(recorded["rows"])
    first = ELSEWHERE["steps"] if with_weights else 1
    for now, then in list(zip(measured["rows"], recorded["rows"], strict=True))[:first]:
        assert now.keys() == then.keys()
        for key in LOSSES:
            assert now[key] == pytest.approx(then[key], rel=ELSEWHERE["rel"]), now["step"]


# Losses


@pytest.mark.parametrize("name", RUNS)
def test_twenty_steps_have_the_recorded_losses_and_weights(name, folder, real_data, recording):
    if name == "resnet18":
        (folder / "bccd").symlink_to(real_data("bccd"))
    assert call("train.py", *RUNS[name], "output_dir=run") == 0
    check_losses(name, folder / "run", recording)


@pytest.mark.slow
def test_the_demo_begins_with_the_recorded_losses(tmp_path, recording):
    line = [sys.executable, str(ROOT / "train.py"), *CPU, "output_dir=run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    metrics, last = tmp_path / "run/metrics.jsonl", 300
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        # The schedule is that of the whole run, which is ended early.
        while process.poll() is None and f'"step": {last},' not in (
            metrics.read_text() if metrics.exists() else ""
        ):
            time.sleep(0.2)
        process.terminate()
    rows = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(rows[: last // 20]))
    check_losses("demo", tmp_path / "run", recording, with_weights=False)


# A stored run


def narrow(run: Path) -> None:
    """Of every layer of backbone and pyramid only the first channels live on.

    Group norm has groups of 8 channels here. A group of zeros stays zero, gives nothing to the
    next layer, and has no gradient behind a ReLU: it never comes back in training, and millions
    of zeros take no room in a compressed file.
    """
    path = run / "checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    for name, weight in state["model"].items():
        if name.startswith("head."):
            continue
        if weight.dim() == 4:
            weight[:, LIVE:] = 0
        if weight.dim() == 4 or name.endswith(".bias"):
            weight[LIVE:] = 0
    for moments in state["optimizer"]["state"].values():
        moments["momentum_buffer"].zero_()
    torch.save(state, path)


def record_run(folder: Path) -> None:
    """Train the narrow network, and keep of its files what continuing and evaluating take."""
    run = folder / "run"
    assert call("train.py", *NARROW, f"schedule.max_steps={STEPS[0]}") == 0
    narrow(run)
    assert call("train.py", *NARROW, f"schedule.max_steps={STEPS[1]}") == 0
    assert call("eval.py", *EVALUATE) == 0
    environment = json.loads((run / "environment.json").read_text())
    starts = [{**start, "folder": ".", "platform": "Linux"} for start in environment]
    (run / "environment.json").write_text(json.dumps(starts, indent=2) + "\n")
    shutil.rmtree(STORED, ignore_errors=True)
    for name in ("config.yaml", "overrides.txt", "environment.json", "metrics.jsonl", "train.log"):
        (STORED / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(run / name, STORED / name)
    for name in ("eval", "checkpoints"):
        (STORED / name).mkdir()
    shutil.copy(folder / "scored/eval/metrics.json", STORED / "eval/metrics.json")
    packed = lzma.compress((run / "checkpoints/last.pt").read_bytes())
    (STORED / "checkpoints/last.pt.xz").write_bytes(packed)
    write_lines(STORED / "recorded_on.json", on_this_machine())


@pytest.fixture
def stored(folder) -> Path:
    """The stored run, as it was when it ended; metrics.json is not among its files."""
    run = folder / "run"
    shutil.copytree(STORED, run, ignore=shutil.ignore_patterns("eval", "recorded_on.json"))
    packed = run / "checkpoints/last.pt.xz"
    packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    packed.unlink()
    return run


def test_a_stored_checkpoint_holds_tensors_and_plain_values(folder, recording, request):
    if recording:
        record_run(folder)
        shutil.rmtree(folder / "run")
        shutil.rmtree(folder / "scored")
    run = request.getfixturevalue("stored")
    state = torch.load(run / "checkpoints/last.pt", weights_only=True)
    assert state["step"] == STEPS[1]
    assert state["classes"]["names"] == ["disc", "square", "triangle", "star", "ring", "cross"]
    assert sum(weight.count_nonzero() for weight in state["model"].values()) > 10_000
    size = sum(path.stat().st_size for path in STORED.rglob("*") if path.is_file())
    assert size < 600_000


def test_a_stored_checkpoint_has_the_recorded_metrics(folder, stored):
    assert call("eval.py", *EVALUATE) == 0
    metrics = json.loads((folder / "scored/eval/metrics.json").read_text())
    recorded = json.loads((STORED / "eval/metrics.json").read_text())
    assert recorded["AP50"] > 0
    if json.loads((STORED / "recorded_on.json").read_text()) == on_this_machine():
        assert metrics == recorded
        return
    # Boxes of nearly the same score change places, a few hundred of them in all.
    assert metrics.keys() == recorded.keys()
    assert metrics["num_gt"] == recorded["num_gt"]
    assert metrics["AP50"] == pytest.approx(recorded["AP50"], abs=0.01)
    assert metrics["num_detections"] == pytest.approx(recorded["num_detections"], rel=0.02)


def test_a_stored_run_continues_with_the_recorded_losses(stored, recording):
    before = rows_of(stored)
    assert call("train.py", *NARROW, f"schedule.max_steps={STEPS[2]}") == 0
    rows = rows_of(stored)
    assert rows[: len(before)] == before
    assert [row["step"] for row in rows] == [*range(1, STEPS[2] + 1)]
    lines = (stored / "metrics.jsonl").read_text().splitlines(keepends=True)
    new = [line for line in lines if json.loads(line)["step"] > STEPS[1]]
    (stored / "metrics.jsonl").write_text("".join(new))
    check_losses("continued", stored, recording)


# What is said


@pytest.mark.parametrize("program", ["train", "eval"])
def test_help_lists_the_recorded_keys_and_choices(program, capsys, recording):
    assert call(f"{program}.py", "--help") == 0
    said = capsys.readouterr().out
    # A line that continues the one above is far to the right; a choice ends in its names.
    choices = re.findall(r"^  (\w+=) +(\S.*(?:\n {10,}\S.*)*)", said, re.M)
    keys = re.findall(r"^  ((?:\w+\.)?\w+)=\S", said, re.M)
    listed = [group + " ".join(names.split()) for group, names in choices] + keys
    asset = GOLDEN / f"keys_{program}.txt"
    if recording:
        asset.write_text("\n".join(listed) + "\n")
    assert listed == asset.read_text().splitlines()


BROKEN = ["data=custom", "data.root=data", "model=tiny", "data.min_size=64", "data.max_size=96"]
BROKEN += ["data.train_images=images", "data.train_annotations=train.json", "data.workers=0"]
BROKEN += ["data.val_images=images", "data.val_annotations=val.json"]
# Some images are not read before training begins.
FEW_STEPS = ["schedule.max_steps=4", "optim.batch_size=4", "device=cpu", "log_images=0"]


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_data_is_told_in_the_recorded_words(
    name, tmp_path, monkeypatch, capsys, recording
):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    root.mkdir()
    write_images(root / "images")
    made = DataSet(root, split_of(10, 4), split_of(20, 3))
    FAULTS[name].seed(made)
    made.write()

    pixels = ["--images"] if FAULTS[name].pixels else []
    call("scripts/check_data.py", *BROKEN, "--show", "20", *pixels)
    findings = re.search(r"\n\n(.*?)\n\nDATA", "\n\n" + capsys.readouterr().out, re.S)[1]
    said = {"check_data": " ".join(findings.split())}
    if FAULTS[name].effect is REFUSED:
        assert call("train.py", *BROKEN, *FEW_STEPS, "output_dir=run") == 1
        said["train"] = " ".join(capsys.readouterr().err.split())
    said = {program: words.replace(str(tmp_path), "HERE") for program, words in said.items()}

    asset = GOLDEN / "messages.json"
    messages = json.loads(asset.read_text()) if asset.exists() else {}
    if recording:
        messages[name] = said
        kept = {fault: messages[fault] for fault in FAULTS if fault in messages}
        asset.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    assert said == messages[name]
