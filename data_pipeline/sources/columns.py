"""Records to texts: which keys hold document and summary, and how lists and objects become text.

One rule for all values: a text stands as it is, the items of a list are joined by line feeds, and an object is written
by a template such as `{speaker}: {content}`, whose values follow the same rule; so sections inside sections are written
to any depth.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transpooler.common import is_blank
from transpooler.data_pipeline.config import PrepareConfig

SOURCE_KEYS = ("article", "document", "text", "article_text", "sections", "txt")
TARGET_KEYS = ("abstract", "summary", "highlights", "abstract_text")
ID_KEYS = ("id", "article_id", "__key__")

_FIELD = re.compile(r"\{([^{}]+)\}")
_SENTENCE_MARKS = re.compile(r"^\s*<S>\s?|\s?</S>\s*$")
_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
_KINDS |= dict.fromkeys((int, float), "a number")


@dataclass(frozen=True, slots=True)
class NoText:
    """Why a record has no text for a column."""

    reason: str
    detail: str = ""
    """Which key, and what it holds."""


@dataclass(frozen=True, slots=True)
class Column:
    """One of a record's texts: source or target."""

    side: str
    names: tuple[str, ...]
    """Keys or templates; the first of which a record has all keys is used."""
    objects: str | None = None
    """Template of the objects inside; None: an object is no text."""

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys of a record that may be read."""
        return tuple(dict.fromkeys(key for name in self.names for key in _keys_of(name)))

    @property
    def wanted(self) -> str:
        """What a record needs to have, in words."""
        if len(self.names) > 1:
            return f"any of the keys {', '.join(self.names)}"
        return f"key {self.keys[0]!r}" if len(self.keys) == 1 else f"all of the keys {', '.join(self.keys)}"

    def read(self, record: dict[str, Any]) -> str | NoText:
        """The text of a record, or why it has none."""
        name = next((name for name in self.names if _has_all(record, _keys_of(name))), None)
        if name is None:
            return NoText(f"missing_{self.side}")
        try:
            text = fill(name, record, self.objects) if _FIELD.search(name) else write(record[name], self.objects, name)
        except UnicodeDecodeError:
            return NoText("not_utf8")
        except _WrongTypeError as error:
            return NoText("wrong_type", str(error))
        if is_blank(text):
            return NoText(f"empty_{self.side}")
        return text if is_encodable(text) else NoText("not_utf8")


@dataclass(frozen=True, slots=True)
class Columns:
    """How a record becomes a document: its texts, and lists that are taken apart first."""

    source: Column
    target: Column | None
    """None: summaries are not read."""
    lists: tuple[str, ...] = ()
    """Lists whose items are documents of their own, see `PrepareConfig.record_lists`."""

    @classmethod
    def choose(cls, source_column: str | None = None, *, require_target: bool) -> "Columns":
        """The given key of the document, or SOURCE_KEYS; the summary's are TARGET_KEYS."""
        return cls.of(PrepareConfig(source_column=source_column), require_target=require_target)

    @classmethod
    def of(cls, config: PrepareConfig, *, require_target: bool) -> "Columns":
        """The columns of a preparation."""
        source = Column("source", _names(config.source_column, SOURCE_KEYS), config.source_objects)
        target = Column("target", _names(config.target_column, TARGET_KEYS), config.target_objects)
        return cls(source, target if require_target else None, config.record_lists or ())

    @property
    def sides(self) -> tuple[Column, ...]:
        """The columns that are read."""
        return (self.source,) if self.target is None else (self.source, self.target)

    @property
    def other_keys(self) -> tuple[str, ...]:
        """Keys beside the document's that may be read."""
        return (*(() if self.target is None else self.target.keys), *self.lists, *ID_KEYS)


class _WrongTypeError(Exception):
    """A value that is no text: where it stands and what it is."""


def write(value: Any, objects: str | None, where: str) -> str:
    """The text of a value; `where` is its path. Raises _WrongTypeError, and UnicodeDecodeError for bytes."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8-sig")
    if isinstance(value, list):
        parts = [write(item, objects, f"{where}[{index}]") for index, item in enumerate(value)]
        return "\n".join(_SENTENCE_MARKS.sub("", part) for part in parts)
    if objects is None or not isinstance(value, dict):
        raise _WrongTypeError(f"{where} is {kind_of(value)}, not a text")
    if not any(key in value for key in _keys_of(objects)):
        raise _WrongTypeError(f"{where} is an object without any of the keys {', '.join(_keys_of(objects))}")
    return fill(objects, value, objects, f"{where}.")


def fill(template: str, record: dict[str, Any], objects: str | None, where: str = "") -> str:
    """Fill in a template. A line of it is left out if it has keys, and none of them has a text."""
    lines = []
    for line in template.split("\n"):
        texts = {
            key: "" if record.get(key) is None else write(record[key], objects, f"{where}{key}")
            for key in _FIELD.findall(line)
        }
        if not texts or not all(is_blank(text) for text in texts.values()):
            lines.append(_FIELD.sub(lambda match, texts=texts: texts[match[1]], line))  # type: ignore[misc]
    return "\n".join(lines)


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON."""
    return _KINDS.get(type(value), type(value).__name__)


def is_encodable(text: str) -> bool:
    """Whether UTF-8 can encode the text; lone surrogates, which JSON can spell, it cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _names(given: str | tuple[str, ...] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    return default if given is None else (given,) if isinstance(given, str) else given


def _keys_of(name: str) -> list[str]:
    """The keys of a template; a name without braces is a key."""
    return _FIELD.findall(name) or [name]


def _has_all(record: dict[str, Any], keys: Iterable[str]) -> bool:
    return all(record.get(key) is not None for key in keys)
