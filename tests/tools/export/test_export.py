"""The written files: run on real photos by others, and refused when they are wrong."""

import hashlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from random_models import IDS, NAMES, THRESHOLDS, make_checkpoint

from retinanet import load
from retinanet.postprocess import Postprocess
from retinanet.tools.export import write
from retinanet.tools.export.compare import (
    Difference,
    Outcome,
    canvas_effect,
    compare,
    open_file,
)
from retinanet.tools.export.graph import Graph
from retinanet.tools.export.job import ANY, describe_canvas, export, summary
from retinanet.tools.export.sample_images import MAX_OF_FOLDER, batches, choose
from retinanet.tools.export.write import Shape
from retinanet.training.checkpoint import save_checkpoint
from retinanet.weights.read import read_trained
from scripts.export import main, read_arguments
from scripts.torchvision_parity import spread_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def assert_the_same(outcome, images):
    assert len(outcome.differences) == images
    for difference in outcome.differences:
        assert difference.is_same, difference
    assert sum(difference.detections for difference in outcome.differences) > 20 * images
    # Far inside the limits.
    assert max(d.box for d in outcome.differences) < 0.05
    assert max(d.score for d in outcome.differences) < 1e-4


def test_real_images_alone_and_in_a_batch_give_the_same(exported, detector, eight_images):
    run = open_file(exported[0], "onnx")
    inputs = batches(eight_images, detector, ANY, 32)
    assert len({batch.images.shape for batch in inputs}) > 4
    assert [len(batch.images) for batch in inputs] == [1] * 8 + [3]
    assert_the_same(compare(detector, run, inputs), 11)


def test_the_smallest_image_and_one_without_objects_work(exported, detector):
    session = onnxruntime.InferenceSession(exported[0])
    for images in (torch.zeros(1, 3, 32, 32), torch.full((2, 3, 32, 64), 255.0)):
        B, _, H, W = images.shape
        sizes = torch.tensor([[H, W]] * B).numpy()
        fed = {"images": images.byte().numpy(), "sizes": sizes, "file_sizes": sizes}
        boxes, scores, labels, count = session.run(None, fed)
        assert boxes.shape == (B, 100, 4)
        for i in range(B):
            assert (scores[i] > 0).sum() == (labels[i] >= 0).sum() == count[i]


def test_what_changes_has_a_name_and_what_comes_out_a_place(exported):
    session = onnxruntime.InferenceSession(exported[0])
    inputs = {i.name: (i.shape, i.type) for i in session.get_inputs()}
    assert inputs == {
        "images": (["batch", 3, "height", "width"], "tensor(uint8)"),
        "sizes": (["batch", 2], "tensor(int64)"),
        "file_sizes": (["batch", 2], "tensor(int64)"),
    }
    outputs = {o.name: o.shape for o in session.get_outputs()}
    assert outputs == {
        "boxes": ["batch", 100, 4],
        "scores": ["batch", 100],
        "labels": ["batch", 100],
        "count": ["batch"],
    }


def test_runtimes_before_2024_take_the_file(exported):
    # Of ONNX 1.13: onnxruntime reads it from 1.14 on, and 1.16 refuses what torch writes, 10.
    assert onnx.load(exported[0]).ir_version == 8


def test_the_file_says_how_to_use_it(exported, checkpoint):
    session = onnxruntime.InferenceSession(exported[0])
    properties = session.get_modelmeta().custom_metadata_map
    about = {key: json.loads(value) for key, value in properties.items()}
    assert (about["names"], about["category_ids"]) == (list(NAMES), list(IDS))
    assert about["thresholds"] == THRESHOLDS
    assert about["source"] == {
        "file": "best.pt",
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "origin": "retinanet",
        "step": 7,
    }
    how = about["preprocessing"]
    assert (how["min_size"], how["max_size"], how["resize"]) == (96, 160, "antialias")
    assert (how["multiple"], how["dtype"], how["size"]) == (32, "uint8", None)
    assert about["postprocess"]["score_threshold"] == 0.05


def test_nothing_of_the_machine_is_in_the_file(exported):
    content = exported[0].read_bytes()
    for trace in (b"site-packages", b"graph.py", b"stack_trace", str(write.__file__).encode()):
        assert trace not in content


def test_the_screen_says_that_no_images_were_there(exported):
    text = "\n".join(exported[1])
    assert "4 images made up of colored noise" in text
    assert "--photos" in text
    assert re.search(r"speed +torch .* s, onnxruntime .* x", text)
    read, *lines = text.splitlines()  # the first has a path
    assert read.endswith("best.pt: 3 classes")
    assert max(map(len, lines)) <= 80


def spoilt(path, target):
    """A copy in which one convolution of the box head is two hundredths larger."""
    model = onnx.load(path)
    (weight,) = (w for w in model.graph.initializer if w.name.endswith("head.box.pred.weight"))
    values = onnx.numpy_helper.to_array(weight) * 1.02
    weight.CopyFrom(onnx.numpy_helper.from_array(values.astype("float32"), weight.name))
    onnx.save(model, target)
    return target


def command(checkpoint, output, *options):
    return [str(checkpoint), "--output", str(output), *map(str, options)]


def test_only_a_file_that_detects_the_same_gets_its_name(
    exported, checkpoint, tmp_path, monkeypatch, capsys
):
    def stop(graph, path, *_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    for write_onnx, status, message in (
        (lambda graph, path, *_: spoilt(exported[0], path), 1, "does not detect what"),
        (lambda graph, path, *_: path.write_bytes(b"no"), 1, "onnxruntime cannot read the file"),
        (stop, 130, ""),
    ):
        monkeypatch.setattr(write, "write_onnx", write_onnx)
        assert main(command(checkpoint, tmp_path / "m.onnx")) == status
        assert list(tmp_path.iterdir()) == []
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "output", "options", "message"),
    [
        ("best.pt", "m.onnx", ["--size", "100x128"], "of 32, got 100x128; choose 128x128"),
        ("best.pt", "m.onnx", ["--batch", "0"], "--batch must be at least 1, got 0"),
        ("best.pt", "m.onnx", ["--opset", "11"], "--opset must lie in [18, 23], got 11"),
        ("best.pt", "m.onnx", ["--photos", "nowhere"], "no image or folder nowhere"),
        ("best.pt", "mine.onnx", [], "already exists"),
        ("best.pt", "no/m.onnx", [], "there is no folder"),
        (
            "best.pt",
            "m.engine",
            [],
            "its name must end in .onnx. Engines of TensorRT",
        ),
        ("best.pt", "m.onnx", ["--format", "pt2"], "its name must end in .pt2"),
        ("no.pt", "m.onnx", [], "no checkpoint"),
        ("", "m.onnx", [], "no checkpoint"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(
    checkpoint, tmp_path, capsys, source, output, options, message
):
    (tmp_path / "mine.onnx").write_text("mine")
    assert main(command(checkpoint.parent / source, tmp_path / output, *options)) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_missing_libraries_are_named(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(command(checkpoint, tmp_path / "m.onnx")) == 1
    error = capsys.readouterr().err
    assert "ONNX files need onnxruntime: pip install onnx onnxruntime onnxscript" in error


@pytest.mark.parametrize(
    ("options", "name"),
    [([], "best.onnx"), (["--raw-heads"], "best_heads.onnx"), (["--format", "pt2"], "best.pt2")],
)
def test_files_go_beside_their_checkpoint(options, name):
    assert read_arguments(["runs/a/best.pt", *options]).output == Path("runs/a") / name


@pytest.mark.parametrize("options", [["--size", "800"], ["--batch", "many"], ["--format", "trt"]])
def test_what_is_no_option_shows_how_to_call_it(options):
    with pytest.raises(SystemExit, match="2"):
        read_arguments(["best.pt", *options])


def test_a_comparison_of_nothing_says_so():
    nothing = Difference("image", (32, 32), 1, 0, 0.0, 0.0, 0, 0)
    lines = summary(Outcome([nothing], [(2.0, 1.0)]), "onnx")
    assert "2.00 x" in lines[1]
    assert "nothing was detected in any image" in lines[2]
    assert len(summary(Outcome([nothing._replace(detections=1)], [(2.0, 1.0)]), "onnx")) == 2


def test_folders_give_images_of_all_their_length(detector, made_up, tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02}.PNG").write_bytes(made_up[0].read_bytes())
    (tmp_path / "notes.txt").write_text("no photo")
    chosen, said = choose([tmp_path, made_up[1]], detector, tmp_path)
    names = [path.name for path in chosen]
    assert len(names) == MAX_OF_FOLDER + 1
    assert (names[0], names[-2:]) == ("00.PNG", ["19.PNG", made_up[1].name])
    assert said.startswith("9 images of")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in the folder"):
        choose([tmp_path / "empty"], detector, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "raw_heads", "shape"),
    [
        ("onnx", False, Shape(batch=1, size=(128, 160))),
        ("onnx", False, Shape(batch=3, size=(128, 160))),
        ("onnx", True, ANY),
        ("pt2", False, ANY),
        ("pt2", True, Shape(batch=3, size=(128, 160))),
    ],
)
def test_all_kinds_of_files_give_the_same(
    checkpoint, eight_images, tmp_path, kind, raw_heads, shape
):
    path = tmp_path / f"m.{kind}"
    outcome = export(checkpoint, path, kind, raw_heads=raw_heads, shape=shape, photos=eight_images)
    assert_the_same(outcome, {None: 11, 1: 8, 3: 9}[shape.batch])
    assert list(tmp_path.iterdir()) == [path]
    if kind == "onnx" and raw_heads:
        outputs = {o.name: o.shape for o in onnxruntime.InferenceSession(path).get_outputs()}
        assert outputs["logits"] == ["batch", "anchors", len(NAMES)]
        assert outputs["anchors"] == ["anchors", 4]
    if kind == "pt2":
        extra = {write.METADATA_FILE: ""}
        torch.export.load(path, extra_files=extra)
        assert json.loads(extra[write.METADATA_FILE])["names"] == list(NAMES)


@pytest.mark.slow
def test_a_program_runs_where_nothing_is_detected_and_where_one_is(detector, tmp_path):
    images = torch.zeros(2, 3, 160, 192, dtype=torch.uint8)
    images[1] = torch.randint(0, 256, (3, 160, 192))
    sizes = torch.tensor([[160, 192]] * 2)
    best = Graph(detector.model, Postprocess(detections=1, score_threshold=0.0))
    scores = best(images, sizes, sizes)[1].flatten()
    images = images[scores.argsort()]
    between = scores.mean().item()
    graph = Graph(detector.model, Postprocess(score_threshold=between, detections=1)).eval()
    write.write_program(graph, tmp_path / "m.pt2", ANY, torch.uint8, {})
    run = open_file(tmp_path / "m.pt2", "pt2")
    for part in (slice(0, 1), slice(1, 2), slice(0, 2)):
        counts = run(images[part], sizes[part], sizes[part])[3]
        assert counts.tolist() == [0, 1][part]
        assert torch.equal(counts, graph(images[part], sizes[part], sizes[part])[3])


@pytest.mark.slow
def test_the_same_checkpoint_gives_the_same_bytes(exported, checkpoint, tmp_path):
    export(checkpoint, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported[0].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed",
    [
        ["model=resnet18", "model.norm=batch"],
        ["model=mobilenet_v2", "model.norm=batch"],
        ["model=resnet50", "model.norm=group", "model.head_norm=group"],
        ["model=tiny", "model.norm=group", "postprocess.clip=after_nms", "anchors.offset=0.5"],
    ],
)
def test_all_backbones_and_norms_give_the_same(eight_images, tmp_path, typed):
    typed = [*typed, "model.weights=null", "model.frozen_stages=0"]
    typed += ["data.min_size=192", "data.max_size=320"]
    path = make_checkpoint(tmp_path / "m.pt", *typed)
    assert_the_same(export(path, tmp_path / "m.onnx", photos=eight_images), 11)


@pytest.mark.slow
def test_torchvisions_checkpoint_with_its_conventions_gives_the_same(eight_images, tmp_path):
    torch.save(
        spread_model("v1", seed=0, images=eight_images[:2]).state_dict(), tmp_path / "tv.pth"
    )
    state = read_trained(tmp_path / "tv.pth")
    state["settings"]["data"].update(min_size=224, max_size=373)  # the same in less time
    save_checkpoint(tmp_path / "tv.pt", state)
    detector = load(tmp_path / "tv.pt")
    assert detector.settings.anchors.rounding == "torchvision"
    outcome = export(tmp_path / "tv.pt", tmp_path / "tv.onnx", photos=eight_images)
    assert_the_same(outcome, 11)
    (images, *_) = onnxruntime.InferenceSession(tmp_path / "tv.onnx").get_inputs()
    assert images.type == "tensor(float)"  # its resizing does not round


def test_a_fixed_size_is_compared_with_load_itself(detector, eight_images, capsys):
    """Padding changes what group norm sees, on both sides of the file's own comparison."""
    images = batches(eight_images, detector, Shape(size=(256, 320)), 32)
    mean, largest, _ = canvas_effect(detector, images)
    assert 0 < mean < largest < 1
    tight = batches(eight_images, detector, Shape(), 32)[: len(eight_images)]
    assert canvas_effect(detector, tight) == (0, 0, 0)
    line = describe_canvas(detector, images, (256, 320))
    assert f"scores differ from those of load(checkpoint) by {mean:.2g} in the mean" in line
