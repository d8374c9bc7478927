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
which finds damaged files, and pictures that are there twice or look alike.

--pictures FOLDER draws what people should look at before training: images of every class with
their boxes, an image of every kind of finding, the sizes of boxes with the anchors over them, the
number of boxes of every class.

Exit status: 0 when train.py would take the data, 1 when it would stop.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from retinanet import build
from retinanet.cli.command import INTERRUPTED, MISTAKES, complain, show
from retinanet.cli.main import composer
from retinanet.config import TrainConfig
from retinanet.data.coco import CocoData, Reading, read_all
from retinanet.data.learnable import VANISHED, check_learnable
from retinanet.data.splits import check_images_exist
from retinanet.data.verdict import Verdict
from retinanet.terminal import has_bar
from retinanet.tools.anchor_coverage import Coverage, Objects, cover, objects_at
from retinanet.tools.anchor_search import TOO_MANY, propose_anchors, propose_size
from retinanet.tools.check_data.box_sizes import plot_box_sizes, plot_classes
from retinanet.tools.check_data.checkup import check_pair, check_reading
from retinanet.tools.check_data.copies import check_contents, check_repeated
from retinanet.tools.check_data.filecheck import Seen, check_files, look, other_sizes
from retinanet.tools.check_data.samples import draw_findings, draw_samples
from retinanet.tools.check_data.summary import (
    class_table,
    describe_coverage,
    describe_findings,
    describe_proposals,
    describe_split,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was found; 1 when train.py would stop."""
    args = read_arguments(arguments)
    try:
        with composer("train") as reader:
            settings = reader.command(args.settings).settings
        if args.pictures is not None:
            args.pictures.mkdir(parents=True, exist_ok=True)  # refused before the work
        verdict, readings = check(settings, pixels=args.images, keep=args.show)
        show("\n".join(report(settings, verdict, readings, pixels=args.images)))
        if args.pictures is not None:
            show("\n".join(draw(settings, verdict, readings, args.pictures)))
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
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="draw images, findings, sizes, classes"
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
            check_repeated(reading.data, found[split], verdict)
    if both:
        check_pair(train, val, settings.data.keep_empty, verdict)
        if pixels:
            check_contents(train.data, val.data, (found["train"], found["val"]), verdict)
    return verdict, readings


def without_unseen(settings: TrainConfig, reading: Reading) -> Reading:
    """A training set as training takes it: boxes that it never sees at its size are dropped."""
    data = build.drop_unseen(settings, reading.data)
    vanished = np.sort(reading.box_rows[reading.data.usable & ~data.usable])
    return reading._replace(data=data, mended=reading.mended | {VANISHED: vanished})


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
    if "train" in readings:
        readings["train"] = without_unseen(settings, readings["train"])
    if "train" in readings and len(paths) == 1:
        readings["val"] = readings["train"]
    return readings


def check_plan(settings: TrainConfig, train: Reading, verdict: Verdict) -> None:
    """Refuse what the settings cannot do with the training set: no box, other classes in alpha."""
    if {(train.data.path, name) for name in ("images", "annotations", "categories")} & (
        verdict.left_out
    ):
        return  # what is missing may be what was refused
    refused = len(verdict.refused)
    check_learnable(train.data, verdict)
    if len(verdict.refused) > refused:
        return
    try:
        build.resolve_alpha(settings.loss.alpha, train.data.category_names)
        build.build_loader(settings, train.data, torch.device("cpu"))
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
    lines = [f"data.root={root}", "", *describe_findings(verdict, root)]
    lines += summary(settings, readings, partly=bool(verdict.refused))
    kinds, count = len(verdict.refused), sum(finding.count for finding in verdict.refused)
    if kinds:
        lines.append(f"train.py would stop. Mistakes: {count}; kinds of mistakes: {kinds}.")
    else:
        lines.append("train.py takes this data.")
        if not pixels:
            lines.append("Images were not decoded: --images does it, and finds damaged ones.")
    return lines


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
        lines += describe_split(
            split, reading.data, size["min_size"], objects_at(reading.data, **size)
        )
    if "train" in readings:
        lines += coverage(settings, readings["train"].data)
        lines += class_table({split: reading.data for split, reading in readings.items()})
    return [*lines, ""] if lines else []


def coverage(settings: TrainConfig, data: CocoData) -> list[str]:
    """How well the anchors fit the training boxes, and what would fit better."""
    anchors, iou = build.build_anchors(settings), settings.matching.positive_iou

    def measure(min_size: int, max_size: int) -> tuple[Objects, Coverage]:
        found = objects_at(data, min_size=min_size, max_size=max_size)
        return found, cover(found, anchors, iou, len(data.category_names))

    size = settings.data.min_size, settings.data.max_size
    found, covered = measure(*size)
    if not covered.all.num_boxes:
        return []
    lines = describe_coverage(covered, data.category_names, iou)
    share = covered.all.share
    if share > TOO_MANY:
        proposals = propose_anchors(found, anchors, iou, share)
        proposals += propose_size(lambda *other: measure(*other)[1].all.share, *size, share)
        lines += describe_proposals(proposals, settings.init_from)
    return lines


def draw(
    settings: TrainConfig, verdict: Verdict, readings: dict[str, Reading], folder: Path
) -> list[str]:
    """Write pictures into a folder; lines that name them."""
    lines = ["", f"pictures in {folder}"]
    splits = {split: reading.data for split, reading in readings.items()}
    if "train" in splits:
        train, size = splits["train"], settings.data
        sheets, unseen = draw_samples(train, "train", folder)
        more = f"; {unseen} classes are on none" if unseen else ", every class that has any"
        lines.append(f"  {_files(sheets)}  images with their boxes{more}")
        found = objects_at(train, min_size=size.min_size, max_size=size.max_size)
        iou = settings.matching.positive_iou
        anchors = build.build_anchors(settings)
        plot_box_sizes(found, anchors, iou, size.min_size, folder / "box_sizes.png")
        plot_classes(splits, folder / "classes.png")
        lines += [
            "  box_sizes.png  sizes of boxes, with the anchors",
            "  classes.png    boxes of every class",
        ]
    sheets = draw_findings(verdict, folder)
    if sheets:
        lines.append(f"  {_files(sheets)}  what was found, where it can be seen")
    return lines


def _files(sheets: Sequence[Path]) -> str:
    """Names of numbered files: the first, and the last."""
    return " ... ".join(dict.fromkeys((sheets[0].name, sheets[-1].name))) if sheets else ""


if __name__ == "__main__":
    sys.exit(main())
