"""Conventions are tests, not reminders."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("llm", "agents", "daemon")
TEXTS = {".py", ".md", ".toml", ".csv", ".service", ".plist", ".svg", ".json", ".cfg", ".sh", ""}

EXCEPTION = re.compile(r"# (?:ruff: )?noqa\b(?P<noqa>.*)|# type: ignore\b(?P<types>.*)")
REASON = re.compile(r": [A-Z0-9, ]+ - \S|\[[a-z, -]+\]  # \S")

# Written so that this file does not match itself.
FORBIDDEN = re.compile(r"/wor[k]/|/roo[t]/|/User[s]/|pypi[.]org|pythonhoste[d]|index-ur[l]|extra-inde[x]")
UNFINISHED = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X]|HAC[K])\b|raise NotImplementedErro[r]$")
MOCKS = re.compile(r"unittest[.]moc[k]|\bMagicMoc[k]|pytest_moc[k]")


def texts() -> Iterator[tuple[Path, str]]:
    """Every text of the repository that travels, with its path."""
    folders = (*CODE, "tests", "docs", "config", "systemd", ".ci")
    files = [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    files += [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in files:
        if path.suffix in TEXTS and "__pycache__" not in path.parts:
            yield path, path.read_text(encoding="utf-8", errors="replace")


def lines(found: Iterable[object]) -> str:
    return "\n" + "\n".join(map(str, found))


def lines_with(pattern: re.Pattern[str], sources: Iterator[tuple[Path, str]]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path, text in sources
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def sources(*folders: str) -> Iterator[tuple[Path, str]]:
    """Every module below `folders`, with its path."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, path.read_text(encoding="utf-8")


def has_postponed_annotations(text: str) -> bool:
    tree = ast.parse(text)
    futures = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    only_a_docstring = len(tree.body) == (ast.get_docstring(tree) is not None)
    return only_a_docstring or any(alias.name == "annotations" for node in futures for alias in node.names)


def test_annotations_are_not_evaluated_when_a_module_is_imported() -> None:
    silent = [path for path, text in sources(*CODE, "tests") if not has_postponed_annotations(text)]
    assert not silent, lines(silent)


def test_nothing_names_a_path_of_somebodys_machine_or_a_package_registry() -> None:
    found = lines_with(FORBIDDEN, texts())
    assert not found, lines(found)


def test_nothing_is_left_unfinished() -> None:
    found = lines_with(UNFINISHED, sources(*CODE))
    assert not found, lines(found)


def test_tests_use_real_parts_and_shipped_twins_and_no_mocks() -> None:
    found = lines_with(MOCKS, sources("tests"))
    assert not found, lines(found)


def test_every_exception_from_a_check_says_why() -> None:
    """The reason stands on the line, or on the line before when that is the same exception."""
    silent: list[str] = []
    for path, text in sources(*CODE):
        previous = ""
        for number, line in enumerate(text.splitlines(), start=1):
            found = EXCEPTION.search(line)
            if found is None:
                previous = ""
                continue
            said = found["noqa"] if found["noqa"] is not None else found["types"]
            rule = re.split(r" - |  #", said)[0].strip()
            if not REASON.match(said) and rule != previous:
                silent.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
            previous = rule
    assert not silent, lines(silent)


def test_test_folders_do_not_hide_the_packages_that_they_test() -> None:
    """`tests/llm/__init__.py` would hide our `llm`, in pytest's importlib mode too."""
    folders = [path for path in (ROOT / "tests").rglob("*") if path.is_dir()]
    assert {path.name for path in folders}.isdisjoint(CODE)
    assert [path for path in folders if (path / "__init__.py").exists()] == []


@pytest.mark.parametrize("folder", ["config", "systemd"])
def test_folders_of_data_hold_no_code(folder: str) -> None:
    assert not list((ROOT / folder).rglob("*.py*"))


def requirements() -> dict[str, list[str]]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=~!; ]", name.strip())[0]).lower()


def test_every_dependency_has_a_lower_bound_and_an_exact_version_to_test_with() -> None:
    exact = {
        plain(line)
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    wanted = [requirement for group in requirements().values() for requirement in group]
    assert [each for each in wanted if ">=" not in each] == []
    assert sorted({plain(each) for each in wanted} - exact) == []


def test_every_dependency_is_argued_for_in_the_architecture() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    _, _, chapter = text.partition("## Dependencies")
    named = {
        plain(name) for row in re.findall(r"^\| ([^|]+) \|", chapter, re.MULTILINE) for name in row.split("+")
    }
    assert sorted({plain(each) for each in requirements()[""]} - named) == []
