"""Read a data set as train.py would, and tell everything that is wrong or odd about it.

train.py stops at the first mistake. This goes on to the last one, and says of each kind where it
is, what train.py does about it and what to do; then what there is to learn from. Nothing is
written to the data set.

  python -m scripts.check_data data=custom data.root=/data/cells \\
      data.train_images=train data.train_annotations=annotations/train.json \\
      data.val_images=val data.val_annotations=annotations/val.json
  python -m scripts.check_data data=coco data.root=/datasets/coco --images

Settings are those of train.py, experiment= included: the training size and the anchors decide
which boxes can be learnt. The headers of all images are read; --images decodes and hashes them,
which finds damaged files, and pictures that are in both splits under two names.

Exit status: 0 when train.py would take the data, 1 when it would stop.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from retinanet import build
from retinanet.cli.command import INTERRUPTED, MISTAKES, complain
from retinanet.cli.main import composer
from retinanet.config import TrainConfig
from retinanet.data.checkup import check_pair, check_reading, class_counts
from retinanet.data.coco import CocoData, Reading, read_all
from retinanet.data.filecheck import Seen, check_contents, check_files, look, other_sizes
from retinanet.data.records import shown
from retinanet.data.splits import check_images_exist
from retinanet.data.verdict import Effect, Finding, Verdict
from retinanet.terminal import has_bar
from retinanet.training.survey import size_counts, survey

TITLES = {
    Effect.REFUSED: "WRONG: train.py stops",
    Effect.MENDED: "MENDED: train.py puts it right in memory and goes on",
    Effect.NOTED: "ODD: train.py goes on",
}
# Classes of a longer list are shown at both its ends.
SHOWN_CLASSES = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found; 1 when train.py would stop."""
    args = read_arguments(arguments)
    try:
        with composer("train") as reader:
            settings = reader.command(args.settings).settings
        verdict, readings = check(settings, pixels=args.images, keep=args.show)
        print("\n".join(report(settings, verdict, readings, pixels=args.images)))
    except KeyboardInterrupt:
        return INTERRUPTED
    except MISTAKES as error:
        complain(error)
        return 1
    return 1 if verdict.refused else 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options and settings, in any order."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.check_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", action="store_true", help="decode every image, not headers")
    parser.add_argument(
        "--show", type=int, default=3, help="places named of each kind (default: %(default)s)"
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of train.py")
    args = parser.parse_intermixed_args(arguments)
    if args.show < 1:
        parser.error(f"--show must be at least 1, got {args.show}")
    return args


def check(
    settings: TrainConfig, *, pixels: bool = False, keep: int = 3
) -> tuple[Verdict, dict[str, Reading]]:
    """Everything that can be found out about both splits.

    Args:
        settings: of train.py.
        pixels: decode every image.
        keep: places named of each kind of finding.

    Returns:
        The findings, and each split that could be read, without the records refused.

    Raises:
        ValueError: a path is not set.
    """
    verdict = Verdict(stop=False, keep=keep)
    readings = read_splits(settings, verdict)
    both = "train" in readings and "val" in readings
    if both:
        train, val = readings["train"], readings["val"]
        build.check_splits(settings.data, train.data, val.data, verdict)
        check_plan(settings, train, verdict)
    elif settings.data.on_bad_image == "stop":
        for reading in readings.values():
            check_images_exist(reading.data, verdict)
    found = check_images(settings, readings, verdict, pixels=pixels)
    for split, reading in readings.items():
        if split == "train" or reading is not readings.get("train"):
            other = [seen.index for seen in other_sizes(reading.data, found[split])]
            check_reading(reading, verdict, other)
    if both:
        check_pair(train, val, settings.data.keep_empty, verdict)
        if pixels:
            check_contents(train.data, val.data, (found["train"], found["val"]), verdict)
    return verdict, readings


def read_splits(settings: TrainConfig, verdict: Verdict) -> dict[str, Reading]:
    """The splits that can be read; a file that serves both is read once."""
    paths = {split: build.data_paths(settings.data, split) for split in ("train", "val")}
    if paths["train"] == paths["val"]:
        paths = {"train": paths["train"]}
    readings = {}
    for split, where in paths.items():
        try:
            readings[split] = read_all(*where, verdict)
        except (ValueError, OSError) as error:
            message = str(error)
            verdict.refuse(
                "the annotation file cannot be read",
                [0],
                lambda _, message=message: message,
                lambda _, message=message: message,
                "What the message says.",
            )
    if "train" in readings and len(paths) == 1:
        readings["val"] = readings["train"]
    return readings


def check_plan(settings: TrainConfig, train: Reading, verdict: Verdict) -> None:
    """Refuse what the settings cannot do with the training set: no box, other classes in alpha."""
    if {(train.data.path, name) for name in ("images", "annotations", "categories")} & (
        verdict.left_out
    ):
        return  # what is missing may be what was refused
    try:
        build.resolve_alpha(settings.loss.alpha, train.data.category_names)
        build.build_stream(settings, train.data, torch.device("cpu"))
    except ValueError as error:
        message = str(error)
        verdict.refuse(
            "the settings do not go with the training set",
            [0],
            lambda _: message,
            lambda _: message,
            "What the message says.",
        )


def check_images(
    settings: TrainConfig, readings: dict[str, Reading], verdict: Verdict, *, pixels: bool
) -> dict[str, list[Seen]]:
    """What the image files of each split are."""
    found: dict[str, list[Seen]] = {}
    for split, reading in readings.items():
        if split == "val" and reading is readings.get("train"):
            found[split] = found["train"]
            continue
        if not reading.data.image_root.is_dir():
            found[split] = []  # told when it was read
            continue
        files = look(reading.data, pixels=pixels, workers=settings.data.workers)
        bar = tqdm(
            files,
            total=len(reading.data),
            desc=f"images of {split}",
            leave=False,
            dynamic_ncols=True,
            disable=not has_bar(),
        )
        found[split] = list(bar)
        skip = settings.data.on_bad_image == "skip"
        check_files(reading, found[split], skip, verdict)
    return found


def report(
    settings: TrainConfig, verdict: Verdict, readings: dict[str, Reading], *, pixels: bool
) -> list[str]:
    """Lines for the screen: the findings, what there is to learn from, and the last word."""
    root = Path(settings.data.root or ".")
    above = "" if root == Path() else f"{root}/"
    lines = [f"data.root={root}", ""]
    for effect, title in TITLES.items():
        findings = verdict.having(effect)
        lines += [title, ""] if findings else []
        for finding in findings:
            lines += [line.replace(above, "") for line in describe(finding)] + [""]
    lines += summary(settings, readings, partly=bool(verdict.refused))
    kinds, count = len(verdict.refused), sum(finding.count for finding in verdict.refused)
    if kinds:
        lines.append(f"train.py would stop. Mistakes: {count}; kinds of mistakes: {kinds}.")
    else:
        how = "decoded" if pixels else "not decoded: --images does it, and finds damaged ones"
        lines.append(f"train.py takes this data. Images were {how}.")
    return lines


def describe(finding: Finding) -> list[str]:
    """One kind of finding: what, how often, where, what becomes of it, what to do."""
    more = finding.count - len(finding.places)
    return [
        f"  {finding.kind}: {finding.count}",
        *(f"      {place}" for place in finding.places),
        *([f"      ... and {more} more (--show {finding.count} names them all)"] if more else []),
        f"    train.py  {finding.does}",
        f"    to do     {finding.remedy}",
    ]


def summary(settings: TrainConfig, readings: dict[str, Reading], *, partly: bool) -> list[str]:
    """What there is to learn from, and to be tested on.

    Args:
        settings: of train.py.
        readings: of the splits that could be read.
        partly: not all of their records are there.
    """
    size = {"min_size": settings.data.min_size, "max_size": settings.data.max_size}
    lines = [f"DATA{', without what is wrong' * partly}", ""] if readings else []
    for split, reading in readings.items():
        lines += describe_split(split, reading.data, size)
    if "train" in readings:
        lines += coverage(settings, readings["train"].data, size)
        lines += class_table({split: reading.data for split, reading in readings.items()})
    return [*lines, ""] if lines else []


def describe_split(split: str, data: CocoData, size: dict[str, int]) -> list[str]:
    """Counts of one split, and how large its objects are."""
    boxes = data.num_boxes()
    counts = size_counts(data, **size)
    total = max(sum(counts), 1)
    shares = ", ".join(
        f"{count} {name} ({100 * count / total:.0f} %)"
        for name, count in zip(("small", "medium", "large"), counts, strict=True)
    )
    most = f", at most {boxes.max()} in an image" if len(boxes) else ""
    return [
        f"  {split:<9} {len(data)} images ({int((boxes == 0).sum())} without objects), "
        f"{int(boxes.sum())} boxes{most}, {int(data.crowd.sum())} crowd regions",
        f"            {shares} at a shorter side of {size['min_size']} px",
    ]


def coverage(settings: TrainConfig, data: CocoData, size: dict[str, int]) -> list[str]:
    """The share of training boxes without a good anchor."""
    if not data.num_boxes().any():
        return []
    anchors, matcher = build.build_anchors(settings), build.build_matcher(settings)
    found = survey(data, anchors, matcher, keep_empty=settings.data.keep_empty, **size)
    share = 100 * found.uncovered
    advice = "; raise data.min_size, or lower anchors.sizes" if share >= 10 else ""
    return [
        f"  anchors   {share:.1f} % of the training boxes have none of IoU "
        f"{settings.matching.positive_iou:g} or more{advice}"
    ]


def class_table(splits: dict[str, CocoData]) -> list[str]:
    """Boxes of every class, the most frequent first."""
    counts: dict[str, dict[str, int]] = {}
    for split, data in splits.items():
        for name, count in zip(data.category_names, class_counts(data), strict=True):
            counts.setdefault(name, {})[split] = count
    ranked = sorted(counts, key=lambda name: -counts[name].get("train", 0))
    if not ranked:
        return []
    total = max(sum(row.get("train", 0) for row in counts.values()), 1)
    least = min((row["train"] for row in counts.values() if row.get("train")), default=0)
    most = counts[ranked[0]].get("train", 0)
    ratio = f", the most frequent {most / least:.3g} times as often as the rarest" if least else ""
    lines = [
        "",
        f"  {len(ranked)} classes{ratio}",
        f"  {'train':>9} {'share':>7} {'val':>9}  class",
    ]
    for name in ranked:
        train, val = (counts[name].get(split, "-") for split in ("train", "val"))
        share = f"{100 * train / total:.1f} %" if train != "-" else ""
        plain = name if name == name.strip() else shown(name)
        lines.append(f"  {train:>9} {share:>7} {val:>9}  {plain}")
    if len(ranked) > SHOWN_CLASSES:
        half = SHOWN_CLASSES // 2
        lines[3 + half : -half] = [f"  {'...':>9} {len(ranked) - 2 * half} more classes"]
    return lines


if __name__ == "__main__":
    sys.exit(main())
