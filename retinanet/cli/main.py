"""The command line: from the arguments of train.py and eval.py to checked settings, and the job.

The only module with Hydra, which finds the files of ``configs/`` that a command chooses and reads
the values of overrides. Everything is checked before torch is imported.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from hydra import initialize_config_dir
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
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
from retinanet.checks import Key, check_settings, keys_of, value_text
from retinanet.cli.help import MISSING, groups_of, help_text, unknown, unknown_choice
from retinanet.cli.sweep import NOTE_VARIABLE, Command, check_sweep, run_name, run_sweep
from retinanet.config import EvalConfig, TrainConfig
from retinanet.signals import STATUS, Stopped
from retinanet.terminal import INTERRUPTED, MISTAKES, complain, one_line, show

Job = Literal["train", "eval"]

SCHEMAS: dict[str, type] = {"train": TrainConfig, "eval": EvalConfig}
OVERRIDE = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<name>[^=]*)(=(?P<text>.*))?", re.DOTALL)
# Groups whose files leave out what nothing reads beside their name.
VARIANTS = ("loss", "optim")
PLAIN = re.compile(r"[\w./-]+")
# A map from names to numbers. Hydra itself takes no quoted names and no letters beyond ASCII.
NAME = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^,{}"'][^,{}]*)"""
ENTRY = re.compile(rf"\s*(?P<name>{NAME})\s*:(?P<number>[^,:{{}}]*),?")
MAP = re.compile(rf"{{((?:\s*{NAME}\s*:[^,:{{}}]*,)*\s*{NAME}\s*:[^,:{{}}]*,?)\s*}}")


def train() -> None:
    """``retinanet-train``: the same arguments as train.py."""
    main("train")


def evaluate() -> None:
    """``retinanet-eval``: the same arguments as eval.py."""
    main("eval")


def main(job: Job) -> None:
    """Run ``train.py`` or ``eval.py`` on the arguments of this process, and exit."""
    try:
        sys.exit(_run(job))
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


def _run(job: Job) -> int:
    """The exit status of a run, a sweep, or a text for the screen."""
    args = read_arguments(job, sys.argv[1:])
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
        script = Path(sys.argv[0])
        code = ["-c", "from retinanet.cli.main import train; train()"]  # retinanet-train
        program = [sys.executable, *([str(script.resolve())] if script.is_file() else code)]
        program += ["--config-dir", args.config_dir] if args.config_dir else []
        return run_sweep(swept, commands, program, only=args.only)
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
        self.choices = {group: self._loader.get_group_options(group) for group in groups}
        if job == "train":  # "as the checkpoint was trained with" is for eval.py
            for names in self.choices.values():
                names[:] = [name for name in names if name != "recorded"]

    def values(self, typed: list[str]) -> dict[str, Any]:
        """Dotted key -> value: known keys, right types, perhaps not complete."""
        return self._compose(typed)[0]

    def command(self, typed: list[str]) -> Command:
        """Settings of one run, complete and within their ranges.

        Args:
            typed: overrides, each read by something.

        Raises:
            ValueError: the first setting that is unknown, of a wrong type, missing, out of
                range, does not go with another, or is typed where nothing reads it.
        """
        values, chosen, read = self._compose(typed)
        lacking = [name for name in self.keys if values.setdefault(name, MISSING) == MISSING]
        for name in lacking:  # a file leaves out what nothing reads with its name
            key = self.keys[name]
            unread = key.group in VARIANTS and not key.is_read(values)
            if unread or (self.job == "eval" and key.train_only):
                values[name] = None
        self._refuse_missing([n for n in lacking if values[n] is not None], self.program)

        schema, groups = SCHEMAS[self.job], groups_of(self.keys)
        parts: dict[str, Any] = {group: {} for group in ["", *groups]}
        for name, key in self.keys.items():
            parts[key.group][name.rpartition(".")[2]] = values[name]
        of_group = {group: get_type_hints(schema)[group](**parts[group]) for group in groups}
        settings = schema(**parts[""], **of_group)
        check_settings(settings)
        for name in filter(self.keys.get, read):
            key = self.keys[name]
            if key.train_only if self.job == "eval" else not key.is_read(values):
                raise self._unread(key, values)

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

        def parse(text: str) -> Override:
            try:
                return OverridesParser.create(self._loader).parse_override(f"{name}={text}")
            except HydraException as error:
                reason = " ".join(str(error).split())
                fix = "text with brackets, braces, colons or commas needs quotes, for Hydra and "
                fix += "for the shell: 'KEY=\"a,b\"'"
                if takes_map:
                    fix = f"a map is '{name}={{cat: 0.5, \"cat, wild\": 0.4, default: 0.25}}'"
                raise ValueError(f"cannot read {typed!r}: {reason}; {fix}.") from error

        key, text = self.keys.get(name), text.strip()
        takes_map = key is not None and key.type is Any
        names: dict[str, str] = {}
        if takes_map:
            text = MAP.sub(lambda match: _take_names(match, names, typed), text)
        if key is not None and key.type is str:
            # Quoted for Hydra: paths may hold commas, braces and equal signs.
            is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
            as_it_is = is_quoted or text.lower() in ("null", "true", "false", "")
            if not as_it_is and not (sweep and parse(text).is_sweep_override()):
                text = QuotedString(text, Quote.single).with_quotes()
        override = parse(text)
        override._value = _give_names(override._value, names)
        override.config_loader = self._loader
        if override.is_sweep_override():
            if not sweep:
                takes_list = takes_map or (key is not None and "list" in str(key.type))
                as_list = f", or give a list: '{name}=[{text}]'" if takes_list else ""
                raise ValueError(f"{typed} has several values; sweep over them with -m{as_list}.")
        elif key is None:
            is_none = override.value() is None and name == "experiment"
            if not is_none and str(override.value()) not in self.choices[name]:
                raise unknown_choice(name, override.value(), self.choices[name])
        return override

    def _compose(
        self, typed: Sequence[str]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Override]]:
        """Dotted key -> value, of files and overrides; group -> its file; what was typed."""
        read: dict[str, Override] = {}
        for override in map(self._read, typed):
            name = override.key_or_group
            if name in read and read[name].value() != override.value():
                raise ValueError(
                    f"{name} is given twice: {read[name].input_line} and {override.input_line}; "
                    f"keep one."
                )
            read[name] = override
        groups = tuple(o.input_line for name, o in read.items() if name in self.choices)
        with _one_line_errors():
            if groups not in self._files:
                self._files[groups] = self._read_files(list(groups))
            of_files, chosen = self._files[groups]
            values = dict(of_files)
            for name in filter(self.keys.get, read):
                values[name] = value = _converted(self.keys[name], read[name].value())
                group, _, part = name.partition(".")
                file = of_files.get(name)
                if part == "name" and file not in (None, value) and value in self.choices[group]:
                    raise ValueError(
                        f"{name}={value} would keep the other values of {group}={chosen[group]}, "
                        f"which are for {name}={file}; choose {group}={value} instead, whose file "
                        f"has its own."
                    )
            if any(isinstance(value, str) and "${" in value for value in values.values()):
                self._interpolate(values)
        return values, chosen, read

    def _read_files(self, groups: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Dotted key -> value, and group -> its file, of the files that a command chooses.

        Raises:
            ValueError: file, key, what was meant or what is allowed.
        """
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
            if path is None:  # Hydra's own
                continue
            tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
            if not isinstance(tree, dict):
                raise ValueError(f"{path} must hold keys and values, got {tree!r}.")
            if file.package == "experiment":
                raise ValueError(f"{path} must begin with the line `# @package _global_`.")
            tree.pop("defaults", None)
            for part in reversed(file.package.split(".") if file.package else []):
                tree = {part: tree}
            given = self._flatten(tree, f" in {path}")
            if path.parent.name == "experiment":
                # Otherwise the value below would stay, as if a line with ??? were not there.
                self._refuse_missing([n for n, v in given.items() if v == MISSING], str(path))
            for name, value in given.items():
                below = values.get(name)
                both_maps = isinstance(value, Mapping) and isinstance(below, Mapping)
                values[name] = {**below, **value} if both_maps else value
        return values, dict(defaults.overrides.known_choices)

    def _flatten(self, tree: Mapping[Any, Any], where: str, prefix: str = "") -> dict[str, Any]:
        """Dotted key -> value of the nested maps of a settings file, each checked by itself."""
        values: dict[str, Any] = {}
        groups = groups_of(self.keys)
        for part, value in tree.items():
            name = f"{prefix}{part}"
            is_map = isinstance(value, Mapping) and name not in self.keys
            if is_map and (value or name in groups):
                values |= self._flatten(value, where, f"{name}.")
            elif name in groups:
                first = next(key.name for key in self.keys.values() if key.group == name)
                shown = value_text(value) if value is None or value is True else repr(value)
                raise ValueError(
                    f"{name} is a group of settings, got {shown}{where}; give its keys, such as "
                    f"{first}."
                )
            elif name not in self.keys:
                raise unknown(name, self.keys, self.program, where)
            else:
                values[name] = _converted(self.keys[name], value, where)
        return values

    def _interpolate(self, values: dict[str, Any]) -> None:
        """Give ``${...}`` its value, in place."""
        tree: dict[str, Any] = {}
        for name, value in values.items():
            group, _, part = name.rpartition(".")
            (tree.setdefault(group, {}) if group else tree)[part] = value
        config = OmegaConf.create(tree)
        for name in [n for n, v in values.items() if isinstance(v, str) and "${" in v]:
            value, key = OmegaConf.select(config, name), self.keys[name]
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
            if isinstance(value, str) and key.type in (int, float):  # from the environment
                with contextlib.suppress(ValueError):
                    value = key.type(value)
            values[name] = _converted(key, value)

    def _refuse_missing(self, names: Sequence[str], who: str) -> None:
        """Refuse settings that only the user can give: all of them, with what to type."""
        if names:
            typed = " ".join(f"{name}=..." for name in names)
            meanings = "; ".join(f"{name}: {self.keys[name].meaning}" for name in names)
            raise ValueError(f"{who} needs {typed} ({meanings}).")

    def _unread(self, key: Key, values: Mapping[str, Any]) -> ValueError:
        """The error for a typed setting that nothing reads, with the choice that would read it."""
        typed, when = f"{key.name}={value_text(values[key.name])}", key.read
        if self.job == "eval":
            return ValueError(f"{typed} has no effect in eval.py: only train.py reads it; drop it.")
        group, _, part = when.key.partition(".")
        fixes = [f"another {when.key}"] if when.other else []
        for other in () if when.other else map(value_text, when.values):
            is_file = part == "name" and other in self.choices[group]
            fixes.append(f"{group if is_file else when.key}={other}")
        return ValueError(
            f"{typed} has no effect with {when.key}={value_text(values[when.key])}: drop it, or "
            f"choose {' or '.join(fixes)}, which reads it."
        )


def _converted(key: Key, value: Any, where: str = "") -> Any:
    """A value as its key holds it; ``???`` and interpolations, which get theirs later, as it is."""
    if isinstance(value, str) and "${now:" in value:
        raise ValueError(
            f"{key.name}={value} changes with the clock{where}, so ranks and restarts of one run "
            f"would differ; write a fixed value."
        )
    if isinstance(value, str) and (value == MISSING or "${" in value):
        return value
    return key.converted(value, where)


def _take_names(match: re.Match[str], names: dict[str, str], typed: str) -> str:
    """A typed map with words for Hydra instead of its names, which go to ``names``."""
    parts: dict[str, str] = {}
    for entry in ENTRY.finditer(match[1]):
        name = entry["name"].strip()
        if name[0] in "'\"":
            name = re.sub(r"\\(.)", r"\1", name[1:-1])
        if name in parts:
            raise ValueError(f"{typed}: {name} is there twice; keep one.")
        word = f"name{len(names)}"
        names[word] = name
        parts[name] = f"{word}:{entry['number']}"
    return "{" + ",".join(parts.values()) + "}"


def _give_names(value: Any, names: Mapping[str, str]) -> Any:
    """A parsed value whose maps get their names back."""
    if isinstance(value, ChoiceSweep):
        return replace(value, list=[_give_names(each, names) for each in value.list])
    if isinstance(value, dict):
        return {names.get(key, key): _give_names(each, names) for key, each in value.items()}
    return value


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
    if isinstance(element, dict):
        quoted = [re.sub(r'(["\\])', r"\\\1", name) for name in element]
        entries = zip(quoted, map(value_text, element.values()), strict=True)
        return "{" + ",".join(f'"{name}":{number}' for name, number in entries) + "}"
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
        inner: BaseException = error
        while isinstance(inner.__cause__, OmegaConfBaseException):
            inner = inner.__cause__
        lines = [x.strip() for x in str(inner).partition("Config search path")[0].splitlines()]
        types = ("full_key:", "reference_", "object_")
        message = " ".join(x for x in lines if x and not x.startswith(types))
        key = getattr(inner, "full_key", None)
        raise ValueError(f"{key}: {message}" if key else message) from error
