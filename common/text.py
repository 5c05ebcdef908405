"""Small things done to text."""


def split_list(text: str) -> list[str]:
    """'a, b,a' as ['a', 'b']: each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def percent(share: float | None, digits: int = 1) -> str:
    """0.1234 as '12.3'; nothing for None. The unit stands in the heading or after it."""
    return "" if share is None else f"{100 * share:.{digits}f}"
