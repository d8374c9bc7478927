"""The lines of docs/export.md give the pixels and the detections of this project."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet.data.loader import padded_size
from retinanet.data.transforms import resized_size
from retinanet.tools.export.sample_images import fit
from retinanet.tools.export.write import Shape, describe

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def shown():
    """What the document's first block of Python defines."""
    pytest.importorskip("onnxruntime")
    block = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)[0]
    lines = block.rstrip().splitlines()
    assert lines[-1].startswith("detect(")
    names = {}
    exec("\n".join(lines[:-1]), names)
    return names


@pytest.fixture
def how(detector, checkpoint):
    def make(size=None, **sizes):
        about = describe(detector, {}, checkpoint, Shape(size=size), "onnx")["preprocessing"]
        return about | sizes

    return make


def assert_same_pixels(made, images):
    apart = np.abs(made["images"].astype(int) - images.numpy().astype(int))
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.01


@pytest.mark.parametrize("sizes", [(96, 160), (800, 1333), (200, 210)])
def test_its_pixels_are_those_of_the_detector(
    shown, how, detector, eight_images, monkeypatch, sizes
):
    for name, size in zip(("min_size", "max_size"), sizes, strict=True):
        monkeypatch.setattr(detector.settings.data, name, size)
    for path in eight_images[:: 1 if sizes[0] < 800 else 4]:
        made = shown["prepare"](path, how())
        images, size, original = detector.prepare(path)
        assert made["images"].shape == tuple(images.shape)
        assert made["images"].dtype == np.uint8
        assert made["sizes"].tolist() == size.tolist()
        assert made["file_sizes"].tolist() == [original.tolist()]
        assert_same_pixels(made, images)


@pytest.mark.parametrize("canvas", [(96, 96), (64, 160), (320, 320)])
def test_on_a_fixed_canvas_too(shown, how, detector, made_up, canvas):
    for path in made_up:
        made = shown["prepare"](path, how(canvas))
        wanted = fit(path, detector.settings, canvas)
        assert made["images"].shape[2:] == canvas
        assert made["sizes"].tolist() == wanted.sizes.tolist()
        height, width = wanted.sizes[0].tolist()
        made["images"] = made["images"][:, :, :height, :width]
        assert_same_pixels(made, wanted.images)


def test_a_turned_image_is_turned(shown, how, detector, tmp_path, made_up):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(made_up[0]) as file:
        file.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    made = shown["prepare"](tmp_path / "turned.jpg", how())
    images, size, _ = detector.prepare(tmp_path / "turned.jpg")
    assert size[0, 0] > size[0, 1]
    assert made["sizes"].tolist() == size.tolist()
    assert_same_pixels(made, images)


@pytest.mark.parametrize("sizes", [(96, 160), (33, 500)])
def test_sizes_are_the_same_for_all_images(shown, how, tmp_path, sizes):
    about = how(min_size=sizes[0], max_size=sizes[1])
    for height, width in np.random.default_rng(0).integers(1, 700, (50, 2)).tolist():
        Image.new("1", (width, height)).save(tmp_path / "p.png")
        made = shown["prepare"](tmp_path / "p.png", about)
        size = resized_size(height, width, *sizes)
        assert made["sizes"].tolist() == [list(size)]
        assert made["images"].shape[2:] == tuple(padded_size(size))


@pytest.mark.slow
def test_it_prints_what_the_detector_detects(shown, exported, detector, made_up, capsys):
    import onnxruntime

    (detections,) = detector([made_up[0]])
    shown["detect"](onnxruntime.InferenceSession(exported[0]), made_up[0])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(detections.scores) > 10
    # Pixels that differ by a level move scores by more than rounding does.
    name, score, *box = re.findall(r"[\w.]+", lines[0])
    assert name == detections.names[0]
    assert float(score) == pytest.approx(detections.scores[0].item(), abs=0.02)
    assert [*map(float, box)] == pytest.approx(detections.boxes[0].tolist(), abs=2.0)
