"""The real engines of one test run, each started when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.get_ollama import Unavailable
from tests.support.llama_server import LlamaServer
from tests.support.real_ollama import RealOllama


class Engines:
    """The real engines of this test run, each started when it is first needed and ended with the run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.llama = LlamaServer()
        self.ollama = RealOllama()

    def folder_of(self, name: str, make: Callable[[Path], Path]) -> str:
        """A model's folder, made the first time."""
        path = self.folder / name
        return str(path if path.exists() else make(path))

    def ollama_address(self) -> str:
        """Of the genuine Ollama; the test is skipped, with the reason, where there can be none."""
        try:
            return self.ollama.address
        except Unavailable as error:
            pytest.skip(str(error))

    def close(self) -> None:
        """End what was started."""
        self.llama.close()
        self.ollama.close()
