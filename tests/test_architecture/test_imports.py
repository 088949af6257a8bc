"""Imports go one way, and cost next to nothing until they are needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("llm", "agents", "daemon")
LINT = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"

# One forbidden import for each contract, and where it is put.
BREACHES = {
    "llm/types.py": ["agents.errors", "fastjsonschema"],
    "llm/errors.py": ["llm.client"],
    "llm/client.py": ["genai_prices", "httpx", "jinja2", "xllamacpp"],
    "llm/fence.py": ["pathlib"],
    "llm/wire/schemas.py": ["asyncio"],
    "agents/errors.py": ["agents.base"],
    "agents/base.py": ["structlog"],
    "agents/context.py": ["llm.wire.common"],
    "agents/proposal.py": ["sqlite3"],
    "daemon/errors.py": ["daemon.events"],
    "daemon/events.py": [
        "llm.stores.base", "apscheduler", "opentelemetry", "prometheus_client", "sqlalchemy", "starlette",
        "click", "watchfiles",
    ],
}  # fmt: skip

NOTHING_FOREIGN = """
import sys
before = set(sys.modules)
tops = {name.partition(".")[0] for name in before}
import MODULE
ours = {"llm", "agents", "daemon"}
after = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(after - tops - ours - sys.stdlib_module_names))
"""


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", LINT],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def contracts() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [contract["name"] for contract in project["tool"]["importlinter"]["contracts"]]


def test_the_import_contracts_are_kept() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_contract_notices_an_import_that_breaks_it(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, modules in BREACHES.items():
        with (tmp_path / name).open("a", encoding="utf-8") as file:
            file.writelines(f"\nimport {module}\n" for module in modules)
    done = lint(tmp_path)
    verdicts = dict(re.findall(r"^(.+) (KEPT|BROKEN)$", done.stdout, re.MULTILINE))
    assert verdicts == dict.fromkeys(contracts(), "BROKEN"), done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "llm",
        "llm.client",
        "llm.factory",
        "agents",
        "agents.base",
        "agents.registry",
        "agents.config",
        "daemon",
    ],
)
def test_importing_it_loads_no_third_party_module(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NOTHING_FOREIGN.replace("MODULE", module)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout.split(), done.stderr) == ([], "")


def test_what_runs_inside_an_engines_process_imports_nothing_of_ours_but_its_own_parts() -> None:
    """An engine's program is started as a file, with nothing else of ours on its path."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False)
    engines = graph.find_descendants("llm.engines")
    assert engines
    imported = {found for engine in engines for found in graph.find_modules_directly_imported_by(engine)}
    assert imported - engines == set()
