# ruff: noqa: S101, D102 - the contract suite is made of tests: assertions, and names that are sentences
"""For tests of programs that use a model, and of backends.

`ScriptedBackend` is a client whose answers the test writes. `LLMContract` is what every backend must do; a
backend of your own runs it by subclassing (pytest with pytest-asyncio in auto mode):

    from llm import LLMConfig
    from llm.testing import LLMContract

    class TestMyBackend(LLMContract):
        @pytest.fixture
        def llm_config(self) -> LLMConfig:  # a backend that works
            return LLMConfig(backend="mine", enable_cache=False)

        @pytest.fixture
        def unavailable_config(self) -> LLMConfig:  # the same one with nothing behind it
            return LLMConfig(backend="mine", api_base="http://127.0.0.1:1", enable_cache=False)
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

from llm.client import LLMClient
from llm.config import LLMConfig
from llm.errors import ERROR_CODES, BadReply, CallCancelled, DeadlineExceeded, LLMError, ServerError
from llm.events import CacheHit, CacheMiss, CallEvent, CallFailed, CallFinished, CallStarted, Observer
from llm.factory import get_llm_client
from llm.middleware.base import Middleware
from llm.structured import ask, validate
from llm.types import LLMMessage, LLMRequest, LLMResponse

Reply = str | LLMResponse | Exception
Script = Reply | Callable[[LLMRequest], Reply | Awaitable[Reply]]


class ScriptedBackend(LLMClient):
    """A client whose answers are written beforehand.

    Args:
        replies: what to answer, one per call and in order: a text, a whole response, an exception to raise,
            or a function of the request, async or not, that returns one of these. A function is not used
            up: it answers every call from then on.
        config: None gives one without a response cache.
        healthy: what `health_check` says.
        middleware: as for any client.
        observers: as for any client.

    Attributes:
        requests: every request that reached the backend, the first one first.
    """

    backend: ClassVar[str] = "scripted"

    def __init__(
        self,
        *replies: Script,
        config: LLMConfig | None = None,
        healthy: bool = True,
        middleware: Sequence[Middleware] = (),
        observers: Sequence[Observer] = (),
    ) -> None:
        chosen = config or LLMConfig(backend="scripted", model="scripted", enable_cache=False)
        super().__init__(chosen, middleware=middleware, observers=observers)
        self.requests: list[LLMRequest] = []
        self._script = list(replies)
        self._healthy = healthy

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Answer with what the script says next.

        Raises:
            ServerError: the script is at its end.
        """
        self.requests.append(request)
        await asyncio.sleep(0)  # like any backend: a call lets others run, and can be cancelled
        reply = self._next(request)
        if inspect.isawaitable(reply):
            reply = await reply
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, LLMResponse) else self._response(request, reply)

    async def health_check(self) -> bool:
        """What the test said it should say."""
        return self._healthy

    def _next(self, request: LLMRequest) -> Reply | Awaitable[Reply]:
        if not self._script:
            msg = f"the script has no reply for call {len(self.requests)}: {request.prompt[:200]!r}"
            raise ServerError(msg)
        reply = self._script[0]
        if not isinstance(reply, str | LLMResponse | Exception):
            return reply(request)
        del self._script[0]
        return reply

    def _response(self, request: LLMRequest, text: str) -> LLMResponse:
        return LLMResponse(
            content=text,
            model=request.model,
            backend=self.backend,
            prompt_tokens=sum(len(message.content.split()) for message in request.messages),
            completion_tokens=len(text.split()),
        )


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

    def holds_to_schemas(self, config: LLMConfig) -> bool:  # noqa: ARG002 - for those that override it
        """Whether the server holds the model to a schema; False where it is only told in words."""
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


async def _fault_of(call: Awaitable[LLMResponse]) -> LLMError:
    """The error that `call` raises; it must raise one."""
    try:
        response = await call
    except LLMError as error:
        return error
    msg = f"the call should have failed, and answered {response.content[:80]!r}"
    raise AssertionError(msg)
