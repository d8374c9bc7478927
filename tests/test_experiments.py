"""Every recipe of configs/experiment trains: two steps on real images, from weights in a file."""

import json
from pathlib import Path

import pytest
import torch
import torchvision

from retinanet.cli import jobs
from retinanet.cli.main import composer

EXPERIMENTS = sorted(
    path.stem for path in (Path(__file__).parents[1] / "configs/experiment").glob("*.yaml")
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of a backbone in a file, made once."""
    folder = tmp_path_factory.mktemp("weights")

    def path_of(name):
        path = folder / f"{name}.pth"
        if not path.exists():
            model = torchvision.models.get_model(name)
            for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
                # Frozen at 1, the norms of a hundred random layers let the signal grow to inf.
                torch.nn.init.constant_(norm.weight, 0.2)
            torch.save(model.state_dict(), path)
        return path

    return path_of


def small(settings):
    """What lets a recipe run on a CPU: small images, no norms over GPUs, no fp16."""
    typed = ["data.min_size=96", "device=cpu", "data.workers=0"]
    typed += ["augment.min_sizes=[64,96]"] if settings.augment.min_sizes else []
    typed += ["model.norm=batch"] if settings.model.norm == "sync" else []
    typed += ["precision=bf16"] if settings.precision == "fp16" else []
    return [*typed, "schedule.max_steps=2", "evaluation.max_images=2", "log_images=0"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_two_steps_of_each(name, real_data, weights, tmp_path):
    typed = [f"experiment={name}", f"data.root={real_data('coco_slice')}"]
    with composer("train") as reader:
        settings = reader.command(typed).settings
        typed += [f"model.weights={weights(settings.model.backbone)}", *small(settings)]
        settings = reader.command([*typed, f"output_dir={tmp_path}"]).settings
    jobs.train(settings, typed)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 2
    assert all(row["loss/class"] > 0 for row in rows if "loss/class" in row)
    assert (tmp_path / "checkpoints/best.pt").exists()
