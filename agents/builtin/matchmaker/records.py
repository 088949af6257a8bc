"""Record: one offer or one need, checked where it enters. What is not understood is said, never guessed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from decimal import Decimal
from enum import Enum
from typing import Literal, TypeVar

from agents.builtin.matchmaker.columns import Field
from agents.builtin.matchmaker.diet import Contents, UnknownLimit, parse_contents, parse_limits
from agents.builtin.matchmaker.quantities import LARGEST, BadQuantity, parse_quantity
from agents.builtin.matchmaker.reader import read_item
from agents.builtin.matchmaker.reading import Reading
from agents.builtin.matchmaker.text import plain_words
from agents.builtin.matchmaker.units import Unit, UnknownUnit, parse_unit
from agents.builtin.matchmaker.vocabulary import vocabulary
from agents.builtin.matchmaker.windows import BadWindow, Window, parse_moment, parse_times
from agents.fence import clean
from agents.proposal import sha256_of

Side = Literal["offer", "need"]
_T = TypeVar("_T")


class Transport(Enum):
    """Whether the person of a record can carry things."""

    MOVES = "moves"
    STAYS = "stays"
    UNKNOWN = "unknown"


class BadRow(ValueError):
    """A row that cannot be used.

    Attributes:
        field: which field is wrong.
    """

    def __init__(self, field: Field, message: str) -> None:
        self.field = field
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row as its source gives it.

    Attributes:
        values: the text of each column, by heading.
        fields: the field of each column.
        quantity: the quantity where the source knows numbers; None to read it from its cell.
        locator: where the row is, for people.
        excerpt: the row as it stands, for people.
    """

    values: Mapping[str, str]
    fields: Sequence[Field | None]
    quantity: Decimal | None = None
    locator: str
    excerpt: str

    def text(self, field: Field) -> str:
        """The text of a field, its columns one after the other; empty when there is none."""
        found = [
            value.strip()
            for value, kind in zip(self.values.values(), self.fields, strict=True)
            if kind == field
        ]
        return ", ".join(value for value in found if value)

    @property
    def identity(self) -> str:
        """A hash of everything but the quantity; the order of columns and empty ones make no difference."""
        cells = {
            heading: _without_number(value) if kind == "quantity" else value.strip()
            for (heading, value), kind in zip(self.values.items(), self.fields, strict=True)
            if value.strip()
        }
        return sha256_of(json.dumps(cells, sort_keys=True, ensure_ascii=False))


def _without_number(cell: str) -> str:
    try:
        found = parse_quantity(cell)
    except BadQuantity:
        return cell
    return f"{cell[: found.start]}#{cell[found.end :]}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One offer or one need.

    Attributes:
        side: which of the two.
        id: unique on its side.
        item: what it is, as written.
        reading: what `item` says.
        quantity: how much is left, exactly.
        unit: of the quantity.
        place: where, perhaps empty.
        window: when.
        contents: what an offer says it contains.
        limits: what a need must not contain.
        person: whom to talk to, perhaps empty; never shown to a model.
        transport: whether that person can carry things.
        notes: for people only.
        source: the file or table.
        locator: where in it.
        excerpt: the row as it stands.
        identity: hash of everything but the quantity.
    """

    side: Side
    id: str
    item: str
    reading: Reading
    quantity: Decimal
    unit: Unit
    place: str
    window: Window
    contents: Contents
    limits: frozenset[str]
    person: str
    transport: Transport
    notes: str
    source: str
    locator: str
    excerpt: str
    identity: str

    @property
    def label(self) -> str:
        """Whose it is, for people."""
        return self.person or self.place or f"{self.side} {self.id}"


def record_from(row: Row, side: Side, source: str, zone: tzinfo) -> Record:
    """The record of a row.

    Raises:
        BadRow: a field of it cannot be understood; the message says what would be right.
    """
    item = _line(row.text("item"))
    reading = read_item(item)
    if not reading.parts:
        msg = (
            "there is no item; write what it is"
            if not item
            else f"{item!r} does not say what it is; write a noun"
        )
        raise BadRow("item", msg)
    quantity, unit = _amount(row)
    return Record(
        side=side,
        id=row.text("id"),
        item=item,
        reading=reading,
        quantity=quantity,
        unit=unit,
        place=_line(row.text("place")),
        window=_window(row, zone),
        contents=_contents(row, reading) if side == "offer" else Contents(),
        limits=_checked(row, "dietary", parse_limits) | reading.limits if side == "need" else frozenset(),
        person=_line(row.text("person")),
        transport=_transport(row.text("transport"), side),
        notes=row.text("notes"),
        source=source,
        locator=row.locator,
        excerpt=row.excerpt,
        identity=row.identity,
    )


def _line(text: str) -> str:
    """A text on one line, without characters that a terminal would obey."""
    return " ".join(clean(text).split())


def _amount(row: Row) -> tuple[Decimal, Unit]:
    """Quantity and unit; the unit may stand in the cell of the quantity."""
    cell = row.text("quantity")
    if row.quantity is not None and not 0 <= row.quantity < LARGEST:
        msg = f"{cell} is no quantity; write a number from 0 to {LARGEST:,}"
        raise BadRow("quantity", msg)
    try:
        found = parse_quantity(cell) if row.quantity is None else None
    except BadQuantity as error:
        raise BadRow("quantity", str(error)) from error
    inline, own = found.unit if found else "", row.text("unit")
    try:
        unit = parse_unit(own or inline)
        if own and inline and parse_unit(inline) != unit:
            msg = f"the quantity says {inline!r}, the unit says {own!r}; leave one of them out"
            raise BadRow("unit", msg)
    except UnknownUnit as error:
        raise BadRow("unit", str(error)) from error
    return (found.value if found else row.quantity or Decimal(0)), unit


def _window(row: Row, zone: tzinfo) -> Window:
    start = _checked(row, "from", lambda text: parse_moment(text, zone))
    end = _checked(row, "until", lambda text: parse_moment(text, zone, end=True))
    if start is not None and end is not None and start >= end:
        msg = f"it ends ({row.text('until')}) before it begins ({row.text('from')})"
        raise BadRow("until", msg)
    return Window(start, end, _checked(row, "times", parse_times))


def _checked(row: Row, field: Field, parse: Callable[[str], _T]) -> _T:
    """A field as `parse` reads it; what it complains about is about that field."""
    try:
        return parse(row.text(field))
    except (BadWindow, UnknownLimit) as error:
        raise BadRow(field, str(error)) from error


def _contents(row: Row, reading: Reading) -> Contents:
    """What the item contains: what its giver says, what its text says, what such things contain by nature."""
    stated = parse_contents(row.text("dietary"))
    claimed = {content for limit in reading.limits for content in vocabulary().left_out(limit)}
    return Contents(
        stated.present, stated.absent | (frozenset(claimed) - stated.present), stated.complete
    ).with_nature(reading.contains, plain_food=reading.plain)


def _transport(text: str, side: Side) -> Transport:
    words, known = set(plain_words(text)), vocabulary().words
    moves, stays = known["brings"], known["fetches"]
    if side == "need":
        moves, stays = stays, moves
    if words & known["cannot_carry"]:
        return Transport.STAYS
    if words & (moves | known["can_carry"]):
        return Transport.MOVES
    return Transport.STAYS if words & stays else Transport.UNKNOWN


def expired(record: Record, now: datetime, zone: tzinfo) -> bool:
    """Whether the record's window is over."""
    return not record.window.happens_after(now, zone)
