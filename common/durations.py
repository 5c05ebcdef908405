"""Durations as people write them."""

import re

SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PARTS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def duration_s(value: str | float) -> float | None:
    """Seconds of a number of seconds or of days, hours, minutes, seconds such as '1h30m'; None for anything else."""
    try:
        return float(value)
    except ValueError:
        match = _PARTS.fullmatch(str(value).replace(" ", ""))
        if match is None or not any(match.groups()):
            return None
        return float(sum(int(count or 0) * unit for count, unit in zip(match.groups(), SECONDS.values(), strict=True)))


def format_duration(seconds: float) -> str:
    """Two largest units: '45 s', '3 m 5 s', '2 d 1 h'."""
    left, parts = round(seconds), []
    for name, unit in SECONDS.items():
        count, left = divmod(left, unit)
        if count:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"
