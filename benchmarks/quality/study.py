"""A study: which arms are trained, on what budget, with which seeds; read from a YAML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from transpooler.common import UserError, split_list
from transpooler.trainer.config import Config, load_config
from transpooler.trainer.config.presets import find_config, find_preset, preset_names

BUDGETS = ("steps", "source_tokens", "minutes")
CORPORA = ("needles", "needles_in_sentences", "needles_in_text", "notes")
TASK_NAMES = ("multi_key", "variables", "frequent_words", "question_first", "question_last")
"""Corpora that are rows of `tasks.TASKS`."""
FEWEST_WORDS = 160
"""The shortest document that holds any of these tasks, with as much text around."""
KEYS = (
    *("name", "description", "corpus", "corpus_words", "corpus_documents", "baseline", "budget", "seeds"),
    *("processes", "configs", "settings", "arms"),
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """An arm that begins as another one, which hands over its weights."""

    arm: str
    settings: dict[str, Any]
    """The settings of that arm, which need not be among those that are trained now."""
    share: float = 0.0
    """Of the budget, its first part; 0: see `loss`."""
    loss: float = 0.0
    """It trains until its held-out loss is at most this, within `steps`; then the arm has its whole budget."""
    steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One configuration that is compared."""

    name: str
    settings: dict[str, Any]
    """What differs from the study's settings, as in any configuration file."""
    start: Start | None = None
    budget: tuple[str, float] | None = None
    """In place of the study's."""
    model_of: str | None = None
    """It is the model of this arm, which keeps `keep` tokens, or this share, when it is evaluated."""
    keep: float | None = None

    @property
    def trained_as(self) -> str:
        """The arm whose runs it has."""
        return self.model_of or self.name


@dataclass(frozen=True, kw_only=True)
class Study:
    """All of a study file."""

    name: str
    path: Path
    baseline: str
    """The arm that the others are compared with."""
    budget: tuple[str, float]
    """('steps' | 'source_tokens' | 'minutes', how many): of each run. Equal steps are equal documents."""
    arms: tuple[Arm, ...]
    """All of the file."""
    asked: tuple[str, ...] = ()
    """Names of the arms that are trained now; the table holds all that are finished."""
    seeds: tuple[int, ...] = (0,)
    processes: int = 1
    """Training ranks."""
    configs: tuple[Path, ...] = ()
    """Configuration files below `settings`."""
    settings: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    """key=value settings of all runs, over everything else."""
    description: str = ""
    corpus: str | None = None
    """needles: made-up documents with planted facts, needles_in_sentences: the same in sentences; needles_in_text:
    facts in the user's; notes: readable ones in the documentation of installed packages; a task of `tasks.py`, in the
    user's documents or in that documentation; None: the user's alone."""
    corpus_words: tuple[int, int] = (256, 2048)
    """Of a task: words of the shortest document and of the longest."""
    corpus_documents: int = 8_000
    """Of a task: documents to train on."""


def load_study(name: str | Path, *, arms: str | None = None, seeds: str | None = None) -> Study:
    """Read and check a study, a file or one of ours by name, such as 'studies/needles'. UserError names what is wrong.

    arms, seeds: comma-separated; what is trained now instead of all arms, and of the study's seeds.
    """
    path = find_config(name)
    study = _parse(path, _read(path))
    if seeds is not None:
        if not all(part.isdecimal() for part in split_list(seeds)):
            raise UserError(f"--seeds: {seeds!r} is not a list of whole numbers; write 0,1,2")
        study = replace(study, seeds=tuple(dict.fromkeys(int(part) for part in split_list(seeds))))
    if arms is not None:
        if wrong := [name for name in split_list(arms) if name not in study.asked]:
            raise UserError(f"--arms: {path} has no arm {wrong[0]!r}; choose among {', '.join(study.asked)}")
        study = replace(study, asked=tuple(split_list(arms)))
    return study


def resolve_config(study: Study, who: str, fragments: Sequence[Mapping[str, Any]]) -> Config:
    """Merge the study's settings and the fragments, and check them; UserError names the study and `who`."""
    try:
        return load_config([*study.configs, study.settings, *fragments], study.overrides)
    except UserError as error:
        lines = [f"{study.path}: arms.{who}: {line}" for line in str(error).splitlines()]
        raise UserError(*lines) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        known = ", ".join(name for name in preset_names() if name.startswith("studies/") and name.count("/") == 1)
        raise UserError(f"{path}: cannot read the study: {error.strerror}; studies by name: {known}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping with {', '.join(KEYS)}")
    if unknown := [key for key in values if key not in KEYS]:
        raise UserError(f"{path}: {unknown[0]}: unknown key; known keys: {', '.join(KEYS)}")
    return values


def _parse(path: Path, values: dict[str, Any]) -> Study:
    arms = values.get("arms")
    if not isinstance(arms, dict) or not arms:
        raise UserError(f"{path}: arms: expected a mapping of names to settings")
    baseline = values.get("baseline", next(iter(arms)))
    if baseline not in arms:
        raise UserError(f"{path}: baseline is {baseline!r}; choose one of the arms {', '.join(arms)}")
    seeds = values.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(isinstance(n, int) and n >= 0 for n in seeds):
        raise UserError(f"{path}: seeds is {seeds!r}; expected a list of whole numbers")
    processes = values.get("processes", 1)
    if not isinstance(processes, int) or processes < 1:
        raise UserError(f"{path}: processes is {processes!r}; must be a whole number of at least 1")
    return Study(
        name=str(values.get("name", path.stem)),
        path=path,
        baseline=baseline,
        budget=_budget(f"{path}: budget", values.get("budget")),
        arms=tuple(_arm(path, name, settings or {}, arms) for name, settings in arms.items()),
        asked=tuple(arms),
        seeds=tuple(dict.fromkeys(seeds)),
        processes=processes,
        configs=tuple(_find_beside(path, name) for name in values.get("configs", [])),
        settings=values.get("settings") or {},
        description=str(values.get("description", "")).strip(),
        **_corpus(path, values),
    )


def _corpus(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The fields about the documents that are made."""
    corpus, known = values.get("corpus"), (*CORPORA, *TASK_NAMES)
    if corpus is not None and corpus not in known:
        raise UserError(f"{path}: corpus is {corpus!r}; choose {', '.join(known)}, or leave it out")
    found = {key: values[key] for key in ("corpus_words", "corpus_documents") if key in values}
    for key in found if corpus not in TASK_NAMES else ():
        raise UserError(f"{path}: {key} is for a corpus among {', '.join(TASK_NAMES)}, and corpus is {corpus!r}")
    words, documents = found.get("corpus_words", Study.corpus_words), found.get("corpus_documents", 1)
    whole = isinstance(words, list | tuple) and len(words) == 2 and all(type(number) is int for number in words)
    if not whole or not FEWEST_WORDS <= words[0] < words[1]:
        raise UserError(
            f"{path}: corpus_words is {words!r}; expected [SHORTEST, LONGEST], from {FEWEST_WORDS} words on"
        )
    if type(documents) is not int or documents < 1:
        raise UserError(f"{path}: corpus_documents is {documents!r}; must be a whole number of at least 1")
    return {"corpus": corpus} | found | {"corpus_words": tuple(words)}


def _find_beside(path: Path, name: str) -> Path:
    """A configuration relative to the study file, or a preset by name."""
    beside = path.parent / name
    return beside if beside.is_file() else find_preset(name) or beside


def _budget(what: str, value: Any) -> tuple[str, float]:
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in BUDGETS:
        raise UserError(f"{what} is {value!r}; expected one of {', '.join(BUDGETS)} and a number")
    ((kind, amount),) = value.items()
    if not isinstance(amount, int | float) or amount <= 0:
        raise UserError(f"{what}.{kind} is {amount!r}; must be a positive number")
    return kind, float(amount)


def _arm(path: Path, name: str, settings: dict[str, Any], arms: dict[str, Any]) -> Arm:
    if not isinstance(settings, dict):
        raise UserError(f"{path}: arms.{name} is {settings!r}; expected a mapping of settings")
    if "model_of" in settings or "keep" in settings:
        return _kept_arm(path, name, settings, arms)
    start, rest = settings.get("start"), _settings(settings)
    budget = _budget(f"{path}: arms.{name}.budget", settings["budget"]) if "budget" in settings else None
    if start is None:
        return Arm(name=name, settings=rest, budget=budget)
    return Arm(name=name, settings=rest, start=_start(f"{path}: arms.{name}.start", start, arms), budget=budget)


def _kept_arm(path: Path, name: str, settings: dict[str, Any], arms: dict[str, Any]) -> Arm:
    other, keep = (settings.get(key) for key in ("model_of", "keep"))
    whole = len(settings) == 2 and isinstance(keep, int | float) and keep > 0
    if not whole or other not in arms or "model_of" in (arms[other] or {}):
        expected = "expected model_of (another arm, one that is trained) and keep (tokens, or a share below 1)"
        raise UserError(f"{path}: arms.{name} is {settings!r}; {expected}")
    return replace(_arm(path, other, arms[other] or {}, arms), name=name, model_of=other, keep=keep)


def _start(what: str, value: Any, arms: dict[str, Any]) -> Start:
    wrong = UserError(f"{what} is {value!r}; expected arm (one of the study's), and share (0 to 1), or loss and steps")
    if not isinstance(value, dict) or value.get("arm") not in arms:
        raise wrong
    numbers = {key: number for key, number in value.items() if key != "arm"}
    if not all(type(number) in (int, float) and number > 0 for number in numbers.values()):
        raise wrong
    whole = numbers.keys() == {"loss", "steps"} and isinstance(numbers["steps"], int)
    if not whole and (numbers.keys() != {"share"} or numbers["share"] >= 1):
        raise wrong
    return Start(arm=value["arm"], settings=_settings(arms[value["arm"]]), **numbers)


def _settings(arm: Any) -> dict[str, Any]:
    """What an arm sets of a run's configuration."""
    given = arm if isinstance(arm, dict) else {}  # _arm reports anything else, in its own turn
    return {key: value for key, value in given.items() if key not in ("start", "budget")}
