"""Source: where offers and needs come from, and where a match is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Any

from agents.builtin.matchmaker.ledger import Order
from agents.builtin.matchmaker.records import BadRow, Record, Row, Side, record_from
from agents.builtin.matchmaker.settings import MatchmakerSettings, zone_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a source holds.

    Attributes:
        offers: by id.
        needs: by id.
        notes: what could not be used, one sentence for each row.
    """

    offers: Mapping[str, Record]
    needs: Mapping[str, Record]
    notes: tuple[str, ...] = ()


class Source(ABC):
    """Offers and needs in one place. Methods block, and are safe against each other and other programs."""

    @abstractmethod
    def load(self) -> Loaded:
        """Everything it holds.

        Raises:
            SourceError: it cannot be used at all; the message names file, line and column.
        """

    @abstractmethod
    def is_applied(self, key: str) -> bool:
        """Whether the match of that key is written.

        Raises:
            SourceError: nobody can tell.
        """

    @abstractmethod
    def apply(self, order: Order) -> dict[str, Any]:
        """Write a match and decrease both quantities, all of it or nothing, once for `order.key`.

        Returns:
            What `undo` needs; the same again when it was already applied.

        Raises:
            PreconditionFailed: the rows are no longer as they were proposed.
            AgentError: it cannot be done.
        """

    @abstractmethod
    def undo(self, key: str, data: Mapping[str, Any]) -> None:
        """Take a match back, all of it or nothing; doing it again changes nothing.

        Raises:
            UndoConflict: somebody changed what it would restore.
            AgentError: it cannot be done.
        """


def open_source(settings: MatchmakerSettings, base_dir: Path) -> Source:
    """The source that the settings name; nothing is opened yet."""
    zone = zone_of(settings.timezone)
    if settings.source == "sqlite":
        from agents.builtin.matchmaker.sqlite_source import SqliteSource  # noqa: PLC0415 - only where it is used

        return SqliteSource(base_dir / (settings.database or Path()).expanduser(), settings, zone)
    from agents.builtin.matchmaker.csv_source import CsvSource  # noqa: PLC0415 - only where it is used

    return CsvSource(base_dir / (settings.folder or Path()).expanduser(), zone)


def records_of(
    rows: Iterable[Row], side: Side, source: str, zone: tzinfo
) -> tuple[dict[str, Record], list[str]]:
    """The usable rows by id, and a note about each of the others."""
    notes: list[str] = []
    seen: dict[str, list[str]] = {}
    found: dict[str, Record] = {}
    for row in rows:
        where = f"{source}:{row.locator.removeprefix('line ')}"
        try:
            record = record_from(row, side, source, zone)
        except BadRow as error:
            notes.append(f"{where}: {error.field}: {error}; this row was left out")
            record = None
        record_id = row.text("id")
        if not record_id:
            notes.append(f"{where}: id: it is missing; give each row an id of its own; this row was left out")
            continue
        if not record_id.isprintable():
            notes.append(
                f"{where}: id: {record_id!r} cannot be shown; use letters and digits; this row was left out"
            )
            continue
        seen.setdefault(record_id, []).append(row.locator)
        if record is not None:
            found[record_id] = record
    for record_id, locators in seen.items():
        if len(locators) > 1:
            found.pop(record_id, None)
            notes.append(
                f"{source}: id: {record_id!r} stands in {' and '.join(locators)}; an id must be unique; "
                "these rows were left out"
            )
    return found, notes
