"""Train this package and torchvision's own RetinaNet class side by side, and compare their AP.

steps  Equal steps: both get the same batches, initial weights, anchors, optimizer, schedule,
       clipping, precision and weight averaging, all from the settings. torchvision's loss and
       post-processing are its own.
time   Equal time: recommended settings of this package against a plain torchvision loop with those
       of its detection references (scripts/peers/recipes.py). What is typed after -- holds for
       both.

parity Equal weights: random ones in torchvision's class, read from its file into ours; the outputs
       of both on photos.

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
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from retinanet import build
from retinanet.config import TrainConfig
from retinanet.data.coco import CocoData
from retinanet.devices import choose_device
from retinanet.evaluation.coco import evaluate
from retinanet.evaluation.detect import DetectionArrays
from retinanet.terminal import INTERRUPTED, MISTAKES, complain
from scripts.peers import outcome, parity
from scripts.peers.contest import Length, Progress, Training
from scripts.peers.contestants import Contestant, Ours, PlainLoop, SameBatches
from scripts.peers.feeds import Setup
from scripts.peers.rates import make_rates
from scripts.peers.recipes import RECOMMENDED, REFERENCES, compose
from scripts.peers.torchvision_model import check_comparable

OURS, THEIRS = "retinanet", "torchvision"
NOT_FINISHED = 3

# Settings that leave a comparison the same.
FREE = ("data.root", "data.workers", "seed", "output_dir")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a comparison; the exit status is 3 when --stop-after came before its end."""
    args = read_arguments(arguments)
    try:
        return show_parity(args) if args.mode == "parity" else compare(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except MISTAKES as error:
        complain(error)
        return 1


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.compare_peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    modes = parser.add_subparsers(dest="mode", required=True)
    steps = modes.add_parser("steps", help="equal steps, equal everything")
    steps.add_argument("--steps", type=_positive(int), required=True, help="of each training")
    steps.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default: 0 1")
    steps.add_argument("--evaluations", type=_positive(int), default=1, help="default: 1")
    race = modes.add_parser("time", help="equal time, each with its own recipe")
    race.add_argument(
        "--minutes",
        type=_positive(float),
        default=20.0,
        help="of training each, in turns, evaluations not counted (default: 20)",
    )
    race.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    race.add_argument("--evaluations", type=_positive(int), default=4, help="default: 4")
    race.add_argument("--ours", nargs="+", default=[], metavar="KEY=VALUE", help="ours only")
    race.add_argument("--theirs", nargs="+", default=[], metavar="KEY=VALUE", help="theirs only")
    same = modes.add_parser("parity", help="equal weights")
    same.add_argument("photos", type=Path, nargs="+", help="image files")
    same.add_argument("--min-size", type=_positive(int), default=800, help="default: 800")
    same.add_argument("--max-size", type=_positive(int), default=1333, help="default: 1333")
    same.add_argument("--seed", type=int, default=0, help="of the weights; default: 0")
    for mode in (steps, race):
        mode.add_argument("--output", type=Path, required=True, help="folder for the results")
        mode.add_argument(
            "--stop-after",
            type=_positive(float),
            metavar="MINUTES",
            help="save, stop with exit status 3; the same command goes on",
        )
        mode.add_argument(
            "--save-every", type=_positive(float), default=2.0, help="minutes (default: 2)"
        )
        mode.add_argument("settings", nargs="*", help="KEY=VALUE of train.py, after --")
    return parser.parse_args(arguments)


def show_parity(args: argparse.Namespace) -> int:
    """Print how far the outputs are apart, for both versions of torchvision's model."""
    print(f"machine: {outcome.machine()}")
    for version in parity.VERSIONS:
        found = parity.run(
            version,
            args.photos,
            min_size=args.min_size,
            max_size=args.max_size,
            seed=args.seed,
        )
        print("\n".join(["", f"torchvision {version}", "", *parity.table(found)]))
    return 0


def compare(args: argparse.Namespace) -> int:
    """Carry every training to its end, and report after each of its turns."""
    started = time.monotonic()
    settings = read_settings(args)
    length = (
        Length("steps", args.steps, args.evaluations)
        if args.mode == "steps"
        else Length("seconds", args.minutes * 60, args.evaluations)
    )
    contest = describe(settings, length)
    prepare(args.output, contest)
    print(f"machine: {outcome.machine()}")
    trainings = make_trainings(args, settings, length)
    limit = float("inf") if args.stop_after is None else args.stop_after * 60
    for training in in_turns(trainings, length.turns):
        finished = training.turn(deadline=started + limit, save_every=args.save_every * 60)
        if not finished:
            print(f"stopped after {args.stop_after:g} minutes; the same command goes on.")
            return NOT_FINISHED
        outcome.write(args.output, contest, all_rows(trainings))
    rows = all_rows(trainings)
    outcome.write(args.output, contest, rows)
    print("\n".join(["", *words(length, settings), "", *outcome.table(rows), ""]))
    print(f"files: {args.output}/results.json, results.csv, ap.png")
    return 0


def read_settings(args: argparse.Namespace) -> dict[str, TrainConfig]:
    """Settings of both; what is typed later wins."""
    if args.mode == "steps":
        typed = [*args.settings, f"schedule.max_steps={args.steps}"]
        ours = theirs = compose(typed)
    else:
        ours = compose(args.settings, args.ours, recipe=RECOMMENDED)
        theirs = compose(args.settings, args.theirs, recipe=REFERENCES)
    check_comparable(theirs)
    if ours.optim.accumulate != 1 or ours.precision == "fp16":
        raise ValueError("choose optim.accumulate=1 and precision=bf16 or fp32 to compare peers.")
    return {OURS: ours, THEIRS: theirs}


def describe(settings: dict[str, TrainConfig], length: Length) -> dict[str, Any]:
    """What is compared, in plain containers."""
    return {
        **dataclasses.asdict(length),
        "settings": {peer: dataclasses.asdict(one) for peer, one in settings.items()},
    }


def prepare(folder: Path, contest: dict[str, Any]) -> None:
    """Make the folder, or see that it holds this comparison.

    Raises:
        ValueError: it holds another one.
    """
    path = folder / "contest.json"
    if path.exists():
        before, now = (flat(c) for c in (json.loads(path.read_text()), contest))
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        changed = [key for key in keys if not key.endswith(FREE)]
        if changed:
            raise ValueError(
                f"{folder} holds a comparison with other settings ({', '.join(changed)}); choose "
                f"another --output."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contest, indent=2) + "\n")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested maps as one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def make_trainings(
    args: argparse.Namespace, settings: dict[str, TrainConfig], length: Length
) -> list[Training]:
    """Both peers with every seed, in the order of the command line."""
    train, val = build.build_splits(settings[OURS].data)
    peers = {OURS: Ours, THEIRS: SameBatches if args.mode == "steps" else PlainLoop}
    return [
        Training(
            peer,
            seed,
            path=args.output / f"{peer}_seed{seed}" / "state.pt",
            length=length,
            batch_size=settings[peer].optim.batch_size,
            make=partial(
                make_contestant,
                contestant,
                dataclasses.replace(settings[peer], seed=seed),
                (train, val),
                length,
            ),
            score=partial(score, val, settings[peer]),
        )
        for seed in args.seeds
        for peer, contestant in peers.items()
    ]


def make_contestant(
    contestant: type,
    settings: TrainConfig,
    splits: tuple[CocoData, CocoData],
    length: Length,
    progress: Progress,
) -> Contestant:
    """A new training."""
    rates = make_rates(
        settings,
        total_steps=length.amount if length.unit == "steps" else None,
        clock=lambda: progress.seconds / length.amount,
        num_images=len(splits[0]),
    )
    return contestant(Setup(settings, *splits, choose_device(settings.device), rates))


def score(data: CocoData, settings: TrainConfig, found: DetectionArrays) -> Any:
    """COCO's numbers of what was found."""
    how = settings.evaluation
    return evaluate(data, found, found.evaluated, how.backend, how.max_dets)


def in_turns(trainings: list[Training], turns: int) -> list[Training]:
    """The turns to come: seed by seed, and within a seed the peers alternate.

    So that what else the machine does meets both.
    """
    due = []
    for seed in dict.fromkeys(training.seed for training in trainings):
        mine = [training for training in trainings if training.seed == seed]
        due += [t for turn in range(turns) for t in mine if len(t.rows) <= turn]
    return due


def all_rows(trainings: list[Training]) -> list[dict[str, Any]]:
    """Rows of all trainings."""
    return [row for training in trainings for row in training.rows]


def words(length: Length, settings: dict[str, TrainConfig]) -> list[str]:
    """What the numbers are."""
    ours, theirs = settings[OURS], settings[THEIRS]
    loss = ours.loss
    if length.unit == "steps":
        optim = ours.optim
        return [
            f"Equal steps: the same {length.amount} batches of {optim.batch_size} images, initial "
            f"weights, anchors, {optim.name},",
            f"schedule, clipping, {ours.precision}, weight average {ours.ema.decay}. Each has its "
            f"own loss and post-processing:",
            f"{OURS} alpha {loss.alpha}, gamma {loss.gamma}, {loss.box}, divided by the positives "
            f"of the {loss.normalizer};",
            f"{THEIRS} alpha 0.25, gamma 2.0, l1, divided by the positives of each image.",
        ]
    return [
        f"Equal time: {length.amount / 60:g} minutes of training each, in {length.turns} turn(s), "
        f"evaluation not counted.",
        f"{OURS}: its recommended settings; {THEIRS}: a plain loop with its references' settings "
        f"({theirs.precision}).",
        "Steps made depend on what else the machine did: column `load` of results.csv.",
    ]


def _positive(kind: type) -> Any:
    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    return number


if __name__ == "__main__":
    sys.exit(main())
