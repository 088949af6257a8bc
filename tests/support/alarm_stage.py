"""A stage on which alarms are caused: the real program, Prometheus, Alertmanager and its receiver."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.support.alarms import FOLDER, RULES, RUNBOOKS, quickened, quickened_receiver
from tests.support.monitoring import Prometheus, Receiver, alertmanager, free_port, prometheus, receiver
from tests.support.program import ROOT, Ended, Program
from tests.support.waiting import seen_now

PATIENCE_S = 90.0
"""Far above what an alarm takes to come or to go, even on a busy machine."""


@dataclass
class Daemon:
    """The program with agents that do what their orders say (tests/support/actor.py).

    Attributes:
        program: for commands beside it.
        port: of its web endpoints.
        environment: variables of the daemon alone.
        process: the daemon while it runs.
    """

    program: Program
    port: int
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """What Prometheus calls it."""
        return f"127.0.0.1:{self.port}"

    @property
    def configuration(self) -> Path:
        """Its file."""
        return self.program.folder / "config" / "askfirst.toml"

    def order(self, agent: str, text: str) -> None:
        """What that agent does from its next run on."""
        path = self.program.folder / "config" / "orders" / agent
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def command(self, *arguments: str, code: int = 0) -> Ended:
        """A command that the daemon carries out; it must end with `code`."""
        ended = self.program.call(*arguments)
        assert ended.code == code, f"askfirst {' '.join(arguments)}: {ended}"
        return ended

    def reload(self, old: str, new: str) -> None:
        """Change its configuration, and have it read again."""
        text = self.configuration.read_text()
        assert old in text
        self.configuration.write_text(text.replace(old, new))
        self.command("reload")

    def start(self, *, stderr: int | IO[bytes] = subprocess.DEVNULL) -> None:
        """Run it, and wait until its scheduler works."""
        self.process = subprocess.Popen(
            self.program.command("run"),
            cwd=self.program.folder,
            env=self.program.whole_environment(self.environment),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
        seen_now(self.answers)

    def kill(self) -> None:
        """End it as a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stderr is not None:
                self.process.stderr.close()

    def answers(self) -> bool:
        """Whether it serves its metrics."""
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}"
        try:
            with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=5) as response:
                return b"askfirst_build_info" in response.read()
        except OSError:
            return False


def daemon(folder: Path, configuration: str, agents: Mapping[str, str], **environment: str) -> Daemon:
    """The program's folder; nothing is started.

    Args:
        folder: gets config/askfirst.toml, and a plugin for each agent.
        configuration: the tables but for those of the agents; `{port}` is replaced.
        agents: each agent's first order.
        environment: variables of the daemon alone.
    """
    plugins = folder / "config" / "data" / "plugins"
    plugins.mkdir(parents=True, mode=0o700)
    plugins.parent.chmod(0o700)
    actor = (ROOT / "tests" / "support" / "actor.py").read_text(encoding="utf-8")
    found = Daemon(Program(folder, {"LLM_API_KEY": "sk-not-used"}), free_port(), environment)
    for agent, order in agents.items():
        code = actor.replace('name = "actor"', f'name = "{agent}"')
        code = code.replace("ActorAgent", f"{agent.title()}Agent")
        (plugins / f"{agent}.py").write_text(code, encoding="utf-8")
        found.order(agent, order)
    found.configuration.write_text(configuration.replace("{port}", str(found.port)), encoding="utf-8")
    return found


@dataclass
class Stage:
    """Who watches.

    Attributes:
        prometheus: with quickened rules.
        receiver: what Alertmanager tells.
    """

    prometheus: Prometheus
    receiver: Receiver

    def arrives(self, name: str, labels: Mapping[str, str]) -> dict[str, str]:
        """Wait until that alarm was told; its annotations."""
        seen_now(lambda: bool(self.receiver.alerts(name, "firing", labels)), limit=PATIENCE_S)
        annotations: dict[str, str] = self.receiver.alerts(name, "firing", labels)[0]["annotations"]
        assert annotations["runbook_url"] == f"{RUNBOOKS}#{name.lower()}"
        for value in labels.values():
            assert value in annotations["summary"] + annotations["description"], annotations
        assert "{{" not in annotations["summary"] + annotations["description"]
        return annotations

    def ends(self, name: str, labels: Mapping[str, str], *, told: bool) -> None:
        """Wait until that alarm fires no more; and until that was told, if it is to be told."""
        seen_now(lambda: not self.prometheus.firing(name, labels), limit=PATIENCE_S)
        if told:
            seen_now(lambda: bool(self.receiver.alerts(name, "resolved", labels)), limit=PATIENCE_S)


@contextmanager
def stage(folder: Path, *addresses: str, keep: Collection[str] = ()) -> Iterator[Stage]:
    """Prometheus with our rules, Alertmanager with our example, both in a hurry, and a receiver.

    Args:
        folder: an empty folder.
        addresses: what is scraped.
        keep: rules that are not quickened.
    """
    example = FOLDER / "alertmanager.example.yml"
    with (
        receiver() as told,
        alertmanager(folder / "alertmanager", quickened_receiver(example, told.url)) as address,
        prometheus(
            folder / "prometheus", *addresses, rules=quickened(RULES, keep=keep), alertmanager=address
        ) as watching,
    ):
        yield Stage(watching, told)


def drained(stream: IO[bytes]) -> None:
    """Read what waits in a pipe, and go on until it is empty."""
    os.set_blocking(stream.fileno(), False)
    while stream.read(1024 * 1024):
        pass


def proposals(found: Daemon) -> list[int]:
    """The numbers of the open proposals, the oldest first."""
    return sorted(int(each["id"]) for each in json.loads(found.command("--json", "proposals", "list").out))
