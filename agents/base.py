"""BaseAgent: look at real data, think with a model where rules are not enough, propose. Never act unasked."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from agents.context import AgentContext, ModelCall
from agents.errors import AgentError, AgentSettingsError
from agents.fence import fenced
from agents.prompts import templates_of
from agents.proposal import Proposal
from agents.words import problems_of
from llm import (
    BadReply,
    CallCancelled,
    ConfigurationError,
    LLMClient,
    LLMError,
    LLMMessage,
    LLMResponse,
    NoModel,
    Templates,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

    from llm.structured import Schema

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""An agent's name: safe as a file name, a metric label and a key of the configuration."""


class BaseAgent(ABC):
    """One agent. A subclass implements `analyze`, and `apply` (and `undo`) if its proposals change something.

    An instance lives for one run or one decision; what must last goes into proposals or `context.data_dir`.

    Attributes:
        name: unique name; made from the class name if not given (`PantryAgent` -> "pantry").
        description: one line for lists.
        every: the interval it is run at unless the configuration says otherwise, such as "15m".
        Settings: pydantic model of its table in the configuration, None when it takes no settings.
        payloads: pydantic model of the payload for each kind of proposal, so that an edit can be checked.
    """

    name: ClassVar[str] = ""
    description: ClassVar[str] = ""
    every: ClassVar[str] = "1h"
    Settings: ClassVar[type[BaseModel] | None] = None
    payloads: ClassVar[Mapping[str, type[BaseModel]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in cls.__dict__:
            cls.name = _name_from(cls.__name__)
        if not NAME_PATTERN.fullmatch(cls.name):
            msg = f"{cls.__qualname__}.name is {cls.name!r}; use 1 to 64 of a-z, 0-9, _ and -"
            raise AgentError(msg)
        if "description" not in cls.__dict__ and cls.__doc__:
            cls.description = cls.__doc__.strip().partition("\n")[0]

    def __init__(self, context: AgentContext | None = None) -> None:
        self.context = AgentContext() if context is None else context
        given = self.context.templates
        self.templates: Templates = templates_of(type(self)) if given is None else given
        self.settings: Any = validated_settings(type(self), self.context.settings)

    @abstractmethod
    async def analyze(self) -> list[Proposal]:
        """Look, think, and return what a person should decide about. Must change nothing.

        Raises:
            AgentError: the data cannot be read.
            LLMError: a model call failed and the agent cannot go on by rules.
        """

    async def apply(self, proposal: Proposal) -> Mapping[str, Any] | None:
        """Do what an approved proposal says, all of it or nothing.

        Without one of its own, an agent only informs: approving its proposal means "noted".

        It may be called again for the same proposal after a crash, and must then notice what is already
        done (`proposal.id` is the key) and return the same undo data.

        Returns:
            What `undo` needs, as plain JSON data; None when there is nothing to undo.

        Raises:
            PreconditionFailed: what it would change is no longer as it was; nothing was changed.
            AgentError: it cannot be done; nothing was changed.
        """
        del proposal
        return None

    async def undo(self, proposal: Proposal) -> None:
        """Restore what `apply` changed, from `proposal.undo_data`, all of it or nothing; safe to call again.

        Raises:
            UndoConflict: what it would restore was changed since; nothing was changed.
            AgentError: it cannot be done; nothing was changed.
        """
        msg = f"the agent {self.name!r} cannot undo {proposal.kind!r}: it has no undo()"
        raise AgentError(msg)

    async def recheck(self, proposal: Proposal) -> str | None:
        """Why an open proposal makes no sense any more (its source changed), or None while it does."""
        del proposal  # agents whose sources can change override this
        return None

    @property
    def model_decides(self) -> bool:
        """Whether a model's answer may decide anything: there is one, and it is not the canned mock."""
        return self.context.llm is not None and self.context.llm.backend != "mock"

    def propose(self, kind: str, title: str, **fields: Any) -> Proposal:
        """A `Proposal` of this agent; `fields` are those of `Proposal`."""
        return Proposal(agent=self.name, kind=kind, title=title, **fields)

    async def use_llm(
        self,
        prompt: str = "",
        context: Mapping[str, Any] | str | None = None,
        schema: Schema | None = None,
        *,
        template: str = "",
        system_prompt: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        cache: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - handed on to the client's total deadline
        task: str = "",
    ) -> LLMResponse:
        """Ask the model. The prompt is ours; the context is data, cleaned, shortened and fenced.

        Args:
            prompt: the question; or instead of it
            template: the name of a file in the agent's folder `prompts` that has the question and the system
                prompt, and says where the pieces of the context stand.
            context: what it is about, named pieces or one text, from wherever it came. A template knows the
                pieces by their names, and one text as `data`.
            schema: pydantic model class or JSON schema; the reply's content is checked against it, and one
                reply that does not fit is shown to the model with its fault before giving up.
            system_prompt: how the model shall behave; a template's own if None.
            temperature: overrides the configuration; 0 is greedy.
            max_tokens: overrides the configuration.
            top_p: overrides the configuration.
            seed: overrides the configuration.
            cache: False asks anew.
            timeout: total seconds, overrides the configuration.
            task: what it is for, such as "title": in the ledger, and a route may be named for it.

        Raises:
            NoModel: the program runs on rules only.
            TemplateError: the template is missing, or cannot be filled in with this context.
            LLMError: the call failed; go on by rules, and say in the proposal what decided.
        """
        llm = self._model()
        turns, made_from = await self._turns(prompt, context, template)
        if system_prompt:
            turns = [LLMMessage("system", system_prompt), turns[-1]]
        options: dict[str, Any] = {
            "temperature": temperature,
            "max_tokens": max_tokens,
            "top_p": top_p,
            "seed": seed,
            "cache": cache,
            "timeout": timeout,
            "template": made_from,
            "task": task,
        }
        return await _Recorded(llm, self.context).answer(turns, schema, options)

    async def _turns(
        self, prompt: str, context: Mapping[str, Any] | str | None, template: str
    ) -> tuple[list[LLMMessage], str]:
        """What the model is sent, and the name and version of the template it was made from."""
        if bool(prompt) == bool(template):
            msg = f"the agent {self.name!r} asks with a prompt and a template, or with neither"
            raise ConfigurationError(msg)
        if not template:
            text = prompt if context is None else f"{prompt}\n\n{fenced(context)}"
            return [LLMMessage("user", text)], ""
        pieces = {"data": context} if isinstance(context, str) else context or {}
        filled = await asyncio.to_thread(self.templates.render, template, pieces)  # it reads files
        return filled.messages(), filled.template

    def _model(self) -> LLMClient:
        if self.context.llm is None:
            msg = (
                f"the agent {self.name!r} asked a model, but none is configured; "
                "set LLM_BACKEND, or start Ollama, or install 'askfirst[llamacpp]'"
            )
            raise NoModel(msg)
        return self.context.llm


class _Recorded:
    """The model as one question sees it: each call leaves a `ModelCall` in the run, also one that fails."""

    def __init__(self, llm: LLMClient, context: AgentContext) -> None:
        self._llm = llm
        self._context = context
        self._last: int | None = None

    async def answer(
        self, turns: Sequence[LLMMessage], schema: Schema | None, options: Mapping[str, Any]
    ) -> LLMResponse:
        """Ask once, or until the reply fits `schema` (one repair round)."""
        if schema is None:
            return await self.chat(turns, **options)
        from llm.structured import ask  # noqa: PLC0415 - only structured questions need it

        try:
            return await ask(cast("LLMClient", self), turns, schema, **options)  # it needs `chat` only
        except BadReply:
            self._refuse_last()
            raise

    async def chat(self, turns: Sequence[LLMMessage], **options: Any) -> LLMResponse:
        """`LLMClient.chat`, recorded."""
        self._refuse_last()  # asked again within one question: the reply before did not fit
        call = ModelCall(
            id=uuid.uuid4().hex,
            prompt=turns[-1].content,
            system_prompt=turns[0].content if turns[0].role == "system" else None,
            reply=None,
            backend=self._llm.backend,
            model=self._llm.config.model,
            at=self._context.now(),
            template=options.get("template", ""),
        )
        started = time.perf_counter()
        try:
            response = await self._llm.chat(turns, **options)
        except (LLMError, asyncio.CancelledError) as error:
            code = error.code if isinstance(error, LLMError) else CallCancelled.code
            failed = replace(call, id=self._id_of(call, error), error=code)
            self._keep(replace(failed, seconds=time.perf_counter() - started))
            raise
        self._keep(_answered(call, response, time.perf_counter() - started))
        return response

    def _id_of(self, call: ModelCall, error: BaseException) -> str:
        """What a failed call is called in the log too; its own name if nothing reached a backend."""
        given = str(getattr(error, "call_id", ""))
        return call.id if not given or any(kept.id == given for kept in self._context.calls) else given

    def _keep(self, call: ModelCall) -> None:
        self._last = len(self._context.calls)
        self._context.calls.append(call)

    def _refuse_last(self) -> None:
        """Mark the last reply as one that did not fit."""
        if self._last is not None and self._context.calls[self._last].error is None:
            self._context.calls[self._last] = replace(self._context.calls[self._last], error=BadReply.code)


def _answered(call: ModelCall, response: LLMResponse, seconds: float) -> ModelCall:
    return replace(
        call,
        id=response.call_id or call.id,
        reply=response.content,
        backend=response.backend,
        model=response.model,
        prompt_tokens=response.prompt_tokens,
        completion_tokens=response.completion_tokens,
        seconds=seconds,
        cached=response.cached,
    )


def _name_from(class_name: str) -> str:
    words = r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"  # Feed|Digest, RSS|Agent
    snake = re.sub(words, "_", class_name.lstrip("_")).lower()
    return snake.removesuffix("_agent") or snake


def validated_settings(agent: type[BaseAgent], values: Mapping[str, Any]) -> Any:
    """The agent's settings as its own model, or None when it takes none.

    Raises:
        AgentSettingsError: one or more values cannot work; all of them are named.
    """
    if agent.Settings is None:
        if values:
            problems = tuple((key, "this agent takes no settings of its own") for key in values)
            raise AgentSettingsError(agent.name, problems)
        return None
    from pydantic import ValidationError  # noqa: PLC0415 - only agents with settings need it

    try:
        return agent.Settings.model_validate(dict(values))
    except ValidationError as error:
        raise AgentSettingsError(agent.name, problems_of(error)) from None
