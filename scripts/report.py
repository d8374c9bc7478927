"""Write the report of a run again from the files of its directory: eval/report.html.

    python -m scripts.report runs/shapes
    python -m scripts.report runs/NAME --output report.html --images 4

train.py and eval.py write it themselves; this is for runs from before they did, for curves of the
steps after the best checkpoint, and for another number of pictures. Nothing is computed by the
network: what it found is in eval/detections.json. Where the data is gone or another, the report has
the numbers and curves of the run, without pictures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from retinanet.terminal import MISTAKES, complain
from retinanet.tools.report.publish import rebuild_report
from retinanet.tools.report.run_report import MOST_IMAGES


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, say where it is and what is not in it."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="directory of a run of train.py")
    parser.add_argument(
        "--output", type=Path, help="file to write (default: eval/report.html of the run)"
    )
    parser.add_argument(
        "--images",
        type=int,
        help=f"pictures, 0 to {MOST_IMAGES} (default: log_images of the run, at most "
        f"{MOST_IMAGES})",
    )
    args = parser.parse_args(arguments)
    if args.images is not None and not 0 <= args.images <= MOST_IMAGES:
        parser.error(f"--images must lie in 0 to {MOST_IMAGES}, got {args.images}")
    try:
        path, left_out = rebuild_report(args.run, args.output, args.images)
    except MISTAKES as error:
        complain(error)
        return 1
    if left_out:
        print(f"left out   {left_out}")
    print(f"report     {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
