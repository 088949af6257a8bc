"""Offers and needs in a SQLite database: two queries to read them, three tables to write a match."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any

from agents.builtin.matchmaker.columns import fields_of
from agents.builtin.matchmaker.ledger import COLUMNS, MatchRow, Order, require, require_undoable, total
from agents.builtin.matchmaker.quantities import LARGEST, MAX_DECIMALS, replace_number
from agents.builtin.matchmaker.records import Record, Row, Side
from agents.builtin.matchmaker.settings import MatchmakerSettings
from agents.builtin.matchmaker.sources import Loaded, Source, records_of
from agents.errors import AgentError, PreconditionFailed, SourceError

SIDES: tuple[Side, Side] = ("offer", "need")
BUSY_SECONDS = 10.0
"""How long to wait for another program that writes to the database."""

Stored = int | float | str


class SqliteSource(Source):
    """The database.

    Args:
        database: the file; it must exist.
        settings: queries, tables and columns.
        zone: the time zone that its dates are meant in.
    """

    def __init__(self, database: Path, settings: MatchmakerSettings, zone: tzinfo) -> None:
        self._database = database
        self._zone = zone
        self._queries: Mapping[Side, str] = {"offer": settings.offers_query, "need": settings.needs_query}
        self._tables: Mapping[Side, str] = {"offer": settings.offers_table, "need": settings.needs_table}
        self._matches = settings.matches_table
        self._id, self._quantity = settings.id_column, settings.quantity_column

    def load(self) -> Loaded:
        """Everything that the queries give; see `Source.load`."""
        with self._connected("ro") as connection:
            connection.execute("BEGIN")  # both queries see the same moment
            (offers, one), (needs, other) = (self._records(connection, side) for side in SIDES)
        return Loaded(offers=offers, needs=needs, notes=(*one, *other))

    def is_applied(self, key: str) -> bool:
        """Whether the table of matches has that key; see `Source.is_applied`."""
        with self._connected("ro") as connection:
            query = "SELECT 1 FROM sqlite_master WHERE name = ?"
            made = connection.execute(query, (self._matches,)).fetchone()
            return made is not None and self._find(connection, key) is not None

    def apply(self, order: Order) -> dict[str, Any]:
        """Insert the match and decrease both quantities in one transaction; see `Source.apply`."""
        with self._connected("rw") as connection, _transaction(connection):
            connection.execute(f"CREATE TABLE IF NOT EXISTS {_name(self._matches)} ({_columns()})")
            match = self._find(connection, order.key)
            if match is None:
                match = self._write(connection, order)
            return self._undo_data(connection, match)

    def undo(self, key: str, data: Mapping[str, Any]) -> None:
        """Restore both quantities and delete the match in one transaction; see `Source.undo`."""
        with self._connected("rw") as connection, _transaction(connection):
            match, matches = self._find(connection, key), self._all(connection)
            for side in SIDES:
                kept = data[side]
                found = self._records(connection, side)[0].get(kept["id"])
                record = require_undoable(found, kept, matches, side, self._tables[side])
                if match is not None:
                    self._give_back(connection, side, record, match)
            connection.execute(f"DELETE FROM {_name(self._matches)} WHERE proposal = ?", (key,))

    @contextmanager
    def _connected(self, mode: str) -> Iterator[sqlite3.Connection]:
        """A connection whose errors come out as ours; the database is never made."""
        try:
            uri = f"{self._database.absolute().as_uri()}?mode={mode}"
            with closing(
                sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
            ) as connection:
                # EXTRA: a commit that was reported survives a power cut in every journal mode.
                connection.execute("PRAGMA synchronous = EXTRA")
                yield connection
        except sqlite3.Error as error:
            msg = (
                f"{self._database}: {error}; the settings 'database', 'offers_query' and 'needs_query' "
                "say what is read"
            )
            raise (SourceError if mode == "ro" else AgentError)(msg) from error

    def _records(self, connection: sqlite3.Connection, side: Side) -> tuple[dict[str, Record], list[str]]:
        cursor = connection.execute(self._queries[side])
        header = [column[0] for column in cursor.description or ()]
        fields = fields_of(header, f"{self._database.name}: {side}s_query")
        rows = []
        for number, values in enumerate(cursor, start=1):
            texts = ["" if value is None else str(value) for value in values]
            amount = values[fields.index("quantity")]
            rows.append(
                Row(
                    values={f"{name}#{header[:n].count(name)}": texts[n] for n, name in enumerate(header)},
                    fields=fields,
                    quantity=_exact(amount),
                    locator=f"row {number}",
                    excerpt=" | ".join(texts),
                )
            )
        return records_of(rows, side, f"{self._database.name}:{self._tables[side]}", self._zone)

    def _write(self, connection: sqlite3.Connection, order: Order) -> MatchRow:
        payload = order.payload
        ids: Mapping[Side, str] = {"offer": payload.offer_id, "need": payload.need_id}
        found = [self._records(connection, side)[0].get(ids[side]) for side in SIDES]
        offer, need = require(order, found[0], found[1])
        one = self._decrease(connection, "offer", offer, payload.offer_quantity)
        other = self._decrease(connection, "need", need, payload.quantity)
        match = MatchRow.of(order, (one[0], other[0]), (one[1], other[1]))
        marks = ", ".join("?" * len(COLUMNS))
        connection.execute(f"INSERT INTO {_name(self._matches)} VALUES ({marks})", match.cells(COLUMNS))
        return match

    def _decrease(
        self, connection: sqlite3.Connection, side: Side, record: Record, by: Decimal
    ) -> tuple[str, str]:
        """Take from a record; the stored values before and after, as JSON."""
        before = self._stored(connection, side, record.id)
        after = _like(before, record.quantity - by)
        self._store(connection, side, record.id, after)
        return json.dumps(before), json.dumps(after)

    def _give_back(self, connection: sqlite3.Connection, side: Side, record: Record, match: MatchRow) -> None:
        now: Stored = self._stored(connection, side, record.id)
        before: Stored = json.loads(match.before(side))
        as_left = json.dumps(now) == match.after(side)
        self._store(
            connection,
            side,
            record.id,
            before if as_left else _like(before, record.quantity + match.taken(side)),
        )

    def _stored(self, connection: sqlite3.Connection, side: Side, record_id: str) -> Stored:
        """The stored quantity of one row."""
        query = f"SELECT {_name(self._quantity)} FROM {_name(self._tables[side])} WHERE {self._where()}"
        rows = connection.execute(query, (record_id,)).fetchall()
        if len(rows) != 1:
            msg = (
                f"{self._tables[side]}: there are {len(rows)} rows whose {self._id} is {record_id!r}; "
                "there must be one"
            )
            raise AgentError(msg)
        value: Stored = rows[0][0]
        return value

    def _store(self, connection: sqlite3.Connection, side: Side, record_id: str, value: Stored) -> None:
        query = f"UPDATE {_name(self._tables[side])} SET {_name(self._quantity)} = ? WHERE {self._where()}"
        connection.execute(query, (value, record_id))
        stored = self._stored(connection, side, record_id)
        if stored != value:
            msg = (
                f"{self._tables[side]}: {self._quantity} of {record_id} is {stored!r} after {value!r} "
                "was written; nothing was changed"
            )
            raise PreconditionFailed(msg)

    def _where(self) -> str:
        return f"CAST({_name(self._id)} AS TEXT) = ?"

    def _find(self, connection: sqlite3.Connection, key: str) -> MatchRow | None:
        return next((match for match in self._all(connection) if match.proposal == key), None)

    def _all(self, connection: sqlite3.Connection) -> list[MatchRow]:
        columns = ", ".join(_name(column) for column in COLUMNS)
        rows = connection.execute(f"SELECT {columns} FROM {_name(self._matches)}").fetchall()
        return [MatchRow(**dict(zip(COLUMNS, map(str, row), strict=True))) for row in rows]

    def _undo_data(self, connection: sqlite3.Connection, match: MatchRow) -> dict[str, Any]:
        """What undo needs, from what is stored, so that it is the same after a crash."""
        matches = self._all(connection)
        data: dict[str, Any] = {"match": {"table": self._matches, "proposal": match.proposal}}
        for side in SIDES:
            record_id = match.record_id(side)
            record = self._records(connection, side)[0].get(record_id)
            if record is None:
                msg = (
                    f"{self._tables[side]}: the row {record_id} of a match that was applied is gone or "
                    "cannot be read any more"
                )
                raise AgentError(msg)
            data[side] = {
                "table": self._tables[side],
                "id": record_id,
                "before": json.loads(match.before(side)),
                "after": json.loads(match.after(side)),
                "identity": record.identity,
                "total": str(total(record.quantity, matches, side, record_id)),
            }
        return data


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _name(identifier: str) -> str:
    """An identifier as SQL has it, whatever is in it."""
    return '"' + identifier.replace('"', '""') + '"'


def _columns() -> str:
    return ", ".join(
        f"{_name(column)} TEXT{' PRIMARY KEY' if column == 'proposal' else ''}" for column in COLUMNS
    )


def _exact(value: object) -> Decimal | None:
    """A stored number, without the noise of floating point; None for anything else."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(Decimal(str(value)), MAX_DECIMALS) if abs(value) < LARGEST else Decimal(LARGEST)


def _like(old: Stored, value: Decimal) -> Stored:
    """`value` in the way the old one is stored: whole number, floating point number or text."""
    if isinstance(old, str):
        return replace_number(old, value)
    if isinstance(old, int) and value == value.to_integral_value():
        return int(value)
    return float(value)
