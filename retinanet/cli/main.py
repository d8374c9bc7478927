"""Settings from the command line and the files of ``configs/``; the only module with Hydra.

Hydra composes the files and reads the values. Which keys exist, what type and range they have
and what was probably meant is ours (:mod:`retinanet.cli.keys`, :mod:`retinanet.checks`): Hydra
takes ``+loss.gama=1`` and forgets it, and takes ``true`` for a number. All of it is checked
before torch is imported.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    FloatRange,
    IntervalSweep,
    Override,
    Quote,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from retinanet.checks import check_settings
from retinanet.cli.command import Command, Job, run_job
from retinanet.cli.files import check_file, plain_message, settings_folders
from retinanet.cli.keys import (
    check_choice,
    check_complete,
    check_read,
    check_tree,
    check_type,
    check_variant,
    groups_of,
    keys_of,
    unknown,
)
from retinanet.cli.naming import run_name
from retinanet.config import EvalConfig, TrainConfig

SCHEMAS: dict[str, type] = {"train": TrainConfig, "eval": EvalConfig}
OVERRIDE = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<name>[^=]*)(=(?P<text>.*))?", re.DOTALL)
PLAIN = re.compile(r"[\w./-]+")
# A choice that only eval.py can use: "as the checkpoint was trained with".
RECORDED = "recorded"


def main(job: Job) -> None:
    """Run ``train.py`` or ``eval.py`` on the arguments of this process."""
    run_job(job, composer)


for _job, _schema in SCHEMAS.items():
    ConfigStore.instance().store(name=f"{_job}_schema", node=_schema)


@contextmanager
def composer(job: Job, config_dir: str | None = None) -> Iterator[Composer]:
    """Set Hydra up for the settings of one program.

    Args:
        job: ``train`` or ``eval``.
        config_dir: a folder of the user's laid out as ``configs/``; its files come before ours.

    Raises:
        NotADirectoryError: ``config_dir`` does not exist.
        ValueError: ``config_dir`` has a root file.
    """
    folders = settings_folders(job, config_dir)
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
        file: ``train.py`` or ``eval.py``, for messages.
        keys: every key that can be typed.
        choices: group -> names of its files.
    """

    def __init__(self, job: Job, folders: list[Path]) -> None:
        self.job = job
        self.file = f"{job}.py"
        self.keys = keys_of(SCHEMAS[job])
        self._folders = folders
        self._composed: dict[tuple[str, ...], tuple[DictConfig, dict[str, Any]]] = {}
        self._loader = GlobalHydra.instance().config_loader()
        # Hydra's own option would put the user's folder behind ours, and ignore every file in
        # it that has the name of one of ours.
        path = self._loader.get_search_path()
        for folder in folders[:-1]:
            path.prepend("before", f"file://{folder}", SearchPathQuery(provider="main"))
        self._loader.repository.initialize_sources(path)
        groups = [*groups_of(self.keys), *(["experiment"] if job == "train" else [])]
        self.choices = {group: self._options(group) for group in groups}

    def tree(self, typed: list[str]) -> dict[str, Any]:
        """All settings as nested maps: known keys, right types, perhaps not complete."""
        config, _ = self._compose(self._read_all(typed))
        return OmegaConf.to_container(config, resolve=True)

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
        config, chosen = self._compose({**self._read_all(list(recipe)), **read})
        check_complete(OmegaConf.to_container(config, resolve=True), self.keys, self.file)
        settings = OmegaConf.to_object(config)
        if self.job == "train" and isinstance(settings.loss.alpha, dict):
            # Class names may look like numbers.
            settings.loss.alpha = {str(k): v for k, v in settings.loss.alpha.items()}
        check_settings(settings)
        changed = {
            name: override.value() if name in self.choices else attrgetter(name)(settings)
            for name, override in read.items()
        }
        choices = [f"{group}={name}" for group, names in self.choices.items() for name in names]
        for name, value in changed.items():
            if name in self.keys:
                check_read(self.keys[name], value, settings, self.job, choices)
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
        """
        read = [self._read(text, sweep=True) for text in typed]
        swept = [o.key_or_group for o in read if o.is_sweep_override()]
        lists = [
            [f"{override.key_or_group}={_element_text(value)}" for value in _values(override)]
            if override.is_sweep_override()
            else [text]
            for override, text in zip(read, typed, strict=True)
        ]
        return swept, [self._run_of_sweep(job, swept) for job in itertools.product(*lists)]

    def _run_of_sweep(self, typed: Sequence[str], swept: Sequence[str]) -> Command:
        """One combination of a sweep; where several names are swept, an error says which."""
        try:
            return self.command(list(typed))
        except ValueError as error:
            if len(swept) < 2:
                raise
            these = [text for text in typed if OVERRIDE.fullmatch(text)["name"].strip() in swept]
            raise ValueError(f"{error} This is the run {' '.join(these)} of the sweep.") from error

    def _options(self, group: str) -> list[str]:
        options = self._loader.get_group_options(group)
        return [name for name in options if name != RECORDED or self.job == "eval"]

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
        """One override as typed -> the same, checked, as Hydra may have it."""
        match = OVERRIDE.fullmatch(typed)
        name, text = match["name"].strip(), match["text"]
        self._check_name(typed, name, match["prefix"])
        if text is None:
            raise ValueError(f"cannot read {typed!r}; write {name}=VALUE.")
        key, text = self.keys.get(name), text.strip()
        if key is not None and key.type is str:
            text = self._literal(name, text, sweep)
        override = self._parse(f"{name}={text}", typed)
        if override.is_sweep_override() and not sweep:
            as_list = f", or give a list: '{name}=[{text}]'" if key and key.is_list else ""
            raise ValueError(f"{typed} has several values; sweep over them with -m{as_list}.")
        for value in _values(override):
            if key is None:
                check_choice(name, value, self.choices[name])
            else:
                check_type(key, value)
        return override

    def _check_name(self, typed: str, name: str, prefix: str | None) -> None:
        """Refuse names that do not exist, and what Hydra offers beyond setting a value."""
        typed = " ".join(typed.split())
        if re.match(r"hydra\b", name):
            raise ValueError(
                f"{typed} would have no effect: Hydra only reads settings here; where files go "
                f"is output_dir."
            )
        if name not in self.keys and name not in self.choices:
            raise unknown(name, self.keys, self.file)
        if prefix == "~":
            raise ValueError(f"{typed}: settings cannot be removed, only set, as in {name}=VALUE.")

    def _literal(self, name: str, text: str, sweep: bool) -> str:
        """A text value quoted for Hydra: paths may hold commas, braces and equal signs."""
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        if quoted or text.lower() in ("null", "true", "false", ""):
            return text
        if sweep and self._parse(f"{name}={text}", f"{name}={text}").is_sweep_override():
            return text
        return _quoted(text)

    def _parse(self, override: str, typed: str) -> Override:
        """Hydra's reading of one override."""
        try:
            parsed = OverridesParser.create(self._loader).parse_override(override)
        except HydraException as error:
            said = " ".join(str(error).split())
            raise ValueError(
                f"cannot read {typed!r}: {said}; text with brackets, braces, colons or commas "
                f"needs quotes, for Hydra and for the shell: 'KEY=\"a,b\"'."
            ) from error
        parsed.config_loader = self._loader
        return parsed

    def _compose(self, read: dict[str, Override]) -> tuple[DictConfig, dict[str, Any]]:
        """The composition of checked files and overrides, and the choice of each group."""
        groups = tuple(read[name].input_line for name in read if name in self.choices)
        with _told_plainly():
            if groups not in self._composed:
                self._composed[groups] = self._compose_files(list(groups))
            config, chosen = copy.deepcopy(self._composed[groups])
            for name, override in read.items():
                # As Hydra does it, but not merged: a new map replaces the old one, names and all.
                if name in self.keys:
                    file = OmegaConf.select(config, name)
                    check_variant(name, override.value(), file, chosen, self.choices)
                    OmegaConf.update(config, name, override.value(), merge=False)
            # Once more, now that interpolations have values.
            check_tree(OmegaConf.to_container(config, resolve=True), self.keys, self.file)
        return config, chosen

    def _compose_files(self, groups: list[str]) -> tuple[DictConfig, dict[str, Any]]:
        """The composition of the files alone, each of them checked."""
        try:
            found = self._loader.compute_defaults_list(self.job, groups, RunMode.RUN)
        except OmegaConfBaseException:
            raise
        except ValueError as error:  # what YAML takes for a number may be none to Python
            raise ValueError(f"a settings file is not valid YAML: {error}") from error
        for file in found.defaults:
            check_file(self._folders, file.config_path, file.package, self.keys, self.file)
        return compose(self.job, groups), dict(found.overrides.known_choices)


@contextmanager
def _told_plainly() -> Iterator[None]:
    """Turn what Hydra, OmegaConf and YAML refuse into a ValueError without their inner terms."""
    try:
        yield
    except RecursionError as error:
        raise ValueError(
            "a settings file has values of too many levels, or inside themselves."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"a settings file is not valid YAML: {said}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(plain_message(error)) from error


def _quoted(text: str) -> str:
    """``text`` as a quoted string of Hydra's grammar."""
    return QuotedString(text, Quote.single).with_quotes()


def _element_text(value: Any) -> str:
    """One value of a sweep, as an override of a single run."""
    if isinstance(value, str) and not PLAIN.fullmatch(value):
        return _quoted(value)
    return Override._get_value_element_as_str(value)


def _values(override: Override) -> list[Any]:
    """Every value an override gives, as plain Python."""
    if not override.is_sweep_override():
        return [override.value()]
    typed, swept = override.input_line, override.value()
    if isinstance(swept, IntervalSweep):
        raise ValueError(f"{typed}: an interval has no list of values; use range() or a list.")
    if isinstance(swept, RangeSweep) and not isinstance(swept.range(), range):
        # Hydra steps through binary fractions: range(0.1,0.4,0.1) would end in 0.4.
        exact = FloatRange(*(Decimal(str(x)) for x in (swept.start, swept.stop, swept.step)))
        values = list(exact)
    else:
        values = [Override._convert_value(value) for value in override.sweep_iterator()]
    if not values:
        raise ValueError(f"{typed} has no value to sweep over.")
    return values
