"""The real program through all that its metrics tell of: runs, model calls and decisions of every kind.

with watched(tmp_path) as world:
    world.work()
    print(world.scrape())
"""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.observability.catalogue import METRICS
from tests.support.program import ROOT, Ended, Program
from tests.support.scripted_model import ScriptedModel
from tests.support.waiting import seen_now

CONFIGURATION = """
[daemon]
data_dir = "data"
log_format = "json"
{daemon}

[web]
port = {port}

[metrics]
max_series = 400

[llm]
backend = "remote"
budget = "100000 tokens/day"
retries = 1
prices = {{ small = {{ input = 1, output = 2 }}, big = {{ input = 100, output = 200 }} }}

[llm.backends.small]
model = "small"
api_base = "{small}"
escalate = "big"

[llm.backends.big]
model = "big"
api_base = "{big}"
budget = "5 usd/month"

[llm.backends.dear]
model = "dear"
api_base = "{dear}"
budget = "1 tokens/day"

[llm.routes]
default = ["small", "big"]

[llm.routes.tasks]
dear = ["dear"]

[agents.garden]
ask = true

[agents.porter]

[agents.locked]
cron = "0 * * * *"
fail = true
"""

BEDS = ("leeks dry", "beans dry", "kale wet")
AGENTS = ("garden", "locked", "porter")


@dataclass
class World:
    """The program that is watched.

    Attributes:
        program: for commands beside it.
        process: the daemon.
        model: its model server, which may be stopped.
        log: the daemon's log, one JSON object a line.
    """

    program: Program
    process: subprocess.Popen[bytes]
    model: ScriptedModel
    log: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log so far."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    @property
    def url(self) -> str:
        """Where the daemon's web endpoints are."""
        return str(self.line("askfirst is running")["address"])

    def line(self, event: str, **values: Any) -> dict[str, Any]:
        """The first log line of that event with those values, waiting for it."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.lines if {"event": event, **values}.items() <= line.items()]

        seen_now(lambda: bool(found()) or self.process.poll() is not None)
        assert found(), f"no {event!r} {values} in the log:\n{self.log.read_text(encoding='utf-8')}"
        return found()[0]

    def get(self, path: str, accept: str = "") -> str:
        """What the daemon answers on `path`."""
        request = urllib.request.Request(f"{self.url}{path}", headers={"Accept": accept} if accept else {})
        with urllib.request.urlopen(request, timeout=30) as response:
            return str(response.read().decode())

    def scrape(self, accept: str = "") -> str:
        """The metrics."""
        return self.get("/metrics", accept)

    def command(self, *arguments: str, code: int = 0) -> Ended:
        """A command that the daemon carries out; it must end with `code`."""
        ended = self.program.call(*arguments)
        assert ended.code == code, f"askfirst {' '.join(arguments)}: {ended}"
        return ended

    def work(self) -> None:
        """Agents run on schedule and by hand, one of them in vain; every kind of decision is taken."""
        for agent in ("garden", "porter"):
            self.line("run finished", agent=agent, trigger="schedule")
        self.command("agents", "run", "locked", code=1)
        notes = [p for p in self._proposals() if p["agent"] == "porter"]
        undone, edited, rejected, failing, snoozed, _ = sorted(int(p["id"]) for p in notes)
        self.command("proposals", "approve", str(undone))
        self.command("proposals", "undo", str(undone))
        self.command("proposals", "edit", str(edited), "--set", "text=other")
        self.command("proposals", "approve", str(edited))
        self.command("proposals", "reject", str(rejected))
        self.command("proposals", "approve", str(failing), code=1)
        self.command("proposals", "snooze", str(snoozed), "--for", "1h")
        self.command("agents", "run", "porter")

    def _proposals(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.command("--json", "proposals", "list").data
        return found


@contextmanager
def watched(folder: Path, *, port: int = 0, daemon: str = "", more: str = "") -> Iterator[World]:
    """The program with three agents and three models, its web endpoints open; killed at the end.

    Args:
        folder: an empty folder.
        port: of the web endpoints, 0 for any.
        daemon: more lines of the configuration's table [daemon].
        more: more tables.
    """
    with ScriptedModel() as model:
        program = prepared(folder, model, port=port, daemon=daemon, more=more)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                program.command("run"),
                cwd=folder,
                env=program.whole_environment({}),
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
            try:
                yield World(program, process, model, folder / "log")
            finally:
                process.kill()
                process.wait()


def prepared(
    folder: Path, model: ScriptedModel, *, port: int = 0, daemon: str = "", more: str = ""
) -> Program:
    """The program's folder: configuration, plugins and what they read; nothing is started."""
    config, plugins = folder / "config", folder / "config" / "data" / "plugins"
    plugins.mkdir(parents=True, mode=0o700)
    plugins.parent.chmod(0o700)
    (config / "beds.txt").write_text("".join(f"{bed}\n" for bed in BEDS), encoding="utf-8")
    places = {name: model.url(name) for name in ("small", "big", "dear")}
    text = CONFIGURATION.format(port=port, daemon=daemon, **places) + more
    (config / "askfirst.toml").write_text(text, encoding="utf-8")
    for name in ("garden", "porter"):
        shutil.copy(ROOT / "tests" / "support" / f"{name}.py", plugins)
    garden = (plugins / "garden.py").read_text(encoding="utf-8")
    locked = garden.replace('name = "garden"', 'name = "locked"').replace("GardenAgent", "LockedAgent")
    (plugins / "locked.py").write_text(locked, encoding="utf-8")
    return Program(folder, {"LLM_API_KEY": "sk-not-used"})


def missing(text: str) -> set[str]:
    """The metrics of the catalogue without a single series in a scrape."""
    names = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if line[:1] != "#"}
    return {name for name, metric in METRICS.items() if _sample_of(name, metric.kind) not in names}


def _sample_of(name: str, kind: str) -> str:
    return f"{name}_count" if kind == "histogram" else name
