"""Leaves out what a library would import only in case somebody wants it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(*modules: str) -> Iterator[None]:
    """Let libraries that are imported meanwhile believe that these modules are not installed.

    What is imported already stays; afterwards everything can be imported again. Only for libraries that go
    on without the module, and only while nothing else is imported in other threads.
    """
    hidden = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: "cannot be imported"
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
