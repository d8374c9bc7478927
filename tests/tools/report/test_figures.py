"""Figures: what is drawn, from the figure's own objects, and what they are written as."""

import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest
from PIL import Image

from retinanet.evaluation.average_precision import evaluate
from retinanet.tools.report.figures import pr_curves, training_curves
from retinanet.tools.report.style import BLACK, as_svg, class_color, plain_text, save_png

BOX = (100.0, 100.0, 50.0, 40.0)


def training_rows(steps, factor=1.0):
    return [
        {"step": s, "epoch": s / 10, "loss/class": factor / s, "loss/box": 0.5, "lr": 0.01}
        for s in steps
    ]


def lines_of(axes) -> dict[str, tuple[list, list]]:
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axes.lines}


def test_curves_show_losses_ap_and_learning_rate():
    scores = {"AP": 0.25, "AP50": 0.5, "AP75": None}
    rows = [*training_rows(range(1, 11)), {"step": 10, **scores}]
    losses, validation, rate = training_curves(rows).axes
    assert lines_of(losses)["box 0.500"] == (list(range(1, 11)), pytest.approx([0.5] * 10))
    assert lines_of(validation)["AP 0.250"] == ([10], [0.25])
    assert lines_of(validation)["AP75 n/a"] == ([], [])
    assert list(rate.lines[0].get_ydata()) == [0.01] * 10


def test_the_step_of_the_checkpoint_is_marked():
    figure = training_curves([{"step": s, "AP": s / 1e4} for s in (1000, 2000)], step=1000)
    assert lines_of(figure.axes[1])["this checkpoint: step 1,000"][0] == [1000, 1000]


def test_the_last_row_of_a_step_counts_after_a_resume():
    rows = [{"step": s, "AP": ap} for s, ap in [(1, 0.1), (2, 0.9), (2, 0.3)]]
    assert lines_of(training_curves(rows).axes[1])["AP 0.300"] == ([1, 2], [0.1, 0.3])


@pytest.mark.parametrize("rows", [[], training_rows([1])], ids=["no rows", "one row"])
def test_a_run_that_has_hardly_begun_can_be_drawn(tmp_path, rows):
    save_png(training_curves(rows), tmp_path / "plots/curves.png")
    with Image.open(tmp_path / "plots/curves.png") as picture:
        assert picture.size == (1125, 1050)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["curves.png"]


@pytest.mark.parametrize(("factor", "scale"), [(1000.0, "log"), (1.0, "linear")])
def test_a_loss_that_falls_far_gets_a_logarithmic_axis(factor, scale):
    rows = training_rows(range(1, 200), factor) if scale == "log" else training_rows([1, 2])
    assert training_curves(rows).axes[0].get_yscale() == scale


def test_one_spike_or_nan_does_not_flatten_the_losses():
    rows = training_rows(range(1, 501))
    rows[250]["loss/box"] = 30.0
    rows[300]["loss/class"] = float("nan")
    losses = training_curves(rows).axes[0]
    low, high = losses.get_ylim()
    assert 0 < low < 0.5 < high < 5
    del rows[250]["loss/box"]
    box = training_curves(rows).axes[0].lines[3]
    assert box.get_ydata() == pytest.approx([0.5] * 499)  # the mean of a constant


def test_pr_curves_are_means_over_the_classes_with_objects(make_data, make_detections):
    # The cat is detected, the dog is not, the unicorn does not exist.
    data = make_data(2, [(1, 1, BOX), (2, 2, BOX)], names=("cat", "dog", "unicorn"))
    found = make_detections(data, [(1, 1, BOX, 0.9)])
    mean, each = pr_curves(evaluate(data, found, data.image_ids)).axes
    assert lines_of(mean)["IoU 0.50  AP 0.500"][1] == pytest.approx([0.5] * 101)
    assert list(lines_of(each)) == ["cat  1.000", "dog  0.000"]
    assert each.lines[1].get_color() == class_color(1)


def test_many_classes_are_drawn_without_names(make_data, make_detections):
    names = [f"class{i}" for i in range(1, 31)]
    data = make_data(1, [(1, i, BOX) for i in range(1, 31)], names=names)
    each = pr_curves(evaluate(data, make_detections(data, []), [1])).axes[1]
    assert len(each.lines) == 31
    assert [text.get_text() for text in each.get_legend().get_texts()] == ["mean"]


def test_pr_curves_without_objects_say_so(make_data, make_detections):
    data = make_data(1, [])
    figure = pr_curves(evaluate(data, make_detections(data, []), [1]))
    assert figure.axes[0].texts[0].get_text() == "no objects to detect"


@pytest.mark.parametrize(
    "name",
    ["_private", "$x$", r"\frac", "\u732b", "\u0643\u0644\u0628", "a\nb", "x" * 99, '<b> id="'],
)
def test_a_category_may_have_any_name(make_data, make_detections, tmp_path, name):
    data = make_data(1, [(1, 1, BOX)], names=(name,))
    figure = pr_curves(evaluate(data, make_detections(data, [(1, 1, BOX, 0.9)]), [1]))
    [entry] = figure.axes[1].get_legend().get_texts()
    assert plain_text(name, 20).strip() in entry.get_text()
    save_png(figure, tmp_path / "pr.png")
    ET.fromstring(as_svg(figure))


def test_svgs_of_one_page_share_no_id_and_follow_its_colors():
    few, many = (training_curves(training_rows(range(1, n))) for n in (5, 50))
    few, many = as_svg(few), as_svg(many)
    ids = [re.findall(r' id="([^"]+)"', svg) for svg in (few, many)]
    assert not set(ids[0]) & set(ids[1])
    assert set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", few)) <= set(ids[0])
    assert BLACK not in few and "currentColor" in few
    assert "<style" not in few and "font-family" not in few
    assert few.startswith("<svg ") and few == as_svg(training_curves(training_rows(range(1, 5))))


def test_the_callers_matplotlib_is_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    save_png(training_curves([]), tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before


def test_classes_have_different_colors():
    assert len({class_color(label) for label in range(200)}) == 200
