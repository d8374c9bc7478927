"""What a report says of errors: the right kinds, counts and pictures."""

import dataclasses

import pytest

from retinanet.evaluation.average_precision import evaluate
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.error_sections import WORST_IMAGES, error_sections
from tests.tools.report.test_page import NAMES, assert_sound
from tests.tools.report.test_run_report import cells, document_of, headings

BOX = (100.0, 100.0, 50.0, 40.0)
FAR = (400.0, 300.0, 60.0, 60.0)


@pytest.fixture
def scored(make_data, make_detections):
    """Images: right; cat found as dog; missed; background beside a right one."""
    data = make_data(5, [(1, 1, BOX), (2, 1, BOX), (3, 2, BOX), (4, 2, BOX)])
    rows = [(1, 1, BOX, 0.7), (2, 2, BOX, 0.8), (4, 2, BOX, 0.75), (4, 2, FAR, 0.85)]
    found = make_detections(data, rows)
    return Scored(data, found, evaluate(data, found, data.image_ids), num_drawn=4)


def test_errors_are_counted_by_kind(scored):
    document = document_of(scored)
    assert_sound(document)
    # Name, cost, at the score, at any score, meaning.
    counts = {row[0]: int(row[3]) for row in cells(document, "Errors")}
    assert counts == {
        "class": 1,
        "localization": 0,
        "both": 0,
        "duplicate": 0,
        "background": 1,
        "missed": 1,
    }


def test_confusion_shows_what_objects_were_found_as(scored):
    assert cells(document_of(scored), "Confusion") == [
        ["cat", "1", "1", "0"],
        ["dog", "0", "1", "1"],
        ["nothing there", "0", "1", "0"],
    ]


def test_the_worst_images_come_first_and_right_ones_not_at_all(scored):
    exhibits = error_sections(scored)["worst"]
    assert [exhibit.title for exhibit in exhibits] == ["3.jpg", "4.jpg", "2.jpg"]
    assert [exhibit.note for exhibit in exhibits] == ["1 missed", "1 background", "1 class"]
    (objects, _), (detections, boxes) = exhibits[1].views
    assert (objects, detections) == ("Objects: 1, missed: 0", "Detections: 2, wrong: 1")
    assert [(box.caption, box.opacity < 1) for box in boxes] == [
        ("dog 0.75 right", True),
        ("dog 0.85 background", False),
    ]
    assert exhibits[0].views[0][1][0].caption == "dog missed"


def test_no_more_pictures_are_drawn_than_wanted(scored):
    for wanted in (0, 1):
        exhibits = error_sections(dataclasses.replace(scored, num_drawn=wanted))["worst"]
        assert len(exhibits) == wanted
    assert WORST_IMAGES < 10


def test_an_image_in_both_galleries_is_embedded_once(scored):
    reader = assert_sound(document_of(scored))
    names = [name for name in reader.ids if name.startswith("image-")]
    assert sorted(names) == ["image-0", "image-1", "image-2", "image-3"]
    assert reader.attributes.count(("use", "href", "#image-1")) == 4


def test_suspicious_annotations_are_listed(scored):
    box = "100, 100, 50, 40"
    assert cells(document_of(scored), "Annotations to check") == [
        ["4.jpg", "found where nothing is annotated", "dog", "0.85", "", "400, 300, 60, 60"],
        ["2.jpg", "found as another class", "dog", "0.80", "cat", box],
        ["3.jpg", "annotated, and nothing was found there", "", "n/a", "dog", box],
    ]


def test_perfect_detections_have_no_worst_image(make_data, make_detections):
    data = make_data(2, [(1, 1, BOX), (2, 2, BOX)])
    found = make_detections(data, [(1, 1, BOX, 0.9), (2, 2, BOX, 0.9)])
    scored = Scored(data, found, evaluate(data, found, data.image_ids), 2)
    shown = headings(document_of(scored))
    assert "Worst images" not in shown
    assert "Annotations to check" not in shown
    assert {"Errors", "Confusion"} <= set(shown)


@pytest.mark.parametrize("rows", [[], [(1, 1, BOX, 0.9)]])
def test_without_objects_or_detections_there_is_still_a_page(make_data, make_detections, rows):
    for objects in ([], [(1, 1, BOX)]):
        data = make_data(2, objects)
        found = make_detections(data, rows)
        scored = Scored(data, found, evaluate(data, found, data.image_ids), 2)
        assert_sound(document_of(scored))


@pytest.mark.parametrize("num_classes", [2, 17])
def test_the_confusion_shows_every_pair_that_occurs(make_data, make_detections, num_classes):
    names = [f"{n} {NAMES[0]}" for n in range(num_classes)]
    objects = [(1, 1, (100.0 * n, 100.0, 50.0, 40.0)) for n in range(4)]
    data = make_data(1, objects, names=names)
    labels = (1, 1, 1, num_classes)
    rows = [(1, label, box, 0.9) for label, (_, _, box) in zip(labels, objects, strict=True)]
    found = make_detections(data, rows)
    document = document_of(Scored(data, found, evaluate(data, found, [1]), 0))
    section = document.split('id="confusion"')[1].split("</section>")[0]
    assert_sound(document)
    if num_classes == 2:
        assert '<td class="number heat-8" title="75.0%">3</td>' in section
        assert '<td class="number heat-0" title="0.0%">0</td>' in section
    else:
        assert section.count('<rect x="') == 2
        assert "3 (75.0%)</title>" in section
        assert '<rect x="16" y="0"' in section
