"""An agent for tests, as a plugin: it asks its model in every way, and its proposals come to every end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from agents.base import BaseAgent
from agents.errors import AgentError, SourceError
from agents.proposal import Proposal
from llm import LLMError


class Note(BaseModel):
    """What it proposes to write."""

    text: str
    trouble: bool = False


class Bed(BaseModel):
    """What it asks for."""

    dry: Literal["yes", "no", "unsure"]


class PorterAgent(BaseAgent):
    """Asks its model in every way, and proposes six notes."""

    name = "porter"
    every = "1h"
    payloads = {"note": Note}  # noqa: RUF012 - a class constant of the base class

    async def analyze(self) -> list[Proposal]:
        await self._ask()
        return [
            self.propose(
                "note",
                f"Note {number}",
                explanation="",
                payload={"text": f"note {number}", "trouble": number == 4},
                fingerprint=f"note {number}",
            )
            for number in range(1, 7)
        ]

    async def _ask(self) -> None:
        llm = self.context.llm
        if llm is None:
            msg = "the porter has nobody to ask"
            raise AgentError(msg)
        await self.use_llm("Which bed?")  # the second time the cache answers
        await self.use_llm("Which bed?")
        await asyncio.gather(*(self.use_llm("All at once?") for _ in range(3)))
        await self.use_llm("A hiccup?")
        await self.use_llm("Is it down?")
        await self.use_llm("Any doubt?", schema=Bed)
        async with llm.stream("Tell") as stream:
            async for _ in stream:
                pass
        await llm.embed(["leeks"])
        for question, task in (("This is forbidden", ""), ("Who pays?", "dear")):
            try:
                await self.use_llm(question, task=task)
            except LLMError as error:
                self.context.notes.append(type(error).__name__)

    async def apply(self, proposal: Proposal) -> Mapping[str, Any]:
        if proposal.payload["trouble"]:
            msg = "the notebook is locked"
            raise SourceError(msg)
        return {"text": proposal.payload["text"]}

    async def undo(self, proposal: Proposal) -> None:
        pass
