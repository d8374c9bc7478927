"""Time this package beside the public code of its peers, in turns, on this machine.

  loss         focal loss, forward and backward, at COCO's size
  matching     anchors to 1, 5, 50 and 300 boxes at COCO's size
  postprocess  from outputs to detections at COCO's size
  step         a training step of R50 at 512 px and of R18 at 256 px, fp32 and bf16
  detections   500,000 detections from the network's side to the evaluator's
  coco-step    a training step of R50 at COCO's size, 800 x 1344 (minutes)
  inference    R50 at 512 px
  data         photos to a batch, one core (with --photos FOLDER)
  evaluation   5000 images and 500,000 detections to COCO's curves (minutes)

What counts is the speed beside the peer's turn in the same round: median, smallest, largest. Each
stage runs twice, with the machine's allocator as it is and with glibc's told to keep what it has:
by default glibc maps every tensor above 32 MiB afresh, which slows down whoever makes more of them.

  python -m scripts.benchmark loss matching postprocess
  python -m scripts.benchmark --output runs/benchmark.json      # everything but the minutes
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision

from retinanet.atomic import write_whole
from scripts.benchmarks import ends, networks, parts
from scripts.benchmarks.clock import Stage, Timing, fix_allocator, peak_rate, race, ratios
from scripts.benchmarks.made_up import COCO_SIZE

QUICK = ("loss", "matching", "postprocess", "step", "inference", "detections")
SLOW = ("coco-step", "data", "evaluation")
ALLOCATORS = ("shipped", "fixed")
# Operators of a contestant that are kept.
SLOWEST = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Time what is asked for, print it, and keep it as JSON."""
    args = read_arguments(arguments)
    if args.allocator == "both":
        return in_two_processes(args)
    if args.allocator == "fixed":
        fix_allocator()
    torch.set_num_threads(args.threads)
    rows = []
    for stage in chosen(args):
        rows += timed(stage, args)
        if args.output:
            keep(args.output, rows)
    return 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    args.stages = args.stages or list(QUICK)
    return args


def in_two_processes(args: argparse.Namespace) -> int:
    """The allocator belongs to a process."""
    typed = [*args.stages, "--repeats", str(args.repeats), "--threads", str(args.threads)]
    typed += ["--device", args.device]
    typed += ["--photos", str(args.photos)] if args.photos else []
    typed += ["--output", str(args.output)] if args.output else []
    for allocator in ALLOCATORS:
        command = [sys.executable, "-m", "scripts.benchmark", *typed, "--allocator", allocator]
        status = subprocess.run(command, check=False).returncode
        if status:
            return status
    return 0


def chosen(args: argparse.Namespace) -> Iterator[Stage]:
    """The stages that were named, each made when its turn comes."""
    device = torch.device(args.device)
    step = partial(networks.training_step, device=device)
    made: dict[str, list[Callable[[], Stage]]] = {
        "loss": [
            partial(parts.focal_loss_stage, dtype, device)
            for dtype in (torch.float32, torch.bfloat16)
        ],
        "matching": [partial(parts.matching_stage, boxes, device) for boxes in (1, 5, 50, 300)],
        "postprocess": [
            partial(parts.postprocess_stage, crowded, device) for crowded in (False, True)
        ],
        "step": [
            partial(step, "resnet50", 512, 512, 2),
            partial(step, "resnet18", 256, 320, 4),
        ],
        "coco-step": [partial(step, "resnet50", *COCO_SIZE, 2)],
        "inference": [partial(networks.inference_stage, 512, 512, device)],
        "data": [partial(ends.data_stage, args.photos, side) for side in (800, 320)],
        "detections": [ends.detections_stage],
        "evaluation": [ends.evaluation_stage],
    }
    for name in args.stages:
        for make in made[name]:
            yield make()


def timed(stage: Stage, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one stage, printed as they are."""
    timings = race(stage, args.repeats)
    peer = next(iter(timings.values()))
    print(f"\n{stage.name}, allocator {args.allocator}")
    rows = []
    for name, timing in timings.items():
        median, low, high = ratios(peer, timing)
        row = {
            "stage": stage.name,
            "allocator": args.allocator,
            "contestant": name,
            "seconds": timing.median,
            "speed": median,
            "speed_min": low,
            "speed_max": high,
            "peak_mib": timing.peak_mib,
            "same_precision": same_precision(name, timings),
            "slowest": slowest(timing.operators),
            "kernel_seconds": sum(timing.operators.values()) if args.device == "cuda" else None,
            "images_per_s": stage.images and stage.images / timing.median,
            "loss_error": (stage.errors or {}).get(name),
            "share_of_limit": None,
            **machine(args.device),
        }
        if stage.flops is not None:
            dtype = torch.bfloat16 if "bf16" in name else torch.float32
            limit = peak_rate(torch.device(args.device), dtype)
            row["share_of_limit"] = stage.flops / timing.median / limit
        rows.append(row)
        print(line(row))
    return rows


def slowest(operators: dict[str, float]) -> dict[str, float]:
    """The few that take most, with their share of all."""
    total = sum(operators.values())
    names = sorted(operators, key=operators.get, reverse=True)[:SLOWEST]
    return {name: operators[name] / total for name in names}


def same_precision(name: str, timings: dict[str, Timing]) -> float | None:
    """Median speed beside torchvision in the same precision, where that is not the first."""
    peer = timings.get(name.replace("retinanet", "torchvision").replace(" compiled", ""))
    if peer in (None, next(iter(timings.values())), timings[name]):
        return None
    return ratios(peer, timings[name])[0]


def line(row: dict[str, Any]) -> str:
    """One contestant as text."""
    text = f"  {row['contestant']:<20}{1e3 * row['seconds']:10.1f} ms   {row['speed']:6.2f} x"
    text += f" ({row['speed_min']:.2f} to {row['speed_max']:.2f})"
    if row["peak_mib"] is not None:
        text += f"   {row['peak_mib']:7.0f} MiB"
    if row["share_of_limit"] is not None:
        text += f"   {row['share_of_limit']:.0%} of the limit"
    if row["same_precision"] is not None:
        text += f"   {row['same_precision']:.2f} x in the same precision"
    if row["loss_error"]:
        text += f"   loss off by {row['loss_error']:.2%}"
    if row["kernel_seconds"] is not None:
        text += f"   kernels {1e3 * row['kernel_seconds']:.1f} ms"
    return text


def machine(device: str) -> dict[str, Any]:
    """What the figures belong to."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [text for text in info.read_text().splitlines() if text.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def keep(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows into a JSON file, in place of older ones of the same race."""
    known = json.loads(path.read_text()) if path.exists() else []
    new = {race_of(row) for row in rows}
    old = [row for row in known if race_of(row) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps([*old, *rows], indent=1).encode())


def race_of(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row was measured in."""
    return row["device"], row["stage"], row["allocator"]


if __name__ == "__main__":
    sys.exit(main())
