"""Terminal output: width, color, line wrapping, and errors in one line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import unicodedata
from typing import TextIO

# Columns where nothing says how many there are: what terminals have had since 1978 (VT100).
DEFAULT_WIDTH = 80
# Lines of the log begin with a word or two, filled up to this column: "lr         0.01".
LABELS = 11
LABEL = re.compile(r"(?=\S)[^:=]{1,10} +(?=\S)")
# Commands are for copying into a shell: the terminal breaks them, without a new line.
COMMANDS = ("python ", "tensorboard ")
# Where a line goes on that begins without such a word.
HANGING = 2
# Codes of ECMA-48, which every terminal with color knows.
STYLES = {"red": 31, "green": 32, "yellow": 33}
# What a user can cause: one line, no traceback. Everything else is a mistake of ours.
# OSError: missing, unreadable, a full disk. MemoryError: of the GPU.
MISTAKES = (ValueError, OSError, FloatingPointError, MemoryError)
# Exit status after ctrl-c.
INTERRUPTED = 130


def width(stream: TextIO | None = None) -> int:
    """Columns of the terminal that ``stream`` (stdout) is; ``DEFAULT_WIDTH`` where it is none."""
    stream = sys.stdout if stream is None else stream
    # Streams that tests and notebooks put in place have no file number.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_WIDTH
    return DEFAULT_WIDTH


def has_bar() -> bool:
    """Whether progress is a bar that redraws its line.

    Both streams must be terminals that can do that: the bar is on stderr, and lines of stdout that
    arrive late, through ``tee``, would run into it.
    """
    return os.environ.get("TERM") != "dumb" and sys.stdout.isatty() and sys.stderr.isatty()


def has_color(stream: TextIO) -> bool:
    """Whether text on ``stream`` may be colored.

    ``NO_COLOR`` and ``FORCE_COLOR`` decide where they are set and not empty, in that order, as in
    Python itself; sources: no-color.org, force-color.org.
    """
    for name, answer in (("NO_COLOR", False), ("FORCE_COLOR", True)):
        if os.environ.get(name):
            return answer
    return os.environ.get("TERM", "dumb") != "dumb" and stream.isatty()


def paint(text: str, style: str, stream: TextIO) -> str:
    """``text`` in a color of ``STYLES`` where ``stream`` may have some."""
    return f"\033[{STYLES[style]}m{text}\033[0m" if has_color(stream) else text


def paint_start(text: str, start: str, style: str, stream: TextIO) -> str:
    """``text`` of which the beginning ``start`` has a color."""
    return paint(start, style, stream) + text.removeprefix(start)


def lay_out(text: str, stream: TextIO) -> str:
    """Lines broken between words for the terminal that ``stream`` is; a file gets them whole."""
    if not stream.isatty():
        return text
    columns = width(stream)
    return "\n".join(part for line in text.split("\n") for part in wrap(line, columns))


def wrap(line: str, columns: int) -> list[str]:
    """A line as lines of at most ``columns``; the later ones begin under the text of the first.

    Words that are longer, as paths are, stay whole for whoever copies them. So do the gaps between
    the words of a line.
    """
    label = LABEL.match(line)
    labelled = label is not None and label.end() == LABELS
    is_command = labelled and line.startswith(COMMANDS, LABELS)
    if count_columns(line) <= columns or is_command:
        return [line]
    under_label = labelled or line.startswith(" " * LABELS)
    indent = " " * (LABELS if under_label else HANGING)
    first, *words = re.findall(r"\s*\S+\s*", line[label.end() :] if labelled else line)
    lines = [(line[: label.end()] if labelled else "") + first]
    for word in words:
        length = count_columns(word.rstrip())
        # A word that is too long for any line may as well begin on this one.
        if count_columns(lines[-1]) + length <= columns or length > columns - len(indent):
            lines[-1] += word
        else:
            lines.append(indent + word)
    return [part.rstrip() for part in lines]


def count_columns(text: str) -> int:
    """Columns that a line fills: han, kana and hangul two for each letter, accents none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def fit(name: str, columns: int) -> str:
    """A name cut or filled to exactly ``columns``, on one line."""
    name = "".join(c if c.isprintable() else "?" for c in name)
    if count_columns(name) > columns:
        while count_columns(name) > columns - 3:
            name = name[:-1]
        name += "..."
    return name + " " * (columns - count_columns(name))


def count(number: int, what: str) -> str:
    """``1 box``, ``2 boxes``."""
    plural = f"{what}es" if what.endswith(("x", "ss")) else f"{what}s"
    return f"{number} {what if number == 1 else plural}"


def show(text: str, stream: TextIO | None = None) -> int:
    """Write to the screen; a reader that closes early, as ``head`` does, is no mistake.

    Args:
        text: letters that the stream's encoding lacks, as a name may have, become their codes.
        stream: None: stdout.

    Returns:
        0, the exit status of a program whose work this is.
    """
    stream = sys.stdout if stream is None else stream
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        stream.write(text.rstrip("\n") + "\n")
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 0


def complain(error: BaseException) -> None:
    """Print an error on stderr: its kind and its message."""
    rank = os.environ.get("RANK", "0")
    where = f"[rank {rank}] " if rank != "0" else ""
    line = lay_out(where + one_line(error), sys.stderr)
    start = f"{where}{type(error).__name__}:"
    sys.stderr.write(paint_start(line, start, "red", sys.stderr) + "\n")


def one_line(error: BaseException) -> str:
    """The kind of an error and its message."""
    message = str(error)
    if "Original Traceback" in message:  # from a loader process: the last line is the error
        message = message.strip().splitlines()[-1].partition(": ")[2]
    return f"{type(error).__name__}: {' '.join(message.split())}"
