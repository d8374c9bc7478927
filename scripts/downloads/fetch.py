"""A file from the net: continued after an interruption, checked, and there when it is whole."""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from retinanet.atomic import write_whole
from retinanet.terminal import has_bar

# Bytes that are read at once.
CHUNK = 1 << 20
# Seconds without a byte after which a connection counts as broken.
TIMEOUT = 60
# Connections in a row that bring nothing new before giving up, and seconds between them.
ATTEMPTS = 4
WAITS = (1, 5, 20)

# What a connection that breaks raises.
BROKEN = (http.client.HTTPException, ConnectionError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file must be."""

    size: int  # bytes
    md5: str  # hex


def fetch(url: str, target: Path, expected: Expected, waits: tuple[float, ...] = WAITS) -> None:
    """Bring a file to ``target``, which appears when it is whole and checked.

    What has come so far is in ``target`` with ``.partial`` added, and what the server called that
    file, beside it. The next call goes on from there if the server still has the same file (its
    ETag, or its date), and begins anew if not.

    Args:
        url: ``http:``, ``https:`` or ``file:``.
        target: not there yet; its folder is.
        expected: size and checksum.
        waits: seconds before another attempt, ``ATTEMPTS - 1`` of them.

    Raises:
        ValueError: another protocol; the server's file has another size or checksum.
        FileNotFoundError: the server has no such file.
        ConnectionError: no connection, or one that broke too often; calling again goes on.
        OSError: the disk is full, or not writable.
    """
    if not url.startswith(("http://", "https://", "file://")):
        raise ValueError(
            f"{url} is not an address; it must begin with http://, https:// or file://."
        )
    partial = target.with_name(f"{target.name}.partial")
    failures, reached = 0, False
    while _size(partial) < expected.size:
        before = _size(partial)
        cause = _try(url, partial, expected)
        if _size(partial) >= expected.size:
            break
        progress = _size(partial) > before
        reached |= progress or cause.reached
        failures = 0 if progress else failures + 1
        # What was never reached is probably mistyped, or there is no network: no use in waiting.
        if failures >= ATTEMPTS or not reached:
            raise ConnectionError(
                f"cannot read {url}: {cause.text}; {_size(partial)} of {expected.size} bytes are "
                f"there. Check the network; the same command goes on."
            )
        time.sleep(waits[failures - 1] if failures else 0)
    _check(url, partial, expected)
    partial.replace(target)
    _record(partial).unlink(missing_ok=True)


class _Cause(NamedTuple):
    """Why a connection ended before the file did."""

    text: str
    reached: bool  # a server answered


def _try(url: str, partial: Path, expected: Expected) -> _Cause:
    """One connection, whatever becomes of it."""
    try:
        _receive(url, partial, expected)
    except urllib.error.HTTPError as error:
        _refuse_for_good(url, error)
        if error.code == 416:  # there is no such byte: the file became shorter
            _record(partial).unlink(missing_ok=True)
        return _Cause(f"it answers {error.code} {error.reason}", reached=True)
    except urllib.error.URLError as error:
        return _Cause(str(error.reason), reached=False)
    except BROKEN as error:
        return _Cause(str(error) or type(error).__name__, reached=True)
    return _Cause("the connection broke", reached=True)


def _receive(url: str, partial: Path, expected: Expected) -> None:
    """One connection: append what it brings, until it ends."""
    known = _known(partial, url)
    have = _size(partial) if known else 0
    request = urllib.request.Request(url, headers={"User-Agent": "retinanet-download"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", known["validator"])
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        headers = answer.headers
        start, total = _extent(answer, have)
        if total is not None and total != expected.size:
            raise ValueError(
                f"{url} has {total} bytes, the published file {expected.size}; the server has "
                f"another file or a message instead of one. Choose another --source."
            )
        if not start:
            _record(partial).unlink(missing_ok=True)  # until the bytes are those of the new file
        with partial.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            if not start:
                _remember(partial, url, headers)
            _copy(answer.read, file.write, start, expected.size, partial.name)


def _extent(answer: Any, have: int) -> tuple[int, int | None]:
    """Where the bytes of an answer begin, and how many the whole file has if it says so."""
    if answer.status == 206:
        unit, _, rest = (answer.headers.get("Content-Range") or "").partition(" ")
        where, _, total = rest.partition("/")
        first = where.partition("-")[0]
        if unit != "bytes" or first != str(have):
            raise http.client.HTTPException(f"asked for byte {have}, it sends {unit} {rest}")
        return have, int(total) if total.isdecimal() else None
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _copy(
    read: Callable[[int], bytes], write: Callable[[bytes], Any], start: int, size: int, name: str
) -> None:
    """All bytes that come, at most to ``size``, with a bar on a terminal."""
    with _bar(name.removesuffix(".partial"), size, start) as bar:
        while start < size and (part := read(min(CHUNK, size - start))):
            write(part)
            start += len(part)
            bar.update(len(part))


def _bar(name: str, size: int, start: int = 0) -> tqdm:
    return tqdm(
        desc=name,
        total=size,
        initial=start,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=not has_bar(),
    )


def _refuse_for_good(url: str, error: urllib.error.HTTPError) -> None:
    """Raise for answers that no further attempt would change."""
    if error.code in (404, 410):
        raise FileNotFoundError(f"there is no {url} ({error.code}); check --source.") from None
    if error.code < 500 and error.code not in (408, 416, 429):
        raise ConnectionError(f"{url} answers {error.code} {error.reason}.") from None


def _check(url: str, partial: Path, expected: Expected) -> None:
    """Refuse and remove a file that is not the published one."""
    size = _size(partial)
    md5 = hashlib.md5(usedforsecurity=False)
    with partial.open("rb") as file:
        _copy(file.read, md5.update, 0, size, f"check {partial.name}")
    if size == expected.size and md5.hexdigest() == expected.md5:
        return
    partial.unlink()
    _record(partial).unlink(missing_ok=True)
    raise ValueError(
        f"what came from {url} is not the published file: {size} bytes with md5 {md5.hexdigest()}, "
        f"not {expected.size} with {expected.md5}. It was removed; try again or choose another "
        f"--source."
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _record(partial: Path) -> Path:
    """Beside the bytes: whose they are."""
    return partial.with_name(f"{partial.name}.json")


def _remember(partial: Path, url: str, headers: Any) -> None:
    """What names this version of the file; a weak ETag does not, by RFC 9110, section 13.1.5."""
    etag = headers.get("ETag") or ""
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if validator:
        write_whole(_record(partial), json.dumps({"url": url, "validator": validator}))


def _known(partial: Path, url: str) -> dict[str, str] | None:
    """Whose the bytes are that are there; None: nobody knows, so they are worth nothing."""
    try:
        known = json.loads(_record(partial).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    mine = isinstance(known, dict) and known.get("url") == url
    return known if mine and isinstance(known.get("validator"), str) else None
