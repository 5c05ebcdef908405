"""YAML files and key=value overrides to a checked `Config`. Precedence: defaults < YAML files in order < overrides.

OmegaConf reads and merges; pydantic checks types against the dataclasses; then the rules at the fields and each
section's own `problems` check values. All problems are reported at once.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from transpooler.common import UserError, all_problems, atomic_write
from transpooler.trainer.config.adopt import adopt_weights
from transpooler.trainer.config.presets import find_config, preset_names
from transpooler.trainer.config.root import Config, model_schema
from transpooler.trainer.config.wrong_types import dataclass_of, misused_switches, type_problems
from transpooler.trainer.run_folder import RunFolder

WITHOUT_EFFECT = (("engine", "partition_activations"),)
"""Keys of earlier versions that never had an effect: in files, such as an older run's config.yaml, they are dropped."""
Section = typing.TypeVar("Section")
Part = str | Path | Mapping[str, Any]
"""A YAML file, a run folder, a preset's name, or what a file would hold."""


def load_config(parts: Sequence[Part], overrides: Sequence[str] = ()) -> Config:
    """Merge YAML files (or mappings) and `key=value` overrides, check everything, return the configuration.

    Raises UserError with one line per problem, each naming the key, its value and the remedy.
    """
    values = _merge(parts, overrides)
    unknown = [each.path for each in _unknown_keys(values, Config, "")]
    for path in _run_configs(parts) if unknown else ():
        own = {each.path for each in _unknown_keys(_merge([path], ()), Config, "")}
        if keys := [key for key in unknown if key in own]:
            raise UserError(other_version(path, keys))
    adopt_weights(values)
    return config_from_dict(values)


def other_version(path: Path, keys: Sequence[str]) -> str:
    """What is wrong with a run's config.yaml that has keys which this version lacks, and the remedy."""
    remedy = "use the version of transpooler that wrote it, or remove them there"
    return f"{path}: has keys that this version does not know ({', '.join(keys)}); {remedy}"


def _run_configs(parts: Sequence[Part]) -> Iterator[Path]:
    """Those of the configuration files that runs wrote, rather than a person."""
    for path in (find_config(part) for part in parts if not isinstance(part, Mapping)):
        run = RunFolder(path.parent)
        if path.name == run.config.name and (run.checkpoints.is_dir() or run.metrics.is_file()):
            yield path


def load_saved_config(path: Path) -> tuple[Config, list[str]]:
    """The configuration in a run's config.yaml, also of another version, and the keys in it that this version lacks.

    Raises UserError with one line per problem, each naming the file.
    """
    values = _merge([path], ())
    unknown = list(_unknown_keys(values, Config, ""))
    for each in unknown:
        del each.mapping[each.key]
    try:
        return config_from_dict(values), [each.path for each in unknown]
    except UserError as error:
        raise UserError(*(f"{path}: {line}" for line in str(error).splitlines())) from None


def config_from_dict(values: dict[str, Any]) -> Config:
    """Check a plain mapping against the schema and build the configuration (UserError lists all problems)."""
    if unknown := [f"{each.path}: unknown key; {each.remedy}" for each in _unknown_keys(values, Config, "")]:
        raise UserError(*unknown)
    found: list[str] = []

    # A section of several kinds is built first: told apart by trying, its problems would be those of every kind.
    model = _validate(model_schema(values), values.get("model", {}), found, "model")
    config = _validate(Config, values | {"model": model}, found)
    if found:
        raise UserError(*found)
    if problems := [f"{key} {message}" for key, message in all_problems(config)]:
        raise UserError(*problems)
    return config


def section_from_dict(schema: type[Section], values: Mapping[str, Any]) -> Section:
    """One section of the configuration from a mapping, checked in the same way; UserError lists all problems."""
    given = dict(values)
    found = [f"{each.path}: unknown setting; {each.remedy}" for each in _unknown_keys(given, schema, "")]
    section = None if found else _validate(schema, given, found)
    if section is not None and not found:
        found = [f"{key} {message}" for key, message in all_problems(section)]
    if section is None or found:
        raise UserError(*found)
    return section


def _validate(schema: Any, given: Any, found: list[str], prefix: str = "") -> Any:
    """`given` as the schema's dataclass; what has the wrong type is added to `found`, and the defaults stand for it."""
    from pydantic import ValidationError

    found.extend(misused_switches(given, schema, prefix))
    try:
        return _type_checker(schema).validate_python(given)
    except ValidationError as error:
        found.extend(type_problems(error.errors(), schema, prefix))
        return schema()


@cache
def _type_checker(schema: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def config_to_yaml(config: Config) -> str:
    """The resolved configuration as YAML; loading it again gives an equal `Config`."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))


def save_config(config: Config, path: Path) -> None:
    """Write the resolved configuration atomically."""
    with atomic_write(path) as file:
        file.write(config_to_yaml(config))


def _merge(parts: Sequence[Part], overrides: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    merged: Any = OmegaConf.create({})
    try:
        for part in parts:
            values = OmegaConf.create(dict(part)) if isinstance(part, Mapping) else _read_yaml(find_config(part))
            merged = OmegaConf.merge(merged, values)
        for override in overrides:
            key, value = _read_override(override)
            OmegaConf.update(merged, key, value, merge=True)
        resolved = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key or 'configuration'}: {str(error).splitlines()[0]}") from None
    return typing.cast(dict[str, Any], resolved)


def _read_override(override: str) -> tuple[str, Any]:
    """`key=value`. What is a text by its type is taken as it stands, whatever it would mean in YAML, but for quotes and
    null; other values are YAML.
    """
    from omegaconf import OmegaConf
    from yaml import YAMLError

    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"override {override!r}: expected key=value, such as train.steps=100")
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    if not is_quoted and text.strip() not in ("", "~", "null") and _is_text(_annotation_of(key)):
        return key, text.strip()
    try:
        return key, OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload,index]
    except YAMLError as error:
        problem = getattr(error, "problem", error)
        raise UserError(f"{key}={text}: not valid YAML: {problem}; put texts into quotes") from None


def _read_yaml(path: Path) -> Any:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        near = next((name for name in preset_names() if name.endswith(f"/{path}")), None)
        known = "presets by name: " + ", ".join(name for name in preset_names() if "/" not in name)
        raise UserError(f"{path}: no such configuration file; {f'did you mean {near}?' if near else known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read: {error}") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if not OmegaConf.is_dict(loaded):
        raise UserError(f"{path}: expected a mapping of sections (train:, data:, ...) at the top level")
    for section, key in WITHOUT_EFFECT:
        if OmegaConf.is_dict(values := typing.cast(Any, loaded).get(section)):
            values.pop(key, None)
    return loaded


class _UnknownKey(typing.NamedTuple):
    """A key that no dataclass has: the mapping that holds it, its full path, and what to write in its place."""

    mapping: dict[Any, Any]
    key: Any
    path: str
    remedy: str


def _unknown_keys(values: Any, schema: Any, prefix: str) -> Iterator[_UnknownKey]:
    """Keys that the dataclass `schema` does not have, each with the nearest known key."""
    if (element := dataclass_of(schema)) is None:
        return
    if isinstance(values, list):
        for index, item in enumerate(values):
            yield from _unknown_keys(item, element, f"{prefix.removesuffix('.')}[{index}].")
    if not isinstance(values, dict) or typing.get_origin(schema) is tuple:  # the latter is a value of a wrong type
        return
    hints = typing.get_type_hints(element)
    if element is Config:
        hints["model"] = model_schema(values)
    for key, value in values.items():
        if key in hints:
            yield from _unknown_keys(value, hints[key], f"{prefix}{key}.")
            continue
        near = difflib.get_close_matches(str(key), hints, n=1)
        remedy = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(hints)}"
        yield _UnknownKey(values, key, f"{prefix}{key}", remedy)


def _annotation_of(key: str) -> Any:
    """The type of the setting with this path; None where there is no such setting."""
    schema: Any = Config
    for part in re.sub(r"\[\d+\]", "", key).split("."):
        element = dataclass_of(schema)
        schema = None if element is None else typing.get_type_hints(element).get(part)
    return schema


def _is_text(annotation: Any) -> bool:
    """Whether it is `str` or `str | None`."""
    return annotation is str or (
        isinstance(annotation, types.UnionType) and set(annotation.__args__) == {str, type(None)}
    )
