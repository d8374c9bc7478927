"""One small checkpoint and its ONNX file for all tests here: an export takes ten seconds."""

import pytest
from random_models import THRESHOLDS, TINY, make_checkpoint

from retinanet import load
from retinanet.tools.export.job import export
from retinanet.tools.export.sample_images import make_up


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "best.pt"
    return make_checkpoint(path, *TINY, thresholds=THRESHOLDS)


@pytest.fixture(scope="session")
def detector(checkpoint):
    return load(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def exported(checkpoint):
    """The file, and the lines that its export printed."""
    pytest.importorskip("onnxruntime")
    lines = []
    path = checkpoint.with_suffix(".onnx")
    export(checkpoint, path, say=lines.append)
    return path, lines


@pytest.fixture(scope="session")
def made_up(tmp_path_factory):
    return make_up(tmp_path_factory.mktemp("made_up"))


@pytest.fixture(scope="session")
def eight_images(real_data):
    """Real images of eight sizes, the narrowest and the widest of the set among them."""
    from PIL import Image

    by_size = {}
    for path in sorted((real_data("coco_slice") / "val2017").glob("*.jpg")):
        with Image.open(path) as file:
            by_size.setdefault(file.size, path)
    sizes = sorted(by_size, key=lambda size: size[0] / size[1])
    chosen = [sizes[round(i * (len(sizes) - 1) / 7)] for i in range(8)]
    return [by_size[size] for size in chosen]
