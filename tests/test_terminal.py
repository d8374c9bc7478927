"""Output on terminals of some width, on dumb ones, and in files."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading

import pytest
from small_runs import train, write_split

from retinanet import terminal
from retinanet.terminal import count_columns, fit, has_color, lay_out, paint, wrap
from retinanet.training.logs import start_logging

LONG = ["evaluation.every_epochs=1", "schedule.epochs=1"]


class Terminal:
    """A terminal of some columns: what is written to ``stream`` arrives as text."""

    def __init__(self, columns):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.stream = os.fdopen(slave, "w", encoding="utf-8", buffering=1)
        self.parts = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        try:
            while part := os.read(self.master, 65536):
                self.parts.append(part)
        except OSError:  # the other side is closed
            pass

    def close(self):
        """The text that was written."""
        self.stream.close()
        self.reader.join()
        os.close(self.master)
        return b"".join(self.parts).decode()


def rendered(text):
    """The lines that a terminal of endless width shows, from top to bottom."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[A":
            row -= 1
        elif part == "\x1b[K":
            lines[row] = lines[row][:column]
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
        else:
            assert part.endswith("m"), f"{part!r} is not known"
    return [line.rstrip() for line in lines]


@pytest.fixture
def on_terminal(monkeypatch):
    """Standard output and error on a terminal: ``opened = on_terminal(80)``."""
    opened = []

    def make(columns, kind="xterm"):
        screen = Terminal(columns)
        opened.append(screen)
        monkeypatch.setenv("TERM", kind)
        for name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, screen.stream)
        return screen

    yield make
    start_logging(None, main=True)
    for screen in opened:
        if not screen.stream.closed:
            screen.close()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A few images, with one class that has a long name in wide letters."""
    monkeypatch.setattr("retinanet.cli.jobs.save_png", lambda *_: None)
    monkeypatch.setattr("retinanet.tools.report.publish.save_png", lambda *_: None)
    monkeypatch.setattr("retinanet.tools.report.run_report.inline_svg", lambda _: None)
    classes = ("\u767d\u8840\u7403" * 8, "bar")
    write_split(tmp_path / "data", "train", range(10, 16), classes=classes)
    write_split(tmp_path / "data", "val", range(20, 23), classes=classes)
    return tmp_path / "data"


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_run_fits_the_terminal_and_its_bar_tears_no_line(data, tmp_path, on_terminal, columns):
    screen = on_terminal(columns)
    train(data, tmp_path / "r", *LONG)
    text = screen.close()
    # No line is ever longer than the terminal, also not one that was overwritten, but commands.
    for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)):
        assert count_columns(line.rstrip()) <= columns or str(tmp_path) in line, line
    lines = rendered(text)
    log = re.sub(r"(?m)^\d{4}-.{18} ", "", (tmp_path / "r/train.log").read_text()).splitlines()
    whole = [line for line in log if line.strip() and not line.startswith("epoch ")]
    expected = [part for line in whole for part in wrap(line, columns)]
    found = [line for line in lines if line and not line.startswith("epoch ")]
    assert found == [line.rstrip() for line in expected]
    (bar,) = [line for line in lines if line.startswith("epoch ")]
    assert "3/3" in bar and "class" in bar


def test_colors_are_few_and_only_on_the_terminal(data, tmp_path, on_terminal):
    screen = on_terminal(80)
    train(data, tmp_path / "r", *LONG, "schedule.warmup_steps=3")
    text = screen.close()
    assert "\x1b[33mwarning\x1b[0m    schedule.warmup_steps=3" in text
    assert "\x1b[32m (best)\x1b[0m" in text and "\x1b[32mfinished\x1b[0m" in text
    assert "\x1b[3" not in (tmp_path / "r/train.log").read_text()


def test_a_dumb_terminal_and_a_file_get_lines_alone(data, tmp_path, on_terminal, capsys):
    screen = on_terminal(80, kind="dumb")
    train(data, tmp_path / "r", *LONG)
    text = screen.close().replace("\r\n", "\n")
    assert "\r" not in text and "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("epoch ")]
    assert len(rows) == 3 and "step 3/3" in rows[-1]


def test_a_pipe_gets_whole_lines_and_the_rows(data, tmp_path, capfd):
    train(data, tmp_path / "r", *LONG)
    printed = capfd.readouterr()
    assert printed.err == ""
    assert "\r" not in printed.out and "\x1b" not in printed.out
    assert printed.out.count("images/s  ") == 3  # one a row: there is no bar
    assert max(map(len, printed.out.splitlines())) > 80


CELL = "\u767d\u8840\u7403"  # six columns
COVERAGE = "coverage   6.5 % of the boxes have no anchor with enough overlap at the training size"


@pytest.mark.parametrize(
    ("line", "columns", "lines"),
    [
        (COVERAGE, 80, [COVERAGE[:-5], "           size"]),
        (COVERAGE, 100, [COVERAGE]),
        ("no label, but words enough", 14, ["no label, but", "  words enough"]),
        ("    indented  by four", 18, ["    indented  by", "  four"]),
        (f"classes    {CELL} {CELL} {CELL}", 30, [f"classes    {CELL} {CELL}", " " * 11 + CELL]),
        # Paths and commands are for copying.
        (f"best       {'/a' * 40}", 60, [f"best       {'/a' * 40}"]),
        ("watch      tensorboard --logdir a", 20, ["watch      tensorboard --logdir a"]),
        ("", 60, [""]),
    ],
)
def test_lines_break_between_words_below_their_text(line, columns, lines):
    assert wrap(line, columns) == lines


class Nothing:
    """A stream that is a terminal, or none."""

    def __init__(self, terminal=False):
        self.isatty = lambda: terminal


@pytest.mark.parametrize(
    ("variables", "terminal", "expected"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm"}, False, False),
        ({"TERM": "dumb"}, True, False),
        ({}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, True, False),
    ],
)
def test_color_is_decided_by_the_variables_then_the_terminal(
    monkeypatch, variables, terminal, expected
):
    for name in ("TERM", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert has_color(Nothing(terminal)) is expected
    assert (paint("word", "red", Nothing(terminal)) == "word") is not expected


def test_a_width_is_known_also_where_there_is_none():
    assert terminal.width(Nothing()) == 80
    assert lay_out("x " * 90, Nothing()) == "x " * 90
    screen = Terminal(33)
    assert terminal.width(screen.stream) == 33
    screen.close()


@pytest.mark.parametrize(
    "name", ["cat", "a" * 40, "\u767d\u8840\u7403" * 9, "e\u0301" * 30, "a\tb"]
)
def test_names_fill_their_columns(name):
    assert count_columns(fit(name, 20)) == 20
