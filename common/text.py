"""Small things done to text."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

PAGE_BREAK = "\f"
_HYPHENATED = re.compile(r"(?<=[a-zß-öø-ÿ])-\r?\n(?=[a-zß-öø-ÿ])")
_LONGEST_WORD = 80
_WHITE_SPACE = re.compile(r"\s")
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff]")
_UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")


def split_list(text: str) -> list[str]:
    """'a, b,a' as ['a', 'b']: each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def list_some(items: Iterable[object], limit: int = 3, noun: str = "") -> str:
    """The first `limit` items, and how many are left out: 'a, b, c and 2 more', or 'and 2 more files' with a noun."""
    names = [str(item) for item in items]
    left_out = len(names) - limit
    if left_out <= 0:
        return ", ".join(names)
    kind = f" {noun}{'s' * (left_out > 1)}" if noun else ""
    return f"{', '.join(names[:limit])} and {left_out:,} more{kind}"


def percent(share: float | None, digits: int = 1) -> str:
    """0.1234 as '12.3'; nothing for None. The unit stands in the heading or after it."""
    return "" if share is None else f"{100 * share:.{digits}f}"


def is_blank(text: str) -> bool:
    """Whether nothing of the text can be seen: white space, control characters, characters of no width."""
    return all(unicodedata.category(char) in _UNSEEN for char in text)


def show_controls(text: str) -> str:
    """The text with control characters (but tabs and line feeds) as escapes: a name must not steer the terminal."""
    return _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: str) -> str:
    """The text as one line: as `show_controls`, line feeds too."""
    return show_controls(text).replace("\n", "\\n")


def cut_at_white_space(text: str, size: int) -> Iterator[str]:
    """Cut a text before white space, into pieces of `size` characters or a little more; together they are the text."""
    start = 0
    while start < len(text):
        space = _WHITE_SPACE.search(text, start + size)
        end = space.start() if space else len(text)
        yield text[start:end]
        start = end


def join_hyphenated(text: str) -> str:
    """Clean text from pdftotext, whose pages end in form feeds: join words hyphenated over lines, drop page breaks.

    A word that holds another hyphen (state-of-the-art) keeps the one at the line's end.
    """
    text = text.replace(PAGE_BREAK, "\n")

    def hyphen(match: re.Match[str]) -> str:
        before = text[max(0, match.start() - _LONGEST_WORD) : match.start()].split()[-1]
        after = text[match.end() : match.end() + _LONGEST_WORD].split()[0]
        return "-" if "-" in before or "-" in after[:-1] else ""

    return _HYPHENATED.sub(hyphen, text)
