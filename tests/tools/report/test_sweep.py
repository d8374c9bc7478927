"""Tables and plots of sweeps, from run directories that are only written, not trained."""

import csv
import dataclasses
import json
import shutil
import statistics

import pytest
import yaml

from retinanet.cli.main import composer
from retinanet.terminal import count_columns
from retinanet.tools.report.style import save_png
from retinanet.tools.report.sweep import (
    SweepRun,
    has_finished,
    is_done,
    note_of,
    show_summary,
    summarize,
    sweep_figure,
    write_sweep,
)


@pytest.fixture
def make_run(tmp_path):
    """Writes what a run leaves that has come so far: ``make_run("a", 0.5)``."""

    def make(name, value=None, *, finished=True, begun=True):
        root = tmp_path / name
        if begun:
            (root / "eval").mkdir(parents=True)
            (root / "config.yaml").write_text("{}")
            end = "1 finished   9 steps; best AP\n" if finished else ""
            (root / "train.log").write_text(f"1 run        {name}\n{end}")
        if value is not None:
            (root / "eval/metrics.json").write_text(json.dumps({"AP": value}))
        return root

    return make


def read(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_says_what_became_of_every_run(make_run, tmp_path):
    folder = tmp_path / "sweep"
    runs = [
        SweepRun({"lr": 0.1}, make_run("a", 0.5)),
        SweepRun({"lr": 0.01}, make_run("b", 0.4, finished=False)),
        SweepRun({"lr": 1.0}, make_run("c", begun=False)),
        SweepRun({"lr": 0.5}, make_run("d", finished=False)),
    ]
    note_of(folder, runs[3].folder).parent.mkdir(parents=True)
    note_of(folder, runs[3].folder).write_text("MemoryError: too small\nTraceback\n")
    rows = write_sweep(folder, runs)
    assert [(row["lr"], row["status"]) for row in rows] == [
        ("0.01", "unfinished"),
        ("0.1", "finished"),
        ("0.5", "failed"),
        ("1", "not started"),
    ]
    assert rows[2]["error"] == "MemoryError: too small"
    assert rows[2]["log"] == str(runs[3].folder / "train.log")
    assert read(folder / "table.csv") == rows
    cells = [(row["n"], row["AP"]) for row in read(folder / "summary.csv")]
    assert cells == [("0", ""), ("1", "0.500000"), ("0", ""), ("0", "")]  # finished ones only
    assert (folder / "plot.png").exists()


def test_runs_of_an_earlier_sweep_stay_while_their_folders_do(make_run, tmp_path):
    first, second = make_run("a", 0.5), make_run("b", 0.4)
    write_sweep(tmp_path / "sweep", [SweepRun({"lr": 0.1}, first)])

    def values():
        return [
            row["lr"] for row in write_sweep(tmp_path / "sweep", [SweepRun({"lr": 0.2}, second)])
        ]

    assert values() == ["0.1", "0.2"]
    shutil.rmtree(first)
    assert values() == ["0.2"]


def test_a_run_has_finished_when_its_record_says_so_or_in_old_runs_its_log(make_run):
    run = make_run("a", 0.5)
    assert has_finished(run)
    with (run / "train.log").open("a") as log:
        log.write("2 run        a\n2 extended   schedule.epochs\n")
    assert not has_finished(run)
    for state in ("running", "finished", "stopped"):
        (run / "run.json").write_text(json.dumps({"state": state, "starts": [], "stops": []}))
        assert has_finished(run) == (state == "finished")


def test_a_longer_run_is_not_done_and_another_device_is_no_other_run(make_run):
    run = make_run("a", 0.5)
    with composer("train") as reader:
        settings = dataclasses.asdict(reader.command(["precision=bf16"]).settings)
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert is_done(run, settings)
    assert is_done(run, {**settings, "device": "cuda", "precision": "auto"})
    # The images of another folder may be others: the run is started, and looks.
    assert not is_done(run, {**settings, "data": {**settings["data"], "root": "/elsewhere"}})
    assert not is_done(run, {**settings, "precision": "fp32"})
    assert not is_done(run, {**settings, "schedule": {**settings["schedule"], "epochs": 99}})
    (run / "train.log").write_text("1 run        a\n")
    assert not is_done(run, settings)


def make_rows(*keys, values):
    """Rows of finished runs: values of the keys, then AP."""
    numbers = ("AP50", "AP75", "APs", "APm", "APl", *(f"AR{n}" for n in (1, 10, 100, *"sml")))
    rest = dict.fromkeys(numbers, "") | {"status": "finished", "error": "", "run": "x"}
    return [rest | dict(zip([*keys, "AP"], map(str, row), strict=True)) for row in values]


def axes_of(*keys, values):
    return sweep_figure(make_rows(*keys, values=values), keys).axes[0]


def ticks_of(axes) -> list[str]:
    return [text.get_text() for text in axes.get_xticklabels()]


def test_the_spread_of_seeds_is_that_of_the_sample():
    values = [("0", seed, AP) for seed, AP in enumerate((0.31, 0.35, 0.36))] + [("1", 0, 0.5)]
    zero, one = summarize(make_rows("gamma", "seed", values=values), ["gamma", "seed"])
    assert (zero["gamma"], zero["n"]) == ("0", "3")
    assert float(zero["AP"]) == pytest.approx(0.34)
    assert float(zero["AP_std"]) == pytest.approx(statistics.stdev((0.31, 0.35, 0.36)), abs=1e-6)
    assert (one["n"], one["AP_std"]) == ("1", "")


@pytest.mark.parametrize("columns", [80, 60])
def test_the_summary_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setattr("retinanet.tools.report.sweep.width", lambda: columns)
    name = "/very/long/path/to/checkpoints/\u7d30\u80de/best.pt" * 2
    rows = make_rows("init_from", "model", values=[(name, "resnet50", 0.5), ("null", "tiny", 0.4)])
    lines = show_summary(rows, ["init_from", "model"])
    assert all(count_columns(line) <= columns for line in lines)
    assert all("0." in line[-40:] for line in lines[1:])


def test_the_axis_is_the_key_with_most_numbers_and_the_others_make_the_lines():
    values = [(m, x, y, 0.1) for m in "ab" for x in "1234" for y in ("1", "null")]
    axes = axes_of("model", "a.x", "b.x", values=values)
    assert axes.get_xlabel() == "a.x"
    names = {text.get_text() for text in axes.get_legend().get_texts()}
    assert names == {f"model={m}, b.x={y}" for m in "ab" for y in ("1", "null")}


def test_values_stand_in_order_with_the_mean_of_their_seeds():
    values = [("10", 0, 0.3), ("2", 0, 0.1), ("2", 1, 0.2), ("null", 0, 0.4)]
    axes = axes_of("lr", "seed", values=values)
    assert ticks_of(axes) == ["2", "10", "null"]
    assert dict(zip(*axes.lines[0].get_data(), strict=True)) == {0: 0.15, 1: 0.3, 2: 0.4}
    assert {text.get_text() for text in axes.texts} == {"0.150", "0.300", "0.400"}
    assert axes.get_title(loc="left") == "mean of 1 to 2 seeds; bars: standard deviation"


def test_what_is_not_drawn_is_counted():
    rows = make_rows("lr", values=[(1, 0.5), (2, ""), (3, 0.4), (4, 0.0)])
    rows[2]["status"] = "unfinished"
    (axes,) = sweep_figure(rows, ["lr"]).axes
    title = axes.get_title(loc="left")
    assert title == "1 of 4 runs not finished: not drawn\n1 of 4 runs without an AP: not drawn"
    assert axes.get_ylim()[0] == 0  # nothing was detected, and yet no AP is below 0


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("/data/" + "deep/" * 9 + "{}/best.pt", ["...p/one/best.pt", "...p/two/best.pt"]),
        ("/data/all_runs/{}/checkpoints/best.pt", ["...l_runs/one...", "...l_runs/two..."]),
        ("{}" + "x" * 20, ["one" + "x" * 20, "two" + "x" * 20]),
    ],
)
def test_long_values_are_cut_where_they_stay_different(form, shown):
    values = [(form.format(name), 0.5) for name in ("one", "two")]
    assert ticks_of(axes_of("from", values=values)) == shown
    pairs = [(*row[:1], x, 0.5) for row in values for x in (1, 2, 3)]
    texts = [
        text.get_text() for text in axes_of("from", "x", values=pairs).get_legend().get_texts()
    ]
    assert len(set(texts)) == 2


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (["gamma"], [("0", 0.3), ("0.5", 0.4), ("5", 0.2)]),
        (["lr", "seed"], [("1e-05", 0, 0.3), ("0.001", 0, 0.4), ("0.001", 1, 0.5)]),
        (["model", "seed"], [("resnet18", 0, 0.3), ("resnet18", 1, 0.31), ("$x$", 0, 0.4)]),
        (["seed"], [(0, 0.3), (1, 0.31)]),
        (["a", "b"], [(x, y, 0.1 * x + 0.01 * y) for x in range(6) for y in range(9) if x != y]),
        (["lr"], [("-1", 0.3)]),
        (["lr"], [(f"{x / 7}", 0.3) for x in range(40)]),
    ],
)
def test_a_plot_is_drawn_of_whatever_was_swept(tmp_path, keys, values):
    save_png(sweep_figure(make_rows(*keys, values=values), keys), tmp_path / "plot.png")
