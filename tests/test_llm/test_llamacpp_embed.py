"""Embeddings by the embedded engine, what it says a model can do, and tools for models that know them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from llm import LLMConfig, LLMMessage, StreamEnd, Tool, ToolCall
from llm.backends.llamacpp import LlamaCppBackend
from llm.backends.models import model_file
from llm.errors import BadRequest, ModelNotFound, NotSupported, ServerError
from tests.support.engines import is_gone, requires_llamacpp, requires_minilm
from tests.support.gguf_files import gguf_bytes, minilm_gguf, with_template

PAIRS = (
    ("The freezer in the garage is getting warm.", "Temperature of the deep-freeze unit is rising!"),
    ("Alice's invoice is 30 days overdue.", "Send a payment reminder to the customer."),
    ("Äpfel und Birnen, naïve café 123", "Fruit: apples and pears at the café"),
)
WEATHER = Tool(
    "weather", "The weather of a city", {"type": "object", "properties": {"city": {"type": "string"}}}
)

TOOL_TEMPLATE = """{%- if tools %}<|im_start|>system
You may call one or more functions to assist with the user query. They are:
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
For each call, return a json object with its name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "assistant" and message.tool_calls %}<|im_start|>assistant
{%- for called in message.tool_calls %}{{ "\\n" }}<tool_call>
{"name": "{{ called.function.name }}", "arguments": {{ called.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""The way of Qwen 2.5, shortened."""


def config(**values: object) -> LLMConfig:
    fixed = {"backend": "llamacpp", "enable_cache": False, "timeout": 120.0, "temperature": 0.0}
    return LLMConfig.from_mapping({**fixed, **values})


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(minilm_gguf(tmp_path_factory.mktemp("models") / "minilm.gguf"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(minilm: str) -> AsyncIterator[LlamaCppBackend]:
    async with LlamaCppBackend(config(embed_model=minilm)) as backend:
        yield backend


def cosine(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.engine
@requires_llamacpp
@requires_minilm
@pytest.mark.asyncio(loop_scope="module")
class TestEmbedding:
    async def test_every_text_becomes_a_vector_of_length_one_in_its_place(
        self, backend: LlamaCppBackend, minilm: str
    ) -> None:
        texts = [text for pair in PAIRS for text in pair]
        found = await backend.embed(texts)
        assert (len(found.vectors), found.dimensions) == (6, 384)
        assert [math.hypot(*vector) for vector in found.vectors] == pytest.approx([1.0] * 6, abs=1e-4)
        assert (found.model, found.backend) == (minilm, "llamacpp")
        assert found.prompt_tokens > 6 * 5
        single = await backend.embed([texts[3]])
        assert cosine(single.vectors[0], found.vectors[3]) > 0.9999

    async def test_texts_that_mean_the_same_are_near_and_others_far(self, backend: LlamaCppBackend) -> None:
        vectors = (await backend.embed([text for pair in PAIRS for text in pair])).vectors
        for number in range(3):
            mine, partner = vectors[2 * number], vectors[2 * number + 1]
            others = [v for at, v in enumerate(vectors) if at // 2 != number]
            assert cosine(mine, partner) > max(cosine(mine, other) for other in others) + 0.1

    async def test_more_texts_than_go_into_one_request_keep_their_order(
        self, backend: LlamaCppBackend
    ) -> None:
        texts = [f"pump {number}" for number in range(70)]
        many = (await backend.embed(texts)).vectors
        alone = (await backend.embed([texts[69]])).vectors[0]
        assert len(many) == 70
        assert cosine(many[69], alone) > 0.9999

    async def test_a_text_longer_than_the_model_reads_is_refused(self, backend: LlamaCppBackend) -> None:
        with pytest.raises(BadRequest, match="more than the embedding model reads at once; cut it"):
            await backend.embed(["short", "word " * 800])

    async def test_it_has_a_process_of_its_own_and_the_one_that_chats_is_not_started(
        self, backend: LlamaCppBackend
    ) -> None:
        await backend.embed(["a"])
        assert backend._host.current is None
        assert backend._embed_host.current is not None

    async def test_it_is_small_enough_for_a_small_computer(self, backend: LlamaCppBackend) -> None:
        await backend.embed([text for pair in PAIRS for text in pair])
        process = backend._embed_host.current
        assert process is not None
        assert psutil.Process(process.pid).memory_info().rss < 150e6


@pytest.mark.engine
@requires_llamacpp
class TestWithoutAnEmbeddingModel:
    async def test_a_model_that_chats_makes_no_embeddings_and_the_way_out_is_named(self) -> None:
        async with LlamaCppBackend(config()) as backend:
            with pytest.raises(NotSupported, match=r"smollm2:135m is not made for embeddings; .*llm pull"):
                await backend.embed(["a"])

    async def test_a_model_that_is_not_here_is_named(self) -> None:
        async with LlamaCppBackend(config(embed_model="all-minilm:l6-v2")) as backend:
            with pytest.raises(ModelNotFound, match="llm pull all-minilm:l6-v2"):
                await backend.embed(["a"])

    @requires_minilm
    async def test_a_model_for_embeddings_does_not_chat(self, minilm: str) -> None:
        async with LlamaCppBackend(config(model=minilm)) as backend:
            with pytest.raises(NotSupported, match="is made for embeddings and does not chat"):
                await backend.generate("hi")

    @requires_minilm
    async def test_a_killed_embedder_is_replaced(self, minilm: str) -> None:
        async with LlamaCppBackend(config(embed_model=minilm)) as backend:
            await backend.embed(["a"])
            process = backend._embed_host.current
            assert process is not None
            call = asyncio.create_task(backend.embed([f"text {n} " + "word " * 300 for n in range(200)]))
            await asyncio.sleep(0)  # it is on its way; wherever it is met, the outcome is the same
            psutil.Process(process.pid).kill()
            with pytest.raises(ServerError, match="embedding engine process was killed by SIGKILL"):
                await asyncio.wait_for(call, 20)
            assert len((await backend.embed(["b"])).vectors) == 1
            assert is_gone(process.pid or 0)


class TestCapabilities:
    @requires_llamacpp
    async def test_the_packaged_model_says_what_it_can_and_nothing_is_started(self) -> None:
        async with LlamaCppBackend(config()) as backend:
            can = await backend.capabilities()
            assert backend._host.current is None
        assert (can.model, can.chat, can.schema, can.context_length) == ("smollm2:135m", True, True, 8192)
        assert (can.tools, can.thinking, can.embedding, can.vision) == (False, False, False, False)

    async def test_they_are_read_from_the_models_file(self, tmp_path: Path) -> None:
        thinker = tmp_path / "thinker.gguf"
        says = {"general.architecture": "qwen3", "qwen3.context_length": 40960}
        template = "{% if tools %}{% endif %}{% if enable_thinking %}{% endif %}"
        thinker.write_bytes(gguf_bytes({**says, "tokenizer.chat_template": template}))
        can = await LlamaCppBackend(config(model=str(thinker))).capabilities()
        assert (can.tools, can.thinking, can.context_length) == (True, True, 40960)

    @requires_minilm
    async def test_an_embedding_model_says_so(self, minilm: str) -> None:
        can = await LlamaCppBackend(config(model=minilm)).capabilities()
        assert (can.embedding, can.chat, can.context_length) == (True, False, 512)

    async def test_a_model_that_is_not_here_is_named(self) -> None:
        with pytest.raises(ModelNotFound, match="knows no model"):
            await LlamaCppBackend(config(model="gpt-9")).capabilities()


THINKING_TEMPLATE = """{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if not enable_thinking %}<think>nothing to think about here, so here is the plain answer</think>
{% endif %}{% endif %}"""


@pytest.mark.engine
@requires_llamacpp
class TestThinking:
    async def test_a_model_that_can_think_is_told_each_time_whether_it_shall(self, tmp_path: Path) -> None:
        path = await asyncio.to_thread(
            with_template, model_file("smollm2:135m"), tmp_path / "thinker.gguf", THINKING_TEMPLATE
        )
        async with LlamaCppBackend(config(model=str(path), max_tokens=16)) as backend:
            assert (await backend.capabilities()).thinking is True
            silent = await backend.generate("How are you?")
            thinking = await backend.generate("How are you?", think=True)
        assert silent.prompt_tokens > thinking.prompt_tokens + 8


@pytest.mark.engine
@requires_llamacpp
class TestTools:
    async def test_a_model_whose_template_has_no_place_for_them_refuses(self) -> None:
        async with LlamaCppBackend(config()) as backend:
            with pytest.raises(NotSupported, match="smollm2:135m was not made for tools"):
                await backend.generate("How is the weather in Oslo?", tools=[WEATHER])
            assert backend._host.current is None

    async def test_they_reach_a_model_whose_template_has(self, tmp_path: Path) -> None:
        path = await asyncio.to_thread(
            with_template, model_file("smollm2:135m"), tmp_path / "tools.gguf", TOOL_TEMPLATE
        )
        async with LlamaCppBackend(config(model=str(path), max_tokens=8)) as backend:
            assert (await backend.capabilities()).tools is True
            without = await backend.generate("How is the weather in Oslo?")
            offered = await backend.generate("How is the weather in Oslo?", tools=[WEATHER])
        assert offered.prompt_tokens > without.prompt_tokens + 30

    async def test_a_call_that_the_model_asks_for_comes_back_whole_and_as_a_stream(
        self, tmp_path: Path
    ) -> None:
        path = await asyncio.to_thread(
            with_template, model_file("smollm2:135m"), tmp_path / "tools.gguf", TOOL_TEMPLATE
        )
        turns: list[LLMMessage] = []
        for city in ("Paris", "Rome", "Lima", "Cairo"):  # it is a small model, and has to be shown how
            call = ToolCall(f"call-{city}", "weather", {"city": city})
            turns += [
                LLMMessage("user", f"How is the weather in {city}?"),
                LLMMessage("assistant", "", (call,)),
            ]
        turns.append(LLMMessage("user", "How is the weather in Oslo?"))
        async with LlamaCppBackend(config(model=str(path), max_tokens=60)) as backend:
            whole = await backend.chat(turns, tools=[WEATHER])
            end = [chunk async for chunk in backend.stream_chat(turns, tools=[WEATHER])][-1]
        assert isinstance(end, StreamEnd)
        for response in (whole, end.response):
            (asked,) = response.tool_calls
            assert (asked.name, asked.arguments) == ("weather", {"city": "Oslo"})
            assert response.finish_reason == "tool_calls"
