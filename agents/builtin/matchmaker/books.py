"""The files of a CSV folder: offers.csv and needs.csv as books of records, and matches.csv."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import tzinfo
from decimal import Decimal
from functools import cached_property
from pathlib import Path

from agents.builtin.matchmaker.columns import Field, field_of, fields_of
from agents.builtin.matchmaker.csv_text import CsvRecord, written_cell
from agents.builtin.matchmaker.ledger import COLUMNS, MatchRow
from agents.builtin.matchmaker.quantities import BadQuantity, parse_quantity, replace_number
from agents.builtin.matchmaker.records import Record, Row, Side
from agents.builtin.matchmaker.sheet import Sheet, read_sheet
from agents.builtin.matchmaker.sources import records_of
from agents.errors import SourceError

FILES: Mapping[Side, str] = {"offer": "offers.csv", "need": "needs.csv"}
MATCHES = "matches.csv"
SIDES: tuple[Side, Side] = ("offer", "need")


@dataclass(frozen=True)
class Book:
    """One of the two files with its records."""

    side: Side
    sheet: Sheet
    fields: tuple[Field | None, ...]
    zone: tzinfo

    @classmethod
    def read(cls, folder: Path, side: Side, zone: tzinfo) -> Book:
        """Read the file of one side.

        Raises:
            SourceError: it cannot be used at all.
        """
        sheet = read_sheet(folder / FILES[side], lambda heading: field_of(heading) is not None)
        where = f"{FILES[side]}:{sheet.header.line}"
        return cls(side, sheet, tuple(fields_of(sheet.header.texts, where)), zone)

    @cached_property
    def records(self) -> tuple[dict[str, Record], list[str]]:
        """The usable records by id, and notes about the other rows."""
        rows, notes = [], []
        # A delimiter at the end of every row is a habit of some programs; at the end of one it is a slip.
        habit = len({len(record.cells) for record in self.sheet.rows}) == 1
        for record in self.sheet.rows:
            extra = record.texts[len(self.fields) :]
            if extra and not (habit and not any(cell.strip() for cell in extra)):
                notes.append(self._too_long(record))
            else:
                rows.append(self._row(record))
        found, more = records_of(rows, self.side, self.sheet.path.name, self.zone)
        return found, notes + more

    def _too_long(self, record: CsvRecord) -> str:
        name, mark = self.sheet.path.name, "tab" if self.sheet.delimiter == "\t" else self.sheet.delimiter
        return (
            f"{name}:{record.line}: it has {len(record.cells)} fields, the header has {len(self.fields)}; "
            f'put a field that contains {mark!r} into quotes, such as "2,5"; this row was left out'
        )

    def _row(self, record: CsvRecord) -> Row:
        cells = record.texts[: len(self.fields)]
        cells += [""] * (len(self.fields) - len(cells))
        # Two columns of somebody's own may have the same heading; a number keeps them apart.
        names = [text.strip() for text in self.sheet.header.texts]
        headings = [f"{name}#{names[:n].count(name)}" for n, name in enumerate(names)]
        return Row(
            values=dict(zip(headings, cells, strict=True)),
            fields=self.fields,
            locator=f"line {record.line}",
            excerpt=self.sheet.raw(record),
        )

    @property
    def name(self) -> str:
        """The file's name."""
        return FILES[self.side]

    def row(self, record_id: str) -> CsvRecord:
        """The row of one of `records`."""
        column = self.fields.index("id")
        rows = (row for row in self.sheet.rows if len(row.cells) > column)
        return next(row for row in rows if row.cells[column].text.strip() == record_id)

    @property
    def quantity_column(self) -> int:
        """Number of the column of the quantity."""
        return self.fields.index("quantity")

    @cached_property
    def mark(self) -> str:
        """The decimal mark that most quantities of the file use."""
        marks = []
        for record in self.sheet.rows:
            if len(record.cells) > self.quantity_column:
                try:
                    marks.append(parse_quantity(record.cells[self.quantity_column].text).mark)
                except BadQuantity:
                    continue
        return "," if marks.count(",") > marks.count(".") else "."

    def raw_quantity(self, record: CsvRecord) -> str:
        """The cell of the quantity as it stands, quotes included."""
        return self.sheet.raw_cell(record, self.quantity_column)

    def raw_with(self, record: CsvRecord, value: Decimal, style: str | None = None) -> str:
        """That cell with another number in it, quotes included."""
        cell = record.cells[self.quantity_column].text
        text = replace_number(cell, value, self.mark, style)
        return written_cell(text, self.sheet.delimiter, quoted=self.raw_quantity(record).startswith('"'))

    def around_quantity(self, record: CsvRecord) -> tuple[str, str]:
        """The row as it stands, before and behind that cell."""
        cell = record.cells[self.quantity_column]
        return self.sheet.text[record.start : cell.start], self.sheet.text[cell.end : record.end]

    def with_raw_quantity(self, record: CsvRecord, raw: str) -> str:
        """The whole text of the file with that cell replaced."""
        return self.sheet.with_raw_cell(record, self.quantity_column, raw)


@dataclass(frozen=True)
class Matches:
    """matches.csv, which may not exist yet."""

    path: Path
    sheet: Sheet | None
    rows: tuple[tuple[CsvRecord, MatchRow], ...]

    @classmethod
    def read(cls, folder: Path) -> Matches:
        """Read it.

        Raises:
            SourceError: it is there and cannot be used.
        """
        path = folder / MATCHES
        if not path.exists() or not path.read_bytes().strip(b"\xef\xbb\xbf \r\n\t"):
            return cls(path, None, ())
        sheet = read_sheet(path, lambda heading: heading.strip() in COLUMNS)
        headings = [text.strip() for text in sheet.header.texts]
        missing = [name for name in COLUMNS if name not in headings]
        if missing:
            msg = (
                f"{MATCHES}:{sheet.header.line}: the columns {', '.join(missing)} are missing; move the "
                "file away, and a new one is made"
            )
            raise SourceError(msg)
        rows = []
        for record in sheet.rows:
            values = dict(zip(headings, [*record.texts, *[""] * len(headings)], strict=False))
            rows.append((record, MatchRow(**{name: values[name] for name in COLUMNS})))
        return cls(path, sheet, tuple(rows))

    def find(self, key: str) -> tuple[CsvRecord, MatchRow] | None:
        """The row of a proposal."""
        return next(((record, row) for record, row in self.rows if row.proposal.strip() == key), None)

    @property
    def all(self) -> list[MatchRow]:
        """Every row."""
        return [row for _, row in self.rows]

    def old(self) -> str | None:
        """Its text as it is, None when it does not exist."""
        return self.path.read_bytes().decode("utf-8") if self.path.exists() else None

    def appended(self, row: MatchRow, like: Sheet) -> str:
        """Its text with one more row; a new file looks like the sheet of the offers."""
        if self.sheet is not None:
            return self.sheet.with_row(row.cells(text.strip() for text in self.sheet.header.texts))
        body = like.delimiter.join(written_cell(cell, like.delimiter) for cell in row.cells(COLUMNS))
        return f"{self._header(like)}{body}{like.newline}"

    def _header(self, like: Sheet) -> str:
        return (
            ("\ufeff" if like.text.startswith("\ufeff") else "") + like.delimiter.join(COLUMNS) + like.newline
        )

    def removed(self, record: CsvRecord) -> str | None:
        """Its text without a row; None, that is no file, when only a header like ours would stay."""
        if self.sheet is None:
            return None
        left = self.sheet.without(record)
        bare = left.removeprefix("\ufeff").rstrip("\r\n")
        return None if bare == self.sheet.delimiter.join(COLUMNS) else left
