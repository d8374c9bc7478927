"""A page in Chromium: its script works, nothing is complained of, and nothing leaves the file."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from retinanet.tools.diagnose.scored import Scored
from retinanet.tools.report.run_record import Record
from retinanet.tools.report.run_report import run_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--hide-scrollbars", "--enable-logging=stderr"),
]
SECONDS = 120
# Of every picture in these pages.
BLUE = (0x1F, 0x6F, 0xB4)
TITLE = "<script>document.title = 'broken'</script>"

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="needs Chromium: apt install chromium, or any Chrome in the PATH"
)


@pytest.fixture
def page(make_data, make_detections) -> str:
    """Curves, a long table of classes, and two images with a box each."""
    rows = [("cat 10", 3, 0.2), ("cat 9", 20, None), ("dog", 1000, 0.7), ("ant", 1, 0.05)]
    rows += [(f"zebra {n}", 0, None) for n in range(20)]
    names = ("AP", "AP50", "AP75", "AR100")
    classes = [
        {"name": name, "num_gt": count, "num_detections": 0} | dict.fromkeys(names, AP)
        for name, count, AP in rows
    ]
    keys = (*names, "APs", "APm", "APl", "ARs", "ARm", "ARl")
    about = {"num_images": 2, "num_gt": 1, "num_detections": 2, "backend": "fast"}
    metrics = dict.fromkeys(keys, 0.5) | about | {"max_dets": [1, 10, 100], "classes": classes}
    images = [{"id": n, "file_name": f"{n}.png", "width": 80, "height": 60} for n in (1, 2)]
    data = make_data(2, [], annotations=None, images=images)
    for n in range(2):
        Image.new("RGB", (80, 60), BLUE).save(data.image_path(n))
    boxes = [(n, 1, (5.0, 5.0, 20.0, 20.0), 0.9) for n in (1, 2)]
    scored = Scored(data, make_detections(data, boxes), None, num_drawn=2)
    curves = [{"step": n, "loss/class": 1 / n, "loss/box": 0.5, "lr": 0.1} for n in (1, 2)]
    return run_page(Record("Test", TITLE, "best.pt", 2, rows=curves), metrics, scored)


def browse(document: str, folder, *flags: str) -> tuple[str, str]:
    """What Chromium writes for a page: its DOM, and complaints on the console."""
    path = folder / "page.html"
    path.write_text(document, encoding="utf-8")
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={folder / 'browser'}", *flags, path.as_uri()],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


SORT = """
const order = () => Array.from(document.querySelectorAll('#classes tbody tr'), (row) =>
  row.cells[0].textContent).slice(0, 4);
const heads = Array.from(document.querySelectorAll('#classes thead th'));
const press = (place) => heads[place].querySelector('button').click();
answers.before = order(); answers.says = heads[2].ariaSort;
press(2); answers.up = order(); answers.then = heads[2].ariaSort;
press(2); answers.down = order();
press(1); answers.objects = order(); answers.other = heads[2].ariaSort;
press(0); answers.names = order();
answers.keyboard = heads[0].querySelector('button').tabIndex; answers.title = document.title
"""
SORTED = {
    "before": ["dog", "cat 10", "ant", "cat 9"],
    "says": "descending",
    "up": ["ant", "cat 10", "dog", "cat 9"],  # what is not defined stays last
    "then": "ascending",
    "down": ["dog", "cat 10", "ant", "cat 9"],
    "objects": ["dog", "cat 9", "cat 10", "ant"],
    "other": None,
    "names": ["ant", "cat 9", "cat 10", "dog"],  # numbers in names count as numbers
    "keyboard": 0,
    "title": TITLE,
}
FILTER = """
const order = () => Array.from(document.querySelectorAll('#classes tbody tr:not([hidden])'),
  (row) => row.cells[0].textContent);
const box = document.querySelector('.filter input');
answers.visible = !box.closest('.filter').hidden;
box.value = ' CAT'; box.dispatchEvent(new Event('input'));
answers.shown = order(); answers.count = document.querySelector('.filter output').textContent;
box.value = ''; box.dispatchEvent(new Event('input')); answers.all = order().length
"""
FILTERED = {"visible": True, "shown": ["cat 10", "cat 9"], "count": "2 of 24", "all": 24}
ENLARGE = """
const dialog = document.querySelector('dialog');
const title = () => dialog.querySelector('figcaption').textContent.trim();
const key = (name) => dialog.dispatchEvent(new KeyboardEvent('keydown', {key: name}));
document.querySelector('.exhibit button').click();
answers.open = dialog.open; answers.titles = [title()];
for (const name of ['ArrowRight', 'ArrowRight', 'ArrowLeft']) {
  key(name); answers.titles.push(title());
}
dialog.click(); answers.closed = !dialog.open
"""
ENLARGED = {"open": True, "titles": ["1.png", "2.png", "2.png", "1.png"], "closed": True}


@pytest.mark.parametrize(
    ("script", "expected"), [(SORT, SORTED), (FILTER, FILTERED), (ENLARGE, ENLARGED)]
)
def test_tables_are_sorted_and_filtered_and_pictures_enlarged(page, tmp_path, script, expected):
    # One more script in the page, which its policy is made to allow.
    code = (
        f"{{const answers = {{}};{script};document.body.dataset.answers = JSON.stringify(answers)}}"
    )
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    permitted = page.replace("script-src ", f"script-src &#x27;sha256-{digest}&#x27; ")
    assert permitted != page
    permitted = permitted.replace("</body>", f"<script>{code}</script></body>")
    dom, complaints = browse(permitted, tmp_path, "--dump-dom")
    assert complaints == ""
    (found,) = re.findall(r'data-answers="([^"]*)"', dom)
    assert json.loads(html.unescape(found)) == expected


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_a_page_is_drawn_without_complaint(page, tmp_path, scheme, width):
    _, complaints = browse(
        page,
        tmp_path,
        f"--screenshot={tmp_path / 'shot.png'}",
        f"--window-size={width},3600",
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
    )
    assert complaints == ""
    with Image.open(tmp_path / "shot.png") as shot:
        pixels = np.asarray(shot.convert("RGB"))
    assert pixels.shape[:2] == (3600, width)
    assert (pixels[0, 0].mean() > 200) == (scheme == "light")
    # The embedded images are seen, through their references.
    assert (pixels == BLUE).all(axis=2).sum() > 20_000


def test_nothing_but_the_own_script_runs_and_nothing_is_loaded(page, tmp_path):
    """Markup that got into the page by a mistake of ours would still do nothing."""
    smuggled = (
        "<script>document.body.dataset.smuggled = 'ran'</script>"
        "<img src=x onerror=\"document.body.dataset.smuggled = 'ran'\">"
        '<img src="https://example.org/x.png"><link rel=stylesheet href="https://example.org/x.css">'
    )
    dom, complaints = browse(page.replace("</main>", f"{smuggled}</main>"), tmp_path, "--dump-dom")
    assert "data-smuggled" not in dom
    for directive in ("script-src", "img-src", "style-src"):
        assert re.search(f"violates.*{directive}", complaints), directive
