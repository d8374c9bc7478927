"""The command line: from the arguments of train.py and eval.py to checked settings, and the job.

The only module with Hydra, which finds the files of ``configs/`` that a command chooses and reads
the values of overrides. Which keys there are, their types and ranges, and what was probably meant
is checked here and in :mod:`retinanet.cli.overrides`, before torch is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from hydra import initialize_config_dir
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    FloatRange,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
    Transformer,
)
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from retinanet.atomic import write_whole
from retinanet.checks import check_settings, keys_of
from retinanet.cli.help import help_text
from retinanet.cli.overrides import (
    MISSING,
    Command,
    check_choice,
    check_given,
    check_read,
    check_variant,
    convert,
    groups_of,
    read_tree,
    unknown,
)
from retinanet.cli.sweep import NOTE_VARIABLE, check_sweep, run_name, run_sweep
from retinanet.config import EvalConfig, TrainConfig
from retinanet.signals import STATUS, Stopped
from retinanet.terminal import INTERRUPTED, MISTAKES, complain, one_line, show

Job = Literal["train", "eval"]

SCHEMAS: dict[str, type] = {"train": TrainConfig, "eval": EvalConfig}
OVERRIDE = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<name>[^=]*)(=(?P<text>.*))?", re.DOTALL)
# Groups whose files leave out what nothing reads beside their name.
VARIANTS = ("loss.", "optim.")
PLAIN = re.compile(r"[\w./-]+")
# A choice that only eval.py can use: "as the checkpoint was trained with".
RECORDED = "recorded"


def train() -> None:
    """``retinanet-train``: the same arguments as train.py."""
    main("train")


def evaluate() -> None:
    """``retinanet-eval``: the same arguments as eval.py."""
    main("eval")


def main(job: Job) -> None:
    """Run ``train.py`` or ``eval.py`` on the arguments of this process, and exit."""
    try:
        sys.exit(_run(job, sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Stopped:
        sys.exit(STATUS)
    except Exception as error:
        _leave_note(error)
        if not isinstance(error, MISTAKES) or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        complain(error)
        sys.exit(1)


def _run(job: Job, arguments: list[str]) -> int:
    """The exit status of a run, a sweep, or a text for the screen."""
    args = read_arguments(job, arguments)
    # Reading must be over before the job begins: the job's own errors are not Hydra's.
    with composer(job, args.config_dir) as reader:
        if args.help:
            values = reader.values(args.overrides)
            return show(help_text(job, reader.keys, reader.choices, values))
        if args.multirun:
            check_sweep(job)
            swept, commands = reader.sweep(args.overrides)
        else:
            command = reader.command(args.overrides)
    if args.multirun:
        options = ["--config-dir", args.config_dir] if args.config_dir else []
        return run_sweep(swept, commands, [*_program(), *options], only=args.only)
    if args.cfg:
        return show(yaml.safe_dump(asdict(command.settings), sort_keys=False, width=100))

    from retinanet.cli import jobs  # imports torch: only now

    {"train": jobs.train, "eval": jobs.evaluate}[job](command.settings, command.typed)
    return 0


def read_arguments(job: Job, arguments: Sequence[str]) -> argparse.Namespace:
    """Options and settings; they may stand in any order.

    Raises:
        ValueError: an option that does not exist.
    """
    parser = argparse.ArgumentParser(
        prog=f"{job}.py", add_help=False, allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--only", type=int)
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("overrides", nargs="*")
    try:
        args, unread = parser.parse_known_intermixed_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; see `python {job}.py --help`.") from error
    if args.multirun and args.cfg:
        raise ValueError("--cfg shows the settings of one run; leave out -m.")
    if args.only is not None and not args.multirun:
        raise ValueError("--only chooses one run of a sweep; it needs -m.")
    for text in unread:
        fix = f"settings have no dashes: {text.lstrip('-')}" if "=" in text else "see --help"
        raise ValueError(f"{job}.py has no option {text}; {fix}.")
    return args


def _leave_note(error: Exception) -> None:
    """Why this process fails, in the log of its run and for the sweep that started it."""
    trace = "" if isinstance(error, MISTAKES) else "".join(traceback.format_exception(error))
    failed = logging.makeLogRecord({"name": "retinanet", "levelno": logging.ERROR})
    failed.msg = f"failed     {one_line(error)}" + (f"\n{trace}" if trace else "")
    for handler in logging.getLogger("retinanet").handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(failed)
    note = os.environ.get(NOTE_VARIABLE)
    if note is not None and os.environ.get("RANK", "0") == "0":
        with contextlib.suppress(OSError):
            write_whole(Path(note), f"{one_line(error)}\n{trace}")


def _program() -> list[str]:
    """The command that runs this program again."""
    script = Path(sys.argv[0])
    if script.is_file():
        return [sys.executable, str(script.resolve())]
    return [sys.executable, "-c", "from retinanet.cli.main import train; train()"]


# From overrides to settings.


def configs_folder() -> Path:
    """``configs/``: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


@contextmanager
def composer(job: Job, config_dir: str | None = None) -> Iterator[Composer]:
    """Set Hydra up for the settings of one program; files in ``config_dir`` come before ours.

    Raises:
        NotADirectoryError: ``config_dir`` does not exist.
        ValueError: ``config_dir`` has a root file, which would replace ours.
    """
    folders = [configs_folder()]
    if job == "eval":  # a file there stands for one that brings settings of training along
        folders.insert(0, configs_folder() / "eval_only")
    if config_dir is not None:
        folders.insert(0, Path(config_dir).expanduser().resolve())
        if not folders[0].is_dir():
            raise NotADirectoryError(f"--config-dir {config_dir} is not a folder.")
        if (folders[0] / f"{job}.yaml").exists():
            raise ValueError(
                f"--config-dir {config_dir} has a {job}.yaml of its own; put what differs into "
                f"experiment/NAME.yaml there and type experiment=NAME."
            )
    # A reader may be open while another is: Hydra itself knows only one.
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folders[-1]), job_name=job, version_base="1.3"):
            yield Composer(job, folders)
    finally:
        GlobalHydra.instance().hydra = outer


class Composer:
    """Turns what was typed into settings; made by :func:`composer`.

    Attributes:
        job: ``train`` or ``eval``.
        program: ``train.py`` or ``eval.py``, for messages.
        keys: every key that can be typed.
        choices: group -> names of its files.
    """

    def __init__(self, job: Job, folders: list[Path]) -> None:
        self.job = job
        self.program = f"{job}.py"
        self.keys = keys_of(SCHEMAS[job])
        self._folders = folders
        self._files: dict[tuple[str, ...], tuple[dict[str, Any], dict[str, Any]]] = {}
        self._loader = GlobalHydra.instance().config_loader()
        # Hydra's own option would put the user's folder behind ours, and ignore every file in
        # it that has the name of one of ours.
        path = self._loader.get_search_path()
        for folder in folders[:-1]:
            path.prepend("before", f"file://{folder}", SearchPathQuery(provider="main"))
        self._loader.repository.initialize_sources(path)
        groups = [*groups_of(self.keys), *(["experiment"] if job == "train" else [])]
        self.choices = {
            group: [
                name
                for name in self._loader.get_group_options(group)
                if name != RECORDED or job == "eval"
            ]
            for group in groups
        }

    def values(self, typed: list[str]) -> dict[str, Any]:
        """Dotted key -> value: known keys, right types, perhaps not complete."""
        return self._compose(self._read_all(typed))[0]

    def command(self, typed: list[str], recipe: Sequence[str] = ()) -> Command:
        """Settings of one run, complete and within their ranges.

        Args:
            typed: overrides of a person, each read by something.
            recipe: overrides of a program, below the typed ones, which may leave them without use.

        Raises:
            ValueError: the first setting that is unknown, of a wrong type, missing, out of
                range, does not go with another, or is typed where nothing reads it.
        """
        read = self._read_all(typed)
        values, chosen = self._compose({**self._read_all(list(recipe)), **read})
        lacking = [name for name in self.keys if values.setdefault(name, MISSING) == MISSING]
        for name in lacking:  # a file leaves out what nothing reads with its name
            key = self.keys[name]
            unread = name.startswith(VARIANTS) and not key.is_read(values)
            if unread or (self.job == "eval" and key.train_only):
                values[name] = None
        check_given([n for n in lacking if values[n] is not None], self.keys, self.program)
        settings = _assemble(SCHEMAS[self.job], values)
        check_settings(settings)
        for name in filter(self.keys.get, read):
            check_read(self.keys[name], values, self.job, self.choices)
        changed = {n: values[n] if n in self.keys else o.value() for n, o in read.items()}
        named_by = "experiment" if chosen.get("experiment") else "data"
        changed.pop(named_by, None)
        base = str(chosen[named_by])
        if self.job == "train" and settings.output_dir is None:
            settings.output_dir = str(Path("runs") / run_name(base, changed))
        return Command(list(typed), settings, base, changed)

    def sweep(self, typed: list[str]) -> tuple[list[str], list[Command]]:
        """Every run of a sweep, in Hydra's order, all of them checked.

        Returns:
            The names that are swept over, and one command for each combination.

        Raises:
            ValueError: as of :meth:`command`; where several names are swept it says which run.
        """
        read = [self._read(text, sweep=True) for text in typed]
        swept = [o.key_or_group for o in read if o.is_sweep_override()]
        alternatives = [
            [f"{o.key_or_group}={value}" for value in _swept_texts(o)]
            if o.is_sweep_override()
            else [text]
            for o, text in zip(read, typed, strict=True)
        ]
        commands = []
        for run in itertools.product(*alternatives):
            try:
                commands.append(self.command(list(run)))
            except ValueError as error:
                if len(swept) < 2:
                    raise
                own = [text for text, o in zip(run, read, strict=True) if o.key_or_group in swept]
                message = f"{error} This is the run {' '.join(own)} of the sweep."
                raise ValueError(message) from error
        return swept, commands

    def _read_all(self, typed: list[str]) -> dict[str, Override]:
        """Name -> override; one name with two values is a mistake."""
        read: dict[str, Override] = {}
        for override in map(self._read, typed):
            name = override.key_or_group
            if name in read and read[name].value() != override.value():
                raise ValueError(
                    f"{name} is given twice: {read[name].input_line} and {override.input_line}; "
                    f"keep one."
                )
            read[name] = override
        return read

    def _read(self, typed: str, sweep: bool = False) -> Override:
        """One override, whose name exists, as Hydra reads it; of a group with an existing file."""
        match = OVERRIDE.fullmatch(typed)
        name, text, line = match["name"].strip(), match["text"], " ".join(typed.split())
        if re.match(r"hydra\b", name):
            raise ValueError(
                f"{line} would have no effect: Hydra only reads settings here; where files go "
                f"is output_dir."
            )
        if name not in self.keys and name not in self.choices:
            raise unknown(name, self.keys, self.program)
        if match["prefix"] == "~":
            raise ValueError(f"{line}: settings cannot be removed, only set, as in {name}=VALUE.")
        if text is None:
            raise ValueError(f"cannot read {typed!r}; write {name}=VALUE.")
        key, text = self.keys.get(name), text.strip()
        if key is not None and key.type is str:
            text = self._quoted(name, text, sweep)
        override = self._parse(f"{name}={text}", typed)
        if override.is_sweep_override() and not sweep:
            takes_list = key is not None and (key.type is Any or "list" in str(key.type))
            as_list = f", or give a list: '{name}=[{text}]'" if takes_list else ""
            raise ValueError(f"{typed} has several values; sweep over them with -m{as_list}.")
        if key is None and not override.is_sweep_override():
            check_choice(name, override.value(), self.choices[name])
        return override

    def _quoted(self, name: str, text: str, sweep: bool) -> str:
        """A text value quoted for Hydra: paths may hold commas, braces and equal signs."""
        is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        if is_quoted or text.lower() in ("null", "true", "false", ""):
            return text
        if sweep and self._parse(f"{name}={text}", f"{name}={text}").is_sweep_override():
            return text
        return QuotedString(text, Quote.single).with_quotes()

    def _parse(self, override: str, typed: str) -> Override:
        """Hydra's reading of one override."""
        try:
            parsed = OverridesParser.create(self._loader).parse_override(override)
        except HydraException as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"cannot read {typed!r}: {reason}; text with brackets, braces, colons or commas "
                f"needs quotes, for Hydra and for the shell: 'KEY=\"a,b\"'."
            ) from error
        parsed.config_loader = self._loader
        return parsed

    def _compose(self, read: dict[str, Override]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Dotted key -> value, of files and overrides, and group -> its chosen file."""
        groups = tuple(read[name].input_line for name in read if name in self.choices)
        with _one_line_errors():
            if groups not in self._files:
                self._files[groups] = self._read_files(list(groups))
            of_files, chosen = self._files[groups]
            values = dict(of_files)
            for name in filter(self.keys.get, read):
                values[name] = convert(self.keys[name], read[name].value())
                check_variant(name, values[name], of_files.get(name), chosen, self.choices)
            self._interpolate(values)
        return values, chosen

    def _read_files(self, groups: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """As :meth:`_compose`, of the files alone, each checked by itself."""
        try:
            defaults = self._loader.compute_defaults_list(self.job, groups, RunMode.RUN)
        except OmegaConfBaseException:
            raise
        except ValueError as error:  # what YAML takes for a number may be none to Python
            raise ValueError(f"a settings file is not valid YAML: {error}") from error
        values: dict[str, Any] = {}
        for file in defaults.defaults:
            places = (folder / f"{file.config_path}.yaml" for folder in self._folders)
            path = next((place for place in places if place.is_file()), None)
            if path is not None:  # Hydra's own are nowhere
                values |= self._read_file(path, file.package)
        return values, dict(defaults.overrides.known_choices)

    def _read_file(self, path: Path, package: str | None) -> dict[str, Any]:
        """Dotted key -> value of one file.

        Args:
            path: of the file.
            package: the group that its keys belong to; empty: the root.

        Raises:
            ValueError: file, key, what was meant or what is allowed.
        """
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        if not isinstance(tree, dict):
            raise ValueError(f"{path} must hold keys and values, got {tree!r}.")
        if package == "experiment":
            raise ValueError(f"{path} must begin with the line `# @package _global_`.")
        tree.pop("defaults", None)
        for part in reversed(package.split(".") if package else []):
            tree = {part: tree}
        values = read_tree(tree, self.keys, self.program, f" in {path}")
        if path.parent.name == "experiment":
            # Otherwise the value below would stay, as if a line with ??? were not there.
            check_given([n for n, v in values.items() if v == MISSING], self.keys, str(path))
        return values

    def _interpolate(self, values: dict[str, Any]) -> None:
        """Give ``${...}`` its value, in place."""
        texts = {n: v for n, v in values.items() if isinstance(v, str) and "${" in v}
        if not texts:
            return
        tree: dict[str, Any] = {}
        for name, value in values.items():
            group, _, part = name.rpartition(".")
            (tree.setdefault(group, {}) if group else tree)[part] = value
        config = OmegaConf.create(tree)
        for name in texts:
            value, key = OmegaConf.select(config, name), self.keys[name]
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
            if isinstance(value, str) and key.type in (int, float):  # from the environment
                with contextlib.suppress(ValueError):
                    value = key.type(value)
            values[name] = convert(key, value)


def _assemble(cls: type, values: dict[str, Any], prefix: str = "") -> Any:
    """Settings of dotted keys."""
    hints = get_type_hints(cls)
    return cls(
        **{
            f.name: _assemble(hints[f.name], values, f"{prefix}{f.name}.")
            if is_dataclass(hints[f.name])
            else values[prefix + f.name]
            for f in fields(cls)
        }
    )


def _swept_texts(override: Override) -> list[str]:
    """Every value of a sweep, as an override of a single run has it."""
    typed, swept = override.input_line, override.value()
    if isinstance(swept, IntervalSweep):
        raise ValueError(f"{typed}: an interval has no list of values; use range() or a list.")
    if isinstance(swept, RangeSweep) and not isinstance(swept.range(), range):
        # Hydra steps through binary fractions: range(0.1,0.4,0.1) would end in 0.4.
        exact = FloatRange(*(Decimal(str(x)) for x in (swept.start, swept.stop, swept.step)))
        texts = [str(value) for value in exact]
    else:
        texts = list(override.sweep_iterator(transformer=_element_text))
    if not texts:
        raise ValueError(f"{typed} has no value to sweep over.")
    return texts


def _element_text(element: Any) -> str:
    """One value of a sweep; text with blanks or colons, which Hydra would escape, in quotes."""
    is_bare = isinstance(element, str) and not PLAIN.fullmatch(element)
    return (
        QuotedString(element, Quote.single).with_quotes() if is_bare else Transformer.str(element)
    )


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Turn what Hydra, OmegaConf and YAML refuse into a ValueError without their inner terms."""
    try:
        yield
    except RecursionError as error:
        raise ValueError(
            "a settings file has values of too many levels, or inside themselves."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"a settings file is not valid YAML: {reason}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_plain_message(error)) from error


def _plain_message(error: BaseException) -> str:
    """The message of Hydra or OmegaConf, with the key first and without their inner types."""
    if isinstance(error.__cause__, OmegaConfBaseException):
        return _plain_message(error.__cause__)
    message = str(error).partition("Config search path")[0]
    lines = [x.strip() for x in message.splitlines()]
    kept = [x for x in lines if x and not x.startswith(("full_key:", "reference_", "object_"))]
    full_key = getattr(error, "full_key", None)
    return (f"{full_key}: " if full_key else "") + " ".join(kept)
