"""Prediction with a checkpoint alone: right places, whole files, and on after a bad image."""

import csv
import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from retinanet import Detector, build, load
from retinanet.boxes import encode_boxes
from retinanet.build import recorded_settings
from retinanet.cli.main import composer
from retinanet.data.loader import padded_size
from retinanet.evaluation.thresholds import DEFAULT_SCORE
from retinanet.tools.predict.detector import WAITING_BATCHES, Resized, in_batches, read_pixels
from retinanet.tools.report.boxes import DRAWN_SCORE
from scripts import predict

ROOT = Path(__file__).parent.parent
NAMES, IDS = ["cat", "dog"], [3, 17]
THRESHOLDS = {"iou": 0.5, "score": 0.4, "f1": 0.8, "classes": [0.9, None]}


class Bright(nn.Module):
    """Finds the white rectangle of an image: a network whose answer is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.num_classes = 2

    def level_sizes(self, height, width):
        return [2]

    def forward(self, images, sizes):
        white = images[:, 0] > 127
        boxes = []
        for one in white:
            ys, xs = one.nonzero(as_tuple=True)
            boxes.append(torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]))
        anchors = torch.tensor([[0.0, 0.0, 64.0, 64.0], [200.0, 200.0, 210.0, 210.0]])
        deltas = torch.zeros(len(images), 2, 4)
        deltas[:, 0] = encode_boxes(torch.stack(boxes).float(), anchors[:1])
        logits = torch.full((len(images), 2, 2), -9.0)
        logits[:, 0, 1] = 2.0  # a dog
        return logits, deltas, anchors


@pytest.fixture(scope="module")
def state():
    """A checkpoint of a tiny network with random weights, as a run writes it."""
    typed = ["model.fpn_channels=16", "model.head_channels=16", "model.head_depth=1"]
    typed += ["model=tiny", "data.min_size=96", "data.max_size=160"]
    with composer("train") as reader:
        settings = reader.command(typed).settings
    torch.manual_seed(0)
    model = build.build_model(settings, 2)
    nn.init.normal_(model.head["cls"].pred.weight, std=0.3)
    nn.init.constant_(model.head["cls"].pred.bias, -5.0)
    nn.init.normal_(model.head["box"].pred.weight, std=0.05)
    return {
        "format": 1,
        "settings": dataclasses.asdict(settings),
        "model": model.state_dict(),
        "classes": {"names": NAMES, "ids": IDS},
        "step": 1,
        "val_data": None,
    }


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    torch.save(state, path)
    return path


@pytest.fixture
def detector(checkpoint):
    return load(checkpoint, device="cpu")


@pytest.fixture
def bright(state):
    return Detector(Bright(), recorded_settings(state), NAMES, IDS)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Sizes and shapes of all kinds; noise, in which random weights find something."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    sizes = [(60, 80), (80, 60), (61, 83), (200, 30), (30, 200), (60, 80), (96, 128), (7, 300)]
    for i, (height, width) in enumerate(sizes):
        blobs = generator.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
        picture = Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i}.{'jpg' if i % 2 else 'png'}", quality=95)
    return folder


def run(*arguments):
    return predict.main([*map(str, arguments), "--device", "cpu", "--precision", "fp32"])


def rows(output):
    with (output / "detections.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# Where things are


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize(("height", "width"), [(301, 97), (97, 301), (640, 480), (33, 50)])
def test_a_known_object_is_found_where_it_is_displayed(
    bright, tmp_path, height, width, orientation
):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 4 : height // 2, width // 3 : width * 3 // 4] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as image:  # as a viewer shows it
        shown = np.asarray(ImageOps.exif_transpose(image))
    ys, xs = (shown[..., 0] > 127).nonzero()
    expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    (found,) = bright([path])
    assert found.size == shown.shape[:2]
    assert (found.names, found.category_ids, found.labels.tolist()) == (("dog",), (17,), [1])
    # Resizing rounds edges to pixels of the resized image.
    step = max(1.0, min(height, width) / 96)
    assert np.abs(found.boxes[0].numpy() - expected).max() <= step


def test_the_drawn_box_is_around_the_object(bright, tmp_path):
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[200:300, 100:400] = 255
    picture = np.asarray(bright.draw(pixels, bright([pixels])[0]))
    assert picture.shape == pixels.shape
    colored = (picture == (0xE4, 0x57, 0x2E)).all(axis=-1)
    assert 94 <= np.flatnonzero(colored[250])[0] <= 105
    assert 395 <= np.flatnonzero(colored[250])[-1] <= 405
    assert (picture[450] == 0).all()


# Batches


@pytest.mark.parametrize(("batch_size", "workers"), [(2, 0), (3, 2), (8, 0)])
def test_results_depend_neither_on_batches_nor_on_processes(detector, images, batch_size, workers):
    paths = sorted(images.iterdir())
    alone = detector(paths, score=0.3)
    outcomes = dict(detector.outcomes(paths, score=0.3, batch_size=batch_size, workers=workers))
    together = [outcomes[i] for i in range(len(paths))]
    assert sum(len(found.scores) for found in alone) > 50
    for one, other, path in zip(alone, together, paths, strict=True):
        with Image.open(path) as image:
            assert one.size == other.size == image.size[::-1]
        assert len(one.scores) == len(other.scores)
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=1e-3)


def test_results_come_while_images_are_still_made(detector):
    taken = []

    def frames():
        for i in range(40):
            taken.append(i)
            yield np.full((60, 80, 3), i, np.uint8)

    found = detector.stream(frames(), batch_size=4)
    next(found)
    assert len(taken) == 4
    assert len(list(found)) == 39


def test_a_rare_size_does_not_wait_for_ever():
    pixels = [torch.zeros(3, 50, 20), *(torch.zeros(3, 20 + 32 * (i % 7), 20) for i in range(99))]
    images = [Resized(i, one, (9, 9)) for i, one in enumerate(pixels)]
    groups = list(in_batches(iter(images), 3))
    assert max(map(len, groups)) == 3
    for group in groups:
        assert len({tuple(padded_size(np.array(i.pixels.shape[1:]))) for i in group}) == 1
    indices = [image.index for group in groups for image in group]
    assert sorted(indices) == list(range(100))
    assert indices.index(0) <= 3 * WAITING_BATCHES


def test_processes_that_read_ahead_report_the_same_errors(detector, images, tmp_path):
    (tmp_path / "b.jpg").write_text("no image")
    rgb = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    wanted = [tmp_path / "b.jpg", tmp_path / "gone.jpg", images / "0.png", rgb[:, ::-1]]
    alone = dict(detector.outcomes(wanted, score=0))
    ahead = dict(detector.outcomes(wanted, score=0, workers=2))
    assert alone.keys() == ahead.keys() == {0, 1, 2, 3}
    for i, kind in enumerate((ValueError, FileNotFoundError)):
        assert isinstance(alone[i], kind)
        assert repr(alone[i]) == repr(ahead[i])
    for i in (2, 3):
        assert alone[i].size == ahead[i].size
        assert torch.equal(alone[i].boxes, ahead[i].boxes)
        assert len(alone[i].scores)


# What an image may be


def test_a_file_an_image_an_array_and_a_tensor_have_the_same_pixels(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(rgb).save(path, exif=exif)
    with Image.open(path) as image:
        turned = np.rot90(rgb, -1)  # strides are negative
        tensor = torch.from_numpy(turned.copy()).permute(2, 0, 1)
        for same in (path, str(path), image, turned, tensor):
            assert torch.equal(read_pixels(same), tensor)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5), np.uint8), r"array \(H, W, 3\) of uint8 .* got \(4, 5\) of uint8"),
        (np.zeros((3, 4, 5), np.uint8), r"got \(3, 4, 5\) of uint8"),
        (np.zeros((4, 5, 3)), r"got \(4, 5, 3\) of float64"),
        (np.zeros((0, 5, 3), np.uint8), r"got \(0, 5, 3\)"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8), r"tensor \(3, H, W\) .* got \(4, 5, 3\)"),
        (torch.zeros(3, 4, 5), r"got \(3, 4, 5\) of torch.float32"),
        (7, "a path, an image of Pillow, an array or a tensor"),
    ],
)
def test_other_arrays_and_types_are_refused(image, message):
    with pytest.raises(TypeError if isinstance(image, int) else ValueError, match=message):
        read_pixels(image)


def test_one_image_without_a_list_is_refused(detector):
    for image in ("a.jpg", Path("a.jpg"), np.zeros((4, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="give a list of images"):
            detector(image)


def test_a_network_of_nan_is_an_error_not_an_empty_result(detector, images):
    nn.init.constant_(detector.model.head["cls"].pred.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="gives nan as logits"):
        detector([images / "0.png"])


# Scores


def test_the_score_is_asked_for_known_or_a_default(state, tmp_path):
    def scores(score, **changed):
        torch.save(state | changed, tmp_path / "a.pt")
        return load(tmp_path / "a.pt", device="cpu").min_scores(score).tolist()

    assert scores("auto", thresholds=THRESHOLDS) == pytest.approx([0.9, 0.4])
    known = THRESHOLDS | {"score": None}
    assert scores("auto", thresholds=known) == pytest.approx([0.9, DEFAULT_SCORE])
    assert scores("auto") == scores("auto", thresholds=None) == pytest.approx([0.3, 0.3])
    assert scores(0.7, thresholds=THRESHOLDS) == pytest.approx([0.7, 0.7])
    assert scores(None, thresholds=THRESHOLDS) == pytest.approx([0.05, 0.05])
    assert DRAWN_SCORE == DEFAULT_SCORE


def test_detections_reach_the_score_of_their_class(detector, images):
    paths = sorted(images.iterdir())
    everything = detector(paths, score=0.05)
    middle = torch.cat([found.scores for found in everything]).median().item()
    detector.thresholds = THRESHOLDS | {"classes": [middle, None], "score": 1.0}
    for found, whole in zip(detector(paths, score="auto"), everything, strict=True):
        wanted = (whole.scores >= middle) & (whole.labels == 0)
        assert torch.equal(found.scores, whole.scores[wanted])
        assert torch.equal(found.boxes, whole.boxes[wanted])
    assert sum(len(found.scores) for found in detector(paths, score="auto")) > 0


def test_a_lower_score_than_usual_gives_more(bright):
    pixels = np.zeros((96, 96, 3), np.uint8)
    pixels[20:40, 20:60] = 255
    assert [len(bright([pixels], score=s)[0].scores) for s in (None, 0.05, 0.9)] == [1, 1, 0]
    (found,) = bright([pixels], score=0)
    assert len(found.scores) > 1
    assert found.scores.min() < 0.05
    assert len(bright([pixels])[0].scores) == 1  # it was for that call alone


@pytest.mark.parametrize("score", [-0.1, 1, float("nan"), "0.5", True])
def test_other_scores_are_refused(detector, score):
    with pytest.raises(ValueError, match=r"score must be auto or a number in \[0, 1\)"):
        detector([np.zeros((9, 9, 3), np.uint8)], score=score)


@pytest.mark.parametrize(
    "wrong",
    [[], 1, {"classes": [0.5]}, THRESHOLDS | {"score": 2.0}, THRESHOLDS | {"classes": ["a", 0.5]}],
)
def test_thresholds_that_are_none_are_refused(state, tmp_path, wrong):
    torch.save(state | {"thresholds": wrong}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt: the checkpoint's thresholds"):
        load(tmp_path / "a.pt")


# The command


def test_the_command_leaves_the_files_of_its_help_with_what_the_detector_finds(
    checkpoint, images, tmp_path, capsys
):
    output = tmp_path / "out"
    assert run(checkpoint, images, "--output", output, "--score", 0.4, "--batch-size", 3) == 0
    files = {p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file()}
    drawn = {f"drawn/{i}.{'jpg' if i % 2 else 'png.jpg'}" for i in range(8)}
    assert files == {"detections.json", "coco.json", "detections.csv", "predict.json"} | drawn
    record = json.loads((output / "predict.json").read_text())
    assert (record["finished"], record["failed"]) == (True, {})
    assert set(record["files"]) == files - {"predict.json"}
    shown = capsys.readouterr().out.splitlines()
    # A path is never broken, however long.
    assert all(len(line) <= 80 or "/" in line.split()[-1] for line in shown)
    text = " ".join(" ".join(shown).split())
    assert f"images 8 in {images}" in text
    assert "score at least 0.4" in text
    assert f"detections {len(rows(output))} in" in text

    found = json.loads((output / "detections.json").read_text())
    whole = json.loads((output / "coco.json").read_text())
    assert [image["file_name"][0] for image in whole["images"]] == list("01234567")
    expected = load(checkpoint, device="cpu")(sorted(images.iterdir()), score=0.4)
    assert len(found) == len(whole["annotations"]) == sum(len(one.scores) for one in expected)
    start = 0
    for image, one in zip(whole["images"], expected, strict=True):
        assert (image["height"], image["width"]) == one.size
        part = found[start : start + len(one.scores)]
        start += len(part)
        assert {row["image_id"] for row in part} <= {image["id"]}
        assert [row["category_id"] for row in part] == list(one.category_ids)
        boxes = np.array([row["bbox"] for row in part]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        assert np.abs(boxes - one.boxes.numpy()).max(initial=0) < 1e-3
    assert [(r["class"], r["category_id"]) for r in rows(output)] == [
        (NAMES[IDS.index(row["category_id"])], str(row["category_id"])) for row in found
    ]


def test_images_that_cannot_be_read_do_not_stop_the_rest(checkpoint, images, tmp_path, capsys):
    folder = tmp_path / "with space \U0001f431"
    (folder / "sub").mkdir(parents=True)
    (folder / "text.jpg").write_text("no image")
    whole = (images / "1.jpg").read_bytes()
    (folder / "sub/broken.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "sub/good.jpg").write_bytes(whole)
    (folder / "notes.txt").touch()
    output = tmp_path / "out"
    assert run(checkpoint, folder, "--output", output) == 1
    shown = capsys.readouterr()
    assert "left out: 1 .txt" in " ".join(shown.out.split())
    assert "unreadable 2 images" in shown.err
    record = json.loads((output / "predict.json").read_text())
    assert set(record["failed"]) == {"text.jpg", "sub/broken.jpg"}
    assert "it is not an image" in record["failed"]["text.jpg"]
    whole = json.loads((output / "coco.json").read_text())
    assert [(image["file_name"], image["id"]) for image in whole["images"]] == [("sub/good.jpg", 2)]
    assert [p.name for p in (output / "drawn").rglob("*.jpg")] == ["good.jpg"]


def test_predicting_again_replaces_and_does_not_look_at_its_own_files(
    checkpoint, images, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for i in (0, 2):
        (tmp_path / f"{i}.png").write_bytes((images / f"{i}.png").read_bytes())
    assert run(checkpoint, ".") == 0
    assert run(checkpoint, ".", "--no-draw") == 0
    whole = json.loads(Path("predictions/coco.json").read_text())
    assert [image["file_name"] for image in whole["images"]] == ["0.png", "2.png"]
    assert not list(Path("predictions/drawn").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.pt", "IMAGES"], "no checkpoint nowhere.pt"),
        (["CHECKPOINT", "nowhere"], "no image or folder nowhere"),
        (["CHECKPOINT", "IMAGES", "--output", "IMAGES"], "exists and holds no predictions"),
        (["CHECKPOINT", "IMAGES", "--output", "/proc/x"], "cannot write into --output /proc/x"),
        (["CHECKPOINT", "IMAGES", "--output", "FILE/out"], "cannot write into --output"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(
    checkpoint, images, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    names = {"CHECKPOINT": checkpoint, "IMAGES": images, "FILE/out": "file/out"}
    before = sorted(images.iterdir())
    assert run(*[names.get(a, a) for a in arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(images.iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "arguments", [["--score", "1"], ["--score", "x"], ["--batch-size", "0"], ["--device", "tpu"]]
)
def test_options_out_of_range_are_refused(checkpoint, images, arguments, capsys):
    with pytest.raises(SystemExit):
        predict.main([str(checkpoint), str(images), *arguments])
    assert arguments[0] in capsys.readouterr().err


def test_the_scores_of_the_checkpoint_are_named(state, images, tmp_path, capsys):
    torch.save(state | {"thresholds": THRESHOLDS}, tmp_path / "a.pt")
    run(tmp_path / "a.pt", images / "0.png", "--output", tmp_path / "out")
    text = " ".join(capsys.readouterr().out.split())
    assert "score of best F1 on the validation set: cat 0.90, dog 0.40" in text
    scores = json.loads((tmp_path / "out/predict.json").read_text())["scores"]
    assert scores == {"cat": pytest.approx(0.9), "dog": pytest.approx(0.4)}
    torch.save(state, tmp_path / "a.pt")
    run(tmp_path / "a.pt", images / "0.png", "--output", tmp_path / "out")
    text = " ".join(capsys.readouterr().out.split())
    assert "at least 0.3; the checkpoint does not keep its score of best F1" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_files_of_what_was_done(checkpoint, images, tmp_path, number):
    many = tmp_path / "many"
    many.mkdir()
    for i in range(400):
        (many / f"{i}.png").write_bytes((images / "6.png").read_bytes())
    output = tmp_path / "out"
    command = [sys.executable, "-m", "scripts.predict", checkpoint, many, "--output", output]
    process = subprocess.Popen(
        [*map(str, command), "--batch-size", "1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(list(output.glob("drawn/*.jpg"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "stopped" in out
    record = json.loads((output / "predict.json").read_text())
    assert not record["finished"]
    assert 5 <= record["num_done"] < 400
    whole = json.loads((output / "coco.json").read_text())
    assert len(whole["images"]) == record["num_done"]
    for path in output.glob("drawn/*"):
        with Image.open(path) as picture:
            picture.load()


def test_arguments_of_the_library_are_checked_like_options(checkpoint, detector):
    image = np.zeros((40, 60, 3), np.uint8)
    for score in ({"disc": 0.5}, [0.5], True, "high", 1.0, -0.1):
        with pytest.raises(ValueError, match=r"score must be auto or a number in \[0, 1\), got"):
            detector([image], score=score)
    for size in (0, -1, 1.5, "2", True):
        with pytest.raises(ValueError, match="batch_size must be a whole number, at least 1, got"):
            detector([image], batch_size=size)
    with pytest.raises(ValueError, match="precision must be one of auto, fp32, bf16, fp16, got"):
        load(checkpoint, precision="half")
    with pytest.raises(ValueError, match="device must be one of"):
        load(checkpoint, device="gpu")
    assert load(checkpoint, device=torch.device("cpu")).device.type == "cpu"
    image.flags.writeable = False
    assert len(detector([image])) == 1  # without torch's warning, which is an error here


def test_what_is_no_file_is_told_what_to_do(checkpoint, tmp_path, capsys):
    for given, fix in (
        ("https://example.org/a.jpg", "an address is not read: download the image"),
        ("0", "cameras are not read: write their pictures as files"),
    ):
        assert run(checkpoint, given, "--output", tmp_path / "out") == 1
        assert fix in " ".join(capsys.readouterr().err.split())
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypisom\0\0\0\0")
    assert run(checkpoint, tmp_path / "a.mp4", "--output", tmp_path / "out") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "it is a video; write its frames as images" in said
