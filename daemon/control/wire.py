"""What goes over the control socket: one line of JSON for each request and each answer.

-> {"do": "hello", "with": {"version": "1.2", "protocol": 1}}
<- {"ok": {"version": "1.2", "protocol": 1, "pid": 7, ...}}
-> {"do": "proposals.get", "with": {"proposal_id": 3}}
<- {"busy": true}                                            it takes long; we are alive
<- {"part": value}                                           what came of one step of it
<- {"ok": value}   or   {"error": {"kind": "ProposalNotFound", "message": "...", "more": {}}}
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import agents.errors
import daemon.errors
import llm.errors
from agents.errors import AgentError
from daemon.errors import ControlError, DaemonError, NotUnderstood
from daemon.plain import dumps, loads
from llm.errors import LLMError

PROTOCOL = 1
"""Counts up when requests or answers change their form."""

MAX_REQUEST = 1024 * 1024
"""Bytes of one request; the largest that our commands send is an edit, whose payload has at most 64 KB."""

MAX_ANSWER = 1024 * 1024 * 1024
"""Bytes of one answer; a list of thousands of proposals has some MB."""

BUSY_EVERY_S = 5.0
"""How often the daemon says that it is still at it."""

SILENT_S = 30.0
"""A daemon that says nothing for so long, in the middle of a request, is stuck."""

_EXPECTED = (DaemonError, AgentError, LLMError)


def _kinds() -> dict[str, type[Exception]]:
    return {
        name: kind
        for module in (daemon.errors, agents.errors, llm.errors)
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, _EXPECTED)
    }


ERRORS: Mapping[str, type[Exception]] = MappingProxyType(_kinds())
"""Every error that can be raised again at the other end."""

_MORE = frozenset({"agent", "broken", "budget", "problems", "quota", "retry_after", "retryable", "used"})
"""What errors carry besides their message."""


class Request(NamedTuple):
    """One request."""

    do: str
    given: Mapping[str, Any]

    def line(self) -> bytes:
        """The request on its way.

        Raises:
            TypeError: it holds something that has no form on the wire.
        """
        return dumps({"do": self.do, "with": self.given})


def read_request(line: bytes) -> Request:
    """The request of a line.

    Raises:
        NotUnderstood: it is none.
    """
    try:
        message = loads(line)
    except ValueError as error:
        raise NotUnderstood(str(error)[:500]) from error
    match message:
        case {"do": str(do), "with": Mapping() as given} if len(message) == 2 and _are_names(given):
            return Request(do, given)
    msg = 'a request is {"do": name, "with": {...}} on one line'
    raise NotUnderstood(msg)


def error_line(error: BaseException) -> bytes:
    """An error on its way; one that the other end could not raise again becomes a plain one."""
    kind = type(error).__name__
    if ERRORS.get(kind) is not type(error):
        kind = next((base.__name__ for base in type(error).__mro__ if base in ERRORS.values()), "DaemonError")
    more = {name: value for name, value in vars(error).items() if name in _MORE}
    try:
        return dumps({"error": {"kind": kind, "message": str(error), "more": more}})
    except TypeError:  # what it carries is of no kind that we send
        return dumps({"error": {"kind": kind, "message": str(error), "more": {}}})


def read_error(data: Any) -> Exception:
    """The error of an answer, as it was raised at the other end."""
    match data:
        case {"kind": str(kind), "message": str(message), "more": Mapping() as more} if kind in ERRORS:
            error = ERRORS[kind].__new__(ERRORS[kind], message)
            error.args = (message,)
            for name in _MORE & more.keys():
                setattr(error, name, more[name])
            return error
    return ControlError("the daemon answered with an error that this program does not know")


def _are_names(given: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) for name in given)
