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
from statistics import fmean
from typing import NamedTuple

from matplotlib.figure import Figure

from retinanet.atomic import write_whole
from retinanet.cli.main import composer
from retinanet.cli.sweep import Task, run_all
from retinanet.csv_text import csv_text
from retinanet.tools.report.style import COLORS, GRAY, house_style, save_png
from retinanet.tools.report.sweep import has_finished
from retinanet.training.run_directory import read_rows

from .command_line import exit_status, new_parser, split_settings

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


class Variant(NamedTuple):
    """One row of a table of the paper."""

    label: str
    settings: tuple[str, ...]  # of train.py
    paper: float | None  # AP in percent on COCO; None: the paper has no such row


class Run(NamedTuple):
    """One training of an experiment."""

    variant: Variant
    seed: int
    typed: tuple[str, ...]  # of train.py
    folder: Path

    @property
    def command(self) -> str:
        """As it is typed."""
        return f"python train.py {shlex.join(self.typed)}"


# Lin et al. 2017, arXiv:1708.02002: what is varied, where the paper has it, and for each row its
# label, its settings and the paper's AP on COCO in percent (nothing: the paper has no such row).
EXPERIMENTS = {
    "alpha": """
        Cross entropy with alpha | table 1a: R50, 600 px
        CE, alpha 0.1   | loss.alpha=0.1 loss.gamma=0   | 0.0
        CE, alpha 0.25  | loss.alpha=0.25 loss.gamma=0  | 10.8
        CE, alpha 0.5   | loss.alpha=0.5 loss.gamma=0   | 30.2
        CE, alpha 0.75  | loss.alpha=0.75 loss.gamma=0  | 31.1
        CE, alpha 0.9   | loss.alpha=0.9 loss.gamma=0   | 30.8
        CE, alpha 0.99  | loss.alpha=0.99 loss.gamma=0  | 28.7
        CE, alpha 0.999 | loss.alpha=0.999 loss.gamma=0 | 25.1""",
    "gamma": """
        Focal loss, each gamma with its best alpha | table 1b: R50, 600 px
        gamma 0, alpha 0.75   | loss.alpha=0.75 loss.gamma=0   | 31.1
        gamma 0.1, alpha 0.75 | loss.alpha=0.75 loss.gamma=0.1 | 31.4
        gamma 0.2, alpha 0.75 | loss.alpha=0.75 loss.gamma=0.2 | 31.9
        gamma 0.5, alpha 0.5  | loss.alpha=0.5 loss.gamma=0.5  | 32.9
        gamma 1, alpha 0.25   | loss.alpha=0.25 loss.gamma=1   | 33.7
        gamma 2, alpha 0.25   | loss.alpha=0.25 loss.gamma=2   | 34.0
        gamma 5, alpha 0.25   | loss.alpha=0.25 loss.gamma=5   | 32.2""",
    "anchors": """
        Anchors in a cell | table 1c: R50, 600 px
        1 scales, 1 ratios | anchors.scales=[1] anchors.ratios=[1.0]             | 30.3
        2 scales, 1 ratios | anchors.scales=[1,1.414213562] anchors.ratios=[1.0] | 31.9
        3 scales, 1 ratios | anchors.scales=[1,1.25992105,1.587401052] anchors.ratios=[1.0] | 31.8
        1 scales, 3 ratios | anchors.scales=[1] anchors.ratios=[0.5,1.0,2.0]             | 32.4
        2 scales, 3 ratios | anchors.scales=[1,1.414213562] anchors.ratios=[0.5,1.0,2.0] | 34.2
        3 scales, 3 ratios | anchors.scales=[1,1.25992105,1.587401052] anchors.ratios=[0.5,1.0,2.0]\
                           | 34.0
        4 scales, 3 ratios | anchors.scales=[1,1.189207115,1.414213562,1.681792831]\
                             anchors.ratios=[0.5,1.0,2.0] | 33.8""",
    "ohem": """
        Hard example mining beside focal loss | table 1d: R101, 600 px
        OHEM 128, NMS 0.7 | loss=ohem loss.ohem_anchors=128 loss.ohem_nms_iou=0.7 | 31.1
        OHEM 256, NMS 0.7 | loss=ohem loss.ohem_anchors=256 loss.ohem_nms_iou=0.7 | 31.8
        OHEM 512, NMS 0.7 | loss=ohem loss.ohem_anchors=512 loss.ohem_nms_iou=0.7 | 30.6
        OHEM 128, NMS 0.5 | loss=ohem loss.ohem_anchors=128 loss.ohem_nms_iou=0.5 | 32.8
        OHEM 256, NMS 0.5 | loss=ohem loss.ohem_anchors=256 loss.ohem_nms_iou=0.5 | 31.0
        OHEM 512, NMS 0.5 | loss=ohem loss.ohem_anchors=512 loss.ohem_nms_iou=0.5 | 27.6
        OHEM 128, NMS 0.5, 1:3\
        | loss=ohem loss.ohem_anchors=128 loss.ohem_nms_iou=0.5 loss.ohem_ratio=3 | 31.1
        OHEM 256, NMS 0.5, 1:3\
        | loss=ohem loss.ohem_anchors=256 loss.ohem_nms_iou=0.5 loss.ohem_ratio=3 | 28.3
        OHEM 512, NMS 0.5, 1:3\
        | loss=ohem loss.ohem_anchors=512 loss.ohem_nms_iou=0.5 loss.ohem_ratio=3 | 24.0
        focal loss | loss.alpha=0.25 loss.gamma=2 | 36.0""",
    "star": """
        The other form of focal loss | table 3: R50, 600 px
        CE                   | loss.alpha=0.75 loss.gamma=0                   | 31.1
        FL, gamma 2          | loss.alpha=0.25 loss.gamma=2                   | 34.0
        FL*, gamma 2, beta 1 | loss=focal_star loss.gamma=2 loss.star_beta=1  | 33.8
        FL*, gamma 4, beta 0 | loss=focal_star loss.gamma=4 loss.star_beta=0  | 33.9""",
    "prior": """
        Pi, and cross entropy with and without it\
        | section 4.1: CE without pi diverges, with it 30.2
        focal loss, no prior (pi 0.5) | model.prior=0.5              |
        focal loss, pi 0.1            | model.prior=0.1              |
        focal loss, pi 0.01           | loss.alpha=0.25 loss.gamma=2 | 34.0
        focal loss, pi 0.001          | model.prior=0.001            |
        CE, no prior (pi 0.5) | model.prior=0.5 loss.gamma=0 loss.alpha=null  |
        CE, pi 0.01           | model.prior=0.01 loss.gamma=0 loss.alpha=null | 30.2""",
}


def read_experiment(name: str) -> tuple[str, str, list[Variant]]:
    """Title of an experiment, where the paper has it, and its rows."""
    head, *lines = (
        [cell.strip() for cell in line.split("|")] for line in EXPERIMENTS[name].splitlines()[1:]
    )
    variants = [
        Variant(label, tuple(settings.split()), float(paper) if paper else None)
        for label, settings, paper in lines
    ]
    return head[0], head[1], variants


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an experiment; the exit status is 1 for a wrong command, not for a run that failed."""
    parser = new_parser("ablate", __doc__)
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
    return exit_status(lambda: experiment(args, settings))


def experiment(args: argparse.Namespace, settings: Sequence[str]) -> int:
    """Check every command, run them one after the other, write the table after each.

    Raises:
        ValueError: a row or a setting that does not exist; nothing has run then.
    """
    runs = plan(args.experiment, args.only, args.seeds, settings)
    for run in runs:
        print(run.command)
    if args.dry_run:
        return 0
    output = args.output or Path("runs/ablations") / args.experiment
    tasks = [
        Task(f"{run.variant.label}, seed {run.seed}", [sys.executable, str(TRAIN), *run.typed])
        for run in runs
    ]
    failed = run_all(tasks, say=print, after_each=lambda: write(output, args.experiment, runs))
    print("\n".join(["", *write(output, args.experiment, runs), ""]))
    for name, status in failed.items():
        print(f"stopped with exit status {status}: {name}")
    print(f"files: {output}/table.csv, table.md, plot.png")
    return 0


def plan(
    name: str, labels: Sequence[str] | None, seeds: Sequence[int], common: Sequence[str]
) -> list[Run]:
    """One run for each row and seed, all of them checked; what a row sets comes last.

    Args:
        name: of the experiment.
        labels: of some of its rows; None: all.
        seeds: of the runs.
        common: settings of all runs.

    Raises:
        ValueError: a row or a setting that does not exist.
    """
    variants = {variant.label: variant for variant in read_experiment(name)[2]}
    if unknown := [label for label in labels or () if label not in variants]:
        raise ValueError(f"no row {', '.join(unknown)}; there are: {'; '.join(variants)}.")
    if any(text.startswith("seed=") for text in common):
        raise ValueError("give seeds as --seeds 0 1 2, not as a setting.")
    runs = []
    with composer("train") as reader:
        for seed in seeds:
            for variant in (v for v in variants.values() if labels is None or v.label in labels):
                typed = (*common, *variant.settings, *([f"seed={seed}"] if seed else []))
                folder = Path(reader.command(list(typed)).settings.output_dir)
                runs.append(Run(variant, seed, typed, folder))
    return runs


def write(output: Path, name: str, runs: Sequence[Run]) -> list[str]:
    """Write ``table.csv``, ``table.md`` and ``plot.png`` of what there is; the lines of the table.

    Args:
        output: folder, made when needed.
        name: of the experiment.
        runs: all of them, trained or not.
    """
    title, where, _ = read_experiment(name)
    # AP is in percent, as the paper writes it.
    lines = [f"{title}. AP in percent; the paper's: COCO, {where}.", ""]
    lines += ["| | AP | seeds | paper |", "| --- | ---: | --- | ---: |"]
    cells = []
    results = {run.variant: ([], []) for run in runs}  # APs of finished runs, steps of stopped ones
    for run in runs:
        rows = read_rows(run.folder / "metrics.jsonl")
        APs = [row["AP"] for row in rows if "AP" in row]
        if rows and not has_finished(run.folder):
            results[run.variant][1].append(rows[-1]["step"])
        elif APs and APs[-1] is not None:
            results[run.variant][0].append(100 * APs[-1])
    for variant, (APs, stopped) in results.items():
        mean = f"{fmean(APs):.1f}" if APs else "stopped" if stopped else ""
        seeds = [f"{AP:.1f}" for AP in APs] if len(APs) > 1 else []
        seeds += [f"stopped after step {step}" for step in stopped]
        theirs = "" if variant.paper is None else f"{variant.paper:.1f}"
        lines.append(f"| {variant.label} | {mean} | {', '.join(seeds)} | {theirs} |")
        cells.append(
            [
                variant.label,
                f"{fmean(APs) / 100:.4f}" if APs else None,
                None if variant.paper is None else variant.paper / 100,
                " ".join(f"{AP / 100:.4f}" for AP in APs),
                " ".join(map(str, stopped)),
                next(run.command for run in runs if run.variant == variant),
            ]
        )
    header = ["label", "AP", "paper_AP", "seeds", "stopped_after_steps", "command"]
    write_whole(output / "table.md", "\n".join(lines) + "\n")
    write_whole(output / "table.csv", csv_text(header, cells))
    _plot(output / "plot.png", title, results)
    return lines


@house_style()
def _plot(path: Path, title: str, results: dict[Variant, tuple[list[float], list[int]]]) -> None:
    """The mean and every seed, and the paper's AP on the same axis."""
    figure = Figure(figsize=(7.2, 0.42 * len(results) + 1.6), layout="constrained")
    axes = figure.subplots()
    for y, (variant, (APs, stopped)) in enumerate(results.items()):
        if variant.paper is not None:
            axes.plot([variant.paper], [y], "D", color=GRAY)
        if APs:
            mean = fmean(APs)
            axes.plot([mean], [y], "o", color=COLORS[0])
            axes.annotate(f"{mean:.1f}", (mean, y), (4, 8), textcoords="offset points")
            axes.plot(APs, [y] * len(APs), "|", markersize=14, color=COLORS[0])
        elif stopped:
            axes.annotate("stopped", (0, y), (4, -3), textcoords="offset points")
    axes.set_yticks(range(len(results)), [variant.label for variant in results])
    axes.set_ylim(len(results) - 0.5, -0.7)  # the first row on top, room for its number
    axes.set_xlim(left=0)
    axes.set_xlabel("AP in percent: mean (dot) and seeds (bars); the paper's on COCO (diamonds)")
    axes.set_title(title)
    save_png(figure, path)


if __name__ == "__main__":
    sys.exit(main())
