"""Streams of the embedded engine: whole, in order, one at a time, left early, and cut by its death."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import psutil
import pytest
import pytest_asyncio

from llm import LLMConfig, LLMMessage, StreamEnd, TextChunk
from llm.backends.llamacpp import LlamaCppBackend
from llm.errors import BadRequest, DeadlineExceeded, ServerError
from tests.support.engines import requires_llamacpp

pytestmark = [pytest.mark.engine, requires_llamacpp]

QUESTION = "Name three vegetables that grow in a small garden."
STORY = "Tell a long story about a gardener."


def config() -> LLMConfig:
    values = {"backend": "llamacpp", "temperature": 0.0, "max_tokens": 24, "timeout": 120.0}
    return LLMConfig.from_mapping({**values, "enable_cache": False})


def engine(backend: LlamaCppBackend) -> psutil.Process:
    process = backend._host.current
    assert process is not None
    return psutil.Process(process.pid)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend() -> AsyncIterator[LlamaCppBackend]:
    async with LlamaCppBackend(config()) as backend:
        yield backend


@pytest.mark.asyncio(loop_scope="module")
class TestStreaming:
    async def test_the_pieces_are_the_answer_that_comes_whole(self, backend: LlamaCppBackend) -> None:
        whole = await backend.generate(QUESTION)
        whole = await backend.generate(QUESTION)  # warm, as the stream below
        chunks = [chunk async for chunk in backend.stream(QUESTION)]
        texts = [chunk.text for chunk in chunks if isinstance(chunk, TextChunk)]
        assert len(texts) > 5
        (end,) = [chunk for chunk in chunks if isinstance(chunk, StreamEnd)]
        assert chunks[-1] is end
        assert "".join(texts) == end.response.content == whole.content
        assert end.response.model == "smollm2:135m"
        assert end.response.backend == "llamacpp"
        assert end.response.completion_tokens == whole.completion_tokens
        assert end.response.prompt_tokens == whole.prompt_tokens
        assert end.response.finish_reason == whole.finish_reason

    async def test_the_first_piece_comes_before_the_last_is_made(self, backend: LlamaCppBackend) -> None:
        async with backend.stream(STORY, max_tokens=80) as stream:
            response = [chunk async for chunk in stream][-1].response
        assert response.first_token is not None
        assert response.first_token < response.latency / 2

    async def test_closing_early_frees_the_engine_at_once(self, backend: LlamaCppBackend) -> None:
        async with backend.stream(STORY, max_tokens=2000) as stream:
            await anext(aiter(stream))
        cut = time.monotonic()
        assert (await backend.generate(QUESTION, max_tokens=2)).completion_tokens == 2
        assert time.monotonic() - cut < 12  # the story would go on for half a minute

    async def test_a_second_caller_waits_until_the_stream_has_ended(self, backend: LlamaCppBackend) -> None:
        async with backend.stream(STORY, max_tokens=30) as stream:
            pieces = aiter(stream)
            await anext(pieces)
            with pytest.raises(DeadlineExceeded):
                await backend.generate(QUESTION, timeout=0.3)
            waiting = asyncio.create_task(backend.generate(QUESTION, max_tokens=2))
            rest = [chunk async for chunk in pieces]
            assert isinstance(rest[-1], StreamEnd)
            assert not waiting.done()
        assert (await waiting).completion_tokens == 2

    async def test_no_connection_is_kept_after_a_stream(self, backend: LlamaCppBackend) -> None:
        # llama.cpp hangs up after each without saying so: the next call would be sent into nothing.
        process = await backend._host.running()
        port = int((await process.ready())["address"].rpartition(":")[2])

        def connections() -> list[str]:
            ours = psutil.Process().net_connections("tcp4")
            live = ("ESTABLISHED", "CLOSE_WAIT")
            return [
                each.status for each in ours if each.raddr and each.raddr.port == port and each.status in live
            ]

        async with backend.stream(QUESTION, max_tokens=1) as stream:
            assert [chunk async for chunk in stream]
        assert await asyncio.to_thread(connections) == []
        assert (await backend.generate(QUESTION, max_tokens=1)).completion_tokens == 1
        assert await asyncio.to_thread(connections) == ["ESTABLISHED"]

    async def test_a_reply_to_a_schema_streams_too(self, backend: LlamaCppBackend) -> None:
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        async with backend.stream(QUESTION, schema=schema, max_tokens=60) as stream:
            end = [chunk async for chunk in stream][-1]
        assert isinstance(end.response.json()["n"], int)

    async def test_a_prompt_beyond_the_context_is_refused_with_the_way_out(
        self, backend: LlamaCppBackend
    ) -> None:
        with pytest.raises(BadRequest, match="and the context 4096; shorten the prompt"):
            async for _ in backend.stream("word " * 5000):
                pass


class TestAPromptTooLong:
    async def test_its_oldest_turns_are_left_out_when_that_is_wanted(self) -> None:
        turns = [
            LLMMessage("user", "word " * 150),
            LLMMessage("assistant", "I see. " * 20),
            LLMMessage("user", "What is the capital of France? Answer in one sentence."),
        ]
        small = config().with_values(context_length=256, overflow="trim", max_tokens=20)
        async with LlamaCppBackend(small) as backend:
            whole = await backend.chat(turns)
            end = [chunk async for chunk in backend.stream_chat(turns)][-1]
        assert isinstance(end, StreamEnd)
        for response in (whole, end.response):
            assert "Paris" in response.content
            assert response.prompt_tokens < 256


class TestDeathInTheMiddle:
    async def test_a_killed_engine_is_a_server_error_within_a_second_and_the_next_stream_works(self) -> None:
        async with LlamaCppBackend(config()) as backend:
            stream = backend.stream(STORY, max_tokens=2000)
            pieces = aiter(stream)
            await anext(pieces)
            killed = engine(backend)
            killed.kill()
            cut = time.monotonic()
            with pytest.raises(ServerError, match="engine process was killed by SIGKILL; the next call"):
                async for _ in pieces:
                    pass
            assert time.monotonic() - cut < 1.5  # a second, and some for a busy machine
            end = [chunk async for chunk in backend.stream(QUESTION, max_tokens=2)][-1]
            assert isinstance(end, StreamEnd)
            assert end.response.completion_tokens == 2
            assert engine(backend).pid != killed.pid

    async def test_closing_the_client_during_a_stream_leaves_no_process(self) -> None:
        backend = LlamaCppBackend(config())
        pieces = aiter(backend.stream(STORY, max_tokens=2000))
        await anext(pieces)
        process = engine(backend)
        await backend.aclose()
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
