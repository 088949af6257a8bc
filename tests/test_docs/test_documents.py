"""What the documents say is true: their examples run, their links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from llm.config import ENVIRONMENT
from tests.support.fake_ollama import FakeOllama
from tests.test_docs.examples import Example, examples_of

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "llm" / "README.md"])
PYTHON = [path for path in DOCUMENTS if examples_of(path, "python")]
SHELL = [path for path in DOCUMENTS if examples_of(path, "sh")]
LINK = re.compile(r"\[[^\]]+\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)")


def shown_only(example: Example) -> bool:
    reason = example.reason_not_run
    if reason is not None:
        print(f"{example}: not run, {reason}")
    return reason is not None


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
async def test_the_python_examples_of_a_document_run_from_top_to_bottom(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_BACKEND", "mock")
    namespace: dict[str, Any] = {"__name__": "example"}
    async with FakeOllama() as ollama:
        monkeypatch.setenv("OLLAMA_HOST", ollama.url)
        for example in examples_of(path, "python"):
            if not shown_only(example):
                await run_python(example, namespace)


async def run_python(example: Example, namespace: dict[str, Any]) -> None:
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(
        "\n" * (example.line - 1) + example.code, str(example.path), "exec", flags, dont_inherit=True
    )
    result = eval(code, namespace)
    if inspect.isawaitable(result):
        await result


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("path", SHELL, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_shell_examples_of_a_document_run_from_top_to_bottom(path: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "OLLAMA_HOST"},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LLM_BACKEND": "mock",
        "USER": "ana",
        "LOGNAME": "ana",
    }
    for example in examples_of(path, "sh"):
        if shown_only(example):
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", example.code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        said = f"{example}\n{example.code}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == example.exit_code, said


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_links_of_a_document_lead_to_files_and_headings_that_exist(path: Path) -> None:
    for target, anchor in LINK.findall(path.read_text(encoding="utf-8")):
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path.name} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in headings(file), f"{path.name} links to {target}#{anchor}"


def headings(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_the_layers_first_page_has_every_variable() -> None:
    page = (ROOT / "llm" / "README.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in page.splitlines() if line.startswith("| `LLM_"))
    assert [name for name in ENVIRONMENT.values() if f"`{name}`" not in table] == []


def test_every_make_target_that_a_document_names_exists() -> None:
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(code_of(path))))
        assert named <= made, f"{path.name} names {named - made}"


def code_of(path: Path) -> list[str]:
    return [
        match for match, _ in groupby(re.findall(r"`([^`\n]+)`|^make .*$", path.read_text(), re.MULTILINE))
    ]
