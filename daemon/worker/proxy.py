"""The model as an agent in a worker sees it: every question goes to the parent, which has the real one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol, Unpack

from daemon.worker.wire import unpacked
from llm import Capabilities, Embeddings, LLMConfig, LLMMessage, LLMResponse, LLMStream
from llm.caller import current_caller
from llm.client import LLMClient
from llm.errors import DeadlineExceeded
from llm.events import CallEvent, ToolFinished, ToolStarted
from llm.options import ReplyOptions, refuse_unknown
from llm.structured import as_json_schema
from llm.types import Chunk, EmbedRequest, LLMRequest

GRACE_S = 2.0
"""By so much the parent's deadline comes before ours, so that the error is the model's own."""


class Link(Protocol):
    """The way to the parent."""

    async def ask(self, what: str, **values: Any) -> Any:
        """The parent's answer to one question; raises what the model raised."""

    def pieces(self, what: str, **values: Any) -> AsyncGenerator[Any, None]:
        """The parent's answer in pieces; closing it ends the work behind it."""

    def tell(self, what: str, **values: Any) -> None:
        """Tell the parent something that needs no answer."""


class DistantLLM(LLMClient):
    """A client whose calls are made by the parent: its cache, budgets, limits, ledger and keys stay there."""

    def __init__(self, config: LLMConfig, link: Link) -> None:
        super().__init__(config, observers=[self._pass_on])
        self._link = link

    def _pass_on(self, event: CallEvent) -> None:
        """Tools run here, so the parent's observers are told of them; what was said stays here."""
        if isinstance(event, ToolStarted | ToolFinished):
            values: dict[str, Any] = {"tool": event.tool, "execution": event.execution_id}
            if isinstance(event, ToolFinished):
                values |= {"latency": event.latency, "error": event.error}
            self._link.tell("tool", **values)

    async def chat(self, messages: Sequence[LLMMessage], **options: Unpack[ReplyOptions]) -> LLMResponse:
        """As `LLMClient.chat`."""
        refuse_unknown(options)
        response: LLMResponse = await self._link.ask(
            "chat", messages=list(messages), options=_plain(options), task=_task(options)
        )
        return response

    async def generate(
        self, prompt: str, system_prompt: str | None = None, **options: Unpack[ReplyOptions]
    ) -> LLMResponse:
        """As `LLMClient.generate`."""
        turn = LLMMessage("user", prompt)
        turns = [LLMMessage("system", system_prompt), turn] if system_prompt else [turn]
        return await self.chat(turns, **options)

    def stream_chat(self, messages: Sequence[LLMMessage], **options: Unpack[ReplyOptions]) -> LLMStream:
        """As `LLMClient.stream_chat`."""
        refuse_unknown(options)
        chosen = options.get("timeout")
        seconds = self.config.timeout if chosen is None else chosen
        chunks: AsyncGenerator[Chunk, None] = self._link.pieces(
            "stream", messages=list(messages), options=_plain(options), task=_task(options)
        )
        return LLMStream(
            chunks,
            seconds=seconds + GRACE_S,
            too_late=lambda: DeadlineExceeded(f"{self.name} gave no whole answer within {seconds:g} s"),
        )

    async def embed(
        self,
        texts: Sequence[str],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - handed on to the real client
        task: str = "",
    ) -> Embeddings:
        """As `LLMClient.embed`."""
        given = texts if isinstance(texts, str) else list(texts)
        found = await self._link.ask(
            "embed", texts=given, timeout=timeout, task=task or current_caller().task
        )
        return unpacked(found)

    async def health_check(self) -> bool:
        """As `LLMClient.health_check`."""
        return bool(await self._link.ask("health_check"))

    async def capabilities(self) -> Capabilities:
        """As `LLMClient.capabilities`."""
        found: Capabilities = await self._link.ask("capabilities")
        return found

    async def fingerprint(self, model: str) -> str:
        """As `LLMClient.fingerprint`."""
        return str(await self._link.ask("fingerprint", model=model))

    async def send(self, request: LLMRequest) -> LLMResponse:
        """Answer a finished request; the parent fills in the options anew and comes to the same one."""
        return await self.chat(request.messages, **_options_of(request))

    async def send_embed(self, request: EmbedRequest) -> Embeddings:
        """Turn the texts of a finished request into vectors."""
        return await self.embed(request.texts, task=request.caller.task)


def distant(config: LLMConfig, backend: str, name: str, link: Link) -> DistantLLM:
    """A client that says it is `backend`, as the real one does."""
    kind = type("DistantLLM", (DistantLLM,), {"backend": backend, "__module__": __name__})
    client: DistantLLM = kind(config, link)
    client.rename(name)
    return client


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as they can be sent: of a model class its JSON schema, of sequences lists."""
    values = dict(options)
    if values.get("schema") is not None:
        values["schema"] = as_json_schema(values["schema"])
    for name in ("stop", "tools"):
        if values.get(name) is not None:
            values[name] = list(values[name])
    return values


def _task(options: Mapping[str, Any]) -> str:
    return str(options.get("task") or current_caller().task)


def _options_of(request: LLMRequest) -> ReplyOptions:
    options = ReplyOptions(
        temperature=request.temperature,
        max_tokens=request.max_tokens,
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop,
        think=request.think,
        tools=request.tools,
        cache=request.cache,
        max_age=request.max_age,
        task=request.caller.task,
        template=request.template,
    )
    if request.schema is not None:
        options["schema"] = request.schema
    return options
