"""Looks at plugins in a process of its own, so that no line of theirs runs in the program that asks.

It is run by its path by `agents.standins`. Its standard input holds one request as JSON; it answers with
lines of JSON, each flushed, so that whoever waits knows which plugin it did not get over.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

    from agents.base import BaseAgent

MEMORY_MB = 2048
"""Most memory of a look; what an agent imports is part of it."""


class _Out:
    """Where answers go: what a plugin prints goes to standard error."""

    def __init__(self) -> None:
        self._fd = os.dup(1)
        os.dup2(2, 1)

    def say(self, **values: Any) -> None:
        os.write(self._fd, json.dumps(values, default=str).encode("ascii") + b"\n")


def main() -> None:
    """Answer one request."""
    root = str(Path(__file__).resolve().parents[1])
    if root not in sys.path:
        sys.path.insert(0, root)
    from agents.confine import confine, stand_back  # noqa: PLC0415 - not to be found before

    stand_back()
    request = json.loads(sys.stdin.buffer.read())
    out = _Out()
    confine(MEMORY_MB, request["seconds"])
    if "values" in request:
        _check(request, out)
    else:
        _describe(request, out)


def _describe(request: Mapping[str, Any], out: _Out) -> None:
    from agents.plugins import Plugin, loading  # noqa: PLC0415 - not to be found before

    for each in loading(Path(request["folder"]), {Path(path) for path in request["skip"]}):
        if isinstance(each, Plugin):
            out.say(path=str(each.path), agents=[_described(agent) for agent in each.agents])
        elif isinstance(each, Path):
            out.say(begins=str(each))
        else:
            out.say(problem=each)
    out.say(end=True)


def _described(agent: type[BaseAgent]) -> dict[str, Any]:
    from agents.prompts import shipped_folders  # noqa: PLC0415 - not to be found before

    return {
        "name": agent.name,
        "title": agent.__qualname__,
        "description": str(agent.description),
        "every": str(agent.every),
        "settings": None if agent.Settings is None else _fields(agent.Settings),
        "payloads": {str(kind): _fields(model) for kind, model in agent.payloads.items()},
        "folders": [str(folder) for folder in shipped_folders(agent)],
    }


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """What of a model a configuration shows: its fields, and which keys it takes."""
    from agents.words import aliases_of  # noqa: PLC0415 - not to be found before

    config = model.model_config
    return {
        "extra": config.get("extra"),
        "by_name": bool(config.get("populate_by_name") or config.get("validate_by_name")),
        "fields": [
            {
                "name": name,
                "aliases": aliases_of(spec),
                "required": spec.is_required(),
                "default": None if spec.is_required() else spec.get_default(call_default_factory=True),
                "description": spec.description,
            }
            for name, spec in model.model_fields.items()
        ],
    }


def _check(request: Mapping[str, Any], out: _Out) -> None:
    """Whether values fit the model of an agent's settings or of one kind of payload."""
    from pydantic import ValidationError  # noqa: PLC0415 - only this needs it

    from agents.plugins import load_plugin  # noqa: PLC0415 - not to be found before
    from agents.standins import untagged  # noqa: PLC0415 - as above
    from agents.words import problems_of  # noqa: PLC0415 - as above

    agent = next(each for each in load_plugin(Path(request["file"])).agents if each.name == request["agent"])
    model = agent.Settings if request["kind"] is None else agent.payloads[request["kind"]]
    if model is None:
        out.say(problems=[["", "this agent takes no settings of its own any more"]])
        return
    try:
        found = model.model_validate(untagged(request["values"]))
    except ValidationError as error:
        out.say(problems=problems_of(error))
        return
    dumped = None if request["kind"] is None else found.model_dump(mode="json", by_alias=True)
    out.say(problems=[], dumped=dumped)


if __name__ == "__main__":
    main()
