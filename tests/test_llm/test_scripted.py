"""The scripted backend: what a test writes is what a caller gets, whole or in pieces."""

from __future__ import annotations

import pytest

from llm.errors import RateLimited, ServerError
from llm.testing import ScriptedBackend
from llm.types import LLMRequest, LLMResponse, StreamEnd, TextChunk, ThinkingChunk


async def test_a_list_of_pieces_is_streamed_piece_by_piece_and_ends_with_the_whole() -> None:
    async with ScriptedBackend([ThinkingChunk("hm"), "leeks ", "and beans"]) as client:
        *pieces, end = [chunk async for chunk in client.stream("What?")]
    assert pieces == [ThinkingChunk("hm"), TextChunk("leeks "), TextChunk("and beans")]
    assert isinstance(end, StreamEnd)
    assert (end.response.content, end.response.thinking) == ("leeks and beans", "hm")
    assert end.response.completion_tokens == 3


async def test_a_call_gets_the_pieces_as_a_whole() -> None:
    async with ScriptedBackend([ThinkingChunk("hm"), "leeks ", "and beans"]) as client:
        response = await client.generate("What?")
    assert (response.content, response.thinking) == ("leeks and beans", "hm")


async def test_an_error_among_the_pieces_breaks_the_stream_off_where_it_stands() -> None:
    async with ScriptedBackend(["leeks ", RateLimited("slow down", retry_after=7.0)], "later") as client:
        stream = client.stream("What?")
        assert await anext(stream) == TextChunk("leeks ")
        with pytest.raises(RateLimited):
            await anext(stream)
        assert str(await client.generate("What?")) == "later"


async def test_a_response_ends_the_pieces_and_is_the_answer() -> None:
    end = LLMResponse(content="leeks", model="m", backend="scripted", finish_reason="length", prompt_tokens=4)
    async with ScriptedBackend(["le", "eks", end]) as client:
        response = await client.stream("What?").collect()
    assert (response.content, response.finish_reason, response.prompt_tokens) == ("leeks", "length", 4)


async def test_a_text_and_a_function_can_be_streamed_too() -> None:
    async def shout(request: LLMRequest) -> str:
        return request.prompt.upper()

    async with ScriptedBackend("leeks", shout) as client:
        assert [text async for text in client.stream("What?").texts()] == ["leeks"]
        assert [text async for text in client.stream("again").texts()] == ["AGAIN"]


async def test_it_counts_the_streams_that_were_left_before_their_end() -> None:
    async with ScriptedBackend(["a", "b", "c"], ["a", "b"]) as client:
        async with client.stream("What?") as stream:
            await anext(stream)
        assert client.abandoned == 1
        await client.stream("What?").collect()
        assert client.abandoned == 1


async def test_a_script_at_its_end_fails_a_stream_as_it_fails_a_call() -> None:
    async with ScriptedBackend() as client:
        with pytest.raises(ServerError, match="no reply for call 1"):
            await client.stream("What?").collect()
