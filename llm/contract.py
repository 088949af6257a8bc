# ruff: noqa: S101, D102 - the contract suite is made of tests: assertions, and names that are sentences
"""What every backend must do, as a suite of tests; it is found in `llm.testing`, which says how to run it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

from llm.client import LLMClient
from llm.config import LLMConfig
from llm.errors import (
    ERROR_CODES,
    BadReply,
    CallCancelled,
    DeadlineExceeded,
    LLMError,
)
from llm.events import (
    CacheHit,
    CacheMiss,
    CallEvent,
    CallFailed,
    CallFinished,
    CallStarted,
    FirstToken,
    Observer,
)
from llm.factory import get_llm_client
from llm.structured import ask, validate
from llm.types import Chunk, LLMMessage, LLMResponse, StreamEnd, TextChunk, ThinkingChunk


class Recorder:
    """An observer that keeps every event, the first one first."""

    def __init__(self) -> None:
        self.events: list[CallEvent] = []

    def __call__(self, event: CallEvent) -> None:
        """Keep `event`."""
        self.events.append(event)

    def of(self, *kinds: type[CallEvent]) -> list[CallEvent]:
        """The events of these kinds."""
        return [event for event in self.events if isinstance(event, kinds)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One way to make a backend fail.

    Attributes:
        error: the class that its calls must raise, exactly.
        config: what makes it fail.
        prompt: what to ask; empty for the contract's question.
        stream: whether only a stream fails so.
    """

    error: type[LLMError]
    config: LLMConfig
    prompt: str = ""
    stream: bool = False


class LLMContract:
    """What every backend does. The fixtures `llm_config` and `unavailable_config` are the subclass's.

    What is asked can be changed where a backend only knows certain questions, as recordings do.

    Attributes:
        question: has a short answer.
        story: has a long one.
        brief: how the model shall behave, in few tokens; None for nothing.
        system: the same in more.
        few: tokens that most calls ask for, so that the suite is quick with a real model.
        cut: tokens that a story is cut at.
        offer: what the structured call asks.
        schema: what its reply must fit.
    """

    question: ClassVar[str] = "Name three vegetables that grow in a small garden."
    story: ClassVar[str] = "Write a long story about a tool library in a small town."
    brief: ClassVar[str | None] = "Be brief."
    system: ClassVar[str] = "You help the people of a small town to share what they have. Answer shortly."
    few: ClassVar[int] = 8
    cut: ClassVar[int] = 3
    offer: ClassVar[str] = "Offer: 10 kg tomatoes. Need: vegetables."
    schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "fits": {"type": "boolean", "description": "whether the offer serves the need"},
            "answer": {"enum": ["yes", "partly", "no"]},
            "units": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["fits", "answer", "units"],
        "additionalProperties": False,
    }

    def client(self, config: LLMConfig, *observers: Observer) -> LLMClient:
        """The client under test, made as any program makes it."""
        return get_llm_client(config, observers=observers)

    def failures(self, config: LLMConfig) -> Sequence[Failure]:  # noqa: ARG002 - for those that override it
        """Ways to make this backend fail, beside that nothing is there."""
        return ()

    def holds_to_schemas(self, config: LLMConfig) -> bool:  # noqa: ARG002 - for those that override it
        """Whether the server holds the model to a schema; False where it is only told in words."""
        return True

    def stops_at_texts(self, config: LLMConfig) -> bool:  # noqa: ARG002 - for those that override it
        """Whether the model can be told texts to stop at."""
        return True

    async def test_generate_answers_and_says_where_it_came_from(self, llm_config: LLMConfig) -> None:
        async with self.client(llm_config) as client:
            response = await client.generate(self.question, max_tokens=self.few)
            assert isinstance(response.content, str)
            assert response.backend == client.backend
            assert response.model
            assert response.finish_reason in {"stop", "length"}
            assert not response.cached
            assert response.latency > 0

    async def test_chat_answers_a_conversation_of_several_turns(self, llm_config: LLMConfig) -> None:
        turns = [
            LLMMessage("system", self.system),
            LLMMessage("user", self.question),
            LLMMessage("assistant", "Leeks, beans, chard."),
            LLMMessage("user", "And one more?"),
        ]
        async with self.client(llm_config) as client:
            long = await client.chat(turns, max_tokens=self.few)
            short = await client.generate(self.question, max_tokens=self.few)
        assert long.prompt_tokens > short.prompt_tokens > 0

    async def test_a_system_prompt_reaches_the_model(self, llm_config: LLMConfig) -> None:
        async with self.client(llm_config) as client:
            plain = await client.generate(self.question, self.brief, max_tokens=self.few)
            told = await client.generate(self.question, self.system, max_tokens=self.few)
        assert told.prompt_tokens > plain.prompt_tokens

    async def test_tokens_are_counted_and_add_up(self, llm_config: LLMConfig) -> None:
        async with self.client(llm_config) as client:
            response = await client.generate(self.question, max_tokens=self.few)
            stats = client.get_stats()
        assert response.prompt_tokens > 0
        assert 0 < response.completion_tokens <= self.few
        assert response.tokens_used == response.prompt_tokens + response.completion_tokens
        assert stats["calls"] == 1
        assert stats["tokens_used"] == response.tokens_used

    async def test_max_tokens_cuts_the_answer_and_the_answer_says_so(self, llm_config: LLMConfig) -> None:
        async with self.client(llm_config) as client:
            response = await client.generate(self.story, max_tokens=self.cut)
        assert response.finish_reason == "length"
        assert response.completion_tokens == self.cut

    async def test_temperature_zero_is_taken_and_gives_the_same_answer_again(
        self, llm_config: LLMConfig
    ) -> None:
        async with self.client(llm_config) as client:
            first = await client.generate(self.question, temperature=0, max_tokens=self.few, cache=False)
            second = await client.generate(self.question, temperature=0, max_tokens=self.few, cache=False)
        assert first.content == second.content

    async def test_the_text_of_a_response_is_its_content(self, llm_config: LLMConfig) -> None:
        async with self.client(llm_config) as client:
            response = await client.generate(self.question, max_tokens=self.few)
        assert str(response) == response.content

    async def test_text_of_any_language_goes_in_and_clean_text_comes_out(self, llm_config: LLMConfig) -> None:
        async with self.client(llm_config) as client:
            response = await client.generate("¿Qué tal? Grüße, 東京 🍅 \\ \" '", max_tokens=self.few)
        assert response.content.encode("utf-8").decode("utf-8") == response.content

    async def test_a_reply_to_a_schema_fits_it_or_is_refused(self, llm_config: LLMConfig) -> None:
        prompt = LLMMessage("user", self.offer)
        options: dict[str, Any] = {"max_tokens": 200, "temperature": 0}
        async with self.client(llm_config) as client:
            if self.holds_to_schemas(llm_config):
                response = await client.chat([prompt], schema=self.schema, **options)
                assert validate(self.schema, response.content) == response.json()
                return
            try:
                response = await ask(client, [prompt], self.schema, **options)
            except BadReply:
                return
            assert validate(self.schema, response.content) == response.json()

    async def test_several_calls_at_once_are_all_answered(self, llm_config: LLMConfig) -> None:
        async with self.client(llm_config) as client:
            questions = [f"{self.question} Number {number}." for number in range(3)]
            calls = [client.generate(question, max_tokens=self.few) for question in questions]
            responses = await asyncio.gather(*calls)
        assert [response.backend for response in responses] == [client.backend] * 3

    async def test_a_cancelled_call_ends_and_the_client_goes_on(self, llm_config: LLMConfig) -> None:
        async with self.client(llm_config) as client:
            task = asyncio.create_task(client.generate(self.story, max_tokens=400))
            await asyncio.wait({task}, timeout=0.05)
            task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(outcome, asyncio.CancelledError | LLMResponse)
            again = await client.generate(self.question, max_tokens=self.few)
            assert again.completion_tokens > 0

    async def test_a_call_that_outlasts_its_deadline_fails_in_time_and_the_client_goes_on(
        self, llm_config: LLMConfig
    ) -> None:
        recorder = Recorder()
        async with self.client(llm_config, recorder) as client:
            started = time.monotonic()
            fault = await _fault_of(client.generate(self.story, max_tokens=400, timeout=1e-6))
            assert isinstance(fault, DeadlineExceeded)
            assert time.monotonic() - started < 5
            assert [e.code for e in recorder.of(CallFailed) if isinstance(e, CallFailed)] == ["timeout"]
            again = await client.generate(self.question, max_tokens=self.few)
            assert again.completion_tokens > 0

    async def test_a_closed_client_takes_no_more_calls_and_can_be_closed_again(
        self, llm_config: LLMConfig
    ) -> None:
        client = self.client(llm_config)
        await client.generate(self.question, max_tokens=self.few)
        await client.aclose()
        await client.aclose()
        assert isinstance(await _fault_of(client.generate(self.question)), CallCancelled)

    async def test_closing_ends_the_calls_under_way(self, llm_config: LLMConfig) -> None:
        begun = asyncio.Event()
        client = self.client(llm_config, lambda _: begun.set())
        task = asyncio.create_task(client.generate(self.story, max_tokens=400))
        await begun.wait()
        await client.aclose()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, CallCancelled | LLMResponse)

    async def test_a_working_backend_is_healthy(self, llm_config: LLMConfig) -> None:
        async with self.client(llm_config) as client:
            assert await client.health_check() is True

    async def test_an_unavailable_backend_says_so_without_raising_and_its_calls_raise_a_typed_error(
        self, unavailable_config: LLMConfig | None
    ) -> None:
        if unavailable_config is None:
            msg = "this backend is always available"
            raise SkipTest(msg)
        recorder = Recorder()
        async with self.client(unavailable_config.with_values(retries=0), recorder) as client:
            assert await client.health_check() is False
            fault = await _fault_of(client.generate(self.question))
            assert type(fault) is not LLMError
            assert fault.code in ERROR_CODES
            assert client.get_stats()["errors"] == 1
        assert [type(event) for event in recorder.events] == [CallStarted, CallFailed]

    async def test_the_second_call_is_answered_from_the_cache_also_after_a_restart(
        self, llm_config: LLMConfig, tmp_path: Path
    ) -> None:
        config = llm_config.with_values(enable_cache=True, cache_dir=str(tmp_path / "cache"))
        async with self.client(config) as client:
            first = await client.generate(self.question, max_tokens=self.few, temperature=0)
            second = await client.generate(self.question, max_tokens=self.few, temperature=0)
        async with self.client(config) as client:
            third = await client.generate(self.question, max_tokens=self.few, temperature=0)
        assert [first.cached, second.cached, third.cached] == [False, True, True]
        assert first.content == second.content == third.content
        assert first.tokens_used == second.tokens_used == third.tokens_used

    async def test_observers_see_each_call_begin_and_end(self, llm_config: LLMConfig, tmp_path: Path) -> None:
        recorder = Recorder()
        config = llm_config.with_values(enable_cache=True, cache_dir=str(tmp_path / "cache"))
        async with self.client(config, recorder) as client:
            response = await client.generate(self.question, max_tokens=self.few)
            await client.generate(self.question, max_tokens=self.few)
        assert [type(event) for event in recorder.events] == [CacheMiss, CallStarted, CallFinished, CacheHit]
        finished = recorder.events[2]
        assert isinstance(finished, CallFinished)
        assert finished.backend == response.backend
        assert (finished.prompt_tokens, finished.completion_tokens) == (
            response.prompt_tokens,
            response.completion_tokens,
        )

    # Streams.

    async def test_a_stream_is_its_answer_in_pieces_and_ends_once(self, llm_config: LLMConfig) -> None:
        recorder = Recorder()
        async with self.client(llm_config, recorder) as client:
            chunks = [chunk async for chunk in client.stream(self.question, max_tokens=self.few)]
        response = _whole(chunks)
        assert response.backend == client.backend
        assert response.finish_reason in {"stop", "length"}
        assert response.prompt_tokens > 0
        assert 0 < response.completion_tokens <= self.few
        assert response.first_token is not None
        assert 0 < response.first_token <= response.latency
        assert response.content.encode("utf-8").decode("utf-8") == response.content
        assert [type(event) for event in recorder.events] == [CallStarted, FirstToken, CallFinished]

    async def test_a_stream_says_what_a_call_says(self, llm_config: LLMConfig) -> None:
        options: dict[str, Any] = {"max_tokens": self.few, "temperature": 0, "cache": False}
        async with self.client(llm_config) as client:
            whole = await client.generate(self.question, **options)
            streamed = await client.stream(self.question, **options).collect()
        assert streamed.content == whole.content
        assert streamed.finish_reason == whole.finish_reason
        assert streamed.completion_tokens == whole.completion_tokens
        assert streamed.prompt_tokens == whole.prompt_tokens

    async def test_a_conversation_can_be_streamed(self, llm_config: LLMConfig) -> None:
        turns = [LLMMessage("system", self.system), LLMMessage("user", self.question)]
        async with self.client(llm_config) as client:
            response = await client.stream_chat(turns, max_tokens=self.few).collect()
        assert response.completion_tokens > 0

    async def test_a_stream_to_a_schema_is_json_when_it_is_whole(self, llm_config: LLMConfig) -> None:
        if not self.holds_to_schemas(llm_config):
            msg = "this server does not hold a model to a schema"
            raise SkipTest(msg)
        options: dict[str, Any] = {"max_tokens": 200, "temperature": 0}
        async with self.client(llm_config) as client:
            chunks = [chunk async for chunk in client.stream(self.offer, schema=self.schema, **options)]
        assert validate(self.schema, _whole(chunks).content) == _whole(chunks).json()

    async def test_a_stream_closed_early_lets_the_next_call_in(self, llm_config: LLMConfig) -> None:
        async with self.client(llm_config) as client:
            async with client.stream(self.story, max_tokens=400) as stream:
                assert isinstance(await anext(stream), TextChunk | ThinkingChunk)
            assert stream.response is None
            again = await client.generate(self.question, max_tokens=self.few)
            assert again.completion_tokens > 0

    async def test_a_stream_whose_reader_is_cancelled_lets_the_next_call_in(
        self, llm_config: LLMConfig
    ) -> None:
        begun = asyncio.Event()

        async def read(client: LLMClient) -> None:
            async for _ in client.stream(self.story, max_tokens=400):
                begun.set()

        async with self.client(llm_config) as client:
            task = asyncio.create_task(read(client))
            waiting = asyncio.create_task(begun.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            task.cancel()
            await asyncio.gather(task, waiting, return_exceptions=True)
            again = await client.generate(self.question, max_tokens=self.few)
            assert again.completion_tokens > 0

    async def test_a_stream_that_outlasts_its_deadline_fails_in_time_and_the_client_goes_on(
        self, llm_config: LLMConfig
    ) -> None:
        recorder = Recorder()
        async with self.client(llm_config, recorder) as client:
            stream = client.stream(self.story, max_tokens=400, timeout=1e-6)
            assert isinstance(await _fault_of(stream.collect()), DeadlineExceeded)
            assert [e.code for e in recorder.of(CallFailed) if isinstance(e, CallFailed)] == ["timeout"]
            again = await client.generate(self.question, max_tokens=self.few)
            assert again.completion_tokens > 0

    async def test_closing_the_client_ends_its_streams(self, llm_config: LLMConfig) -> None:
        client = self.client(llm_config)
        stream = client.stream(self.story, max_tokens=400)
        await anext(stream)
        await client.aclose()
        assert isinstance(await _fault_of(stream.collect()), CallCancelled)

    async def test_a_stream_fills_the_cache_and_a_hit_can_be_streamed(
        self, llm_config: LLMConfig, tmp_path: Path
    ) -> None:
        config = llm_config.with_values(enable_cache=True, cache_dir=str(tmp_path / "cache"))
        options: dict[str, Any] = {"max_tokens": self.few, "temperature": 0}
        async with self.client(config) as client:
            first = await client.stream(self.question, **options).collect()
            second = _whole([chunk async for chunk in client.stream(self.question, **options)])
            third = await client.generate(self.question, **options)
            stats = client.get_stats()
        assert [first.cached, second.cached, third.cached] == [False, True, True]
        assert first.content == second.content == third.content
        assert stats["calls"] == 1

    # Structure, stop texts, limits, crowds.

    async def test_structured_gives_what_fits_the_schema_or_says_that_nothing_did(
        self, llm_config: LLMConfig
    ) -> None:
        options: dict[str, Any] = {"max_tokens": 200, "temperature": 0}
        async with self.client(llm_config) as client:
            try:
                found = await client.structured(self.offer, self.schema, **options)
            except BadReply:
                assert not self.holds_to_schemas(llm_config)
            else:
                assert set(self.schema["required"]) <= set(found)

    async def test_a_stop_text_ends_the_answer_before_it(self, llm_config: LLMConfig) -> None:
        if not self.stops_at_texts(llm_config):
            msg = "this backend knows no texts to stop at"
            raise SkipTest(msg)
        options: dict[str, Any] = {"max_tokens": 3 * self.few, "temperature": 0, "cache": False}
        async with self.client(llm_config) as client:
            whole = await client.generate(self.question, **options)
            stop = _inside(whole.content)
            stopped = await client.generate(self.question, stop=(stop,), **options)
            streamed = [chunk async for chunk in client.stream(self.question, stop=(stop,), **options)]
        wanted = whole.content[: whole.content.index(stop)]
        assert stopped.content.rstrip() == wanted.rstrip()
        assert stopped.finish_reason == "stop"
        assert _whole(streamed).content == stopped.content
        assert _whole(streamed).finish_reason == "stop"

    async def test_an_empty_prompt_is_answered_or_refused_as_any_other(self, llm_config: LLMConfig) -> None:
        async with self.client(llm_config) as client:
            try:
                response = await client.generate("", max_tokens=self.few)
            except LLMError as error:
                assert error.code in ERROR_CODES  # noqa: PT017 - either is right, nothing else is
            else:
                assert response.backend == client.backend

    async def test_eight_calls_at_once_whole_and_in_pieces_are_all_answered(
        self, llm_config: LLMConfig
    ) -> None:
        async with self.client(llm_config) as client:
            questions = [f"{self.question} Number {number}." for number in range(4)]
            calls = [client.generate(question, max_tokens=self.few) for question in questions]
            streams = [client.stream(question, max_tokens=self.few).collect() for question in questions]
            responses = await asyncio.gather(*calls, *streams)
            assert client.get_stats()["calls"] == 8
        assert [response.backend for response in responses] == [client.backend] * 8
        assert all(0 < response.completion_tokens <= self.few for response in responses)

    async def test_each_failure_is_its_own_error_in_a_call_and_in_a_stream(
        self, llm_config: LLMConfig
    ) -> None:
        failures = self.failures(llm_config)
        if not failures:
            msg = "no way is known to make this backend fail"
            raise SkipTest(msg)
        for failure in failures:
            recorder = Recorder()
            prompt = failure.prompt or self.question
            async with self.client(failure.config.with_values(retries=0), recorder) as client:
                faults = [await _fault_of(client.stream(prompt, max_tokens=400).collect())]
                if not failure.stream:
                    faults.append(await _fault_of(client.generate(prompt, max_tokens=400)))
            assert [type(fault) for fault in faults] == [failure.error] * len(faults)
            codes = [event.code for event in recorder.events if isinstance(event, CallFailed)]
            assert codes == [failure.error.code] * len(faults)


def _whole(chunks: Sequence[Chunk]) -> LLMResponse:
    """The response of a stream, which must be made of its pieces and end it."""
    *pieces, last = chunks
    assert isinstance(last, StreamEnd)
    assert not any(isinstance(piece, StreamEnd) for piece in pieces)
    assert "".join(piece.text for piece in pieces if isinstance(piece, TextChunk)) == last.response.content
    thoughts = [piece.text for piece in pieces if isinstance(piece, ThinkingChunk)]
    assert "".join(thoughts) == last.response.thinking
    return last.response


def _inside(text: str) -> str:
    """Some characters from the inside of a text, at which it can be stopped."""
    places = [*re.finditer(r"[^\s\ufffd]{2,4}", text[1:])]
    assert places, f"nothing to stop at in {text!r}"
    return places[len(places) // 2].group()


async def _fault_of(call: Awaitable[LLMResponse]) -> LLMError:
    """The error that `call` raises; it must raise one."""
    try:
        response = await call
    except LLMError as error:
        return error
    msg = f"the call should have failed, and answered {response.content[:80]!r}"
    raise AssertionError(msg)
