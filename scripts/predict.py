"""Find objects in photos with a checkpoint and nothing else; no annotations are needed.

  python -m scripts.predict runs/NAME/checkpoints/best.pt photo.jpg
  python -m scripts.predict best.pt /data/photos --output found --score 0.5
  python -m scripts.predict best.pt "/data/2026-*/**/*.jpg" @more.txt --no-draw

CHECKPOINT is one of this project, torchvision, detectron2 or mmdetection. PHOTO is a file, a
folder, which is searched with all folders in it, a pattern in quotes, or @FILE with one of these
on each line. Hidden files, and in folders files that do not end like photos, are left out.

OUTPUT gets
  drawn/           the photos with boxes, class names and scores, as JPEG
  detections.json  COCO's results format
  coco.json        a whole COCO file: images, categories, annotations with scores
  detections.csv   file, class, category_id, score, x1, y1, x2, y2
  predict.json     what ran, with which scores, and photos that could not be read
Boxes are in pixels of the photos as displayed, with the EXIF orientation; classes have the names
and category ids of the data that the checkpoint was trained on. An OUTPUT that this program made
is replaced, any other is refused.

All files hold the same detections: those that reach --score. "auto" is, for each class, the score
of best F1 on the validation set that the checkpoint keeps; 0.3 where it keeps none. To score the
results yourself ask for weak ones too: --score 0.05 gives those that eval.py writes, --score 0 as
many of each photo as the checkpoint allows (100).

Exit status: 0, or 1 when a photo could not be read (the others are done), or 130 after ctrl-c or
SIGTERM, which leave the results so far.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from retinanet.signals import postponed
from retinanet.terminal import (
    DEFAULT_WIDTH,
    INTERRUPTED,
    MISTAKES,
    complain,
    count,
    has_bar,
    show,
    wrap,
)
from retinanet.tools.image_files import Photos, describe_kinds, find_photos
from retinanet.tools.predict.detector import Detector, load
from retinanet.tools.predict.files import RECORD, is_ours
from retinanet.tools.predict.predict import Prediction
from retinanet.tools.report.fonts import check_letters

# Off a terminal a line tells every so many seconds how far it is.
SECONDS_BETWEEN_LINES = 30.0
# Lists on the screen end after this many; the files have all.
SHOWN = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict; 1 when a photo could not be read, or nothing could be done."""
    args = read_arguments(arguments)
    try:
        photos = find_photos(args.photos, skip=is_ours)
        return predict(args, photos)
    except KeyboardInterrupt:
        return INTERRUPTED
    except torch.OutOfMemoryError:
        complain(MemoryError(f"{args.batch_size} photos do not fit; lower --batch-size."))
    except MISTAKES as error:
        complain(error)
    return 1


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options, and what to predict on."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.predict",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("photos", nargs="+", metavar="PHOTO")
    parser.add_argument(
        "--output", type=Path, default=Path("predictions"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--score", type=read_score, default="auto", help="auto, or 0 to 1")
    parser.add_argument(
        "--draw", action=argparse.BooleanOptionalAction, default=True, help="default: --draw"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="auto: bf16 where the device multiplies in it",
    )
    parser.add_argument("--batch-size", type=int, default=8, help="default: %(default)s")
    args = parser.parse_intermixed_args(arguments)
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
    return args


def read_score(text: str) -> float | str:
    """``auto`` or a number.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    try:
        score = text if text == "auto" else float(text)
    except ValueError:
        score = -1.0
    if score != "auto" and not 0 <= score < 1:
        raise argparse.ArgumentTypeError(f"must be auto, or at least 0 and below 1, got {text}")
    return score


def predict(args: argparse.Namespace, photos: Photos) -> int:
    """Everything after the photos are found; the exit status."""
    detector = load(args.checkpoint, args.device, args.precision)
    job = Prediction(detector, photos, args.output, draw=args.draw)
    minimum = detector.min_scores(args.score).tolist()
    for line in describe(args, detector, photos):
        say(line)
    about: dict[str, Any] = {
        "checkpoint": str(args.checkpoint),
        "device": str(detector.device),
        "precision": detector.precision,
        "score": args.score,
        "scores": dict(zip(detector.names, minimum, strict=True)),
    }
    try:
        with Progress(len(photos.paths)) as progress, postponed() as check:

            def after_each(number: int) -> None:
                progress.update(number)
                check()

            job.run(
                score=args.score, batch_size=args.batch_size, about=about, after_each=after_each
            )
            check()
    except KeyboardInterrupt:
        say(f"stopped    after {len(job.results)} of {len(photos.paths)} photos")
        for line in summary(job):
            say(line)
        raise
    for line in summary(job):
        say(line)
    for line in complaints(job):
        say(line, sys.stderr)
    return 1 if job.failed else 0


def describe(args: argparse.Namespace, detector: Detector, photos: Photos) -> list[str]:
    """What is about to happen."""
    settings = detector.settings
    lines = [
        f"checkpoint {args.checkpoint}: {settings.model.backbone}, "
        f"{count(len(detector.names), 'class')}, shorter side "
        f"{settings.data.min_size} px; {detector.device} in {detector.precision}",
        f"photos     {len(photos.paths)} in {photos.root}",
    ]
    if photos.left_out:
        lines[-1] += f"; left out: {describe_kinds(photos.left_out)}"
    lines.append(f"score      {describe_score(args.score, detector)}")
    letters = check_letters(detector.names, detector.category_ids) if args.draw else None
    return lines if letters is None else [*lines, f"note       {letters}"]


def describe_score(score: float | str, detector: Detector) -> str:
    """Which score a detection must reach, and why."""
    if score != "auto":
        return f"at least {score:g}"
    minimum, known = detector.min_scores(score).tolist(), detector.thresholds
    if known is None or (known["score"] is None and not any(known["classes"])):
        return (
            f"at least {minimum[0]:g}; the checkpoint does not keep its score of best F1, so "
            f"another --score may suit it better"
        )
    rows = [f"{name} {one:.2f}" for name, one in zip(detector.names, minimum, strict=True)]
    shown = ", ".join(rows[:SHOWN]) + (", ..." if len(rows) > SHOWN else "")
    return f"of best F1 on the validation set: {shown}"


def summary(job: Prediction) -> list[str]:
    """What was found, how fast, and where it is."""
    counts = Counter(int(label) for result in job.results for label in result.labels)
    names = job.detector.names
    rows = [f"{names[label]} {number}" for label, number in counts.most_common(SHOWN)]
    shown = f": {', '.join(rows)}" + (", ..." if len(counts) > SHOWN else "") if rows else ""
    num_with = sum(len(result.scores) > 0 for result in job.results)
    files = "detections.json coco.json detections.csv" + (" drawn/" if job.drawn else "")
    return [
        f"found      {count(job.num_detections, 'object')} in {num_with} of "
        f"{count(len(job.results), 'photo')}{shown}",
        f"speed      {len(job.results) / max(job.seconds, 1e-9):.1f} photos/s",
        f"files      {job.output}: {files}",
    ]


def complaints(job: Prediction) -> list[str]:
    """Photos that could not be read."""
    if not job.failed:
        return []
    messages = list(job.failed.values())
    more = [f"... {len(messages) - SHOWN} more"] if len(messages) > SHOWN else []
    what = count(len(messages), "photo")
    return [
        f"unreadable {what}, listed in {job.output / RECORD}",
        *(f"           {message}" for message in messages[:SHOWN] + more),
    ]


def say(line: str, stream: TextIO | None = None) -> None:
    """Show within the width of the screen."""
    show("\n".join(wrap(line, DEFAULT_WIDTH)), stream)


class Progress:
    """A bar on a terminal, else a line now and then; a context manager."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(
            total=total, desc="predict", unit="photo", leave=False, disable=not has_bar()
        )
        self._total = total
        self._start = self._told = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, number: int) -> None:
        """``number`` photos are done."""
        self._bar.update()
        now = time.monotonic()
        if self._bar.disable and now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            rate = number / (now - self._start)
            say(
                f"           {number} of {self._total} photos, {rate:.1f} photos/s, "
                f"{(self._total - number) / rate / 60:.0f} min left"
            )


if __name__ == "__main__":
    sys.exit(main())
