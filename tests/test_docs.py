"""What the documents say stays true: commands, tables, links, pinned versions."""

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from retinanet.cli.main import composer, read_arguments
from scripts.first_loss import tables

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "data/*.md", "docs/*.md", "Makefile", "configs/**/*.yaml")
    for path in ROOT.glob(pattern)
)
# A command in a code block, in backquotes, in an echo of the Makefile or in a comment.
COMMAND = re.compile(r"(?:^|[ `\"/])(train|eval)\.py((?: +(?:-m|[\w.+]+=[^\s`]+))+)", re.MULTILINE)


# What the Makefile says with a command and, after two blanks or more, what that is for.
ECHO = re.compile(r'@echo " *(\S.*?)(?: {2,}.*)?"$', re.MULTILINE)


def text_of(name: str) -> str:
    """A document with its commands on one line each, as they would be typed."""
    text = (ROOT / name).read_text().replace("\\\n#", " ").replace("\\\n", " ")
    text = text.replace("$(RUN)", "runs/demo").replace("$(ARGS)", "")
    return ECHO.sub(r"\1", text)


def commands() -> list[tuple[str, str, str]]:
    """Document, program and arguments of every command in the documents, each once."""
    found = {}
    for name in DOCUMENTS:
        text = text_of(name)
        for match in COMMAND.finditer(text):
            job, typed = match[1], " ".join(match[2].split())
            found.setdefault((job, typed), name)
    # Those of contributing.md are of a project with its patches; a test of its own runs them.
    return [
        (name, job, typed) for (job, typed), name in found.items() if name != "docs/contributing.md"
    ]


def test_the_documents_hold_commands():
    assert {name for name, _, _ in commands()} >= {"README.md", "data/README.md", "Makefile"}
    named = {script for _, script, typed in script_commands() if typed}
    assert named >= {"check_data", "predict", "export", "analyze", "convert_dataset", "report"}


@pytest.mark.parametrize(("document", "job", "typed"), commands())
def test_every_documented_command_has_valid_settings(document, job, typed):
    args = read_arguments(job, shlex.split(typed))
    with composer(job) as reader:
        if args.multirun:
            assert len(reader.sweep(args.overrides)[1]) > 1
        else:
            reader.command(args.overrides)


# A command of a script, to the end of its line or its backquotes.
SCRIPT = re.compile(r"python -m scripts\.([\w.]+)([^`\n#]*)")
# What stands for something that the reader has to fill in.
PLACEHOLDERS = re.compile(
    r"\bDATA\b|\.\.\.|NAME|FORMAT|STAGE|EXPERIMENT|SETTINGS|SOURCE|OUTPUT|FILE|ROOT"
)


def script_commands() -> list[tuple[str, str, str]]:
    """Document, script and arguments of every command of a script in the documents, each once."""
    found = {}
    for name in DOCUMENTS:
        text = text_of(name)
        for variable, value in re.findall(r"^([A-Z]+)=\"(.*?)\"", text, flags=re.M | re.S):
            text = text.replace(f"${variable}", " ".join(value.split()))
        for script, typed in SCRIPT.findall(text):
            found.setdefault((script, " ".join(typed.split())), name)
    return [(name, script, typed) for (script, typed), name in found.items() if script != "NAME"]


class ParsedError(Exception):
    """The arguments were taken; nothing else of the script is to run."""


@pytest.mark.parametrize(("document", "script", "typed"), script_commands())
def test_every_documented_command_of_a_script_has_valid_arguments(
    document, script, typed, monkeypatch
):
    module = importlib.import_module(f"scripts.{script}")
    for method in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, method)

        def take(self, *args, parse=parse):
            parse(self, *args)
            raise ParsedError

        monkeypatch.setattr(argparse.ArgumentParser, method, take)
    if not typed or typed == "--help" or PLACEHOLDERS.search(typed):
        return  # a mention; that the script is there is all that it says
    arguments = shlex.split(typed)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(ParsedError):
        module.main()
    settings = [word for word in arguments if re.match(r"[\w.+]+=", word)]
    if settings:
        with composer("train") as reader:
            reader.command(settings)


def test_the_tables_on_focal_loss_are_what_the_script_prints():
    text = (ROOT / "docs/focal_loss.md").read_text()
    shown = re.findall(r"<!-- first_loss: \w+ -->\n(.*?)<!-- end -->", text, flags=re.DOTALL)
    printed = "\n".join(tables(anchors=201_600, positives=50, classes=80)).split("\n\n")
    assert [table.strip() for table in shown] == printed


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name.endswith(".md")])
def test_relative_links_lead_to_files(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#]+)", path.read_text())
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (path.parent / link).exists()] == []


def test_pre_commit_uses_the_versions_of_the_development_requirements():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    pinned = (ROOT / "requirements-dev.txt").read_text()
    for tool in ("ruff", "codespell"):
        versions = set(re.findall(rf"{tool}==([\d.]+)", hooks))
        assert versions == set(re.findall(rf"^{tool}==([\d.]+)", pinned, re.MULTILINE))
        assert len(versions) == 1
