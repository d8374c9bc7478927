"""The commands of docs/custom_data.md run, one after the other, on a few images of the same set."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What takes minutes or the internet there, and what stands for it here.
SHORTER = {
    "schedule.max_steps=300": "schedule.max_steps=4",
    "schedule.warmup_steps=30": "schedule.warmup_steps=1",
    "evaluation.every_epochs=3": "evaluation.every_epochs=1",
    "model=mobilenet_v2": "model=tiny data.workers=0",
}


def script() -> str:
    """All commands of the document, in their order."""
    text = (ROOT / "docs/custom_data.md").read_text()
    return "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))


def take(source: Path, split: str, count: int, folder: Path) -> None:
    """The first images of a split."""
    found = json.loads((source / "annotations" / f"{split}.json").read_text())
    found["images"] = found["images"][:count]
    ids = {image["id"] for image in found["images"]}
    found["annotations"] = [a for a in found["annotations"] if a["image_id"] in ids]
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(found))
    (folder / split).symlink_to(source / split)


@pytest.mark.slow
def test_the_walk_through_own_data_leads_to_its_end(real_data, tmp_path):
    pytest.importorskip("onnxruntime")
    cells, photos, project = (tmp_path / name for name in ("cells", "photos", "project"))
    source = real_data("bccd")
    take(source, "train", 16, cells)
    take(source, "val", 6, cells)
    photos.mkdir()
    for photo in sorted((source / "val").iterdir())[:2]:
        (photos / photo.name).symlink_to(photo)
    project.mkdir()
    for part in ("retinanet", "configs", "scripts", "train.py", "eval.py"):
        (project / part).symlink_to(ROOT / part)
    commands = script().replace("/data/cells", str(cells)).replace("/data/new_photos", str(photos))
    for long, short in SHORTER.items():
        assert long in commands, long
        commands = commands.replace(long, short)
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=project,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = project / "runs" / "cells"
    for made in ("eval/report.html", "eval/metrics.json", "checkpoints/best.onnx"):
        assert (run / made).stat().st_size > 0, made
    assert list((project / "looks").glob("sample_*.png"))
    assert len(list((project / "found" / "drawn").iterdir())) == 2
