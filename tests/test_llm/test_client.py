"""LLMClient: deadline, cancelling, closing, translating, counting. What every backend inherits."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest
from pydantic import BaseModel

from llm import (
    BadReply,
    CallCancelled,
    ConfigurationError,
    DeadlineExceeded,
    LLMConfig,
    LLMError,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    ServerError,
)
from llm.events import CallEvent, CallFailed, CallFinished, CallStarted
from llm.middleware.base import Handler, Middleware
from llm.testing import Recorder, ScriptedBackend


def config(**values: Any) -> LLMConfig:
    return LLMConfig(backend="scripted", model="small", enable_cache=False, **values)


async def never(request: LLMRequest) -> str:
    """A backend that hangs."""
    await asyncio.Event().wait()
    return "never"


class Gate:
    """A backend whose call begins, and then waits to be let through."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, request: LLMRequest) -> str:
        self.begun.set()
        await self.open.wait()
        return "through"


# Requests


async def test_generate_fills_in_every_default_of_the_configuration() -> None:
    async with ScriptedBackend(
        "ok", config=config(temperature=0.3, max_tokens=7, top_p=0.4, seed=5)
    ) as client:
        await client.generate("Hello", "Be brief")
    (request,) = client.requests
    assert request == LLMRequest(
        messages=(LLMMessage("system", "Be brief"), LLMMessage("user", "Hello")),
        model="small",
        temperature=0.3,
        max_tokens=7,
        top_p=0.4,
        seed=5,
    )


async def test_options_of_a_call_override_the_configuration_and_zero_is_a_value() -> None:
    async with ScriptedBackend("ok", config=config(temperature=0.7, seed=5)) as client:
        await client.generate("Hello", temperature=0, max_tokens=1, top_p=1, seed=0, cache=False)
    (request,) = client.requests
    assert (request.temperature, request.max_tokens, request.top_p, request.seed) == (0, 1, 1, 0)
    assert request.cache == "off"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": 3}, "LLM_TEMPERATURE"),
        ({"max_tokens": 0}, "LLM_MAX_TOKENS"),
        ({"top_p": 0}, "LLM_TOP_P"),
        ({"timeout": 0}, "LLM_TIMEOUT"),
        ({"timeout": float("nan")}, "LLM_TIMEOUT"),
        ({"schema": 3}, "schema"),
    ],
)
async def test_an_option_that_cannot_work_is_refused_before_anything_is_sent(
    options: dict[str, Any], said: str
) -> None:
    async with ScriptedBackend("ok") as client:
        with pytest.raises(ConfigurationError, match=said):
            await client.generate("Hello", **options)
    assert client.requests == []


async def test_an_empty_system_prompt_is_none_and_an_empty_conversation_is_refused() -> None:
    async with ScriptedBackend("ok") as client:
        await client.generate("Hello", "")
        with pytest.raises(ValueError, match="at least one message"):
            await client.chat([])
    assert client.requests[0].system_prompt is None


async def test_a_pydantic_model_travels_as_its_json_schema() -> None:
    class Answer(BaseModel):
        fits: bool

    async with ScriptedBackend("{}") as client:
        await client.generate("Hello", schema=Answer)
    assert client.requests[0].schema == Answer.model_json_schema()


async def test_every_call_has_an_id_of_its_own() -> None:
    async with ScriptedBackend(lambda _: "ok") as client:
        responses = [await client.generate("Hello") for _ in range(3)]
    assert len({response.call_id for response in responses} - {""}) == 3


# The deadline


async def test_a_call_that_outlasts_the_deadline_fails_and_says_what_to_change() -> None:
    recorder = Recorder()
    async with ScriptedBackend(never, config=config(timeout=0.05), observers=[recorder]) as client:
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"within 0.05 s; raise LLM_TIMEOUT"):
            await client.generate("Hello")
        assert time.monotonic() - started < 5
    assert [type(event) for event in recorder.events] == [CallStarted, CallFailed]
    assert recorder.of(CallFailed)[0].code == "timeout"  # type: ignore[attr-defined]


async def test_the_deadline_of_a_call_overrides_the_configured_one() -> None:
    async with ScriptedBackend(never) as client:
        with pytest.raises(DeadlineExceeded, match=r"within 0\.02 s"):
            await client.generate("Hello", timeout=0.02)


async def test_the_deadline_covers_the_middleware_too() -> None:
    class Slow(Middleware):
        async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
            await asyncio.sleep(60)
            return await call_next(request)

    async with ScriptedBackend("ok", middleware=[Slow()]) as client:
        with pytest.raises(DeadlineExceeded):
            await client.generate("Hello", timeout=0.02)
    assert client.requests == []


async def test_a_timeout_of_the_backends_own_is_not_taken_for_the_deadline() -> None:
    async with ScriptedBackend(TimeoutError("socket")) as client:
        with pytest.raises(ServerError, match="TimeoutError"):
            await client.generate("Hello")


# Cancelling and closing


async def test_a_cancelled_caller_gets_its_own_cancellation_and_the_client_goes_on() -> None:
    gate = Gate()
    recorder = Recorder()
    async with ScriptedBackend(gate, observers=[recorder]) as client:
        task = asyncio.create_task(client.generate("Hello"))
        await gate.begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert recorder.of(CallFailed)[0].code == "cancelled"  # type: ignore[attr-defined]
        gate.open.set()
        assert (await client.generate("Hello")).content == "through"


async def test_the_timeout_of_a_caller_stays_the_callers_own() -> None:
    async with ScriptedBackend(never) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await client.generate("Hello")


async def test_closing_ends_the_calls_under_way_with_an_error_that_says_so() -> None:
    gate = Gate()
    client = ScriptedBackend(gate)
    tasks = [asyncio.create_task(client.generate("Hello")) for _ in range(3)]
    await gate.begun.wait()
    await client.aclose()
    faults = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(fault) for fault in faults] == [CallCancelled] * 3
    assert "closed during the call" in str(faults[0])


async def test_a_caller_that_is_cancelled_while_its_client_closes_is_cancelled() -> None:
    gate = Gate()
    client = ScriptedBackend(gate)
    task = asyncio.create_task(client.generate("Hello"))
    await gate.begun.wait()
    task.cancel()
    await client.aclose()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_closed_client_takes_no_calls_and_may_be_closed_again() -> None:
    client = ScriptedBackend("ok")
    await client.aclose()
    await client.aclose()
    with pytest.raises(CallCancelled, match=r"closed; get a new one"):
        await client.generate("Hello")
    assert client.requests == []


async def test_closing_closes_the_backend_and_every_middleware_even_when_one_fails() -> None:
    closed: list[str] = []

    class Closing(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
            return await call_next(request)

        async def aclose(self) -> None:
            closed.append(self.name)
            if self.name == "outer":
                msg = "cannot close"
                raise OSError(msg)

    class Backend(ScriptedBackend):
        async def _release(self) -> None:
            closed.append("backend")

    client = Backend("ok", middleware=[Closing("outer"), Closing("inner")])
    with pytest.raises(OSError, match="cannot close"):
        await client.aclose()
    assert closed == ["outer", "inner", "backend"]


# Errors and events


@pytest.mark.parametrize(
    "fault", [RuntimeError("boom sk-secret"), KeyError("x"), OSError(5, "io"), ValueError()]
)
async def test_whatever_a_backend_throws_callers_see_an_llm_error(fault: Exception) -> None:
    async with ScriptedBackend(fault) as client:
        with pytest.raises(ServerError) as caught:
            await client.generate("Hello")
    assert caught.value.__cause__ is fault
    assert type(fault).__name__ in str(caught.value)
    assert "secret" not in str(caught.value)  # the text of a foreign error is not repeated


async def test_a_typed_error_comes_through_as_it_is() -> None:
    fault = BadReply("not JSON")
    async with ScriptedBackend(fault) as client:
        with pytest.raises(LLMError) as caught:
            await client.generate("Hello")
    assert caught.value is fault


async def test_events_and_totals_tell_what_happened() -> None:
    recorder = Recorder()
    async with ScriptedBackend("one two", BadReply("no"), observers=[recorder]) as client:
        response = await client.generate("a b c")
        with pytest.raises(BadReply):
            await client.generate("d")
        stats = client.get_stats()
    started, finished, _, failed = recorder.events
    assert isinstance(started, CallStarted)
    assert isinstance(finished, CallFinished)
    assert isinstance(failed, CallFailed)
    assert (finished.backend, finished.model) == ("scripted", "scripted")
    assert (finished.prompt_tokens, finished.completion_tokens) == (3, 2)
    assert finished.latency == response.latency > 0
    assert (failed.code, failed.latency > 0) == ("bad_reply", True)
    assert {key: stats[key] for key in ("calls", "errors", "prompt_tokens", "completion_tokens")} == {
        "calls": 2,
        "errors": 1,
        "prompt_tokens": 3,
        "completion_tokens": 2,
    }
    assert (stats["backend"], stats["model"], stats["tokens_used"]) == ("scripted", "scripted", 5)
    assert stats["seconds"] == response.latency


async def test_an_observer_that_raises_is_logged_and_costs_nobody_the_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(event: CallEvent) -> None:
        msg = "observer down"
        raise RuntimeError(msg)

    recorder = Recorder()
    async with ScriptedBackend("ok", observers=[broken, recorder]) as client:
        assert (await client.generate("Hello")).content == "ok"
    assert len(recorder.events) == 2
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert "observer failed on CallStarted" in caplog.text


# Middleware


async def test_middleware_stands_round_the_backend_the_first_one_outermost() -> None:
    trace: list[str] = []

    class Tracing(Middleware):
        def __init__(self, name: str) -> None:
            self.name = name

        async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
            trace.append(f"{self.name} in, before {self.backend}")
            response = await call_next(request)
            trace.append(f"{self.name} out")
            return response

    async with ScriptedBackend("ok", middleware=[Tracing("a"), Tracing("b")]) as client:
        await client.generate("Hello")
    assert trace == ["a in, before scripted", "b in, before scripted", "b out", "a out"]


async def test_middleware_speaks_to_the_observers_of_its_client_and_to_nobody_before() -> None:
    class Speaking(Middleware):
        async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
            self.emit(CallStarted(backend="mine", model="m"))
            return await call_next(request)

    lonely = Speaking()
    lonely.emit(CallStarted(backend="mine", model="m"))
    recorder = Recorder()
    async with ScriptedBackend("ok", middleware=[lonely], observers=[recorder]) as client:
        await client.generate("Hello")
    assert recorder.events[0] == CallStarted(backend="mine", model="m")


# The scripted twin


async def test_a_script_is_followed_in_order_and_its_end_is_an_error() -> None:
    whole = LLMResponse(content="whole", model="m", backend="b", finish_reason="length")
    async with ScriptedBackend("text", whole, BadReply("fault")) as client:
        assert (await client.generate("1")).content == "text"
        second = await client.generate("2")
        assert (second.content, second.finish_reason, second.model) == ("whole", "length", "m")
        with pytest.raises(BadReply, match="fault"):
            await client.generate("3")
        with pytest.raises(ServerError, match=r"no reply for call 4: 'more\?'"):
            await client.generate("more?")
    assert [request.prompt for request in client.requests] == ["1", "2", "3", "more?"]


async def test_a_function_in_a_script_answers_every_call_from_then_on() -> None:
    async with ScriptedBackend("first", lambda request: request.prompt.upper()) as client:
        assert [(await client.generate(word)).content for word in ("a", "b", "c")] == ["first", "B", "C"]


@pytest.mark.parametrize("healthy", [True, False])
async def test_a_script_says_whether_it_is_healthy(healthy: bool) -> None:
    async with ScriptedBackend(healthy=healthy) as client:
        assert await client.health_check() is healthy
