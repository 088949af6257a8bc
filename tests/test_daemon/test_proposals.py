"""The desk: who may decide what and when, applying exactly once, undoing, and what time does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from agents.base import BaseAgent
from agents.errors import AgentError, AgentNotFound
from agents.proposal import Approvers, Proposal, ProposalStatus
from daemon.errors import DecisionRefused, ProposalNotFound, StoreError
from daemon.execution import agent_lock
from daemon.observability.context import what_it_is_about
from tests.support.stores import AGENT, START, Bench, LedgerAgent, bench, context_in, line

_S = ProposalStatus
TWO = Approvers(mode="quorum", people=("ana", "luis", "eva"), quorum=2)


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        yield made


async def status(it: Bench, number: int) -> ProposalStatus:
    return (await it.proposals.get(number)).status


async def applying(it: Bench, number: int, *asked: asyncio.Task[Proposal]) -> None:
    """Wait until it is being applied by one of those who asked."""
    while await status(it, number) is not _S.APPLYING:
        assert not all(task.done() for task in asked), asked
        await asyncio.sleep(0.005)


async def crash_in(it: Bench, number: int, to: ProposalStatus) -> None:
    """As if the program had died between the two commits."""
    async with it.db.write() as connection:
        await connection.execute(
            text("UPDATE proposals SET status = :to WHERE id = :id"), {"to": to.value, "id": number}
        )


# --- approving and applying


async def test_approving_applies_and_records_what_undo_needs(it: Bench) -> None:
    number = await it.one()
    done = await it.desk.approve(number, "ana", "cli", "fine")
    assert done.status is _S.APPLIED
    assert done.undo_data == {"number": number}
    assert it.ledger.lines() == [f"{number} one"]
    assert await it.proposals.get(number) == done
    assert it.changes() == [
        (1, "pending", "approved"),
        (1, "approved", "applying"),
        (1, "applying", "applied"),
    ]


async def test_what_is_logged_meanwhile_is_about_the_proposal_and_what_it_sets_going_is_not(
    it: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = await it.one()
    inside: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    apply = LedgerAgent.apply

    async def noted(agent: LedgerAgent, proposal: Proposal) -> Any:
        inside.append(what_it_is_about())
        return await apply(agent, proposal)

    monkeypatch.setattr(LedgerAgent, "apply", noted)
    it.desk._ledger._events.subscribe(lambda _: told.append(what_it_is_about()))
    done = await it.desk.approve(number, "ana", "cli")
    assert inside == [{"proposal": number, "agent": AGENT, "run_id": done.run_id}]
    assert told == [{}] * 3


async def test_approving_without_applying_waits_for_apply(it: Bench) -> None:
    number = await it.one()
    assert (await it.desk.approve(number, "ana", "cli", apply=False)).status is _S.APPROVED
    assert it.ledger.lines() == []
    assert (await it.desk.apply(number, "luis", "web")).status is _S.APPLIED
    assert it.ledger.lines() == ["1 one"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("reject", "was rejected; it cannot be approved"),
        ("approve", "is already applied; it cannot be approved"),
    ],
)
async def test_what_was_decided_is_not_approved_again(it: Bench, make: str, words: str) -> None:
    number = await it.one()
    await getattr(it.desk, make)(number, "ana", "cli")
    with pytest.raises(DecisionRefused, match=f"proposal 1 {words}"):
        await it.desk.approve(number, "ana", "cli")
    assert len(it.ledger.lines()) == (make == "approve")


async def test_two_approvals_at_once_apply_once(it: Bench) -> None:
    number = await it.one(trouble="waits")
    asked = [asyncio.create_task(it.desk.approve(number, person, "web")) for person in ("ana", "luis", "eva")]
    await applying(it, number, *asked)
    it.ledger.go.touch()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["DecisionRefused"] * 2 + ["Proposal"]
    assert it.ledger.lines() == ["1 one"]
    assert [e.action for e in await it.proposals.events(number)].count("applied") == 1


async def test_a_proposal_that_is_not_approved_is_not_applied(it: Bench) -> None:
    with pytest.raises(DecisionRefused, match="approve it first"):
        await it.desk.apply(await it.one(), "ana", "cli")
    assert it.ledger.lines() == []


async def test_an_unknown_number_is_told(it: Bench) -> None:
    for ask in (it.desk.approve(9, "a", "cli"), it.desk.reject(9, "a", "cli"), it.desk.undo(9, "a", "cli")):
        with pytest.raises(ProposalNotFound):
            await ask


# --- who


async def test_only_the_people_named_may_decide(it: Bench) -> None:
    number = await it.one(approvers=Approvers(people=("ana",)))
    for decide in (it.desk.approve, it.desk.reject):
        with pytest.raises(DecisionRefused, match="is for ana to decide, not for mallory"):
            await decide(number, "mallory", "web")
    assert await status(it, number) is _S.PENDING
    assert (await it.desk.approve(number, "ana", "cli")).status is _S.APPLIED
    with pytest.raises(DecisionRefused, match="not for mallory"):
        await it.desk.undo(number, "mallory", "web")


async def test_a_decision_needs_a_name(it: Bench) -> None:
    with pytest.raises(DecisionRefused, match="needs the name of the person"):
        await it.desk.approve(await it.one(), " \n", "web")


async def test_a_quorum_is_reached_by_different_people(it: Bench) -> None:
    number = await it.one(approvers=TWO)
    first = await it.desk.approve(number, "ana", "cli")
    assert first.status is _S.PENDING
    assert first.approved_by == {"ana"}
    with pytest.raises(
        DecisionRefused, match="has your approval already; it still needs 1 more of luis, eva"
    ):
        await it.desk.approve(number, "ana", "cli")
    assert it.ledger.lines() == []
    assert (await it.desk.approve(number, "eva", "web")).status is _S.APPLIED


async def test_all_means_everybody(it: Bench) -> None:
    number = await it.one(approvers=Approvers(mode="all", people=("ana", "luis")))
    await it.desk.approve(number, "ana", "cli")
    with pytest.raises(DecisionRefused, match="it still needs that of luis"):
        await it.desk.approve(number, "ana", "cli")
    assert (await it.desk.approve(number, "luis", "cli")).status is _S.APPLIED


# --- what was seen


async def test_an_approval_of_something_else_than_what_stands_there_is_refused(it: Bench) -> None:
    number = await it.one()
    seen = (await it.proposals.get(number)).digest
    await it.desk.edit(number, {"text": "two"}, "luis", "web")
    for decide in (it.desk.approve, it.desk.reject):
        with pytest.raises(DecisionRefused, match="has changed since you looked at it"):
            await decide(number, "ana", "web", digest=seen)
    assert it.ledger.lines() == []
    now = (await it.proposals.get(number)).digest
    assert (await it.desk.approve(number, "ana", "web", digest=now)).status is _S.APPLIED
    assert it.ledger.lines() == ["1 two"]


async def test_an_edit_keeps_the_original_and_makes_earlier_approvals_void(it: Bench) -> None:
    number = await it.one(approvers=TWO)
    await it.desk.approve(number, "ana", "cli")
    edited = await it.desk.edit(number, {"count": "7"}, "luis", "web", "seven is right")
    assert edited.payload == {"text": "one", "count": 7, "trouble": ""}
    assert edited.original_payload == {"text": "one", "count": 1, "trouble": ""}
    assert edited.approved_by == frozenset()
    assert (await it.desk.approve(number, "luis", "cli")).status is _S.PENDING
    assert (await it.desk.approve(number, "ana", "cli")).status is _S.APPLIED
    event = next(e for e in await it.proposals.events(number) if e.action == "edit")
    assert (event.payload_before, event.payload_after) == (edited.original_payload, edited.payload)
    assert event.comment == "seven is right"


async def test_a_second_edit_keeps_the_first_original(it: Bench) -> None:
    number = await it.one()
    await it.desk.edit(number, {"text": "two"}, "ana", "cli")
    edited = await it.desk.edit(number, {"text": "three"}, "ana", "cli")
    assert edited.original_payload == {"text": "one", "count": 1, "trouble": ""}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": ""}, "cannot be changed like that: text: must not be empty"),
        ({"count": "many"}, "count: must be a whole number"),
        ({"count": 1}, "says that already"),
        ({"text": "x" * 70_000}, "more than the 65,536 that are kept"),
    ],
)
async def test_an_edit_that_cannot_work_is_refused(it: Bench, changes: dict[str, Any], words: str) -> None:
    number = await it.one()
    before = await it.proposals.get(number)
    with pytest.raises(DecisionRefused, match=words):
        await it.desk.edit(number, changes, "ana", "cli")
    assert await it.proposals.get(number) == before


async def test_a_kind_without_a_payload_model_cannot_be_edited(it: Bench) -> None:
    with pytest.raises(DecisionRefused, match="ledger has no model of its payload"):
        await it.desk.edit(await it.one(kind="other"), {"text": "two"}, "ana", "cli")


async def test_what_is_applied_is_checked_against_the_approval_once_more(it: Bench) -> None:
    number = await it.one()
    await it.desk.approve(number, "ana", "cli", apply=False)
    async with it.db.write() as connection:
        await connection.execute(text("""UPDATE proposals SET payload = '{"text":"forged"}'"""))
    with pytest.raises(DecisionRefused, match="not approved as it stands now"):
        await it.desk.apply(number, "ana", "cli")
    assert it.ledger.lines() == []


# --- when applying fails


async def test_a_failed_precondition_withdraws(it: Bench) -> None:
    done = await it.desk.approve(await it.one(trouble="precondition"), "ana", "cli")
    assert (done.status, done.error) == (_S.WITHDRAWN, "the file is not as it was")


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("fails", "no paper left"),
        ("breaks", "ZeroDivisionError"),
        ("exits", "SystemExit: 3"),
        ("cancels", "CancelledError"),
    ],
)
async def test_any_other_failure_can_be_tried_again_and_then_needs_attention(
    it: Bench, trouble: str, words: str
) -> None:
    number = await it.one(trouble=trouble)
    failed = await it.desk.approve(number, "ana", "cli")
    assert failed.status is _S.APPLY_FAILED
    assert failed.error is not None
    assert words in failed.error
    again = await it.desk.apply(number, "ana", "cli")
    assert again.status is _S.NEEDS_ATTENTION
    once_more = await it.desk.apply(number, "ana", "cli")
    assert once_more.status is _S.NEEDS_ATTENTION
    assert (await it.desk.reject(number, "ana", "cli")).status is _S.REJECTED
    assert it.ledger.lines() == []


async def test_an_apply_that_hangs_is_stopped(tmp_path: Path) -> None:
    async with bench(tmp_path, apply_limit=timedelta(seconds=0.1)) as it:
        failed = await it.desk.approve(await it.one(trouble="hangs"), "ana", "cli")
        assert (failed.status, failed.error) == (_S.APPLY_FAILED, "it took longer than 100ms and was stopped")


async def test_a_retry_that_works_clears_the_error(it: Bench) -> None:
    number = await it.one(trouble="fails")
    await it.desk.approve(number, "ana", "cli")
    async with it.db.write() as connection:
        await connection.execute(text("UPDATE proposals SET payload = replace(payload, 'fails', '')"))
        await connection.execute(
            text("UPDATE proposal_events SET digest = :digest WHERE action = 'approve'"),
            {"digest": line().digest},
        )
    done = await it.desk.apply(number, "ana", "cli")
    assert (done.status, done.error) == (_S.APPLIED, None)


async def test_an_agent_that_cannot_be_made_leaves_everything_as_it_is(tmp_path: Path) -> None:
    def gone(name: str) -> BaseAgent:
        msg = f"there is no agent {name}"
        raise AgentNotFound(msg)

    async with bench(tmp_path, make_agent=gone) as it:
        number = await it.one()
        with pytest.raises(AgentNotFound):
            await it.desk.approve(number, "ana", "cli")
        assert await status(it, number) is _S.PENDING
        assert (await it.desk.reject(number, "ana", "cli")).status is _S.REJECTED


async def test_undo_data_that_cannot_be_kept_does_not_hide_that_it_was_applied(tmp_path: Path) -> None:
    class Odd(LedgerAgent):
        async def apply(self, proposal: Proposal) -> dict[str, Any] | None:
            await super().apply(proposal)
            return {"when": START}

    async with bench(tmp_path, make_agent=lambda name: Odd(context_in(tmp_path / "data"))) as it:
        done = await it.desk.approve(await it.one(), "ana", "cli")
        assert (done.status, done.undo_data) == (_S.APPLIED, None)
        with pytest.raises(DecisionRefused, match="cannot be undone: its undo data cannot be kept"):
            await it.desk.undo(1, "ana", "cli")


# --- undo


async def test_undo_restores_and_cannot_be_done_twice(it: Bench) -> None:
    number = await it.one()
    await it.desk.approve(number, "ana", "cli")
    undone = await it.desk.undo(number, "ana", "cli", "a mistake")
    assert undone.status is _S.UNDONE
    assert it.ledger.lines() == []
    with pytest.raises(DecisionRefused, match="was undone; it cannot be undone"):
        await it.desk.undo(number, "ana", "cli")


async def test_an_undo_that_fails_leaves_it_applied_with_the_reason(it: Bench) -> None:
    number = await it.one(trouble="conflict")
    await it.desk.approve(number, "ana", "cli")
    still = await it.desk.undo(number, "ana", "cli")
    assert (still.status, still.error) == (_S.APPLIED, "the line was changed since")
    assert it.ledger.lines() == ["1 one"]


async def test_what_cannot_be_undone_is_refused(it: Bench) -> None:
    await it.one(text="a", reversible=False)
    await it.one(text="b", trouble="nothing to undo")
    await it.one(text="c")
    for number, words in ((1, "its agent said so"), (2, "its agent left nothing to undo")):
        await it.desk.approve(number, "ana", "cli")
        with pytest.raises(DecisionRefused, match=words):
            await it.desk.undo(number, "ana", "cli")
    with pytest.raises(DecisionRefused, match="reject it if you do not want it"):
        await it.desk.undo(3, "ana", "cli")


# --- time


async def test_an_expired_one_is_never_applied(it: Bench) -> None:
    number = await it.one()
    it.clock.move(hours=72)
    with pytest.raises(DecisionRefused, match="has expired; it cannot be approved"):
        await it.desk.approve(number, "ana", "cli")
    assert await status(it, number) is _S.EXPIRED
    assert it.ledger.lines() == []


async def test_one_that_was_approved_but_not_applied_in_time_is_withdrawn(it: Bench) -> None:
    number = await it.one()
    await it.desk.approve(number, "ana", "cli", apply=False)
    it.clock.move(hours=72)
    with pytest.raises(DecisionRefused, match="was withdrawn"):
        await it.desk.apply(number, "ana", "cli")
    assert (await it.proposals.get(number)).error == "approved, but its time was over before it was applied"
    assert it.ledger.lines() == []


async def test_one_that_failed_may_be_tried_again_after_its_time(it: Bench) -> None:
    number = await it.one(trouble="fails")
    await it.desk.approve(number, "ana", "cli")
    it.clock.move(hours=100)
    assert (await it.desk.apply(number, "ana", "cli")).status is _S.NEEDS_ATTENTION


async def test_expiring_tells_and_writes_nothing_when_nothing_is_due(it: Bench) -> None:
    await it.one(text="a", expires_at=START + timedelta(hours=1))
    await it.one(text="b")
    size = it.db.path.with_name(f"{it.db.path.name}-wal").stat().st_size
    assert await it.desk.expire_due() == ()
    assert it.db.path.with_name(f"{it.db.path.name}-wal").stat().st_size == size
    it.clock.move(hours=1)
    assert [p.id for p in await it.desk.expire_due()] == [1]
    assert it.changes() == [(1, "pending", "expired")]


async def test_a_snoozed_one_wakes_up_and_can_be_decided_meanwhile(it: Bench) -> None:
    await it.one(text="a")
    await it.one(text="b")
    for number in (1, 2):
        asleep = await it.desk.snooze(number, START + timedelta(hours=2), "ana", "cli")
        assert asleep.status is _S.SNOOZED
    assert (await it.desk.approve(2, "ana", "cli")).status is _S.APPLIED
    it.clock.move(hours=1)
    assert await it.desk.wake_due() == ()
    it.clock.move(hours=1)
    (awake,) = await it.desk.wake_due()
    assert (awake.id, awake.status, awake.snoozed_until) == (1, _S.PENDING, None)


@pytest.mark.parametrize(
    ("until", "words"),
    [
        (START, "name a time in the future"),
        (START + timedelta(hours=72), "expires at 2026-03-04 12:00 UTC, before it would wake up"),
        (START.replace(tzinfo=None), "needs a time zone"),
    ],
)
async def test_a_snooze_that_makes_no_sense_is_refused(it: Bench, until: datetime, words: str) -> None:
    with pytest.raises(DecisionRefused, match=words):
        await it.desk.snooze(await it.one(), until, "ana", "cli")


# --- crashes


async def test_recover_finishes_what_was_being_applied_without_doing_it_twice(it: Bench) -> None:
    await it.one(text="a")
    await it.one(text="b")
    for number in (1, 2):
        await it.desk.approve(number, "ana", "cli", apply=False)
        await crash_in(it, number, _S.APPLYING)
    await it.ledger.apply(await it.proposals.get(1))  # done, but not recorded
    recovered = await it.desk.recover()
    assert [(p.id, p.status, p.undo_data) for p in recovered] == [
        (1, _S.APPLIED, {"number": 1}),
        (2, _S.APPLIED, {"number": 2}),
    ]
    assert it.ledger.lines() == ["1 a", "2 b"]
    assert await it.desk.recover() == ()


async def test_recover_finishes_what_was_being_undone(it: Bench) -> None:
    number = await it.one()
    await it.desk.approve(number, "ana", "cli")
    await crash_in(it, number, _S.UNDOING)
    (undone,) = await it.desk.recover()
    assert undone.status is _S.UNDONE
    assert it.ledger.lines() == []


async def test_what_fails_after_a_crash_needs_attention(it: Bench) -> None:
    number = await it.one(trouble="fails")
    await it.desk.approve(number, "ana", "cli", apply=False)
    await crash_in(it, number, _S.APPLYING)
    (failed,) = await it.desk.recover()
    assert (failed.status, failed.error) == (_S.NEEDS_ATTENTION, "no paper left")


async def test_apply_and_undo_by_hand_also_finish_what_a_crash_left(it: Bench) -> None:
    number = await it.one()
    await it.desk.approve(number, "ana", "cli", apply=False)
    await crash_in(it, number, _S.APPLYING)
    assert (await it.desk.apply(number, "luis", "cli")).status is _S.APPLIED
    assert [d.by for d in (await it.proposals.get(number)).decisions] == ["ana", "luis"]
    await crash_in(it, number, _S.UNDOING)
    assert (await it.desk.undo(number, "ana", "cli")).status is _S.UNDONE


async def test_after_a_crash_a_lost_agent_is_said(tmp_path: Path) -> None:
    agents = {"there": True}

    def make(name: str) -> BaseAgent:
        if not agents["there"]:
            msg = "its file is gone"
            raise AgentError(msg)
        return LedgerAgent(context_in(tmp_path / "data", name))

    async with bench(tmp_path, make_agent=make) as it:
        for name in ("a", "b"):
            await it.desk.approve(await it.one(text=name), "ana", "cli", apply=name == "b")
        await crash_in(it, 1, _S.APPLYING)
        await crash_in(it, 2, _S.UNDOING)
        agents["there"] = False
        first, second = await it.desk.recover()
        assert (first.status, first.error) == (_S.NEEDS_ATTENTION, "its file is gone")
        assert (second.status, second.error) == (_S.APPLIED, "its file is gone")


async def test_recover_leaves_alone_what_another_program_is_working_on(it: Bench) -> None:
    number = await it.one()
    await it.desk.approve(number, "ana", "cli", apply=False)
    await crash_in(it, number, _S.APPLYING)
    async with agent_lock(it.db.path.parent, AGENT, "apply").held(1):
        assert await it.desk.recover() == ()
    assert await status(it, number) is _S.APPLYING


# --- whoever asked goes away


async def test_a_decision_is_carried_to_its_end_although_whoever_asked_is_cancelled(it: Bench) -> None:
    number = await it.one(trouble="waits")
    asking = asyncio.create_task(it.desk.approve(number, "ana", "web"))
    await applying(it, number, asking)
    asking.cancel()
    await asyncio.wait({asking})
    assert asking.cancelled()
    it.ledger.go.touch()
    await it.desk.aclose(grace=5)
    assert await status(it, number) is _S.APPLIED


async def test_closing_cuts_off_what_takes_too_long_and_recover_finishes_it(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        number = await it.one(trouble="waits")
        asking = asyncio.create_task(it.desk.approve(number, "ana", "web"))
        await applying(it, number, asking)
        await it.desk.aclose(grace=0)
        await asyncio.wait({asking})
        assert await status(it, number) is _S.APPLYING
        with pytest.raises(DecisionRefused, match="the program is stopping"):
            await it.desk.reject(number, "ana", "web")
    async with bench(tmp_path) as it:
        it.ledger.go.touch()
        (done,) = await it.desk.recover()
        assert done.status is _S.APPLIED
        assert it.ledger.lines() == ["1 one"]


async def test_a_step_that_is_no_arrow_is_refused_and_nothing_is_recorded(it: Bench) -> None:
    proposal = await it.proposals.get(await it.one())

    async def step() -> None:
        async with it.desk._ledger.page() as page:
            await page.move(proposal, _S.REJECTED, "reject", by="ana")
            await page.move(proposal, _S.APPLIED, "applied")

    with pytest.raises(DecisionRefused, match="proposal 1 is pending; it cannot become applied"):
        await step()
    assert await it.proposals.get(1) == proposal
    assert it.changes() == []


async def test_a_subscriber_that_fails_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(tmp_path) as it:

        def broken(event: object) -> None:
            raise ZeroDivisionError

        it.desk._ledger._events.subscribe(broken)
        assert (await it.desk.reject(await it.one(), "ana", "cli")).status is _S.REJECTED
    assert "subscriber failed" in caplog.text


async def test_a_database_that_cannot_be_written_is_told_and_nothing_is_applied(it: Bench) -> None:
    number = await it.one()
    async with it.db.write() as connection:
        await connection.execute(
            text("CREATE TRIGGER stop BEFORE UPDATE ON proposals BEGIN SELECT raise(ABORT, 'full'); END")
        )
    with pytest.raises(StoreError):
        await it.desk.approve(number, "ana", "cli")
    assert it.ledger.lines() == []
    assert await status(it, number) is _S.PENDING
    assert len(await it.proposals.events(number)) == 1
