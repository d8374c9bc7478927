"""Trainings on real images, from data to COCO numbers."""

import json
from pathlib import Path

import pytest

from retinanet.cli import jobs
from retinanet.cli.main import composer

# Long enough to learn eight images by heart, and no longer.
SETTINGS = [
    "data=custom",
    "data.train_images=train2017",
    "data.val_images=train2017",
    "data.min_size=320",
    "data.max_size=480",
    "data.workers=0",
    "augment=none",
    "model=tiny",
    "anchors=small",
    "optim=adamw",
    "optim.lr=0.003",
    "optim.batch_size=4",
    "schedule=demo",
    "schedule.epochs=150",
    "ema=none",
    "evaluation.every_epochs=150",
    "log_images=0",
    "device=cpu",
    "precision=fp32",
]


@pytest.fixture
def eight_images(real_data, tmp_path) -> Path:
    """Annotations of the slice's first eight images with a box, crowds left out."""
    content = json.loads(
        (real_data("coco_slice") / "annotations/instances_train2017.json").read_text()
    )
    boxes = [a for a in content["annotations"] if not a["iscrowd"]]
    with_box = {a["image_id"] for a in boxes}
    images = [image for image in content["images"] if image["id"] in with_box][:8]
    kept = {image["id"] for image in images}
    boxes = [a for a in boxes if a["image_id"] in kept]
    used = {a["category_id"] for a in boxes}
    content["categories"] = [c for c in content["categories"] if c["id"] in used]
    path = tmp_path / "eight.json"
    path.write_text(json.dumps({**content, "images": images, "annotations": boxes}))
    return path


@pytest.mark.slow
def test_eight_real_images_are_learnt_by_heart(real_data, eight_images, tmp_path):
    run = tmp_path / "run"
    typed = [
        *SETTINGS,
        f"data.root={real_data('coco_slice')}",
        f"data.train_annotations={eight_images}",
        f"data.val_annotations={eight_images}",
        f"output_dir={run}",
    ]
    with composer("train") as reader:
        jobs.train(reader.command(typed).settings, typed)
    log = (run / "train.log").read_text()
    # At this size 22 of the 75 boxes have no anchor of IoU 0.5; each trains its best one.
    assert "8 (0 without objects), 75 boxes, 0 crowd regions" in log
    assert "classes    26:" in log
    assert "coverage   29.3 % of the boxes" in log
    numbers = json.loads((run / "eval/metrics.json").read_text())
    assert numbers["num_gt"] == 75
    assert numbers["AP50"] >= 0.90
