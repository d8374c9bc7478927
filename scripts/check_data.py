"""Read a data set as train.py would, and list everything that is wrong or odd about it.

train.py stops at the first mistake. This goes on to the last one, and says of each kind where it
is, what train.py does about it and how to fix it; then what there is to learn from. Nothing is
written to the data set.

  python -m scripts.check_data data=custom data.root=/data/cells \\
      data.train_images=train data.train_annotations=annotations/train.json \\
      data.val_images=val data.val_annotations=annotations/val.json
  python -m scripts.check_data data=coco data.root=/datasets/coco --images

Settings are those of train.py, experiment= included: the training size and the anchors decide
which boxes can be learnt. The headers of all images are read; --images decodes and hashes them,
which finds damaged files, and images that are there twice or look alike.

--pictures FOLDER draws what people should look at before training: images of every class with
their boxes, an image of every kind of issue, the sizes of boxes with the anchors over them, the
number of boxes of every class.

Exit status: 0 when train.py would take the data, 1 when it would stop.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from retinanet import build
from retinanet.atomic import check_writable
from retinanet.cli.main import composer
from retinanet.config import TrainConfig
from retinanet.data.coco import Reading
from retinanet.data.issues import Effect, Issue
from retinanet.terminal import INTERRUPTED, MISTAKES, complain, show
from retinanet.tools.anchor_coverage import objects_at
from retinanet.tools.check_data.box_sizes import plot_box_sizes, plot_classes
from retinanet.tools.check_data.check import check
from retinanet.tools.check_data.samples import draw_findings, draw_samples
from retinanet.tools.check_data.summary import report


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the issues; 1 when train.py would stop."""
    args = read_arguments(arguments)
    try:
        with composer("train") as reader:
            settings = reader.command(args.settings).settings
        if args.pictures is not None:
            check_writable(args.pictures, "--pictures")
        issues, readings = check(settings, pixels=args.images, keep=args.show)
        show("\n".join(report(settings, issues, readings, pixels=args.images)))
        if args.pictures is not None:
            show("\n".join(draw(settings, issues, readings, args.pictures)))
    except KeyboardInterrupt:
        return INTERRUPTED
    except MISTAKES as error:
        complain(error)
        return 1
    return int(any(issue.effect is Effect.REFUSED for issue in issues))


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
        "--pictures", type=Path, metavar="FOLDER", help="draw images, issues, sizes, classes"
    )
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of train.py")
    args = parser.parse_intermixed_args(arguments)
    if args.show < 1:
        parser.error(f"--show must be at least 1, got {args.show}")
    return args


def draw(
    settings: TrainConfig, issues: Sequence[Issue], readings: Mapping[str, Reading], folder: Path
) -> list[str]:
    """Write pictures into a folder; lines that name them."""

    def names_of(sheets: Sequence[Path]) -> str:
        return " ... ".join(dict.fromkeys((sheets[0].name, sheets[-1].name))) if sheets else ""

    lines = ["", f"pictures in {folder}"]
    if "train" in readings:
        train, size = readings["train"].data, settings.data
        sheets, unseen = draw_samples(train, "train", folder)
        more = f"; {unseen} classes are on none" if unseen else ", every class that has any"
        objects = objects_at(train, min_size=size.min_size, max_size=size.max_size)
        anchors, iou = build.build_anchors(settings), settings.matching.positive_iou
        plot_box_sizes(objects, anchors, iou, size.min_size, folder / "box_sizes.png")
        splits = {split: reading.data for split, reading in readings.items()}
        plot_classes(splits, folder / "classes.png")
        lines += [
            f"  {names_of(sheets)}  images with their boxes{more}",
            "  box_sizes.png  sizes of boxes, with the anchors",
            "  classes.png    boxes of every class",
        ]
    sheets = draw_findings(issues, folder)
    if sheets:
        lines.append(f"  {names_of(sheets)}  what was found, where it can be seen")
    return lines


if __name__ == "__main__":
    sys.exit(main())
