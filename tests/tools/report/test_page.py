"""A page is valid HTML, needs no other file, and shows any text as text."""

import base64
import hashlib
import re
import tomllib
from html.parser import HTMLParser

import numpy as np
import pytest

from retinanet.evaluation.average_precision import evaluate
from retinanet.evaluation.thresholds import find_thresholds
from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.gallery import MOST_BYTES, MOST_IMAGES, embed
from retinanet.tools.report.page import ASSETS, number
from retinanet.tools.report.run_record import Record
from retinanet.tools.report.run_report import run_page
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
BOX = (100.0, 100.0, 50.0, 40.0)
# A page of twelve images, and as many of the worst, stays below this.
PAGE_LIMIT = 5_000_000


class Reader(HTMLParser):
    """Checks that every element is closed in its turn, and keeps what a browser would see."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []  # element, attribute, value
        self.texts: list[tuple[str, str]] = []  # element, text

    def handle_starttag(self, tag, attrs):
        self._note(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._note(tag, attrs)

    def _note(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute of {tag} comes twice: {names}"
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes {self.open[-1]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def said(self, tag: str) -> list[str]:
        return [text for element, text in self.texts if element == tag]


def assert_sound(document: str) -> Reader:
    """Valid, without two ids that are alike, and without a way out of the file."""
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids)), "two elements have the same id"
    for tag, name, value in reader.attributes:
        assert not name.startswith("on"), f"{tag} has a handler"
        assert name != "style", f"{tag} has a style, which the policy forbids"
        if name in ("href", "src", "srcset", "data", "action", "xlink:href", "background"):
            assert value.startswith(("#", "data:")), f"{tag} {name} leads to {value[:80]}"
        if name in ("href", "xlink:href") and value.startswith("#"):
            assert value[1:] in reader.ids, f"{value} leads nowhere"
    assert len(reader.said("script")) == len(reader.said("style")) == 1
    assert not re.search(r"@import|url\s*\(", reader.said("style")[0])
    return reader


@pytest.fixture
def page_of(make_data, make_detections):
    """The page of a run with every section, in which all texts of users are the given one."""

    def make(text: str) -> str:
        file_name = re.sub("[/\x00-\x1f\ud800]", "", text)[:100] + ".jpg"
        images = [{"id": 1, "file_name": file_name, "width": 640, "height": 480}]
        name = text.replace("\ud800", "")  # an annotation file cannot have it
        names = [name, *(f"{n} {name}" for n in range(1, 14))]
        data = make_data(1, [(1, 1, BOX), (1, 2, (300.0, 200.0, 90.0, 90.0))], names, images=images)
        found = make_detections(data, [(1, 1, BOX, 0.9), (1, 2, BOX, 0.7), (1, 3, BOX, 0.6)])
        scored = Scored(data, found, evaluate(data, found, [1]), num_drawn=1)
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
        metrics = metrics_dict(scored.evaluation, find_thresholds(data, found))
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


def test_what_is_unsound_is_noticed():
    with pytest.raises(AssertionError, match="closes"):
        assert_sound("<p><b></p></b>")
    with pytest.raises(AssertionError, match="leads to"):
        assert_sound('<img src="https://example.org/x.png">')


def test_only_the_own_script_and_style_may_run_and_nothing_may_be_loaded(page_of):
    document = page_of("text")
    reader = assert_sound(document)
    (policy,) = [v for t, n, v in reader.attributes if t == "meta" and "default-src" in v]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for element, rule in (("script", "script-src"), ("style", "style-src")):
        (text,) = reader.said(element)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert "http:" not in document
    assert "https:" not in document


def test_the_same_content_makes_the_same_bytes(page_of):
    assert page_of("a") == page_of("a")


def test_every_section_is_linked(page_of):
    reader = assert_sound(page_of("text"))
    assert len(reader.said("h2")) == 12
    assert [text for text in reader.said("a")] == reader.said("h2")
    links = [value for tag, name, value in reader.attributes if tag == "a" and name == "href"]
    sections = [v for tag, name, v in reader.attributes if tag == "section" and name == "id"]
    assert links == [f"#{name}" for name in sections]


def test_tables_have_aligned_numbers_an_order_and_where_long_a_filter(page_of):
    document = page_of("text")
    classes = document.split('id="classes"')[1].split("</section>")[0]
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


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [(None, 3, "n/a"), (float("nan"), 3, "n/a"), (0.0005, 3, "0.001"), (12345, 0, "12,345")],
)
def test_a_number_has_its_digits(value, digits, shown):
    assert number(value, digits) == shown


def test_template_style_and_script_are_installed_with_the_package():
    settings = tomllib.loads((ASSETS.parents[2] / "pyproject.toml").read_text())
    files = settings["tool"]["setuptools"]["package-data"]["retinanet.tools.report"]
    assert set(files) == {p.name for p in ASSETS.iterdir() if p.suffix in (".css", ".js", ".j2")}


@pytest.mark.parametrize("shape", [(1200, 1800), (2000, 40), (40, 2000), (1, 1)])
def test_an_embedded_image_is_never_large(shape):
    # Noise is what no format makes small.
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    uri = embed(pixels)
    content = base64.b64decode(uri.partition(",")[2])
    assert len(content) <= MOST_BYTES
    assert 2 * MOST_IMAGES * MOST_BYTES * 4 / 3 < 0.8 * PAGE_LIMIT


def test_drawings_are_embedded_without_loss_and_photos_in_fewer_bytes():
    drawing = np.zeros((200, 300, 3), np.uint8)
    drawing[50:100, 60:90] = (255, 0, 0)
    assert embed(drawing).startswith("data:image/png;")
    ramp = np.linspace(0, 200, 300).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 30, (200, 300, 3), dtype=np.uint8)
    assert embed(ramp[None, :, None] + noise).startswith("data:image/jpeg;")
