"""The shipped unit under a real systemd runs the real program: watched, killed, stopped, closed in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import ExitCode
from daemon.lifecycle import UNIT_STOP_LIMIT_S
from tests.support import nspawn, prober
from tests.support.nspawn import Container
from tests.support.waiting import seen_now

pytestmark = [
    pytest.mark.systemd,
    pytest.mark.process,
    pytest.mark.timeout(600),  # the first time the system is made, from a mirror
    pytest.mark.skipif(nspawn.why_not() is not None, reason=str(nspawn.why_not())),
]

CREDENTIAL = "llm_api_key=/etc/askfirst/llm_api_key"
KEY = "sk-canary-3f9a61c2d7"
CONFIG = "/etc/askfirst/askfirst.toml"
PLUGINS = "/var/lib/askfirst/plugins"
DROP_INS = "/etc/systemd/system/askfirst.service.d"

CONFIGURATION = """
[daemon]
data_dir = "/var/lib/askfirst"

[llm]
backend = "mock"

[agents.prober]
every = "2s"
isolation = "none"
max_proposals = 5

[agents.garden]
every = "2s"
beds = "/srv/exchange/beds.txt"
"""

# Short, so that nobody has to wait a minute: the rest of the unit is as it is shipped.
QUICK = """
[Service]
WatchdogSec=3
RestartSec=200ms
"""

AGENT = """

import asyncio
from pydantic import BaseModel
from agents.base import BaseAgent
from agents.proposal import Evidence, sha256_of


class Told(BaseModel):
    results: dict[str, str]


class ProberAgent(BaseAgent):
    name = "prober"
    payloads = {"told": Told}

    async def analyze(self):
        block = STATE / "block"
        if block.exists():
            block.unlink()
            time.sleep(3600)
        if (STATE / "probed").exists():
            return []
        found = results()
        (STATE / "probed").touch()
        return [
            self.propose(
                "told", "What the sandbox lets through", explanation="Probed.", payload={"results": found},
                fingerprint=sha256_of("probes"), reasons=("asked",), confidence=1.0, decided_by="rule",
                evidence=(Evidence.of("the sandbox", "inside", "probed"),),
            )
        ]

    async def apply(self, proposal):
        return None
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A machine on which the service was installed, as somebody would."""
    folder = tmp_path_factory.mktemp("machine")
    support = Path(__file__).parents[1] / "support"
    with nspawn.booted(folder) as container:
        container.write(CONFIG, '[llm]\nbackend = "mock"\n')
        container.write("/etc/askfirst/llm_api_key", f"{KEY}\n", mode=0o600)
        container.write("/srv/exchange/beds.txt", "leeks dry\npeas wet\n")
        container.write(f"{DROP_INS}/50-mine.conf", QUICK)
        install = ("askfirst", "service", "install", "--system")
        said = container.run(*install, "--no-start", "--credential", CREDENTIAL).stdout
        assert 'write data_dir = "/var/lib/askfirst" into the table [daemon]' in said
        container.run("chown", "-R", "askfirst:", "/srv/exchange")
        probes = (support / "prober.py").read_text().partition('\nif __name__ == "__main__"')[0]
        for name, text in (("prober", probes + AGENT), ("garden", (support / "garden.py").read_text())):
            container.write(f"{PLUGINS}/{name}.py", text, owner="askfirst")
        container.run("chown", "-R", "askfirst:", PLUGINS)
        container.run("chmod", "700", PLUGINS)
        container.write(CONFIG, CONFIGURATION)
        refused = container.run(*install, check=False)
        assert "agents.garden.beds is /srv/exchange/beds.txt" in refused.stderr
        assert "add --allow-path /srv/exchange" in refused.stderr
        missing = container.run(*install, "--allow-path", "/srv/elsewhere", check=False)
        assert "there is no /srv/elsewhere, which agents shall write" in missing.stderr
        container.run(*install, "--allow-path", "/srv/exchange")
        yield container


@pytest.fixture
def service(machine: Container) -> Container:
    """The same, with the service running as it should."""
    if machine.shown("askfirst", "ActiveState") != "active":
        machine.write(CONFIG, CONFIGURATION)
        machine.run("systemctl", "restart", "askfirst")
    return machine


def pid(container: Container) -> int:
    return int(container.shown("askfirst", "MainPID"))


def as_askfirst(container: Container, *words: str, stdin: str | None = None) -> str:
    """What a command writes that the user of the service types."""
    return container.run("runuser", "-u", "askfirst", "--", *words, stdin=stdin).stdout


TITLES = """
import json, sqlite3
database = sqlite3.connect("file:/var/lib/askfirst/askfirst.sqlite3?mode=ro", uri=True, timeout=30)
print(json.dumps(dict(database.execute("select title, id from proposals").fetchall())))
"""


def proposals(container: Container) -> dict[str, int]:
    """Title and number of each proposal, looked up more cheaply than by a command."""
    titles: dict[str, int] = json.loads(as_askfirst(container, "/opt/askfirst/bin/python3", "-c", TITLES))
    return titles


def wait_for_proposals(container: Container) -> dict[str, int]:
    found: dict[str, int] = {}

    def both_are_there() -> bool:
        found.update(proposals(container))
        return len(found) == 2

    try:
        seen_now(both_are_there)
    except TimeoutError as error:
        said = container.journal("--unit=askfirst").splitlines()
        raise AssertionError("\n".join(said[-30:])) from error
    return found


def restarted_after(container: Container, old: int) -> float:
    """Wait until another process runs and is ready; how many seconds it took."""
    began = time.monotonic()
    seen_now(
        lambda: pid(container) not in (0, old) and container.shown("askfirst", "ActiveState") == "active"
    )
    return time.monotonic() - began


def test_it_runs_as_its_own_user_and_says_so(service: Container) -> None:
    assert service.shown("askfirst", "Type") == "notify"
    owner = service.run("stat", "--format=%U", f"/proc/{pid(service)}").stdout.strip()
    assert owner == "askfirst"
    status = service.shown("askfirst", "StatusText")
    assert status.startswith("2 agents, mock mock, ")
    assert "http://127.0.0.1:8484" in status
    assert service.shown("askfirst", "UnitFileState") == "enabled"
    told = service.run("askfirst", "service", "status")
    assert "active (running)" in told.stdout
    assert "ready, http://127.0.0.1:8484" in told.stdout
    assert "works: looked for due agents" in told.stdout


def test_what_is_told_follows_what_happens(service: Container) -> None:
    wait_for_proposals(service)
    seen_now(lambda: "2 proposals waiting" in service.shown("askfirst", "StatusText"))


def test_a_second_installation_changes_nothing(service: Container) -> None:
    before = pid(service)
    done = service.run("askfirst", "service", "install", "--system")
    assert "Installed already, and as it should be." in done.stdout
    assert pid(service) == before
    assert service.read(f"{DROP_INS}/50-mine.conf") == QUICK


def test_the_sandbox_refuses_what_it_should_and_lets_through_what_is_needed(service: Container) -> None:
    number = wait_for_proposals(service)["What the sandbox lets through"]
    shown = as_askfirst(service, "askfirst", "proposals", "show", str(number), "--json", "--config", CONFIG)
    inside = json.loads(shown)["payload"]["results"]
    assert {name: inside[name] for name in prober.MUST_WORK if inside[name] != "ok"} == {}
    assert {name for name in prober.REFUSED if inside[name] == "ok"} == set(), inside
    assert len(prober.REFUSED) >= 25
    source = Path(prober.__file__).read_text()
    outside = json.loads(as_askfirst(service, "/opt/askfirst/bin/python3", "-", stdin=source))
    refused = {name: outside[name] for name in prober.WITHOUT_THE_SANDBOX if outside[name] != "ok"}
    assert refused == {}


def test_an_agent_of_the_owner_writes_the_folder_that_was_allowed(service: Container) -> None:
    number = wait_for_proposals(service)["Water leeks"]
    as_askfirst(service, "askfirst", "proposals", "approve", str(number), "--by", "ana", "--config", CONFIG)
    seen_now(lambda: "leeks wet 5" in service.read("/srv/exchange/beds.txt"))
    told = journal_of(service, f"PROPOSAL_ID={number}", "ASKFIRST_EVENT=proposal changed")
    assert [entry["ASKFIRST_STATUS"] for entry in told] == ["approved", "applying", "applied"]
    assert {(entry["AGENT"], entry["ASKFIRST_BY"], entry["PRIORITY"]) for entry in told} == {
        ("garden", "ana", "6")
    }
    (run,) = {entry["RUN_ID"] for entry in told}
    (found,) = journal_of(service, f"RUN_ID={run}", "LOGGER=askfirst", "ASKFIRST_EVENT=run finished")
    assert (found["ASKFIRST_OUTCOME"], found["ASKFIRST_PROPOSALS"]) == ("succeeded", "1")


def test_the_key_is_the_programs_alone(service: Container) -> None:
    path = "/run/credentials/askfirst.service/llm_api_key"
    for user in ("nobody", "askfirst"):  # not even another program of its user: only who systemd started
        done = service.run("runuser", "-u", user, "--", "cat", "/etc/askfirst/llm_api_key", check=False)
        assert done.returncode != 0, user
    assert service.run("runuser", "-u", "nobody", "--", "cat", path, check=False).returncode != 0
    environment = service.run("cat", f"/proc/{pid(service)}/environ").stdout
    assert "CREDENTIALS_DIRECTORY=" in environment
    assert KEY not in environment
    assert KEY not in service.journal("--output=export")  # every field


def journal_of(container: Container, *wanted: str) -> list[dict[str, Any]]:
    """The journal's entries with these fields, the oldest first."""
    lines = container.run("journalctl", "--output=json", "--no-pager", *wanted).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_its_lines_are_in_the_journal_with_their_values_as_fields(service: Container) -> None:
    seen_now(lambda: bool(journal_of(service, "AGENT=garden", "ASKFIRST_EVENT=run finished")))
    run = journal_of(service, "AGENT=garden", "ASKFIRST_EVENT=run finished")[0]
    assert {name: run[name] for name in ("_TRANSPORT", "_SYSTEMD_UNIT", "SYSLOG_IDENTIFIER", "LOGGER")} == {
        "_TRANSPORT": "journal",
        "_SYSTEMD_UNIT": "askfirst.service",
        "SYSLOG_IDENTIFIER": "askfirst",
        "LOGGER": "askfirst",
    }
    assert run["MESSAGE"].startswith(f"run finished agent=garden run_id={run['RUN_ID']} outcome=succeeded ")
    own = journal_of(service, "_SYSTEMD_UNIT=askfirst.service", "SYSLOG_IDENTIFIER=askfirst")
    assert any(str(entry["MESSAGE"]).startswith("askfirst is running address=") for entry in own)
    service.run("systemctl", "restart", "systemd-journald")  # nobody has to be told of it
    told = len(journal_of(service, "AGENT=garden"))
    seen_now(lambda: len(journal_of(service, "AGENT=garden")) > told)
    shown = service.run("askfirst", "service", "logs", "-n", "500").stdout
    assert "askfirst is running" in shown


def test_a_kill_loses_nothing_and_it_is_started_anew(service: Container) -> None:
    before, old = wait_for_proposals(service), pid(service)
    service.run("systemctl", "kill", "--signal=KILL", "askfirst")
    restarted_after(service, old)
    assert proposals(service).items() >= before.items()
    check = (
        "import sqlite3; database = sqlite3.connect('/var/lib/askfirst/askfirst.sqlite3');"
        "print(database.execute('pragma integrity_check').fetchone()[0])"
    )
    assert as_askfirst(service, "/opt/askfirst/bin/python3", "-c", check).strip() == "ok"


@pytest.mark.parametrize("way", ["stopped by a signal", "its loop blocked by an agent"])
def test_a_program_that_stands_still_is_started_anew_by_the_watchdog(service: Container, way: str) -> None:
    old = pid(service)
    if way == "stopped by a signal":
        service.run("systemctl", "kill", "--signal=STOP", "askfirst")
    else:
        service.write("/var/lib/askfirst/block", "", owner="askfirst")
    seconds = restarted_after(service, old)
    assert seconds < 3 + 2 + 20  # WatchdogSec, as promised; a busy machine starts slowly
    assert "Watchdog timeout" in service.journal("--unit=askfirst")
    assert int(service.shown("askfirst", "NRestarts")) >= 1


def test_it_reads_its_configuration_again_without_being_started_anew(service: Container) -> None:
    old = pid(service)
    service.write(CONFIG, CONFIGURATION.replace('beds = "', 'enabled = false\nbeds = "'))
    service.run("systemctl", "reload", "askfirst")
    seen_now(lambda: service.shown("askfirst", "StatusText").startswith("1 agent, "))
    service.write(CONFIG, CONFIGURATION + "\n[web]\nport = 'no number'\n")
    service.run("systemctl", "reload", "askfirst")
    seen_now(lambda: "web.port" in service.journal("--unit=askfirst"))
    service.write(CONFIG, CONFIGURATION)
    service.run("systemctl", "reload", "askfirst")
    seen_now(lambda: service.shown("askfirst", "StatusText").startswith("2 agents, "))
    assert service.shown("askfirst", "ActiveState") == "active"
    assert pid(service) == old


def test_it_stops_in_time_and_in_good_order(service: Container) -> None:
    began = time.monotonic()
    service.run("systemctl", "stop", "askfirst")
    assert time.monotonic() - began < UNIT_STOP_LIMIT_S
    assert service.shown("askfirst", "Result") == "success"
    assert "stopping reason=SIGTERM" in service.journal("--unit=askfirst")  # the last lines are not lost
    assert service.shown("askfirst", "ExecMainStatus") == "0"
    assert service.shown("askfirst", "ActiveState") == "inactive"
    done = service.run("askfirst", "service", "status", check=False)
    assert (done.returncode, "inactive (dead)" in done.stdout) == (3, True)


def test_a_configuration_that_cannot_work_is_refused_and_not_tried_again(service: Container) -> None:
    service.write(CONFIG, CONFIGURATION + "\n[web]\nport = 'no number'\n")
    refused = service.run("askfirst", "service", "install", "--system", check=False)
    assert refused.returncode == ExitCode.CONFIGURATION
    assert "web.port" in refused.stderr
    assert service.run("systemctl", "restart", "askfirst", check=False).returncode != 0
    assert service.shown("askfirst", "ActiveState") == "failed"
    assert service.shown("askfirst", "ExecMainStatus") == str(int(ExitCode.CONFIGURATION))
    restarts = service.shown("askfirst", "NRestarts")
    time.sleep(1.5)  # five times RestartSec
    assert service.shown("askfirst", "NRestarts") == restarts
    assert service.shown("askfirst", "ActiveState") == "failed"
    told = service.run("askfirst", "service", "status", check=False)
    assert (told.returncode, "Its configuration cannot work" in told.stdout) == (3, True)


def test_doctor_looks_at_what_was_installed(service: Container) -> None:
    said = service.run("askfirst", "doctor", "--config", CONFIG, check=False).stdout
    assert "ok    service: /etc/systemd/system/askfirst.service is as this version writes it" in said
    service.run("sed", "-i", "s/^RestartSec=5/RestartSec=50/", "/etc/systemd/system/askfirst.service")
    said = service.run("askfirst", "doctor", "--config", CONFIG, check=False).stdout
    assert "was changed by hand" in said
    done = service.run("askfirst", "service", "install", "--system")
    assert "kept what was there as /etc/systemd/system/askfirst.service.yours" in done.stdout
    assert "RestartSec=50" in service.read("/etc/systemd/system/askfirst.service.yours")


def test_a_user_installs_it_without_root(machine: Container) -> None:
    machine.run("systemctl", "stop", "askfirst")  # the port is the same
    machine.run("useradd", "--create-home", "ana")
    machine.run("loginctl", "enable-linger", "ana")
    seen_now(
        lambda: machine.run("systemctl", "is-active", "user@1000", check=False).stdout.strip() == "active"
    )
    machine.write("/home/ana/.config/askfirst/askfirst.toml", '[llm]\nbackend = "mock"\n')
    machine.run("chown", "-R", "ana:", "/home/ana")

    def as_ana(*words: str, check: bool = True) -> str:
        home = ("env", "HOME=/home/ana", "USER=ana")
        return machine.run("runuser", "-u", "ana", "--", *home, *words, check=check).stdout

    as_ana("askfirst", "service", "install", "--user")
    assert "Installed already, and as it should be." in as_ana("askfirst", "service", "install", "--user")
    told = as_ana("askfirst", "service", "status")
    assert "/home/ana/.config/systemd/user/askfirst.service: active (running)" in told
    assert "ready, http://127.0.0.1:8484" in told
    data = as_ana("ls", "/home/ana/.local/state/askfirst")
    assert "askfirst.sqlite3" in data
    said = as_ana("askfirst", "service", "uninstall", "--user")
    assert "the data stay: /home/ana/.local/state/askfirst" in said
    assert machine.run(
        "test", "-e", "/home/ana/.config/systemd/user/askfirst.service", check=False
    ).returncode
    assert "askfirst.sqlite3" in as_ana("ls", "/home/ana/.local/state/askfirst")


def test_it_is_removed_and_its_data_stay(service: Container) -> None:
    """The last one: nothing is left to look at."""
    said = service.run("askfirst", "service", "uninstall", "--system").stdout
    assert "the data stay: /var/lib/askfirst" in said
    assert "your own drop-ins stay" in said
    assert service.shown("askfirst", "LoadState") != "loaded"
    assert service.run("test", "-e", "/etc/systemd/system/askfirst.service", check=False).returncode == 1
    assert service.read(f"{DROP_INS}/50-mine.conf") == QUICK
    assert proposals(service)
    assert "It is not installed." in service.run("askfirst", "service", "uninstall", "--system").stdout
