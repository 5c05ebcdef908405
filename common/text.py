"""Small things done to text."""


def split_list(text: str) -> list[str]:
    """'a, b,a' as ['a', 'b']: each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",")))
