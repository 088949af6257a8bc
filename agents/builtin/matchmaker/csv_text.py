"""A CSV text as records that know where they stand, so that one cell can change and every other byte stays.

Python's csv module reads the same records (a test compares them), but does not say where in the text they
are.
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.errors import SourceError

DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of a record.

    Attributes:
        start: where it begins in the text, its quote included.
        end: where it ends, its quote included.
        text: what it says, without quotes.
    """

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class CsvRecord:
    """One record.

    Attributes:
        start: where it begins in the text.
        end: where it ends, its line ending not included.
        after: where the next one begins.
        line: the line it begins on, from 1.
        cells: its fields.
    """

    start: int
    end: int
    after: int
    line: int
    cells: tuple[Cell, ...]

    @property
    def texts(self) -> list[str]:
        """What its fields say."""
        return [cell.text for cell in self.cells]

    @property
    def is_blank(self) -> bool:
        """Whether nothing is written in it."""
        return not any(cell.text.strip() for cell in self.cells)


def split_records(text: str, delimiter: str, name: str, start: int = 0) -> list[CsvRecord]:
    """All records of a text.

    Args:
        text: the whole file.
        delimiter: what separates fields.
        name: the file's name, for errors.
        start: where the first record begins.

    Raises:
        SourceError: a quote is opened and never closed.
    """
    reader = _Reader(text, delimiter, name, start)
    records = []
    while reader.at < len(text):
        records.append(reader.record())
    return records


def lines_in(text: str) -> int:
    """How many line endings there are: LF, CRLF or CR."""
    return text.count("\n") + text.count("\r") - text.count("\r\n")


class _Reader:
    def __init__(self, text: str, delimiter: str, name: str, start: int) -> None:
        self.at = self._start = start
        self._text = text
        self._delimiter = delimiter
        self._name = name
        self._line = 1 + lines_in(text[:start])

    def record(self) -> CsvRecord:
        """The record at `at`; `at` is behind its line ending afterwards."""
        start, line = self.at, self._line
        self._start = start
        cells = [self._cell()]
        while self._peek() == self._delimiter:
            self.at += 1
            cells.append(self._cell())
        end = self.at
        self.at += 2 if self._text.startswith("\r\n", end) else len(self._peek())
        self._line += lines_in(self._text[start : self.at])
        return CsvRecord(start, end, self.at, line, tuple(cells))

    def _peek(self) -> str:
        return self._text[self.at : self.at + 1]

    def _cell(self) -> Cell:
        start = self.at
        quoted = self._quoted() if self._peek() == '"' else ""
        behind = self.at  # text behind a closing quote belongs to the field, as the csv module has it
        while (c := self._peek()) and c != self._delimiter and c not in "\r\n":
            self.at += 1
        return Cell(start, self.at, quoted + self._text[behind : self.at])

    def _quoted(self) -> str:
        opened = self.at
        closing = self._text.find('"', opened + 1)
        while closing >= 0 and self._text.startswith('""', closing):
            closing = self._text.find('"', closing + 2)
        if closing < 0:
            line = self._line + lines_in(self._text[self._start : opened])
            column = opened - max(self._text.rfind(end, 0, opened) for end in "\r\n")
            msg = (
                f"{self._name}:{line}:{column}: a quote is opened here and never closed; close it or "
                "remove it"
            )
            raise SourceError(msg)
        self.at = closing + 1
        return self._text[opened + 1 : closing].replace('""', '"')


def written_cell(text: str, delimiter: str, *, quoted: bool = False) -> str:
    """A field as it stands in a CSV text: in quotes where it must be, or where it was."""
    needed = any(c in text for c in (delimiter, '"', "\n", "\r")) or text != text.strip()
    return '"' + text.replace('"', '""') + '"' if quoted or needed else text
