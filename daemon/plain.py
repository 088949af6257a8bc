"""Our values <-> JSON, for the wire between our own processes: the control socket and the agents' workers.

What is not JSON is an object `{"$": kind, "v": value}`. Only kinds of a closed table are made when reading,
so nothing that comes over the wire can make anything else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agents.context import ModelCall
from agents.errors import AgentError
from agents.proposal import Approvers, Decision, Evidence, Proposal, ProposalStatus
from daemon.controls import Standing
from daemon.errors import SettingsProblem
from daemon.events import AgentState, AgentStatus, DueTime, Fate, RunOutcome, RunResult
from daemon.store.rows import ProposalEvent
from llm import (
    Capabilities,
    LLMConfig,
    LLMMessage,
    LLMResponse,
    StreamEnd,
    TextChunk,
    ThinkingChunk,
    Tool,
    ToolCall,
)

_KIND, _VALUE = "$", "v"

_CLASSES: Mapping[str, type] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            AgentStatus,
            Approvers,
            Capabilities,
            Decision,
            DueTime,
            Evidence,
            LLMConfig,
            LLMMessage,
            LLMResponse,
            ModelCall,
            Proposal,
            ProposalEvent,
            RunResult,
            SettingsProblem,
            Standing,
            StreamEnd,
            TextChunk,
            ThinkingChunk,
            Tool,
            ToolCall,
        )
    }
)
_ENUMS: Mapping[str, type[Enum]] = MappingProxyType(
    {kind.__name__: kind for kind in (AgentState, Fate, ProposalStatus, RunOutcome)}
)
_OTHERS: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "datetime": datetime.fromisoformat,
        "date": date.fromisoformat,
        "time": time.fromisoformat,
        "timedelta": lambda seconds: timedelta(seconds=seconds),
        "path": Path,
        "tuple": tuple,
        "set": frozenset,
        "map": lambda pairs: dict(map(tuple, pairs)),
    }
)


_SENT: tuple[tuple[type, str, Callable[[Any], Any]], ...] = (
    (datetime, "datetime", datetime.isoformat),
    (date, "date", date.isoformat),
    (time, "time", time.isoformat),
    (timedelta, "timedelta", timedelta.total_seconds),
    (Path, "path", str),
    (tuple, "tuple", lambda values: [to_plain(each) for each in values]),
    (frozenset, "set", lambda values: sorted(to_plain(each) for each in values)),
)


def dumps(value: Any) -> bytes:
    """`value` as one line of JSON, ending with a line break.

    Raises:
        TypeError: it holds something that has no form on the wire.
    """
    return json.dumps(to_plain(value), separators=(",", ":")).encode("ascii") + b"\n"


def loads(line: bytes | str) -> Any:
    """What `dumps` wrote.

    Raises:
        ValueError: it was not written by `dumps`.
    """
    try:
        return from_plain(json.loads(line))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        OverflowError,
        AgentError,
    ) as error:
        msg = f"not a message of this program: {error}"
        raise ValueError(msg) from error


def to_plain(value: Any) -> Any:
    """`value` as JSON data."""
    if isinstance(value, Enum):
        return _tagged(type(value).__name__, value.value, _ENUMS)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    for kind, name, send in _SENT:
        if isinstance(value, kind):
            return {_KIND: name, _VALUE: send(value)}
    if isinstance(value, list):
        return [to_plain(each) for each in value]
    if isinstance(value, Mapping):
        return _plain_mapping(value)
    if is_dataclass(value):
        known = {field.name: to_plain(getattr(value, field.name)) for field in fields(value) if field.init}
        return _tagged(type(value).__name__, known, _CLASSES)
    msg = f"a {type(value).__name__} cannot be sent to another process"
    raise TypeError(msg)


def from_plain(data: Any) -> Any:
    """The value that `to_plain` made `data` of."""
    if isinstance(data, list):
        return [from_plain(each) for each in data]
    if not isinstance(data, dict):
        return data
    if _KIND not in data:
        return {key: from_plain(each) for key, each in data.items()}
    kind, value = data[_KIND], from_plain(data[_VALUE])
    if kind in _CLASSES:
        return _CLASSES[kind](**value)
    if kind in _ENUMS:
        return _ENUMS[kind](value)
    return _OTHERS[kind](value)


def _plain_mapping(value: Mapping[Any, Any]) -> Any:
    if all(isinstance(key, str) for key in value) and _KIND not in value:
        return {key: to_plain(each) for key, each in value.items()}
    return {_KIND: "map", _VALUE: [[to_plain(key), to_plain(each)] for key, each in value.items()]}


def _tagged(kind: str, value: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    if kind not in known:
        msg = f"a {kind} cannot be sent to another process"
        raise TypeError(msg)
    return {_KIND: kind, _VALUE: value}
