"""What every test gets: an environment of its own, and a loop that nothing of ours may block."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from tests.support.tally import summary, watched_summary

# Nobody listens there, so that a developer's own Ollama never answers a test by chance.
NOBODY = "http://127.0.0.1:1"

# Twins for tests, and what runs before the loop matters or has it for itself: settings and commands.
MAY_BLOCK = [
    "llm.contract",
    "llm.testing",
    "agents.testing",
    "daemon.cli",
    "daemon.commands",
    "daemon.guard",
    "daemon.render",
    "daemon.settings",
]

# Done once, before the loop has anything else to do: importing, finding plugins, looking for a model.
# The response cache reads on the loop on purpose: a thread hop costs several times the query.
# And coverage takes a lock of its own when threads meet.
ALLOWED = {
    "coverage/collector.py": ("lock_data",),
    "llm/__init__.py": ("__getattr__",),
    "agents/__init__.py": ("__getattr__",),
    "daemon/__init__.py": ("__getattr__",),
    "llm/registry.py": ("backend_names", "backend_class"),
    "agents/registry.py": ("_installed", "_plugins"),
    "agents/standins.py": ("check",),
    "llm/backends/models.py": ("model_file",),
    "llm/backends/mlx_files.py": ("source",),
    "llm/stores/sqlite.py": ("_select",),
    "docs/write-a-backend.md": ("health_check",),  # looks for a program, as short as an example may be
}


WHOLE_PROGRAMS = ("process", "crash", "clock", "systemd", "monitoring", "contract", "browser")
"""Marks of tests that run the whole program, or a model, again and again."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No setting of the developer's own reaches a test, and no test writes into the developer's home."""
    for name in list(os.environ):
        if name.startswith(("LLM_", "ASKFIRST_", "OLLAMA_", "OTEL_")):
            monkeypatch.delenv(name)
    home: Path = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home / name.lower()))
    monkeypatch.setenv("OLLAMA_HOST", NOBODY)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("llm.registry._registered", {})


@pytest.fixture(autouse=True)
def whole_programs_are_not_traced(request: pytest.FixtureRequest) -> None:
    """What they run is covered by the tests of its parts, in less time."""
    if any(request.node.get_closest_marker(name) for name in WHOLE_PROGRAMS):
        request.getfixturevalue("untraced")


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop(request: pytest.FixtureRequest) -> Iterator[None]:
    """A call of ours that blocks the event loop (a file, a socket, a sleep) raises `BlockingError`."""
    if "benchmarks" in request.path.parts:  # the guard costs time at each call that it watches
        yield
        return
    with blockbuster_ctx(scanned_modules=["llm", "agents", "daemon"], excluded_modules=MAY_BLOCK) as guard:
        for function in guard.functions.values():
            for file, names in ALLOWED.items():
                function.can_block_in(file, names)
        yield


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Coverage does not look on, nor in the processes that the test starts: for what runs the same lines ten
    thousand times, or starts the program hundreds of times, and would take several times as long."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests take long come first, lest one process is left with one when the others are done."""
    long = {item.path for item in items if _takes_long(item)}
    items.sort(key=lambda item: item.path not in long)


def _takes_long(item: pytest.Item) -> bool:
    marked = any(item.get_closest_marker(name) for name in (*WHOLE_PROGRAMS, "engine"))
    return marked or "untraced" in getattr(item, "fixturenames", ())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed or logged can be handed to another process, lone surrogates written out."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many power cuts, kills and failures there were, and what they did; and what was watched."""
    reports = [each for kind in ("passed", "failed") for each in terminalreporter.getreports(kind)]
    for line in filter(None, (summary(reports), watched_summary(reports))):
        terminalreporter.write_line(line, bold=True)
