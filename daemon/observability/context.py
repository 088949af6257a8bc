"""What the work under way is about: said with every line that is logged meanwhile, by whichever module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from llm.caller import current_call_id, current_caller

_NOTHING: Mapping[str, Any] = MappingProxyType({})
_about: ContextVar[Mapping[str, Any]] = ContextVar("log_about", default=_NOTHING)


@contextmanager
def about(**values: Any) -> Iterator[None]:
    """Every line that is logged inside, and in tasks started inside, has these values; None is none.

    The names are those of the run's own line: agent, run_id, proposal.
    """
    given = {name: value for name, value in values.items() if value is not None}
    token = _about.set({**_about.get(), **given})
    try:
        yield
    finally:
        _about.reset(token)


@contextmanager
def about_nothing() -> Iterator[None]:
    """What is started inside, such as a timer, outlives the work under way and is not about it any more."""
    token = _about.set(_NOTHING)
    try:
        yield
    finally:
        _about.reset(token)


def what_it_is_about() -> dict[str, Any]:
    """The values of the work under way; of a model call also who asked, and its id."""
    found = dict(_about.get())
    caller = current_caller()
    for name, value in (("agent", caller.agent), ("run_id", caller.run_id), ("call_id", current_call_id())):
        if value:
            found.setdefault(name, value)
    return found
