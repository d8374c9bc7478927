"""The report of a run: every number where it belongs, and nothing shown that is not known."""

import dataclasses
import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from retinanet.cli import jobs
from retinanet.cli.main import composer
from retinanet.evaluation.average_precision import evaluate
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.gallery import MOST_IMAGES
from retinanet.tools.report.run_record import Record, read_record
from retinanet.tools.report.run_report import run_page
from retinanet.tools.report.style import COLORS
from retinanet.tools.report.tables import metrics_dict
from scripts import report
from tests.small_runs import train, write_split
from tests.tools.report.test_page import PAGE_LIMIT, assert_sound

BOX = (100.0, 100.0, 50.0, 40.0)
LARGE = (10.0, 10.0, 200.0, 200.0)
RECORD = Record("Training run", "name", "best.pt", 20)
NUMBERS = ["Precision and recall", "Classes", "Sizes", "Errors", "Confusion"]
PICTURES = ["Pictures", "Worst images"]


def cells(document: str, title: str) -> list[list[str]]:
    """Texts of the rows of the first table below a heading."""
    body = document.split(f">{title}</h2>")[1].split("<tbody>")[1].split("</tbody>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", body)
    strip = [re.split(r"</t[hd]>", row)[:-1] for row in rows]
    return [[re.sub(r"<[^>]*>", "", cell) for cell in row] for row in strip]


def headings(document: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", document)


@pytest.fixture
def scored(make_data, make_detections):
    """The cat is found, the dog is missed, there is no unicorn; one image was not looked at."""
    data = make_data(
        3, [(1, 1, BOX), (2, 2, LARGE), (3, 1, LARGE)], names=("cat", "dog", "unicorn")
    )
    found = make_detections(data, [(1, 1, BOX, 0.9), (2, 1, BOX, 0.3)], evaluated=[1, 2])
    return Scored(data, found, evaluate(data, found, [1, 2]), num_drawn=2)


def document_of(scored, record=RECORD, **more) -> str:
    return run_page(record, metrics_dict(scored.evaluation), scored, **more)


def test_the_numbers_are_those_of_the_evaluation(scored):
    document = document_of(scored)
    assert_sound(document)
    assert "<dt>AP</dt><dd><strong>0.500</strong>" in document
    assert "<dt>APs</dt><dd><strong>n/a</strong>" in document
    assert cells(document, "Classes") == [
        ["cat", "1", "1.000", "1.000", "1.000", "1.000", "2"],
        ["dog", "1", "0.000", "0.000", "0.000", "0.000", "0"],
        ["unicorn", "0", "n/a", "n/a", "n/a", "n/a", "0"],
    ]
    # 50 x 40 px are medium; the large cat is in an image that was not looked at.
    assert [row[1:] for row in cells(document, "Sizes")] == [
        ["0", "n/a", "n/a"],
        ["1", "1.000", "1.000"],
        ["1", "0.000", "0.000"],
    ]


def test_another_cap_is_named(scored):
    evaluation = evaluate(scored.data, scored.found, [1, 2], max_dets=(1, 10, 300))
    document = run_page(RECORD, metrics_dict(evaluation), scored)
    assert "<dt>AR300</dt>" in document
    assert "AR100" not in document


def test_classes_have_the_colors_of_the_pictures(scored):
    document = document_of(scored)
    for name, color in (("cat", COLORS[0]), ("dog", COLORS[1])):
        assert re.search(rf'fill="{color}"/></svg><bdi>{name}</bdi>', document)
        assert re.search(rf'stroke="{color}"><title>{name}', document)


def test_a_section_without_anything_to_show_is_not_there(scored):
    rest = ["Annotations to check", "What ran"]
    assert headings(document_of(scored)) == [*NUMBERS, *PICTURES, *rest]
    without_pictures = document_of(dataclasses.replace(scored, num_drawn=0))
    assert headings(without_pictures) == [*NUMBERS, *rest]
    assert "<image" not in without_pictures
    bare = run_page(RECORD, None, None)
    assert headings(bare) == ["What ran"]
    assert_sound(bare)


def test_a_test_set_shows_what_was_found(make_data, make_detections):
    data = make_data(1, [], annotations=None)
    found = make_detections(data, [(1, 1, BOX, 0.9)])
    document = run_page(RECORD, None, Scored(data, found, None, 1))
    assert_sound(document)
    assert headings(document) == ["Pictures", "What ran"]
    assert "no annotations to score them by" in document
    assert "Ground truth" not in document


def test_curves_of_nothing_but_nan_are_no_error(scored):
    rows = [{"step": n, "loss/class": float("nan"), "lr": 0.1, "AP": None} for n in (1, 2)]
    document = document_of(scored, dataclasses.replace(RECORD, rows=rows))
    assert_sound(document)
    assert "class n/a" in document
    assert not re.search('[> "]nan', document)


def test_the_curves_are_text_with_the_last_values_and_the_step_of_the_report(scored):
    rows = [{"step": 20, "loss/class": 1.0, "loss/box": 0.5, "lr": 0.1}]
    rows += [{"step": 40, "loss/class": 0.25, "loss/box": 0.125, "lr": 0.1}]
    rows += [{"step": 40, "AP": 0.3, "AP50": 0.5, "AP75": 0.2}]
    reader = assert_sound(document_of(scored, dataclasses.replace(RECORD, rows=rows)))
    texts = reader.said("text")
    for text in ("class 0.250", "box 0.125", "AP 0.300", "AP50 0.500", "AP75 0.200"):
        assert text in texts
    assert "this checkpoint: step 20" in texts
    assert "IoU 0.50  AP 0.500" in texts, "precision over recall"
    # What a style would say stands in attributes: the policy of the page forbids styles.
    fills = {value for tag, name, value in reader.attributes if (tag, name) == ("text", "fill")}
    assert fills == {"currentColor"}


def test_a_diagnosis_comes_first(scored):
    causes = [
        {"name": "label map", "verdict": "Classes are swapped.", "remedy": "Mend the ids."},
        {"name": "anchors", "verdict": "They are large.", "remedy": "anchors=small"},
    ]
    document = document_of(scored, diagnosis={"causes": causes, "evidence": ["AP is 0.3 without"]})
    before = document.split('<dl class="tiles">')[0]
    for text in ("label map", "Classes are swapped.", "Mend the ids.", "AP is 0.3 without"):
        assert text in before
    assert "They are large." in before


def test_warnings_say_what_went_wrong(scored):
    bad = [{"step": 7, "likely_cause": "training diverges"}, {"step": 9, "likely_cause": "lr"}]
    record = dataclasses.replace(
        RECORD,
        settings={"postprocess": {"detections": 1}},
        bad_steps=bad,
        warnings=[f"warning {n}" for n in range(30)],
    )
    capped = dataclasses.replace(scored, found=dataclasses.replace(scored.found, num_capped=2))
    document = document_of(capped, record)
    box = document.split("Warnings of this run")[1].split("</aside>")[0]
    assert "postprocess.detections=1" in box
    assert "2 steps had a loss or gradient that is not finite" in box
    assert "(step 7, 9)" in box
    assert "and 10 more in train.log" in box


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


def test_a_page_of_noise_keeps_its_bound(make_data, make_detections, tmp_path):
    generator = np.random.default_rng(0)
    rows = [(i, 1 + i % 2, BOX) for i in range(1, 15) for _ in range(60)]
    data = make_data(14, rows)
    for index in range(len(data)):
        noise = generator.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(noise).save(data.image_path(index), quality=95)
    found = make_detections(data, [(*row, 0.9) for row in rows])
    scored = Scored(data, found, evaluate(data, found, data.image_ids), 99)
    document = run_page(RECORD, None, scored)
    assert document.count("<image id=") == MOST_IMAGES
    assert len(document.encode()) < PAGE_LIMIT / 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps, and its data."""
    root = tmp_path_factory.mktemp("run")
    write_split(root / "data", "train", range(0, 6))
    write_split(root / "data", "val", range(6, 12))
    train(root / "data", root / "run", "log_images=2", "evaluation.every_epochs=1")
    return root


def test_a_run_writes_its_report(finished):
    document = (finished / "run/eval/report.html").read_text()
    assert_sound(document)
    rest = ["Annotations to check", "Before the first step", "What ran"]
    assert headings(document) == ["Training", *NUMBERS, *PICTURES, *rest]
    # Two of each gallery.
    assert document.count('<figure class="exhibit">') == 4
    metrics = json.loads((finished / "run/eval/metrics.json").read_text())
    assert f"<strong>{metrics['AP']:.3f}</strong>" in document
    assert f"The checkpoint of step {metrics['step']}" in document
    assert "square" in document
    assert "model.fpn_channels" in document


def test_a_report_is_rebuilt_from_the_files_of_the_run_to_the_same_bytes(finished, capsys):
    before = (finished / "run/eval/report.html").read_bytes()
    assert report.main([str(finished / "run")]) == 0
    assert str(finished / "run/eval/report.html") in capsys.readouterr().out
    after = (finished / "run/eval/report.html").read_bytes()
    # Boxes with equal scores may come in another order.
    assert Counter(after.split(b"\n")) == Counter(before.split(b"\n"))


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
    shutil.copytree(finished, tmp_path / "copy")
    root = tmp_path / "copy"
    rewrite(root / "run/config.yaml", str(finished), str(root))
    damage(root)
    assert report.main([str(root / "run")]) == 0
    printed = capsys.readouterr().out
    assert "left out   what needs the data" in printed
    assert said in printed
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
        "log_images=1",
        "device=cpu",
    ]
    with composer("eval") as reader:
        settings = reader.command(typed).settings
    jobs.evaluate(settings, typed)
    document = (tmp_path / "other/eval/report.html").read_text()
    assert_sound(document)
    assert "RetinaNet \u00b7 Evaluation" in document
    assert "Training" not in headings(document)
    assert f"<dt>output_dir</dt><dd><code>{tmp_path / 'other'}</code></dd>" in document
