"""BaseAgent: look at real data, think with a model where rules are not enough, propose. Never act unasked."""

from __future__ import annotations

import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from agents.context import AgentContext, ModelCall
from agents.errors import AgentError, AgentSettingsError
from agents.fence import fenced
from agents.proposal import Proposal
from llm import LLMClient, LLMError, LLMMessage, LLMResponse, NoModel

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
        if not cls.description and cls.__doc__:
            cls.description = cls.__doc__.strip().splitlines()[0]

    def __init__(self, context: AgentContext | None = None) -> None:
        self.context = AgentContext() if context is None else context
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

        It may be called again for the same proposal after a crash, and must then notice what is already
        done (`proposal.id` is the key) and return the same undo data.

        Returns:
            What `undo` needs, as plain JSON data; None when there is nothing to undo.

        Raises:
            PreconditionFailed: what it would change is no longer as it was; nothing was changed.
            AgentError: it cannot be done; nothing was changed.
        """
        msg = f"the agent {self.name!r} proposes {proposal.kind!r} for information only: it has no apply()"
        raise AgentError(msg)

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
        prompt: str,
        context: Mapping[str, Any] | str | None = None,
        schema: Schema | None = None,
        *,
        system_prompt: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        cache: bool = True,
        timeout: float | None = None,  # noqa: ASYNC109 - handed on to the client's total deadline
    ) -> LLMResponse:
        """Ask the model. The prompt is ours; the context is data, cleaned, shortened and fenced.

        Args:
            prompt: the question.
            context: what it is about, named pieces or one text, from wherever it came.
            schema: pydantic model class or JSON schema; the reply's content is checked against it, and one
                reply that does not fit is shown to the model with its fault before giving up.
            system_prompt: how the model shall behave.
            temperature: overrides the configuration; 0 is greedy.
            max_tokens: overrides the configuration.
            top_p: overrides the configuration.
            seed: overrides the configuration.
            cache: False asks anew.
            timeout: total seconds, overrides the configuration.

        Raises:
            NoModel: the program runs on rules only.
            LLMError: the call failed; go on by rules, and say in the proposal what decided.
        """
        llm = self._model()
        text = prompt if context is None else f"{prompt}\n\n{fenced(context)}"
        turns = [LLMMessage("user", text)]
        if system_prompt:
            turns.insert(0, LLMMessage("system", system_prompt))
        options: dict[str, Any] = {
            "temperature": temperature,
            "max_tokens": max_tokens,
            "top_p": top_p,
            "seed": seed,
            "cache": cache,
            "timeout": timeout,
        }
        return await self._recorded(llm, turns, schema, options)

    def _model(self) -> LLMClient:
        if self.context.llm is None:
            msg = (
                f"the agent {self.name!r} asked a model, but none is configured; "
                "set LLM_BACKEND, or start Ollama, or install 'askfirst[llamacpp]'"
            )
            raise NoModel(msg)
        return self.context.llm

    async def _recorded(
        self,
        llm: LLMClient,
        turns: list[LLMMessage],
        schema: Schema | None,
        options: dict[str, Any],
    ) -> LLMResponse:
        """Make the call and keep a `ModelCall` of it, whether it succeeds or fails."""
        at, started = self.context.now(), time.perf_counter()
        common: dict[str, Any] = {
            "prompt": turns[-1].content,
            "system_prompt": turns[0].content if len(turns) > 1 else None,
            "at": at,
        }
        try:
            response = await self._call(llm, turns, schema, options)
        except LLMError as error:
            call = ModelCall(
                id=uuid.uuid4().hex,
                reply=None,
                backend=llm.backend,
                model=llm.config.model,
                seconds=time.perf_counter() - started,
                error=error.code,
                **common,
            )
            self.context.calls.append(call)
            raise
        self.context.calls.append(_call_of(response, time.perf_counter() - started, common))
        return response

    @staticmethod
    async def _call(
        llm: LLMClient,
        turns: list[LLMMessage],
        schema: Schema | None,
        options: dict[str, Any],
    ) -> LLMResponse:
        if schema is None:
            return await llm.chat(turns, **options)
        from llm.structured import ask  # noqa: PLC0415 - only structured questions need it

        return await ask(llm, turns, schema, **options)


def _call_of(response: LLMResponse, seconds: float, common: dict[str, Any]) -> ModelCall:
    return ModelCall(
        id=response.call_id,
        reply=response.content,
        backend=response.backend,
        model=response.model,
        prompt_tokens=response.prompt_tokens,
        completion_tokens=response.completion_tokens,
        seconds=seconds,
        cached=response.cached,
        **common,
    )


def _name_from(class_name: str) -> str:
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", class_name).lower()
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
        problems = tuple(
            (".".join(str(part) for part in fault["loc"]), fault["msg"])
            for fault in error.errors(include_url=False, include_input=False)
        )
        raise AgentSettingsError(agent.name, problems) from error
