"""Sheet: one CSV file as people keep it, with its own delimiter, line endings and byte order mark."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.builtin.matchmaker.csv_text import DELIMITERS, CsvRecord, split_records, written_cell
from agents.errors import SourceError

_BOM = "\ufeff"
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
MAX_BYTES = 64 * 1024 * 1024
"""Largest file that is read: some hundred thousand rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A CSV file in memory.

    Attributes:
        path: the file.
        text: all of it, byte order mark included.
        delimiter: what separates its fields.
        newline: its line ending.
        header: its first record.
        rows: the other records that are not blank.
    """

    path: Path
    text: str
    delimiter: str
    newline: str
    header: CsvRecord
    rows: tuple[CsvRecord, ...]

    def raw(self, record: CsvRecord) -> str:
        """A record as it stands, without its line ending."""
        return self.text[record.start : record.end]

    def with_raw_cell(self, record: CsvRecord, column: int, raw: str) -> str:
        """The whole text with one cell replaced by `raw`, quotes included."""
        cell = record.cells[column]
        return self.text[: cell.start] + raw + self.text[cell.end :]

    def raw_cell(self, record: CsvRecord, column: int) -> str:
        """A cell as it stands, its quotes included."""
        cell = record.cells[column]
        return self.text[cell.start : cell.end]

    def with_row(self, cells: Sequence[str]) -> str:
        """The whole text with one more record at its end."""
        row = self.delimiter.join(written_cell(cell, self.delimiter) for cell in cells)
        if self.text.endswith(("\n", "\r")):
            return self.text + row + self.newline
        return self.text + self.newline + row

    def without(self, record: CsvRecord) -> str:
        """The whole text without a record; an unended last line takes the line ending before it along."""
        start = record.start
        if record.after == record.end:
            before = self.text[:start]
            start -= len(before) - len(before.removesuffix("\n").removesuffix("\r"))
        return self.text[:start] + self.text[record.after :]


def read_sheet(path: Path, known: Callable[[str], bool]) -> Sheet:
    """Read a CSV file: UTF-8 with or without a byte order mark; comma, semicolon or tab; any line ending.

    Args:
        path: the file.
        known: whether a heading is known; the delimiter that shows most known headings is taken.

    Raises:
        SourceError: the file cannot be read, or is no CSV file with a header.
    """
    text = _decoded(path)
    start = len(_BOM) if text.startswith(_BOM) else 0
    separator = _SEPARATOR_LINE.match(text, start)
    start = separator.end() if separator else start
    delimiter = separator[1] if separator else _delimiter(text, start, path.name, known)
    found = [record for record in split_records(text, delimiter, path.name, start) if not record.is_blank]
    if not found:
        msg = (
            f"{path.name}:1: the file is empty; its first line must name the columns: id, item, "
            "quantity, unit, ..."
        )
        raise SourceError(msg)
    return Sheet(
        path=path,
        text=text,
        delimiter=delimiter,
        newline=_newline(text),
        header=found[0],
        rows=tuple(found[1:]),
    )


def _decoded(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        msg = f"{path}: {error.strerror or error}"
        raise SourceError(msg) from error
    if len(data) > MAX_BYTES:
        msg = f"{path}: larger than {MAX_BYTES // 2**20} MB; is it the right file?"
        raise SourceError(msg)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data:
        msg = f"{path}: this is not UTF-8 text; save it again as 'CSV UTF-8'"
        raise SourceError(msg)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        msg = (
            f"{path.name}:{line}:{column}: the byte 0x{data[error.start]:02x} is not UTF-8; save the "
            "file again as 'CSV UTF-8'"
        )
        raise SourceError(msg) from error


def _delimiter(text: str, start: int, name: str, known: Callable[[str], bool]) -> str:
    """The delimiter with which the first line shows most known headings."""
    scores = {}
    for delimiter in DELIMITERS:
        first = next(
            (r for r in split_records(_first_line(text, start), delimiter, name) if not r.is_blank), None
        )
        scores[delimiter] = sum(known(heading) for heading in first.texts) if first else 0
    return max(scores, key=lambda delimiter: scores[delimiter])


def _first_line(text: str, start: int) -> str:
    """The first line that is not blank; headings do not span lines."""
    return next((line for line in text[start:].splitlines() if line.strip()), "").replace('"', "")


def _newline(text: str) -> str:
    """The line ending that the file uses first; LF for a file of one line."""
    found = re.search(r"\r\n|\n|\r", text)
    return found[0] if found else "\n"
