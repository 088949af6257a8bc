"""What every test gets: an environment of its own, in which nothing of the developer's machine shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Nobody listens there, so that a developer's own Ollama never answers a test by chance.
NOBODY = "http://127.0.0.1:1"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the developer's own reaches a test, and no test writes into the developer's home."""
    for name in list(os.environ):
        if name.startswith(("LLM_", "ASKFIRST_", "OLLAMA_")):
            monkeypatch.delenv(name)
    home: Path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home / name.lower()))
    monkeypatch.setenv("OLLAMA_HOST", NOBODY)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
