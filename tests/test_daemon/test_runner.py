"""One run of one agent: what it is handed, what is kept, and how anything that goes wrong is recorded."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import text

from agents.base import BaseAgent
from agents.context import AgentContext
from agents.errors import SourceError
from agents.proposal import Approvers, Proposal, ProposalStatus
from daemon.errors import StoreError
from daemon.events import (
    AgentState,
    AgentStateChanged,
    AgentStatus,
    DueTime,
    DueTimesSettled,
    Event,
    EventBus,
    Fate,
    ProposalChanged,
    RunBegun,
    RunFinished,
    RunOutcome,
)
from daemon.observability.context import what_it_is_about
from daemon.outcome import new_run_id
from daemon.runtime import Runtime, open_runtime
from llm import Caller, ConnectionFailed, LLMConfig, RateLimited, TemplateError
from llm.caller import current_caller
from llm.testing import Recorder
from tests.support.stores import START, Clock, line, model_call, settings_for, until

_S = ProposalStatus
MOCK = LLMConfig(backend="mock", enable_cache=False)

Open = Callable[..., Any]


class Quick(BaseAgent):
    """Does what the test says."""

    name = "quick"
    contexts: list[AgentContext] = []  # noqa: RUF012 - shared by the instances, which live for one run each
    look: Callable[[BaseAgent], Any] = staticmethod(lambda agent: [])
    stale: dict[int, str] = {}  # noqa: RUF012

    async def analyze(self) -> list[Proposal]:
        Quick.contexts.append(self.context)
        found = Quick.look(self)
        return await found if asyncio.iscoroutine(found) else found  # type: ignore[no-any-return]

    async def recheck(self, proposal: Proposal) -> str | None:
        return Quick.stale.get(int(proposal.id or 0))


def one(word: str = "one", **fields: Any) -> Proposal:
    return line(word, **{"agent": "quick", "expires_at": None, **fields})


@pytest.fixture(autouse=True)
def fresh() -> None:
    Quick.contexts = []
    Quick.look = staticmethod(lambda agent: [])
    Quick.stale = {}


@pytest.fixture
async def open_(tmp_path: Path) -> AsyncIterator[Open]:
    async with AsyncExitStack() as stack:

        async def opener(table: dict[str, Any] | None = None, **options: Any) -> tuple[Runtime, list[Event]]:
            events: list[Event] = []
            bus = EventBus()
            bus.subscribe(lambda event: None if isinstance(event, RunBegun) else events.append(event))
            settings = await settings_for(tmp_path, quick=table or {})
            options = {"llm_config": MOCK, "agents": [Quick], "events": bus, **options}
            return await stack.enter_async_context(open_runtime(settings, **options)), events

        yield opener


async def test_a_run_keeps_its_proposals_and_tells_of_them(open_: Open) -> None:
    runtime, events = await open_()
    Quick.look = staticmethod(lambda agent: [one("a"), one("b")])
    result = await runtime.runner.run("quick", "once")
    assert (result.outcome, result.error, result.trigger) == (RunOutcome.SUCCEEDED, None, "once")
    assert [p.title for p in result.proposals] == ["Write a", "Write b"]
    assert await runtime.runs.list() == (result,)
    assert {p.run_id for p in await runtime.proposals.list()} == {result.run_id}
    kept, also, finished = events
    assert isinstance(kept, ProposalChanged)
    assert isinstance(also, ProposalChanged)
    assert (kept.before, also.before) == (None, None)
    assert finished == RunFinished(result=result, status=AgentStatus(agent="quick"))


async def test_what_is_logged_meanwhile_is_about_the_run_and_what_it_sets_going_is_not(
    open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []
    bus = EventBus()
    bus.subscribe(lambda _: told.append(what_it_is_about()))
    runtime, _ = await open_(events=bus)
    inside: list[dict[str, Any]] = []

    def look(agent: BaseAgent) -> list[Proposal]:
        inside.append(what_it_is_about())
        return [one("a"), one("b")]

    save = runtime.runs.save

    async def noted(*given: Any) -> None:
        inside.append(what_it_is_about())
        await save(*given)

    Quick.look = staticmethod(look)
    monkeypatch.setattr(runtime.runs, "save", noted)
    result = await runtime.runner.run("quick")
    looking, recording = inside
    assert looking == recording == {"agent": "quick", "run_id": result.run_id}
    assert told == [{}] * 4  # begun, two proposals, finished
    assert what_it_is_about() == {}


async def test_a_run_tells_that_it_begins_before_the_agent_looks(open_: Open) -> None:
    runtime, _ = await open_()
    told: list[Event] = []
    before: list[Event] = []
    runtime.events.subscribe(told.append)

    def look(agent: BaseAgent) -> list[Proposal]:
        before.extend(told)
        return []

    Quick.look = staticmethod(look)
    result = await runtime.runner.run("quick", "webhook")
    assert before == [RunBegun(agent="quick", run_id=result.run_id, trigger="webhook")]


async def test_running_again_makes_no_second_proposal(open_: Open) -> None:
    runtime, _ = await open_()
    Quick.look = staticmethod(lambda agent: [one("a")])
    await runtime.runner.run("quick")
    again = await runtime.runner.run("quick")
    assert (again.proposals, again.duplicates) == ((), 1)
    rejected = await runtime.desk.reject(1, "ana", "cli")
    assert (await runtime.runner.run("quick")).suppressed == 1
    assert Quick.contexts[-1].turned_down == {rejected.fingerprint: rejected.evidence_hash}
    assert Quick.contexts[-1].was_turned_down(rejected)


async def test_an_agent_is_handed_all_it_needs(tmp_path: Path, open_: Open) -> None:
    class Wish(BaseModel):
        colour: str = "red"

    class Picky(Quick):
        name = "picky"
        Settings = Wish

    settings = await settings_for(tmp_path, picky={"colour": "blue", "every": "5m"})
    async with open_runtime(settings, agents=[Picky], llm_config=MOCK, now=Clock()) as runtime:
        Quick.look = staticmethod(lambda agent: [line("a", agent="picky")])
        first = await runtime.runner.run("picky")
        Quick.look = staticmethod(lambda agent: [line(agent.settings.colour, agent="picky")])
        second = await runtime.runner.run("picky")
    before, context = Quick.contexts
    assert second.proposals[0].title == "Write blue"
    assert context.settings == {"colour": "blue"}
    assert context.base_dir == tmp_path
    assert context.data_dir == tmp_path / "data" / "agents" / "picky"
    assert context.now() == START
    assert context.run_id == second.run_id
    assert before.open_proposals == ()
    assert context.open_proposals == first.proposals
    assert context.llm is runtime.llm


async def test_model_calls_are_kept_and_counted(open_: Open) -> None:
    runtime, _ = await open_()

    async def ask(agent: BaseAgent) -> list[Proposal]:
        response = await agent.use_llm("Which?", {"row": "tomatoes"})
        return [one("a", call_ids=(response.call_id,))]

    Quick.look = staticmethod(ask)
    result = await runtime.runner.run("quick")
    (call,) = await runtime.runs.calls_of(result.run_id)
    assert await runtime.runs.calls_by_id(result.proposals[0].call_ids) == (call,)
    assert "tomatoes" in call.prompt
    assert (result.calls, result.cached_calls, result.backend) == (1, 0, "mock")
    assert result.prompt_tokens == call.prompt_tokens > 0
    assert result.completion_tokens == call.completion_tokens > 0


async def test_a_model_call_knows_which_agent_and_which_run_it_is_made_for(open_: Open) -> None:
    recorder = Recorder()
    runtime, _ = await open_(llm_observers=[recorder])

    async def ask(agent: BaseAgent) -> list[Proposal]:
        await asyncio.create_task(agent.use_llm("Which?", task="choice"))
        return []

    Quick.look = staticmethod(ask)
    result = await runtime.runner.run("quick")
    wanted = Caller(agent="quick", run_id=result.run_id, task="choice")
    assert {event.caller for event in recorder.events} == {wanted}
    assert current_caller() == Caller()


@pytest.mark.parametrize(
    ("seconds", "held"),
    [
        (3600.0, timedelta(hours=1)),
        (60.0, None),  # the next run is later than that anyway
        (None, None),
        (1e300, timedelta(days=7)),  # nobody's word keeps an agent still for ever
    ],
)
async def test_a_model_that_asks_to_wait_ends_the_run_with_the_moment_and_a_note(
    open_: Open, seconds: float | None, held: timedelta | None
) -> None:
    runtime, _ = await open_(now=lambda: START)

    async def ask(agent: BaseAgent) -> list[Proposal]:
        msg = "too many requests"
        raise RateLimited(msg, retry_after=seconds)

    Quick.look = staticmethod(ask)
    result = await runtime.runner.run("quick")
    assert (result.outcome, result.error) == (RunOutcome.FAILED, "too many requests")
    assert result.not_before == (None if held is None else START + held)
    notes = [note for note in result.notes if note.startswith("not run on schedule before")]
    assert len(notes) == (held is not None)
    kept = await runtime.runs.get(result.run_id)
    assert kept.notes == result.notes


async def test_cached_and_failed_calls_count_as_calls_but_not_as_tokens(open_: Open) -> None:
    runtime, _ = await open_()

    def remember(agent: BaseAgent) -> list[Proposal]:
        agent.context.calls += [
            model_call("paid"),
            model_call("free", cached=True, model="other"),
            model_call("lost", error="timeout", reply=None, model="third"),
            "rubbish",  # type: ignore[list-item]
        ]
        return []

    Quick.look = staticmethod(remember)
    result = await runtime.runner.run("quick")
    assert (result.calls, result.cached_calls, result.prompt_tokens, result.completion_tokens) == (3, 1, 5, 2)
    assert result.model == "other"


def _raise(error: BaseException) -> Callable[[BaseAgent], Any]:
    def look(agent: BaseAgent) -> Any:
        agent.context.calls.append(model_call())
        agent.context.notes.append("read 3 rows")
        raise error

    return look


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SourceError("offers.csv:3: no quantity"), "offers.csv:3: no quantity"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (SystemExit(2), "SystemExit: 2"),
        (GeneratorExit(), "GeneratorExit"),
        (asyncio.CancelledError(), "CancelledError"),
        (BaseException("odd"), "BaseException: odd"),
        (ValueError("\ud800 and \0"), "ValueError: \ufffd and \ufffd"),
        (RecursionError(), "RecursionError"),
    ],
)
async def test_whatever_an_agent_raises_is_recorded_and_what_it_did_before_is_kept(
    open_: Open, error: BaseException, words: str
) -> None:
    runtime, events = await open_()
    Quick.look = staticmethod(_raise(error))
    result = await runtime.runner.run("quick")
    assert (result.outcome, result.error) == (RunOutcome.FAILED, words)
    assert result.notes == ("read 3 rows",)
    assert len(await runtime.runs.calls_of(result.run_id)) == 1
    assert await runtime.runs.get(result.run_id) == result
    status = await runtime.states.get("quick")
    assert status.failures == 1
    assert events == [RunFinished(result=result, status=status)]


async def test_a_failed_model_call_is_kept_with_the_run_that_it_failed(open_: Open) -> None:
    runtime, _ = await open_(llm_config=None, with_llm=False)

    async def ask(agent: BaseAgent) -> list[Proposal]:
        await agent.use_llm("Which?")
        return []

    Quick.look = staticmethod(ask)
    result = await runtime.runner.run("quick")
    assert result.outcome is RunOutcome.FAILED
    assert result.error is not None
    assert "the agent 'quick' asked a model, but none is configured" in result.error


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "analyze() returned a NoneType, not a list of Proposals"),
        ("text", "analyze() returned a str, not a list of Proposals"),
        (itertools.count(), "analyze() returned a count, not a list of Proposals"),
    ],
)
async def test_what_is_no_list_is_a_failure(open_: Open, returned: Any, words: str) -> None:
    runtime, _ = await open_()
    Quick.look = staticmethod(lambda agent: returned)
    result = await runtime.runner.run("quick")
    assert (result.outcome, result.error) == (RunOutcome.FAILED, words)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (7, "a int is no Proposal"),
        (
            one("x", payload={"text": "x" * 70_000}),
            "its payload is 70,011 bytes of JSON, more than the 65,536",
        ),
        (one("x", explanation=None), "its explanation is a NoneType, not a text"),
        (one("x", reasons="one by one"), "its reasons is a str, not a list"),
        (one("x", reasons=(1,)), "its reasons is a int, not a text"),
        (one("x", evidence=("here",)), "its evidence holds something that is no Evidence"),
        (one("x", risk="deadly"), "its risk cannot be 'deadly'"),
        (one("x", decided_by="dice"), "its decided_by cannot be 'dice'"),
        (one("x", reversible="maybe"), "its reversible cannot be 'maybe'"),
        (one("x", approvers=("ana",)), "its approvers cannot be ('ana',)"),
        (one("x", precondition=b"1"), "its precondition is a bytes, not a text"),
        (one("x", approvers=Approvers(people=tuple(str(n) for n in range(102)))), "it names 102 approvers"),
    ],
)
async def test_a_proposal_that_cannot_be_kept_fails_the_run_but_the_others_are_kept(
    open_: Open, bad: Any, words: str
) -> None:
    runtime, _ = await open_()
    Quick.look = staticmethod(lambda agent: [one("a"), bad, one("b")])
    result = await runtime.runner.run("quick")
    assert result.outcome is RunOutcome.FAILED
    assert result.error is not None
    assert result.error.startswith(f"1 of its 3 proposals cannot be kept: number 2: {words}")
    assert [p.title for p in result.proposals] == ["Write a", "Write b"]


async def test_long_and_odd_texts_are_cut_and_cleaned(open_: Open) -> None:
    runtime, _ = await open_()
    wild = one(
        "a",
        title="line\none\0 \udc80" + "x" * 1000,
        explanation="y" * 10_000_000,
        fingerprint="f" * 5000,
        reasons=tuple(str(number) for number in range(150)),
    )
    Quick.look = staticmethod(lambda agent: [wild, wild])
    result = await runtime.runner.run("quick")
    (kept,) = result.proposals
    assert kept.title.startswith("line one\ufffd \ufffdxxx")
    assert (len(kept.title), kept.title[-1]) == (200, "…")
    assert len(kept.explanation) == 4000
    assert len(kept.fingerprint) == 64
    assert (len(kept.reasons), kept.reasons[-1]) == (100, "… and 51 more")
    assert result.duplicates == 1


async def test_an_agent_decides_only_about_its_own_fields(open_: Open) -> None:
    runtime, _ = await open_()
    sly = one("a", agent="other", id=77, status=_S.APPROVED, run_id="r", undo_data={"a": 1}, error="e")
    Quick.look = staticmethod(lambda agent: [sly])
    (kept,) = (await runtime.runner.run("quick")).proposals
    assert (kept.agent, kept.id, kept.status, kept.undo_data, kept.error) == (
        "quick",
        1,
        _S.PENDING,
        None,
        None,
    )


async def test_a_flood_is_capped_counted_and_said(open_: Open) -> None:
    runtime, _ = await open_({"max_proposals": 3, "max_open": 5})
    many = [one(str(number)) for number in range(3)] * 4000 + [one("z")]
    Quick.look = staticmethod(lambda agent: [one(str(number)) for number in range(9)] + many)
    first = await runtime.runner.run("quick")
    assert (len(first.proposals), first.duplicates) == (3, 9991)
    assert first.over_cap == 6 + 2010
    assert first.notes[0].startswith(
        "2016 more proposals were not kept: at most 3 of one run and 5 open ones"
    )
    Quick.look = staticmethod(lambda agent: [one(str(number)) for number in range(9)])
    second = await runtime.runner.run("quick")
    assert (len(second.proposals), second.duplicates, second.over_cap) == (2, 3, 4)


async def test_expiry_and_approvers_come_from_the_configuration(open_: Open) -> None:
    table = {"expires_after": "2h", "approvers": {"people": ["ana"]}}
    runtime, _ = await open_(table, now=Clock())
    own = Approvers(people=("luis",))
    early, past = START + timedelta(hours=1), START - timedelta(days=1)
    Quick.look = staticmethod(
        lambda agent: [
            one("a"),
            one("b", expires_at=early, approvers=own),
            one("c", expires_at=START + timedelta(days=9)),
            one("d", expires_at=past),
            one("e", expires_at=datetime.max.replace(tzinfo=UTC)),
        ]
    )
    kept = (await runtime.runner.run("quick")).proposals
    late = START + timedelta(hours=2)
    assert [p.expires_at for p in kept] == [late, early, late, START, late]
    assert [p.approvers.people for p in kept] == [("ana",), ("luis",), ("ana",), ("ana",), ("ana",)]


async def test_open_proposals_that_make_no_sense_any_more_are_withdrawn(open_: Open) -> None:
    runtime, events = await open_()
    Quick.look = staticmethod(lambda agent: [one("a"), one("b"), one("c")])
    await runtime.runner.run("quick")
    await runtime.desk.approve(3, "ana", "cli", apply=False)
    Quick.stale = {1: "the row is gone", 3: "the row changed"}
    events.clear()
    result = await runtime.runner.run("quick")
    assert (result.withdrawn, result.duplicates) == (2, 1)
    assert [p.title for p in result.proposals] == ["Write a", "Write c"]  # their places are free again
    assert [p.id for p in Quick.contexts[-1].open_proposals] == [2]
    gone = await runtime.proposals.get(1)
    assert (gone.status, gone.error) == (_S.WITHDRAWN, "the row is gone")
    changed = [(e.before, e.proposal.status) for e in events if isinstance(e, ProposalChanged)]
    assert changed[:2] == [(_S.PENDING, _S.WITHDRAWN), (_S.APPROVED, _S.WITHDRAWN)]


async def test_a_proposal_decided_during_the_run_is_not_withdrawn(open_: Open) -> None:
    runtime, _ = await open_()
    Quick.look = staticmethod(lambda agent: [one("a")])
    await runtime.runner.run("quick")
    Quick.stale = {1: "the row is gone"}

    async def meanwhile(agent: BaseAgent) -> list[Proposal]:
        await runtime.desk.reject(1, "ana", "cli")
        return []

    Quick.look = staticmethod(meanwhile)
    assert (await runtime.runner.run("quick")).withdrawn == 0
    assert (await runtime.proposals.get(1)).status is _S.REJECTED


async def test_what_is_due_expires_and_wakes_before_the_run(open_: Open) -> None:
    clock = Clock()
    runtime, _ = await open_(now=clock)
    Quick.look = staticmethod(lambda agent: [one("a"), one("b", expires_at=START + timedelta(hours=2))])
    await runtime.runner.run("quick")
    await runtime.desk.snooze(1, START + timedelta(hours=1), "ana", "cli")
    clock.move(hours=3)
    await runtime.runner.run("quick")
    assert [(p.id, p.status) for p in Quick.contexts[-1].open_proposals] == [(1, _S.PENDING)]
    assert (await runtime.proposals.get(2)).status is _S.EXPIRED


# --- time and cancellation


async def forever(agent: BaseAgent) -> list[Proposal]:
    agent.context.calls.append(model_call())
    await asyncio.Event().wait()
    return []


async def test_a_run_that_takes_too_long_is_stopped_and_recorded(open_: Open) -> None:
    runtime, _ = await open_({"timeout": 0.1})
    Quick.look = staticmethod(forever)
    result = await runtime.runner.run("quick")
    assert result.outcome is RunOutcome.TIMED_OUT
    assert result.error == "it took longer than 100ms: raise agents.quick.timeout"
    assert result.calls == 1
    assert await runtime.runs.get(result.run_id) == result


async def test_a_run_that_ignores_being_stopped_is_left_behind_and_said(open_: Open) -> None:
    runtime, _ = await open_({"timeout": 0.1})
    released = asyncio.Event()

    async def stubborn(agent: BaseAgent) -> list[Proposal]:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        return []

    Quick.look = staticmethod(stubborn)
    result = await runtime.runner.run("quick")
    assert result.outcome is RunOutcome.TIMED_OUT
    assert "it ignores being stopped and may still be working" in result.notes
    released.set()


async def test_a_cancelled_run_is_recorded_and_the_cancellation_goes_on(open_: Open) -> None:
    runtime, events = await open_()
    Quick.look = staticmethod(forever)
    running = asyncio.create_task(runtime.runner.run("quick"))
    await until(lambda: bool(Quick.contexts and Quick.contexts[0].calls))
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    (result,) = await runtime.runs.list()
    assert (result.outcome, result.calls) == (RunOutcome.CANCELLED, 1)
    assert events == [RunFinished(result=result, status=AgentStatus(agent="quick"))]


async def test_cancelling_at_any_moment_keeps_whole_runs_only(open_: Open) -> None:
    runtime, events = await open_()
    names = itertools.count()

    async def look(agent: BaseAgent) -> list[Proposal]:
        await asyncio.sleep(0.002)
        return [one(str(next(names))) for _ in range(3)]

    Quick.look = staticmethod(look)
    outcomes = []
    for number in range(60):
        running = asyncio.create_task(runtime.runner.run("quick"))
        await asyncio.sleep(number * 0.0003)
        running.cancel()
        await asyncio.wait({running})
        outcomes.append("cancelled" if running.cancelled() else running.result().outcome.value)
    runs = {run.run_id: run for run in await runtime.runs.list(limit=None)}
    told = {event.result.run_id for event in events if isinstance(event, RunFinished)}
    assert told == set(runs)
    assert all(len(run.proposals) in {0, 3} for run in runs.values())
    assert {p.run_id for p in await runtime.proposals.list(limit=None)} <= set(runs)
    assert "cancelled" in outcomes


async def test_runs_of_one_agent_never_overlap_and_those_of_two_do(tmp_path: Path, open_: Open) -> None:
    class Other(Quick):
        name = "other"

    runtime, _ = await open_(agents=[Quick, Other])
    inside: list[str] = []
    most = 0

    async def look(agent: BaseAgent) -> list[Proposal]:
        nonlocal most
        assert agent.name not in inside
        inside.append(agent.name)
        most = max(most, len(inside))
        await asyncio.sleep(0.02)
        inside.remove(agent.name)
        return []

    Quick.look = staticmethod(look)
    results = await asyncio.gather(*(runtime.runner.run(name) for name in ("quick", "other") * 3))
    assert {result.outcome for result in results} == {RunOutcome.SUCCEEDED}
    assert most == 2
    assert len({result.run_id for result in results}) == 6


async def test_another_program_that_runs_the_agent_is_waited_for(tmp_path: Path, open_: Open) -> None:
    runtime, _ = await open_({"timeout": 0.2})
    (tmp_path / "data" / "locks").mkdir()
    lock = os.open(tmp_path / "data" / "locks" / "quick.run", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    result = await runtime.runner.run("quick")
    assert result.outcome is RunOutcome.FAILED
    assert "quick.run was held for 0.2 s" in str(result.error)
    os.close(lock)
    assert (await runtime.runner.run("quick")).outcome is RunOutcome.SUCCEEDED


# --- what cannot be run


async def test_an_unknown_agent_is_a_failed_run(open_: Open) -> None:
    runtime, _ = await open_()
    result = await runtime.runner.run("nobody")
    assert result.outcome is RunOutcome.FAILED
    assert "nobody" in str(result.error)


async def test_settings_that_cannot_work_are_a_failed_run(open_: Open) -> None:
    runtime, _ = await open_({"colour": "blue"})
    result = await runtime.runner.run("quick")
    assert result.outcome is RunOutcome.FAILED
    assert "agents.quick.colour" in str(result.error)


async def test_a_constructor_that_breaks_is_a_failed_run(tmp_path: Path) -> None:
    class Broken(Quick):
        name = "broken"

        def __init__(self, context: AgentContext | None = None) -> None:
            raise KeyError("colour")

    async with open_runtime(await settings_for(tmp_path), agents=[Broken], llm_config=MOCK) as runtime:
        result = await runtime.runner.run("broken")
    assert result.outcome is RunOutcome.FAILED
    assert result.error == "the agent 'broken' cannot be made: KeyError: 'colour'"


# --- what is recorded together with a run


def coalesced(due: datetime, last: datetime, count: int) -> DueTime:
    return DueTime(agent="quick", due=due, last=last, count=count, fate=Fate.COALESCED, reason="one for all")


async def test_a_run_settles_its_due_time_and_those_that_it_stands_for(open_: Open) -> None:
    runtime, events = await open_()
    hour = timedelta(hours=1)
    others = (
        coalesced(START - 5 * hour, START - 2 * hour, 4),
        DueTime(agent="quick", due=START - hour, last=START - hour, fate=Fate.SKIPPED, reason="quiet"),
    )
    result = await runtime.runner.run("quick", "schedule", due=START, settled=others)
    assert (result.due, result.attempt) == (START, 1)
    assert (await runtime.runs.get(result.run_id)).due == START
    own, skipped, stood_for = await runtime.due_times.list("quick")
    assert own == DueTime(agent="quick", due=START, last=START, fate=Fate.RUN, run_id=result.run_id)
    assert skipped == others[1]
    assert (stood_for.run_id, stood_for.count) == (result.run_id, 4)
    assert events == [
        DueTimesSettled(due_times=(stood_for, skipped, own)),
        RunFinished(result=result, status=AgentStatus(agent="quick")),
    ]


async def test_a_run_by_hand_settles_nothing(open_: Open) -> None:
    runtime, events = await open_()
    result = await runtime.runner.run("quick")
    assert (result.due, await runtime.due_times.list()) == (None, ())
    assert [type(event) for event in events] == [RunFinished]


async def test_a_failed_run_settles_its_due_time_too(open_: Open) -> None:
    runtime, _ = await open_()
    Quick.look = staticmethod(_raise(SourceError("no file")))
    await runtime.runner.run("quick", "schedule", due=START)
    assert [each.fate for each in await runtime.due_times.list("quick")] == [Fate.RUN]


async def test_the_due_time_of_a_cancelled_run_stays_open(open_: Open) -> None:
    runtime, events = await open_()
    Quick.look = staticmethod(forever)
    others = (coalesced(START - timedelta(hours=2), START - timedelta(hours=1), 2),)
    running = asyncio.create_task(runtime.runner.run("quick", "schedule", due=START, settled=others))
    await until(lambda: bool(Quick.contexts and Quick.contexts[0].calls))
    running.cancel()
    await asyncio.wait({running})
    (result,) = await runtime.runs.list()
    assert (result.outcome, result.due) == (RunOutcome.CANCELLED, START)
    assert await runtime.due_times.list() == ()
    assert [type(event) for event in events] == [RunFinished]
    assert await runtime.states.all() == {}


async def rows(runtime: Runtime) -> dict[str, int]:
    async with runtime.db.read() as connection:
        return {
            table: (await connection.execute(text(f"SELECT count(*) FROM {table}"))).scalar_one()
            for table in ("runs", "proposals", "due_times", "agent_states", "model_calls")
        }


@pytest.mark.parametrize("table", ["runs", "proposals", "due_times", "agent_states"])
async def test_a_run_is_recorded_as_a_whole_or_not_at_all(open_: Open, table: str) -> None:
    runtime, events = await open_()

    def look(agent: BaseAgent) -> list[Proposal]:
        agent.context.calls.append(model_call())
        return [one("a"), "no proposal"]  # type: ignore[list-item]

    Quick.look = staticmethod(look)
    async with runtime.db.write() as connection:
        await connection.execute(
            text(f"CREATE TRIGGER stop BEFORE INSERT ON {table} BEGIN SELECT raise(ABORT, 'full'); END")
        )
    with pytest.raises(StoreError):
        await runtime.runner.run("quick", "schedule", due=START)
    assert set((await rows(runtime)).values()) == {0}
    assert events == []
    async with runtime.db.write() as connection:
        await connection.execute(text("DROP TRIGGER stop"))
    assert (await runtime.runner.run("quick", "schedule", due=START)).attempt == 1
    assert set((await rows(runtime)).values()) == {1}


async def test_nothing_is_written_about_an_agent_whose_runs_succeed(open_: Open) -> None:
    runtime, _ = await open_()
    async with runtime.db.write() as connection:
        await connection.execute(
            text(
                "CREATE TRIGGER stop BEFORE INSERT ON agent_states BEGIN SELECT raise(ABORT, 'written'); END"
            )
        )
    for _ in range(2):
        assert (await runtime.runner.run("quick")).outcome is RunOutcome.SUCCEEDED
    assert await runtime.states.all() == {}


# --- discipline, as the runner applies it


async def test_failures_hold_an_agent_for_longer_and_longer_and_a_success_ends_that(open_: Open) -> None:
    clock = Clock()
    runtime, _ = await open_({"backoff": ["1m", "10m"]}, now=clock)
    Quick.look = staticmethod(_raise(SourceError("offers.csv is gone")))
    for number, minutes in ((1, 1), (2, 10), (3, 10)):
        await runtime.runner.run("quick", "schedule")
        status = await runtime.states.get("quick")
        assert (status.failures, status.held_until) == (number, START + timedelta(minutes=minutes))
        assert "offers.csv is gone" in status.held_because
    Quick.look = staticmethod(lambda agent: [])
    await runtime.runner.run("quick", "schedule")
    assert await runtime.states.get("quick") == AgentStatus(agent="quick")


async def test_an_agent_that_keeps_failing_is_quarantined_once_and_a_run_by_hand_that_succeeds_resumes_it(
    open_: Open, caplog: pytest.LogCaptureFixture
) -> None:
    runtime, events = await open_({"quarantine_after": 3})
    Quick.look = staticmethod(_raise(SourceError("offers.csv is gone")))
    for _ in range(5):
        await runtime.runner.run("quick")
    (changed,) = [event for event in events if isinstance(event, AgentStateChanged)]
    status = await runtime.states.get("quick")
    assert (changed.before, changed.status) == (AgentState.ACTIVE, status)
    assert (status.state, status.by) == (AgentState.QUARANTINED, "askfirst")
    assert status.reason == "it failed 3 times in a row, at last with: offers.csv is gone"
    (said,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert said.message == "an agent is quarantined and no longer run on schedule"
    Quick.look = staticmethod(lambda agent: [])
    result = await runtime.runner.run("quick", "manual")
    *_, again, told = events
    assert again == AgentStateChanged(status=await runtime.states.get("quick"), before=AgentState.QUARANTINED)
    assert told == RunFinished(result=result, status=await runtime.states.get("quick"))
    assert (await runtime.states.get("quick")).state is AgentState.ACTIVE


async def test_a_model_that_fails_never_quarantines_an_agent(open_: Open) -> None:
    runtime, _ = await open_({"quarantine_after": 2, "timeout": 0.05})

    async def refused(agent: BaseAgent) -> list[Proposal]:
        msg = "the server is down"
        raise ConnectionFailed(msg)

    async def told_otherwise(agent: BaseAgent) -> list[Proposal]:
        msg = "nothing can be said without a model"
        try:
            return await refused(agent)
        except ConnectionFailed as error:
            raise SourceError(msg) from error

    async def stuck(agent: BaseAgent) -> list[Proposal]:
        agent.context.calls.append(model_call("stuck", error="cancelled", reply=None))
        return await forever(agent)

    for look in (refused, told_otherwise, stuck) * 2:
        Quick.look = staticmethod(look)
        result = await runtime.runner.run("quick")
        assert result.model_failed
    status = await runtime.states.get("quick")
    assert (status.state, status.failures, status.model_failures) == (AgentState.ACTIVE, 6, 6)


@pytest.mark.parametrize(
    "error", [TemplateError("ask/look: no such template"), SourceError("gone"), ZeroDivisionError()]
)
async def test_other_failures_are_the_agents_own(open_: Open, error: Exception) -> None:
    runtime, _ = await open_({"quarantine_after": 1})
    Quick.look = staticmethod(_raise(error))
    assert not (await runtime.runner.run("quick")).model_failed
    assert (await runtime.states.get("quick")).state is AgentState.QUARANTINED


async def test_a_model_that_asks_to_wait_is_remembered_over_a_restart(open_: Open) -> None:
    runtime, _ = await open_(now=lambda: START)

    async def ask(agent: BaseAgent) -> list[Proposal]:
        msg = "too many requests"
        raise RateLimited(msg, retry_after=7200)

    Quick.look = staticmethod(ask)
    await runtime.runner.run("quick")
    again, _ = await open_()
    status = await again.states.get("quick")
    assert status.held_until == START + timedelta(hours=2)
    assert status.held_because == "its model cannot be asked until then"


async def test_what_is_no_fault_of_the_agent_is_not_held_against_it(tmp_path: Path, open_: Open) -> None:
    runtime, _ = await open_({"timeout": 0.05})
    await runtime.runner.run("nobody")
    (tmp_path / "data" / "locks").mkdir()
    lock = os.open(tmp_path / "data" / "locks" / "quick.run", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert (await runtime.runner.run("quick")).outcome is RunOutcome.FAILED
    os.close(lock)
    assert await runtime.states.all() == {}


async def test_another_configuration_resumes_a_quarantined_agent(tmp_path: Path, open_: Open) -> None:
    runtime, _ = await open_({"quarantine_after": 1})
    Quick.look = staticmethod(_raise(SourceError("gone")))
    await runtime.runner.run("quick")
    assert await runtime.runner.reconsider(["quick", "nobody"]) == ()
    again, events = await open_({"quarantine_after": 1, "timeout": "9m"})
    (status,) = await again.runner.reconsider(["quick", "nobody"])
    assert status == await again.states.get("quick")
    assert (status.state, status.by) == (AgentState.ACTIVE, "askfirst")
    assert events == [AgentStateChanged(status=status, before=AgentState.QUARANTINED)]
    assert await again.runner.reconsider(["quick"]) == ()


async def test_a_database_that_cannot_be_written_is_told_and_nothing_is_published(open_: Open) -> None:
    runtime, events = await open_()
    async with runtime.db.write() as connection:
        await connection.execute(
            text("CREATE TRIGGER stop BEFORE INSERT ON runs BEGIN SELECT raise(ABORT, 'full'); END")
        )
    Quick.look = staticmethod(lambda agent: [one("a")])
    with pytest.raises(StoreError):
        await runtime.runner.run("quick")
    assert events == []
    assert await runtime.proposals.list() == ()


def test_run_ids_sort_by_time_and_differ() -> None:
    moments = [START + timedelta(milliseconds=5**power) for power in range(12)]
    ids = [new_run_id(moment) for moment in moments]
    assert ids == sorted(ids)
    assert {len(each) for each in ids} == {13}
    assert len({new_run_id(START) for _ in range(50)}) > 45
