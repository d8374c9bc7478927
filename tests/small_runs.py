"""Runs on a few small images: data, settings, and what is compared when they are over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from retinanet.cli import jobs
from retinanet.cli.main import composer
from retinanet.config import TrainConfig
from retinanet.training.checkpoint import load_checkpoint

ROOT = Path(__file__).parent.parent
CLASSES = ("square", "bar")
# Everything small: 3 steps an epoch, milliseconds each.
SETTINGS = """
data=custom data.train_images=images data.train_annotations=train.json data.workers=0
data.val_images=images data.val_annotations=val.json data.min_size=96 data.max_size=128
model=tiny model.fpn_channels=16 model.head_channels=16 model.head_depth=1 ema=average
optim=sgd optim.batch_size=2 optim.reference_batch=2
schedule=demo schedule.warmup_steps=2 schedule.epochs=2
evaluation.every_epochs=10 evaluation.backend=pycocotools
log_every_steps=1 log_images=0 device=cpu precision=fp32
"""
TIMES = ("images_per_s", "data_wait", "memory_gib")


def write_split(root: Path, name: str, ids: range, *, classes: tuple[str, ...] = CLASSES) -> None:
    """Images of 96 x 128 with one bright box each; every third has none."""
    generator = np.random.default_rng(ids.start)
    images, annotations = [], []
    (root / "images").mkdir(parents=True, exist_ok=True)
    for i in ids:
        picture = generator.integers(0, 90, (96, 128, 3), dtype=np.uint8)
        images.append({"id": i, "file_name": f"{i}.png", "height": 96, "width": 128})
        if i % 3:
            x, y = generator.integers(0, 50, 2).tolist()
            width, height = 40, 40 if i % 2 else 20
            picture[y : y + height, x : x + width] = 240
            box = {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
            category = 1 + (height == 20)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": category, **box}
            )
        Image.fromarray(picture).save(root / "images" / f"{i}.png")
    categories = [{"id": n, "name": name} for n, name in enumerate(classes, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{name}.json").write_text(json.dumps(content))


def command(data: Path, output: Path, *overrides: str) -> list[str]:
    typed = [*SETTINGS.split(), f"data.root={data}", f"output_dir={output}", *overrides]
    if any(override.startswith("schedule.max_steps=") for override in overrides):
        # Nothing reads it then.
        typed = [override for override in typed if not override.startswith("schedule.epochs=")]
    return list({override.partition("=")[0]: override for override in typed}.values())


def settings_of(typed: list[str]) -> TrainConfig:
    with composer("train") as reader:
        return reader.command(typed).settings


def train(data: Path, output: Path, *overrides: str) -> None:
    typed = command(data, output, *overrides)
    jobs.train(settings_of(typed), typed)


def rows(output: Path) -> list[dict]:
    """The metrics without what depends on the clock."""
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in row.items() if key not in TIMES} for row in lines]


def leaves(state, path: str = "") -> dict[str, object]:
    """Dotted path -> tensor or value, of everything a resumed run goes on from."""
    if isinstance(state, dict):
        items = [(key, value) for key, value in state.items() if key != "settings"]
    elif isinstance(state, list | tuple):
        items = list(enumerate(state))
    else:
        return {path: state}
    found = {}
    for key, value in items:
        found |= leaves(value, f"{path}.{key}")
    return found


def assert_same_bits(first: Path, second: Path) -> None:
    a, b = (leaves(load_checkpoint(path / "checkpoints/last.pt")) for path in (first, second))
    assert a.keys() == b.keys()
    assert any("momentum" in key for key in a)
    assert any(key.startswith(".ema.") for key in a)
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b[key]), key
        else:
            assert repr(value) == repr(b[key]), key  # nan is equal to nan


def steps_on_board(output: Path) -> dict[str, list[int]]:
    """Tag -> steps of TensorBoard's numbers, histograms and pictures, as it shows them."""
    kinds = {"scalars": "Scalars", "histograms": "Histograms", "images": "Images"}
    board = EventAccumulator(str(output / "tensorboard"), size_guidance=dict.fromkeys(kinds, 0))
    board.Reload()
    return {
        tag: [event.step for event in getattr(board, kinds[kind])(tag)]
        for kind in kinds
        for tag in sorted(board.Tags()[kind])
    }
