"""The rows of matches: a key that makes a match happen once, and sums that tell an undo what changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Self

from pydantic import ValidationError

from agents.builtin.matchmaker.payload import MatchPayload
from agents.builtin.matchmaker.quantities import number_text
from agents.builtin.matchmaker.records import Record, Side
from agents.errors import AgentError, PreconditionFailed, UndoConflict
from agents.proposal import Proposal, sha256_of


def payload_of(proposal: Proposal) -> MatchPayload:
    """The payload of a match, checked.

    Raises:
        AgentError: it is no payload of a match.
    """
    try:
        return MatchPayload.model_validate(dict(proposal.payload))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'payload'}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_input=False)
        )
        msg = f"the payload of proposal {proposal.id} is no match: {faults}"
        raise AgentError(msg) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an approved proposal orders.

    Attributes:
        key: names the proposal in matches, for good.
        payload: what is to happen.
        precondition: hash of both rows without their quantities, as they were proposed.
        at: when, UTC.
    """

    key: str
    payload: MatchPayload
    precondition: str | None
    at: datetime

    @classmethod
    def of(cls, proposal: Proposal, at: datetime) -> Self:
        """The order of a kept proposal.

        The number alone would not do: a new database counts from 1 again, before the same folder.

        Raises:
            AgentError: the proposal was never kept, so that it has no number, or its payload is no match.
        """
        if proposal.id is None:
            msg = (
                "a match is applied by the number of its proposal, and this one has none; keep it in the "
                "store first"
            )
            raise AgentError(msg)
        mark = sha256_of(str(proposal.id), proposal.run_id or "", proposal.fingerprint)[:8]
        return cls(
            key=f"{proposal.id}-{mark}",
            payload=payload_of(proposal),
            precondition=proposal.precondition,
            at=at,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchRow:
    """One row of matches; every value is a text, as it stands in the file or table.

    Attributes:
        proposal: `Order.key`.
        offer: id of the offer.
        need: id of the need.
        item: what is given.
        quantity: how much the need gets.
        unit: the unit of the need.
        offer_quantity: how much is taken from the offer.
        offer_unit: the unit of the offer.
        place: where it is handed over.
        when: when.
        carrier: who carries it.
        matched: when it was matched, UTC.
        offer_before: the offer's quantity before, exactly as it stood.
        offer_after: the offer's quantity after.
        need_before: the need's quantity before, exactly as it stood.
        need_after: the need's quantity after.
    """

    proposal: str
    offer: str
    need: str
    item: str
    quantity: str
    unit: str
    offer_quantity: str
    offer_unit: str
    place: str
    when: str
    carrier: str
    matched: str
    offer_before: str
    offer_after: str
    need_before: str
    need_after: str

    @classmethod
    def of(cls, order: Order, before: tuple[str, str], after: tuple[str, str], mark: str = ".") -> Self:
        """The row of an order.

        Args:
            order: what happens.
            before: the quantities of offer and need, exactly as they stand.
            after: what becomes of them.
            mark: the decimal mark to write quantities with.
        """
        payload = order.payload
        return cls(
            proposal=order.key,
            offer=payload.offer_id,
            need=payload.need_id,
            item=payload.item,
            quantity=number_text(payload.quantity, mark),
            unit=payload.unit,
            offer_quantity=number_text(payload.offer_quantity, mark),
            offer_unit=payload.offer_unit,
            place=payload.place,
            when=payload.when,
            carrier=payload.carrier,
            matched=order.at.astimezone(UTC).strftime("%Y-%m-%d %H:%M"),
            offer_before=before[0],
            offer_after=after[0],
            need_before=before[1],
            need_after=after[1],
        )

    def record_id(self, side: Side) -> str:
        """The id of the offer or of the need."""
        return self.offer if side == "offer" else self.need

    def taken(self, side: Side) -> Decimal:
        """How much it took from the offer or the need, in that record's unit; 0 when it cannot be read."""
        text = self.offer_quantity if side == "offer" else self.quantity
        try:
            return Decimal(text.strip().replace(",", "."))
        except InvalidOperation:
            return Decimal(0)

    def before(self, side: Side) -> str:
        """The quantity before, as it stood."""
        return self.offer_before if side == "offer" else self.need_before

    def after(self, side: Side) -> str:
        """The quantity after, as it stood."""
        return self.offer_after if side == "offer" else self.need_after

    def cells(self, columns: Iterable[str]) -> list[str]:
        """Its values in the order of `columns`; empty for a column of somebody's own."""
        values = asdict(self)
        return [values.get(column, "") for column in columns]


COLUMNS = tuple(field.name for field in fields(MatchRow))
"""The columns of matches, in the order in which a new file or table has them."""


def total(left: Decimal, matches: Iterable[MatchRow], side: Side, record_id: str) -> Decimal:
    """What is left of a record together with all that matches took from it.

    Matches and their undoing leave this sum as it is. Whoever changes the quantity by hand changes it.
    """
    return left + sum((m.taken(side) for m in matches if m.record_id(side) == record_id), Decimal(0))


def pair_hash(offer: Record, need: Record) -> str:
    """The precondition of a match: both rows without their quantities."""
    return sha256_of(offer.identity, need.identity)


def refusal(
    payload: MatchPayload, precondition: str | None, offer: Record | None, need: Record | None
) -> str | None:
    """Why a match cannot be applied to these rows; None when it can."""
    for record, side, record_id in ((offer, "offer", payload.offer_id), (need, "need", payload.need_id)):
        if record is None:
            return f"the {side} {record_id} is gone, or its row cannot be read any more"
    return _mismatch(payload, precondition, offer, need) if offer and need else None


def _mismatch(payload: MatchPayload, precondition: str | None, offer: Record, need: Record) -> str | None:
    if precondition is not None and pair_hash(offer, need) != precondition:
        return f"the offer {offer.id} or the need {need.id} was changed since this was proposed"
    if payload.giver_unit() != offer.unit or payload.need_unit() != need.unit:
        return f"the units are now {offer.unit.plural} and {need.unit.plural}"
    if payload.offer_quantity > offer.quantity:
        return (
            f"only {offer.unit.of(offer.quantity)} of the offer {offer.id} are left, the match takes "
            f"{offer.unit.of(payload.offer_quantity)}"
        )
    if payload.quantity > need.quantity:
        return (
            f"the need {need.id} now asks for {need.unit.of(need.quantity)}, the match gives "
            f"{need.unit.of(payload.quantity)}"
        )
    return None


def require(order: Order, offer: Record | None, need: Record | None) -> tuple[Record, Record]:
    """Both records, when the order can be applied to them.

    Raises:
        PreconditionFailed: it cannot; the message says why.
    """
    reason = refusal(order.payload, order.precondition, offer, need)
    if reason is not None or offer is None or need is None:
        msg = f"{reason}; nothing was changed, the next run proposes anew"
        raise PreconditionFailed(msg)
    return offer, need


def require_undoable(
    record: Record | None, kept: Mapping[str, Any], matches: Iterable[MatchRow], side: Side, where: str
) -> Record:
    """The record, when giving its quantity back restores it.

    Args:
        record: the record as it is now, None when it is gone.
        kept: what `apply` left about it.
        matches: every row of matches as it is now.
        side: offer or need.
        where: the file or table, for errors.

    Raises:
        UndoConflict: somebody changed it in between; other matches of it do not count.
    """
    if record is None:
        msg = f"{where}: the row {kept['id']} is gone or cannot be read any more; nothing was changed"
        raise UndoConflict(msg)
    if record.identity != kept["identity"]:
        msg = (
            f"{where}: the row {kept['id']} ({record.locator}) was changed since the match; nothing was "
            "changed. "
            f"The match had left it as: {kept['after']}"
        )
        raise UndoConflict(msg)
    if total(record.quantity, matches, side, record.id) != Decimal(kept["total"]):
        msg = (
            f"{where}: the quantity of {record.id} ({record.locator}) was changed by hand since the "
            "match, to "
            f"{record.unit.of(record.quantity)}; nothing was changed. Put it right by hand, and delete "
            "the row of the match"
        )
        raise UndoConflict(msg)
    return record
