"""The page of a run: valid, complete in one file, any text as text, and the right numbers."""

import base64
import dataclasses
import hashlib
import re
import tomllib
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from retinanet.evaluation.average_precision import evaluate
from retinanet.evaluation.thresholds import find_thresholds
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.page import ASSETS, MOST_BYTES, embed, number
from retinanet.tools.report.run_record import Record
from retinanet.tools.report.run_report import MOST_IMAGES, run_page
from retinanet.tools.report.style import COLORS
from retinanet.tools.report.tables import metrics_dict

# What breaks pages: markup, quotes, other scripts, controls, half of a surrogate pair.
NAMES = [
    "<script>alert(1)</script>",
    "</style></script></svg><img src=x onerror=alert(1)>",
    '" \' & &amp; {0} %s {{ 7 * 7 }} a style="fill: red"',
    "\u732b \u05e9\u05dc\u05d5\u05dd \U0001f9a9 a\u200cb",
    "_hidden\nline\ttab\x00\x1b[0m",
    "\ud800half",
    "x" * 300,
]
VOID = {"meta", "link", "input", "br", "img"}
BOX, LARGE = (100.0, 100.0, 50.0, 40.0), (10.0, 10.0, 200.0, 200.0)
# A page of twelve images, and as many of the worst, stays below this.
PAGE_LIMIT = 5_000_000
RECORD = Record("Training run", "name", "best.pt", 20)
NUMBERS = ["Precision and recall", "Classes", "Sizes", "Errors", "Confusion"]
PICTURES = ["Pictures", "Worst images"]
REST = ["Annotations to check", "What ran"]


class Reader(HTMLParser):
    """Checks that every element is closed in its turn, and keeps what a browser would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # element, attribute, value
        self.texts: list[tuple[str, str]] = []  # element, text

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute of {tag} comes twice: {names}"
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def said(self, tag: str) -> list[str]:
        return [text for element, text in self.texts if element == tag]

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


def assert_sound(document: str) -> Reader:
    """Valid, without two ids that are alike, and without a way out of the file."""
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert reader.open == []
    ids = reader.values("id")
    assert len(ids) == len(set(ids)), "two elements have the same id"
    for tag, name, _ in reader.attributes:
        assert not name.startswith("on"), f"{tag} has a handler"
        assert name != "style", f"{tag} has a style, which the policy forbids"
    for link in reader.values("href", "src", "srcset", "data", "action", "xlink:href"):
        assert link.startswith(("#", "data:")), f"a link leads to {link[:80]}"
        assert not link.startswith("#") or link[1:] in ids, f"{link} leads nowhere"
    assert len(reader.said("script")) == len(reader.said("style")) == 1
    assert not re.search(r"@import|url\s*\(", reader.said("style")[0])
    return reader


def test_what_is_unsound_is_noticed():
    for document, what in {
        "<p><b></p></b>": "closes",
        '<img src="https://x.org/x">': "leads",
    }.items():
        with pytest.raises(AssertionError, match=what):
            assert_sound(document)


def document_of(scored, record=RECORD, **more) -> str:
    """The page, found to be sound."""
    document = run_page(record, metrics_dict(scored.evaluation), scored, **more)
    assert_sound(document)
    return document


def headings(document: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", document)


def section(document: str, title: str) -> str:
    return document.split(f">{title}</h2>")[1].split("</section>")[0]


def cells(document: str, title: str) -> list[list[str]]:
    """Texts of the rows of the first table below a heading."""
    body = section(document, title).split("<tbody>")[1].split("</tbody>")[0]
    rows = [re.split(r"</t[hd]>", row)[:-1] for row in re.findall(r"<tr>(.*?)</tr>", body)]
    return [[re.sub(r"<[^>]*>", "", cell) for cell in row] for row in rows]


@pytest.fixture
def score(make_data, make_detections):
    """``score(num_images, objects, detections)``: an evaluation of some detections."""

    def make(num_images, objects, detections, num_drawn=2, evaluated=None, **fields) -> Scored:
        data = make_data(num_images, objects, **fields)
        found = make_detections(data, detections, evaluated)
        return Scored(data, found, evaluate(data, found, found.evaluated), num_drawn)

    return make


@pytest.fixture
def page_of(score):
    """The page of a run with every section, in which all texts of users are the given one."""

    def make(text: str) -> str:
        file_name = re.sub("[/\x00-\x1f\ud800]", "", text)[:100] + ".jpg"
        images = [{"id": 1, "file_name": file_name, "width": 640, "height": 480}]
        name = text.replace("\ud800", "")  # an annotation file cannot have it
        names = [name, *(f"{n} {name}" for n in range(1, 14))]
        objects = [(1, 1, BOX), (1, 2, (300.0, 200.0, 90.0, 90.0))]
        found = [(1, 1, BOX, 0.9), (1, 2, BOX, 0.7), (1, 3, BOX, 0.6)]
        scored = score(1, objects, found, 1, names=names, images=images)
        record = Record(
            kind=text,
            title=text,
            checkpoint=text,
            step=1,
            typed=[f"a={text}"],
            settings={"group": {"key": text}},
            starts=[{"command": [text], "folder": text, "versions": {text: text}}],
            rows=[{"step": 1, "loss/class": 1.0, "lr": 0.1}, {"step": 1, "AP": 0.5}],
            bad_steps=[{"step": 1, "likely_cause": text}],
            announced=[("images", text)],
            warnings=[text],
        )
        cause = {"name": text, "verdict": text, "remedy": text}
        metrics = metrics_dict(scored.evaluation, find_thresholds(scored.data, scored.detections))
        return run_page(record, metrics, scored, {"causes": [cause, cause], "evidence": [text]})

    return make


@pytest.mark.parametrize("name", NAMES)
def test_any_text_is_shown_as_text(page_of, name):
    document = page_of(name)
    document.encode()  # as it is written
    reader = assert_sound(document)
    shown = re.sub("[\x00\x1b\ud800]", "\ufffd", name)
    for tag in ("title", "bdi", "code", "li", "p", "span"):
        assert any(shown in text for text in reader.said(tag)), tag
    class_name = re.sub("[\x00\x1b]", "\ufffd", name.replace("\ud800", ""))
    assert f"{class_name} 0.90 right" in reader.said("title"), "a box of the worst image"


def test_a_page_has_its_policy_its_links_and_is_the_same_for_the_same_content(page_of):
    document = page_of("text")
    assert page_of("text") == document
    reader = assert_sound(document)
    # Only the own script and style may run, and nothing may be loaded.
    (policy,) = [value for value in reader.values("content") if "default-src" in value]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    for element in ("script", "style"):
        (text,) = reader.said(element)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[f"{element}-src"] == f"'sha256-{digest}'"
    assert "http:" not in document and "https:" not in document
    # Every section is linked.
    assert len(reader.said("h2")) == 12
    assert reader.said("a") == reader.said("h2")
    links = [value for tag, name, value in reader.attributes if (tag, name) == ("a", "href")]
    sections = [v for tag, name, v in reader.attributes if (tag, name) == ("section", "id")]
    assert links == [f"#{name}" for name in sections]


def test_tables_have_aligned_numbers_an_order_and_where_long_a_filter(page_of):
    document = page_of("text")
    classes = section(document, "Classes")
    assert '<td class="number" data-value="1">1</td>' in classes
    assert re.search(
        r'<td class="number barred" data-value="0.99[0-9]+"><svg.*?width="100.0"', classes
    )
    assert '<td class="number none">n/a</td>' in classes
    assert classes.count('<th scope="col" class="number"') == 10
    assert classes.count('aria-sort="descending"') == 1
    # The only long table has a filter.
    assert "<output>14 of 14</output>" in classes
    assert document.count('type="search"') == 1


def test_a_number_has_its_digits():
    shown = [number(value, 3) for value in (None, float("nan"), 0.0005, 12345)]
    assert shown == ["n/a", "n/a", "0.001", "12,345.000"]


def test_template_style_and_script_are_installed_with_the_package():
    settings = tomllib.loads((ASSETS.parents[2] / "pyproject.toml").read_text())
    files = settings["tool"]["setuptools"]["package-data"]["retinanet.tools.report"]
    assert set(files) == {p.name for p in ASSETS.iterdir() if p.suffix in (".css", ".js", ".j2")}


@pytest.mark.parametrize("shape", [(1200, 1800), (2000, 40), (40, 2000), (1, 1)])
def test_an_embedded_image_is_never_large(shape):
    # Noise is what no format makes small.
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    content = base64.b64decode(embed(pixels).partition(",")[2])
    assert len(content) <= MOST_BYTES
    assert 2 * MOST_IMAGES * MOST_BYTES * 4 / 3 < 0.8 * PAGE_LIMIT


def test_drawings_are_embedded_without_loss_and_photos_in_fewer_bytes():
    drawing = np.zeros((200, 300, 3), np.uint8)
    drawing[50:100, 60:90] = (255, 0, 0)
    assert embed(drawing).startswith("data:image/png;")
    ramp = np.linspace(0, 200, 300).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 30, (200, 300, 3), dtype=np.uint8)
    assert embed(ramp[None, :, None] + noise).startswith("data:image/jpeg;")


def test_a_page_of_noise_keeps_its_bound(score):
    rows = [(i, 1 + i % 2, BOX) for i in range(1, 15) for _ in range(60)]
    scored = score(14, rows, [(*row, 0.9) for row in rows], 99)
    generator = np.random.default_rng(0)
    for index in range(14):
        noise = generator.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        Image.fromarray(noise).save(scored.data.image_path(index), quality=95)
    document = run_page(RECORD, None, scored)
    assert document.count("<image id=") == MOST_IMAGES
    assert len(document.encode()) < PAGE_LIMIT / 2


@pytest.fixture
def scored(score):
    """The cat is found, the dog is missed, there is no unicorn; one image was not looked at."""
    objects = [(1, 1, BOX), (2, 2, LARGE), (3, 1, LARGE)]
    found = [(1, 1, BOX, 0.9), (2, 1, BOX, 0.3)]
    return score(3, objects, found, evaluated=[1, 2], names=("cat", "dog", "unicorn"))


def test_the_numbers_are_those_of_the_evaluation(scored):
    document = document_of(scored)
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
    # Classes have the colors of the pictures.
    for name, color in (("cat", COLORS[0]), ("dog", COLORS[1])):
        assert re.search(rf'fill="{color}"/></svg><bdi>{name}</bdi>', document)
        assert re.search(rf'stroke="{color}"><title>{name}', document)


def test_another_cap_is_named(scored):
    evaluation = evaluate(scored.data, scored.detections, [1, 2], max_dets=(1, 10, 300))
    document = run_page(RECORD, metrics_dict(evaluation), scored)
    assert "<dt>AR300</dt>" in document and "AR100" not in document


def test_a_section_without_anything_to_show_is_not_there(scored, score):
    assert headings(document_of(scored)) == [*NUMBERS, *PICTURES, *REST]
    without_pictures = document_of(dataclasses.replace(scored, num_drawn=0))
    assert headings(without_pictures) == [*NUMBERS, *REST]
    assert "<image" not in without_pictures
    bare = run_page(RECORD, None, None)
    assert_sound(bare)
    assert headings(bare) == ["What ran"]
    perfect = document_of(
        score(2, [(1, 1, BOX), (2, 2, BOX)], [(1, 1, BOX, 0.9), (2, 2, BOX, 0.9)])
    )
    assert headings(perfect) == [*NUMBERS, "Pictures", "What ran"]


def test_a_test_set_shows_what_was_found(make_data, make_detections):
    data = make_data(1, [], annotations=None)
    found = make_detections(data, [(1, 1, BOX, 0.9)])
    document = run_page(RECORD, None, Scored(data, found, None, 1))
    assert_sound(document)
    assert headings(document) == ["Pictures", "What ran"]
    assert "no annotations to score them by" in document
    assert "Ground truth" not in document


@pytest.mark.parametrize("objects", [[], [(1, 1, BOX)]])
@pytest.mark.parametrize("found", [[], [(1, 1, BOX, 0.9)]])
def test_without_objects_or_detections_there_is_still_a_page(score, objects, found):
    document_of(score(2, objects, found))


def test_curves_of_nothing_but_nan_are_no_error(scored):
    rows = [{"step": n, "loss/class": float("nan"), "lr": 0.1, "AP": None} for n in (1, 2)]
    document = document_of(scored, dataclasses.replace(RECORD, rows=rows))
    assert "class n/a" in document
    assert not re.search('[> "]nan', document)


def test_the_curves_are_text_with_the_last_values_and_the_step_of_the_report(scored):
    rows = [{"step": 20, "loss/class": 1.0, "loss/box": 0.5, "lr": 0.1}]
    rows += [{"step": 40, "loss/class": 0.25, "loss/box": 0.125, "lr": 0.1}]
    rows += [{"step": 40, "AP": 0.3, "AP50": 0.5, "AP75": 0.2}]
    reader = assert_sound(document_of(scored, dataclasses.replace(RECORD, rows=rows)))
    texts = {"class 0.250", "box 0.125", "AP 0.300", "AP50 0.500", "AP75 0.200"}
    texts |= {"this checkpoint: step 20", "IoU 0.50  AP 0.500"}
    assert texts <= set(reader.said("text"))
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
    texts = [*list(causes[0].values()), "They are large.", "AP is 0.3 without"]
    assert all(text in before for text in texts)


def test_warnings_say_what_went_wrong(scored):
    record = dataclasses.replace(
        RECORD,
        settings={"postprocess": {"detections": 1}},
        bad_steps=[{"step": 7, "likely_cause": "training diverges"}, {"step": 9}],
        warnings=[f"warning {n}" for n in range(30)],
    )
    capped = dataclasses.replace(
        scored, detections=dataclasses.replace(scored.detections, num_capped=2)
    )
    box = document_of(capped, record).split("Warnings of this run")[1].split("</aside>")[0]
    for text in (
        "postprocess.detections=1",
        "2 steps had a loss or gradient that is not finite",
        "(step 7, 9)",
        "and 10 more in train.log",
    ):
        assert text in box


@pytest.fixture
def wrong(score):
    """Images: right; cat found as dog; missed; background beside a right one."""
    far = (400.0, 300.0, 60.0, 60.0)
    objects = [(1, 1, BOX), (2, 1, BOX), (3, 2, BOX), (4, 2, BOX)]
    found = [(1, 1, BOX, 0.7), (2, 2, BOX, 0.8), (4, 2, BOX, 0.75), (4, 2, far, 0.85)]
    return score(5, objects, found, 4)


def test_errors_are_counted_by_kind_and_listed(wrong):
    document = document_of(wrong)
    # Name, cost, at the score, at any score, meaning.
    counts = {row[0]: int(row[3]) for row in cells(document, "Errors")}
    none = dict.fromkeys(("localization", "both", "duplicate"), 0)
    assert counts == {"class": 1, "background": 1, "missed": 1, **none}
    assert cells(document, "Confusion") == [
        ["cat", "1", "1", "0"],
        ["dog", "0", "1", "1"],
        ["background", "0", "1", "0"],
    ]
    box = "100, 100, 50, 40"
    assert cells(document, "Annotations to check") == [
        ["4.jpg", "detected where nothing is annotated", "dog", "0.85", "", "400, 300, 60, 60"],
        ["2.jpg", "detected as another class", "dog", "0.80", "cat", box],
        ["3.jpg", "annotated, and nothing is detected there", "", "n/a", "dog", box],
    ]


def test_the_worst_images_come_first_and_right_ones_not_at_all(wrong):
    document = document_of(wrong)
    worst = section(document, "Worst images")
    captions = re.findall("<figcaption><bdi>(.*?)</bdi><span>(.*?)</span>", worst)
    assert captions == [("3.jpg", "1 missed"), ("4.jpg", "1 background"), ("2.jpg", "1 class")]
    first, second, _ = worst.split("</figure>")[:3]
    assert "<title>dog missed</title>" in first
    assert "Objects: 1, missed: 0" in second and "Detections: 2, wrong: 1" in second
    boxes = re.findall(r"<rect [^>]*?(class=\"pale\" [^>]*)?><title>(.*?)</title>", second)
    # What is right is pale and below what is wrong.
    assert [(text, bool(pale)) for pale, text in boxes] == [
        ("dog detected", True),
        ("dog 0.75 right", True),
        ("dog 0.85 background", False),
    ]
    # An image in both galleries is embedded once.
    reader = assert_sound(document)
    names = [name for name in reader.values("id") if name.startswith("image-")]
    assert sorted(names) == ["image-0", "image-1", "image-2", "image-3"]
    assert reader.attributes.count(("use", "href", "#image-1")) == 4


@pytest.mark.parametrize("num_classes", [2, 17])
def test_the_confusion_shows_every_pair_that_occurs(score, num_classes):
    names = [f"{n} {NAMES[0]}" for n in range(num_classes)]
    objects = [(1, 1, (100.0 * n, 100.0, 50.0, 40.0)) for n in range(4)]
    labels = (1, 1, 1, num_classes)
    rows = [(1, label, box, 0.9) for label, (_, _, box) in zip(labels, objects, strict=True)]
    shown = section(document_of(score(1, objects, rows, 0, names=names)), "Confusion")
    if num_classes == 2:
        assert '<td class="number heat-8" title="75.0%">3</td>' in shown
        assert '<td class="number heat-0" title="0.0%">0</td>' in shown
    else:
        assert shown.count('<rect x="') == 2
        assert "3 (75.0%)</title>" in shown
        assert '<rect x="16" y="0"' in shown
