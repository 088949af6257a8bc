"""The matchmaker: who offers what somebody else needs, how much of it, where and when.

Rules decide the clear pairs. Only what they leave unclear is put to a model, as one small question; it may
speak for a pair, but what a rule refuses stays refused.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, tzinfo
from typing import Any, ClassVar

from pydantic import BaseModel

from agents.base import BaseAgent
from agents.builtin.matchmaker.allocation import Share, Stock, in_order
from agents.builtin.matchmaker.ledger import Order, pair_hash, payload_of, refusal
from agents.builtin.matchmaker.payload import MatchPayload
from agents.builtin.matchmaker.question import Opinion, Questions
from agents.builtin.matchmaker.records import Record, expired
from agents.builtin.matchmaker.rules import Pair, Refusal, judge
from agents.builtin.matchmaker.settings import MatchmakerSettings, zone_of
from agents.builtin.matchmaker.sources import Loaded, open_source
from agents.builtin.matchmaker.wording import amount_note, confidence, explanation, reasons, title
from agents.context import AgentContext
from agents.errors import AgentError
from agents.fence import clean
from agents.proposal import DEFAULT_EXPIRY, Evidence, Proposal, sha256_of

KIND = "match"
EXCERPT_CHARACTERS = 300
MAX_NOTES = 20
"""Rows that are named in the notes of a run; the rest is counted."""


class Matchmaker(BaseAgent):
    """Match what neighbours offer with what others need, from CSV files or a SQLite database."""

    name: ClassVar[str] = "matchmaker"
    every: ClassVar[str] = "15m"
    Settings: ClassVar[type[BaseModel] | None] = MatchmakerSettings
    payloads: ClassVar[Mapping[str, type[BaseModel]]] = {KIND: MatchPayload}

    settings: MatchmakerSettings

    def __init__(self, context: AgentContext | None = None) -> None:
        super().__init__(context)
        self._source = open_source(self.settings, self.context.base_dir)
        self._zone = zone_of(self.settings.timezone)

    async def analyze(self) -> list[Proposal]:
        """Propose a match for each pair that fits, as far as offers and needs reach.

        Raises:
            SourceError: offers or needs cannot be read at all.
        """
        now = self.context.now()
        loaded = await asyncio.to_thread(self._source.load)
        stock = Stock(loaded.offers, loaded.needs, self.settings.smallest_share)
        taken = self._reserve(stock)
        pairs, refused = await asyncio.to_thread(self._pairs, loaded, now)
        questions = self._questions(loaded)
        proposals = []
        for pair in in_order(pairs):
            share = None if _ids(pair) in taken else stock.share(pair.offer, pair.need)
            proposal = await self._decide(pair, share, questions, now) if share else None
            if proposal is not None and share is not None:
                proposals.append(proposal)
                if not self.context.was_turned_down(proposal):  # else it is free for somebody else
                    stock.take(pair.offer, pair.need, share)
        self._note(loaded, refused, questions)
        return proposals

    async def apply(self, proposal: Proposal) -> Mapping[str, Any]:
        """Write the match and decrease both quantities, once; see `BaseAgent.apply`.

        Raises:
            PreconditionFailed: the offer or the need is no longer as it was proposed.
            AgentError: it cannot be done.
        """
        order = Order.of(proposal, self.context.now())
        return await asyncio.to_thread(self._source.apply, order)

    async def undo(self, proposal: Proposal) -> None:
        """Take the match back and restore both quantities; see `BaseAgent.undo`.

        Raises:
            UndoConflict: somebody changed the offer, the need or the match in between.
            AgentError: it cannot be done.
        """
        if proposal.undo_data is None:
            msg = f"the proposal {proposal.id} has no undo data: it was never applied"
            raise AgentError(msg)
        order = Order.of(proposal, self.context.now())
        await asyncio.to_thread(self._source.undo, order.key, proposal.undo_data)

    async def recheck(self, proposal: Proposal) -> str | None:
        """Why an open match makes no sense any more, or None while it does.

        Raises:
            SourceError: offers or needs cannot be read at all, so that nobody knows.
        """
        payload = payload_of(proposal)
        if (
            proposal.id is not None
        ):  # an apply that was interrupted may have written it before anybody noted so
            key = Order.of(proposal, self.context.now()).key
            if await asyncio.to_thread(self._source.is_applied, key):
                return None
        loaded = await asyncio.to_thread(self._source.load)
        offer, need = loaded.offers.get(payload.offer_id), loaded.needs.get(payload.need_id)
        reason = refusal(payload, proposal.precondition, offer, need)
        if reason is None and offer is not None and need is not None:
            window = offer.window.common(need.window)
            if window is None or not window.happens_after(self.context.now(), self._zone):
                return f"the time for it is over ({need.window.text(self._zone)})"
        return reason

    def _pairs(self, loaded: Loaded, now: datetime) -> tuple[list[Pair], Counter[str]]:
        """The pairs that no rule keeps apart, and how many each rule refused."""
        offers, needs = self._usable(loaded.offers, now), self._usable(loaded.needs, now)
        found, refused = list[Pair](), Counter[str]()
        for offer in offers:
            for need in needs:
                result = judge(offer, need, now, self._zone)
                if isinstance(result, Refusal):
                    refused[result.rule] += 1
                else:
                    found.append(result)
        return found, refused

    def _usable(self, records: Mapping[str, Record], now: datetime) -> list[Record]:
        return [r for r in records.values() if r.quantity > 0 and not expired(r, now, self._zone)]

    def _reserve(self, stock: Stock) -> set[tuple[str, str]]:
        """Keep back what open proposals promise; the pairs they are about."""
        pairs = set()
        for proposal in self.context.open_proposals:
            if proposal.agent != self.name or proposal.kind != KIND or not proposal.status.is_open:
                continue
            try:
                payload = payload_of(proposal)
            except AgentError as error:
                self.context.notes.append(str(error))
                continue
            stock.reserve(payload.offer_id, payload.offer_quantity, payload.need_id, payload.quantity)
            pairs.add((payload.offer_id, payload.need_id))
        return pairs

    def _questions(self, loaded: Loaded) -> Questions:
        settings, llm = self.settings, self.context.llm
        wanted = settings.model == "auto" and self.model_decides
        return Questions(
            self.use_llm if wanted else None,
            persons=[record.person for record in (*loaded.offers.values(), *loaded.needs.values())],
            most=settings.max_questions,
            seconds=settings.model_seconds,
            call_seconds=llm.config.timeout if llm is not None else settings.model_seconds,
        )

    async def _decide(self, pair: Pair, share: Share, questions: Questions, now: datetime) -> Proposal | None:
        """The proposal for a pair; None when it is unclear and nothing speaks for it."""
        if pair.likeness.answer == "yes":
            return self._proposal(pair, share, now)
        opinion = await questions.opinion(pair)
        if opinion is None:
            clear_enough = pair.likeness.score >= self.settings.propose_from
            return self._proposal(pair, share, now, unasked=questions.unasked) if clear_enough else None
        return self._proposal(pair, share, now, opinion) if opinion.favours else None

    def _proposal(
        self, pair: Pair, share: Share, now: datetime, opinion: Opinion | None = None, unasked: str = ""
    ) -> Proposal:
        offer, need, end = pair.offer, pair.need, pair.window.end
        return self.propose(
            KIND,
            title(pair, share),
            explanation=explanation(pair, share, self._zone),
            payload=_payload(pair, share, self._zone).model_dump(mode="json"),
            fingerprint=sha256_of(self.name, KIND, offer.id, need.id),
            reasons=reasons(pair, opinion, unasked),
            constraints=(*pair.checks, amount_note(pair)),
            confidence=confidence(pair, opinion),
            decided_by="blend" if opinion else "rule",
            evidence=(_evidence(offer), _evidence(need)),
            call_ids=(opinion.call_id,) if opinion else (),
            risk="medium" if pair.dietary else "low",
            precondition=pair_hash(offer, need),
            expires_at=end if end is not None and end < now + DEFAULT_EXPIRY else None,
        )

    def _note(self, loaded: Loaded, refused: Counter[str], questions: Questions) -> None:
        """What a person should know about the run."""
        notes = self.context.notes
        notes += loaded.notes[:MAX_NOTES]
        if len(loaded.notes) > MAX_NOTES:
            notes.append(f"rows that were left out as well: {len(loaded.notes) - MAX_NOTES}")
        if refused["unconfirmed diet"]:
            notes.append(
                "left out because the offer does not say what it contains: "
                f"{_count(refused['unconfirmed diet'])}; "
                "fill in its dietary column"
            )
        if questions.declined:
            notes.append(f"not proposed because the model did not speak for it: {_count(questions.declined)}")
        if questions.skipped:
            notes.append(f"unclear, and not put to the model in this run: {_count(questions.skipped)}")
        if questions.failure is not None:
            notes.append(f"the model failed ({questions.failure.code}); unclear pairs were decided by rules")


def _count(pairs: int) -> str:
    return "1 pair" if pairs == 1 else f"{pairs} pairs"


def _ids(pair: Pair) -> tuple[str, str]:
    return pair.offer.id, pair.need.id


def _payload(pair: Pair, share: Share, zone: tzinfo) -> MatchPayload:
    offer, need, window = pair.offer, pair.need, pair.window
    return MatchPayload(
        offer_id=offer.id,
        need_id=need.id,
        item=offer.item,
        needed=need.item,
        quantity=share.quantity,
        unit=need.unit.name,
        offer_quantity=share.offer_quantity,
        offer_unit=offer.unit.name,
        place=pair.handover.place,
        when=window.text(zone),
        window_from=window.start.isoformat() if window.start else None,
        window_until=window.end.isoformat() if window.end else None,
        carrier=pair.handover.carrier,
        giver=offer.person,
        receiver=need.person,
    )


def _evidence(record: Record) -> Evidence:
    """The row, under its id: a row inserted above it, or a match of its own, makes it no other evidence."""
    excerpt = clean(f"{record.locator}: {record.excerpt}", EXCERPT_CHARACTERS)
    return Evidence(source=record.source, locator=f"id {record.id}", excerpt=excerpt, sha256=record.identity)
