"""Analyze the errors of a detector: what kind, what each kind costs, and where to look first.

  python -m scripts.analyze runs/NAME
  python -m scripts.analyze runs/NAME/checkpoints/last.pt       after eval.py on it
  python -m scripts.analyze annotations.json detections.json --images FOLDER

The first two read what train.py or eval.py left in eval/ (nothing is detected again); the third
takes COCO annotations and results of any project. The kinds of errors are those of TIDE
(arXiv:2008.08115) at IoU 0.5: class, localization, both, duplicate, background, missed. Each kind
is fixed alone to see what AP50 gains, so the costs do not add up to what is missing.

Into OUTPUT go errors.json and errors.png (the table), errors.csv (every error of at least the
score), confusion.csv and .png, sizes.csv (AP by class and size), worst_*.png (the images that cost
most) and suspects_*.png (places where the annotation may be wrong).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from retinanet.atomic import check_writable
from retinanet.data.coco import CocoData, read_coco
from retinanet.evaluation.detect import DetectionArrays
from retinanet.evaluation.numbers import COCO_MAX_DETS
from retinanet.terminal import INTERRUPTED, MISTAKES, complain, show
from retinanet.tools.diagnose.analyze import Analysis, analyze
from retinanet.tools.diagnose.results import read_results
from retinanet.tools.report.error_report import confused_table, error_table, write_analysis
from retinanet.tools.report.run_record import read_json, read_settings

COMMAND = "python -m scripts.analyze"
COLUMNS = 80


class Sources(NamedTuple):
    """Files to read and the folder to write."""

    annotations: Path
    images: Path | None  # None: not known, no pictures
    detections: Path
    output: Path
    num_images: int | None = None  # that were evaluated; None: all
    max_dets: tuple[int, ...] = COCO_MAX_DETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and write the files; 1 for what cannot be analyzed."""
    args = read_arguments(arguments)
    try:
        sources = find_sources(args)
        check_writable(sources.output, "--output")  # now rather than after the work
        data, detections = read(sources)
        analysis = analyze(
            data, detections, score=args.score, max_dets=sources.max_dets, most=args.most
        )
        write_analysis(sources.output, data, analysis, pictures=sources.images is not None)
        return show(report(analysis, sources))
    except KeyboardInterrupt:
        return INTERRUPTED
    except MISTAKES as error:
        complain(error)
        return 1


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What to analyze, and how."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    what = "a run, a checkpoint, or annotations and detections"
    add("paths", type=Path, nargs="+", metavar="PATH", help=what)
    add("--output", type=Path, help="folder to write (default: analysis/ beside)")
    add("--images", type=Path, help="folder that file names start from")
    add("--score", type=float, help="look at detections from it on (default: where F1 is largest)")
    add("--most", type=int, default=12, help="images, and places of each kind (default: 12)")
    limit = "detections of a class in an image that count (default: 100)"
    add("--max-dets", type=int, help=limit)
    args = parser.parse_args(arguments)
    if len(args.paths) > 2:
        parser.error("give a run, a checkpoint, or annotations and detections: two paths at most")
    if args.score is not None and not np.isfinite(args.score):
        parser.error(f"--score must be a finite number, got {args.score}")
    if args.most < 0:
        parser.error(f"--most must be at least 0, got {args.most}")
    if args.max_dets is not None and args.max_dets < 1:
        parser.error(f"--max-dets must be at least 1, got {args.max_dets}")
    return args


def find_sources(args: argparse.Namespace) -> Sources:
    """The files that the arguments mean.

    Raises:
        ValueError: a folder that is not a run, or settings that cannot be read.
        FileNotFoundError: nothing there, or no detections yet.
    """
    if len(args.paths) == 2:
        annotations, detections = args.paths
        sources = Sources(annotations, None, detections, detections.parent / "analysis")
    else:
        sources = of_evaluation(find_evaluation(args.paths[0]))
    if args.images is not None:
        if not args.images.is_dir():
            raise FileNotFoundError(
                f"--images={args.images} is no folder; give the images' folder."
            )
        sources = sources._replace(images=args.images)
    if args.output is not None:
        sources = sources._replace(output=args.output)
    if sources.output.exists() and not sources.output.is_dir():
        raise ValueError(f"{sources.output} is a file; give another folder as --output.")
    if args.max_dets is not None:
        limits = tuple(min(limit, args.max_dets) for limit in (1, 10, args.max_dets))
        sources = sources._replace(max_dets=limits)
    return sources


def find_evaluation(path: Path) -> Path:
    """The folder with ``eval/`` that belongs to a run or a checkpoint.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_dir():
        folder, fix = path, f"checkpoint={path}/checkpoints/best.pt"
        if path.name == "eval" and not (path / "eval" / "detections.json").is_file():
            folder = path.parent
    elif path.suffix in (".pt", ".pth", ".pkl") and path.exists():
        fix, run = f"checkpoint={path}", path.parent.parent
        run = run if (run / "config.yaml").exists() else path.with_suffix("")
        folder = run if path.name == "best.pt" else run / f"eval_{path.stem}"
    elif path.exists():
        raise ValueError(
            f"{path} is neither a run nor a checkpoint; with annotations give two files: "
            f"{COMMAND} ANNOTATIONS DETECTIONS."
        )
    else:
        raise FileNotFoundError(f"{path} does not exist; give a run, such as runs/NAME.")
    if not (folder / "eval" / "detections.json").is_file():
        raise FileNotFoundError(
            f"no {folder / 'eval' / 'detections.json'}; run python eval.py {fix} first, or give "
            f"the folder that it wrote."
        )
    return folder


def of_evaluation(folder: Path) -> Sources:
    """What an evaluation says that it looked at; older ones leave it to the run's settings.

    Raises:
        ValueError: neither says it.
        FileNotFoundError: the annotations are gone.
    """
    detections = folder / "eval" / "detections.json"
    metrics = read_json(folder / "eval" / "metrics.json") or {}
    data = read_settings(folder / "config.yaml").get("data") or {}
    annotations, images = metrics.get("annotations"), metrics.get("images")
    if annotations is None and data.get("val_annotations"):
        root = Path(data.get("root") or ".")
        annotations, images = root / data["val_annotations"], root / (data.get("val_images") or ".")
    if annotations is None:
        raise ValueError(
            f"{folder} does not say which annotations it was evaluated on; give them: {COMMAND} "
            f"ANNOTATIONS {detections}."
        )
    if not Path(annotations).is_file():
        raise FileNotFoundError(
            f"no {annotations}, which {folder} was evaluated on; call it from the folder where "
            f"train.py ran, or give both: {COMMAND} ANNOTATIONS {detections}."
        )
    return Sources(
        Path(annotations),
        Path(images) if images and Path(images).is_dir() else None,
        detections,
        folder / "analysis",
        metrics.get("num_images"),
        tuple(metrics.get("max_dets") or COCO_MAX_DETS),
    )


def read(sources: Sources) -> tuple[CocoData, DetectionArrays]:
    """Ground truth and detections.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: files that are not what they should be, or do not belong together.
    """
    data = read_coco(sources.annotations, sources.images or sources.annotations.parent)
    detections = read_results(sources.detections, data)
    first = data.image_ids[: sources.num_images]
    # Of an evaluation with evaluation.max_images only the first were evaluated.
    if sources.num_images is not None and np.isin(detections.image_ids, first).all():
        detections = dataclasses.replace(detections, evaluated=np.unique(first))
    return data, detections


def report(analysis: Analysis, sources: Sources) -> str:
    """The text for the terminal."""
    evaluation, best = analysis.evaluation, analysis.thresholds.overall
    AP50 = "n/a" if evaluation.metrics["AP50"] is None else f"{evaluation.metrics['AP50']:.3f}"
    F1 = "" if best.F1 is None else f", best F1 {best.F1:.3f} with score >= {best.shown_score()}"
    confused = confused_table(analysis)
    lines = [
        f"{evaluation.num_images} images, {evaluation.num_gt} objects, "
        f"{evaluation.num_detections} detections",
        f"AP50 {AP50}{F1}",
        "",
        error_table(analysis),
        "",
    ]
    lines += [confused, ""] if confused else []
    lines += [*textwrap.wrap(analysis.advice, COLUMNS), ""]
    lines += [] if sources.images is not None else ["pictures   none; give --images FOLDER"]
    return "\n".join([*lines, f"files      {sources.output}"])


if __name__ == "__main__":
    sys.exit(main())
