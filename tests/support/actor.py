"""An agent for tests, as a plugin: at each run it does what the file `orders/NAME` says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from agents.base import BaseAgent
from agents.errors import AgentError, SourceError
from agents.proposal import Proposal
from llm import LLMError

BLOCKED_S = 0.6
"""Longer than `stall_after` of the daemon that it keeps from its work."""

LONG_LINE = "a long line " * 400
LONG_LINES = 600
"""Together more than the log keeps for a reader who does not read."""


class Note(BaseModel):
    """What it proposes to write."""

    text: str
    trouble: bool = False


class ActorAgent(BaseAgent):
    """Does as it is told: rest, fail, block, ask, ask-for TASK WORDS, propose, shout."""

    name = "actor"
    every = "1s"
    payloads = {"note": Note}  # noqa: RUF012 - a class constant of the base class

    async def analyze(self) -> list[Proposal]:
        path = self.context.base_dir / "orders" / self.name
        order, *words = (await asyncio.to_thread(path.read_text, encoding="utf-8")).split()
        match order:
            case "fail":
                msg = "the gate is locked; find the key"
                raise AgentError(msg)
            case "block":
                time.sleep(BLOCKED_S)  # noqa: ASYNC251 - what an agent must not do
            case "ask":
                await self.use_llm(f"What now? {time.monotonic()}")  # never the same, so no cache answers
            case "ask-for":
                await self._ask_for(*words)
            case "propose":
                return [self._note(number) for number in (1, 2)]
            case "shout":
                for number in range(LONG_LINES):
                    text = f"{LONG_LINE}{number}"
                    self.context.log.info(text)
            case _:
                pass
        return []

    async def _ask_for(self, *words: str) -> None:
        """Ask with each word as the task; a refusal is no failure of the run."""
        for word in words:
            question = "This is forbidden" if word == "forbidden" else "What now?"
            try:
                await self.use_llm(f"{question} {time.monotonic()}", task=word, max_tokens=8)
            except LLMError as error:
                self.context.notes.append(type(error).__name__)

    def _note(self, number: int) -> Proposal:
        return self.propose(
            "note",
            f"Note {number}",
            explanation="",
            payload={"text": "a note", "trouble": number == 1},
            fingerprint=f"note {number}",
        )

    async def apply(self, proposal: Proposal) -> Mapping[str, Any]:
        if proposal.payload["trouble"]:
            msg = "the notebook is locked"
            raise SourceError(msg)
        return {"text": proposal.payload["text"]}

    async def undo(self, proposal: Proposal) -> None:
        pass
