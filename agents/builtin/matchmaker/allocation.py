"""How much of which offer goes to which need, so that nothing is given or received twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

from agents.builtin.matchmaker.records import Record
from agents.builtin.matchmaker.rules import Pair
from agents.builtin.matchmaker.units import Unit, ceil_to_grain, convert, floor_to_grain

_DIVISIBLE = frozenset({"mass", "volume", "pints", "length", "time"})
_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one need gets from one offer.

    Attributes:
        quantity: how much the need gets, in its unit.
        offer_quantity: how much is taken from the offer, in its unit.
        offer_left: what of the offer nobody has been promised afterwards.
        need_left: what of the need nobody has promised afterwards.
    """

    quantity: Decimal
    offer_quantity: Decimal
    offer_left: Decimal
    need_left: Decimal


class Stock:
    """What of each offer and each need is still free.

    Args:
        offers: by id.
        needs: by id.
        smallest_share: see the setting of that name.
    """

    def __init__(
        self, offers: Mapping[str, Record], needs: Mapping[str, Record], smallest_share: float = 0.0
    ) -> None:
        self._offers = {key: record.quantity for key, record in offers.items()}
        self._needs = {key: record.quantity for key, record in needs.items()}
        self._smallest = Fraction(smallest_share).limit_denominator(1000)

    def reserve(self, offer: str, offer_quantity: Decimal, need: str, quantity: Decimal) -> None:
        """Keep back what an open proposal has promised already."""
        if offer in self._offers:
            self._offers[offer] = max(self._offers[offer] - offer_quantity, Decimal(0))
        if need in self._needs:
            self._needs[need] = max(self._needs[need] - quantity, Decimal(0))

    def share(self, offer: Record, need: Record) -> Share | None:
        """What the need could get from the offer now; None for nothing, or too little to be worth a way."""
        free, asked = self._offers[offer.id], self._needs[need.id]
        quantity, taken = amounts(free, offer.unit, asked, need.unit)
        if quantity <= 0 or taken <= 0:
            return None
        if quantity < self._smallest * Fraction(need.quantity) and taken < offer.quantity:
            return None
        return Share(
            quantity=quantity, offer_quantity=taken, offer_left=free - taken, need_left=asked - quantity
        )

    def take(self, offer: Record, need: Record, share: Share) -> None:
        """Promise a share."""
        self._offers[offer.id] -= share.offer_quantity
        self._needs[need.id] -= share.quantity


def amounts(free: Decimal, offer: Unit, asked: Decimal, need: Unit) -> tuple[Decimal, Decimal]:
    """How much a need gets, in its unit, and how much that takes from the offer, in its unit.

    Never more than is free or asked for. Between two units of one dimension the need gets whole grains of its
    unit, and what is taken from the offer is rounded up to a grain of its own.
    """
    if offer == need:
        least = min(free, asked)
        whole = least if need.dimension in _DIVISIBLE else floor_to_grain(Fraction(least), need)
        return whole, whole
    available = convert(free, offer, need)
    quantity = asked if Fraction(asked) <= available else floor_to_grain(available, need)
    if need.dimension not in _DIVISIBLE:
        quantity = floor_to_grain(Fraction(quantity), need)
    taken = min(ceil_to_grain(convert(quantity, need, offer), offer), free)
    rest = convert(free - taken, offer, need)
    if need.dimension in _DIVISIBLE and rest < Fraction(need.grain):
        taken = free  # what would stay over is less than anybody can be given
    return quantity, taken


def in_order(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs in the order in which they are served: the best likeness first, then the near and urgent."""
    return sorted(pairs, key=_urgency)


def _urgency(
    pair: Pair,
) -> tuple[float, bool, datetime, datetime, Fraction, tuple[object, ...], tuple[object, ...]]:
    available = convert(pair.offer.quantity, pair.offer.unit, pair.need.unit)
    covered = (
        min(available / Fraction(pair.need.quantity), Fraction(1)) if pair.need.quantity else Fraction(0)
    )
    return (
        -pair.likeness.score,
        pair.handover.carrier != "nobody",
        pair.need.window.end or _NEVER,
        pair.offer.window.end or _NEVER,
        -covered,
        natural(pair.offer.id),
        natural(pair.need.id),
    )


def natural(record_id: str) -> tuple[object, ...]:
    """A sort key that puts O2 before O10."""
    digits = "".join(c for c in record_id if c.isdigit() and c.isascii())
    return (int(digits) if digits else 0, record_id)
