"""Numbers and moments in the words of the status page. Pure."""

from __future__ import annotations

import re
from datetime import datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_SPACE = "\N{NO-BREAK SPACE}"  # between a number and its unit, which belong on one line
_CODE = re.compile(r"`([^`]+)`|(\baskfirst(?: [a-z][a-z_-]*)+(?: [a-z][\w-]*)?(?=$|[ .,;:)]))")


def number(value: float) -> str:
    """A count: 12,345."""
    return f"{value:,.0f}"


def counted(value: int, what: str, many: str = "") -> str:
    """A count with its noun: "1 run", "2 runs"."""
    return f"{number(value)} {what}" if value == 1 else f"{number(value)} {many or what + 's'}"


def seconds(value: float) -> str:
    """How long something took: "0.4 s", "12 s", "2 min 5 s"."""
    if value < 10:
        return f"{value:.1f}{_SPACE}s"
    if round(value) < _MINUTE:
        return f"{value:.0f}{_SPACE}s"
    minutes, rest = divmod(round(value), _MINUTE)
    whole = f"{number(minutes)}{_SPACE}min"
    return f"{whole} {rest}{_SPACE}s" if rest else whole


def money(micros: int) -> str:
    """Millionths of a USD as dollars; small sums keep their digits."""
    amount = micros / 1_000_000
    return f"${amount:,.2f}" if amount >= 1 or not micros else f"${amount:.4f}"


def size(value: float) -> str:
    """Bytes, in powers of 1,000 as disks are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.{0 if unit == 'bytes' or value >= 10 else 1}f}{_SPACE}{unit}"
        value /= 1000
    return f"{value:.1f}{_SPACE}TB"


def duration(value: float) -> str:
    """A stretch of time, roughly: "12 min", "3 h", "4 days"."""
    if value < _MINUTE:
        return f"{value:.0f}{_SPACE}s"
    if value < _HOUR:
        return f"{value / _MINUTE:.0f}{_SPACE}min"
    if value < 2 * _DAY:
        return f"{value / _HOUR:.0f}{_SPACE}h"
    return f"{value / _DAY:.0f}{_SPACE}days"


def relative(moment: datetime, now: datetime) -> str:
    """How far away a moment is: "in 12 min", "3 h ago", "now"."""
    distance = (moment - now).total_seconds()
    if abs(distance) < 1:
        return "now"
    return f"in {duration(distance)}" if distance > 0 else f"{duration(-distance)} ago"


def clock(moment: datetime, now: datetime) -> str:
    """A moment by the local clock: the time alone today, with the day on others."""
    local = moment.astimezone()
    if local.date() == now.astimezone().date():
        return f"{local:%H:%M}"
    if abs((moment - now).days) < 200:
        return f"{local:%a} {local.day} {local:%b}, {local:%H:%M}"
    return f"{local.day} {local:%b %Y}, {local:%H:%M}"


def iso(moment: datetime) -> str:
    """A moment as HTML's `datetime` wants it."""
    return moment.isoformat(timespec="seconds")


def pieces(text: str) -> list[tuple[bool, str]]:
    """A sentence in pieces, each with whether it is a command to type: in backquotes, or one of ours."""
    found: list[tuple[bool, str]] = []
    end = 0
    for match in _CODE.finditer(text):
        found += [(False, text[end : match.start()]), (True, match[1] or match[2])]
        end = match.end()
    return [each for each in (*found, (False, text[end:])) if each[1]]
