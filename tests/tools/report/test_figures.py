"""Figures: what is drawn, from the figure's own objects, and what they are written as."""

import re

import matplotlib
import pytest
from PIL import Image

from retinanet.evaluation.average_precision import evaluate
from retinanet.tools.report.figures import pr_curves, training_curves
from retinanet.tools.report.page import inline_svg
from retinanet.tools.report.style import BLACK, class_color, plain_text, save_png

BOX = (100.0, 100.0, 50.0, 40.0)


def training_rows(steps, factor=1.0):
    return [{"step": s, "loss/class": factor / s, "loss/box": 0.5, "lr": 0.01} for s in steps]


def lines_of(axes) -> dict[str, tuple[list, list]]:
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axes.lines}


def test_curves_show_losses_ap_learning_rate_and_the_step_of_the_checkpoint():
    # Of rows with the same step, as a resumed run writes them, the last one counts.
    rows = [*training_rows(range(1, 11)), {"step": 5, "AP": 0.1}, {"step": 10, "AP": 0.9}]
    rows += [{"step": 10, "AP": 0.25, "AP50": 0.5, "AP75": None}]
    losses, validation, rate = training_curves(rows, step=5).axes
    assert lines_of(losses)["box 0.500"] == (list(range(1, 11)), pytest.approx([0.5] * 10))
    assert lines_of(validation)["AP 0.250"] == ([5, 10], [0.1, 0.25])
    assert lines_of(validation)["AP75 n/a"] == ([], [])
    assert lines_of(validation)["this checkpoint: step 5"][0] == [5, 5]
    assert list(rate.lines[0].get_ydata()) == [0.01] * 10


@pytest.mark.parametrize("rows", [[], training_rows([1])], ids=["no rows", "one row"])
def test_a_run_that_has_hardly_begun_can_be_drawn(tmp_path, rows):
    before = dict(matplotlib.rcParams)
    save_png(training_curves(rows), tmp_path / "plots/curves.png")
    with Image.open(tmp_path / "plots/curves.png") as picture:
        assert picture.size == (1125, 1050)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["curves.png"]
    assert dict(matplotlib.rcParams) == before, "the caller's matplotlib was changed"


@pytest.mark.parametrize(("factor", "num_rows", "scale"), [(1000, 200, "log"), (1, 2, "linear")])
def test_a_loss_that_falls_far_gets_a_logarithmic_axis(factor, num_rows, scale):
    rows = training_rows(range(1, 1 + num_rows), factor)
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


def test_pr_curves_name_few_of_many_classes_and_say_where_there_are_none(
    make_data, make_detections
):
    names = [f"class{i}" for i in range(1, 31)]
    data = make_data(1, [(1, i, BOX) for i in range(1, 31)], names=names)
    each = pr_curves(evaluate(data, make_detections(data, []), [1])).axes[1]
    assert len(each.lines) == 31
    assert [text.get_text() for text in each.get_legend().get_texts()] == ["mean"]
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
    inline_svg(figure)


def test_svgs_of_one_page_share_no_id_and_follow_its_colors():
    few, many = (inline_svg(training_curves(training_rows(range(1, n)))) for n in (5, 50))
    ids = [re.findall(r' id="([^"]+)"', svg) for svg in (few, many)]
    assert not set(ids[0]) & set(ids[1])
    assert set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", few)) <= set(ids[0])
    assert BLACK not in few and "currentColor" in few
    assert "<style" not in few and "font-family" not in few
    assert few.startswith("<svg ")


def test_classes_have_different_colors():
    assert len({class_color(label) for label in range(200)}) == 200
