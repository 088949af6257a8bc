"""A folder with offers.csv and needs.csv, and matches.csv for what was matched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any

from agents.builtin.matchmaker.books import FILES, MATCHES, SIDES, Book, Matches
from agents.builtin.matchmaker.csv_text import CsvRecord
from agents.builtin.matchmaker.journal import Change, commit, locked
from agents.builtin.matchmaker.ledger import MatchRow, Order, require, require_undoable, total
from agents.builtin.matchmaker.payload import MatchPayload
from agents.builtin.matchmaker.records import Record, Side
from agents.builtin.matchmaker.sources import Loaded, Source
from agents.errors import AgentError

NAMES = (*FILES.values(), MATCHES)


class CsvSource(Source):
    """The folder.

    Args:
        folder: where the files are.
        zone: the time zone that their dates are meant in.
    """

    def __init__(self, folder: Path, zone: tzinfo) -> None:
        self._folder = folder
        self._zone = zone

    def load(self) -> Loaded:
        """Everything in the folder; see `Source.load`."""
        with locked(self._folder, NAMES):
            books = self._books()
        (offers, one), (needs, other) = (books[side].records for side in SIDES)
        return Loaded(offers=offers, needs=needs, notes=(*one, *other))

    def is_applied(self, key: str) -> bool:
        """Whether matches.csv has that key; see `Source.is_applied`."""
        with locked(self._folder, NAMES):
            return Matches.read(self._folder).find(key) is not None

    def apply(self, order: Order) -> dict[str, Any]:
        """Append the match and decrease both quantities; see `Source.apply`."""
        with self._writing():
            books, matches = self._books(), Matches.read(self._folder)
            done = matches.find(order.key)
            if done is None:
                self._write(order, books, matches)
                books, matches = self._books(), Matches.read(self._folder)
                done = matches.find(order.key)
            if done is None:
                msg = (
                    f"{MATCHES}: the row {order.key} that was just written is not there; another program "
                    "writes this file"
                )
                raise AgentError(msg)
            return self._undo_data(done, books, matches)

    def undo(self, key: str, data: Mapping[str, Any]) -> None:
        """Restore the records and remove the row of the match; see `Source.undo`."""
        with self._writing():
            books, matches = self._books(), Matches.read(self._folder)
            done = matches.find(key)
            row = done[1] if done else None
            changes = [_restored(books[side], row, matches.all, data[side]) for side in SIDES]
            if done is not None:
                removed = Change(name=MATCHES, old=matches.old(), new=matches.removed(done[0]))
                commit(self._folder, [*(change for change in changes if change), removed])

    def _books(self) -> dict[Side, Book]:
        return {side: Book.read(self._folder, side, self._zone) for side in SIDES}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with locked(self._folder, NAMES):
            for name in NAMES:
                lock = self._folder / f".~lock.{name}#"
                if lock.exists():
                    msg = (
                        f"{self._folder / name} is open in LibreOffice, which would overwrite the "
                        "change; close it there, "
                        f"or delete {lock.name} if it is not open any more"
                    )
                    raise AgentError(msg)
            yield

    def _write(self, order: Order, books: Mapping[Side, Book], matches: Matches) -> None:
        payload = order.payload
        found = [books[side].records[0].get(record_id) for side, record_id in _ids(payload)]
        offer, need = require(order, found[0], found[1])
        one = _decrease(books["offer"], offer, payload.offer_quantity)
        other = _decrease(books["need"], need, payload.quantity)
        mark, like = books["offer"].mark, books["offer"].sheet
        row = MatchRow.of(order, (one.before, other.before), (one.after, other.after), mark)
        written = Change(name=MATCHES, old=matches.old(), new=matches.appended(row, like))
        commit(self._folder, [one.change, other.change, written])

    def _undo_data(
        self, done: tuple[CsvRecord, MatchRow], books: Mapping[Side, Book], matches: Matches
    ) -> dict[str, Any]:
        """What undo needs, from what stands in the files, so that it is the same after a crash."""
        record, row = done
        text = matches.sheet.raw(record) if matches.sheet else ""
        data: dict[str, Any] = {"match": {"file": MATCHES, "text": text}}
        return data | {side: _side_data(books[side], row, matches.all) for side in SIDES}


@dataclass(frozen=True, slots=True)
class _Decrease:
    """The cell of a quantity before and after, as it stands, and the change of the file."""

    before: str
    after: str
    change: Change


def _decrease(book: Book, record: Record, by: Decimal) -> _Decrease:
    row = book.row(record.id)
    before, after = book.raw_quantity(row), book.raw_with(row, record.quantity - by)
    text = book.with_raw_quantity(row, after)
    return _Decrease(before, after, Change(name=book.name, old=book.sheet.text, new=text))


def _ids(payload: MatchPayload) -> tuple[tuple[Side, str], tuple[Side, str]]:
    return ("offer", payload.offer_id), ("need", payload.need_id)


def _restored(
    book: Book, match: MatchRow | None, matches: list[MatchRow], kept: Mapping[str, Any]
) -> Change | None:
    """The change that gives a record its quantity back; None when it has it already.

    Raises:
        UndoConflict: somebody changed the record in between.
    """
    record = require_undoable(book.records[0].get(kept["id"]), kept, matches, book.side, book.name)
    if match is None:
        return None
    row = book.row(record.id)
    if book.raw_quantity(row) == match.after(book.side):
        raw = match.before(book.side)
    else:  # other matches of the same record came or went in between
        style = _unquoted(match.before(book.side))
        raw = book.raw_with(row, record.quantity + match.taken(book.side), style)
    return Change(name=book.name, old=book.sheet.text, new=book.with_raw_quantity(row, raw))


def _side_data(book: Book, match: MatchRow, matches: list[MatchRow]) -> dict[str, Any]:
    record_id = match.record_id(book.side)
    record = book.records[0].get(record_id)
    if record is None:
        msg = (
            f"{book.name}: the row {record_id} of a match that was applied is gone or cannot be read any more"
        )
        raise AgentError(msg)
    start, end = book.around_quantity(book.row(record_id))
    return {
        "file": book.name,
        "id": record_id,
        "before": start + match.before(book.side) + end,
        "after": start + match.after(book.side) + end,
        "identity": record.identity,
        "total": str(total(record.quantity, matches, book.side, record_id)),
    }


def _unquoted(raw: str) -> str:
    return raw[1:-1].replace('""', '"') if len(raw) > 1 and raw.startswith('"') else raw
