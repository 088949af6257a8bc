"""Keeping new proposals: one open proposal per fingerprint, what was turned down stays away, caps hold."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from agents.proposal import Approvers, Evidence, Proposal, ProposalStatus
from daemon.errors import ProposalNotFound, StoreError
from daemon.intake import fit_proposal
from daemon.store.proposals import Verdict
from daemon.store.rows import ProposalEvent
from tests.support.stores import AGENT, START, Bench, bench, line

_S = ProposalStatus
KEPT, DUPLICATE, SUPPRESSED, OVER_CAP = Verdict


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as made:
        yield made


async def test_a_kept_proposal_comes_back_as_it_was(it: Bench) -> None:
    full = line(
        title="Ofrecer 10 kg de tomates",
        reasons=("near", "soon"),
        constraints=("vegan",),
        confidence=0.75,
        decided_by="blend",
        evidence=(Evidence.of("offers.csv", "line 3", "tomates;10 kg"),),
        call_ids=("abc",),
        risk="medium",
        reversible=False,
        precondition="f" * 64,
        approvers=Approvers(mode="quorum", people=("ana", "luis"), quorum=2),
    )
    ((verdict, kept),) = await it.kept(full, run_id="r1")
    assert verdict is KEPT
    assert kept.id == 1
    assert await it.proposals.get(1) == kept
    expected = full.with_changes(id=1, run_id="r1", created_at=START, updated_at=START)
    assert kept == expected
    assert kept.digest == full.digest
    assert kept.evidence_hash == full.evidence_hash


async def test_numbers_are_never_given_out_twice(it: Bench) -> None:
    await it.one(text="a")
    second = await it.one(text="b")
    async with it.db.write() as connection:
        await connection.execute(text("DELETE FROM proposal_events"))
        await connection.execute(text("DELETE FROM proposals"))
    assert await it.one(text="c") == second + 1


async def test_an_unknown_number_is_told_with_the_way_to_the_list(it: Bench) -> None:
    for ask in (it.proposals.get(7), it.proposals.events(7)):
        with pytest.raises(ProposalNotFound, match="no proposal 7; 'askfirst proposals list'"):
            await ask


async def test_the_same_change_is_open_only_once_even_if_its_words_changed(it: Bench) -> None:
    assert await it.keep(line()) == [KEPT]
    assert await it.keep(line(), line(title="Other words")) == [DUPLICATE, DUPLICATE]
    (only,) = await it.proposals.list()
    assert only.title == "Write one"


async def test_two_alike_in_one_run_are_kept_once(it: Bench) -> None:
    assert await it.keep(line(), line(), line("two")) == [KEPT, DUPLICATE, KEPT]


async def test_another_agent_may_propose_the_same(it: Bench) -> None:
    assert await it.keep(line()) == [KEPT]
    assert await it.keep(line(agent="other")) == [KEPT]


async def test_a_rejected_one_comes_back_only_with_new_evidence(it: Bench) -> None:
    await it.desk.reject(await it.one(), "ana", "cli")
    assert await it.keep(line()) == [SUPPRESSED]
    changed = line(evidence=(Evidence.of("book.txt", "line 1", "one, revised"),))
    assert await it.keep(changed) == [KEPT]


async def test_an_undone_one_comes_back_only_with_new_evidence(it: Bench) -> None:
    number = await it.one()
    await it.desk.approve(number, "ana", "cli")
    await it.desk.undo(number, "ana", "cli")
    assert await it.keep(line()) == [SUPPRESSED]
    assert await it.keep(line(evidence=())) == [KEPT]


async def test_an_applied_or_expired_one_may_be_proposed_again(it: Bench) -> None:
    await it.desk.approve(await it.one(), "ana", "cli")
    assert await it.keep(line()) == [KEPT]
    it.clock.move(hours=73)
    await it.desk.expire_due()
    assert await it.keep(line()) == [KEPT]


async def test_the_last_closed_one_decides_about_coming_back(it: Bench) -> None:
    await it.desk.reject(await it.one(), "ana", "cli")
    it.clock.move(hours=1)
    new = line(evidence=(Evidence.of("book.txt", "line 1", "new"),))
    ((_, kept),) = await it.kept(new)
    await it.desk.approve(int(kept.id or 0), "ana", "cli")
    assert await it.keep(line()) == [KEPT]


async def test_undoing_is_possible_although_another_one_like_it_waits(it: Bench) -> None:
    first = await it.one()
    await it.desk.approve(first, "ana", "cli")
    assert await it.keep(line()) == [KEPT]
    assert (await it.desk.undo(first, "ana", "cli")).status is _S.UNDONE


async def test_no_more_than_the_cap_of_one_run_is_kept_and_the_rest_comes_next_time(it: Bench) -> None:
    wanted = [line(str(number)) for number in range(5)]
    assert await it.keep(*wanted, max_new=3) == [KEPT] * 3 + [OVER_CAP] * 2
    assert await it.keep(*wanted, max_new=3) == [DUPLICATE] * 3 + [KEPT] * 2


async def test_no_more_than_the_cap_of_open_ones_is_kept(it: Bench) -> None:
    assert await it.keep(line("1"), line("2"), line("3"), max_open=2) == [KEPT, KEPT, OVER_CAP]
    await it.desk.reject(1, "ana", "cli")
    assert await it.keep(line("3"), line("4"), max_open=2) == [KEPT, OVER_CAP]


async def test_thousands_of_candidates_are_judged(it: Bench) -> None:
    verdicts = await it.keep(*(line(str(number)) for number in range(2500)), max_new=10)
    assert (verdicts.count(KEPT), verdicts.count(OVER_CAP)) == (10, 2490)


async def test_lists_are_newest_first_and_can_be_narrowed(it: Bench) -> None:
    await it.keep(line("1"), line("2"), line("3"))
    await it.keep(line("4", agent="other"))
    await it.desk.reject(2, "ana", "cli")
    assert [p.id for p in await it.proposals.list()] == [4, 3, 2, 1]
    assert [p.id for p in await it.proposals.list(status=_S.PENDING)] == [4, 3, 1]
    assert [p.id for p in await it.proposals.list(status=[_S.PENDING, _S.REJECTED], agent=AGENT)] == [3, 2, 1]
    assert [p.id for p in await it.proposals.list(limit=1)] == [4]
    assert [p.id for p in await it.proposals.open_for(AGENT)] == [1, 3]


async def test_counts_are_by_agent_and_status(it: Bench) -> None:
    await it.keep(line("1"), line("2"))
    await it.keep(line("3", agent="other"))
    await it.desk.reject(2, "ana", "cli")
    expected = {(AGENT, _S.PENDING): 1, (AGENT, _S.REJECTED): 1, ("other", _S.PENDING): 1}
    assert await it.proposals.counts() == expected


async def test_every_change_is_an_event_in_order(it: Bench) -> None:
    number = await it.one()
    await it.desk.approve(number, "ana", "cli", "looks right")
    found = [(e.action, e.before, e.after, e.by, e.via) for e in await it.proposals.events(number)]
    assert found == [
        ("keep", None, _S.PENDING, "askfirst", "daemon"),
        ("approve", _S.PENDING, _S.APPROVED, "ana", "cli"),
        ("apply", _S.APPROVED, _S.APPLYING, "ana", "cli"),
        ("applied", _S.APPLYING, _S.APPLIED, "askfirst", "daemon"),
    ]
    kept = await it.proposals.get(number)
    assert [(d.action, d.by, d.comment) for d in kept.decisions] == [
        ("approve", "ana", "looks right"),
        ("apply", "ana", ""),
    ]


async def test_a_change_of_what_stands_no_longer_there_is_refused(it: Bench) -> None:
    number = await it.one()
    seen = await it.proposals.get(number)
    await it.desk.reject(number, "ana", "cli")
    event = ProposalEvent(proposal_id=number, at=START, action="expire", before=_S.PENDING, after=_S.EXPIRED)
    with pytest.raises(StoreError, match="was changed by another program meanwhile"):
        async with it.db.write() as connection:
            await it.proposals.record(connection, seen.with_changes(status=_S.EXPIRED), event)
    assert (await it.proposals.get(number)).status is _S.REJECTED
    assert len(await it.proposals.events(number)) == 2


async def test_what_is_due_is_found(it: Bench) -> None:
    await it.keep(line("1", expires_at=START + timedelta(hours=1)), line("2"), line("3"))
    await it.desk.snooze(3, START + timedelta(hours=2), "ana", "cli")
    assert await it.proposals.due(START) == ()
    assert [p.id for p in await it.proposals.due(START + timedelta(hours=1))] == [1]
    assert [p.id for p in await it.proposals.due(START + timedelta(hours=2))] == [1, 3]


_any = st.text(st.characters(exclude_categories=()))  # lone surrogates and control characters too
_texts = st.text(st.characters(exclude_categories=()), min_size=1).filter(lambda value: value.strip())
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _any,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_any, inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    title=_texts,
    explanation=_any,
    payload=st.dictionaries(_any, _json, max_size=4),
    reasons=st.lists(_any, max_size=3),
    pieces=st.lists(st.tuples(_any, _any, _any), max_size=3),
)
async def test_whatever_texts_an_agent_hands_in_are_kept_and_read_again(
    tmp_path_factory: pytest.TempPathFactory,
    title: str,
    explanation: str,
    payload: dict[str, Any],
    reasons: list[str],
    pieces: list[tuple[str, str, str]],
) -> None:
    candidate = Proposal(
        agent="any",
        kind="any",
        title=title,
        explanation=explanation,
        payload=payload,
        fingerprint=title,
        reasons=tuple(reasons),
        evidence=tuple(Evidence.of(*piece) for piece in pieces),
        expires_at=START + timedelta(hours=1),
    )
    fit = fit_proposal(candidate, AGENT)
    async with bench(tmp_path_factory.mktemp("kept")) as it:
        ((verdict, kept),) = await it.kept(fit.with_changes(expires_at=candidate.expires_at))
        assert verdict is KEPT
        read = await it.proposals.get(int(kept.id or 0))
        assert read == kept
        assert read.payload == candidate.payload
        assert read.digest == fit.digest
        assert await it.keep(fit.with_changes(expires_at=candidate.expires_at)) == [DUPLICATE]


async def test_how_long_those_wait_that_wait_is_told_with_the_counts(it: Bench) -> None:
    nothing = await it.proposals.census(it.clock())
    assert (nothing.counts, nothing.oldest, nothing.late) == ({}, None, 0)
    await it.keep(line("1"), line("2", expires_at=START + timedelta(hours=10)))
    it.clock.move(hours=4)
    await it.keep(line("3", expires_at=START + timedelta(hours=6)))
    await it.desk.snooze(1, START + timedelta(hours=30), "ana", "cli")
    now = await it.proposals.census(it.clock())
    assert now.counts == {(AGENT, _S.PENDING): 2, (AGENT, _S.SNOOZED): 1}
    assert (now.oldest, now.late) == (START, 0)
    it.clock.move(hours=1, microseconds=1000)  # over half of ten, and of the two hours of the third
    assert (await it.proposals.census(it.clock())).late == 2
    await it.desk.reject(2, "ana", "cli")
    later = await it.proposals.census(it.clock())
    assert (later.oldest, later.late) == (START + timedelta(hours=4), 1)
