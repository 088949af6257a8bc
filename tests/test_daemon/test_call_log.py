"""Model calls in the log: each attempt by its id, what happens between them, what a run's calls amount to."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agents.base import BaseAgent
from agents.context import AgentContext
from agents.proposal import Proposal
from daemon.observability.calls import CallLog
from daemon.observability.context import about
from daemon.observability.logging import configure_logging
from llm import BadRequest, LLMConfig, LLMError, LLMRequest, LLMResponse, ServerError, calling
from llm.events import BudgetRefused, CallPriced, Coalesced, ToolFinished
from llm.middleware.breaker import Breaker
from llm.middleware.cache import ResponseCache
from llm.middleware.coalesce import Coalesce
from llm.middleware.retry import Retry
from llm.router import RoutedClient
from llm.routes import Routes
from llm.stores.sqlite import SqliteResponseStore
from llm.testing import Recorder, ScriptedBackend
from llm.types import Caller
from tests.support.waiting import seen

QUESTION = "What does Maria eat?"
ANSWER = "Parsley, mostly."
CONFIG = LLMConfig(backend="scripted", model="m", enable_cache=False, retries=0)

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What is logged at DEBUG by the layer of the models; calling it ends the log."""
    stream = io.StringIO()
    close = configure_logging("info", "json", stream, levels={"llm": "debug"})

    def told() -> list[dict[str, Any]]:
        close()
        assert QUESTION not in stream.getvalue()
        assert ANSWER not in stream.getvalue()
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    yield told
    close()


async def no_sleep(_: float) -> None:
    await asyncio.sleep(0)


async def ask(client: ScriptedBackend | RoutedClient, run_id: str = "r1") -> LLMResponse:
    with calling(agent="garden", run_id=run_id, task="diet"):
        return await client.generate(QUESTION)


def told_of(lines: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(line["event"], line.get("call_id")) for line in lines]


async def test_an_attempt_that_failed_and_the_one_that_helped_are_told_by_their_ids(lines: Lines) -> None:
    calls = CallLog()
    retry = Retry(2, sleep=no_sleep)
    client = ScriptedBackend(
        ServerError("busy"), ANSWER, config=CONFIG, middleware=[retry], observers=[calls.observe]
    )
    response = await ask(client)
    failed, again, finished = await asyncio.to_thread(lines)
    assert told_of([failed, again, finished]) == [
        ("model call failed", failed["call_id"]),
        ("model call is made again", failed["call_id"]),
        ("model call finished", response.call_id),
    ]
    assert failed["call_id"] not in {"", response.call_id}
    for line in (failed, again, finished):
        place = [line[name] for name in ("level", "logger", "agent", "run_id", "task", "backend", "model")]
        assert place == ["debug", "llm.events", "garden", "r1", "diet", "scripted", "m"]
    assert (failed["code"], again["code"], again["attempt"]) == ("server", "server", 2)
    assert finished["prompt_tokens"] == response.prompt_tokens
    found = calls.taken("r1")
    assert found.pop("model_seconds", 0) >= 0
    assert found == {"failed_calls": 1, "retries": 1}
    assert calls.taken("r1") == {}


async def test_a_fallback_is_told_with_the_call_that_failed(lines: Lines) -> None:
    calls = CallLog()
    small = ScriptedBackend(ServerError("down"), config=CONFIG, observers=[calls.observe])
    big = ScriptedBackend(ANSWER, config=CONFIG, observers=[calls.observe])
    for name, target in (("small", small), ("big", big)):
        target.rename(name)
    routes = Routes(backends={"small": CONFIG, "big": CONFIG}, default=("small", "big"))
    router = RoutedClient(routes, {"small": small, "big": big}, observers=[calls.observe])
    response = await ask(router)
    failed, instead, finished = await asyncio.to_thread(lines)
    assert told_of([failed, instead, finished]) == [
        ("model call failed", failed["call_id"]),
        ("another backend is asked instead", failed["call_id"]),
        ("model call finished", response.call_id),
    ]
    assert (instead["backend"], instead["to"], finished["backend"]) == ("small", "big", "big")
    assert calls.taken("r1")["fallbacks"] == 1


async def test_what_the_cache_answers_has_an_id_too(lines: Lines, tmp_path: Path) -> None:
    calls = CallLog()
    store = SqliteResponseStore(tmp_path)
    client = ScriptedBackend(
        ANSWER, config=CONFIG, middleware=[ResponseCache(store)], observers=[calls.observe]
    )
    first, second = await ask(client), await ask(client)
    await client.aclose()
    assert told_of(await asyncio.to_thread(lines)) == [
        ("model call finished", first.call_id),
        ("model call answered from the cache", second.call_id),
    ]


async def test_a_backend_that_is_left_alone_is_a_warning_whatever_the_level() -> None:
    stream = io.StringIO()
    close = await asyncio.to_thread(configure_logging, "info", "json", stream)
    breaker = Breaker(failures=2)
    client = ScriptedBackend(
        ServerError("down"),
        ServerError("down"),
        config=CONFIG,
        middleware=[breaker],
        observers=[CallLog().observe],
    )
    for _ in range(3):
        with pytest.raises(LLMError):
            await ask(client)
    await asyncio.to_thread(close)
    (line,) = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (line["level"], line["event"]) == ("warning", "a backend failed again and again and is left alone")
    assert (line["backend"], line["failures"], line["run_id"]) == ("scripted", 2, "r1")


async def test_what_calls_cost_and_what_budgets_refused_belongs_to_the_run(lines: Lines) -> None:
    calls = CallLog()
    place: dict[str, Any] = {"backend": "b", "model": "m", "caller": Caller(agent="garden", run_id="r1")}
    calls.observe(CallPriced(call_id="c1", cost=0.25, **place))
    calls.observe(CallPriced(call_id="c2", cost=0.5, **place))
    calls.observe(CallPriced(call_id="c3", cost=0.0, **place))  # as every call of a model of one's own
    calls.observe(BudgetRefused(budget="1 usd/day", **place))
    assert calls.taken("r1") == {"usd": 0.75, "refused_calls": 1}
    told = await asyncio.to_thread(lines)
    assert [(line["event"], line.get("usd")) for line in told] == [
        ("model call priced", 0.25),
        ("model call priced", 0.5),
        ("model call refused: a budget is used up", None),
    ]


async def test_a_tool_is_told_by_its_name_unless_the_model_made_that_up(lines: Lines) -> None:
    calls = CallLog()
    place: dict[str, Any] = {"backend": "b", "model": "m", "caller": Caller(agent="garden", run_id="r1")}
    calls.observe(ToolFinished(tool="weather", execution_id="t1", latency=0.25, result=ANSWER, **place))
    calls.observe(ToolFinished(tool=ANSWER, execution_id="t2", latency=0.5, error="unknown_tool", **place))
    told = await asyncio.to_thread(lines)  # which looks for what was said
    assert [(line["event"], line.get("tool"), line["seconds"], line.get("error")) for line in told] == [
        ("tool call finished", "weather", 0.25, None),
        ("tool call finished", None, 0.5, "unknown_tool"),
    ]


def test_runs_that_never_end_are_forgotten() -> None:
    calls = CallLog()
    for n in range(300):
        place: dict[str, Any] = {"backend": "b", "model": "m", "caller": Caller(run_id=f"r{n}")}
        calls.observe(CallPriced(call_id="c", cost=1.0, **place))
    assert calls.taken("r0") == {}
    assert calls.taken("r299") == {"usd": 1.0}


class Talking(ScriptedBackend):
    """A backend that logs while it is asked, as those do that find a parameter refused."""

    backend = "scripted"

    async def send(self, request: LLMRequest) -> LLMResponse:
        logging.getLogger("llm.backends.remote").warning("left out of every call")
        return await super().send(request)


async def test_what_a_backend_logs_meanwhile_says_for_which_call_run_and_agent(lines: Lines) -> None:
    client = Talking(ANSWER, config=CONFIG)
    with about(agent="garden", run_id="r1"):
        response = await client.generate(QUESTION)
        logging.getLogger("llm.backends.remote").warning("between two calls")
    meanwhile, between = await asyncio.to_thread(lines)
    assert (meanwhile["agent"], meanwhile["run_id"], meanwhile["call_id"]) == (
        "garden", "r1", response.call_id,
    )  # fmt: skip
    assert (between["run_id"], "call_id" in between) == ("r1", False)


async def hang(_: LLMRequest) -> str:
    await asyncio.sleep(3600)
    return ""


class Asking(BaseAgent):
    """Asks once."""

    patience: ClassVar[float] = 0.05

    async def analyze(self) -> list[Proposal]:
        await self.use_llm(QUESTION, timeout=self.patience)
        return []


@pytest.mark.parametrize("script", [BadRequest("no"), hang], ids=["refused", "too late"])
async def test_a_call_that_failed_is_kept_under_the_id_that_the_log_has(script: Any, lines: Lines) -> None:
    client = ScriptedBackend(script, config=CONFIG, observers=[CallLog().observe])
    context = AgentContext(llm=client)
    with pytest.raises(LLMError):
        await Asking(context).analyze()
    (failed,) = await asyncio.to_thread(lines)
    assert [call.id for call in context.calls] == [failed["call_id"]]


class Patient(Asking):
    """Asks once, and waits for the answer."""

    patience = 60.0


async def test_a_shared_failure_has_the_id_for_one_of_those_who_shared_it(
    lines: Lines, tmp_path: Path
) -> None:
    recorder = Recorder()

    async def refuse(_: LLMRequest) -> BadRequest:
        await seen(lambda: len(recorder.of(Coalesced)) == 2)
        return BadRequest("no")

    cache = ResponseCache(SqliteResponseStore(tmp_path))
    observers = [CallLog().observe, recorder]
    client = ScriptedBackend(refuse, config=CONFIG, middleware=[cache, Coalesce()], observers=observers)
    contexts = [AgentContext(llm=client) for _ in range(3)]
    ended = await asyncio.gather(*(Patient(each).analyze() for each in contexts), return_exceptions=True)
    await client.aclose()
    assert all(isinstance(each, BadRequest) for each in ended)
    told = await asyncio.to_thread(lines)
    (failed,) = [line for line in told if line["event"] == "model call failed"]
    ids = [call.id for each in contexts for call in each.calls]
    assert ids.count(failed["call_id"]) == 1
    assert len(set(ids)) == 3
