"""Train this package and torchvision's own RetinaNet class side by side, and compare their AP.

steps  Equal steps: both get the same batches, initial weights, anchors, optimizer, schedule,
       clipping, precision and weight averaging, all from the settings. torchvision's loss and
       post-processing are its own.
time   Equal time: recommended settings of this package against a plain torchvision loop with those
       of its detection references (RECOMMENDED and REFERENCES in this file). What is typed after
       -- holds for both.

parity Equal weights: random ones in torchvision's class, read from its file into ours; the outputs
       of both on images.

The trainings are evaluated in fp32 by the same COCO evaluator on the same images. Settings are
those of train.py. The same command continues what was interrupted and reports what is finished; a
later one may add seeds.

  python -m scripts.compare_peers steps --steps 400 --output runs/compare -- \\
    data=custom data.root=/data/cells ... model=mobilenet_v2
  python -m scripts.compare_peers time --minutes 20 --output runs/race -- data=custom ...
  python -m scripts.compare_peers parity photos/*.jpg
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torchvision
from matplotlib.figure import Figure
from tqdm import tqdm

from retinanet import build
from retinanet.atomic import write_whole
from retinanet.cli.main import composer
from retinanet.config import TrainConfig
from retinanet.csv_text import csv_text
from retinanet.data.coco import CocoData
from retinanet.data.loader import Batch
from retinanet.devices import choose_device, choose_precision
from retinanet.evaluation.average_precision import Evaluation, validate
from retinanet.evaluation.detect import DetectionArrays
from retinanet.tools.report.style import COLORS, house_style, save_png
from retinanet.training.checkpoint import load_checkpoint, save_checkpoint
from retinanet.training.optim import Schedule, scaled_lr
from retinanet.training.run_directory import flatten
from scripts.command_line import exit_status, new_parser
from scripts.torchvision_parity import VERSIONS, parity
from scripts.torchvision_peer import TorchvisionTraining, check_comparable

OURS, THEIRS = "retinanet", "torchvision"
NOT_FINISHED = 3
COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# Settings that leave a comparison the same.
FREE = ("data.root", "data.workers", "seed", "output_dir")

# Settings of ours for a short training from pretrained weights on CPU cores.
RECOMMENDED = (
    *("precision=bf16", "augment=flip", "model.head_norm=group"),
    *("loss.box=giou", "loss.box_weight=2.0"),
    *("optim=adamw", "optim.lr=0.0005", "optim.batch_size=8"),
    *("schedule=cosine", "schedule.warmup_steps=30", "schedule.warmup_factor=0.01"),
    "ema=average",
)
# Recipe of pytorch/vision, references/detection: SGD with .01 for 16 images a step (linear in the
# batch: with .01 for 8 the loss became nan after 147 steps on blood cells of 400 px in bf16), decay
# of every parameter, drops after 16 and 22 of 26 epochs, left-right flips, no clipping, no
# averaging; four layers without norm in each head. Its warm-up lasts min(1000, steps of the first
# epoch - 1) from 1/1000; see schedule_of.
REFERENCES = (
    *("precision=bf16", "augment=flip", "model.head_depth=4", "model.head_norm=none"),
    *("optim=sgd", "optim.lr=0.01", "optim.reference_batch=16", "optim.batch_size=8"),
    *("optim.norm_weight_decay=0.0001", "optim.bias_weight_decay=0.0001"),
    *("optim.max_grad_norm=null", "ema=none"),
    *("schedule=1x", "schedule.milestones=[0.6153846153846154,0.8461538461538461]"),
    *("schedule.warmup_steps=1000", "schedule.warmup_factor=0.001"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a comparison; the exit status is 3 when --stop-after came before its end."""
    parser = new_parser("compare_peers", __doc__)
    modes = parser.add_subparsers(dest="mode", required=True)
    steps = modes.add_parser("steps", help="equal steps, equal everything")
    steps.add_argument("--steps", type=_positive(int), required=True, help="of each training")
    race = modes.add_parser("time", help="equal time, each with its own recipe")
    race.add_argument(
        "--minutes",
        type=_positive(float),
        default=20.0,
        help="of training each, in turns, evaluations not counted (default: 20)",
    )
    race.add_argument("--ours", nargs="+", default=[], metavar="KEY=VALUE", help="ours only")
    race.add_argument("--theirs", nargs="+", default=[], metavar="KEY=VALUE", help="theirs only")
    for mode, seeds, evaluations in ((steps, [0, 1], 1), (race, [0], 4)):
        shown = " ".join(map(str, seeds))
        mode.add_argument("--seeds", type=int, nargs="+", default=seeds, help=f"default: {shown}")
        mode.add_argument(
            "--evaluations", type=_positive(int), default=evaluations, help="default: %(default)s"
        )
        mode.add_argument("--output", type=Path, required=True, help="folder for the results")
        mode.add_argument(
            "--stop-after",
            type=_positive(float),
            default=float("inf"),
            metavar="MINUTES",
            help="save, stop with exit status 3; the same command continues",
        )
        mode.add_argument(
            "--save-every", type=_positive(float), default=2.0, help="minutes (default: 2)"
        )
        mode.add_argument("settings", nargs="*", help="KEY=VALUE of train.py, after --")
    same = modes.add_parser("parity", help="equal weights")
    same.add_argument("images", type=Path, nargs="+", help="image files")
    same.add_argument("--min-size", type=_positive(int), default=800, help="default: 800")
    same.add_argument("--max-size", type=_positive(int), default=1333, help="default: 1333")
    same.add_argument("--seed", type=int, default=0, help="of the weights; default: 0")
    args = parser.parse_args(arguments)
    return exit_status(lambda: print_parity(args) if args.mode == "parity" else compare(args))


def _positive(kind: type) -> Any:
    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    return number


def print_parity(args: argparse.Namespace) -> int:
    """Print how far the outputs are apart, for both versions of torchvision's model."""
    print(f"machine: {machine()}")
    sizes = {"min_size": args.min_size, "max_size": args.max_size}
    for version in VERSIONS:
        lines = parity(version, args.images, seed=args.seed, **sizes)
        print("\n".join(["", f"torchvision {version}", "", *lines]))
    return 0


def compare(args: argparse.Namespace) -> int:
    """Carry every training to its end, seed by seed and in turns; report after each turn.

    Raises:
        ValueError: settings that cannot be compared, or an --output of another comparison.
    """
    started = time.monotonic()
    settings = read_settings(args)
    by_steps = args.mode == "steps"
    amount = args.steps if by_steps else args.minutes * 60
    contest = {
        "unit": "steps" if by_steps else "seconds",
        "amount": amount,
        "turns": args.evaluations,
        "settings": {peer: dataclasses.asdict(one) for peer, one in settings.items()},
    }
    prepare(args.output, contest)
    print(f"machine: {machine()}")
    splits = build.build_splits(settings[OURS].data)
    trainings = [
        Training(peer, dataclasses.replace(settings[peer], seed=seed), splits, contest, args.output)
        for seed in args.seeds
        for peer in settings
    ]
    # The peers alternate, so that what else the machine does meets both.
    for seed in dict.fromkeys(args.seeds):
        for turn in range(args.evaluations):
            for training in (t for t in trainings if t.settings.seed == seed):
                deadline = started + args.stop_after * 60
                if len(training.rows) <= turn and not training.turn(deadline, args.save_every * 60):
                    print(f"stopped after {args.stop_after:g} minutes; the same command continues.")
                    return NOT_FINISHED
                rows = [row for one in trainings for row in one.rows]
                write(args.output, contest, rows)
    print("\n".join(["", *description(contest, settings), "", *table(rows), ""]))
    print(f"files: {args.output}/results.json, results.csv, ap.png")
    return 0


def read_settings(args: argparse.Namespace) -> dict[str, TrainConfig]:
    """Settings of both peers; what is typed later wins.

    Raises:
        ValueError: a setting that does not exist, or with which the two cannot be compared.
    """
    if args.mode == "steps":
        ours = theirs = compose([*args.settings, f"schedule.max_steps={args.steps}"])
    else:
        ours = compose(args.settings, args.ours, recipe=RECOMMENDED)
        theirs = compose(args.settings, args.theirs, recipe=REFERENCES)
    check_comparable(theirs)
    if ours.optim.accumulate != 1 or ours.precision == "fp16":
        raise ValueError("choose optim.accumulate=1 and precision=bf16 or fp32 to compare peers.")
    return {OURS: ours, THEIRS: theirs}


def compose(*typed: Sequence[str], recipe: Sequence[str] = ()) -> TrainConfig:
    """Settings of several lists over a recipe; a later one replaces the same key of one before."""
    latest = {text.partition("=")[0]: text for texts in typed for text in texts}
    with composer("train") as reader:
        settings = reader.command(list(latest.values()), recipe).settings
    settings.precision = choose_precision(settings.precision, choose_device(settings.device))
    return settings


def prepare(folder: Path, contest: dict[str, Any]) -> None:
    """Make the folder, or see that it holds this comparison.

    Raises:
        ValueError: it holds another one.
    """
    path = folder / "contest.json"
    if not path.exists():
        write_whole(path, json.dumps(contest, indent=2) + "\n")
        return
    before, now = flatten(json.loads(path.read_text())), flatten(json.loads(json.dumps(contest)))
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed := [key for key in keys if not key.endswith(FREE)]:
        raise ValueError(
            f"{folder} holds a comparison with other settings ({', '.join(changed)}); choose "
            f"another --output."
        )


# The trainings


class OurTraining:
    """This package: the trainer and the evaluation of ``train.py``."""

    def __init__(
        self, settings: TrainConfig, splits: tuple[CocoData, CocoData], device: torch.device
    ) -> None:
        """Build model and trainer."""
        self.settings, self.device = settings, device
        self.train, self.val = build.drop_unseen(settings, splits[0]), splits[1]
        names = splits[0].category_names
        model = build.build_model(settings, len(names))
        self.trainer = build.build_trainer(settings, model, names, total_steps=1, device=device)
        self.state_dict = self.trainer.state_dict
        self.load_state_dict = self.trainer.load_state_dict

    @property
    def step(self) -> int:
        """Optimizer steps made."""
        return self.trainer.step

    def batches(self, end: int) -> Iterable[list[Batch]]:
        """Those of ``train.py``, from the present step on."""
        stream = build.build_loader(self.settings, self.train, self.device)
        return stream.steps(self.step, end)

    def one_step(self, micro_batches: list[Batch], schedule: Schedule) -> None:
        """The step of ``train.py``."""
        self.trainer.schedule = schedule
        self.trainer.network.train()
        self.trainer.one_step(micro_batches)

    def validate(self) -> tuple[Evaluation, DetectionArrays]:
        """Numbers and detections of the validation images, by averaged weights if there are any."""
        ema = self.trainer.ema
        # fp32, as torchvision's references do: in bf16 torchvision would round its boxes to 8 bits.
        settings = dataclasses.replace(self.settings, precision="fp32")
        how = build.build_validation(settings, settings.evaluation, self.device)
        return validate(self.trainer.model if ema is None else ema.model, self.val, **how)


class Training:
    """One peer with one seed, in turns that end with an evaluation; kept in a file between them."""

    def __init__(
        self,
        peer: str,
        settings: TrainConfig,
        splits: tuple[CocoData, CocoData],
        contest: dict[str, Any],
        output: Path,
    ) -> None:
        """Read how far it is.

        Args:
            peer: ``"retinanet"`` or ``"torchvision"``.
            settings: of the training, with its seed.
            splits: training and validation set.
            contest: ``unit`` (``"steps"``, or ``"seconds"`` of training: reading images counts,
                evaluation does not), ``amount`` of them, ``turns`` of equal length.
            output: folder of the comparison.

        Raises:
            ValueError: the file is damaged.
        """
        self.peer, self.settings, self.splits, self.contest = peer, settings, splits, contest
        self.path = output / f"{peer}_seed{settings.seed}" / "state.pt"
        saved = load_checkpoint(self.path)["progress"] if self.path.exists() else {}
        self.seconds: float = saved.get("seconds", 0.0)
        self.rows: list[dict[str, Any]] = saved.get("rows", [])  # one for each evaluation

    def turn(self, deadline: float, save_every: float) -> bool:
        """Train up to the next evaluation, and evaluate.

        Args:
            deadline: ``time.monotonic()`` at which to save and stop, but not before one step.
            save_every: seconds between savings.

        Returns:
            False when the deadline came first.
        """
        device = choose_device(self.settings.device)
        if self.peer == OURS:
            training = OurTraining(self.settings, self.splits, device)
        else:
            same = self.contest["unit"] == "steps"
            training = TorchvisionTraining(self.settings, self.splits, device, same_input=same)
        if self.path.exists():
            training.load_state_dict(load_checkpoint(self.path)["contestant"])
        amount = self.contest["amount"]
        end = amount * (len(self.rows) + 1) / self.contest["turns"]
        if self.contest["unit"] == "steps":
            end = round(end)
        if not self._train(training, end, deadline, save_every):
            return False
        self.rows.append(
            {
                "peer": self.peer,
                "seed": self.settings.seed,
                "step": training.step,
                "images": training.step * self.settings.optim.batch_size,
                "seconds": round(self.seconds, 1),
                "seconds_per_step": round(self.seconds / max(training.step, 1), 4),
                "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
                **training.validate()[0].metrics,
            }
        )
        self._save(training)
        return True

    def _train(self, training: Any, end: float, deadline: float, save_every: float) -> bool:
        """Steps until ``end``; false when the deadline came first."""
        unit, amount = self.contest["unit"], self.contest["amount"]
        saved, batches = time.monotonic(), None
        shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f}{unit}, {remaining}{postfix}"
        name = f"{self.peer} seed {self.settings.seed}"
        with tqdm(total=amount, desc=name, unit=f" {unit}", bar_format=shape) as bar:
            while (done := training.step if unit == "steps" else self.seconds) < end:
                bar.update(done - bar.n)  # what an earlier turn did, too
                started = time.perf_counter()
                if batches is None:  # starting the loader's processes is part of the first step
                    batches = iter(training.batches(amount if unit == "steps" else sys.maxsize))
                training.one_step(next(batches), self.schedule(training.step))
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.seconds += time.perf_counter() - started
                bar.set_postfix_str(f"{self.seconds / training.step:.2f} s/step", refresh=False)
                now = time.monotonic()
                if now > deadline or now - saved > save_every:
                    self._save(training)
                    saved = time.monotonic()
                if now > deadline:
                    return False
            bar.update(min(done, amount) - bar.n)
        return True

    def schedule(self, step: int) -> Schedule:
        """The schedule of the settings, over the steps or over the time.

        In time it is the one of a run that keeps the speed of its ``step`` steps so far: the decay
        is that of the share of the time that is gone, and the warm-up counts steps, as usual.
        """
        optim, schedule = self.settings.optim, self.settings.schedule
        total, warmup_steps = self.contest["amount"], schedule.warmup_steps
        if self.contest["unit"] == "seconds":
            total = step * total / self.seconds if step else 1
            # torchvision's references: no warm-up is longer than the first epoch.
            first_epoch = max(len(self.splits[0]) // optim.batch_size - 1, 0)
            warmup_steps = min(warmup_steps, first_epoch)
        return Schedule(
            lr=scaled_lr(optim.lr, optim.batch_size, optim.reference_batch),
            total_steps=total,
            warmup_steps=warmup_steps,
            warmup_factor=schedule.warmup_factor,
            decay=schedule.decay,
            milestones=schedule.milestones,
            decay_factor=schedule.decay_factor,
        )

    def _save(self, training: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        progress = {"seconds": self.seconds, "rows": self.rows}
        save_checkpoint(self.path, {"progress": progress, "contestant": training.state_dict()})


# What a comparison leaves


def machine() -> str:
    """Where the numbers come from."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{platform.machine()}, {cores} cores{gpu}, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}"
    )


def write(folder: Path, contest: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """``results.json``, ``results.csv`` and ``ap.png``, made anew from all rows there are."""
    content = {"machine": machine(), **contest, "rows": rows}
    write_whole(folder / "results.json", json.dumps(content, indent=2) + "\n")
    write_whole(folder / "results.csv", csv_text(rows[0], [row.values() for row in rows]))
    by_steps = contest["unit"] == "steps"
    lines: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for row in rows:
        if row["AP"] is not None:
            x = row["step"] if by_steps else row["seconds"] / 60
            lines.setdefault((row["seed"], row["peer"]), [(0, 0)]).append((x, row["AP"]))
    with house_style():
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = figure.subplots()
        labelled = set()
        for (_, peer), points in lines.items():
            axes.plot(
                *zip(*points, strict=True),
                color=COLORS[peer == THEIRS],
                marker="o",
                markersize=4,
                label=None if peer in labelled else peer,
            )
            labelled.add(peer)
        axes.set_xlabel("steps" if by_steps else "minutes of training")
        axes.set_ylabel("AP (COCO, 0.50 to 0.95)")
        axes.set_title("Equal steps" if by_steps else "Equal time")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        if labelled:
            axes.legend(loc="upper left")
        save_png(figure, folder / "ap.png")


def description(contest: dict[str, Any], settings: dict[str, TrainConfig]) -> list[str]:
    """What the numbers are, in lines."""
    ours, amount = settings[OURS], contest["amount"]
    if contest["unit"] == "steps":
        return [
            f"Equal steps: the same {amount} batches of {ours.optim.batch_size} images, initial "
            f"weights, anchors, {ours.optim.name}, schedule, clipping, {ours.precision}.",
            f"Each has its own post-processing and loss: {OURS} divides by the positives of the "
            f"{ours.loss.normalizer}, {THEIRS} by those of each image.",
        ]
    return [
        f"Equal time: {amount / 60:g} minutes of training each, evaluation not counted.",
        f"{OURS}: its recommended settings; {THEIRS}: a plain loop with its references' settings.",
        "Steps made depend on what else the machine did: column `load` of results.csv.",
    ]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Lines: the last evaluation of every training, then the means over seeds."""
    last = {(row["seed"], row["peer"]): row for row in rows}
    head = f"{'peer':<12} {'seed':>4} {'steps':>6} {'s/step':>7}"
    lines = [head + "".join(f"{name:>7}" for name in COLUMNS)]
    for row in last.values():
        numbers = ("n/a" if row[name] is None else f"{row[name]:.3f}" for name in COLUMNS)
        lines.append(
            f"{row['peer']:<12} {row['seed']:>4} {row['step']:>6} {row['seconds_per_step']:>7.2f}"
            + "".join(f"{number:>7}" for number in numbers)
        )
    # Means over the seeds for which both have an AP.
    AP: dict[str, dict[int, float]] = {OURS: {}, THEIRS: {}}
    for (seed, peer), row in last.items():
        if row["AP"] is not None:
            AP[peer][seed] = row["AP"]
    seeds = sorted(AP[OURS].keys() & AP[THEIRS].keys())
    if not seeds:
        return [*lines, ""]
    a, b = ([AP[peer][seed] for seed in seeds] for peer in (OURS, THEIRS))
    lines += [
        "",
        f"mean AP over {len(seeds)} seed(s): {OURS} {mean(a):.4f}, {THEIRS} {mean(b):.4f}: "
        f"{mean(a) - mean(b):+.4f}",
    ]
    if len(seeds) == 1:
        return [*lines, "One seed each: a small difference may be chance."]
    spread = max(max(a) - min(a), max(b) - min(b))
    return [
        *lines,
        f"Seeds of one peer lie up to {spread:.4f} apart; a difference of that size may be chance.",
    ]


if __name__ == "__main__":
    sys.exit(main())
