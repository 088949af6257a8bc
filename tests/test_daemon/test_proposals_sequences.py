"""Any sequence of decisions, runs, failures, crashes and passing time keeps the promises of the desk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agents.base import BaseAgent
from agents.errors import AgentError, PreconditionFailed
from agents.proposal import Approvers, Evidence, Proposal, ProposalStatus
from daemon.errors import DecisionRefused
from daemon.store.tables import WAITING
from tests.support.stores import AGENT, Bench, Clock, LedgerAgent, bench, context_in, line, until

T = TypeVar("T")
pytestmark = pytest.mark.usefixtures("untraced")

_S = ProposalStatus

PEOPLE = ("ana", "luis", "eva", "mallory")
RULES = (
    Approvers(),
    Approvers(people=("ana",)),
    Approvers(mode="all", people=("ana", "luis")),
    Approvers(mode="quorum", people=("ana", "luis", "eva"), quorum=2),
)


class MoodyAgent(LedgerAgent):
    """As the one it is made from, but the next call may go wrong."""

    name = AGENT
    mood = ""

    async def apply(self, proposal: Proposal) -> dict[str, Any] | None:
        match MoodyAgent.mood:
            case "fails":
                raise AgentError(MoodyAgent.mood)
            case "precondition":
                raise PreconditionFailed(MoodyAgent.mood)
            case "dies before":
                await asyncio.Event().wait()
        undo_data = await super().apply(proposal)
        if MoodyAgent.mood == "dies after":
            await asyncio.Event().wait()
        return undo_data

    async def undo(self, proposal: Proposal) -> None:
        if MoodyAgent.mood == "fails":
            raise AgentError(MoodyAgent.mood)
        await super().undo(proposal)


people = st.sampled_from(["ana", *PEOPLE])
any_number = st.integers(0, 7)
moods = st.sampled_from(["", "", "", "fails", "precondition"])


class Decisions(RuleBasedStateMachine):
    """The desk over a real database, with everything that may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.published: Counter[int] = Counter()
        self.numbers: list[int] = []
        self.doubtful: set[int] = set()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def make(self, name: str) -> BaseAgent:
        return MoodyAgent(context_in(Path(self.folder.name) / "data", name))

    @initialize()
    def open(self) -> None:
        self.do(self._open())
        for which, rules in enumerate(RULES):
            self.run(which, 0, rules)

    async def _open(self) -> None:
        self.stack = AsyncExitStack()
        opened = bench(Path(self.folder.name), make_agent=self.make, clock=self.clock)
        self.it: Bench = await self.stack.enter_async_context(opened)

    async def _close(self) -> None:
        self.published.update(number for number, _, _ in self.it.changes() if number is not None)
        await self.stack.aclose()

    def teardown(self) -> None:
        MoodyAgent.mood = ""
        if hasattr(self, "it"):
            self.do(self._close())
        self.runner.close()
        self.folder.cleanup()

    def pick(self, number: int) -> int:
        return self.numbers[number % len(self.numbers)]

    def decide(self, work: Coroutine[Any, Any, Any], mood: str = "") -> None:
        MoodyAgent.mood = mood
        with contextlib.suppress(DecisionRefused):
            self.do(work)
        MoodyAgent.mood = ""

    @rule(which=st.integers(0, 3), seen=st.integers(0, 1), rules=st.sampled_from(RULES))
    def run(self, which: int, seen: int, rules: Approvers) -> None:
        evidence = (Evidence.of("book.txt", "line 1", f"state {seen}"),)
        later = self.clock() + timedelta(hours=48)
        candidate = line(str(which), evidence=evidence, approvers=rules, expires_at=later)
        ((verdict, kept),) = self.do(self.it.kept(candidate))
        if verdict == "kept":
            self.numbers.append(int(kept.id or 0))

    @rule(
        number=any_number,
        by=people,
        mood=moods,
        apply=st.booleans(),
        stale=st.sampled_from([False] * 4 + [True]),
    )
    def approve(self, number: int, by: str, mood: str, apply: bool, stale: bool) -> None:
        digest = "0" * 64 if stale else None
        self.decide(self.it.desk.approve(self.pick(number), by, "web", digest=digest, apply=apply), mood)

    @rule(number=any_number)
    def ana_and_luis_approve(self, number: int) -> None:
        for by in ("ana", "luis"):
            self.decide(self.it.desk.approve(self.pick(number), by, "cli"))

    @rule(number=any_number)
    def ana_approves(self, number: int) -> None:
        self.decide(self.it.desk.approve(self.pick(number), "ana", "cli"))

    @rule(number=any_number, by=people)
    def reject(self, number: int, by: str) -> None:
        self.decide(self.it.desk.reject(self.pick(number), by, "cli"))

    @rule(number=any_number, by=people, count=st.integers(1, 3))
    def edit(self, number: int, by: str, count: int) -> None:
        self.decide(self.it.desk.edit(self.pick(number), {"count": count}, by, "cli"))

    @rule(number=any_number, by=people, hours=st.integers(-1, 60))
    def snooze(self, number: int, by: str, hours: int) -> None:
        until = self.clock() + timedelta(hours=hours)
        self.decide(self.it.desk.snooze(self.pick(number), until, by, "cli"))

    @rule(number=any_number, by=people, mood=moods)
    def apply(self, number: int, by: str, mood: str) -> None:
        self.decide(self.it.desk.apply(self.pick(number), by, "cli"), mood)

    @rule(number=any_number, by=people, mood=moods)
    def undo(self, number: int, by: str, mood: str) -> None:
        self.decide(self.it.desk.undo(self.pick(number), by, "cli"), mood)

    @rule(hours=st.integers(0, 9))
    def time_passes(self, hours: int) -> None:
        self.clock.move(hours=hours)
        self.do(self.it.desk.expire_due())

    @rule(number=any_number, when=st.sampled_from(["dies before", "dies after"]), then=moods)
    def the_program_dies_while_it_applies(self, number: int, when: str, then: str) -> None:
        self.do(self._die(self.pick(number), when, then))

    async def _die(self, number: int, when: str, then: str) -> None:
        MoodyAgent.mood = when
        asking = asyncio.create_task(self.it.desk.approve(number, "ana", "web"))
        while not asking.done() and (await self.it.proposals.get(number)).status is not _S.APPLYING:
            pass
        written = f"{number} "
        if when == "dies after":
            await until(lambda: asking.done() or any(e.startswith(written) for e in self.it.ledger.lines()))
        await self._close()
        await asyncio.wait({asking})
        if not asking.cancelled():
            asking.exception()  # refused, which is fine
        MoodyAgent.mood = then
        if when == "dies after" and then:
            self.doubtful.add(number)
        await self._open()
        await self.it.desk.recover()
        MoodyAgent.mood = ""

    @invariant()
    def the_promises_hold(self) -> None:
        if not hasattr(self, "it"):
            return
        found = _look(self.it.db.path)
        self.the_file_holds_exactly_what_is_applied_once(found)
        waiting = [each.fingerprint for each in found if each.status in WAITING]
        assert len(set(waiting)) == len(waiting), "only one of a kind waits"
        told = self.published + Counter(number for number, _, _ in self.it.changes() if number is not None)
        for each in found:
            event(f"reached {each.status}")
            each.check_history()
            assert told[each.number] == len(each.events) - 1, (
                "every change was told; 'keep' is told by the runner"
            )

    def the_file_holds_exactly_what_is_applied_once(self, found: list[_Seen]) -> None:
        written = sorted(int(each.split()[0]) for each in self.it.ledger.lines())
        assert len(set(written)) == len(written)
        # One that was written, not recorded, and failed when it was tried again, is for a person to look at.
        applied = sorted(each.number for each in found if each.status is _S.APPLIED)
        assert set(written) ^ set(applied) <= self.doubtful


@dataclass
class _Seen:
    """A proposal as it lies in the file."""

    number: int
    status: ProposalStatus
    fingerprint: str
    approvers: Approvers
    events: list[tuple[str, str | None, str, str, str]] = field(default_factory=list)

    def check_history(self) -> None:
        """Every step is an arrow of the life cycle; nothing was applied that was not approved as it stood."""
        stands: ProposalStatus | None = None
        approvals: set[tuple[str, str]] = set()
        for action, before, after, by, digest in self.events:
            assert before == stands
            assert stands is None or stands == after or stands.may_become(ProposalStatus(after))
            stands = ProposalStatus(after)
            if action == "approve":
                approvals.add((by, digest))
            if stands is _S.APPLYING:
                assert self.approvers.satisfied_by({who for who, what in approvals if what == digest})
        assert stands is self.status


def _look(path: Path) -> list[_Seen]:
    """What is in the file, read without the code that is tested."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT id, status, fingerprint, approvers FROM proposals ORDER BY id"
        ).fetchall()
        history = connection.execute(
            "SELECT proposal_id, action, before, after, by, digest FROM proposal_events ORDER BY id"
        ).fetchall()
    found = {}
    for number, status, fingerprint, approvers in rows:
        who = json.loads(approvers)
        rules = Approvers(mode=who["mode"], people=tuple(who["people"]), quorum=who["quorum"])
        found[number] = _Seen(number, ProposalStatus(status), fingerprint, rules)
    for number, *step in history:
        found[number].events.append(tuple(step))
    return list(found.values())


TestDecisions = Decisions.TestCase
TestDecisions.settings = settings(max_examples=30, stateful_step_count=30, deadline=None, derandomize=True)
