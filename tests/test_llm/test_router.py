"""RoutedClient: which backend answers, what happens when one does not, and that the time is shared."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from pydantic import BaseModel

from llm import (
    AuthenticationFailed,
    BadReply,
    BadRequest,
    BreakerOpen,
    BudgetExceeded,
    CallCancelled,
    ConfigurationError,
    ConnectionFailed,
    DeadlineExceeded,
    LLMConfig,
    LLMError,
    LLMMessage,
    LLMRequest,
    LLMResponse,
    ModelNotFound,
    NotSupported,
    RateLimited,
    SchemaMismatch,
    ServerError,
    StreamEnd,
    TextChunk,
    calling,
    get_llm_client,
)
from llm.deadline import deadline
from llm.events import BreakerOpened, CallFailed, CallStarted, Escalated, FellBack
from llm.router import RoutedClient
from llm.routes import Routes
from llm.structured import ask
from llm.testing import Recorder, ScriptedBackend
from llm.types import Chunk, Embeddings, EmbedRequest
from tests.support.moody_server import HANG, MoodyServer, completion, refusal

CONFIG = LLMConfig(backend="scripted", model="m", enable_cache=False, retries=0)


class Backend(ScriptedBackend):
    """Streams word by word, and embeds if it has a length."""

    backend: ClassVar[str] = "scripted"

    def __init__(
        self, *replies: Any, name: str, recorder: Recorder, pause: float = 0.0, **values: Any
    ) -> None:
        config = CONFIG.with_values(**{"model": f"{name}-model", **values})
        super().__init__(*replies, config=config, observers=[recorder])
        self.rename(name)
        self.closed = 0
        self.pause = pause
        self.vectors: list[Any] = []

    async def send_stream(self, request: LLMRequest) -> AsyncGenerator[Chunk, None]:
        try:
            response = await self.send(request)
            for word in response.content.split():
                yield TextChunk(word)
                await asyncio.sleep(self.pause)
                if word == "break":
                    raise ServerError("it broke")
            yield StreamEnd(response)
        finally:
            self.closed += 1

    async def send_embed(self, request: EmbedRequest) -> Embeddings:
        found = self.vectors.pop(0)
        if isinstance(found, Exception):
            raise found
        return Embeddings(vectors=((found,),), model=request.model, backend=self.backend)


class Two:
    """A router over a small and a big backend."""

    def __init__(
        self,
        small: list[Any],
        big: list[Any],
        *,
        small_values: dict[str, Any] | None = None,
        big_values: dict[str, Any] | None = None,
        **routes: Any,
    ) -> None:
        self.recorder = Recorder()
        self.small = Backend(*small, name="small", recorder=self.recorder, **(small_values or {}))
        self.big = Backend(*big, name="big", recorder=self.recorder, **(big_values or {}))
        clients = {"small": self.small, "big": self.big}
        made = Routes(backends={name: client.config for name, client in clients.items()}, **routes)
        self.client = RoutedClient(made, clients, observers=[self.recorder])

    @property
    def asked(self) -> tuple[int, int]:
        return len(self.small.requests), len(self.big.requests)

    def told(self, *kinds: Any) -> list[Any]:
        return self.recorder.of(*kinds)


async def for_ever(_: LLMRequest) -> str:
    await asyncio.Event().wait()
    return ""


# Routes.


async def test_the_first_backend_of_the_route_answers_and_the_answer_says_so() -> None:
    two = Two(["Leeks"], [])
    async with two.client as client:
        response = await client.generate("What grows?")
    assert (response.content, response.backend, response.model) == ("Leeks", "small", "small-model")
    assert two.asked == (1, 0)


async def test_a_task_and_an_agent_have_routes_of_their_own() -> None:
    two = Two(
        ["for the title"], ["for the agent"], agents={"matchmaker": ("big",)}, tasks={"title": ("small",)}
    )
    async with two.client as client:
        with calling(agent="matchmaker", run_id="r1"):
            assert (await client.generate("?")).content == "for the agent"
            assert (await client.generate("?", task="title")).content == "for the title"
    (seen,) = two.small.requests
    assert (seen.caller.agent, seen.caller.run_id, seen.caller.task) == ("matchmaker", "r1", "title")


async def test_each_backend_fills_in_defaults_of_its_own_and_the_caller_s_choice_goes_to_all() -> None:
    two = Two(
        [ServerError("x")],
        ["ok"],
        small_values={"temperature": 0.1, "max_tokens": 10},
        big_values={"temperature": 0.9, "max_tokens": 20, "think": "low"},
    )
    async with two.client as client:
        await client.generate("?", "Be brief.", max_tokens=33, stop=["."], seed=7)
    (small,), (big,) = two.small.requests, two.big.requests
    assert (small.model, small.temperature, small.max_tokens, small.think) == ("small-model", 0.1, 33, False)
    assert (big.model, big.temperature, big.max_tokens, big.think) == ("big-model", 0.9, 33, "low")
    assert small.stop == big.stop == (".",)
    assert small.system_prompt == big.system_prompt == "Be brief."
    assert type(small) is LLMRequest


async def test_a_finished_request_is_sent_as_it_is_but_for_the_model() -> None:
    two = Two([ServerError("x")], ["ok"])
    request = LLMRequest(
        messages=(LLMMessage("user", "?"),), model="any", temperature=0.3, max_tokens=5, top_p=None
    )
    async with two.client as client:
        await client.complete(request)
    (big,) = two.big.requests
    assert (big.model, big.temperature, big.max_tokens) == ("big-model", 0.3, 5)


async def test_an_option_that_cannot_work_is_refused_before_anything_is_asked() -> None:
    two = Two(["x"], ["x"])
    async with two.client as client:
        with pytest.raises(ConfigurationError, match="LLM_TEMPERATURE"):
            await client.generate("?", temperature=9)
    assert two.asked == (0, 0)


# Fallback.


@pytest.mark.parametrize(
    "error",
    [
        ConnectionFailed("refused"),
        BreakerOpen("left alone", retry_after=30),
        ServerError("500"),
        RateLimited("slow", retry_after=86400),
        RateLimited("quota", quota=True),
        BudgetExceeded("used up", retry_after=3600),
        AuthenticationFailed("key"),
        ModelNotFound("pull it"),
        NotSupported("no tools"),
        DeadlineExceeded("504"),
        BadReply("garbage"),
        ConfigurationError("it redirects"),
        BadRequest("This model's maximum context length is 4096 tokens"),
        BadRequest("prompt is too long: 9000 tokens > 4096"),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:8]}",
)
async def test_what_another_backend_may_do_it_is_asked_for(error: LLMError) -> None:
    two = Two([error], ["Leeks"])
    async with two.client as client:
        response = await client.generate("What grows?")
        assert client.get_stats()["fallbacks"] == 1
    assert (response.content, response.backend) == ("Leeks", "big")
    place = {"backend": "small", "model": "small-model", "call_id": two.told(CallFailed)[0].call_id}
    assert two.told(FellBack) == [FellBack(to="big", code=error.code, **place)]


@pytest.mark.parametrize("error", [BadRequest("messages must not be empty"), CallCancelled("closed")])
async def test_what_is_wrong_with_the_request_itself_is_wrong_everywhere(error: LLMError) -> None:
    two = Two([error], ["never"])
    async with two.client as client:
        with pytest.raises(type(error)) as caught:
            await client.generate("?")
    assert caught.value is error
    assert two.asked == (1, 0)


async def test_when_none_answers_the_error_says_what_each_one_said() -> None:
    two = Two([ConnectionFailed("nobody there")], [AuthenticationFailed("wrong key")])
    async with two.client as client:
        with pytest.raises(ConnectionFailed) as caught:  # the one that may be over by itself
            await client.generate("?")
    assert "small: nobody there; big: wrong key" in str(caught.value)


@pytest.mark.parametrize(
    ("errors", "wait"),
    [
        ((RateLimited("x", retry_after=86400), BudgetExceeded("x", retry_after=3600)), 3600),
        ((RateLimited("x", retry_after=86400), AuthenticationFailed("x")), 86400),
        ((RateLimited("x", retry_after=86400), ServerError("x")), None),  # it may be back in a second
        ((RateLimited("x", quota=True), BudgetExceeded("x", retry_after=3600)), 3600),
        ((AuthenticationFailed("x"), ModelNotFound("x")), None),
    ],
)
async def test_when_none_answers_the_error_says_when_the_first_of_them_may_be_back(
    errors: tuple[LLMError, LLMError], wait: float | None
) -> None:
    two = Two([errors[0]], [errors[1]])
    before = [error.retry_after for error in errors]
    async with two.client as client:
        with pytest.raises(LLMError) as caught:
            await client.generate("?")
    assert caught.value.retry_after == wait
    assert [error.retry_after for error in errors] == before


async def test_a_backend_that_hangs_leaves_time_for_the_next() -> None:
    two = Two([for_ever], ["Leeks"], small_values={"timeout": 1.0}, big_values={"timeout": 1.0})
    async with two.client as client:
        began = time.monotonic()
        assert (await client.generate("?")).backend == "big"
        assert time.monotonic() - began < 1.0
    (failed,) = two.told(CallFailed)
    assert (failed.backend, failed.code) == ("small", "timeout")


async def test_when_all_hang_the_call_ends_with_its_deadline_and_each_is_told_of_its_lateness() -> None:
    two = Two([for_ever], [for_ever], small_values={"timeout": 1.0}, big_values={"timeout": 1.0})
    async with two.client as client:
        with pytest.raises(DeadlineExceeded):
            await client.generate("?")
    assert [(e.backend, e.code) for e in two.told(CallFailed)] == [("small", "timeout"), ("big", "timeout")]


async def test_the_time_is_shared() -> None:
    two = Two([], [], small_values={"timeout": 20.0}, big_values={"timeout": 60.0})
    request, seconds = two.client._request([LLMMessage("user", "?")], {})
    assert seconds == 60.0
    async with asyncio.timeout(60.0) as scope:  # noqa: ASYNC100 - it is the deadline, and is looked at
        token = deadline.set(scope)
        small = two.client._seconds(two.small, request, last=False)
        big = two.client._seconds(two.big, request, last=True)
        first_big = two.client._seconds(two.big, request, last=False)
        deadline.reset(token)
    assert small == 20.0  # its own timeout, which is shorter than the call's
    assert big == pytest.approx(59.75, abs=0.02)
    assert first_big == pytest.approx(30.0, abs=0.02)
    await two.client.aclose()


async def test_a_call_s_own_timeout_is_the_total_for_all() -> None:
    two = Two([for_ever], [for_ever])
    async with two.client as client:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await client.generate("?", timeout=0.1)
        assert time.monotonic() - began < 5


# Streams.


async def test_a_stream_falls_back_as_long_as_nothing_was_handed_out() -> None:
    two = Two([ServerError("x")], ["Leeks and beans"])
    async with two.client as client, client.stream("?") as stream:
        texts = [chunk.text async for chunk in stream if isinstance(chunk, TextChunk)]
        assert stream.response is not None
        assert (stream.response.backend, stream.response.content) == ("big", "Leeks and beans")
    assert texts == ["Leeks", "and", "beans"]
    assert len(two.told(FellBack)) == 1
    assert (two.small.closed, two.big.closed) == (1, 1)


async def test_a_stream_that_breaks_after_its_first_piece_is_broken() -> None:
    two = Two(["Leeks break beans"], ["never"])
    async with two.client as client:
        with pytest.raises(ServerError, match="it broke"):
            await client.stream("?").collect()
    assert two.asked == (1, 0)


async def test_a_stream_that_does_not_begin_leaves_time_for_the_next() -> None:
    two = Two([for_ever], ["Leeks"], small_values={"timeout": 1.0}, big_values={"timeout": 1.0})
    async with two.client as client:
        assert (await client.stream("?").collect()).backend == "big"
    (failed,) = two.told(CallFailed)
    assert (failed.backend, failed.code) == ("small", "timeout")


async def test_a_stream_that_has_begun_may_take_the_whole_time() -> None:
    words = " ".join(["word"] * 8)
    values = {"timeout": 0.6, "pause": 0.05}  # 0.4 s: longer than the half that it gets until it begins
    two = Two([words], ["never"], small_values=values, big_values={"timeout": 0.6})
    async with two.client as client:
        assert (await client.stream("?").collect()).content == words
    assert two.asked == (1, 0)


async def test_a_stream_whose_backends_all_hang_ends_with_its_deadline() -> None:
    two = Two([for_ever], [for_ever], small_values={"timeout": 1.0}, big_values={"timeout": 1.0})
    async with two.client as client:
        with pytest.raises(DeadlineExceeded):
            await client.stream("?").collect()
    assert [(e.backend, e.code) for e in two.told(CallFailed)] == [("small", "timeout"), ("big", "timeout")]


async def test_closing_a_stream_closes_the_one_behind_it() -> None:
    two = Two(["Leeks and beans"], [])
    async with two.client as client:
        stream = client.stream("?")
        await anext(stream)
        await stream.aclose()
        assert two.small.closed == 1


# Escalation.


class Verdict(BaseModel):
    answer: Literal["yes", "no", "unsure"]


SCHEMA: dict[str, Any] = Verdict.model_json_schema()
YES, UNSURE = '{"answer": "yes"}', '{"answer": "unsure"}'
ESCALATE: dict[str, Any] = {"default": ("small",), "escalate": {"small": "big"}}


async def test_what_the_small_one_is_unsure_about_the_large_one_is_asked() -> None:
    two = Two([UNSURE], [YES], **ESCALATE)
    async with two.client as client:
        assert (await client.structured("Does it fit?", Verdict)).answer == "yes"
        assert client.get_stats()["escalations"] == 1
    (told,) = two.told(Escalated)
    assert (told.backend, told.to, told.why) == ("small", "big", "unsure")


async def test_an_answer_that_is_sure_is_not_questioned() -> None:
    two = Two([YES], [], **ESCALATE)
    async with two.client as client:
        response = await client.generate("Does it fit?", schema=Verdict)
    assert (response.content, response.backend) == (YES, "small")


async def test_a_reply_that_does_not_fit_is_shown_to_the_small_one_once_before_the_large_one_is_asked() -> (
    None
):
    two = Two(["maybe", "perhaps"], [YES], **ESCALATE)
    async with two.client as client:
        response = await ask(client, [LLMMessage("user", "Does it fit?")], SCHEMA)
    assert (response.content, response.backend) == (YES, "big")
    first, second = two.small.requests
    assert [turn.role for turn in second.messages] == ["user", "assistant", "user"]
    assert second.messages[1].content == "maybe"
    assert "refused" in second.prompt
    (large,) = two.big.requests
    assert large.messages == first.messages  # without the small one's mistakes
    assert [event.why for event in two.told(Escalated)] == ["invalid"]


async def test_a_reply_that_was_mended_counts() -> None:
    two = Two(["maybe", YES], [], **ESCALATE)
    async with two.client as client:
        assert (await client.structured("?", Verdict)).answer == "yes"


@pytest.mark.parametrize(
    "big", [[ServerError("down")], ["maybe", "perhaps"], [for_ever]], ids=["down", "invalid", "hangs"]
)
async def test_when_the_large_one_fails_the_small_one_s_unsure_stands(big: list[Any]) -> None:
    values = {"timeout": 1.0}
    two = Two([UNSURE], big, small_values=values, big_values=values, **ESCALATE)
    async with two.client as client:
        response = await client.generate("?", schema=SCHEMA)
    assert (response.content, response.backend) == (UNSURE, "small")


async def test_the_large_one_may_be_unsure_too() -> None:
    two = Two([UNSURE], [UNSURE], **ESCALATE)
    async with two.client as client:
        assert (await client.generate("?", schema=SCHEMA)).backend == "big"


async def test_when_no_reply_fits_the_error_says_what_was_wrong_with_each_and_nobody_is_asked_again() -> None:
    two = Two(["maybe", "perhaps"], ["who", "knows"], **{**ESCALATE, "default": ("small", "big")})
    async with two.client as client:
        with pytest.raises(SchemaMismatch, match=r"small: .* big: "):
            await client.structured("?", Verdict)
    assert two.asked == (2, 2)
    assert two.told(FellBack) == []


async def test_a_small_one_that_fails_falls_back_as_ever() -> None:
    two = Two([ServerError("x")], [YES], **{**ESCALATE, "default": ("small", "big")})
    async with two.client as client:
        assert (await client.generate("?", schema=SCHEMA)).backend == "big"
    assert (len(two.told(FellBack)), len(two.told(Escalated))) == (1, 0)


async def test_free_text_and_wishes_for_tools_are_never_escalated() -> None:
    from llm import ToolCall

    wish = LLMResponse(
        content="",
        model="m",
        backend="b",
        finish_reason="tool_calls",
        tool_calls=(ToolCall("1", "look", {}),),
    )
    two = Two(["unsure", wish], [], **ESCALATE)
    async with two.client as client:
        assert (await client.generate("?")).content == "unsure"
        assert (await client.generate("?", schema=SCHEMA)).tool_calls == wish.tool_calls


async def test_without_escalation_the_answer_is_handed_on_as_it_is() -> None:
    two = Two([UNSURE, "no JSON"], [])
    async with two.client as client:
        assert (await client.generate("?", schema=SCHEMA)).content == UNSURE
        assert (await client.generate("?", schema=SCHEMA)).content == "no JSON"


# Vectors.


async def test_vectors_come_from_the_first_backend_that_makes_any() -> None:
    two = Two([], [])
    two.small.vectors, two.big.vectors = [NotSupported("no")], [1.0]
    async with two.client as client:
        found = await client.embed(["leeks"])
    assert (found.backend, found.model) == ("big", "big-model")


async def test_another_model_never_stands_in_with_its_vectors() -> None:
    two = Two([], [])
    two.small.vectors, two.big.vectors = [ServerError("down")], [1.0]
    async with two.client as client:
        with pytest.raises(ServerError):
            await client.embed(["leeks"])
    assert two.big.vectors == [1.0]


async def test_the_same_model_elsewhere_stands_in_with_its_vectors() -> None:
    same = {"embed_model": "all-minilm"}
    two = Two([], [], small_values=same, big_values=same)
    two.small.vectors, two.big.vectors = [ServerError("down")], [1.0]
    async with two.client as client:
        found = await client.embed(["leeks"])
    assert (found.backend, found.model) == ("big", "all-minilm")
    assert len(two.told(FellBack)) == 1


async def test_when_no_backend_makes_vectors_the_error_says_so() -> None:
    two = Two([], [])
    two.small.vectors, two.big.vectors = [NotSupported("no")], [NotSupported("neither")]
    async with two.client as client:
        with pytest.raises(NotSupported, match="small: no; big: neither"):
            await client.embed(["leeks"])


# What is the same for any client.


async def test_it_is_healthy_if_any_backend_is_and_says_which() -> None:
    two = Two([], [])
    async with two.client as client:
        two.small._healthy = False
        assert await client.health() == {"small": False, "big": True}
        assert await client.health_check() is True
        two.big._healthy = False
        assert await client.health_check() is False


async def test_totals_are_those_of_all_backends_and_a_call_is_counted_once() -> None:
    two = Two([ServerError("x"), "Leeks"], ["Beans"])
    async with two.client as client:
        await client.generate("?")
        await client.generate("?")
        stats = client.get_stats()
    assert (stats["backend"], stats["calls"], stats["errors"]) == ("router", 3, 1)
    assert {name: each["calls"] for name, each in stats["backends"].items()} == {"small": 2, "big": 1}
    assert stats["tokens_used"] == sum(each["tokens_used"] for each in stats["backends"].values()) > 0
    assert [event.backend for event in two.told(CallStarted)] == ["small", "big", "small"]


async def test_closing_it_ends_its_calls_and_closes_its_backends() -> None:
    two = Two([for_ever], [])
    task = asyncio.create_task(two.client.generate("?"))
    while not two.small.requests:  # noqa: ASYNC110 - the backend is the twin, which has no event
        await asyncio.sleep(0)
    await two.client.aclose()
    with pytest.raises(CallCancelled):
        await task
    assert two.small.is_closed
    assert two.big.is_closed


async def test_the_capabilities_are_those_of_the_first_backend() -> None:
    two = Two([], [])
    async with two.client as client:
        assert (await client.capabilities()).model == "small-model"


# Made by the factory, against real servers.


def remote(server: MoodyServer, **values: Any) -> LLMConfig:
    defaults = {"backend": "remote", "model": "stub", "enable_cache": False, "retries": 0}
    return LLMConfig(**{**defaults, "api_base": server.url, **values})


async def test_a_dead_server_costs_its_failures_and_then_nothing_while_the_other_one_answers() -> None:
    recorder = Recorder()
    async with MoodyServer(then=refusal(500)) as dead, MoodyServer() as alive:
        routes = Routes(backends={"near": remote(dead), "far": remote(alive)})
        async with get_llm_client(routes, observers=[recorder]) as client:
            for _ in range(20):
                assert (await client.generate("?")).backend == "far"
        assert (dead.asked, alive.asked) == (5, 20)
    assert [event.backend for event in recorder.of(BreakerOpened)] == ["near"]
    assert len(recorder.of(FellBack)) == 20


async def test_a_server_that_hangs_is_left_in_time() -> None:
    async with MoodyServer(then=HANG) as hung, MoodyServer() as alive:
        routes = Routes(backends={"near": remote(hung, timeout=0.5), "far": remote(alive, timeout=2.0)})
        async with get_llm_client(routes) as client:
            assert (await client.generate("?")).backend == "far"


async def test_retries_come_before_the_fallback_and_within_the_backend_s_share_of_the_time() -> None:
    async with MoodyServer(then=refusal(503, headers={"Retry-After": "20"})) as busy, MoodyServer() as alive:
        routes = Routes(backends={"near": remote(busy, retries=2, timeout=30), "far": remote(alive)})
        async with get_llm_client(routes) as client:
            began = time.monotonic()
            assert (await client.generate("?")).backend == "far"
            assert time.monotonic() - began < 10  # 20 s do not fit into the half of 30 s: not waited for
        assert busy.asked == 1


async def test_each_backend_keeps_answers_of_its_own(tmp_path: Any) -> None:
    cached = {"enable_cache": True, "cache_dir": str(tmp_path), "temperature": 0.0}
    small = MoodyServer(refusal(500), then=completion("from the small one"))
    big = MoodyServer(then=completion("from the big one"))
    async with small, big:
        routes = Routes(backends={"small": remote(small, **cached), "big": remote(big, **cached)})
        async with get_llm_client(routes) as client:
            answers = [await client.generate("?") for _ in range(3)]
        assert (small.asked, big.asked) == (2, 1)
    assert [(answer.backend, answer.cached) for answer in answers] == [
        ("big", False),
        ("small", False),
        ("small", True),
    ]


async def test_escalation_works_over_the_wire() -> None:
    def judge(body: Any) -> bytes:
        return completion(json.dumps({"answer": "unsure" if body["model"] == "tiny" else "no"}))

    async with MoodyServer(then=judge) as server:
        routes = Routes(
            backends={"small": remote(server, model="tiny"), "big": remote(server, model="huge")},
            default=("small",),
            escalate={"small": "big"},
        )
        async with get_llm_client(routes) as client:
            assert (await client.structured("Does it fit?", Verdict)).answer == "no"
        assert server.asked == 2


async def test_mock_backends_alone_are_known_as_canned() -> None:
    mock = LLMConfig(backend="mock", enable_cache=False)
    async with get_llm_client(Routes(backends={"one": mock, "two": mock})) as client:
        assert client.backend == "mock"
        assert (await client.generate("?")).backend == "one"


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_backend_beside_real_ones_is_refused_and_not_answered_by_the_mock() -> None:
    routes = Routes(backends={"a": LLMConfig(backend="olama"), "b": LLMConfig(backend="ollama")})
    with pytest.raises(ConfigurationError, match="a would give canned answers"):
        get_llm_client(routes)


def test_a_backend_that_cannot_work_is_named() -> None:
    bad = LLMConfig(backend="remote", api_base="http://example.com/v1", api_key="sk-secret-secret")
    with pytest.raises(ConfigurationError, match="'far' cannot work") as caught:
        get_llm_client(Routes(backends={"near": LLMConfig(backend="ollama"), "far": bad}))
    assert "sk-secret" not in str(caught.value)


async def test_a_fallback_is_held_to_the_budget_of_the_backend_that_it_leads_to(tmp_path: Any) -> None:
    books = {"usage_file": str(tmp_path / "usage.sqlite3"), "max_tokens": 10}
    async with MoodyServer(then=refusal(500)) as dead, MoodyServer() as paid:
        routes = Routes(
            backends={
                "near": remote(dead, **books),
                "far": remote(paid, budget="30 tokens/day", **books),
            }
        )
        async with get_llm_client(routes) as client:
            assert (await client.generate("?")).backend == "far"  # 17 tokens
            with pytest.raises(BudgetExceeded, match="far: ") as caught:
                await client.generate("?")
        assert caught.value.retry_after is None  # near may be back before the day is over
        assert paid.asked == 1


async def test_all_backends_together_are_held_to_the_common_budget(tmp_path: Any) -> None:
    books = {"usage_file": str(tmp_path / "usage.sqlite3"), "max_tokens": 10}
    async with MoodyServer() as one, MoodyServer() as other:
        backends = {"one": remote(one, **books), "other": remote(other, **books)}
        routes = Routes(backends=backends, tasks={"t": ("other",)}, budget="30 tokens/day")
        async with get_llm_client(routes) as client:
            await client.generate("?")
            with pytest.raises(BudgetExceeded):
                await client.generate("?", task="t")
        assert (one.asked, other.asked) == (1, 0)


async def test_what_backends_share_counts_once_and_what_each_has_counts(tmp_path: Path) -> None:
    config = LLMConfig(backend="mock", cache_dir=str(tmp_path / "one"), usage_file=str(tmp_path / "usage"))
    apart = config.with_values(cache_dir=str(tmp_path / "two"), budget="5 tokens/day")
    backends = {"a": config, "b": config, "c": apart}
    routes = Routes(backends=backends, tasks={"b": ("b",), "c": ("c",)}, budget="900 tokens/day")
    async with get_llm_client(routes) as client:
        for task in ("a", "b"):
            await client.generate("Hello", task=task)
        budgets = {str(each.budget): each.used for each in await client.budgets()}
        stats = await client.cache_stats()
        await client.flush()
    assert budgets.keys() == {"900 tokens/day", "backend c: 5 tokens/day"}
    assert budgets["900 tokens/day"] > 0
    assert stats is not None
    assert stats.entries == 2  # of the two backends that keep theirs in one file
