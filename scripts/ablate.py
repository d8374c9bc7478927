"""The paper's experiments about its loss, on any data, one command each.

  alpha    cross entropy with alpha                      table 1a
  gamma    focal loss, each gamma with its best alpha    table 1b
  anchors  scales and ratios of the anchors in a cell    table 1c
  ohem     hard example mining beside focal loss         table 1d
  star     the other form of focal loss                  table 3
  prior    pi, and cross entropy with and without it     sections 3.3 and 4.1

Every run is an ordinary one of train.py in its ordinary directory: the same command continues what
was interrupted, and a run that two experiments share is trained once. What follows -- holds for
all of them.

  python -m scripts.ablate gamma -- data=shapes
  python -m scripts.ablate prior --seeds 0 1 2 -- data=shapes schedule.max_steps=1312
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from retinanet.cli.main import composer
from retinanet.cli.sweep import Task, run_all
from retinanet.terminal import INTERRUPTED, MISTAKES, complain
from scripts.experiments.outcome import Run, write
from scripts.experiments.tables import EXPERIMENTS, Variant
from scripts.settings import split_settings

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an experiment; the exit status is 1 for a wrong command, not for a run that failed."""
    args = read_arguments(arguments)
    try:
        experiment(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except MISTAKES as error:
        complain(error)
        return 1
    return 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", choices=sorted(EXPERIMENTS), metavar="EXPERIMENT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument(
        "--only", nargs="+", metavar="LABEL", help="some of its rows, as the table names them"
    )
    parser.add_argument(
        "--output", type=Path, help="folder of the table (default: runs/ablations/EXPERIMENT)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
    options, settings = split_settings(arguments)
    args = parser.parse_args(options)
    args.settings = settings
    return args


def experiment(args: argparse.Namespace) -> None:
    """Check every command, run them one after the other, report after each."""
    chosen = choose(EXPERIMENTS[args.experiment].variants, args.only)
    runs = plan(chosen, args.seeds, args.settings)
    for run in runs:
        print(f"python train.py {shlex.join(run.typed)}")
    if args.dry_run:
        return
    output = args.output or Path("runs/ablations") / args.experiment
    failed = run_all(
        [
            Task(f"{run.variant.label}, seed {run.seed}", [sys.executable, str(TRAIN), *run.typed])
            for run in runs
        ],
        say=print,
        after_each=lambda: write(output, args.experiment, runs),
    )
    print("\n".join(["", *write(output, args.experiment, runs), ""]))
    for name, status in failed.items():
        print(f"stopped with exit status {status}: {name}")
    print(f"files: {output}/table.csv, table.md, plot.png")


def choose(variants: Sequence[Variant], labels: Sequence[str] | None) -> list[Variant]:
    """The rows that are asked for.

    Raises:
        ValueError: a label that the experiment does not have.
    """
    known = [variant.label for variant in variants]
    unknown = [label for label in labels or () if label not in known]
    if unknown:
        raise ValueError(f"no row {', '.join(unknown)}; there are: {'; '.join(known)}.")
    return [variant for variant in variants if labels is None or variant.label in labels]


def plan(variants: Sequence[Variant], seeds: Sequence[int], common: Sequence[str]) -> list[Run]:
    """One run for each variant and seed, all of them checked; what a variant sets comes last.

    Raises:
        ValueError: a setting that does not exist, or that both set.
    """
    if any(text.startswith("seed=") for text in common):
        raise ValueError("give seeds as --seeds 0 1 2, not as a setting.")
    runs = []
    with composer("train") as reader:
        for seed in seeds:
            for variant in variants:
                typed = [*common, *variant.settings, *([f"seed={seed}"] if seed else [])]
                folder = reader.command(typed).settings.output_dir
                runs.append(Run(variant, seed, tuple(typed), Path(folder)))
    return runs


if __name__ == "__main__":
    sys.exit(main())
