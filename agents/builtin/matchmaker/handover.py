"""Where a thing changes hands, and who carries it there."""

from __future__ import annotations

from dataclasses import dataclass

from agents.builtin.matchmaker.payload import Carrier
from agents.builtin.matchmaker.records import Record, Transport
from agents.builtin.matchmaker.text import plain_words


@dataclass(frozen=True, slots=True)
class Handover:
    """How a thing gets from one person to the other.

    Attributes:
        place: where; empty when that is to be agreed.
        carrier: who carries it.
    """

    place: str
    carrier: Carrier

    def text(self, offer: Record, need: Record) -> str:
        """For people, one sentence."""
        act = offer.reading.act
        match self.carrier:
            case "nobody":
                return f"Both are at {self.place}{'' if act else ', so nobody has to carry it'}."
            case "giver":
                return f"{offer.label} can {'come' if act else 'bring it'} to {self.place or need.label}."
            case "receiver":
                return (
                    f"{need.label} can {'come to' if act else 'collect it at'} {self.place or offer.label}."
                )
        what = "who comes to whom" if act else "who carries it"
        return f"Nobody has said {what}{_between(offer, need)}: please agree on that."


def _between(offer: Record, need: Record) -> str:
    return f" from {offer.place} to {need.place}" if offer.place and need.place else ""


def handover_of(offer: Record, need: Record) -> Handover | None:
    """The handover of a pair; None when neither side can move and they are in different places."""
    if offer.place and plain_words(offer.place) == plain_words(need.place):
        return Handover(offer.place, "nobody")
    if need.transport is Transport.MOVES and offer.transport is not Transport.MOVES:
        return Handover(offer.place, "receiver")
    if offer.transport is Transport.MOVES:
        return Handover(need.place, "giver")
    if (
        offer.transport is Transport.STAYS
        and need.transport is Transport.STAYS
        and offer.place
        and need.place
    ):
        return None
    return Handover("", "to agree")
