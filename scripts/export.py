"""Write a trained model as one file for other programs: ONNX, or a program of torch.export.

    python -m scripts.export runs/NAME/checkpoints/best.pt
    python -m scripts.export best.pt --size 800x1344 --batch 1 --photos photos/
    python -m scripts.export best.pt --raw-heads --output heads.onnx
    python -m scripts.export best.pt --format pt2

Pixels from 0 to 255 go in; normalization, anchors and NMS are inside, and boxes come out in pixels
of the image. docs/export.md says how to make the inputs in a few lines of numpy and Pillow.

Every file is run beside its checkpoint on images (those given, or the run's validation images)
before it gets its name. Where a box differs by more than 0.5 px, a score by more than 0.001, or a
detection has no partner, the file is removed.

Exit status: 0 when the file detects the same, 1 when there is no file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from retinanet.terminal import show
from retinanet.tools.export.job import KINDS, export
from retinanet.tools.export.write import OPSET, Shape

from .command_line import exit_status, new_parser

DYNAMIC = "dynamic"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was compared; 1 when nothing was written."""
    args = read_arguments(arguments)

    def work() -> int:
        export(
            args.checkpoint,
            args.output,
            args.format,
            raw_heads=args.raw_heads,
            shape=Shape(args.batch, args.size),
            photos=args.photos,
            opset=args.opset,
            say=show,
        )
        return show(f"written    {args.output}, {args.output.stat().st_size / 1e6:.1f} MB")

    return exit_status(work)


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with a name for the output."""
    parser = new_parser("export", __doc__)
    parser.add_argument("checkpoint", type=Path, help="of train.py, or of another project")
    parser.add_argument("--format", choices=KINDS, default="onnx", help="(default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        help="file to write (default: beside the checkpoint, with its name; _heads with raw heads)",
    )
    parser.add_argument(
        "--raw-heads", action="store_true", help="logits, deltas and anchors; no NMS"
    )
    parser.add_argument(
        "--size",
        type=_size,
        default=DYNAMIC,
        metavar="HxW",
        help="fixed height and width of the padded images, pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=_batch, default=DYNAMIC, metavar="N", help="fixed (default: %(default)s)"
    )
    parser.add_argument(
        "--photos",
        type=Path,
        nargs="+",
        default=[],
        metavar="PATH",
        help="files or folders to compare on; 8 of a folder (default: the validation images)",
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=OPSET,
        help="version of ONNX's operators (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    name = f"{args.checkpoint.stem}{'_heads' * args.raw_heads}.{args.format}"
    args.output = args.output or args.checkpoint.parent / name
    return args


def _size(text: str) -> tuple[int, int] | None:
    if text != DYNAMIC and not re.fullmatch(r"\d+[xX]\d+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither {DYNAMIC} nor as 800x1344")
    return None if text == DYNAMIC else tuple(map(int, text.lower().split("x")))


def _batch(text: str) -> int | None:
    if text != DYNAMIC and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither {DYNAMIC} nor a whole number")
    return None if text == DYNAMIC else int(text)


if __name__ == "__main__":
    sys.exit(main())
