"""Where an agent's prompt templates are: the owner's own first, then those that came with the agent."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm import Templates

FOLDER = "prompts"


def templates_of(agent: type[Any], overrides: Path | None = None) -> Templates:
    """The prompt templates of an agent.

    They are files `NAME.j2` in the folder `prompts` beside the module that defines the agent, or in its
    folder `prompts/AGENT` where several agents share a module's folder; a base class's come after the
    agent's own.

    Args:
        agent: its class.
        overrides: the owner's folder; what stands in its folder of the agent's name comes first.
    """
    name: str = agent.name
    owners = [] if overrides is None else [overrides / name]
    return Templates(*owners, *shipped_folders(agent), owner=name)


def shipped_folders(agent: type[Any]) -> tuple[Path, ...]:
    """The folders of templates that came with an agent, each once, whether they exist or not."""
    known: tuple[Path, ...] | None = getattr(agent, "prompt_folders", None)  # of a class that stands in
    return tuple(dict.fromkeys(_shipped(agent))) if known is None else known


def _shipped(agent: type[Any]) -> Iterator[Path]:
    for kind in agent.__mro__:
        if kind.__module__ == "agents.base":
            return
        file = getattr(sys.modules.get(kind.__module__), "__file__", None)
        if file:
            folder = Path(file).parent / FOLDER
            yield from (folder / str(getattr(kind, "name", "")), folder)
