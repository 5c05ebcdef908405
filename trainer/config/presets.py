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


def find_config(name: str | Path) -> Path:
    """The YAML file that a configuration argument means, there or not.

    A file is itself, a run folder its config.yaml, a preset's name the preset. What exists in the working directory
    goes before a preset of the same name.
    """
    path = Path(name)
    if is_preset(name) and not path.is_file() and not RunFolder(path).config.is_file():
        return _preset_folder() / f"{name}.yaml"
    return RunFolder(path).config if path.is_dir() else path


def is_preset(name: str | Path) -> bool:
    """Whether a preset has this name; a file or run folder of the same name may go before it (`find_config`)."""
    return str(name) in preset_names()


def _preset_folder() -> Path:
    return Path(str(files("transpooler") / "configs"))
