"""Marks: which run of an agent is under way, in a few bytes that outlive the program.

A mark is one record of one size, written in place at the beginning of the agent's lock file while the lock is
held, so that writing it costs one page and makes no file. Whatever cannot be read as one, torn or foreign, is
no mark: nothing is known then, and nothing is raised.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from daemon.intake import one_line

SIZE = 512
"""Bytes of a record: the unit in which disks write, so that a power cut rarely tears it."""

_MAGIC = b"askfirst-run-1"
_LONGEST_TRIGGER = 64
_MOST = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A run that is under way, or that ended with the whole program.

    Attributes:
        run_id: the run.
        trigger: why it runs.
        started_at: when it began, UTC.
        due: the due time that it is for, None of a run by hand.
        attempt: which attempt it is for that due time, beginning with 1.
        crashes: runs in a row, up to this one, that ended with the whole program.
        under_way: False once it was found out that it ended with the whole program.
    """

    run_id: str
    trigger: str
    started_at: datetime
    due: datetime | None = None
    attempt: int = 1
    crashes: int = 0
    under_way: bool = True


def to_bytes(mark: Mark | None) -> bytes:
    """The record of a mark, or of "nothing is under way"; `SIZE` bytes."""
    text = b"{}" if mark is None else json.dumps(_data(mark), separators=(",", ":")).encode("ascii")
    return (b"%b %08x %b" % (_MAGIC, zlib.crc32(text), text)).ljust(SIZE - 1) + b"\n"


def from_bytes(record: bytes) -> Mark | None:
    """The mark in a record; None when nothing is under way, and when it cannot be read."""
    magic, _, rest = record[:SIZE].partition(b" ")
    checksum, _, text = rest.partition(b" ")
    text = text.rstrip(b" \n")
    if magic != _MAGIC or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        return _mark(json.loads(text))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def read_mark(descriptor: int) -> Mark | None:
    """The mark at the beginning of an open file; None too when a failing disk does not give it."""
    try:
        return from_bytes(os.pread(descriptor, SIZE, 0))
    except OSError:  # the run goes on, and the database says what is wrong with the disk
        return None


def write_mark(descriptor: int, mark: Mark | None, *, durable: bool = False) -> None:
    """Write a mark, or that nothing is under way, at the beginning of an open file.

    Args:
        descriptor: the file.
        mark: what to write.
        durable: wait until it would survive a power cut.

    Raises:
        OSError: the file cannot be written.
    """
    os.pwrite(descriptor, to_bytes(mark), 0)
    if durable:
        _flush(descriptor)


def _flush(descriptor: int) -> None:
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
    else:  # macOS has none
        os.fsync(descriptor)


def _data(mark: Mark) -> dict[str, Any]:
    return {
        "run": mark.run_id,
        "trigger": one_line(mark.trigger, _LONGEST_TRIGGER).encode("ascii", "replace").decode("ascii"),
        "started": mark.started_at.astimezone(UTC).isoformat(),
        "due": None if mark.due is None else mark.due.astimezone(UTC).isoformat(),
        "attempt": min(mark.attempt, _MOST),
        "crashes": min(mark.crashes, _MOST),
        "under_way": mark.under_way,
    }


def _mark(data: Any) -> Mark | None:
    """Raises ValueError, TypeError or KeyError for what no program of ours has written."""
    if data == {}:
        return None
    return Mark(
        run_id=_text(data["run"]),
        trigger=_text(data["trigger"]),
        started_at=_moment(data["started"]),
        due=None if data["due"] is None else _moment(data["due"]),
        attempt=_number(data["attempt"]),
        crashes=_number(data["crashes"]),
        under_way=data["under_way"] is True,
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        msg = "no text"
        raise TypeError(msg)
    return value


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        msg = "no number of runs"
        raise TypeError(msg)
    return value


def _moment(value: Any) -> datetime:
    return datetime.fromisoformat(value).astimezone(UTC)
