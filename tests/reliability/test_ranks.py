"""Several ranks do what one does, and fail together."""

import json
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import TORCHRUN, environment, finish, train_line, write_data
from small_runs import ROOT, write_split

from retinanet.data.coco import read_coco
from retinanet.evaluation import average_precision, detect
from retinanet.evaluation.detect import DetectionArrays, merge
from retinanet.evaluation.numbers import NUMBERS
from retinanet.training.run_directory import read_run


class FakeBatch:
    """What is made of a plan here: its images' ids, and nothing to look at."""

    def __init__(self, image_ids: np.ndarray) -> None:
        self.image_ids = image_ids

    def to(self, *_: object, **__: object) -> "FakeBatch":
        return self


@pytest.fixture
def no_network(monkeypatch):
    """Detections that are a function of the image, without a network."""

    def fake_loader(data, augment, plan, **_):
        return [FakeBatch(data.image_ids[list(part.indices)]) for part in plan]

    def detect_batch(_network, _postprocess, batch, _precision):
        return merge([_invented(int(image_id)) for image_id in batch.image_ids])

    monkeypatch.setattr(average_precision, "BatchLoader", fake_loader)
    monkeypatch.setattr(detect, "detect_batch", detect_batch)
    monkeypatch.setattr(detect, "for_inference", lambda model, *_, **__: model)


def _invented(image_id: int) -> DetectionArrays:
    """A few boxes around where some of the objects are."""
    generator = np.random.default_rng(image_id)
    count = int(generator.integers(0, 6))
    corner = generator.uniform(0, 50, (count, 2))
    return DetectionArrays(
        image_ids=np.full(count, image_id),
        boxes=np.concatenate([corner, generator.uniform(20, 60, (count, 2))], axis=1),
        scores=np.sort(generator.uniform(0, 1, count))[::-1].copy(),
        labels=generator.integers(0, 2, count),
        evaluated=np.array([image_id]),
        num_capped=0,
    )


class Caught(Exception):  # noqa: N818
    """Carries a rank's share out of it."""


def _validate(data, monkeypatch, ranks: int):
    """What rank 0 of so many gets, each taking its share in turn."""

    def stop_with(value):
        raise Caught(value)

    shares = []
    arguments = {"device": torch.device("cpu"), "batch_size": 3}
    augment = average_precision.Augment(min_size=96, max_size=128)
    for number in range(ranks):
        with monkeypatch.context() as patched:
            patched.setattr(average_precision, "rank", lambda number=number: number)
            patched.setattr(average_precision, "world_size", lambda: ranks)
            patched.setattr(detect, "gather_objects", stop_with)
            with pytest.raises(Caught) as caught:
                average_precision.validate(None, data, augment, None, **arguments)
        shares.append(caught.value.args[0])
    with monkeypatch.context() as patched:
        patched.setattr(detect, "gather_objects", lambda _: shares)
        return shares, average_precision.validate(None, data, augment, None, **arguments)


def test_any_number_of_images_on_any_number_of_ranks_gives_the_ap_of_one(
    no_network, monkeypatch, tmp_path, tally
):
    scored = 0
    for count in range(1, 38):
        root = tmp_path / str(count)
        write_odd_sizes(root, count)
        data = read_coco(root / "val.json", root)
        _, (alone, found) = _validate(data, monkeypatch, 1)
        for ranks in range(2, 9):
            shares, (evaluation, together) = _validate(data, monkeypatch, ranks)
            evaluated = np.concatenate([share.evaluated for share in shares])
            assert sorted(evaluated.tolist()) == data.image_ids.tolist()
            for name in ("image_ids", "boxes", "scores", "labels", "evaluated"):
                assert getattr(together, name).tobytes() == getattr(found, name).tobytes()
            assert evaluation.metrics == alone.metrics
            scored += alone.metrics["AP"] is not None
    assert scored > 200
    tally("1 to 37 images on 1 to 8 ranks: 259 times the AP of one process, to the last digit")


def write_odd_sizes(root: Path, count: int) -> None:
    """Annotations of images of several sizes; no pixels."""
    generator = random.Random(count)
    sizes = [(96, 128), (128, 96), (128, 128)]
    images, annotations = [], []
    for i in range(1, count + 1):
        height, width = generator.choice(sizes)
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        for _ in range(generator.randint(0, 3)):
            x, y = generator.uniform(0, 50), generator.uniform(0, 50)
            box = [x, y, generator.uniform(20, 45), generator.uniform(20, 45)]
            entry = {"id": len(annotations) + 1, "image_id": i, "bbox": box, "iscrowd": 0}
            entry |= {"area": box[2] * box[3], "category_id": generator.randint(1, 2)}
            annotations.append(entry)
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    root.mkdir()
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "val.json").write_text(json.dumps(content))


@pytest.mark.slow
def test_two_ranks_evaluate_to_the_last_digit_of_one(tmp_path, tally):
    data, log = write_data(tmp_path / "data"), tmp_path / "log"
    line = train_line(data, tmp_path / "run", 1, "schedule.max_steps=12")
    assert finish(line, log) == 0, log.read_text()[-3000:]
    own = [str(ROOT / "eval.py"), f"checkpoint={tmp_path / 'run/checkpoints/last.pt'}"]
    own += ["device=cpu", "evaluation.batch_size=2", "postprocess.score_threshold=0"]
    found = {}
    for ranks in (1, 2):
        start = [sys.executable] if ranks == 1 else [*TORCHRUN, "--nproc-per-node=2"]
        output = tmp_path / str(ranks)
        assert finish([*start, *own, f"output_dir={output}"], log) == 0, log.read_text()[-3000:]
        found[ranks] = {path.name: path.read_bytes() for path in (output / "eval").glob("*.json")}
    assert found[1].keys() == found[2].keys()
    assert all(name in json.loads(found[1]["metrics.json"]) for name in NUMBERS)
    assert found[1] == found[2]
    tally("two ranks over gloo: files of the evaluation equal to one process's to the byte")


# Failing together


HANGING = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from small_runs import train
from retinanet import distributed
from retinanet.training.trainer import Trainer
def one_step(self, micro_batches):
    if distributed.rank() == 1:
        raise ValueError("a reason of its own")
    time.sleep(600)  # as in a collective of a GPU
Trainer.one_step = one_step
train(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_an_error_on_one_rank_ends_and_records_the_others_although_they_hang(tmp_path, tally):
    data, output = write_data(tmp_path / "data"), tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    start = time.monotonic()
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", HANGING, str(data), str(output)],
            env={**environment(), **place, "RANK": str(rank), "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert "ValueError: a reason of its own" in errors[1]
    assert "[rank 0] ends because rank 1 failed with ValueError" in errors[0]
    record = read_run(output)
    assert record["state"] == "failed"
    assert record["stops"][-1]["why"] == "rank 1 failed with ValueError"
    seconds = time.monotonic() - start  # with the start of both
    tally(f"an error on one rank ended the other, which hung, {seconds:.0f} s after their start")


@pytest.mark.slow
def test_an_image_that_only_one_rank_reads_ends_both_with_its_name(tmp_path):
    data, log = write_data(tmp_path / "data"), tmp_path / "log"
    write_split(data, "train", range(10, 22))
    (data / "images/13.png").write_bytes(b"no image")
    start = time.monotonic()
    assert finish(train_line(data, tmp_path / "run", 2), log) == 1
    assert time.monotonic() - start < 60
    said = log.read_text()
    assert "BadImage: cannot read image" in said
    assert "images/13.png" in said
