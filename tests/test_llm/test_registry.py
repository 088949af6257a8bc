"""Backend names: built in, from a plugin, or unknown."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm import ConfigurationError, LLMConfig, MockBackend, get_llm_client, register_backend
from llm.registry import backend_class, backend_names

PLUGIN = """
from llm.client import LLMClient
from llm.types import LLMResponse

class EchoBackend(LLMClient):
    backend = "echo"

    async def send(self, request):
        return LLMResponse(content=request.prompt, model=request.model, backend=self.backend)

    async def health_check(self):
        return True

class NotABackend:
    pass
"""

ENTRY_POINTS = """
[askfirst.backends]
echo = echo_plugin:EchoBackend
wrong = echo_plugin:NotABackend
absent = echo_plugin:Absent
broken = broken_plugin:Backend
missing = no_such_plugin:Backend
mock = echo_plugin:EchoBackend
"""


@pytest.fixture
def installed_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution as pip would install it, in a folder of its own."""
    (tmp_path / "echo_plugin.py").write_text(PLUGIN)
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('it wants a GPU')")
    about = tmp_path / "echo_plugin-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-plugin\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("echo_plugin", "broken_plugin"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["ollama", "llamacpp", "mlx", "remote", "mock"])
def test_each_built_in_name_gives_the_class_of_that_name(name: str) -> None:
    assert name in backend_names()
    assert backend_class(name).backend == name


def test_an_unknown_name_warns_lists_the_known_ones_and_gives_the_mock_backend(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert backend_class("olama") is MockBackend
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "'olama'" in record.getMessage()
    assert "llamacpp, mlx, mock, ollama, remote" in record.getMessage()


@pytest.mark.usefixtures("installed_plugin")
async def test_a_plugin_brings_a_backend_in_through_the_same_door() -> None:
    assert "echo" in backend_names()
    assert backend_names() == sorted(set(backend_names()))
    async with get_llm_client(LLMConfig(backend="echo", enable_cache=False)) as client:
        response = await client.generate("¿Qué tal?")
    assert (response.content, response.backend) == ("¿Qué tal?", "echo")


@pytest.mark.usefixtures("installed_plugin")
def test_a_plugin_cannot_take_the_name_of_a_built_in_backend() -> None:
    assert backend_class("mock") is MockBackend


@pytest.mark.usefixtures("installed_plugin")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong", "echo_plugin:NotABackend is not a subclass"),
        ("absent", "echo_plugin:Absent cannot be loaded"),
        ("broken", "it wants a GPU"),
        ("missing", "no_such_plugin"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_is_no_unknown_name(name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        backend_class(name)


def test_a_class_can_be_registered_under_a_new_name_in_this_process() -> None:
    register_backend("mine", MockBackend)
    assert backend_class("mine") is MockBackend
    assert "mine" in backend_names()


@pytest.mark.parametrize("name", ["ollama", "Mine", " mine", ""])
def test_a_name_that_is_taken_or_could_never_be_asked_for_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="take a new name"):
        register_backend(name, MockBackend)


def test_what_is_no_backend_cannot_be_registered() -> None:
    with pytest.raises(ConfigurationError, match=r"not a subclass of llm\.LLMClient"):
        register_backend("mine", dict)  # type: ignore[arg-type]
