"""download_coco against servers that continue, do not, break off, lie, or are not there."""

import hashlib
import http.server
import io
import re
import threading
import zipfile
from pathlib import Path

import pytest

from scripts import download_coco
from scripts.download_coco import PARTS, Part, main
from scripts.downloads import fetch as fetching
from scripts.downloads.fetch import Expected, fetch
from scripts.downloads.unpack import unpack

CONTENT = bytes(range(256)) * 1200  # 307,200 bytes
NO_WAITS = (0, 0, 0)


def expected_of(content: bytes) -> Expected:
    return Expected(len(content), hashlib.md5(content, usedforsecurity=False).hexdigest())


class Server:
    """Serves ``files`` on the loopback; its fields say how badly. ``asked`` keeps what was sent."""

    def __init__(self) -> None:
        self.files = {"/a.zip": CONTENT}
        self.etag = '"1"'
        self.ranges = True
        self.break_after = None  # bytes of each answer
        self.claims = None  # Content-Length
        self.status = None
        self.asked: list[dict[str, str]] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, to: http.server.BaseHTTPRequestHandler) -> None:
        self.asked.append(dict(to.headers))
        content = self.files.get(to.path)
        if content is None or self.status:
            to.send_error(self.status or 404)
            return
        start, wanted = 0, to.headers.get("Range")
        if wanted and self.ranges and to.headers.get("If-Range") == self.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(content):
                to.send_error(416)
                return
            to.send_response(206)
            to.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            to.send_response(200)
        body = content[start:]
        to.send_header("Content-Length", str(self.claims or len(body)))
        if self.etag:
            to.send_header("ETag", self.etag)
        to.end_headers()
        to.wfile.write(body[: self.break_after])


@pytest.fixture
def server():
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def bring(server, target, content=CONTENT):
    fetch(f"{server.url}/a.zip", target, expected_of(content), NO_WAITS)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_comes_whole_and_leaves_nothing_else(server, tmp_path):
    bring(server, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert names_in(tmp_path) == ["a.zip"]


def test_a_broken_connection_is_continued_where_it_broke(server, tmp_path):
    server.break_after = 100_000
    bring(server, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert [asked.get("Range") for asked in server.asked] == [
        None,
        "bytes=100000-",
        "bytes=200000-",
        "bytes=300000-",
    ]
    assert {asked.get("If-Range") for asked in server.asked[1:]} == {'"1"'}


def interrupt(server, target):
    """A first call that ends after 100,000 bytes."""
    server.break_after = 100_000
    server.files["/a.zip"] = CONTENT
    original = fetching._receive

    def once(*given):
        original(*given)
        raise KeyboardInterrupt

    fetching._receive = once
    try:
        with pytest.raises(KeyboardInterrupt):
            bring(server, target)
    finally:
        fetching._receive = original
    server.break_after = None
    server.asked.clear()


def test_the_next_call_goes_on(server, tmp_path):
    interrupt(server, tmp_path / "a.zip")
    assert names_in(tmp_path) == ["a.zip.partial", "a.zip.partial.json"]
    bring(server, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert [asked["Range"] for asked in server.asked] == ["bytes=100000-"]


def test_a_file_that_changed_meanwhile_starts_anew(server, tmp_path):
    interrupt(server, tmp_path / "a.zip")
    changed = CONTENT[::-1]
    server.files["/a.zip"], server.etag = changed, '"2"'
    bring(server, tmp_path / "a.zip", changed)
    assert (tmp_path / "a.zip").read_bytes() == changed
    assert len(server.asked) == 1


@pytest.mark.parametrize("what", ["no range", "no name", "weak name", "another address"])
def test_what_cannot_be_continued_safely_starts_anew(server, tmp_path, what):
    if what == "no name":
        server.etag = None
    if what == "weak name":
        server.etag = 'W/"1"'
    interrupt(server, tmp_path / "a.zip")
    if what == "no range":
        server.ranges = False
    url = f"{server.url}/a.zip"
    if what == "another address":
        server.files["/b.zip"], url = CONTENT, f"{server.url}/b.zip"
    fetch(url, tmp_path / "a.zip", expected_of(CONTENT), NO_WAITS)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert (server.asked[0].get("Range") is not None) == (what == "no range")


def test_a_server_that_sends_other_bytes_than_asked_for_is_not_believed(
    server, tmp_path, monkeypatch
):
    interrupt(server, tmp_path / "a.zip")

    def wrong(to):
        server.asked.append(dict(to.headers))
        to.send_response(206)
        to.send_header("Content-Range", f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}")
        to.end_headers()
        to.wfile.write(CONTENT)

    monkeypatch.setattr(server, "answer", wrong)
    with pytest.raises(ConnectionError, match="asked for byte 100000, it sends bytes 0-"):
        bring(server, tmp_path / "a.zip")
    assert (tmp_path / "a.zip.partial").stat().st_size == 100_000


def test_another_length_is_refused_before_anything_is_written(server, tmp_path):
    server.files["/a.zip"] = b"please log in"
    with pytest.raises(ValueError, match="has 13 bytes, the published file 307200"):
        bring(server, tmp_path / "a.zip")
    assert names_in(tmp_path) == []


def test_a_server_that_promises_more_than_it_sends_is_given_up(server, tmp_path):
    server.files["/a.zip"] = CONTENT[:1000]
    server.claims = len(CONTENT)
    with pytest.raises(ConnectionError, match="1000 of 307200 bytes are there"):
        bring(server, tmp_path / "a.zip")
    assert len(server.asked) <= 2 * fetching.ATTEMPTS


def test_other_content_of_the_same_length_is_removed(server, tmp_path):
    server.files["/a.zip"] = CONTENT[::-1]
    with pytest.raises(ValueError, match="not the published file: 307200 bytes with md5"):
        bring(server, tmp_path / "a.zip")
    assert names_in(tmp_path) == []


def test_a_file_that_is_not_there_is_said_at_once(server, tmp_path):
    server.files.clear()
    with pytest.raises(FileNotFoundError, match=r"there is no http.*a.zip \(404\)"):
        bring(server, tmp_path / "a.zip")
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.status = 503
    with pytest.raises(ConnectionError, match="answers 503"):
        bring(server, tmp_path / "a.zip")
    assert len(server.asked) == fetching.ATTEMPTS


def test_a_forbidden_file_is_not_asked_for_again(server, tmp_path):
    server.status = 403
    with pytest.raises(ConnectionError, match="answers 403"):
        bring(server, tmp_path / "a.zip")
    assert len(server.asked) == 1


def test_without_network_it_says_so_at_once(tmp_path):
    with pytest.raises(ConnectionError, match="0 of 307200 bytes are there. Check the network"):
        fetch("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", expected_of(CONTENT), (9, 9, 9))


def test_a_file_url_is_copied_and_a_missing_one_named(tmp_path):
    (tmp_path / "source.zip").write_bytes(CONTENT)
    fetch((tmp_path / "source.zip").as_uri(), tmp_path / "a.zip", expected_of(CONTENT))
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    with pytest.raises(ConnectionError, match="none.zip"):
        fetch((tmp_path / "none.zip").as_uri(), tmp_path / "b.zip", expected_of(CONTENT))


def test_other_protocols_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must begin with http"):
        fetch("ftp://x/a.zip", tmp_path / "a.zip", expected_of(CONTENT))


# Unpacking


def zipped(files: dict[str, bytes], change=None) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as made:
        for name, content in files.items():
            member = zipfile.ZipInfo(name)
            if change:
                change(member)
            made.writestr(member, content)
    return memory.getvalue()


def write_zip(root: Path, files: dict[str, bytes], change=None) -> Path:
    (root / "a.zip").write_bytes(zipped(files, change))
    return root / "a.zip"


def test_files_that_are_there_in_full_stay_and_others_come(tmp_path):
    archive = write_zip(tmp_path, {"val/1.jpg": b"one", "val/2.jpg": b"two", "val/3.jpg": b"three"})
    (tmp_path / "val").mkdir()
    (tmp_path / "val/1.jpg").write_bytes(b"ONE")
    (tmp_path / "val/2.jpg").write_bytes(b"t")
    assert unpack(archive, tmp_path, "val") == 2
    found = {path.name: path.read_bytes() for path in (tmp_path / "val").iterdir()}
    assert found == {"1.jpg": b"ONE", "2.jpg": b"two", "3.jpg": b"three"}


def make_link(member: zipfile.ZipInfo) -> None:
    member.external_attr = 0o120777 << 16


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("../evil.jpg", None, "does not lie in val"),
        ("val/../../evil.jpg", None, "does not lie in val"),
        ("/etc/evil.jpg", None, "does not lie in val"),
        ("val\\..\\..\\evil.jpg", None, "does not lie in val"),
        ("other/1.jpg", None, "does not lie in val"),
        ("val/link.jpg", make_link, "is a link"),
    ],
)
def test_an_archive_with_a_member_that_would_go_elsewhere_is_not_touched(
    tmp_path, name, change, problem
):
    archive = write_zip(tmp_path, {"val/1.jpg": b"one", name: b"/etc/passwd"}, change)
    with pytest.raises(ValueError, match=problem):
        unpack(archive, tmp_path, "val")
    assert names_in(tmp_path) == ["a.zip"]


def test_a_damaged_file_does_not_appear(tmp_path):
    archive = write_zip(tmp_path, {"val/1.jpg": b"one", "val/2.jpg": b"two" * 9})
    archive.write_bytes(archive.read_bytes().replace(b"two", b"TWO", 1))
    with pytest.raises(ValueError, match="a.zip is damaged: Bad CRC-32"):
        unpack(archive, tmp_path, "val")
    assert names_in(tmp_path / "val") == ["1.jpg"]
    archive.write_bytes(b"no zip")
    with pytest.raises(ValueError, match="is damaged"):
        unpack(archive, tmp_path, "val")


def test_a_disk_without_room_for_the_files_is_refused(tmp_path, monkeypatch):
    archive = write_zip(tmp_path, {"val/1.jpg": b"one" * 100})
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 299}))
    with pytest.raises(OSError, match="unpacking a.zip needs"):
        unpack(archive, tmp_path, "val")


# The command


@pytest.fixture
def coco(server):
    """A server with three small archives, and the parts they are."""
    images = {name: {f"{name}/{i}.jpg": b"x" * i for i in (1, 2)} for name in ("train", "val")}
    names = ["annotations/instances.json", "annotations/captions.json"]
    contents = {
        "zips/train.zip": zipped(images["train"]),
        "zips/val.zip": zipped(images["val"]),
        "annotations/both.zip": zipped(dict.fromkeys(names, b"{}")),
    }
    server.files = {f"/{path}": content for path, content in contents.items()}
    expected = {path: expected_of(content) for path, content in contents.items()}
    return {
        "train": Part("zips/train.zip", expected["zips/train.zip"], 3, num_images=2),
        "val": Part("zips/val.zip", expected["zips/val.zip"], 3, num_images=2),
        "annotations": Part(
            "annotations/both.zip", expected["annotations/both.zip"], 4, files={names[0]: 2}
        ),
    }


def test_everything_is_brought_then_skipped(server, coco, tmp_path, capsys):
    root = tmp_path / "coco"
    assert main([str(root), "--source", server.url], coco) == 0
    assert names_in(root) == ["annotations", "both.zip", "train", "train.zip", "val", "val.zip"]
    assert (root / "train/2.jpg").read_bytes() == b"xx"
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"python train.py data=coco data.root={root}"
    server.asked.clear()
    assert main([str(root), "--source", server.url], coco) == 0
    assert server.asked == []
    assert "train: complete" in capsys.readouterr().out


def test_parts_are_chosen_and_archives_removed(server, coco, tmp_path, capsys):
    typed = [str(tmp_path), "--source", f"{server.url}/", "--parts", "val", "--remove-archives"]
    assert main(typed, coco) == 0
    assert names_in(tmp_path) == ["val"]
    assert "train.py" not in capsys.readouterr().out


def test_an_unfinished_unpacking_is_finished_without_downloading(server, coco, tmp_path):
    assert main([str(tmp_path), "--source", server.url], coco) == 0
    (tmp_path / "val/2.jpg").write_bytes(b"")
    server.asked.clear()
    assert main([str(tmp_path), "--source", server.url], coco) == 0
    assert (tmp_path / "val/2.jpg").read_bytes() == b"xx"
    assert server.asked == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("404", "FileNotFoundError: there is no http"),
        ("no network", "ConnectionError: cannot read http://127.0.0.1:9/zips/train.zip"),
        ("full disk", "OSError: [Errno 28] No space left on device"),
        ("no room", "has 0 MB free, train, val, annotations need 0 MB"),
        ("root is a file", "FileExistsError"),
    ],
)
def test_every_failure_is_one_line(server, coco, tmp_path, monkeypatch, capsys, fault, said):
    source, root = server.url, tmp_path / "coco"
    if fault == "404":
        server.files.clear()
    if fault == "no network":
        source = "http://127.0.0.1:9"
    if fault == "full disk":
        monkeypatch.setattr(fetching, "_copy", full)
    if fault == "no room":
        monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    if fault == "root is a file":
        root.write_text("")
    assert main([str(root), "--source", source], coco) == 1
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1


def full(*_):
    raise OSError(28, "No space left on device")


def test_ctrl_c_is_one_line_and_status_130(coco, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(download_coco, "fetch", interrupted)
    assert main([str(tmp_path)], coco) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on.\n"


def test_room_is_counted_for_what_is_still_to_come(tmp_path, monkeypatch):
    part = Part("zips/val.zip", Expected(1000, ""), 900, num_images=1)
    free = 0
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free}))

    def needs(**options):
        nonlocal free
        for free in range(0, 5000, 100):
            try:
                download_coco.check_space(tmp_path, {"val": part, "again": part}, **options)
            except OSError:
                continue
            return free
        return None

    assert needs(remove=False) == 2 * (1000 + 900)
    assert needs(remove=True) == 900 + 1000 + 900
    (tmp_path / "val.zip.partial").write_bytes(b"x" * 400)
    assert needs(remove=False) == 2 * (600 + 900)
    (tmp_path / "val").mkdir()
    (tmp_path / "val/1.jpg").write_bytes(b"x" * 300)
    assert needs(remove=False) == 2 * (600 + 900) - 300


def test_the_published_parts_are_those_of_data_coco():
    from retinanet.cli.main import composer

    with composer("train") as reader:
        data = reader.command(["data=coco"]).settings.data
    assert {data.train_images, data.val_images, "annotations"} == set(PARTS)
    assert {data.train_annotations, data.val_annotations} == set(PARTS["annotations"].files)
