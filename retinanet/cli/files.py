"""The YAML files of ``configs/`` and of a user's folder: where they are, whether they are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from retinanet.cli.keys import Key, check_complete, check_tree


def configs_folder() -> Path:
    """``configs/``: inside an installed package, else beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def settings_folders(job: str, config_dir: str | None) -> list[Path]:
    """Folders to look for files, first things first.

    Args:
        job: ``train`` or ``eval``.
        config_dir: a folder of the user's laid out as ``configs/``, or None.

    Raises:
        NotADirectoryError: no such folder.
        ValueError: the folder has a root file, which would replace ours.
    """
    # A file there stands for one that brings settings of training along.
    ours = [configs_folder() / "eval_only"] if job == "eval" else []
    ours.append(configs_folder())
    if config_dir is None:
        return ours
    user = Path(config_dir).expanduser().resolve()
    if not user.is_dir():
        raise NotADirectoryError(f"--config-dir {config_dir} is not a folder.")
    if (user / f"{job}.yaml").exists():
        raise ValueError(
            f"--config-dir {config_dir} has a {job}.yaml of its own; put what differs into "
            f"experiment/NAME.yaml there and type experiment=NAME."
        )
    return [user, *ours]


def check_file(
    folders: Sequence[Path],
    config_path: str,
    package: str | None,
    keys: Mapping[str, Key],
    program: str,
) -> None:
    """Refuse a YAML file with unknown keys or wrong types, naming the file.

    Args:
        folders: where to look for it, first things first; elsewhere it is Hydra's own.
        config_path: ``loss/focal``.
        package: the group that its keys belong to; empty: the root.
        keys: every key there is.
        program: ``train.py`` or ``eval.py``.

    Raises:
        ValueError: file, key, what was meant or what is allowed.
    """
    found = (folder / f"{config_path}.yaml" for folder in folders)
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        return
    tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold keys and values, got {tree!r}.")
    if package == "experiment":
        raise ValueError(f"{path} must begin with the line `# @package _global_`.")
    tree.pop("defaults", None)
    for part in reversed(package.split(".") if package else []):
        tree = {part: tree}
    check_tree(tree, keys, program, f" in {path}")
    if config_path.startswith("experiment/"):
        # Composing would keep the value below, as if a line with ??? were not there.
        check_complete(tree, keys, str(path))


def plain_message(error: BaseException) -> str:
    """What Hydra or OmegaConf say, with the key first and without their inner types."""
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return plain_message(cause)
    message = str(error).partition("Config search path")[0]
    lines = [x.strip() for x in message.splitlines()]
    kept = [x for x in lines if x and not x.startswith(("full_key:", "reference_", "object_"))]
    full_key = getattr(error, "full_key", None)
    return (f"{full_key}: " if full_key else "") + " ".join(kept)
