"""Time this package beside the public code of its peers, in turns, on this machine.

  loss         focal loss, forward and backward, at COCO's size
  matching     anchors to 1, 5, 50 and 300 boxes at COCO's size
  postprocess  from outputs to detections at COCO's size
  step         a training step of R50 at 512 px and of R18 at 256 px, fp32 and bf16
  detections   500,000 detections from the network's side to the evaluator's
  coco-step    a training step of R50 at COCO's size, 800 x 1344 (minutes)
  inference    R50 at 512 px
  data         image files to a batch, one core (with --photos FOLDER)
  evaluation   5000 images and 500,000 detections to COCO's curves (minutes)

What counts is the speed beside the peer's turn in the same round: median, smallest, largest. Each
stage runs twice, with the machine's allocator as it is and with glibc's set to keep what it has:
by default glibc maps every tensor above 32 MiB afresh, which slows down whoever makes more of them.

  python -m scripts.benchmark loss matching postprocess
  python -m scripts.benchmark --output runs/benchmark.json      # everything but the minutes
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from tqdm import tqdm

from retinanet.atomic import write_whole
from retinanet.terminal import has_bar

from .benchmark_stages import Stage, stages
from .command_line import exit_status, new_parser

QUICK = ("loss", "matching", "postprocess", "step", "inference", "detections")
SLOW = ("coco-step", "data", "evaluation")
ALLOCATORS = {"shipped": "as shipped", "fixed": "fixed"}
# Columns that only some stages have: key of a row -> heading, scale, format.
COLUMNS = {
    "same_precision": ("in the same precision", 1, "{:.2f} x"),
    "peak_mib": ("memory", 1, "{:.0f} MiB"),
    "loss_error": ("loss off by", 100, "{:.2g} %"),
    "kernel_seconds": ("kernels", 1000, "{:.3g} ms"),
}
# Operators of a contestant that are kept.
SLOWEST = 5
MIB = 2**20
# mallopt's names, malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# torch's profiler writes messages to stderr below this.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Time what is asked for, print it as Markdown, and keep it as JSON."""
    parser = new_parser("benchmark", __doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="default: the quick ones")
    parser.add_argument("--repeats", type=int, default=7, help="turns of each (default: 7)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--allocator", choices=(*ALLOCATORS, "both"), default="both")
    parser.add_argument("--photos", type=Path, help="folder of JPEG files, for the stage data")
    parser.add_argument("--output", type=Path, help="JSON, added to if it exists")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.stages if name not in QUICK + SLOW]
    if unknown:
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(QUICK + SLOW)}")
    if "data" in args.stages and args.photos is None:
        parser.error("the stage data needs --photos FOLDER")
    if args.repeats < 1:
        parser.error("give at least one repeat")
    if args.allocator != "shipped" and platform.libc_ver()[0] != "glibc":
        parser.error("only glibc's allocator can be fixed; use --allocator shipped")
    return exit_status(lambda: compare(args))


def compare(args: argparse.Namespace) -> int:
    """Measure stage after stage; its rows replace older ones of the same race in the JSON."""

    def race_of(row: Row) -> tuple[str, ...]:
        return row["device"], row["stage"], row["allocator"]

    for name in args.stages or QUICK:
        if args.allocator == "both":
            measured = [row for one in ALLOCATORS for row in in_a_process(name, one, args)]
        else:
            measured = measure(name, args)
        for stage in dict.fromkeys(row["stage"] for row in measured):
            print(table([row for row in measured if row["stage"] == stage]), flush=True)
        if args.output:
            old = json.loads(args.output.read_text()) if args.output.exists() else []
            races = {race_of(row) for row in measured}
            kept = [row for row in old if race_of(row) not in races]
            write_whole(args.output, json.dumps([*kept, *measured], indent=1))
    return 0


def in_a_process(name: str, allocator: str, args: argparse.Namespace) -> list[Row]:
    """Rows of a stage, measured in a process of its own: the allocator belongs to a process."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        typed = [name, "--allocator", allocator, "--output", rows, "--device", args.device]
        typed += ["--repeats", args.repeats, "--threads", args.threads]
        typed += ["--photos", args.photos] if args.photos else []
        command = [sys.executable, "-m", "scripts.benchmark", *map(str, typed)]
        status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        if status:
            raise ValueError(f"stage {name} ended with status {status}.")
        return json.loads(rows.read_text())


def measure(name: str, args: argparse.Namespace) -> list[Row]:
    """Rows of a stage, measured in this process."""
    if args.allocator == "fixed":
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    torch.set_num_threads(args.threads)
    rows = []
    for stage in stages(name, torch.device(args.device), args.photos):
        rows += rows_of(stage, race(stage, args.repeats), args.allocator)
    return rows


# Measuring


class Timing(NamedTuple):
    """One contestant."""

    seconds: list[float]
    peak_mib: float | None = None  # above what was held before
    # Seconds of one turn by torch's operator, on a GPU by kernel; the rest it waited for the host.
    operators: dict[str, float] = {}


def race(stage: Stage, repeats: int) -> dict[str, Timing]:
    """Let every contestant warm up, measure its memory and operators, then time them in turns."""
    timings = {}
    for name, work in stage.contestants.items():
        work()
        timings[name] = Timing([], peak_of(work, stage.device), operators_of(work, stage.device))
    for _ in tqdm(range(repeats), desc=stage.name, unit="turn", leave=False, disable=not has_bar()):
        for name, work in stage.contestants.items():
            timings[name].seconds.append(seconds_of(work, stage.device))
    return timings


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """How long one turn takes, until a GPU is done."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def peak_of(work: Callable[[], object], device: torch.device) -> float | None:
    """MiB above what was held before, at most; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds_of(work, device)
        return (torch.cuda.max_memory_allocated() - before) / MIB
    status, switch = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not switch.exists():
        return None

    def kib(name: str) -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(name))
        return int(line.split()[1])

    ctypes.CDLL(None).malloc_trim(0)
    switch.write_text("5")  # the peak starts anew
    before = kib("VmRSS")
    work()
    return (kib("VmHWM") - before) / 1024


def operators_of(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds that each of torch's operators, on a GPU each kernel, takes by itself in one turn."""
    kind, field = "CPU", "self_cpu_time_total"
    if device.type == "cuda":
        kind, field = "CUDA", "self_device_time_total"
    activity = getattr(torch.profiler.ProfilerActivity, kind)
    with torch.profiler.profile(activities=[activity], acc_events=True) as profiler:
        seconds_of(work, device)
    seconds = {event.key: getattr(event, field) / 1e6 for event in profiler.key_averages()}
    return {name: value for name, value in seconds.items() if value > 0}


# Rows and tables


def rows_of(stage: Stage, timings: dict[str, Timing], allocator: str) -> list[Row]:
    """One row for each contestant; speeds are ratios to the peer's turn in the same round."""

    def speeds(peer: Timing, timing: Timing) -> list[float]:
        return [a / b for a, b in zip(peer.seconds, timing.seconds, strict=True)]

    (first, peer), *_ = timings.items()
    on_gpu = stage.device.type == "cuda"
    rows = []
    for name, timing in timings.items():
        seconds, ratios = statistics.median(timing.seconds), speeds(peer, timing)
        # torchvision in the same precision, where that is not the first contestant.
        same = name.replace("retinanet", "torchvision").replace(" compiled", "")
        rival = timings.get(same) if same not in (first, name) else None
        total = sum(timing.operators.values())
        slowest = sorted(timing.operators, key=timing.operators.get, reverse=True)[:SLOWEST]
        rows.append(
            {
                "stage": stage.name,
                "allocator": allocator,
                "contestant": name,
                "seconds": seconds,
                "speed": statistics.median(ratios),
                "speed_min": min(ratios),
                "speed_max": max(ratios),
                "peak_mib": timing.peak_mib,
                "same_precision": rival and statistics.median(speeds(rival, timing)),
                "slowest": {one: timing.operators[one] / total for one in slowest},
                "kernel_seconds": total if on_gpu else None,
                "images_per_s": stage.images and stage.images / seconds,
                "loss_error": stage.errors.get(name),
                "device": torch.cuda.get_device_name() if on_gpu else cpu_name(),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            }
        )
    return rows


def cpu_name() -> str:
    """What the figures belong to."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [text.split(":")[1].strip() for text in lines if text.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def table(rows: Sequence[Row]) -> str:
    """One stage in Markdown, below it the slowest operators of its last contestant."""
    columns = {key: column for key, column in COLUMNS.items() if any(row[key] for row in rows)}
    allocators = [one for one in ALLOCATORS if any(row["allocator"] == one for row in rows)]
    headings = ["", *(cell for one in allocators for cell in (ALLOCATORS[one], ""))]
    headings += [heading for heading, _, _ in columns.values()]
    stage = rows[0]["stage"]
    lines = [f"## {stage[0].upper()}{stage[1:]}", "", f"| {' | '.join(headings)} |"]
    lines.append("| --- |" + " ---: |" * (len(headings) - 1))
    for name in dict.fromkeys(row["contestant"] for row in rows):
        measured = {row["allocator"]: row for row in rows if row["contestant"] == name}
        cells = [cell for one in allocators for cell in _time_and_speed(measured[one])]
        for key, (_, scale, form) in columns.items():
            # Memory as shipped; what compares arithmetic, with the fixed allocator.
            row = measured[allocators[0 if key == "peak_mib" else -1]]
            cells.append(form.format(scale * row[key]) if row[key] else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    shares = [f"{_operator(one)} {100 * share:.2g} %" for one, share in rows[-1]["slowest"].items()]
    return "\n".join([*lines, "", *([", ".join(shares), ""] if shares else [])])


def _time_and_speed(row: Row) -> tuple[str, str]:
    """Two cells; the first contestant has no spread."""
    seconds, low, high = row["seconds"], row["speed_min"], row["speed_max"]
    time = f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
    return time, "1" if low == high == 1 else f"**{row['speed']:.3g}** x ({low:.3g} to {high:.3g})"


def _operator(name: str) -> str:
    """An operator without its library, a kernel without its template, what is compiled as that."""
    if "CompiledFxGraph" in name:
        return "compiled code"
    return f"`{name.removeprefix('aten::').split('<')[0]}`"


if __name__ == "__main__":
    sys.exit(main())
