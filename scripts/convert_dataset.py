"""Convert annotations of other tools and formats to COCO JSON, for train.py.

  python -m scripts.convert_dataset --from FORMAT --to coco SOURCE... OUTPUT

The last line printed is the command that trains on what was written. OUTPUT
is a new folder, complete or not there. Sources and images are never changed.
Errors are reported all together, with file and line. Several sources of one
split (train=a.json train=b.json) are put together; classes go by their names.

From PASCAL VOC (also LabelImg, CVAT, Label Studio, Roboflow)
  Annotations/*.xml  JPEGImages/*  ImageSets/Main/{train,val}.txt (if there)
  train/ valid/ test/  with XML files beside images, as Roboflow writes them

  python -m scripts.convert_dataset --from voc --to coco labelimg out \\
      --corners edges --val-share 0.2

  PASCAL VOC counts pixels from 1, and xmax is the last one inside: --corners
  pixels, the default. CVAT, Label Studio, VoTT and LabelImg write edges
  counted from 0: --corners edges. A box that begins at 0 proves it, but
  LabelImg writes 1 there.

From YOLO (images are needed: labels do not hold their sizes)
  data.yaml                  names, and train/val as folders or lists
  images/train labels/train  or train/images train/labels (Roboflow), or
                             images/ labels/, or images beside labels
  classes.txt or obj.names   one class a line, where there is no data.yaml

  python -m scripts.convert_dataset --from yolo --to coco a/data.yaml a-coco \\
      --polygons

From CSV (one file for each split; a header says what the columns are)
  filename,width,height,class,xmin,ymin,xmax,ymax     TensorFlow, Roboflow
  path,x1,y1,x2,y2,class                              RetinaNet's tables
  path,x,y,w,h,class                                  corner and sides
  An image without objects is a row with its name alone: empty.jpg,,,,,

  python -m scripts.convert_dataset --from csv --to coco old.csv out \\
      --image-folder images --columns path,x1,y1,x2,y2,class --val-share 0.2

From LabelMe (a folder of its JSON files) and VIA 1 or 2 (its JSON or CSV)
  Polygons and circles become the boxes around them. Where regions of VIA have
  several attributes, --attribute NAME says which one is the class; where they
  have none, --classes FILE names the one class of all.

  python -m scripts.convert_dataset --from labelme --to coco photos out \\
      --val-share 0.2

From COCO JSON, to clean it
  Numbers in quotes, ids that are no integers, missing sizes, missing boxes of
  polygons and masks, rotated boxes, and boxes drawn from right to left or
  from bottom to top are fixed. --base-names is for image names that lead
  elsewhere (Label Studio), --drop-unused-classes for a class without a box
  (Roboflow).

  python -m scripts.convert_dataset --from coco --to coco \\
      train/_annotations.coco.json valid/_annotations.coco.json out \\
      --drop-unused-classes

To YOLO, from any of them
  Crowd regions, image ids and areas are not kept; class ids are in
  classes.csv, which --from yolo reads back.

  python -m scripts.convert_dataset --from coco --to yolo \\
      train=a.json val=b.json out --image-folder train --image-folder val

Exit status: 0, or 1 when nothing was written.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from retinanet.checks import expand_home
from retinanet.terminal import DEFAULT_WIDTH, LABELS, count, show, wrap
from retinanet.tools.formats.convert import READERS, TARGETS, read_sources, set_aside, write
from retinanet.tools.formats.dataset import AnnotationError, Dataset, Options

from .command_line import exit_status, new_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, check, write, and print what comes next."""
    args = read_arguments(arguments)
    return exit_status(lambda: convert(args))


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Formats, sources, the folder to make, and options, in any order."""
    parser = new_parser("convert_dataset", __doc__)
    parser.allow_abbrev = False
    add = parser.add_argument
    add("--from", dest="source_format", choices=tuple(READERS), required=True, help="what is there")
    add("--to", dest="target", required=True, help="what to write: coco or yolo")
    add(
        "paths",
        nargs="+",
        metavar="SOURCE",
        help="folders (voc, yolo, labelme) or files (coco, csv, via)",
    )
    add("output", type=Path, metavar="OUTPUT", help="folder to make")
    text = "that image names start from; once, or once for each source (default: looked for)"
    add("--image-folder", type=Path, action="append", default=[], metavar="DIR", help=text)
    text = "leave them, link or copy them into OUTPUT, or do not even look for them"
    text += " (default: leave to coco, link to yolo)"
    add("--images", choices=("leave", "link", "copy", "ignore"), help=text)
    text = "of voc and csv: edges counted from 0, or pixels from 1, the last inside"
    text += " (default: pixels for voc, edges for csv)"
    add("--corners", choices=("edges", "pixels"), help=text)
    add("--classes", type=Path, metavar="FILE", help="one name a line, or id,name in a .csv")
    add("--columns", metavar="A,B,...", help="of a CSV file without a header")
    add("--val-share", type=float, metavar="SHARE", help="set images aside: train.json, val.json")
    add("--seed", type=int, default=0, help="of --val-share (default: %(default)s)")
    add("--attribute", metavar="NAME", help="of via: the attribute of a region that is its class")
    add("--polygons", action="store_true", help="yolo: polygons become the boxes around them")
    add("--crowd", choices=("drop", "object"), default="drop", help="to yolo (default: drop)")
    add("--base-names", action="store_true", help="coco: image names lose their folders")
    add("--drop-unused-classes", action="store_true", help="coco: classes without any box")
    add("--overwrite", action="store_true", help="move an OUTPUT that is there aside")
    add("--show", type=int, default=20, help="mistakes shown (default: %(default)s)")
    args = parser.parse_intermixed_args(arguments)
    parts = [path.rpartition("=") for path in args.paths]  # of train=PATH, or of PATH
    args.paths = [name + equals + expand_home(path) for name, equals, path in parts]
    source, target = args.source_format, args.target
    if target not in TARGETS:
        parser.error(f"--to {target}: writes coco, for train.py, or yolo; others are only read")
    args.images = args.images or {"coco": "leave", "yolo": "link"}[target]
    # Options that would do nothing are refused.
    useful = {
        "--corners": (args.corners, source in ("voc", "csv")),
        "--columns": (args.columns, source == "csv"),
        "--attribute": (args.attribute, source == "via"),
        "--polygons": (args.polygons, source == "yolo"),
        "--base-names": (args.base_names, source == "coco"),
        "--drop-unused-classes": (args.drop_unused_classes, source == "coco"),
        "--classes": (args.classes, source != "coco"),
        "--crowd object": (args.crowd == "object", target == "yolo"),
    }
    for option, (given, sensible) in useful.items():
        if given and not sensible:
            parser.error(f"{option} has no effect from {source} to {target}")
    if source == "yolo" and args.images == "ignore":
        parser.error("--images ignore: YOLO's labels do not hold the sizes of images")
    if source == "yolo" and args.image_folder:
        parser.error("--image-folder: YOLO's images are found by data.yaml, or beside labels/")
    if args.val_share is not None and not 0 < args.val_share < 1:
        parser.error(f"--val-share must lie between 0 and 1, got {args.val_share:g}")
    if args.show < 1:
        parser.error(f"--show must be at least 1, got {args.show}")
    return args


def check_output(args: argparse.Namespace) -> None:
    """Refuse, with a ValueError, to write where something is, or around a source."""
    output = args.output
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; OUTPUT, the last path, is a folder to make.")
    if output.name in ("", "..") or Path.cwd().is_relative_to(output.resolve()):
        raise ValueError(f"OUTPUT {output} is where you are, or above; name a folder to make.")
    if output.is_dir() and any(output.iterdir()) and not args.overwrite:
        raise ValueError(
            f"{output} is there already; choose another folder, or let --overwrite move it aside."
        )
    for source in [*args.paths, *map(str, args.image_folder)]:
        if Path(source.partition("=")[2] or source).resolve().is_relative_to(output.resolve()):
            raise ValueError(f"OUTPUT {output} holds the source {source}; choose another folder.")


def convert(args: argparse.Namespace) -> int:
    """Read, write and print; 1 with all that is wrong with the annotations, 0 otherwise.

    Raises:
        ValueError: anything else that is wrong.
        OSError: a file cannot be read or written.
    """
    check_output(args)
    options = Options(
        look=args.images != "ignore",
        corners=args.corners,
        classes=args.classes,
        columns=args.columns.split(",") if args.columns else None,
        attribute=args.attribute,
        polygons=args.polygons,
        base_names=args.base_names,
        drop_unused=args.drop_unused_classes,
    )
    try:
        dataset = read_sources(args.source_format, args.paths, options, args.image_folder)
        if args.val_share is not None:
            set_aside(dataset, args.val_share, args.seed)
        notes = write(
            dataset,
            args.target,
            args.output,
            images=args.images,
            keep_crowd=args.crowd == "object",
            overwrite=args.overwrite,
        )
        dataset.notes.update(notes)
    except AnnotationError as error:
        number, lines = len(error.lines), error.lines[: args.show]
        if number > args.show:
            lines.append(f"... and {number - args.show} more (--show {number} shows them)")
        sys.stderr.write("\n".join([f"mistakes: {number}; nothing was written", *lines, ""]))
        return 1
    rows = [*describe(dataset, args), ("written", str(args.output))]
    lines = [
        line for title, text in rows for line in wrap(f"{title:<{LABELS}}{text}", DEFAULT_WIDTH)
    ]
    return show("\n".join([*lines, "", *what_next(dataset, args)]))


def describe(dataset: Dataset, args: argparse.Namespace) -> list[tuple[str, str]]:
    """What was read, changed and written, as titles and texts."""
    rows = []
    for split in dataset.splits:
        boxes = [box for image in split.images for box in image.boxes]
        empty = sum(not image.boxes for image in split.images)
        crowd = sum(box.crowd for box in boxes)
        text = f"{args.source_format}: {split.name}: {count(len(split.images), 'image')} ({empty} "
        text += f"without boxes), {count(len(boxes), 'box')}"
        rows.append(("read", text + f", {crowd} of them crowds" * bool(crowd)))
    names = list(dataset.class_ids)
    used = {box.class_name for box in dataset.boxes()}
    unused = [name for name in names if name not in used]
    rows.append(("classes", f"{len(names)}: {', '.join(names[:10])}" + ", ..." * (len(names) > 10)))
    if unused:
        shown = ", ".join(unused[:5]) + ", ..." * (len(unused) > 5)
        rows.append(("note", f"{count(len(unused), 'class')} without a box: {shown}"))
    for what, number in dataset.notes.items():
        rows.append(("note", f"{number} x {what}" if number else what))
    number = sum(len(split.images) for split in dataset.splits)
    where = {
        "link": f"{count(number, 'link')} in {args.output}, to where they are",
        "copy": f"{number} {'copy' if number == 1 else 'copies'} in {args.output}",
        "leave": "where they were",
        "ignore": "not looked for",
    }
    return [*rows, ("images", where[args.images])]


def what_next(dataset: Dataset, args: argparse.Namespace) -> list[str]:
    """How to use what was written."""
    output, text = args.output, ""
    roots = {split.name: split.root.resolve() for split in dataset.splits}
    if args.target == "yolo":
        text = f"{output}/data.yaml describes it to YOLO's trainers."
        if args.images in ("leave", "ignore"):
            text = f"labels are of no use without images; put them into {output}/images/SPLIT."
    elif not {"train", "val"} <= roots.keys():
        names = sorted(roots)
        made = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
        text = (
            f"train.py needs train.json and val.json; this made {made}. Name "
            f"the sources, train=PATH val=PATH, or set images aside with --val-share 0.2."
        )
    if text:
        return wrap(f"{'next':<{LABELS}}{text}", DEFAULT_WIDTH)
    typed = ["data=custom", f"data.root={output}"]
    for name in ("train", "val"):
        root = f"images/{name}" if args.images in ("link", "copy") else roots[name]
        typed += [f"data.{name}_images={root}", f"data.{name}_annotations={name}.json"]
    lines = ["python train.py"]
    for word in map(shlex.quote, [*typed, "model=resnet50"]):
        if len(lines[-1]) + len(word) < DEFAULT_WIDTH - 3:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}")
    check = "What is odd about it: python -m scripts.check_data with these settings."
    return [check, " \\\n".join(lines)]


if __name__ == "__main__":
    sys.exit(main())
