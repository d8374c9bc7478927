"""Curves and sheets: what is drawn, from the figure's own objects, and files that are whole."""

import json

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from retinanet.evaluation.coco import evaluate
from retinanet.tools.report import plots
from retinanet.tools.report.plots import plot_curves, plot_pr
from retinanet.tools.report.style import plain_text

BOX = (100.0, 100.0, 50.0, 40.0)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that were saved."""
    figures = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda f, p: (figures.append(f), save(f, p)))
    return figures


def write_rows(path, rows, tail=""):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


def training_rows(steps, factor=1.0):
    return [
        {"step": s, "epoch": s / 10, "loss/class": factor / s, "loss/box": 0.5, "lr": 0.01}
        for s in steps
    ]


def lines_of(axes) -> dict[str, tuple[list, list]]:
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axes.lines}


def test_curves_show_losses_ap_and_learning_rate(tmp_path, drawn):
    scores = {"AP": 0.25, "AP50": 0.5, "AP75": None}
    rows = [*training_rows(range(1, 11)), {"step": 10, **scores}]
    plot_curves(write_rows(tmp_path / "metrics.jsonl", rows), tmp_path / "plots/curves.png")
    losses, validation, rate = drawn[0].axes
    assert lines_of(losses)["box 0.500"] == (list(range(1, 11)), pytest.approx([0.5] * 10))
    assert lines_of(validation)["AP 0.250"] == ([10], [0.25])
    assert lines_of(validation)["AP75 n/a"] == ([], [])
    assert list(rate.lines[0].get_ydata()) == [0.01] * 10
    with Image.open(tmp_path / "plots/curves.png") as picture:
        assert picture.size == (1125, 1050)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["curves.png"]


def test_the_last_row_of_a_step_counts_after_a_resume(tmp_path, drawn):
    rows = [{"step": s, "AP": ap} for s, ap in [(1, 0.1), (2, 0.9), (2, 0.3)]]
    plot_curves(write_rows(tmp_path / "metrics.jsonl", rows), tmp_path / "curves.png")
    assert lines_of(drawn[0].axes[1])["AP 0.300"] == ([1, 2], [0.1, 0.3])


def test_a_line_that_was_cut_off_at_the_end_is_left_out(tmp_path, drawn):
    path = write_rows(tmp_path / "metrics.jsonl", [{"step": 1, "AP": 0.5}], tail='{"step": 2, "A')
    plot_curves(path, tmp_path / "curves.png")
    assert lines_of(drawn[0].axes[1])["AP 0.500"] == ([1], [0.5])


def test_a_broken_line_in_the_middle_costs_only_itself(tmp_path, drawn):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "AP": 0.1}\n{oops}\n{"step": 3, "AP": 0.3}\n')
    plot_curves(path, tmp_path / "curves.png")
    assert lines_of(drawn[0].axes[1])["AP 0.300"] == ([1, 3], [0.1, 0.3])


@pytest.mark.parametrize("rows", [[], training_rows([1])], ids=["no rows", "one row"])
def test_a_run_that_has_hardly_begun_can_be_drawn(tmp_path, rows):
    plot_curves(write_rows(tmp_path / "metrics.jsonl", rows), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0


@pytest.mark.parametrize(("factor", "scale"), [(1000.0, "log"), (1.0, "linear")])
def test_a_loss_that_falls_far_gets_a_logarithmic_axis(tmp_path, drawn, factor, scale):
    rows = training_rows(range(1, 200), factor) if scale == "log" else training_rows([1, 2])
    plot_curves(write_rows(tmp_path / "metrics.jsonl", rows), tmp_path / "curves.png")
    assert drawn[0].axes[0].get_yscale() == scale


def test_pr_curves_are_means_over_the_classes_with_objects(
    make_data, make_detections, tmp_path, drawn
):
    # The cat is found, the dog is not, the unicorn does not exist.
    data = make_data(2, [(1, 1, BOX), (2, 2, BOX)], names=("cat", "dog", "unicorn"))
    found = make_detections(data, [(1, 1, BOX, 0.9)])
    plot_pr(evaluate(data, found, data.image_ids), tmp_path / "pr.png")
    mean, each = drawn[0].axes
    assert lines_of(mean)["IoU 0.50  AP 0.500"][1] == pytest.approx([0.5] * 101)
    assert list(lines_of(each)) == ["cat  1.000", "dog  0.000"]


def test_many_classes_are_drawn_without_names(make_data, make_detections, tmp_path, drawn):
    names = [f"class{i}" for i in range(1, 31)]
    data = make_data(1, [(1, i, BOX) for i in range(1, 31)], names=names)
    plot_pr(evaluate(data, make_detections(data, []), [1]), tmp_path / "pr.png")
    each = drawn[0].axes[1]
    assert len(each.lines) == 31
    assert [text.get_text() for text in each.get_legend().get_texts()] == ["mean"]


def test_pr_curves_without_objects_say_so(make_data, make_detections, tmp_path, drawn):
    data = make_data(1, [])
    plot_pr(evaluate(data, make_detections(data, []), [1]), tmp_path / "pr.png")
    assert drawn[0].axes[0].texts[0].get_text() == "no objects to find"


@pytest.mark.parametrize(
    "name", ["_private", "$x$", r"\frac", "\u732b", "\u0643\u0644\u0628", "a\nb", "x" * 99]
)
def test_a_category_may_have_any_name(make_data, make_detections, tmp_path, drawn, name):
    data = make_data(1, [(1, 1, BOX)], names=(name,))
    plot_pr(evaluate(data, make_detections(data, [(1, 1, BOX, 0.9)]), [1]), tmp_path / "pr.png")
    [entry] = drawn[0].axes[1].get_legend().get_texts()
    assert plain_text(name, 20).strip() in entry.get_text()


def test_the_callers_matplotlib_is_left_alone(tmp_path):
    before = dict(matplotlib.rcParams)
    plot_curves(write_rows(tmp_path / "metrics.jsonl", []), tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before


def test_the_running_mean_of_a_constant_is_the_constant():
    values = np.full(500, 3.0)
    np.testing.assert_allclose(plots.running_mean(values), values)
