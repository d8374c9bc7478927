"""Convert annotations between COCO JSON, PASCAL VOC, YOLO and CSV tables.

  python -m scripts.convert_dataset --from FORMAT --to FORMAT SOURCE... OUTPUT

train.py reads COCO JSON; the last line printed is the command that trains on
what was written. OUTPUT is a new folder, complete or not there. Sources and
images are never changed. Images stay where they are, or are linked where a
format wants them beside (voc, yolo). Boxes keep every bit. What a format
cannot hold is told; mistakes are, all of them, with file and line.

From PASCAL VOC (also LabelImg, CVAT, Label Studio, Roboflow)
  Annotations/*.xml  JPEGImages/*  ImageSets/Main/{train,val}.txt (if there)
  train/ valid/ test/  with XML files beside images, as Roboflow writes them

  python -m scripts.convert_dataset --from voc --to coco VOC2012 voc-coco
  python -m scripts.convert_dataset --from voc --to coco labelimg out \\
      --corners edges --val-share 0.2

  PASCAL VOC counts pixels from 1, and xmax is the last one inside: --corners
  pixels, the default. CVAT, Label Studio, VoTT and LabelImg write edges
  counted from 0: --corners edges. A box that begins at 0 proves it, but
  LabelImg writes 1 there.

From YOLO (images are needed: labels do not say their size)
  data.yaml                  names, and train/val as folders or lists
  images/train labels/train  or train/images train/labels (Roboflow), or
                             images/ labels/, or images beside labels
  classes.txt or obj.names   one class a line, where there is no data.yaml

  python -m scripts.convert_dataset --from yolo --to coco cells cells-coco
  python -m scripts.convert_dataset --from yolo --to coco a/data.yaml a-coco \\
      --polygons

From CSV (one file for each split; a header says what the columns are)
  filename,width,height,class,xmin,ymin,xmax,ymax     TensorFlow, Roboflow
  path,x1,y1,x2,y2,class                              RetinaNet's tables
  An image without objects is a row with its name alone: empty.jpg,,,,,

  python -m scripts.convert_dataset --from csv --to coco train.csv val.csv out
  python -m scripts.convert_dataset --from csv --to coco old.csv out \\
      --image-folder images --columns path,x1,y1,x2,y2,class --val-share 0.2

From COCO JSON
  python -m scripts.convert_dataset --from coco --to yolo \\
      annotations/train.json annotations/val.json out \\
      --image-folder train --image-folder val
  python -m scripts.convert_dataset --from coco --to voc \\
      train=a.json val=b.json out
  python -m scripts.convert_dataset --from coco --to csv a.json b.json out

From COCO JSON, to mend it
  Numbers in quotes are written without, sizes that are missing are read from
  the images, boxes drawn from right to left or from bottom to top are written
  from their upper left corner. --base-names is for image names that lead
  elsewhere (Label Studio), --drop-unused-classes for a class without a box
  (Roboflow's first).

  python -m scripts.convert_dataset --from coco --to coco result.json out \\
      --base-names
  python -m scripts.convert_dataset --from coco --to coco \\
      train/_annotations.coco.json valid/_annotations.coco.json out \\
      --drop-unused-classes

What is kept                voc   yolo  csv
  boxes, class names        yes   yes   yes
  images without objects    yes   yes   yes
  class ids                 yes   yes   yes   in classes.csv, read back
  image ids, areas          yes   no    yes
  crowd regions             yes   no    yes   yolo: left out, or --crowd object
  annotation ids, masks     no    no    no

Exit status: 0, or 1 when nothing was written.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from retinanet.terminal import (
    DEFAULT_WIDTH,
    INTERRUPTED,
    LABELS,
    MISTAKES,
    complain,
    count,
    has_bar,
    show,
    wrap,
)
from retinanet.tools.formats.annotations import AnnotationError, Annotations
from retinanet.tools.formats.convert import image_place, prepare, write
from retinanet.tools.formats.sources import FORMATS, Reader
from retinanet.tools.formats.splits import set_aside


def main(arguments: Sequence[str] | None = None) -> int:
    """Read, check, write, and say what comes next."""
    args = read_arguments(arguments)
    try:
        check_output(args)
        show("\n".join(convert(args)))
    except KeyboardInterrupt:
        return INTERRUPTED
    except AnnotationError as error:
        tell_all(error, args.show)
        return 1
    except MISTAKES as error:
        complain(error)
        return 1
    return 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Formats, sources, the folder to make, and options, in any order."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.convert_dataset",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--from", dest="source_format", choices=FORMATS, required=True, help="what is there")
    add("--to", dest="target", choices=FORMATS, required=True, help="what to write")
    add("paths", nargs="+", metavar="SOURCE", help="folders (voc, yolo) or files (coco, csv)")
    add("output", type=Path, metavar="OUTPUT", help="folder to make")
    add(
        "--image-folder",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="that image names start from; once, or once for each source (default: looked for)",
    )
    add(
        "--images",
        choices=("leave", "link", "copy", "ignore"),
        help="leave them, link or copy them into OUTPUT, or do not even look for them (default: "
        "link for voc and yolo, leave for coco and csv)",
    )
    add(
        "--corners",
        choices=("edges", "pixels"),
        help="of voc and csv: edges counted from 0, or pixels from 1, the last inside (default: "
        "pixels for voc, edges for csv)",
    )
    add("--classes", type=Path, metavar="FILE", help="one name a line, or id,name in a .csv")
    add("--columns", metavar="A,B,...", help="of a CSV file without a header")
    add("--val-share", type=float, metavar="SHARE", help="set images aside: train.json, val.json")
    add("--seed", type=int, default=0, help="of --val-share (default: %(default)s)")
    add("--polygons", action="store_true", help="yolo: polygons become the boxes around them")
    add("--crowd", choices=("drop", "object"), default="drop", help="to yolo (default: drop)")
    add("--base-names", action="store_true", help="coco: image names lose their folders")
    add("--drop-unused-classes", action="store_true", help="coco: classes without any box")
    add("--overwrite", action="store_true", help="move an OUTPUT that is there aside")
    add("--show", type=int, default=20, help="mistakes shown (default: %(default)s)")
    args = parser.parse_intermixed_args(arguments)
    check_options(parser, args)
    return args


def check_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse options that would do nothing."""
    formats = {args.source_format, args.target}
    only = {
        "--corners": (args.corners, bool({"voc", "csv"} & formats)),
        "--columns": (args.columns, args.source_format == "csv"),
        "--polygons": (args.polygons, args.source_format == "yolo"),
        "--base-names": (args.base_names, args.source_format == "coco"),
        "--drop-unused-classes": (args.drop_unused_classes, args.source_format == "coco"),
        "--classes": (args.classes, args.source_format != "coco"),
        "--crowd object": (args.crowd == "object", args.target == "yolo"),
    }
    for option, (given, sensible) in only.items():
        if given and not sensible:
            parser.error(f"{option} says nothing from {args.source_format} to {args.target}")
    if args.corners and formats >= {"voc", "csv"}:
        parser.error("--corners from voc to csv could mean either; go by way of coco")
    if args.source_format == "yolo" and args.images == "ignore":
        parser.error("--images ignore: YOLO's labels do not say the sizes of images")
    if args.source_format == "yolo" and args.image_folder:
        parser.error("--image-folder: YOLO's images are found by data.yaml, or beside labels/")
    if args.val_share is not None and not 0 < args.val_share < 1:
        parser.error(f"--val-share must lie between 0 and 1, got {args.val_share:g}")
    if args.show < 1:
        parser.error(f"--show must be at least 1, got {args.show}")


def check_output(args: argparse.Namespace) -> None:
    """Refuse to write where something is.

    Raises:
        ValueError: the folder is there, or holds a source.
    """
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


def convert(args: argparse.Namespace) -> list[str]:
    """Do it.

    Returns:
        Lines for the screen.

    Raises:
        AnnotationError: all that is wrong with the annotations.
        ValueError: anything else that is.
        OSError: a file cannot be read or written.
    """
    usual = "link" if args.target in ("voc", "yolo") else "leave"
    images = args.images or usual
    reader = Reader(
        format=args.source_format,
        image_folders=args.image_folder,
        images=images,
        corners=args.corners,
        classes=args.classes,
        columns=args.columns.split(",") if args.columns else None,
        polygons=args.polygons,
        base_names=args.base_names,
        drop_unused=args.drop_unused_classes,
        progress=progress,
    )
    found = reader.read(args.paths)
    if args.val_share is not None:
        set_aside(found, args.val_share, args.seed)
    lines = describe(found, args.source_format)
    lost = prepare(found, args.target, keep_crowd=args.crowd == "object")
    lost |= write(
        found,
        args.target,
        args.output,
        images=images,
        corners=args.corners,
        overwrite=args.overwrite,
        progress=progress,
    )
    for what, number in (found.notes | lost).items():
        lines.append(paragraph("note", f"{number} x {what}" if number else what))
    number = sum(len(split.pictures) for split in found.splits)
    where = {
        "link": f"{count(number, 'link')} in {args.output}, to where they are",
        "copy": f"{number} {'copy' if number == 1 else 'copies'} in {args.output}",
        "leave": "where they were",
        "ignore": "not looked for",
    }
    lines += [paragraph("images", where[images]), paragraph("written", str(args.output)), ""]
    return lines + what_next(found, args, images)


def progress(items: Sequence, what: str) -> Iterable:
    """A bar, on a terminal."""
    return tqdm(items, desc=what, leave=False, disable=not has_bar())


def describe(found: Annotations, source: str) -> list[str]:
    """What was read."""
    lines = []
    for split in found.splits:
        boxes = [box for picture in split.pictures for box in picture.boxes]
        empty = sum(not picture.boxes for picture in split.pictures)
        crowd = sum(box.crowd for box in boxes)
        lines.append(
            paragraph(
                "read",
                f"{source}: {split.name}: {count(len(split.pictures), 'image')} ({empty} without "
                f"boxes), {count(len(boxes), 'box')}" + f", {crowd} of them crowds" * bool(crowd),
            )
        )
    known = Counter(box.name for box in found.boxes())
    unused = [c.name for c in found.categories if c.name not in known]
    names = ", ".join(c.name for c in found.categories[:10])
    more = ", ..." * (len(found.categories) > 10)
    lines.append(paragraph("classes", f"{len(found.categories)}: {names}{more}"))
    if unused:
        shown = ", ".join(unused[:5]) + ", ..." * (len(unused) > 5)
        lines.append(paragraph("note", f"{count(len(unused), 'class')} without a box: {shown}"))
    return lines


def what_next(found: Annotations, args: argparse.Namespace, images: str) -> list[str]:
    """How to use what was written; the last line trains on it, or leads there."""
    if args.target != "coco":
        return way_back(found, args, images)
    names = {split.name for split in found.splits}
    if not {"train", "val"} <= names:
        text = (
            f"train.py needs train.json and val.json; this made {', '.join(sorted(names))}. Name "
            f"the sources, train=PATH val=PATH, or set images aside with --val-share 0.2."
        )
        return [paragraph("next", text)]
    typed = train_settings(found, args.output, images)
    return [
        "What is odd about it: python -m scripts.check_data with these settings.",
        command("python train.py", typed),
    ]


def way_back(found: Annotations, args: argparse.Namespace, images: str) -> list[str]:
    """How train.py gets what was written in another format."""
    if args.target == "yolo" and images in ("leave", "ignore"):
        text = f"labels are of no use without images; put them into {args.output}/images/SPLIT."
        return [paragraph("next", text)]
    source = [args.output]
    if args.target == "csv":
        source = [args.output / f"{split.name}.csv" for split in found.splits]
    typed = ["--from", args.target, "--to", "coco", *map(str, source), f"{args.output}-coco"]
    if args.corners and args.target == "csv":
        typed.append(f"--corners={args.corners}")
    if images == "ignore":
        typed.append("--images=ignore")
    if images == "leave":
        folders = [str(split.folder.root.resolve()) for split in found.splits]
        if args.target == "voc" and len(set(folders)) > 1:
            text = f"put the images into {args.output}/JPEGImages, or let --images link do it."
            return [paragraph("next", text)]
        typed += [f"--image-folder={folder}" for folder in folders[: len(source)]]
    return [
        "train.py reads COCO JSON; this makes it of what was written:",
        command("python -m scripts.convert_dataset", typed),
    ]


def train_settings(found: Annotations, output: Path, images: str) -> list[str]:
    """Settings of train.py for the two files."""
    folders = {split.name: split.folder.root for split in found.splits}
    typed = ["data=custom", f"data.root={output}"]
    for name in ("train", "val"):
        placed = images in ("link", "copy")
        root = image_place("coco", name) if placed else folders[name].resolve()
        typed += [f"data.{name}_images={root}", f"data.{name}_annotations={name}.json"]
    return [*typed, "model=resnet50"]


def command(program: str, typed: Sequence[str]) -> str:
    """A command for the shell, in lines."""
    lines = [program]
    for word in map(shlex.quote, typed):
        if len(lines[-1]) + len(word) < DEFAULT_WIDTH - 3:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}")
    return " \\\n".join(lines)


def paragraph(title: str, text: str) -> str:
    """A line with its title, wrapped."""
    return "\n".join(wrap(f"{title:<{LABELS}}{text}", DEFAULT_WIDTH))


def tell_all(error: AnnotationError, most: int) -> None:
    """Every mistake, as far as there is room."""
    shown = error.lines[:most]
    more = error.count - len(shown)
    lines = [f"mistakes: {error.count}; nothing was written", *shown]
    lines += [f"... and {more} more (--show {error.count} shows them)"] if more else []
    sys.stderr.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
