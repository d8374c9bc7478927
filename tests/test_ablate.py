"""The paper's experiments: every row is a valid command, and the table says what the runs say."""

import csv
import json

import pytest

from scripts import ablate
from scripts.ablate import EXPERIMENTS, Run, plan, read_experiment, write


def test_every_row_is_a_run_of_its_own_and_rows_that_two_tables_share_are_one_run():
    folders = {}
    for name in EXPERIMENTS:
        runs = plan(name, None, [0], ["data=shapes"])
        folders[name] = {run.folder for run in runs}
        assert len(folders[name]) == len({run.variant.label for run in runs}) == len(runs)
    assert folders["gamma"] & folders["star"]


def test_the_tables_of_the_paper():
    # Spot checks against tables 1a, 1b, 1c, 1d and 3 of arXiv:1708.02002.
    rows = {(name, v.label): v for name in EXPERIMENTS for v in read_experiment(name)[2]}
    papers = {key: variant.paper for key, variant in rows.items()}
    assert papers["alpha", "CE, alpha 0.75"] == 31.1
    assert papers["gamma", "gamma 2, alpha 0.25"] == 34.0
    assert papers["gamma", "gamma 0.5, alpha 0.5"] == 32.9
    assert papers["anchors", "2 scales, 3 ratios"] == 34.2
    assert papers["ohem", "OHEM 128, NMS 0.5"] == 32.8
    assert papers["ohem", "OHEM 512, NMS 0.5, 1:3"] == 24.0
    assert papers["star", "FL*, gamma 4, beta 0"] == 33.9
    assert papers["prior", "focal loss, pi 0.1"] is None
    # A label says what its row sets.
    for (name, label), variant in rows.items():
        for word in ("alpha", "gamma", "beta"):
            if f"{word} " in label and name != "prior":
                value = label.split(f"{word} ")[1].split(",")[0]
                assert any(text.endswith(f"{word}={value}") for text in variant.settings)
        if name == "ohem" and label != "focal loss":
            numbers = label.removeprefix("OHEM ").replace(", NMS", "").replace(", 1:", " ").split()
            assert [text.partition("=")[2] for text in variant.settings] == ["ohem", *numbers]


def test_anchors_have_the_scales_of_their_octave():
    for variant in read_experiment("anchors")[2]:
        scales, ratios = (json.loads(text.partition("=")[2]) for text in variant.settings)
        assert variant.label == f"{len(scales)} scales, {len(ratios)} ratios"
        assert scales == pytest.approx([2 ** (i / len(scales)) for i in range(len(scales))])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--", "loss.gama=1"], "loss.gama"),
        (["--only", "gamma 3", "--", "data=shapes"], "no row gamma 3; there are: gamma 0, alpha"),
        (["--", "data=shapes", "seed=3"], "give seeds as --seeds"),
    ],
)
def test_a_mistake_stops_before_the_first_run(capsys, typed, message):
    assert ablate.main(["gamma", *typed]) == 1
    assert message in capsys.readouterr().err


def test_a_dry_run_prints_the_commands(capsys):
    assert ablate.main(["prior", "--dry-run", "--seeds", "0", "3", "--", "data=shapes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[0] == "python train.py data=shapes model.prior=0.5"
    assert lines[-1].endswith("model.prior=0.01 loss.gamma=0 loss.alpha=null seed=3")


def write_run(folder, rows, finished):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = {"state": "finished" if finished else "stopped", "starts": [], "stops": []}
    (folder / "run.json").write_text(json.dumps(record))


def test_the_table_has_means_seeds_and_where_runs_stopped(tmp_path):
    # Two seeds each: one row finished, one stopped with a seed and has no AP, one did not begin.
    runs = [
        Run(variant, seed, (f"seed={seed}",), tmp_path / f"{i}_{seed}")
        for i, variant in enumerate(read_experiment("star")[2][:3])
        for seed in (0, 1)
    ]
    write_run(runs[0].folder, [{"step": 10, "AP": 0.1}, {"step": 20, "AP": 0.31}], True)
    write_run(runs[1].folder, [{"step": 20, "AP": 0.33}], True)
    write_run(runs[2].folder, [{"step": 7, "loss/class": 1e9}], False)
    write_run(runs[3].folder, [{"step": 20, "AP": None}], True)
    lines = write(tmp_path / "out", "star", runs)
    assert lines[4] == "| CE | 32.0 | 31.0, 33.0 | 31.1 |"
    assert lines[5] == "| FL, gamma 2 | stopped | stopped after step 7 | 34.0 |"
    assert lines[6] == "| FL*, gamma 2, beta 1 |  |  | 33.8 |"
    assert (tmp_path / "out/table.md").read_text().splitlines() == lines
    with (tmp_path / "out/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["AP"] for row in rows] == ["0.3200", "", ""]
    assert rows[0]["command"] == "python train.py seed=0"
    assert (tmp_path / "out/plot.png").stat().st_size > 5000
