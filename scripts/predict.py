"""Find objects in images with a checkpoint and nothing else; no annotations are needed.

  python -m scripts.predict runs/NAME/checkpoints/best.pt photo.jpg
  python -m scripts.predict best.pt /data/photos --output found --score 0.5
  python -m scripts.predict best.pt "/data/2026-*/**/*.jpg" @more.txt --no-draw

CHECKPOINT is one of this project, torchvision, detectron2 or mmdetection. IMAGE is a file, a
folder, which is searched with all folders in it, a pattern in quotes, or @FILE with one of these
on each line. Hidden files, and in folders files that do not end like images, are left out.

OUTPUT gets
  drawn/           the images with boxes, class names and scores, as JPEG
  detections.json  COCO's results format
  coco.json        a whole COCO file: images, categories, annotations with scores
  detections.csv   file, class, category_id, score, x1, y1, x2, y2
  predict.json     what ran, with which scores, and images that could not be read
Boxes are in pixels of the images as displayed, with the EXIF orientation; classes have the names
and category ids of the data that the checkpoint was trained on. An OUTPUT that this program made
is replaced, any other is refused.

All files hold the same detections: those that reach --score. "auto" is, for each class, the score
of best F1 on the validation set that the checkpoint keeps; 0.3 where it keeps none. To score the
results yourself ask for weak ones too: --score 0.05 gives those that eval.py writes, --score 0 as
many of each image as the checkpoint allows (100).

Exit status: 0, or 1 when an image could not be read (the others are done), or 130 after ctrl-c or
SIGTERM, which leave the results so far.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from retinanet.config import DEVICES
from retinanet.signals import postponed
from retinanet.terminal import DEFAULT_WIDTH, count, has_bar, show, wrap
from retinanet.tools.image_files import describe_suffixes, find_images
from retinanet.tools.predict.detector import Detector, load
from retinanet.tools.predict.files import RECORD, is_ours
from retinanet.tools.predict.predict import Prediction
from retinanet.tools.report.style import check_letters

from .command_line import exit_status, new_parser

# Without a terminal a line each so many seconds shows the progress.
SECONDS_BETWEEN_LINES = 30.0
# Lists on the screen end after this many; the files have all.
SHOWN = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict; 1 when an image could not be read, or nothing could be done."""
    parser = new_parser("predict", __doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT")
    add("images", nargs="+", metavar="IMAGE")
    add("--output", type=Path, default=Path("predictions"), help="folder (default: %(default)s)")
    add("--score", type=read_score, default="auto", help="auto, or 0 to 1")
    add("--draw", action=argparse.BooleanOptionalAction, default=True, help="default: --draw")
    add("--device", choices=DEVICES.choices, default="auto")
    text = "auto: bf16 where the device multiplies in it"
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help=text)
    add("--batch-size", type=int, default=8, help="default: %(default)s")
    args = parser.parse_intermixed_args(arguments)
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
    return exit_status(lambda: predict(args))


def read_score(text: str) -> float | str:
    """``auto`` or a number in [0, 1); anything else is an error of argparse."""
    try:
        score = text if text == "auto" else float(text)
    except ValueError:
        score = -1.0
    if score != "auto" and not 0 <= score < 1:
        raise argparse.ArgumentTypeError(f"must be auto, or at least 0 and below 1, got {text}")
    return score


def predict(args: argparse.Namespace) -> int:
    """Detect on every image, write the files, log what was done; the exit status."""
    images = find_images(args.images, skip=is_ours)
    try:
        detector = load(args.checkpoint, args.device, args.precision)
    except torch.OutOfMemoryError as error:
        text = "the GPU's memory is too small for the model; use --device cpu."
        raise MemoryError(text) from error
    job = Prediction(detector, images, args.output, draw=args.draw)
    data = detector.settings.data
    left_out = f"; left out: {describe_suffixes(images.left_out)}" if images.left_out else ""
    log(
        f"checkpoint {args.checkpoint}: {detector.settings.model.backbone}, "
        f"{count(len(detector.names), 'class')}, shorter side {data.min_size} px; "
        f"{detector.device} in {detector.precision}"
    )
    log(f"images     {len(images.paths)} in {images.root}{left_out}")
    log(f"score      {describe_score(args.score, detector)}")
    letters = check_letters(detector.names, detector.category_ids) if args.draw else None
    if letters is not None:
        log(f"note       {letters}")
    try:
        run(job, args)
    except KeyboardInterrupt:
        log(f"stopped    after {len(job.detections)} of {len(images.paths)} images")
        log_results(job)
        raise
    except torch.OutOfMemoryError as error:
        raise MemoryError(f"{args.batch_size} images do not fit; lower --batch-size.") from error
    log_results(job)
    return 1 if job.failed else 0


def run(job: Prediction, args: argparse.Namespace) -> None:
    """The detecting, behind a bar on a terminal, else with a line now and then."""
    detector = job.detector
    scores = detector.min_scores(args.score).tolist()
    about = {
        "checkpoint": str(args.checkpoint),
        "device": str(detector.device),
        "precision": detector.precision,
        "score": args.score,
        "scores": dict(zip(detector.names, scores, strict=True)),
    }
    total, start = len(job.names), time.monotonic()
    logged = start
    with (
        tqdm(total=total, desc="predict", unit="image", leave=False, disable=not has_bar()) as bar,
        postponed() as check,
    ):

        def after_each(number: int) -> None:
            nonlocal logged
            bar.update()
            now = time.monotonic()
            if bar.disable and now - logged >= SECONDS_BETWEEN_LINES:
                logged = now
                rate = number / (now - start)
                minutes = (total - number) / rate / 60
                text = f"{number} of {total} images, {rate:.1f} images/s, {minutes:.0f} min left"
                log(" " * 11 + text)
            check()

        job.run(score=args.score, batch_size=args.batch_size, about=about, after_each=after_each)
        check()


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
    return f"of best F1 on the validation set: {first_of(rows)}"


def log_results(job: Prediction) -> None:
    """What was detected, how fast, where it is, and which images could not be read."""
    results = job.detections.values()
    counts = Counter(name for result in results for name in result.names)
    rows = [f"{name} {number}" for name, number in counts.most_common()]
    num_with = sum(len(result.scores) > 0 for result in results)
    text = f": {first_of(rows)}" if rows else ""
    log(f"detections {job.num_detections} in {num_with} of {count(len(results), 'image')}{text}")
    log(f"speed      {len(results) / max(job.seconds, 1e-9):.1f} images/s")
    drawn = " drawn/" if job.drawn else ""
    log(f"files      {job.output}: detections.json coco.json detections.csv{drawn}")
    if job.failed:
        lines = [f"unreadable {count(len(job.failed), 'image')}, listed in {job.output / RECORD}"]
        lines += [" " * 11 + message for message in [*job.failed.values()][:SHOWN]]
        if len(job.failed) > SHOWN:
            lines.append(f"{' ' * 11}... {len(job.failed) - SHOWN} more")
        for line in lines:
            show("\n".join(wrap(line, DEFAULT_WIDTH)), sys.stderr)


def first_of(rows: Sequence[str]) -> str:
    """The first rows of a list, in a line."""
    return ", ".join([*rows[:SHOWN], *(["..."] if len(rows) > SHOWN else [])])


def log(line: str) -> None:
    """Show within the width of the screen."""
    show("\n".join(wrap(line, DEFAULT_WIDTH)))


if __name__ == "__main__":
    sys.exit(main())
