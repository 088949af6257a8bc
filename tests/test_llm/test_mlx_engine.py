"""What the mlx engine does with many calls, streams, tools, thoughts, adapters and vectors, for real."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from llm import LLMConfig, LLMMessage
from llm.backends import mlx
from llm.backends.mlx import MLXBackend
from llm.backends.mlx_files import unavailable_reason
from llm.errors import BadReply, BadRequest, ModelNotFound, NotSupported, ServerError
from llm.events import CallEvent, ParameterDropped
from llm.structured import validate
from llm.types import Chunk, StreamEnd, TextChunk, ThinkingChunk, Tool, ToolCall
from tests.support.engines import becomes_true, cpu_seconds, is_gone, requires_minilm, requires_mlx
from tests.support.gguf_files import WEIGHTS_SHA256, minilm_folder
from tests.support.loopback import LoopbackServer, SeenRequest, http_message
from tests.support.tiny_mlx import (
    WITH_TOOLS,
    make_adapter,
    make_tiny_model,
    make_unbatchable_model,
)

pytestmark = [pytest.mark.engine, requires_mlx]

SYSTEM = "You watch a garden and answer briefly. " * 12
"""About 250 tokens of the tiny tokenizer, more than one piece of a prompt."""
QUESTIONS = [
    f"Which {what} grow here?" for what in ("beans", "herbs", "figs", "kale", "peas", "oats", "leeks", "x")
]
LONG = "tomato " * 900
WATER = Tool("water", "Waters a bed.", {"type": "object", "properties": {"litres": {"type": "integer"}}})
SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "action": {"enum": ["wait", "notify"]},
            "priority": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["action", "priority"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": ["a", "b", None]}, "minItems": 2, "maxItems": 4},
    {"type": "string", "minLength": 1, "maxLength": 12},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's models and what mlx compiles are kept."""
    return tmp_path_factory.mktemp("mlx")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    """The tiny model of random weights."""
    return make_tiny_model(folder / "tiny")


def config(model: Path | str, folder: Path, **changes: Any) -> LLMConfig:
    """A greedy configuration without a cache of answers, patient enough for a busy machine."""
    values = {"backend": "mlx", "model": str(model), "cache_dir": str(folder / "cache"), "timeout": 120.0}
    return LLMConfig(**{**values, "enable_cache": False, "max_tokens": 24, "temperature": 0.0, **changes})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(tiny: Path, folder: Path) -> AsyncIterator[MLXBackend]:
    """One engine for the tests that only ask it."""
    async with MLXBackend(config(tiny, folder, context_length=8192)) as backend:
        yield backend


async def pid_of(backend: MLXBackend) -> int:
    """Process id of the running engine, which is started if it does not run."""
    process = await backend._host.running()
    assert process.pid is not None
    return process.pid


async def read(backend: MLXBackend, prompt: str, **options: Any) -> tuple[list[Chunk], StreamEnd]:
    """All chunks of a stream but its end, and the end."""
    chunks = [chunk async for chunk in backend.stream(prompt, **options)]
    end = chunks.pop()
    assert isinstance(end, StreamEnd)
    return chunks, end


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))


@pytest.mark.asyncio(loop_scope="module")
class TestManyCalls:
    async def test_calls_that_come_together_get_the_answers_that_they_get_alone(
        self, backend: MLXBackend
    ) -> None:
        prompts = [f"{question} {'word ' * number * 20}" for number, question in enumerate(QUESTIONS)]
        alone = [(await backend.generate(prompt, max_tokens=40)).content for prompt in prompts]
        together = await asyncio.gather(*(backend.generate(prompt, max_tokens=40) for prompt in prompts))
        assert [answer.content for answer in together] == alone
        assert len(set(alone)) > 4

    async def test_more_calls_than_rows_wait_in_order_and_are_all_answered(self, backend: MLXBackend) -> None:
        ended: list[int] = []

        async def ask(number: int) -> None:
            assert (await backend.generate(f"{number}?", max_tokens=12)).completion_tokens > 0
            ended.append(number)

        await asyncio.gather(*(ask(number) for number in range(20)))
        assert ended.index(19) >= 12  # it began when at most seven others were left
        assert sorted(ended) == list(range(20))

    async def test_a_system_turn_is_read_once_for_all_who_ask_at_the_same_time(
        self, tiny: Path, folder: Path
    ) -> None:
        async with MLXBackend(config(tiny, folder)) as fresh:
            answers = await asyncio.gather(
                *(fresh.generate(question, SYSTEM, max_tokens=4) for question in QUESTIONS)
            )
            later = await fresh.generate("And the rest?", SYSTEM, max_tokens=4)
        new = sorted(answer.prompt_tokens - answer.cached_tokens for answer in answers)
        assert new[-1] == max(answer.prompt_tokens for answer in answers if not answer.cached_tokens)
        assert sum(1 for answer in answers if answer.cached_tokens == 0) == 1
        assert all(count < 60 for count in new[:-1])
        assert later.cached_tokens > 200

    async def test_when_the_first_of_them_leaves_the_others_are_served_all_the_same(
        self, tiny: Path, folder: Path
    ) -> None:
        async with MLXBackend(config(tiny, folder)) as fresh:
            pid = await pid_of(fresh)
            first = asyncio.create_task(fresh.generate("First?", SYSTEM * 6))
            others = [asyncio.create_task(fresh.generate(question, SYSTEM * 6)) for question in QUESTIONS[:3]]
            begun = cpu_seconds(pid)
            assert await asyncio.to_thread(becomes_true, lambda: cpu_seconds(pid) > begun)
            first.cancel()
            answers = await asyncio.gather(*others)
        assert sum(answer.cached_tokens > 1000 for answer in answers) >= 2

    async def test_what_was_said_before_is_not_read_again_when_a_conversation_goes_on(
        self, backend: MLXBackend
    ) -> None:
        turns = [
            LLMMessage("user", "One. " * 60),
            LLMMessage("assistant", "Two."),
            LLMMessage("user", "Three."),
        ]
        first = await backend.chat(turns)
        turns += [LLMMessage("assistant", first.content), LLMMessage("user", "And then?")]
        second = await backend.chat(turns)
        assert second.cached_tokens > first.prompt_tokens - 5

    async def test_a_seed_means_the_same_alone_and_beside_others(self, backend: MLXBackend) -> None:
        options = {"temperature": 1.0, "top_p": 0.95, "max_tokens": 30}
        alone = [(await backend.generate("Say.", seed=seed, **options)).content for seed in range(4)]
        together = await asyncio.gather(
            *(backend.generate("Say.", seed=seed, **options) for seed in range(4))
        )
        assert [answer.content for answer in together] == alone
        assert len(set(alone)) == 4

    async def test_replies_to_different_schemas_in_one_batch_all_fit_at_temperature_one(
        self, backend: MLXBackend
    ) -> None:
        wanted = [*SCHEMAS, None] * 3
        replies = await asyncio.gather(
            *(backend.generate("Go.", schema=schema, temperature=1, max_tokens=200) for schema in wanted)
        )
        for schema, reply in zip(wanted, replies, strict=True):
            assert schema is None or validate(schema, reply.content) is not None or schema is SCHEMAS[2]
            assert schema is None or reply.finish_reason == "stop"

    async def test_a_prompt_beyond_the_context_loses_its_oldest_turns_when_that_is_wanted(
        self, tiny: Path, folder: Path
    ) -> None:
        turns = [LLMMessage("system", "Be brief.")]
        for number in range(30):
            turns += [LLMMessage("user", f"{number}: tomato tomato?"), LLMMessage("assistant", "tomato.")]
        turns.append(LLMMessage("user", "And now?"))
        async with MLXBackend(config(tiny, folder, context_length=256, overflow="trim")) as trimming:
            whole = await trimming.chat(turns)
            stream = await trimming.stream_chat(turns).collect()
        assert 100 < whole.prompt_tokens < 256
        assert stream.content == whole.content

    async def test_a_refused_call_costs_its_neighbours_nothing(self, backend: MLXBackend) -> None:
        good = asyncio.create_task(backend.generate("Go.", max_tokens=60))
        refusals = await asyncio.gather(
            backend.generate("Go.", schema={"$ref": "#/nowhere"}),
            backend.generate(LONG * 8),
            return_exceptions=True,
        )
        assert [type(refusal) for refusal in refusals] == [BadRequest, BadRequest]
        assert (await good).completion_tokens > 0


@pytest.mark.asyncio(loop_scope="module")
class TestStreams:
    async def test_the_pieces_are_the_answer(self, backend: MLXBackend) -> None:
        chunks, end = await read(backend, "Go.", max_tokens=400)
        assert len(chunks) > 1  # a reader who is slow gets several tokens in one piece
        assert text_of(chunks) == end.response.content
        assert end.response.content == (await backend.generate("Go.", max_tokens=400)).content
        assert end.response.first_token is not None

    async def test_streams_that_run_together_are_told_apart(self, backend: MLXBackend) -> None:
        streams = await asyncio.gather(*(read(backend, question, max_tokens=30) for question in QUESTIONS))
        for chunks, end in streams:
            assert text_of(chunks) == end.response.content

    async def test_a_closed_stream_frees_its_row(self, tiny: Path, folder: Path) -> None:
        async with MLXBackend(config(tiny, folder, max_concurrency=1, context_length=8192)) as single:
            stream = single.stream("Tell.", max_tokens=8000)
            await anext(stream)
            await stream.aclose()
            assert (await asyncio.wait_for(single.generate("Next?"), 30)).completion_tokens > 0
            long = asyncio.create_task(single.generate(LONG * 3, max_tokens=2))
            pid = await pid_of(single)
            begun = cpu_seconds(pid)
            assert await asyncio.to_thread(becomes_true, lambda: cpu_seconds(pid) - begun > 0.05)
            long.cancel()
            assert (await asyncio.wait_for(single.generate("Next?"), 30)).completion_tokens > 0

    async def test_the_engine_that_dies_in_the_midst_of_a_stream_is_an_error_and_the_next_call_works(
        self, tiny: Path, folder: Path
    ) -> None:
        async with MLXBackend(config(tiny, folder, context_length=8192)) as mortal:
            stream = mortal.stream("Tell.", max_tokens=8000)
            await anext(stream)
            process = psutil.Process(await pid_of(mortal))
            process.kill()
            with pytest.raises(ServerError, match="killed by SIGKILL; the next call starts a new one"):
                await stream.collect()
            chunks, _ = await read(mortal, "Again.")
            assert text_of(chunks)
            assert await pid_of(mortal) != process.pid


class TestModelsThatCannotBeBatched:
    async def test_they_answer_together_what_they_answer_alone_and_can_be_left(self, folder: Path) -> None:
        model = make_unbatchable_model(folder / "llama4")
        async with MLXBackend(config(model, folder, context_length=8192)) as backend:
            alone = [(await backend.generate(question)).content for question in QUESTIONS[:4]]
            stream = backend.stream("Tell.", max_tokens=8000)
            await anext(stream)
            together = await asyncio.gather(*(backend.generate(question) for question in QUESTIONS[:4]))
            await stream.aclose()
            held = await backend.generate("Go.", schema=SCHEMAS[0], temperature=1.0, max_tokens=200)
            ended = await backend.generate("Go.", schema={"const": "yes"}, max_tokens=50)
        assert [answer.content for answer in together] == alone
        assert {answer.completion_tokens for answer in together} == {24}
        assert validate(SCHEMAS[0], held.content)
        assert (ended.content, ended.finish_reason) == ('"yes"', "stop")


class TestTexts:
    async def test_a_character_is_given_out_when_all_its_bytes_are_there(self, folder: Path) -> None:
        model = make_tiny_model(folder / "emoji", says=("one ", "🍅", " two"))
        async with MLXBackend(config(model, folder)) as backend:
            chunks, end = await read(backend, "Go.")
        assert end.response.content == "one 🍅 two"
        assert end.response.completion_tokens == 1 + 4 + 1 + 1
        assert "\N{REPLACEMENT CHARACTER}" not in text_of(chunks)
        assert text_of(chunks) == end.response.content

    async def test_a_stop_text_ends_the_answer_before_it_even_when_it_comes_in_pieces(
        self, folder: Path
    ) -> None:
        model = make_tiny_model(folder / "counting", says=("one ", "two ", "th", "ree ", "four "))
        async with MLXBackend(config(model, folder)) as backend:
            whole = await backend.generate("Count.")
            cut = await backend.generate("Count.", stop=["three"])
            chunks, end = await read(backend, "Count.", stop=["nothing", "three"])
            unfinished, _ = await read(backend, "Count.", stop=["three and more"])
        assert whole.content == "one two three four "
        assert (cut.content, cut.finish_reason) == ("one two ", "stop")
        assert text_of(chunks) == end.response.content == "one two "
        assert text_of(unfinished) == whole.content  # what looked like the beginning of a stop text was none

    async def test_what_the_model_thinks_is_kept_apart(self, folder: Path) -> None:
        says = ("<think>", "\nIs it? ", "It is.", "</think>", "\n\n", "Yes.")
        model = make_tiny_model(folder / "thinking", says=says)
        async with MLXBackend(config(model, folder)) as backend:
            chunks, end = await read(backend, "Is it?", think=True)
            assert (await backend.capabilities()).thinking
        response = end.response
        assert (response.content, response.thinking) == ("Yes.", "Is it? It is.")
        assert response.thinking_tokens == 3  # with the one that ends it
        thoughts = [chunk.text for chunk in chunks if isinstance(chunk, ThinkingChunk)]
        assert ("".join(thoughts), text_of(chunks)) == (response.thinking, response.content)
        assert isinstance(chunks[0], ThinkingChunk)
        assert isinstance(chunks[-1], TextChunk)

    async def test_a_model_may_think_before_an_answer_that_is_held_to_a_schema(self, folder: Path) -> None:
        model = make_tiny_model(folder / "held", says=("<think>", "Let me see.", "</think>", "free text"))
        async with MLXBackend(config(model, folder, max_tokens=200)) as backend:
            thought = await backend.generate("Is it?", schema=SCHEMAS[0], think=True)
            plain = await backend.generate("Is it?", schema=SCHEMAS[0])
        assert thought.thinking == "Let me see."
        assert validate(SCHEMAS[0], thought.content)
        assert plain.thinking == ""
        assert validate(SCHEMAS[0], plain.content)

    async def test_a_template_that_opens_the_thinking_itself_is_understood(self, folder: Path) -> None:
        opened = "{{ '<|im_start|>assistant\n<think>' }}"
        model = make_tiny_model(
            folder / "opened", template=opened, says=("<think>", "Hm.", "</think>", "Yes.")
        )
        weights = make_tiny_model(folder / "opened_chain", says=("<think>", "Hm.", "</think>", "Yes."))
        (model / "model.safetensors").write_bytes((weights / "model.safetensors").read_bytes())
        async with MLXBackend(config(model, folder)) as backend:
            response = await backend.generate("Is it?")
        assert (response.content, response.thinking) == ("Yes.", "Hm.")

    async def test_a_model_that_cannot_think_is_asked_without_and_observers_are_told_once(
        self, tiny: Path, folder: Path
    ) -> None:
        events: list[CallEvent] = []
        async with MLXBackend(config(tiny, folder, think=True), observers=[events.append]) as backend:
            for _ in range(2):
                assert (await backend.generate("Go.", max_tokens=2)).thinking == ""
        dropped = [event for event in events if isinstance(event, ParameterDropped)]
        assert [event.parameter for event in dropped] == ["think"]


class TestTools:
    CALL = json.dumps({"name": "water", "arguments": {"litres": 3}})

    async def test_a_tool_that_the_model_asks_for_is_a_call_and_its_result_goes_back(
        self, folder: Path
    ) -> None:
        says = ("Well. ", "<tool_call>", self.CALL, "</tool_call>")
        model = make_tiny_model(folder / "tools", template=WITH_TOOLS, says=says)
        async with MLXBackend(config(model, folder)) as backend:
            response = await backend.generate("It is dry.", tools=[WATER])
            assert response.content == "Well. "
            assert response.finish_reason == "tool_calls"
            assert [(call.name, call.arguments) for call in response.tool_calls] == [("water", {"litres": 3})]
            chunks, end = await read(backend, "It is dry.", tools=[WATER])
            assert text_of(chunks) == "Well. "
            assert end.response.tool_calls[0].id != response.tool_calls[0].id
            turns = [
                LLMMessage("user", "It is dry."),
                LLMMessage("assistant", "", response.tool_calls),
                LLMMessage("tool", "done", tool_call_id=response.tool_calls[0].id),
            ]
            again = await backend.chat(turns, tools=[WATER])
            assert again.prompt_tokens > response.prompt_tokens
            plain = await backend.generate("It is dry.")
            assert (plain.tool_calls, self.CALL in plain.content) == ((), True)
            assert (await backend.capabilities()).tools

    async def test_a_model_may_ask_for_a_tool_instead_of_the_answer_that_a_schema_wants(
        self, folder: Path
    ) -> None:
        asking = make_tiny_model(
            folder / "asking", template=WITH_TOOLS, says=("<tool_call>", self.CALL, "</tool_call>")
        )
        answering = make_tiny_model(
            folder / "answering", template=WITH_TOOLS, says=("free text", "<tool_call>")
        )
        async with MLXBackend(config(asking, folder, max_tokens=200)) as backend:
            response = await backend.generate("It is dry.", tools=[WATER], schema=SCHEMAS[0])
        assert [call.name for call in response.tool_calls] == ["water"]
        async with MLXBackend(config(answering, folder, max_tokens=200)) as backend:
            response = await backend.generate("It is dry.", tools=[WATER], schema=SCHEMAS[0])
        assert "free text" not in response.content
        assert response.tool_calls or validate(SCHEMAS[0], response.content)

    async def test_a_tool_call_that_cannot_be_read_is_a_bad_reply(self, folder: Path) -> None:
        says = ("<tool_call>", '{"name": "water", ', "</tool_call>")
        model = make_tiny_model(folder / "bad_tools", template=WITH_TOOLS, says=says)
        async with MLXBackend(config(model, folder)) as backend:
            with pytest.raises(BadReply, match="tool call cannot be read"):
                await backend.generate("It is dry.", tools=[WATER])

    async def test_a_model_without_tools_says_so(self, tiny: Path, folder: Path) -> None:
        async with MLXBackend(config(tiny, folder)) as backend:
            with pytest.raises(NotSupported, match="has no tools"):
                await backend.generate("It is dry.", tools=[WATER])

    def test_turns_reach_the_template_with_the_names_of_their_tools(self) -> None:
        from llm.backends.mlx import asked
        from llm.types import LLMRequest

        turns = (
            LLMMessage("assistant", "", (ToolCall("c1", "water", {"litres": 3}),)),
            LLMMessage("tool", "done", tool_call_id="c1"),
        )
        request = LLMRequest(messages=turns, model="m", temperature=0, max_tokens=1, top_p=1, tools=(WATER,))
        made = asked(request, stream=False)
        assert made["messages"][0]["tool_calls"][0]["function"] == {
            "name": "water",
            "arguments": {"litres": 3},
        }
        assert made["messages"][1] == {
            "role": "tool",
            "content": "done",
            "tool_call_id": "c1",
            "name": "water",
        }
        assert made["tools"][0]["function"]["name"] == "water"


class TestAdapters:
    async def test_an_adapter_changes_the_answer_and_one_of_zeros_does_not(
        self, tiny: Path, folder: Path
    ) -> None:
        answers = {}
        for name, strength in (("strong", 1.0), ("nothing", 0.0)):
            adapter = make_adapter(folder / name, strength=strength)
            async with MLXBackend(config(tiny, folder, adapter_path=str(adapter))) as backend:
                assert await backend.health_check()
                answers[name] = (await backend.generate("Go.")).content
        async with MLXBackend(config(tiny, folder)) as backend:
            plain = (await backend.generate("Go.")).content
        assert answers["nothing"] == plain != answers["strong"]

    async def test_an_adapter_that_is_not_there_is_named(self, tiny: Path, folder: Path) -> None:
        async with MLXBackend(config(tiny, folder, adapter_path=str(folder / "none"))) as backend:
            assert not await backend.health_check()
            with pytest.raises(ModelNotFound, match=r"none holds no adapter: .* set LLM_ADAPTER_PATH"):
                await backend.generate("Go.")

    async def test_an_adapter_of_another_model_is_refused(self, tiny: Path, folder: Path) -> None:
        adapter = make_adapter(folder / "foreign", strength=1.0, name="model.layers.7.self_attn.q_proj")
        async with MLXBackend(config(tiny, folder, adapter_path=str(adapter))) as backend:
            with pytest.raises(ModelNotFound, match=r"foreign cannot be used with .* LLM_ADAPTER_PATH"):
                await backend.generate("Go.")


class TestLife:
    async def test_what_was_read_before_is_forgotten_when_it_would_take_too_much_memory(
        self, tiny: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mlx, "_PREFIX_BYTES", 300_000)  # one system turn of this model, not two
        other = SYSTEM.replace("garden", "bridge")
        async with MLXBackend(config(tiny, folder, max_tokens=2)) as backend:
            read = [
                (await backend.generate("Go.", text)).cached_tokens
                for text in (SYSTEM, SYSTEM, other, SYSTEM)
            ]
        assert read[1] > 200
        assert [tokens > 50 for tokens in read] == [False, True, False, False]

    async def test_an_idle_engine_ends_and_the_next_call_gets_a_new_one(
        self, tiny: Path, folder: Path
    ) -> None:
        async with MLXBackend(config(tiny, folder, idle_seconds=0.2, context_length=8192)) as backend:
            await backend.generate("Go.", max_tokens=2)
            first = await pid_of(backend)
            assert await asyncio.to_thread(becomes_true, lambda: is_gone(first))
            answer = await backend.generate("Go.", max_tokens=600)  # takes longer than it may be idle
            assert answer.completion_tokens > 0

    async def test_neither_our_limit_of_open_files_nor_the_engines_is_changed(
        self, tiny: Path, folder: Path
    ) -> None:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with MLXBackend(config(tiny, folder)) as backend:
            await backend.generate("Go.", max_tokens=2)
            assert psutil.Process(await pid_of(backend)).rlimit(psutil.RLIMIT_NOFILE) == before
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before

    async def test_what_a_model_can_do_is_known_from_its_files_before_it_runs(
        self, tiny: Path, folder: Path
    ) -> None:
        model = make_tiny_model(folder / "able", template=WITH_TOOLS, says=("Yes.",))
        async with MLXBackend(config(model, folder)) as backend:
            able = await backend.capabilities()
            assert backend._host.current is None
        assert (able.chat, able.schema, able.tools, able.thinking) == (True, True, True, False)
        assert able.context_length == 8192
        async with MLXBackend(config("someone/absent", folder)) as backend:
            assert not (await backend.capabilities()).tools


class Hub(LoopbackServer):
    """The model hub's protocol, as far as a download needs it, with one model."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, model: Path) -> None:
        super().__init__(keep_alive=True)
        self._model = model

    async def answer(self, request: SeenRequest, writer: asyncio.StreamWriter) -> None:
        """A listing below /api, files below /someone/tiny/resolve."""
        path = request.path.split("?")[0]
        if path.startswith("/api/models/someone/tiny/tree/"):
            listed = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name}
                for file in sorted(self._model.iterdir())
            ]
            writer.write(_kept_open(200, json.dumps(listed).encode()))
        elif path.startswith("/api/models/someone/tiny"):
            names = [{"rfilename": file.name} for file in sorted(self._model.iterdir())]
            about = {"_id": "1", "id": "someone/tiny", "sha": self.COMMIT, "siblings": names, "tags": []}
            writer.write(_kept_open(200, json.dumps(about).encode()))
        elif path.startswith("/someone/tiny/resolve/"):
            content = (self._model / path.rsplit("/", 1)[1]).read_bytes()
            headers = {"ETag": f'"{path.rsplit("/", 1)[1]}"', "X-Repo-Commit": self.COMMIT}
            body = b"" if request.method == "HEAD" else content
            writer.write(_kept_open(200, body, headers, length=len(content)))
        else:
            writer.write(_kept_open(404, b'{"error": "Repository not found"}'))
        await writer.drain()


def _kept_open(
    status: int, body: bytes, headers: dict[str, str] | None = None, *, length: int | None = None
) -> bytes:
    return http_message(status, body, {"Connection": "keep-alive", **(headers or {})}, length=length)


class TestHub:
    async def test_a_model_is_downloaded_from_the_hub_and_found_there_the_next_time_offline(
        self, tiny: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.delenv("HF_HUB_OFFLINE")
        async with Hub(tiny) as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.origin)
            async with MLXBackend(config("someone/tiny", folder)) as backend:
                assert not await backend.health_check()  # it would have to be downloaded
                fresh = await backend.generate("Go.")
                assert await backend.health_check()
            asked = len(hub.seen)
            assert asked
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
            assert unavailable_reason("someone/tiny") is None
            async with MLXBackend(config("someone/tiny", folder)) as backend:
                offline = await backend.generate("Go.")
            assert len(hub.seen) == asked
        async with MLXBackend(config(tiny, folder)) as backend:
            local = await backend.generate("Go.")
        assert fresh.content == offline.content == local.content

    async def test_a_model_that_is_not_on_the_hub_is_not_found(
        self, tiny: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.delenv("HF_HUB_OFFLINE")
        async with Hub(tiny) as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.origin)
            async with MLXBackend(config("someone/else", folder)) as backend:
                with pytest.raises(ModelNotFound, match=r"cannot load someone/else .*hf download"):
                    await backend.generate("Go.")


@requires_minilm
class TestVectors:
    TEXTS = (
        "The freezer in the garage is getting warm.",
        "Temperature of the deep-freeze unit is rising!",
        "Alice's invoice is 30 days overdue.",
        "Send a payment reminder to the customer.",
        *(f"Note {number}: " + "the pump reported pressure " * (number % 5) for number in range(30)),
    )

    async def test_texts_become_vectors_of_length_one_that_lie_near_where_the_meaning_is(
        self, tiny: Path, folder: Path
    ) -> None:
        encoder = str(await asyncio.to_thread(encoder_folder))
        async with MLXBackend(config(tiny, folder, embed_model=encoder)) as backend:
            found = await backend.embed(self.TEXTS)
            alone = [await backend.embed([text]) for text in self.TEXTS[:6]]
        assert (found.dimensions, len(found.vectors), found.model) == (384, len(self.TEXTS), encoder)
        assert found.prompt_tokens > len(self.TEXTS) * 3
        for vector in found.vectors:
            assert math.isclose(math.hypot(*vector), 1, abs_tol=1e-5)
        for single, vector in zip(alone, found.vectors, strict=False):
            assert near(single.vectors[0], vector) > 0.9999
        freezer, frost, invoice, reminder = found.vectors[:4]
        assert near(freezer, frost) > 0.4 > 0.2 > near(freezer, invoice)
        assert near(invoice, reminder) > 0.4 > 0.2 > near(frost, reminder)

    async def test_an_encoder_answers_no_prompts_and_a_chat_model_makes_no_vectors(
        self, tiny: Path, folder: Path
    ) -> None:
        encoder = str(await asyncio.to_thread(encoder_folder))
        async with MLXBackend(config(encoder, folder)) as backend:
            able = await backend.capabilities()
            assert (able.chat, able.embedding) == (False, True)
            assert (await backend.embed(["one"])).dimensions == 384
            assert (await backend.capabilities()).schema is False
            with pytest.raises(NotSupported, match="only makes vectors"):
                await backend.generate("Go.")
        async with MLXBackend(config(tiny, folder)) as backend:
            with pytest.raises(NotSupported, match="LLM_EMBED_MODEL"):
                await backend.embed(["one"])

    async def test_a_damaged_encoder_is_named(self, folder: Path) -> None:
        broken = folder / "broken_encoder"
        broken.mkdir()
        (broken / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
        (broken / "model.safetensors").write_bytes(b"")
        async with MLXBackend(config(broken, folder)) as backend:
            with pytest.raises(ModelNotFound, match="broken_encoder"):
                await backend.embed(["one"])


def encoder_folder() -> Path:
    """all-MiniLM-L6-v2, if it is the one that is known."""
    folder = minilm_folder()
    assert folder is not None
    with (folder / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == WEIGHTS_SHA256
    return folder


def near(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Cosine of two vectors of length 1."""
    return sum(a * b for a, b in zip(one, other, strict=True))
