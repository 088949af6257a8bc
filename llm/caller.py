"""Who is asking: set round a piece of work, found in every request made inside it. And a name for a call."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace

from llm.types import NOBODY, Caller

_current: ContextVar[Caller] = ContextVar("llm_caller", default=NOBODY)
_call_id: ContextVar[str] = ContextVar("llm_call_id", default="")


def current_caller(task: str = "") -> Caller:
    """The caller of the work under way, with `task` as what the call is for if that is given."""
    caller = _current.get()
    return replace(caller, task=task) if task else caller


@contextmanager
def calling(agent: str = "", run_id: str = "", task: str = "") -> Iterator[None]:
    """Every model call made inside, and in tasks started inside, is this agent's and run's."""
    token = _current.set(Caller(agent=agent, run_id=run_id, task=task))
    try:
        yield
    finally:
        _current.reset(token)


def current_call_id() -> str:
    """The id of the call that is being sent to a backend, for the log lines that are written meanwhile.

    Empty outside of one, and while a stream is read, since its reader's lines are not the call's.
    """
    return _call_id.get()


@contextmanager
def under_call(call_id: str) -> Iterator[None]:
    """What is done inside belongs to the call of that id."""
    token = _call_id.set(call_id)
    try:
        yield
    finally:
        _call_id.reset(token)


def new_call_id() -> str:
    """32 hex digits that name one call in logs and stores."""
    return os.urandom(16).hex()
