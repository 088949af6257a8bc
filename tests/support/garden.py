"""A whole agent of a few lines, for tests as a plugin: it proposes to water dry beds, by changing a file."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from agents.base import BaseAgent
from agents.errors import AgentError, PreconditionFailed
from agents.proposal import Evidence, Proposal, sha256_of


class GardenSettings(BaseModel):
    """What the agent is told."""

    model_config = ConfigDict(extra="forbid")

    beds: str = Field("beds.txt", description="file with one bed per line")
    ask: bool = Field(False, description="whether to ask the model about each bed")
    fail: bool = Field(False, description="whether every run fails")


class Watering(BaseModel):
    """What would be done."""

    model_config = ConfigDict(extra="forbid")

    bed: str
    litres: int = Field(ge=1, le=50)


class GardenAgent(BaseAgent):
    """Proposes to water the dry beds."""

    name = "garden"
    every = "2h"
    Settings = GardenSettings
    payloads = {"water": Watering}  # noqa: RUF012 - a class constant of the base class

    async def analyze(self) -> list[Proposal]:
        if self.settings.fail:
            msg = "the garden gate is locked; find the key"
            raise AgentError(msg)
        lines = (await self._read()).splitlines()
        return [await self._proposal(n, line) for n, line in enumerate(lines, 1) if line.endswith("dry")]

    async def _proposal(self, number: int, line: str) -> Proposal:
        bed = line.removesuffix("dry").strip()
        calls: tuple[str, ...] = ()
        if self.settings.ask:
            calls = ((await self.use_llm("Is this bed dry?", {"bed": line}, max_tokens=20)).call_id,)
        return self.propose(
            "water",
            f"Water {bed}",
            explanation=f"{bed} is dry.",
            payload={"bed": bed, "litres": 5},
            fingerprint=sha256_of(bed),
            reasons=("nobody watered it",),
            constraints=("there is water",),
            confidence=0.8,
            evidence=(Evidence.of(self.settings.beds, f"line {number}", line),),
            call_ids=calls,
            decided_by="blend" if calls else "rule",
        )

    async def apply(self, proposal: Proposal) -> Mapping[str, Any]:
        before = await self._read()
        bed, litres = proposal.payload["bed"], proposal.payload["litres"]
        if f"{bed} dry" not in before:
            msg = f"{bed} is no longer dry"
            raise PreconditionFailed(msg)
        await self._write(before.replace(f"{bed} dry", f"{bed} wet {litres}"))
        return {"before": before}

    async def undo(self, proposal: Proposal) -> None:
        await self._write((proposal.undo_data or {})["before"])

    async def _read(self) -> str:
        return await asyncio.to_thread(self._path.read_text, encoding="utf-8")

    async def _write(self, text: str) -> None:
        await asyncio.to_thread(self._path.write_text, text, encoding="utf-8")

    @property
    def _path(self) -> Path:
        return self.context.base_dir / self.settings.beds
