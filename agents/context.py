"""What one run is handed: the model, the clock, the agent's settings, what is already open."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from agents.proposal import Proposal
from llm import LLMClient, Templates


class Log(Protocol):
    """The part of a logger that agents use: structlog's, or `logging`'s without the keywords."""

    def debug(self, event: str, **values: Any) -> Any:
        """Something for whoever hunts a fault."""

    def info(self, event: str, **values: Any) -> Any:
        """Something worth knowing."""

    def warning(self, event: str, **values: Any) -> Any:
        """Something to look at."""


class PlainLog:
    """A `Log` over the standard library, for agents that run outside the daemon."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **values: Any) -> None:
        """Log at DEBUG."""
        self._logger.debug("%s %s", event, values)

    def info(self, event: str, **values: Any) -> None:
        """Log at INFO."""
        self._logger.info("%s %s", event, values)

    def warning(self, event: str, **values: Any) -> None:
        """Log at WARNING."""
        self._logger.warning("%s %s", event, values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCall:
    """One model call of a run, as it is kept beside the proposals it led to.

    Attributes:
        id: `LLMResponse.call_id`, or one of our own for a call that failed.
        prompt: the last turn as sent, fenced context and field list included.
        system_prompt: the system prompt, None without one.
        reply: the model's text, None when the call failed.
        backend: the backend's name.
        model: the model's name.
        prompt_tokens: tokens in.
        completion_tokens: tokens out.
        seconds: how long the caller waited.
        cached: whether the response cache answered.
        error: `LLMError.code` of a failed call; "bad_reply" beside a reply that did not fit the schema.
        at: when it began, UTC.
        template: name and version of the prompt template, "matchmaker/pair@1a2b3c4d5e6f"; empty without one.
    """

    id: str
    prompt: str
    system_prompt: str | None
    reply: str | None
    backend: str
    model: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cached: bool = False
    error: str | None = None
    at: datetime
    template: str = ""


def utc_now() -> datetime:
    """The time of day, UTC and aware."""
    return datetime.now(UTC)


@dataclass(slots=True, kw_only=True)
class AgentContext:
    """What one run of one agent is handed.

    Everything but `llm` has a default, so that an agent can be tried by hand:
    `MyAgent(AgentContext(llm=client))`.

    Attributes:
        llm: the model, None when the program runs on rules only.
        templates: the agent's prompt templates; None for those that came with it.
        settings: the agent's own table of the configuration, not yet validated.
        base_dir: relative paths of the settings start here (the configuration's folder).
        data_dir: a folder of the agent's own for what it must remember, made on demand.
        now: the clock, UTC.
        log: where to log.
        open_proposals: this agent's proposals that still wait or are being applied.
        turned_down: what people rejected or undid: fingerprint -> `Proposal.evidence_hash` at that time.
        run_id: the run, empty outside the daemon.
        calls: the model calls made so far, filled by `BaseAgent.use_llm`.
        notes: short facts about the run for its summary, filled by the agent.
    """

    llm: LLMClient | None = None
    templates: Templates | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    base_dir: Path = field(default_factory=Path.cwd)
    data_dir: Path | None = None
    now: Callable[[], datetime] = utc_now
    log: Log = field(default_factory=lambda: PlainLog("agents"))
    open_proposals: tuple[Proposal, ...] = ()
    turned_down: Mapping[str, str] = field(default_factory=dict)
    run_id: str = ""
    calls: list[ModelCall] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def was_turned_down(self, proposal: Proposal) -> bool:
        """Whether a person turned down the same change on the same evidence: the daemon will not keep it."""
        return self.turned_down.get(proposal.fingerprint) == proposal.evidence_hash
