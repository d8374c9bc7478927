"""The paper's experiments: every row is a valid command, and the table says what the runs say."""

import csv
import json

import pytest

from scripts import ablate
from scripts.experiments.outcome import Run, plot, read_row, write
from scripts.experiments.tables import EXPERIMENTS


def settings_of(name, *typed):
    runs = ablate.plan(EXPERIMENTS[name].variants, [0], typed)
    return runs, [dict(text.split("=", 1) for text in run.variant.settings) for run in runs]


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_every_row_is_a_run_of_its_own(name):
    runs, _ = settings_of(name, "data=shapes")
    assert len({run.folder for run in runs}) == len(runs)
    assert len({run.variant.label for run in runs}) == len(runs)


def test_rows_that_two_tables_share_are_one_run():
    gamma, _ = settings_of("gamma")
    star, _ = settings_of("star")
    assert {run.folder for run in gamma} & {run.folder for run in star}


def test_the_tables_of_the_paper():
    # Spot checks against tables 1a, 1b, 1c, 1d and 3 of arXiv:1708.02002.
    rows = {(name, v.label): v.paper for name, e in EXPERIMENTS.items() for v in e.variants}
    assert rows["alpha", "CE, alpha 0.75"] == 31.1
    assert rows["gamma", "gamma 2, alpha 0.25"] == 34.0
    assert rows["gamma", "gamma 0.5, alpha 0.5"] == 32.9
    assert rows["anchors", "2 scales, 3 ratios"] == 34.2
    assert rows["ohem", "OHEM 128, NMS 0.5"] == 32.8
    assert rows["ohem", "OHEM 512, NMS 0.5, 1:3"] == 24.0
    assert rows["star", "FL*, gamma 4, beta 0"] == 33.9


def test_anchors_have_the_scales_of_their_octave():
    _, typed = settings_of("anchors")
    assert typed[0] == {"anchors.scales": "[1]", "anchors.ratios": "[1.0]"}
    assert typed[-1]["anchors.scales"] == "[1,1.189207115,1.414213562,1.681792831]"


def test_what_the_rows_set():
    # What the paper varies; everything else is common.
    _, typed = settings_of("star")
    assert typed[0] == {"loss.alpha": "0.75", "loss.gamma": "0"}
    assert typed[1] == {"loss.alpha": "0.25", "loss.gamma": "2"}
    assert typed[2] == {"loss": "focal_star", "loss.gamma": "2", "loss.star_beta": "1"}
    assert typed[3] == {"loss": "focal_star", "loss.gamma": "4", "loss.star_beta": "0"}
    _, typed = settings_of("prior")
    assert [row["model.prior"] for row in typed if "model.prior" in row] == [
        *("0.5", "0.1", "0.001", "0.5", "0.01")
    ]
    assert typed[4] == {"model.prior": "0.5", "loss.gamma": "0", "loss.alpha": "null"}
    _, typed = settings_of("gamma")
    assert [row["loss.gamma"] for row in typed] == ["0", "0.1", "0.2", "0.5", "1", "2", "5"]
    _, typed = settings_of("ohem")
    assert typed[7] == {
        "loss": "ohem",
        "loss.ohem_anchors": "256",
        "loss.ohem_nms_iou": "0.5",
        "loss.ohem_ratio": "3",
    }


def test_a_wrong_setting_stops_before_the_first_run(capsys):
    assert ablate.main(["gamma", "--", "loss.gama=1"]) == 1
    assert "loss.gama" in capsys.readouterr().err
    assert ablate.main(["gamma", "--only", "gamma 3", "--", "data=shapes"]) == 1
    assert "no row gamma 3; there are: gamma 0, alpha 0.75;" in capsys.readouterr().err


def test_seeds_are_not_settings(capsys):
    assert ablate.main(["gamma", "--", "data=shapes", "seed=3"]) == 1
    assert "give seeds as --seeds" in capsys.readouterr().err


def test_a_dry_run_prints_the_commands(capsys):
    assert ablate.main(["prior", "--dry-run", "--seeds", "0", "3", "--", "data=shapes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0] == "python train.py data=shapes model.prior=0.5"
    assert lines[-1].endswith("model.prior=0.01 loss.gamma=0 loss.alpha=null seed=3")


def write_run(folder, rows, finished):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train.log").write_text("finished   20 steps\n" if finished else "epoch 0\n")


@pytest.fixture
def runs(tmp_path):
    """Two variants, two seeds: one variant stopped with one seed, one was not begun."""
    variants = EXPERIMENTS["star"].variants[:3]
    made = [
        Run(v, seed, (f"seed={seed}",), tmp_path / f"{i}_{seed}")
        for i, v in enumerate(variants)
        for seed in (0, 1)
    ]
    write_run(made[0].folder, [{"step": 10, "AP": 0.1}, {"step": 20, "AP": 0.31}], True)
    write_run(made[1].folder, [{"step": 20, "AP": 0.33}], True)
    write_run(made[2].folder, [{"step": 7, "loss/class": 1e9}], False)
    write_run(made[3].folder, [{"step": 20, "AP": None}], True)
    return made


def test_the_table_has_means_seeds_and_where_runs_stopped(tmp_path, runs):
    lines = write(tmp_path / "out", "star", runs)
    assert lines[4] == "| CE | 32.0 | 31.0, 33.0 | 31.1 |"
    assert lines[5] == "| FL, gamma 2 | stopped | stopped after step 7 | 34.0 |"
    assert lines[6] == "| FL*, gamma 2, beta 1 |  |  | 33.8 |"
    with (tmp_path / "out/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["AP"] for row in rows] == ["0.3200", "", ""]
    assert rows[0]["command"] == "python train.py seed=0"
    assert (tmp_path / "out/plot.png").stat().st_size > 5000


def test_a_row_of_nothing_can_be_drawn(runs, tmp_path):
    row = read_row(runs[4].variant, runs[4:])
    assert (row.aps, row.stopped) == ((), ())
    plot(tmp_path / "plot.png", "star", [row])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
