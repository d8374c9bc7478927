"""The script on a run, on files of other projects, and on what it must refuse."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from retinanet.evaluation.average_precision import evaluate
from retinanet.tools.diagnose.results import read_results
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.publish import publish
from retinanet.tools.report.run_record import Record
from scripts.analyze import main

BOX = (100.0, 100.0, 50.0, 40.0)
OTHER = (300.0, 100.0, 50.0, 40.0)
FAR = (500.0, 300.0, 50.0, 40.0)


@pytest.fixture
def data(make_data, tmp_path):
    """Two images with a cat and a dog, and their files; the names are unusual."""
    names = ("cat", '\u732b, "$x$"')
    found = make_data(2, [(1, 1, BOX), (2, 2, OTHER)], names=names)
    for number in (1, 2):
        Image.new("RGB", (640, 480), (90, 120, 90)).save(tmp_path / f"{number}.jpg")
    return found


@pytest.fixture
def run(data, make_detections, tmp_path):
    """What an evaluation leaves behind."""
    found = make_detections(
        data, [(1, 1, BOX, 0.9), (1, 1, FAR, 0.95), (2, 1, OTHER, 0.9), (2, 2, OTHER, 0.7)]
    )
    evaluation = evaluate(data, found, found.evaluated)
    record = Record("Training run", "run", "best.pt", 1)
    publish(tmp_path / "run", Scored(data, found, evaluation, 0), about={"step": 1}, record=record)
    return tmp_path / "run"


def results_of(rows):
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def refusal(capsys, *arguments):
    """The one line that it ends with."""
    assert main([str(argument) for argument in arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_a_run_gets_every_file_and_a_table(run, data, capsys):
    assert main([str(run)]) == 0
    said = capsys.readouterr().out
    *table, files = said.splitlines()
    assert max(map(len, table)) <= 80
    assert files == f"files      {run / 'analysis'}"
    assert "2 images, 2 objects, 4 detections" in said
    assert "Look at " in said
    names = {path.name for path in (run / "analysis").iterdir()}
    assert names >= {"errors.json", "errors.csv", "errors.png", "sizes.csv", "worst_1.png"}
    assert names >= {"confusion.csv", "confusion.png", "suspects_unlabelled_1.png"}
    written = json.loads((run / "analysis/errors.json").read_text())
    evaluated = json.loads((run / "eval/metrics.json").read_text())
    assert written["AP50"] == evaluated["AP50"]
    assert [kind["count"] for kind in written["kinds"]] == [1, 0, 0, 0, 1, 0]
    assert written["worst"][0]["file_name"] in ("1.jpg", "2.jpg")
    # Programs read these.
    keys = {"image_id", "index", "file_name", "reason", "box", "found", "annotated", "score"}
    assert keys <= written["suspects"][0].keys()


def test_the_files_of_numbers_hold_what_was_found(run, data):
    main([str(run), "--score", "0.5"])
    with (run / "analysis/errors.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file_name"], row["kind"], row["found"]) for row in rows] == [
        ("1.jpg", "background", "cat"),
        ("2.jpg", "class", "cat"),
    ]
    assert (rows[1]["annotated"], rows[1]["iou"]) == (data.category_names[1], "1.0")
    assert rows[0]["iou"] == ""
    with (run / "analysis/confusion.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["object", *data.category_names, "not found"]
    assert rows[1:] == [
        ["cat", "1", "0", "0"],
        [data.category_names[1], "1", "0", "0"],
        ["nothing there", "1", "1", "0"],
    ]
    with (run / "analysis/sizes.csv").open(newline="", encoding="utf-8") as file:
        assert [row["num_gt"] for row in csv.DictReader(file)] == ["0", "1", "0"] * 2


def test_files_of_any_project_give_the_same_as_the_run(run, data, tmp_path, capsys):
    main([str(run)])
    results = run / "eval/detections.json"
    output = tmp_path / "elsewhere/\u00fc ber"
    arguments = [data.path, results, "--output", output, "--images", tmp_path]
    assert main(list(map(str, arguments))) == 0
    for name in ("errors.json", "errors.csv", "confusion.csv", "sizes.csv"):
        assert (output / name).read_bytes() == (run / "analysis" / name).read_bytes()
    capsys.readouterr()
    assert main([str(data.path), str(results), "--output", str(tmp_path / "no pictures")]) == 0
    assert "give --images FOLDER" in capsys.readouterr().out
    assert not list((tmp_path / "no pictures").glob("worst*"))


def test_a_run_of_before_leaves_it_to_its_settings(run, data, capsys):
    metrics = json.loads((run / "eval/metrics.json").read_text())
    metrics.pop("annotations"), metrics.pop("images")
    write(run / "eval/metrics.json", metrics)
    for settings in (None, "[]", "{", "a: [1"):  # none, or none that can be read
        if settings is not None:
            (run / "config.yaml").write_text(settings)
        said = refusal(capsys, run)
        assert "does not say which annotations it was evaluated on; give them" in said
    (run / "config.yaml").write_text(
        f"data: {{root: {data.path.parent}, val_annotations: {data.path.name}, val_images: .}}\n"
    )
    assert main([str(run)]) == 0


def test_a_checkpoint_means_its_own_evaluation(run, capsys):
    (run / "config.yaml").write_text("{}\n")
    (run / "checkpoints").mkdir()
    for name in ("best.pt", "last.pt"):
        (run / "checkpoints" / name).touch()
    assert main([str(run / "checkpoints/best.pt")]) == 0
    assert (run / "analysis/errors.json").exists()
    capsys.readouterr()
    said = refusal(capsys, run / "checkpoints/last.pt")
    assert "eval_last/eval/detections.json" in said
    assert "python eval.py checkpoint=" in said
    shutil.copytree(run / "eval", run / "eval_last/eval")
    assert main([str(run / "checkpoints/last.pt")]) == 0
    assert (run / "eval_last/analysis/errors.json").exists()


def test_sheets_of_an_earlier_analysis_go_away_and_unreadable_images_are_gray(run, data):
    stale = run / "analysis/worst_9.png"
    stale.parent.mkdir()
    stale.touch()
    data.image_path(0).write_bytes(b"no image")
    data.image_path(1).unlink()
    assert main([str(run)]) == 0
    assert not stale.exists()
    assert (run / "analysis/worst_1.png").exists()


def test_images_that_were_not_looked_at_are_not_missed(run, data):
    metrics = json.loads((run / "eval/metrics.json").read_text()) | {"num_images": 1}
    write(run / "eval/metrics.json", metrics)
    write(run / "eval/detections.json", results_of([(1, 1, BOX, 0.9)]))
    assert main([str(run)]) == 0
    written = json.loads((run / "analysis/errors.json").read_text())
    assert [kind["count"] for kind in written["kinds"]] == [0] * 6


def test_no_detections_are_all_missed(data, tmp_path):
    assert main([str(data.path), str(write(tmp_path / "none.json", []))]) == 0
    written = json.loads((tmp_path / "analysis/errors.json").read_text())
    assert [kind["count"] for kind in written["kinds"]] == [0, 0, 0, 0, 0, 2]
    assert written["F1"] is None


RESULTS = {
    "other images": ([(7, 1, BOX, 0.9)], "1 of 1 detections are of images that .* image_id 7;"),
    "other classes": ([(1, 0, BOX, 0.9)], "category_id that .* such as 0; it lists 2 categories"),
    "corners": ([(1, 1, (300, 200, 500, 400), 0.9)] * 3, r"write x2 - x1 and y2 - y1"),
    "no box": ([(1, 1, [1, 2, 3], 0.9)], r"detections\[0\]: bbox must be four finite numbers"),
    "no number": ([(1, 1, BOX, "0.9")], r"detections\[0\]: score must be a finite number"),
    "nan": ([(1, 1, BOX, float("nan"))], r"detections\[0\]: score must be a finite number"),
}


FILES = {
    "cut short": (b"[{", "is not JSON"),
    "no text": (b"\xff\xfe", "is not JSON"),
    "a number": (b"3", "must hold a JSON list"),
    "annotations": (b'{"annotations": []}', "It is an annotation file; give it first"),
    "a list of numbers": (b"[3]", r"detections\[0\] must be an object"),
}


@pytest.mark.parametrize("name", [*RESULTS, *FILES])
def test_results_that_do_not_fit_are_refused(data, tmp_path, capsys, name):
    path = tmp_path / "results.json"
    if name in FILES:
        content, message = FILES[name]
        path.write_bytes(content)
    else:
        rows, message = RESULTS[name]
        write(path, results_of(rows))
    assert main([str(data.path), str(path)]) == 1
    with pytest.raises(ValueError, match=message):
        read_results(path, data)


def test_boxes_that_reach_over_the_border_are_no_corners(data, tmp_path):
    rows = [(1, 1, (400, 300, 300, 250), 0.9)] + [(1, 1, BOX, 0.8)] * 20
    assert len(read_results(write(tmp_path / "r.json", results_of(rows)), data)) == 21


def test_what_is_not_there_is_refused_in_one_line(run, data, tmp_path, capsys):
    results = run / "eval/detections.json"
    assert "does not exist" in refusal(capsys, tmp_path / "nothing")
    assert "run python eval.py" in refusal(capsys, tmp_path)
    assert "neither a run nor a checkpoint" in refusal(capsys, data.path)
    assert "results file" in refusal(capsys, data.path, tmp_path / "nothing.json")
    assert "is a folder" in refusal(capsys, data.path, tmp_path)
    assert "does not exist" in refusal(capsys, tmp_path / "nothing.json", results)
    assert "A list of detections" in refusal(capsys, results, data.path)
    assert "--images=" in refusal(capsys, data.path, results, "--images", tmp_path / "nothing")
    assert "is a file" in refusal(capsys, data.path, results, "--output", data.path)
    data.path.rename(tmp_path / "moved.json")
    assert "from the folder where train.py ran" in refusal(capsys, run)


@pytest.mark.parametrize(
    "arguments", [["a", "b", "c"], ["a", "--most", "-1"], ["a", "--max-dets", "0"], []]
)
def test_arguments_out_of_range_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_the_table_says_na_where_nothing_is_defined(make_data, tmp_path, capsys):
    empty = make_data(1, [])
    results = write(tmp_path / "results.json", results_of([(1, 1, BOX, 0.9)]))
    assert main([str(empty.path), str(results)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "background  " in line]
    assert line.split() == ["background", "1", "1", "n/a", "n/a"]


@pytest.mark.parametrize("num_classes", [1, 80])
def test_the_matrix_is_drawn_for_any_number_of_classes(make_data, tmp_path, num_classes):
    names = [f"class {number}" for number in range(num_classes)]
    data = make_data(1, [(1, 1, BOX)], names=names)
    results = write(tmp_path / "results.json", results_of([(1, num_classes, BOX, 0.9)]))
    assert main([str(data.path), str(results)]) == 0
    with Image.open(tmp_path / "analysis/confusion.png") as picture:
        assert max(picture.size) < 2500
        assert np.asarray(picture.convert("L")).min() < 128
