"""Durations as people write them: "15m", "1h30m", "2d". No scheduler is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

FORMS = 'a duration such as "90s", "15m", "1h30m" or "2d"; a bare number counts seconds'
"""What `parse_duration` reads, for messages."""

LONGEST = timedelta(days=3650)
"""Ten years: longer than anything waits, short enough to be added to any date."""

_UNITS: Mapping[str, timedelta] = MappingProxyType(
    {
        "w": timedelta(weeks=1),
        "d": timedelta(days=1),
        "h": timedelta(hours=1),
        "m": timedelta(minutes=1),
        "s": timedelta(seconds=1),
        "ms": timedelta(milliseconds=1),
    }
)
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,6})?"
# Each unit once and the larger one first, so that "5m1h" is seen as the slip it is.
_DURATION = re.compile(" *".join(rf"(?:(?P<{unit}>{_NUMBER}) *{unit})?" for unit in _UNITS))


def parse_duration(value: str | float) -> timedelta:
    """Read a duration.

    Args:
        value: numbers with the units w, d, h, m, s and ms, the larger unit first, such as "1h30m" or
            "1.5h"; a bare number, or a text that is one, counts seconds.

    Raises:
        ValueError: it is no duration, or longer than ten years; the message names it and the forms.
    """
    text = value.strip().lower() if isinstance(value, str) else _as_text(value)
    if re.fullmatch(_NUMBER, text):
        text += "s"
    match = _DURATION.fullmatch(text)
    if not text or match is None:
        msg = f"{value!r} is not a duration; use {FORMS}"
        raise ValueError(msg)
    try:
        total = sum((_UNITS[u] * float(n) for u, n in match.groupdict().items() if n), timedelta())
    except OverflowError:
        total = timedelta.max
    if total > LONGEST:
        msg = f"{value!r} is too long; the longest duration is {format_duration(LONGEST)}"
        raise ValueError(msg)
    return total


def _as_text(value: object) -> str:
    """A number as the text it is read from; anything else as a text that is no duration."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return f"{value:f}" if isinstance(value, float) else str(value)


def format_duration(duration: timedelta) -> str:
    """The duration as `parse_duration` reads it, to the millisecond: "1h30m", "0s"; "-5m" if negative."""
    left = round(abs(duration) / _UNITS["ms"])
    parts: list[str] = []
    for unit, length in _UNITS.items():
        if unit == "w":
            continue  # "10d" says more than "1w3d"
        count, left = divmod(left, length // _UNITS["ms"])
        if count:
            parts.append(f"{count}{unit}")
    sign = "-" if duration < timedelta() and parts else ""
    return sign + ("".join(parts) or "0s")
