"""What the rules say about one offer and one need. A rule that says no is final: no model is asked then."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Literal

from agents.builtin.matchmaker.diet import check
from agents.builtin.matchmaker.handover import Handover, handover_of
from agents.builtin.matchmaker.likeness import Likeness, likeness
from agents.builtin.matchmaker.records import Record
from agents.builtin.matchmaker.windows import Window

Rule = Literal["unit", "item", "dietary", "unconfirmed diet", "window", "transport"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why two records do not match.

    Attributes:
        rule: which rule says so.
        reason: one sentence.
    """

    rule: Rule
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """An offer and a need that no rule keeps apart.

    Attributes:
        offer: the offer.
        need: the need.
        likeness: how well the item serves, and why.
        window: when both can.
        handover: where, and who carries.
        dietary: whether limits of the need were checked.
        checks: what was checked and holds, one sentence each.
    """

    offer: Record
    need: Record
    likeness: Likeness
    window: Window
    handover: Handover
    dietary: bool
    checks: tuple[str, ...]


def judge(offer: Record, need: Record, now: datetime, zone: tzinfo) -> Pair | Refusal:
    """Put a pair to every rule, the cheap ones first."""
    if offer.unit.dimension != need.unit.dimension:
        return Refusal("unit", f"{offer.unit.plural} cannot be given as {need.unit.plural}")
    alike = likeness(offer.reading, need.reading)
    if alike.answer == "no":
        return Refusal("item", alike.refused or "; ".join(alike.reasons))
    diet = _diet(offer, need)
    if isinstance(diet, Refusal):
        return diet
    window = offer.window.common(need.window)
    if window is None or not window.happens_after(now, zone):
        mine, other = offer.window.text(zone), need.window.text(zone)
        return Refusal("window", f"they have no time in common: {mine}; {other}")
    handover = handover_of(offer, need)
    if handover is None:
        return Refusal("transport", f"nobody can bring it from {offer.place} to {need.place}")
    return Pair(
        offer=offer,
        need=need,
        likeness=alike,
        window=window,
        handover=handover,
        dietary=bool(diet),
        checks=(
            *_unit_check(offer, need),
            *diet,
            f"both can: {window.text(zone)}",
            *_carrier_check(handover),
        ),
    )


def _diet(offer: Record, need: Record) -> tuple[str, ...] | Refusal:
    """The dietary limits that hold, or why they do not. Unknown contents are never taken for safe."""
    if not need.limits or not offer.reading.food:
        return ()
    found = check(offer.contents, need.limits)
    if found.broken:
        return Refusal("dietary", f"it breaks a limit: {', '.join(found.broken)}")
    if found.unknown:
        return Refusal("unconfirmed diet", f"nobody says whether it contains {' or '.join(found.unknown)}")
    return (f"dietary limits hold: {', '.join(sorted(need.limits))}",)


def _unit_check(offer: Record, need: Record) -> tuple[str, ...]:
    if offer.unit == need.unit:
        return (f"both are counted in {offer.unit.plural}",)
    return (f"{offer.unit.plural} and {need.unit.plural} are both {offer.unit.dimension}",)


def _carrier_check(handover: Handover) -> tuple[str, ...]:
    return () if handover.carrier == "to agree" else ("somebody can carry it",)
