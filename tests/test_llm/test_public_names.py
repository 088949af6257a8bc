"""The front door: every public name is there, and looking at it costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import llm

FORBIDDEN_IN_LLM = ("agents", "daemon", "prometheus_client", "structlog", "sqlalchemy")


def output(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def loaded_by(code: str) -> set[str]:
    """Top-level names of the modules that are there after `code`."""
    return set(output(f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})").split())


@pytest.mark.parametrize("name", llm.__all__)
def test_every_public_name_is_there_and_comes_from_this_package(name: str) -> None:
    value = getattr(llm, name)
    assert value.__module__.startswith("llm.")
    assert value.__doc__


def test_the_names_are_sorted_and_listed_by_dir() -> None:
    assert llm.__all__ == sorted(llm.__all__)
    assert dir(llm) == llm.__all__


def test_every_lazy_name_is_public() -> None:
    assert sorted(llm._HOMES) == llm.__all__


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'llm' has no attribute 'get_llm_clinet'"):
        llm.get_llm_clinet  # type: ignore[attr-defined]  # noqa: B018 - the access is the test


@pytest.mark.parametrize(
    "code",
    [
        "import llm",
        "from llm import LLMConfig, LLMError, get_llm_client, select_backend",
        "from llm import LLMConfig, get_llm_client; get_llm_client(LLMConfig(backend='mock'))",
        "from llm import LLMConfig, get_llm_client; get_llm_client(LLMConfig(backend='ollama'))",
        "from llm import LLMConfig, get_llm_client; get_llm_client(LLMConfig(backend='remote', api_key='k'))",
        "from llm import LLMConfig, get_llm_client; get_llm_client(LLMConfig(backend='llamacpp'))",
        "from llm import LLMConfig, get_llm_client; get_llm_client(LLMConfig(backend='mlx'))",
    ],
)
def test_before_the_first_call_nothing_but_the_standard_library_is_imported(code: str) -> None:
    # What the interpreter itself loads, in this environment and by its .pth files, is not ours.
    ours = loaded_by(code) - loaded_by("pass")
    assert {name for name in ours if name not in sys.stdlib_module_names} == {"llm"}


def test_importing_the_package_imports_none_of_its_modules() -> None:
    code = "import sys, llm; print([name for name in sys.modules if name.startswith('llm.')])"
    assert output(code) == "[]"


def test_no_module_of_the_package_mentions_what_stands_above_it() -> None:
    folder = Path(llm.__file__).parent
    for path in folder.rglob("*.py"):
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        imported = {
            words[1].partition(".")[0] for words in lines if words[:1] in (["import"], ["from"]) and words[1:]
        }
        assert not imported & set(FORBIDDEN_IN_LLM), path
