"""Parts of the program that can be told from which level on they log: ours, single agents, libraries.

A part is the name of a logger, and stands for those below it: `llm` for `llm.router` and all others. The
lines about an agent's own doings are those of `agents.NAME`, the lines about runs and decisions `askfirst`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agents.base import NAME_PATTERN

LEVELS: Mapping[str, int] = MappingProxyType(
    {
        "debug": logging.DEBUG,
        "info": logging.INFO,
        "warning": logging.WARNING,
        "error": logging.ERROR,
    }
)
"""The levels by their names, the most talkative first."""

OURS = ("llm", "agents", "daemon", "askfirst")
"""The first words of our own loggers' names."""

QUIET = (
    "aiosqlite", "alembic", "anthropic", "apscheduler", "asyncio", "h2", "hpack", "httpcore", "httpx",
    "huggingface_hub", "openai", "requests", "sqlalchemy", "urllib3", "uvicorn", "watchfiles",
)  # fmt: skip
"""Libraries that log at WARNING at least, whatever our level, unless one is named."""

LEAST: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "aiosqlite": ("info", "what is written into the database"),
        "anthropic": ("info", "what models are asked"),
        "h2": ("info", "headers, which hold keys"),
        "hpack": ("info", "headers, which hold keys"),
        "httpcore": ("info", "headers, which may hold keys"),
        "httpx": ("info", "what is sent over the network"),
        "huggingface_hub": ("info", "headers, which may hold keys"),
        "openai": ("info", "what models are asked"),
        "requests": ("info", "what is sent over the network"),
        "sqlalchemy": ("warning", "what is written into the database"),
        "urllib3": ("info", "addresses, which may hold keys"),
    }
)
"""Libraries that cannot be made as talkative as that: the least level, and what lines below it would show."""

_ROOT = Path(__file__).parents[1]
_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")
_WAY = 'parts are llm, agents, agents.NAME of an agent, daemon, modules such as "daemon.store", and libraries'


def parse_levels(text: str) -> dict[str, str]:
    """`llm=debug, agents.matchmaker=info` as a mapping.

    Raises:
        ValueError: it is none.
    """
    found: dict[str, str] = {}
    for each in filter(None, (word.strip() for word in text.split(","))):
        part, is_there, level = (word.strip() for word in each.partition("="))
        if not (part and is_there and level):
            msg = f"{each!r} is no part with its level, such as llm=debug"
            raise ValueError(msg)
        found[part] = level
    return found


def checked_levels(levels: Mapping[str, Any], *, agents: Collection[str] | None = None) -> dict[str, str]:
    """The levels of parts, if all of them can hold. Looks for files.

    Args:
        levels: names of levels by the names of parts.
        agents: the agents there are; None lets any name be one.

    Raises:
        ValueError: a part or a level is unknown, or the part would show what belongs into no log.
    """
    return {part: _checked(part, level, agents) for part, level in levels.items()}


def _checked(part: str, level: Any, agents: Collection[str] | None) -> str:
    if not isinstance(level, str) or level not in LEVELS:
        msg = f"{part}: {level!r} is no level; levels are {', '.join(LEVELS)}"
        raise ValueError(msg)
    if not is_part(part, agents):
        msg = f"there is nothing called {part!r} that logs; {_WAY}"
        raise ValueError(msg)
    least, shows = LEAST.get(part.partition(".")[0], ("debug", ""))
    if LEVELS[level] < LEVELS[least]:
        msg = f"{part} is never logged at {level}: its lines would show {shows}; the least is {least}"
        raise ValueError(msg)
    return level


def is_part(name: str, agents: Collection[str] | None = None) -> bool:
    """Whether there is a part of that name: a module of ours, an agent, or a library that is installed."""
    if not _PART.fullmatch(name):
        return False
    top, _, rest = name.partition(".")
    if top not in OURS:
        return top in QUIET or top == "py" or _is_installed(top)
    if top == "askfirst":
        return not rest
    return is_module(name) or (top == "agents" and _is_agent(rest, agents))


def _is_agent(name: str, agents: Collection[str] | None) -> bool:
    return NAME_PATTERN.fullmatch(name) is not None and (agents is None or name in agents)


def is_module(name: str) -> bool:
    """Whether there is a module of ours of that name; it is looked for, not imported."""
    place = _ROOT.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
