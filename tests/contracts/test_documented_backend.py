"""The backend of docs/write-a-backend.md, as it stands there, keeps the contract that it is told to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm import registry
from tests.test_docs.examples import examples_of

pytestmark = pytest.mark.contract

_DOCUMENT = Path(__file__).parents[2] / "docs" / "write-a-backend.md"
_NAMES: dict[str, Any] = {"__name__": "documented"}

for _example in examples_of(_DOCUMENT, "python"):
    # Not the lines that register it and show it at work: the document's own test runs those.
    _code = _example.code.partition("register_backend(")[0]
    exec(compile(_code, str(_DOCUMENT), "exec"), _NAMES)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._registered, "command", _NAMES["CommandBackend"])


TestCommandBackend = _NAMES["TestCommandBackend"]
