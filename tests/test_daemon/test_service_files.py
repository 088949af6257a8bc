"""The files that make it a service, and the page that tells how to use them."""

from __future__ import annotations

import configparser
import json
import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from daemon.app import CLOSE_LIMIT_S
from daemon.crew import CANCEL_LIMIT_S
from daemon.errors import ExitCode
from daemon.observability.metrics import Metrics
from daemon.settings import DaemonSettings
from llm.events import CallFailed, CallFinished

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd" / "askfirst.service"
PLIST = ROOT / "systemd" / "org.askfirst.daemon.plist"
PAGE = (ROOT / "docs" / "operations.md").read_text()

PLIST_KEYS = frozenset(
    [
        "Label",
        "ProgramArguments",
        "WorkingDirectory",
        "RunAtLoad",
        "KeepAlive",
        "ThrottleInterval",
        "ExitTimeOut",
        "ProcessType",
        "Umask",
        "StandardOutPath",
        "StandardErrorPath",
        "EnvironmentVariables",
        "Nice",
        "LowPriorityIO",
        "SoftResourceLimits",
    ]
)
"""Of launchd.plist(5): launchd ignores a key that it does not know without a word."""


def unit() -> dict[str, dict[str, list[str]]]:
    """The unit's sections; a key may stand several times."""
    sections: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            current.setdefault(key, []).append(value)
    return sections


def one(section: str, key: str) -> str:
    (value,) = unit()[section][key]
    return value


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is missing; it comes with systemd")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_systemd_has_nothing_to_complain_about(tmp_path: Path) -> None:
    here = tmp_path / UNIT.name
    # The program is not installed in /opt here, and systemd-analyze looks whether it is there.
    here.write_text(UNIT.read_text().replace("/opt/askfirst/bin/askfirst", sys.executable))
    done = systemd_analyze("verify", str(here))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_systemd_does_complain_about_a_mistake(tmp_path: Path) -> None:
    here = tmp_path / UNIT.name
    here.write_text(UNIT.read_text().replace("Restart=always", "Restart=perhaps"))
    done = systemd_analyze("verify", str(here))
    assert "perhaps" in done.stdout + done.stderr


def test_the_unit_is_exposed_no_more_than_1_0(tmp_path: Path) -> None:
    done = systemd_analyze("security", "--offline=true", "--threshold=10", str(UNIT))
    assert done.returncode == 0, done.stdout


def test_the_unit_waits_for_ready_and_is_restarted_for_ever_but_not_with_a_bad_configuration() -> None:
    assert one("Service", "Type") == "notify"
    assert one("Service", "Restart") == "always"
    assert one("Unit", "StartLimitIntervalSec") == "0"
    assert int(one("Service", "RestartPreventExitStatus")) == ExitCode.CONFIGURATION


def test_the_unit_gives_stopping_more_time_than_it_takes() -> None:
    grace = DaemonSettings().stop_grace.total_seconds()
    limits = grace + CANCEL_LIMIT_S + 2 * CLOSE_LIMIT_S
    assert limits < float(one("Service", "TimeoutStopSec"))
    assert limits < plist()["ExitTimeOut"]


def test_the_units_data_folder_is_its_own_and_only_its_users() -> None:
    assert one("Service", "User") == "askfirst"
    assert one("Service", "StateDirectory") == "askfirst"
    assert one("Service", "StateDirectoryMode") == "0700"
    assert one("Service", "UMask") == "0077"
    assert "-/var/lib/askfirst" in one("Service", "NoExecPaths").split()


def plist() -> dict[str, Any]:
    loaded: dict[str, Any] = plistlib.loads(PLIST.read_bytes())
    return loaded


def test_the_plist_is_one_that_launchd_knows_and_keeps_the_program_alive() -> None:
    found = plist()
    assert set(found) <= PLIST_KEYS
    assert found["Label"] == PLIST.stem
    assert found["KeepAlive"] is True
    assert found["RunAtLoad"] is True
    assert found["ProcessType"] != "Background"  # a model would be slowed down to a crawl
    assert found["Umask"] == 0o077


def test_no_path_of_the_plist_needs_a_shell() -> None:
    paths = [text for text in json.dumps(plist()).split('"') if "/" in text]
    assert paths
    assert [path for path in paths if not path.startswith("/") or "~" in path or "$" in path] == []


@pytest.mark.parametrize("command", ["systemd", "launchd"])
def test_the_service_starts_a_command_line_that_the_program_understands(command: str) -> None:
    started = one("Service", "ExecStart").split() if command == "systemd" else plist()["ProgramArguments"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "daemon", *started[1:], "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "--config" in started


def test_the_page_names_the_paths_that_the_services_use() -> None:
    paths = {
        one("Service", "ExecStart").split()[-1],
        *plist()["ProgramArguments"][2:4:1],
        plist()["StandardErrorPath"],
    }
    for path in paths - {"run", "--config"}:
        assert path in PAGE


def test_the_pages_configuration_works() -> None:
    import tomllib

    blocks = re.findall(r"<<'END'\n(.*?)^END$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert "matchmaker" in tomllib.loads(block)["agents"]
        assert tomllib.loads(block)["daemon"]["data_dir"].startswith("/")


def test_the_pages_drop_in_is_one_that_systemd_understands(tmp_path: Path) -> None:
    (lines,) = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    parser = configparser.ConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's keys have capitals
    parser.read_string(lines)
    here = tmp_path / UNIT.name
    settings = "\n".join(f"{key}={value}" for key, value in parser["Service"].items())
    text = UNIT.read_text().replace("/opt/askfirst/bin/askfirst", sys.executable)
    here.write_text(text.replace("[Install]", f"{settings}\n\n[Install]"))
    done = systemd_analyze("verify", str(here))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


async def test_the_page_lists_every_metric_and_no_other() -> None:
    metrics = Metrics()
    metrics.expect_agents(["a"])
    metrics.observe_call(
        CallFinished(backend="mock", model="m", latency=1.0, prompt_tokens=1, completion_tokens=1)
    )
    metrics.observe_call(CallFailed(backend="mock", model="m", latency=1.0, code="timeout"))
    text = (await metrics.scrape())[0].decode()
    real = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    told = set(re.findall(r"^\| `([a-z_]+)` \|", PAGE, re.MULTILINE))
    assert told == real


def test_the_page_tells_every_exit_code() -> None:
    told = set(map(int, re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)))
    assert told == {code for code in ExitCode if code is not ExitCode.TEMPORARY}
