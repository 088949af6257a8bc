"""The values that travel through a model call: frozen, without I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "content_filter", "other"]
JSONSchema = Mapping[str, Any]

ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class LLMMessage:
    """One turn of a conversation.

    Args:
        role: who speaks: "system", "user" or "assistant".
        content: what is said.

    Raises:
        ValueError: the role is not one of the three, or the content is no text.
    """

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            msg = f"a message's role is one of {', '.join(ROLES)}, not {self.role!r}"
            raise ValueError(msg)
        content: object = self.content
        if not isinstance(content, str):
            msg = f"a message's content is text, not {type(content).__name__}"
            raise ValueError(msg)  # noqa: TRY004 - one kind of error for one kind of mistake


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMRequest:
    """One call as a backend gets it, every default already filled in.

    Attributes:
        messages: the conversation, at least one turn.
        model: the backend's name of the model.
        temperature: 0 is greedy; None leaves it to the model.
        max_tokens: most tokens to generate, at least 1.
        top_p: nucleus threshold in (0, 1]; None leaves it to the model.
        seed: seed of the sampler; None leaves it to the backend.
        schema: JSON schema that the reply must fit, None for free text.
        use_cache: whether the response cache may answer or keep this call; shapes no answer.
    """

    messages: tuple[LLMMessage, ...]
    model: str
    temperature: float | None
    max_tokens: int
    top_p: float | None
    seed: int | None = None
    schema: JSONSchema | None = None
    use_cache: bool = True

    @property
    def system_prompt(self) -> str | None:
        """The text of the leading system turn, None without one."""
        first = self.messages[0]
        return first.content if first.role == "system" else None

    @property
    def prompt(self) -> str:
        """The text of the last turn that is not the system's, empty without one."""
        return next((m.content for m in reversed(self.messages) if m.role != "system"), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMResponse:
    """What a model answered.

    Attributes:
        content: the text.
        model: the model that answered, as the backend names it.
        backend: the backend's name.
        finish_reason: "stop" when the model ended by itself, "length" when `max_tokens` cut it.
        prompt_tokens: tokens of the whole prompt, those that the engine had cached included.
        completion_tokens: tokens generated.
        cached: True when the response cache answered.
        latency: seconds from the call to the answer, 0 when unknown.
        call_id: names this call in logs and stores; a new one at each call, cached or not.
    """

    content: str
    model: str
    backend: str
    finish_reason: FinishReason = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False
    latency: float = 0.0
    call_id: str = ""

    @property
    def tokens_used(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens

    def json(self) -> Any:
        """Parse the content as JSON; a fresh object at each call.

        Raises:
            json.JSONDecodeError: the content is not JSON; ask with `schema` to be sure of it.
        """
        return json.loads(self.content)

    def __str__(self) -> str:
        return self.content
