"""The report of a run, written by the run and made again from its files."""

import json
import shutil
from collections import Counter

import pytest

from retinanet.cli import jobs
from retinanet.cli.main import composer
from retinanet.tools.report.run_record import NOT_RECORDED, read_record
from scripts import report
from tests.small_runs import train, write_split
from tests.tools.report.test_page import NUMBERS, PICTURES, REST, assert_sound, headings


def test_what_a_run_expected_and_warned_of_comes_from_its_record(tmp_path):
    lines = [
        "images     10 (0 without objects), 12 boxes",
        "first loss class 1.129 = positives 1.128",
        "warning    1 classes have no box to learn from: dog",
    ]
    run = {"state": "running", "starts": [], "stops": [], "expected": lines}
    run["replaced"] = ["a.jpg is truncated. Another image takes its place."]
    (tmp_path / "run.json").write_text(json.dumps(run))
    record = read_record(tmp_path, "best.pt", None)
    assert record.announced == [
        ("images", "10 (0 without objects), 12 boxes"),
        ("first loss", "class 1.129 = positives 1.128"),
    ]
    assert record.warnings == ["1 classes have no box to learn from: dog", *run["replaced"]]


def test_a_record_is_read_from_whatever_there_is(tmp_path):
    assert read_record(tmp_path, "best.pt", None).rows == []
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "run.json"):
        (tmp_path / name).write_bytes(b"\xff: {[\n")
    record = read_record(tmp_path, "best.pt", 3)
    assert (record.settings, record.starts, record.rows, record.announced) == ({}, [], [], [])
    (tmp_path / "train.log").write_text("run        a\n")
    assert read_record(tmp_path, "best.pt", 3).announced == [NOT_RECORDED]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps, and its data."""
    root = tmp_path_factory.mktemp("run")
    write_split(root / "data", "train", range(0, 6))
    write_split(root / "data", "val", range(6, 12))
    train(root / "data", root / "run", "log_images=2", "evaluation.every_epochs=1")
    return root


def test_a_run_writes_its_report_and_its_files_give_the_same_again(finished, capsys):
    path = finished / "run/eval/report.html"
    document = path.read_text()
    assert_sound(document)
    rest = [REST[0], "Before the first step", REST[1]]
    assert headings(document) == ["Training", *NUMBERS, *PICTURES, *rest]
    assert document.count('<figure class="exhibit">') == 4  # two of each gallery
    metrics = json.loads((finished / "run/eval/metrics.json").read_text())
    assert f"<strong>{metrics['AP']:.3f}</strong>" in document
    assert f"The checkpoint of step {metrics['step']}" in document
    assert "square" in document and "model.fpn_channels" in document

    assert report.main([str(finished / "run")]) == 0
    assert str(path) in capsys.readouterr().out
    # Boxes with equal scores may come in another order.
    assert Counter(path.read_text().split("\n")) == Counter(document.split("\n"))


def test_another_file_and_number_of_pictures(finished, tmp_path, capsys):
    output = tmp_path / "made" / "a.html"
    assert report.main([str(finished / "run"), "--output", str(output), "--images", "1"]) == 0
    assert output.read_text().count('<figure class="exhibit">') == 2  # one of each gallery
    with pytest.raises(SystemExit):
        report.main([str(finished / "run"), "--images", "99"])
    assert "0 to 12" in capsys.readouterr().err


def rewrite(path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: rewrite(root / "run/config.yaml", "val.json", "gone.json"), "gone.json"),
        (lambda root: rewrite(root / "data/val.json", "square", "circle"), "another file"),
        *(
            (lambda root, text=text: (root / "run/eval/detections.json").write_text(text), "")
            for text in ("{", "[{}]", '[{"image_id": 99}]', "[1]")
        ),
    ],
)
def test_without_its_data_a_report_has_the_numbers(finished, tmp_path, capsys, damage, said):
    root = tmp_path / "copy"
    shutil.copytree(finished, root)
    rewrite(root / "run/config.yaml", str(finished), str(root))
    damage(root)
    assert report.main([str(root / "run")]) == 0
    printed = capsys.readouterr().out
    assert "left out   what needs the data" in printed and said in printed
    document = (root / "run/eval/report.html").read_text()
    assert_sound(document)
    assert {"Training", "Classes", "Sizes"} <= set(headings(document))
    assert not {"Pictures", "Precision and recall"} & set(headings(document))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: shutil.rmtree(run), "no config.yaml"),
        (lambda run: (run / "eval/metrics.json").unlink(), "not evaluated yet"),
        (lambda run: (run / "eval/metrics.json").write_text("{"), "is damaged"),
        (lambda run: (run / "eval/metrics.json").write_text("[1]"), "must hold a JSON object"),
        (lambda run: (run / "eval/metrics.json").write_text("{}"), "does not hold the numbers"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(finished, tmp_path, capsys, damage, said):
    shutil.copytree(finished / "run", tmp_path / "run")
    damage(tmp_path / "run")
    assert report.main([str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_an_evaluation_elsewhere_has_a_report_of_its_own(finished, tmp_path):
    typed = [
        f"checkpoint={finished}/run/checkpoints/best.pt",
        f"output_dir={tmp_path / 'other'}",
        *("log_images=1", "device=cpu"),
    ]
    with composer("eval") as reader:
        settings = reader.command(typed).settings
    jobs.evaluate(settings, typed)
    document = (tmp_path / "other/eval/report.html").read_text()
    assert_sound(document)
    assert "RetinaNet \u00b7 Evaluation" in document
    assert "Training" not in headings(document)
    assert f"<dt>output_dir</dt><dd><code>{tmp_path / 'other'}</code></dd>" in document
