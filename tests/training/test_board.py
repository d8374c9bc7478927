"""What TensorBoard reads of a run."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from tensorboard.util import tensor_util

from retinanet.training.logs import Board, few, hparams_of

SETTINGS = {
    "loss": {"gamma": 2.0, "alpha": None},
    "data": {"root": "/x", "min_size": 800},
    "model": {"relu_before_p7": True},
    "anchors": {"ratios": [0.5, 1.0]},
    "output_dir": "runs/x",
    "seed": 0,
}


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path, next_step=1)


def read(folder):
    board = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    board.Reload()
    return board


def hparams_in(events):
    """The settings that TensorBoard's table of runs shows."""
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    return {key: getattr(value, value.WhichOneof("kind")) for key, value in start.hparams.items()}


def test_settings_are_a_row_of_the_run_itself(tmp_path, board):
    board.settings(SETTINGS)
    board.close()
    events = read(tmp_path)
    assert hparams_in(events) == hparams_of(SETTINGS)
    assert hparams_in(events) == {
        "loss.gamma": 2.0,
        "loss.alpha": "null",
        "data.min_size": 800,
        "model.relu_before_p7": "true",
        "anchors.ratios": "[0.5,1]",
        "seed": 0,
    }
    with pytest.raises(KeyError):  # the run is not over
        events.SummaryMetadata("_hparams_/session_end_info")
    assert [path.name[:6] for path in tmp_path.iterdir()] == ["events"]  # no run beside it


def test_a_continued_run_keeps_its_settings_once_and_purges_the_rest(tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    for first, next_step in ((1, 1), (3, 3)):
        board = Board(tmp_path, next_step=next_step)
        board.settings(SETTINGS)
        for step in range(first, first + 4):
            board.image(step, "anchors", picture)
            board.curves(step, {"IoU 0.50": np.linspace(1, 0, 11)}, 7)
            board.best(step, 0.5)
        board.finished()
        board.close()
    # As the server reads it: everything is a tensor.
    found = plugin_event_accumulator.EventAccumulator(
        str(tmp_path), tensor_size_guidance={"images": 0, "pr_curves": 0}
    )
    found.Reload()
    for tag in ("anchors", "pr/IoU 0.50", "best/AP"):
        assert [event.step for event in found.Tensors(tag)] == [1, 2, 3, 4, 5, 6], tag
    assert hparams_in(found) == hparams_of(SETTINGS)
    assert found.SummaryMetadata("_hparams_/session_end_info")


def test_a_curve_has_its_precision_at_its_recall(tmp_path, board):
    precision = np.array([1.0, 0.8, 0.5, 0.0])
    board.curves(2, {"IoU 0.50": precision}, 30)
    board.close()
    (event,) = read(tmp_path).Tensors("pr/IoU 0.50")
    tp, fp, _, fn, found, recall = tensor_util.make_ndarray(event.tensor_proto)
    np.testing.assert_allclose(recall, [1, 2 / 3, 1 / 3, 0], atol=1e-6)
    np.testing.assert_allclose(found, precision[::-1], atol=1e-6)
    np.testing.assert_allclose(tp + fn, 30)
    np.testing.assert_allclose(tp[1] / (tp[1] + fp[1]), 0.5, rtol=1e-6)


def test_p_t_near_one_is_told_apart(tmp_path, board):
    board.histograms(1, {"background": torch.tensor([0.945, 0.965, 0.985]), "none": torch.ones(0)})
    board.close()
    found = read(tmp_path)
    assert found.Tags()["histograms"] == ["p_t/background"]
    (event,) = found.Histograms("p_t/background")
    assert [count for count in event.histogram_value.bucket if count] == [1, 1, 1]


def test_pictures_are_jpeg(tmp_path, board):
    board.image(1, "anchors", np.full((40, 60, 3), 200, np.uint8))
    board.close()
    (event,) = read(tmp_path).Images("anchors")
    with Image.open(io.BytesIO(event.encoded_image_string)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (60, 40))


def test_few_pictures_are_kept_of_many_evaluations():
    assert all(map(few, range(1, 16)))
    assert [n for n in range(16, 40) if few(n)] == [16, 18, 20, 22, 24, 26, 28, 30, 32, 36]
    assert sum(map(few, range(1, 101))) == 36
    assert sum(map(few, range(1, 1001))) == 63


@pytest.mark.slow
def test_a_hundred_epochs_stay_below_fifty_megabytes(tmp_path, board):
    # COCO: 7330 steps of 16 images an epoch, a row every 20, an evaluation every epoch, pictures
    # of noise: no image is larger.
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    sheet = np.asarray(Image.fromarray(noise).resize((990, 1100), Image.Resampling.BICUBIC))
    board.settings(SETTINGS)
    rows_an_epoch, epochs, row = 7330 // 20, 100, dict.fromkeys("abcdefghij", 0.5)
    for epoch in range(1, epochs + 1):
        if epoch <= 5:  # the others are as long
            for number in range(rows_an_epoch):
                board.row({**row, "step": epoch * 7330 + number})
        board.curves(epoch, dict.fromkeys("abc", np.linspace(1, 0, 101)), 36000)
        samples = torch.rand(20000)
        board.histograms(epoch, {"positives": samples, "background": samples})
        if few(epoch):
            board.image(epoch, "predictions", sheet)
            board.image(epoch, "anchors", sheet)
    board.close()
    (file,) = tmp_path.iterdir()
    scalars = 5 * rows_an_epoch * len(row) * 60  # bytes of one, at most, with its frame
    assert file.stat().st_size + 19 * scalars < 50e6
