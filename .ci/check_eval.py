"""Stock pycocotools must give our twelve numbers for our detections.json, to 1e-6.

python .ci/check_eval.py RUN/eval ANNOTATIONS.json
"""

import json
import sys
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
TOLERANCE = 1e-6


def main() -> None:
    """Compare the twelve numbers, exit 1 on a difference."""
    folder, annotations = Path(sys.argv[1]), sys.argv[2]
    ours = json.loads((folder / "metrics.json").read_text())
    missing = [name for name in NAMES if name not in ours]
    if missing:
        sys.exit(f"{folder / 'metrics.json'} lacks {', '.join(missing)}.")

    truth = COCO(annotations)
    evaluator = COCOeval(truth, truth.loadRes(str(folder / "detections.json")), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()

    # pycocotools writes -1 for what is not defined, we write null.
    stock = [None if value == -1 else float(value) for value in evaluator.stats]
    wrong = [
        f"{name}: ours {ours[name]}, pycocotools {value}"
        for name, value in zip(NAMES, stock, strict=True)
        if (ours[name] is None) != (value is None)
        or (value is not None and abs(ours[name] - value) > TOLERANCE)
    ]
    if wrong:
        sys.exit("metrics.json and stock pycocotools differ.\n" + "\n".join(wrong))
    print(f"metrics.json: twelve numbers, equal to stock pycocotools within {TOLERANCE:g}")


if __name__ == "__main__":
    main()
