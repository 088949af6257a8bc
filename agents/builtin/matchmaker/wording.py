"""What a person reads about a match: title, explanation, reasons. Plain sentences, no jargon."""

from __future__ import annotations

from datetime import tzinfo

from agents.builtin.matchmaker.allocation import Share
from agents.builtin.matchmaker.question import Opinion
from agents.builtin.matchmaker.records import Record
from agents.builtin.matchmaker.rules import Pair
from agents.builtin.matchmaker.units import written

_ITEM_CHARACTERS = 60
MODEL_AT_MOST = 0.6
"""Highest confidence of a pair that a model had to be asked about."""
RULES_AT_MOST = 0.5
"""Highest confidence of an unclear pair that no model was asked about."""
_PARTLY_AT_MOST = 0.45


def title(pair: Pair, share: Share) -> str:
    """One line: "4 kg tomatoes: Ana -> Casa Luz"."""
    amount = pair.need.unit.of(share.quantity)
    return f"{amount} {short(pair.offer.item)}: {pair.offer.label} -> {pair.need.label}"


def short(item: str) -> str:
    """An item on one line, cut where it is long."""
    return item if len(item) <= _ITEM_CHARACTERS else f"{item[: _ITEM_CHARACTERS - 1].rstrip()}…"


def explanation(pair: Pair, share: Share, zone: tzinfo) -> str:
    """What, how much, where, when, who carries, and what stays over."""
    offer, need = pair.offer, pair.need
    what = (
        f"{offer.label} offers {offer.unit.of(offer.quantity)} of {short(offer.item)}; "
        f"{need.label} needs {need.unit.of(need.quantity)} of {short(need.item)}."
    )
    return " ".join(
        [what, _handing(pair, share, zone), pair.handover.text(offer, need), _rest(offer, need, share)]
    )


def _handing(pair: Pair, share: Share, zone: tzinfo) -> str:
    amount = pair.need.unit.of(share.quantity)
    if pair.offer.unit != pair.need.unit:
        amount += f" ({pair.offer.unit.of(share.offer_quantity)})"
    return f"This would be {amount}; both can: {pair.window.text(zone)}."


def _rest(offer: Record, need: Record, share: Share) -> str:
    left = (
        f"{offer.unit.of(share.offer_left)} of the offer stay free"
        if share.offer_left
        else "nothing of the offer stays over"
    )
    open_ = (
        f"{need.unit.of(share.need_left)} of the need stay open"
        if share.need_left
        else "the need is fully served"
    )
    return f"After that {left}, and {open_}."


def reasons(pair: Pair, opinion: Opinion | None, unasked: str) -> tuple[str, ...]:
    """What speaks for the pair, and who says so."""
    found = tuple(_sentence(reason) for reason in pair.likeness.reasons)
    if pair.likeness.answer == "yes":
        return found
    if opinion is not None:
        said = f'The model {opinion.model} said: "{opinion.why}" ({opinion.answer}).'
        return (*found, said, "A small model can be wrong: please look at it yourself.")
    return (*found, f"The rules are not sure, and {unasked}: please look at it yourself.")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def confidence(pair: Pair, opinion: Opinion | None) -> float:
    """How sure the match is, 0 to 1; a pair that the rules are not sure of never gets more than 0.6."""
    score = pair.likeness.score
    if pair.likeness.answer == "yes":
        return score if pair.handover.carrier != "to agree" else min(score, 0.85)
    if opinion is None:
        return min(score, RULES_AT_MOST)
    return (
        min(MODEL_AT_MOST, max(score, 0.5))
        if opinion.answer == "yes"
        else min(_PARTLY_AT_MOST, max(score, 0.35))
    )


def amount_note(pair: Pair) -> str:
    """For the list of constraints."""
    return (
        f"of {written(pair.offer.quantity)} {pair.offer.unit.plural} offered and "
        f"{written(pair.need.quantity)} "
        f"{pair.need.unit.plural} needed, nothing is promised twice"
    )
