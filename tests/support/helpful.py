"""An agent that uses all that it is handed, as a plugin; what it saw goes into its proposal."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from agents.base import BaseAgent
from agents.errors import AgentError, PreconditionFailed, SourceError, UndoConflict
from agents.proposal import Evidence, Proposal
from llm import LLMError, LLMMessage, TextChunk, run_tools


def _proc_environ() -> str:
    """What anybody with the rights of this user could read of this process's environment."""
    environ = Path("/proc/self/environ")
    return environ.read_bytes().decode("latin-1") if environ.exists() else "PATH=unknown"


class HelpfulSettings(BaseModel):
    """What it is told."""

    colour: str = "red"


class Colour(BaseModel):
    """What the model is asked for."""

    colour: str = Field(description="a colour")


class Note(BaseModel):
    """The payload of its proposals."""

    text: str = Field(min_length=1)
    trouble: str = ""


class Helpful(BaseAgent):
    """Does as its settings say."""

    name = "helpful"
    Settings = HelpfulSettings
    payloads = {"note": Note}  # noqa: RUF012 - a class constant of the base class

    async def analyze(self) -> list[Proposal]:
        way = getattr(self, f"do_{self.settings.colour}", None)
        seen = {} if way is None else await way()
        return [
            self.propose(
                "note",
                "A note",
                explanation="",
                payload={"text": "x", "seen": seen},
                fingerprint=f"note {self.settings.colour}",
                evidence=(Evidence.of("book", "1", "words"),),
            )
        ]

    async def recheck(self, proposal: Proposal) -> str | None:
        return "it is stale" if proposal.payload.get("trouble") == "stale" else None

    async def apply(self, proposal: Proposal) -> Mapping[str, Any] | None:
        trouble = proposal.payload.get("trouble", "")
        file = self._file(f"{proposal.id}.begun")
        with file.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        match trouble:
            case "killed once":
                if len(file.read_text().splitlines()) < 2:
                    os.kill(os.getpid(), 9)
            case "precondition":
                raise PreconditionFailed("the page is gone")
            case "source":
                raise SourceError("book.txt, line 3: no number")
            case "odd":
                return self  # type: ignore[return-value]
            case "large":
                return {"x": "y" * 3_000_000}
            case "hangs":
                await asyncio.Event().wait()
        return {"text": proposal.payload["text"], "of": proposal.id}

    async def undo(self, proposal: Proposal) -> None:
        if proposal.payload.get("trouble") == "conflict":
            raise UndoConflict("the page was written on since")
        assert proposal.undo_data == {"text": "x", "of": proposal.id}
        self._file(f"{proposal.id}.undone").touch()

    def _file(self, name: str) -> Path:
        assert self.context.data_dir is not None
        self.context.data_dir.mkdir(parents=True, exist_ok=True)
        return self.context.data_dir / name

    # What it does by its colour.

    async def do_context(self) -> Any:
        context = self.context
        context.log.info("looking", shelf=3, where=Path("/x"))
        logging.getLogger("a.library").warning("a library says %s", "so")
        print("printed by the agent")
        context.notes.append("one note")
        context.notes += ["another"]
        return {
            "base_dir": str(context.base_dir),
            "data_dir": str(context.data_dir),
            "run_id": context.run_id,
            "now": context.now().isoformat(),
            "open": [p.title for p in context.open_proposals],
            "turned_down": dict(context.turned_down),
            "was": [context.was_turned_down(p) for p in context.open_proposals],
            "llm": None
            if context.llm is None
            else [context.llm.backend, context.llm.name, context.llm.config.model],
            "decides": self.model_decides,
        }

    async def do_template(self) -> Any:
        return {"said": (await self.use_llm(context={"thing": "pot"}, template="ask")).content}

    async def do_model(self) -> Any:
        first = await self.use_llm("Which?", {"data": "words"}, temperature=0, task="title")
        again = await self.use_llm("Which?", {"data": "words"}, temperature=0, task="title")
        fits = await self.use_llm("Colour?", schema=Colour)
        return {
            "ids": [first.call_id, again.call_id],
            "cached": [first.cached, again.cached],
            "fits": fits.json(),
        }

    async def do_client(self) -> Any:
        llm = self.context.llm
        assert llm is not None

        def add(a: int, b: int) -> int:
            """Add two numbers."""
            return a + b

        async with llm.stream("Tell") as stream:
            pieces = [chunk.text async for chunk in stream if isinstance(chunk, TextChunk)]
        made = await llm.structured("Colour?", Colour)
        tools = await run_tools(llm, [LLMMessage("user", "2 + 2?")], [add])
        vectors = await llm.embed(["one", "two"])
        return {
            "pieces": pieces,
            "colour": made.colour,
            "tools": tools.content,
            "vectors": [list(vector) for vector in vectors.vectors],
            "health": await llm.health_check(),
            "able": (await llm.capabilities()).model,
            "weights": await llm.fingerprint(llm.config.model),
        }

    async def do_fails(self) -> Any:
        try:
            await self.use_llm("This fails")
        except LLMError as error:
            return {
                "kind": type(error).__name__,
                "words": str(error),
                "after": error.retry_after,
                **vars(error),
            }
        return {}

    async def do_abandons(self) -> Any:
        llm = self.context.llm
        assert llm is not None
        async with llm.stream("Tell") as stream:
            async for _ in stream:
                break
        try:
            async with asyncio.timeout(0.2):
                await llm.generate("Takes long")
        except TimeoutError:
            return {"gave up": True}
        return {}

    async def do_spy(self) -> Any:
        reachable = [repr(self.context.llm.config)] if self.context.llm is not None else []
        reachable += [repr(value) for value in vars(self.context.llm).values()]
        return {
            "environ": dict(os.environ),
            "stdin": sys.stdin.read(),
            "proc": _proc_environ(),
            "cmdline": sys.orig_argv,
            "context": reachable,
        }

    async def do_late(self) -> Any:
        await self.use_llm("Before the end")
        self.context.notes.append("before the end")
        time.sleep(3600)  # noqa: ASYNC251 - that is its crime

    async def do_breaks(self) -> Any:
        raise AgentError("the cupboard is locked")
