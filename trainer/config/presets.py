"""Configuration files by name: the presets that the package ships, found from any working directory."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from transpooler.trainer.run_folder import RunFolder


@cache
def preset_names() -> tuple[str, ...]:
    """Names of all presets, such as 'pyramidion' and 'studies/needles', sorted."""
    folder = _preset_folder()
    return tuple(sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")))


def find_preset(name: str | Path) -> Path | None:
    """The file of the preset of this name; None if there is no such preset."""
    return _preset_folder() / f"{name}.yaml" if str(name) in preset_names() else None


def find_config(name: str | Path) -> Path:
    """The YAML file that a configuration argument means, there or not.

    A file is itself, a run folder its config.yaml, a preset's name the preset. What exists in the working directory
    goes before a preset of the same name.
    """
    path = Path(name)
    own = RunFolder(path).config if path.is_dir() else path
    return own if own.is_file() else find_preset(name) or own


def is_preset(name: str | Path) -> bool:
    """Whether `find_config` takes an argument for a preset's name, which then means the same in any folder."""
    return find_config(name) == find_preset(name)


def _preset_folder() -> Path:
    return Path(str(files("transpooler") / "configs"))
