"""What happens becomes spans, and spans reach a collector, whatever that one does."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agents.proposal import ProposalStatus
from daemon.errors import SettingsError
from daemon.events import EventBus, ProposalChanged, RunBegun, RunFinished, RunOutcome
from daemon.install.grants import Grants
from daemon.install.wants import wants
from daemon.observability.messages import MAX_ATTRIBUTE, MAX_TEXT, as_text
from daemon.observability.redact import HIDDEN, Cleaner
from daemon.observability.spans import MOST_EVENTS, MOST_OPEN, Span, Spans, run_ids
from daemon.observability.tracing import MOST_AT_ONCE, Collector, Exporter
from daemon.scheduler import AgentScheduler
from daemon.settings import Settings, all_keys, load_settings
from daemon.settings.explain import explain
from daemon.settings.model import TraceSettings, headers_of
from daemon.traces import open_traces
from llm import LLMConfig, LLMError, LLMMessage, LLMResponse, calling, get_llm_client, run_tools
from llm.deadline import deadline
from llm.events import (
    BudgetRefused,
    CallFinished,
    CallStarted,
    Coalesced,
    Escalated,
    FellBack,
    FirstToken,
    Retried,
    ToolFinished,
    ToolStarted,
)
from llm.testing import ScriptedBackend
from llm.types import Caller, ToolCall
from tests.support.collector import Collector as Receiver
from tests.support.collector import collecting, talking_nonsense
from tests.support.loopback import http_message
from tests.support.moody_server import MoodyServer, completion, refusal
from tests.support.program import ROOT, Program
from tests.support.stores import START, line, run_result
from tests.support.waiting import seen_now

SECRET = "garden-secret-123456"
VECTORS = http_message(
    200,
    json.dumps(
        {
            "model": "small",
            "data": [{"index": n, "embedding": [0.6, 0.8]} for n in range(2)],
            "usage": {"prompt_tokens": 4, "total_tokens": 4},
        }
    ).encode(),
)
BEGUN = RunBegun(agent="pantry", run_id="r1", trigger="schedule")
MINE = Caller(agent="pantry", run_id="r1")
_S = ProposalStatus


@pytest.fixture(autouse=True)
def loud_again() -> Iterator[None]:
    """What the exporter silences is as it was for other tests."""
    levels = {name: logging.getLogger(name).level for name in ("opentelemetry", "urllib3")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class Told:
    """Spans in a list."""

    def __init__(self, **options: Any) -> None:
        self.ended: list[Span] = []
        self.spans = Spans(self.ended.append, **options)

    def named(self, name: str) -> list[Span]:
        return [span for span in self.ended if span.name == name]

    def one(self, name: str) -> Span:
        (span,) = self.named(name)
        return span


def ended(run_id: str = "r1", **fields: Any) -> RunFinished:
    return RunFinished(result=run_result(run_id, agent="pantry", **fields))


def moved(before: ProposalStatus, after: ProposalStatus, **fields: Any) -> ProposalChanged:
    proposal = replace(line(), id=7, run_id="r1", **fields)
    return ProposalChanged(proposal=replace(proposal, status=after), before=before)


class TestRuns:
    def test_a_run_is_a_span_that_its_name_gives_the_ids_of(self) -> None:
        told = Told()
        told.spans.note(BEGUN)
        told.spans.note(
            ended(trigger="schedule", due=START, attempt=2, duplicates=3, proposals=(replace(line(), id=4),))
        )
        span = told.one("invoke_agent pantry")
        assert (span.trace_id, span.span_id) == run_ids("r1") == run_ids("r1") != run_ids("r2")
        assert (span.parent_id, span.error) == (None, "")
        assert span.end > span.start
        expected = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "pantry",
            "askfirst.run.id": "r1",
            "askfirst.run.trigger": "schedule",
            "askfirst.run.due": START.isoformat(),
            "askfirst.run.outcome": "succeeded",
            "askfirst.run.attempt": 2,
            "askfirst.run.proposals": 1,
            "askfirst.run.duplicates": 3,
            "askfirst.proposal.ids": (4,),
        }
        assert expected.items() <= span.attributes.items()

    @pytest.mark.parametrize("outcome", list(RunOutcome))
    def test_a_run_that_failed_says_how_and_one_that_was_stopped_is_no_error(
        self, outcome: RunOutcome
    ) -> None:
        told = Told()
        told.spans.note(BEGUN)
        told.spans.note(ended(outcome=outcome, error="the cupboard of Ana is locked"))
        fine = outcome in {RunOutcome.SUCCEEDED, RunOutcome.CANCELLED}
        span = told.one("invoke_agent pantry")
        assert span.error == span.attributes.get("error.type", "") == ("" if fine else outcome.value)
        assert span.texts == {}

    def test_a_run_of_an_earlier_program_that_crashed_has_the_times_that_were_recorded(self) -> None:
        told = Told()
        told.spans.note(ended(outcome=RunOutcome.INTERRUPTED, finished_at=START + timedelta(seconds=90)))
        span = told.one("invoke_agent pantry")
        assert (span.start, span.end - span.start) == (int(START.timestamp()) * 10**9, 90 * 10**9)
        assert span.error == "interrupted"

    def test_a_share_of_the_runs_is_told_whole_and_of_the_others_nothing(self) -> None:
        told = Told(sample=0.5)
        for number in range(200):
            name = f"run {number}"
            told.spans.note(RunBegun(agent="pantry", run_id=name, trigger="manual"))
            told.spans.observe_call(
                ToolStarted(
                    backend="b", model="m", caller=Caller(run_id=name), tool="look", execution_id=name
                )
            )
            told.spans.observe_call(
                ToolFinished(backend="b", model="m", tool="look", execution_id=name, latency=0.0)
            )
            told.spans.note(ended(name))
            told.spans.note(replace_run(moved(_S.APPROVED, _S.APPLYING), name))
            told.spans.note(replace_run(moved(_S.APPLYING, _S.APPLIED), name))
        runs, tools = told.named("invoke_agent pantry"), told.named("execute_tool look")
        assert 60 < len(runs) < 140
        assert [span.trace_id for span in runs] == [span.trace_id for span in tools]
        assert len(told.named("apply ledger")) == len(runs)

    def test_what_is_under_way_at_the_end_of_the_program_is_told_as_cut_off(self) -> None:
        told = Told()
        told.spans.note(BEGUN)
        told.spans.observe_call(CallStarted(backend="b", model="m", caller=MINE, call_id="c"))
        told.spans.note(moved(_S.APPROVED, _S.APPLYING))
        told.spans.finish()
        told.spans.finish()
        assert [(span.name, span.error) for span in told.ended] == [
            ("chat m", "cancelled"),
            ("invoke_agent pantry", "cancelled"),
            ("apply ledger", "cancelled"),
        ]


def replace_run(event: ProposalChanged, run_id: str) -> ProposalChanged:
    return replace(event, proposal=replace(event.proposal, run_id=run_id))


class TestDecisions:
    @pytest.mark.parametrize(
        ("after", "error"),
        [
            (_S.APPLIED, ""),
            (_S.WITHDRAWN, "precondition_failed"),
            (_S.APPLY_FAILED, "apply_failed"),
        ],
    )
    def test_an_apply_is_a_trace_of_its_own_with_a_link_to_the_run(
        self, after: ProposalStatus, error: str
    ) -> None:
        told = Told()
        told.spans.note(moved(_S.PENDING, _S.APPROVED))
        told.spans.note(moved(_S.APPROVED, _S.APPLYING))
        told.spans.note(moved(_S.APPLYING, after))
        span = told.one("apply ledger")
        assert span.links == (run_ids("r1"),)
        assert span.trace_id != run_ids("r1")[0]
        assert span.error == error
        assert {
            "askfirst.proposal.id": 7,
            "askfirst.proposal.kind": "line",
            "askfirst.run.id": "r1",
            "askfirst.proposal.status": after.value,
        }.items() <= span.attributes.items()

    def test_giving_up_after_a_failed_apply_is_no_second_one(self) -> None:
        told = Told()
        told.spans.note(moved(_S.APPROVED, _S.APPLYING))
        told.spans.note(moved(_S.APPLYING, _S.APPLY_FAILED))
        told.spans.note(moved(_S.APPLY_FAILED, _S.NEEDS_ATTENTION))
        assert [span.error for span in told.ended] == ["apply_failed"]

    @pytest.mark.parametrize(("after", "error"), [(_S.UNDONE, ""), (_S.APPLIED, "undo_failed")])
    def test_an_undo_is_told_as_one(self, after: ProposalStatus, error: str) -> None:
        told = Told()
        told.spans.note(moved(_S.APPLIED, _S.UNDOING))
        told.spans.note(moved(_S.UNDOING, after))
        assert told.one("undo ledger").error == error

    def test_what_a_crash_interrupted_is_told_when_it_is_finished(self) -> None:
        told = Told()
        told.spans.note(moved(_S.APPLYING, _S.APPLIED))
        assert told.one("apply ledger").attributes["askfirst.recovered"] is True

    def test_a_model_call_of_an_apply_is_a_part_of_it(self) -> None:
        told = Told()
        told.spans.note(moved(_S.APPROVED, _S.APPLYING))
        place = {"backend": "b", "model": "m", "caller": Caller(agent="ledger")}
        told.spans.observe_call(CallStarted(**place, call_id="c"))
        told.spans.observe_call(
            CallFinished(**place, call_id="c", latency=1.5, prompt_tokens=1, completion_tokens=1)
        )
        told.spans.note(moved(_S.APPLYING, _S.APPLIED))
        told.spans.observe_call(CallStarted(**place, call_id="d"))
        told.spans.finish()
        first, apply, later = told.ended
        assert (first.trace_id, first.parent_id) == (apply.trace_id, apply.span_id)
        assert first.end - first.start == 1_500_000_000
        assert later.parent_id is None


class TestCalls:
    async def test_a_call_that_is_made_again_is_two_spans_with_the_wait_told_between_them(self) -> None:
        told = Told()
        again = completion().replace(b"Leeks.", b"Beans.")
        async with MoodyServer(refusal(503), again, refusal(400)) as server:
            config = LLMConfig(
                backend="remote", model="stub", api_base=server.url, temperature=0.0, seed=5, max_tokens=50
            )
            async with get_llm_client(config, observers=[told.spans.observe_call]) as client:
                told.spans.note(BEGUN)
                with calling(agent="pantry", run_id="r1"):
                    answer = await client.generate("What grows?", task="grow", stop=["."])
                    cached = await client.generate("What grows?", task="grow", stop=["."])
                    with pytest.raises(LLMError):
                        await client.generate("What fails?")
                told.spans.note(ended())
            port = int(server.origin.rpartition(":")[2])
        run = told.one("invoke_agent pantry")
        first, second, hit, failed = told.named("chat stub")
        assert {span.trace_id for span in told.ended} == {run.trace_id}
        assert {span.parent_id for span in (first, second, hit, failed)} == {run.span_id}
        assert [span.error for span in (first, second, hit, failed)] == ["server", "", "", "bad_request"]
        assert {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "remote",
            "gen_ai.request.model": "stub",
            "gen_ai.request.temperature": 0.0,
            "gen_ai.request.max_tokens": 50,
            "gen_ai.request.seed": 5,
            "gen_ai.request.stop_sequences": (".",),
            "gen_ai.output.type": "text",
            "gen_ai.usage.input_tokens": 12,
            "gen_ai.usage.output_tokens": 5,
            "gen_ai.response.finish_reasons": ("stop",),
            "gen_ai.response.model": "stub",
            "server.address": "127.0.0.1",
            "server.port": port,
            "askfirst.task": "grow",
            "askfirst.backend": "remote",
            "askfirst.call.id": answer.call_id,
            "askfirst.call.attempt": 2,
        }.items() <= second.attributes.items()
        assert "askfirst.call.attempt" not in {**first.attributes, **failed.attributes}
        assert hit.attributes["askfirst.call.id"] == cached.call_id
        assert (hit.attributes["askfirst.cache.hit"], hit.start) == (True, hit.end)
        assert "gen_ai.usage.input_tokens" not in hit.attributes
        assert [second.client, hit.client] == [True, False]
        (retry,) = run.events
        assert (retry.name, retry.attributes["error.type"]) == ("retry", "server")
        assert first.end <= retry.time <= second.start
        assert all(run.start <= span.start <= span.end <= run.end for span in told.ended)
        assert all(span.texts == {} for span in told.ended)

    async def test_a_stream_says_when_its_first_piece_came_and_embeddings_how_many_they_are(self) -> None:
        told = Told()
        async with ScriptedBackend("a b c", observers=[told.spans.observe_call]) as client:
            await client.stream("x").collect()
        async with MoodyServer(VECTORS) as server:
            config = LLMConfig(backend="remote", model="small", api_base=server.url)
            async with get_llm_client(config, observers=[told.spans.observe_call]) as client:
                await client.embed(["one", "two"])
        chat, embeddings = told.ended
        first = chat.attributes["gen_ai.response.time_to_first_chunk"]
        assert isinstance(first, float)
        assert 0 < first <= (chat.end - chat.start) / 1e9
        assert chat.attributes["gen_ai.request.stream"] is True
        assert embeddings.name == "embeddings small"
        assert embeddings.attributes["gen_ai.operation.name"] == "embeddings"
        assert embeddings.attributes["gen_ai.usage.input_tokens"] == 4
        assert embeddings.attributes["askfirst.embeddings.texts"] == 2
        assert "gen_ai.usage.output_tokens" not in embeddings.attributes
        assert chat.trace_id != embeddings.trace_id  # nobody's run: each stands alone

    def test_a_clock_that_is_set_moves_no_part_out_of_its_run(self) -> None:
        times = iter([10**18, 5, 7])  # back to 1970 in the middle of it
        told = Told(now=lambda: next(times))
        told.spans.note(BEGUN)
        told.spans.observe_call(CallStarted(backend="b", model="m", caller=MINE, call_id="c"))
        told.spans.observe_call(
            ToolStarted(backend="b", model="m", caller=MINE, tool="look", execution_id="e")
        )
        told.spans.finish()
        run = told.one("invoke_agent pantry")
        assert run.start == 10**18
        assert all(run.start <= span.start <= span.end <= run.end + 10**9 for span in told.ended)

    async def test_an_attempt_that_never_came_does_not_count_for_the_next_call(self) -> None:
        told = Told()
        place = {"backend": "b", "model": "m", "caller": MINE}
        async with ScriptedBackend("a", "b", observers=[told.spans.observe_call]) as client:
            await client.generate("x")
            token = deadline.set(asyncio.timeout(5))  # of a call that its deadline ended before that attempt
            told.spans.observe_call(Retried(**place, attempt=2, delay=0.5, code="server"))
            deadline.reset(token)
            await client.generate("x")
        assert ["askfirst.call.attempt" in span.attributes for span in told.ended] == [False, False]

    def test_what_befalls_a_call_is_told_on_the_run_up_to_a_limit(self) -> None:
        told = Told()
        place = {"backend": "b", "model": "m", "caller": MINE}
        told.spans.note(BEGUN)
        for event in (
            FellBack(**place, to="big", code="timeout"),
            Escalated(**place, to="big", why="unsure"),
            Coalesced(**place),
            BudgetRefused(**place, budget="5 tokens/day"),
            FirstToken(**place, seconds=1.0),
            FellBack(backend="b", model="m", to="big", code="timeout"),  # nobody's
        ):
            told.spans.observe_call(event)
        for _ in range(MOST_EVENTS):
            told.spans.observe_call(Retried(**place, attempt=2, delay=0.5, code="server"))
        told.spans.note(ended())
        events = told.one("invoke_agent pantry").events
        assert [event.name for event in events][:5] == [
            "fallback",
            "escalation",
            "coalesced",
            "budget refused",
            "retry",
        ]
        assert len(events) == MOST_EVENTS
        assert events[0].attributes == {
            "askfirst.backend": "b",
            "askfirst.fallback.to": "big",
            "error.type": "timeout",
        }

    def test_calls_that_never_end_are_given_up_in_the_order_of_their_beginning(self) -> None:
        told = Told()
        for number in range(MOST_OPEN + 5):
            told.spans.observe_call(CallStarted(backend="b", model=f"m{number}", call_id=str(number)))
        told.spans.finish()
        assert [told.ended[0].name, len(told.ended)] == ["chat m5", MOST_OPEN]


@pytest.mark.parametrize(
    ("backend", "base", "provider", "server"),
    [
        ("remote", None, "openai", "api.openai.com:443"),
        ("remote", "https://api.anthropic.com", "anthropic", "api.anthropic.com:443"),
        ("remote", "https://api.groq.com/openai/v1", "groq", "api.groq.com:443"),
        ("remote", "http://192.168.1.7:8000/v1", "", "192.168.1.7:8000"),
        ("ollama", "http://[fd00::7]:11434", "", "fd00::7:11434"),
        ("mock", None, "", ""),
    ],
)
def test_a_client_says_whose_model_it_is_and_where(
    backend: str, base: str | None, provider: str, server: str
) -> None:
    key = {"api_key": "sk-0123456789abcdef"} if base is None or base.startswith("https") else {}
    config = LLMConfig(backend=backend, model="m", api_base=base, **(key if backend == "remote" else {}))
    client = get_llm_client(config)
    assert (client.provider_name, client.server_address) == (provider, server)
    told = Told()
    told.spans.observe_call(CallStarted(backend="b", model="m", call_id="c", provider="x", server=server))
    told.spans.finish()
    host, _, port = server.rpartition(":")
    known = told.one("chat m").attributes
    assert (known.get("server.address", ""), str(known.get("server.port", ""))) == (host, port)
    assert known["gen_ai.provider.name"] == "x"


class TestTools:
    @staticmethod
    def asks(name: str, **arguments: Any) -> LLMResponse:
        call = ToolCall("call-1", name, arguments)
        return LLMResponse(
            content="", model="m", backend="scripted", finish_reason="tool_calls", tool_calls=(call,)
        )

    async def run(self, told: Told, *asked: LLMResponse) -> None:
        async def look(shelf: int) -> str:
            """Look."""
            if shelf == 13:
                msg = "the shelf of Ana fell"
                raise OSError(msg)
            return f"jars of Ana on {shelf}"

        client = ScriptedBackend(*asked, "done", observers=[told.spans.observe_call])
        with calling(agent="pantry", run_id="r1"):
            await run_tools(client, [LLMMessage("user", "Look")], [look])

    async def test_each_execution_is_a_span_that_says_what_went_wrong(self) -> None:
        told = Told()
        await self.run(
            told,
            self.asks("look", shelf=2),
            self.asks("look", shelf="x"),
            self.asks("look", shelf=13),
            self.asks("invented_by_Ana"),
        )
        tools = [span for span in told.ended if span.name.startswith("execute_tool")]
        assert [(span.name, span.error) for span in tools] == [
            ("execute_tool look", ""),
            ("execute_tool look", "bad_arguments"),
            ("execute_tool look", "OSError"),
            ("execute_tool", "unknown_tool"),
        ]
        assert {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": "look",
            "gen_ai.tool.type": "function",
            "gen_ai.tool.call.id": "call-1",
            "gen_ai.agent.name": "pantry",
            "askfirst.run.id": "r1",
        }.items() <= tools[0].attributes.items()
        assert tools[0].parent_id == run_ids("r1")[1]
        assert "Ana" not in repr(told.ended)

    async def test_what_was_said_is_there_on_request(self) -> None:
        told = Told(content=True)
        await self.run(told, self.asks("look", shelf=2))
        cleaner = Cleaner([])
        (tool,) = told.named("execute_tool look")
        assert {name: as_text(value, cleaner) for name, value in tool.texts.items()} == {
            "gen_ai.tool.call.arguments": '{"shelf": 2}',
            "gen_ai.tool.call.result": "jars of Ana on 2",
        }
        first, last = (span for span in told.ended if span is not tool)
        assert json.loads(as_text(first.texts["gen_ai.output.messages"], cleaner)) == [
            {
                "role": "assistant",
                "parts": [{"type": "tool_call", "id": "call-1", "name": "look", "arguments": {"shelf": 2}}],
                "finish_reason": "tool_call",
            }
        ]
        turns = json.loads(as_text(last.texts["gen_ai.input.messages"], cleaner))
        assert [turn["role"] for turn in turns] == ["user", "assistant", "tool"]
        assert turns[0]["parts"] == [{"type": "text", "content": "Look"}]
        assert turns[2]["parts"][0].keys() == {"type", "id", "response"}
        assert "jars of Ana" in turns[2]["parts"][0]["response"]


class TestContent:
    def test_secrets_and_keys_are_hidden_and_long_texts_are_cut(self) -> None:
        cleaner = Cleaner([SECRET])
        turns = [LLMMessage("user", f"{SECRET} sk-abcdefghijklmnopqrst {'x' * 20_000}")] * 30
        text = as_text(turns, cleaner)
        assert SECRET not in text
        assert "sk-abc" not in text
        assert len(text) <= MAX_ATTRIBUTE
        one = json.loads(as_text(turns[:1], cleaner))[0]["parts"][0]["content"]
        assert one.startswith(f"{HIDDEN} {HIDDEN} xxx")
        assert len(one) < MAX_TEXT + 100
        assert as_text({"password": "tomatoes", "n": 1}, cleaner) == f'{{"password": "{HIDDEN}", "n": 1}}'


# The exporter and its collector.


def span(name: str = "work", **fields: Any) -> Span:
    now = time.time_ns()
    return Span(**{"name": name, "trace_id": 1, "span_id": 2, "start": now, "end": now + 5, **fields})


@contextmanager
def exporting(url: str, *secrets: str, **options: Any) -> Iterator[Exporter]:
    exporter = Exporter(Collector(endpoint=url), Cleaner(secrets), **{"gather": 0.0, **options})
    try:
        yield exporter
    finally:
        exporter.close()


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


class TestExporter:
    def test_a_span_arrives_as_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=shed,host.name=shed")
        (tmp_path / "instance").write_text("abc123\n")
        work = span(
            attributes={"n": 1, "words": ("a", "b"), "key": SECRET},
            links=((5, 6),),
            parent_id=9,
            error="failed",
            client=True,
        )
        work.texts = {"error.message": f"{SECRET} is wrong", "gen_ai.tool.call.result": "ok"}
        with collecting() as collector:
            place = Collector(
                endpoint=f"{collector.url}/", headers={"x-scope": SECRET}, instance=tmp_path / "instance"
            )
            exporter = Exporter(place, Cleaner([SECRET]), gather=0.0)
            exporter.put(work)
            assert exporter.close(60)
        (got,) = collector.spans
        assert collector.paths == ["/v1/traces"]
        assert collector.headers[0]["x-scope"] == SECRET
        assert (got.name, got.trace, got.id, got.parent) == ("work", f"{1:032x}", f"{2:016x}", f"{9:016x}")
        assert (got.start, got.end, got.kind) == (work.start, work.end, 3)
        assert got.links == [(f"{5:032x}", f"{6:016x}")]
        assert (got.failed, got.message) == (True, f"{HIDDEN} is wrong")
        assert got.attributes == {
            "n": 1,
            "words": ["a", "b"],
            "key": HIDDEN,
            "gen_ai.tool.call.result": "ok",
        }
        assert {
            "service.name": "askfirst",
            "service.instance.id": "abc123",
            "host.name": "shed",
            "deployment.environment.name": "shed",
        }.items() <= got.resource.items()
        assert got.resource["service.version"] == got.scope[1]

    def test_the_variables_of_opentelemetry_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with collecting() as collector:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-scope=shed%20two")
            monkeypatch.setenv("OTEL_SERVICE_NAME", "garden")
            with exporting("") as exporter:
                exporter.put(span())
            assert collector.headers[0]["x-scope"] == "shed two"
            assert collector.one("work").resource["service.name"] == "garden"

    def test_many_spans_go_in_few_requests_and_the_oldest_are_lost_when_too_many_wait(self) -> None:
        gate = threading.Event()
        with collecting() as collector, exporting(collector.url, most_waiting=600) as exporter:
            collector.wait = gate.wait
            exporter.put(span("first"))
            seen_now(lambda: bool(collector.paths))
            for number in range(700):
                exporter.put(span(str(number)))
            assert exporter.lost == 100
            gate.set()
            assert exporter.close(60)
            assert len(collector.bodies) == 2 + 600 // MOST_AT_ONCE
            assert [each.name for each in collector.spans[:3]] == ["first", "100", "101"]
            assert len(collector.spans) == 601
            exporter.put(span("late"))
        assert not collector.named("late")

    @pytest.mark.parametrize("status", [500, 503, 400, 301])
    def test_a_collector_that_refuses_costs_one_warning_and_one_line_when_it_is_well(
        self, status: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")  # so that what may be retried is soon given up
        caplog.set_level(logging.INFO)
        with collecting() as collector, exporting(collector.url, SECRET) as exporter:
            well = collector.answer
            collector.answer = (status, SECRET.encode() * 10_000, {"Location": "http://127.0.0.1:1/"})
            for count in (1, 2, 3):
                exporter.put(span())
                seen_now(lambda count=count: exporter.lost == count)  # type: ignore[misc]
            collector.answer = well
            exporter.put(span("well"))
            collector.one("well")
            seen_now(lambda: len(told(caplog)) == 2)
        warning = f"127.0.0.1 takes no traces: it answers {status}; told again when it does"
        assert told(caplog) == [("WARNING", warning), ("INFO", "127.0.0.1 takes traces again")]
        assert caplog.records[-1].__dict__["lost"] == 3

    def test_nobody_there_nonsense_and_silence_are_told_without_the_address(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
        gate = threading.Event()
        with talking_nonsense() as nonsense, collecting() as silent:
            silent.wait = gate.wait
            for url in ("http://127.0.0.1:1", nonsense, silent.url):
                with exporting(f"{url}/{SECRET}") as exporter:
                    exporter.put(span())
                    seen_now(lambda exporter=exporter: exporter.lost == 1)  # type: ignore[misc]
            gate.set()
        words = [text.partition(": ")[2].partition(";")[0] for _, text in told(caplog)]
        unreached = "it cannot be reached, or does not speak HTTP"
        assert words == [unreached, unreached, "no answer in time"]
        assert SECRET not in caplog.text

    def test_the_end_waits_for_a_slow_collector_no_longer_than_its_limit(self) -> None:
        gate = threading.Event()
        with collecting() as collector:
            collector.wait = gate.wait
            exporter = Exporter(Collector(endpoint=collector.url), Cleaner([]), gather=0.0)
            exporter.put(span())
            seen_now(lambda: bool(collector.paths))
            began = time.monotonic()
            assert not exporter.close(0.2)
            assert time.monotonic() - began < 30  # and not for ever; the exporter's own limit is longer
            gate.set()

    def test_the_end_does_not_wait_for_others_and_tries_once(self) -> None:
        with collecting() as collector:
            collector.answer = (503, b"", {})  # which is tried again otherwise
            exporter = Exporter(Collector(endpoint=collector.url), Cleaner([]), gather=600.0)
            exporter.put(span())
            assert exporter.close(60)
        assert (exporter.lost, len(collector.paths)) == (1, 1)

    def test_an_answer_without_end_is_not_read_to_its_end(self) -> None:
        with collecting() as collector:
            collector.endless = True
            exporter = Exporter(Collector(endpoint=collector.url), Cleaner([]), gather=0.0)
            exporter.put(span())
            assert exporter.close(60)
        assert (exporter.lost, len(collector.spans)) == (0, 1)

    def test_an_sdk_that_cannot_be_used_costs_one_warning(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        no_extra(monkeypatch)
        with exporting("http://127.0.0.1:1") as exporter:
            exporter.put(span())
            seen_now(lambda: bool(caplog.records))
            exporter.put(span())
        assert told(caplog) == [("WARNING", "traces cannot be sent: ModuleNotFoundError")]

    def test_without_a_span_there_is_no_thread(self) -> None:
        before = threading.active_count()
        with exporting("http://127.0.0.1:1") as exporter:
            assert threading.active_count() == before
            assert exporter.close()


# Settings.


Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        path = tmp_path / "askfirst.toml"
        path.write_text(f'[daemon]\ndata_dir = "data"\n{text}')
        return path

    return written


ENDPOINT = '[traces]\nendpoint = "http://127.0.0.1:4318"\n'


def problems(path: Path, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(path, environ or {})
    return [str(problem).removeprefix(f"{path.parent}/") for problem in caught.value.problems]


def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the packages of the extra were not installed."""
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.")]:
        monkeypatch.delitem(sys.modules, name)


class TestSettings:
    def test_an_endpoint_without_the_packages_is_a_mistake_that_names_them(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        no_extra(monkeypatch)
        (problem,) = problems(write(ENDPOINT))
        need = "traces need packages that are not installed: pip install 'askfirst[otel]'"
        assert problem == f"askfirst.toml:4: traces.endpoint: {need}"
        assert load_settings(write(ENDPOINT), {"OTEL_SDK_DISABLED": "TRUE"}).warnings == ()
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
        (warning,) = load_settings(write(""), variables).warnings
        assert str(warning).startswith("OTEL_EXPORTER_OTLP_ENDPOINT: traces need packages")

    def test_the_program_ends_with_the_code_of_a_wrong_configuration(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        no_extra(monkeypatch)
        program = Program.with_garden(
            tmp_path, "leeks dry", ASKFIRST_TRACES__ENDPOINT="http://127.0.0.1:4318"
        )
        for command in (["config", "check"], ["--once"], ["run"]):
            done = program.call(*command)
            assert done.code == 78, done
            assert "pip install 'askfirst[otel]'" in done.out + done.err

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ('endpoint = "collector:4318"', "endpoint: must be http:// or https:// and a host"),
            ('endpoint = "http://key:word@c"', "endpoint: must be http:// or https:// and a host"),
            ('endpoint = "http://c:port"', "endpoint: must be http:// or https:// and a host"),
            (f'headers = "{SECRET}"', "headers: must be name=value"),
            (f'headers = "a b={SECRET}"', "headers: must be name=value"),
            ('headers = "a=b"\nheaders_file = "h"', "headers and headers_file are both set"),
            ('headers_file = "nowhere"', "headers_file: there is no file"),
            ("sample = 1.5", "sample: must be at most 1"),
            ("sample = nan", "sample: must be at most 1"),
        ],
    )
    def test_what_cannot_work_is_named_and_no_secret_shown(
        self, write: Write, text: str, problem: str
    ) -> None:
        found = "\n".join(problems(write(f"[traces]\n{text}\n")))
        assert problem in found
        assert SECRET not in found

    def test_headers_are_read_as_opentelemetry_writes_them(self, write: Write, tmp_path: Path) -> None:
        assert headers_of("Authorization=Bearer%20x, b = c=d ,") == {"authorization": "Bearer x", "b": "c=d"}
        (tmp_path / "h").write_text(f"x-one=1\nx-two={SECRET}\n")
        settings = load_settings(write(f'{ENDPOINT}headers_file = "h"\n'), {})
        assert settings.trace_headers() == {"x-one": "1", "x-two": SECRET}
        (tmp_path / "h").write_text(f"just {SECRET}\n")
        with pytest.raises(SettingsError, match="headers_file: what is in it must be name=value") as caught:
            settings.trace_headers()
        assert SECRET not in str(caught.value)

    def test_headers_are_secrets_and_so_is_the_key_in_them(self, write: Write) -> None:
        settings = load_settings(write('[traces]\nheaders = "authorization=Bearer%20one-two-three"\n'), {})
        environ = {"OTEL_EXPORTER_OTLP_HEADERS": f"x={SECRET}", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "odd"}
        found = all_keys(settings, environ)
        assert {"Bearer one-two-three", "one-two-three", SECRET} <= set(found)
        assert "one-two" not in " ".join(each.value for each in explain(settings, "traces"))

    def test_traces_are_asked_for_by_an_address_and_nobody_against_it(self) -> None:
        there = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}
        for_traces = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}
        disabled = {"OTEL_SDK_DISABLED": "true"}
        assert [TraceSettings().wanted(each) for each in ({}, there, for_traces)] == [False, True, True]
        named = TraceSettings(endpoint="http://c:4318")
        assert [named.wanted(each) for each in ({}, disabled)] == [True, False]
        assert not TraceSettings(endpoint="http://c:4318", sample=0).wanted(there)

    def test_the_sandbox_of_the_service_is_asked_for_the_collectors_address(self, write: Write) -> None:
        settings = load_settings(write('[traces]\nendpoint = "http://192.0.2.7:4318"\n'), {})
        found = wants(settings, {"LLM_BACKEND": "mock"}, Grants())
        assert [want.why for want in found] == ["traces.endpoint is on another machine"]

    async def test_nothing_watches_when_traces_are_off(self, write: Write) -> None:
        settings = await asyncio.to_thread(load_settings, write(""), {})
        assert await open_traces(settings, EventBus()) is None

    async def test_the_headers_are_kept_out_of_the_spans_too(
        self, write: Write, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with collecting() as collector:
            path = write(f'[traces]\nendpoint = "{collector.url}"\nheaders = "x={SECRET}"\ncontent = true\n')
            settings: Settings = await asyncio.to_thread(load_settings, path, {})
            bus = EventBus()
            traces = await open_traces(settings, bus)
            assert traces is not None
            bus.publish(BEGUN)
            bus.publish(ended(outcome=RunOutcome.FAILED, error=f"{SECRET} was refused"))
            await traces.aclose()
            assert bus._subscribers == []
        assert [each.message for each in collector.spans] == [f"{HIDDEN} was refused"]
        assert collector.headers[0]["x"] == SECRET


async def test_a_model_that_came_with_a_new_configuration_is_watched_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Program.with_garden(
        tmp_path, "leeks dry", settings='isolation = "none"\nask = true\nevery = "9h"'
    )
    path = tmp_path / "config" / "askfirst.toml"
    with collecting() as collector:
        environ = {**program.environment, "ASKFIRST_TRACES__ENDPOINT": collector.url, "LLM_MODEL": "one"}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        scheduler = AgentScheduler(settings=await asyncio.to_thread(load_settings, path))
        async with scheduler:
            await scheduler.run_once()
            monkeypatch.setenv("LLM_MODEL", "two")
            await scheduler.reload(await asyncio.to_thread(load_settings, path))
            await scheduler.run_once()
            monkeypatch.setenv("ASKFIRST_TRACES__SAMPLE", "0.5")
            with pytest.raises(SettingsError, match=r"1\.0 -> 0\.5 needs a restart"):
                await scheduler.reload(await asyncio.to_thread(load_settings, path))
    chats = [each.name for each in collector.spans if each.name.startswith("chat")]
    assert set(chats) == {"chat one", "chat two"}
    ids = [each.id for each in collector.spans]
    assert len(ids) == len(set(ids))


OFF = """
import sys
from daemon.cli import run
code = run(["--once"])
code = code or run(["proposals", "approve", "1"])
print("loaded:", *sorted(name for name in sys.modules if name.partition(".")[0] in
      {"opentelemetry", "google", "requests"} or name in
      {"daemon.observability.spans", "daemon.observability.tracing"}))
raise SystemExit(code)
"""


def test_a_program_without_traces_loads_nothing_of_them(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, "leeks dry", settings='isolation = "none"')
    done = subprocess.run(
        [sys.executable, "-P", "-c", OFF],
        cwd=tmp_path,
        env={**program.whole_environment({}), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_doctor_says_whether_the_collector_takes_traces(tmp_path: Path) -> None:
    from daemon.commands.checks import check_traces

    receiver: Receiver
    with collecting() as receiver:
        check = check_traces(receiver.url, {"x-scope": "shed"})
        assert (check.state, check.message) == ("ok", "127.0.0.1 takes them")
        assert (receiver.paths, receiver.spans) == (["/v1/traces"], [])
        assert receiver.headers[0]["x-scope"] == "shed"
        receiver.answer = (401, b"", {})
        assert check_traces(receiver.url, {}).message == "127.0.0.1 answers 401"
    check = check_traces("http://127.0.0.1:1", {})
    assert (check.state, check.message) == ("warn", "127.0.0.1 takes none: ConnectionRefusedError")
