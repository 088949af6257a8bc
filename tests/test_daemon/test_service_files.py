"""The files that make it a service, and the page that tells how to use them."""

from __future__ import annotations

import configparser
import json
import os
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
from daemon.install.launchd import KEYS
from daemon.lifecycle import EXIT_LIMIT_S, HURRIED_LIMIT_S, UNIT_STOP_LIMIT_S, watchdog_interval
from daemon.observability.catalogue import METRICS
from daemon.settings import DaemonSettings
from daemon.timer import LOOK_EVERY_S

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd" / "askfirst.service"
USER_UNIT = ROOT / "systemd" / "askfirst-user.service"
DROP_INS = sorted((ROOT / "systemd" / "drop-ins").glob("*.conf"))
PLIST = ROOT / "systemd" / "org.askfirst.daemon.plist"
PAGE = (ROOT / "docs" / "operations.md").read_text()


def unit(file: Path = UNIT) -> dict[str, dict[str, list[str]]]:
    """The unit's sections; a key may stand several times."""
    sections: dict[str, dict[str, list[str]]] = {}
    current: dict[str, list[str]] = {}
    for line in file.read_text().splitlines():
        if line.startswith("["):
            current = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            current.setdefault(key, []).append(value)
    return sections


def one(section: str, key: str, file: Path = UNIT) -> str:
    (value,) = unit(file)[section][key]
    return value


def systemd_analyze(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is missing; it comes with systemd")
    return subprocess.run(
        [tool, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def verify(folder: Path, text: str, *options: str) -> tuple[int, str]:
    """What systemd thinks of a unit; the program that it starts is one that is here."""
    here = folder / UNIT.name
    here.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE))
    done = systemd_analyze(*options, "verify", str(here), XDG_RUNTIME_DIR=str(folder))
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("file", "options"), [(UNIT, ()), (USER_UNIT, ("--user",))])
def test_systemd_has_nothing_to_complain_about(file: Path, options: tuple[str, ...], tmp_path: Path) -> None:
    assert verify(tmp_path, file.read_text(), *options) == (0, "")


@pytest.mark.parametrize("drop_in", DROP_INS, ids=lambda path: path.stem)
def test_systemd_has_nothing_to_complain_about_in_a_drop_in(drop_in: Path, tmp_path: Path) -> None:
    (tmp_path / "askfirst.service.d").mkdir()
    shutil.copy(drop_in, tmp_path / "askfirst.service.d")
    assert verify(tmp_path, UNIT.read_text()) == (0, "")


def test_systemd_does_complain_about_a_mistake(tmp_path: Path) -> None:
    assert "perhaps" in verify(tmp_path, UNIT.read_text().replace("Restart=always", "Restart=perhaps"))[1]
    (tmp_path / "askfirst.service.d").mkdir()
    (tmp_path / "askfirst.service.d" / "a.conf").write_text("[Service]\nMemoryMax=plenty\n")
    assert "plenty" in verify(tmp_path, UNIT.read_text())[1]


def test_the_unit_is_exposed_no_more_than_1_0(tmp_path: Path) -> None:
    done = systemd_analyze("security", "--offline=true", "--threshold=10", str(UNIT))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", [UNIT, USER_UNIT])
def test_the_unit_waits_for_ready_and_is_restarted_for_ever_but_not_with_a_bad_configuration(
    file: Path,
) -> None:
    assert one("Service", "Type", file) == "notify"
    assert one("Service", "Restart", file) == "always"
    assert one("Unit", "StartLimitIntervalSec", file) == "0"
    assert int(one("Service", "RestartPreventExitStatus", file)) == ExitCode.CONFIGURATION


def test_the_unit_gives_stopping_more_time_than_it_takes() -> None:
    grace = DaemonSettings().stop_grace.total_seconds()
    stages = (grace + CANCEL_LIMIT_S + CLOSE_LIMIT_S, CLOSE_LIMIT_S)
    longest = sum(limit + HURRIED_LIMIT_S for limit in stages) + EXIT_LIMIT_S
    for given in (one("Service", "TimeoutStopSec"), one("Service", "TimeoutStopSec", USER_UNIT)):
        assert longest < float(given) == UNIT_STOP_LIMIT_S
    assert longest < plist()["ExitTimeOut"]


@pytest.mark.parametrize("file", [UNIT, USER_UNIT])
def test_the_watchdog_wakes_an_idle_machine_as_seldom_as_the_scheduler_does(file: Path) -> None:
    interval = watchdog_interval({"WATCHDOG_USEC": str(int(one("Service", "WatchdogSec", file)) * 1_000_000)})
    assert interval == LOOK_EVERY_S
    assert 1 / interval + 1 / LOOK_EVERY_S < 0.2  # wake-ups a second, the scheduler's own look among them


@pytest.mark.parametrize("file", [UNIT, USER_UNIT])
def test_a_process_that_uses_too_much_is_ended_at_once_and_alone(file: Path) -> None:
    found = unit(file)["Service"]
    assert (found["MemoryMax"], found["MemorySwapMax"]) == (["1G"], ["0"])
    assert "MemoryHigh" not in found  # with it a leak crawls instead of being ended
    assert found["OOMPolicy"] == ["continue"]
    assert int(found["TasksMax"][0]) >= 200
    assert found["KillMode"] == ["mixed"]  # our own processes are stopped by the program, in order


def test_a_users_unit_claims_nothing_that_a_users_manager_cannot_do() -> None:
    """Without root there is no mount namespace and no filter of addresses; systemd ignores them silently."""
    claims = ("Protect", "Private", "ReadWritePaths", "NoExecPaths", "IPAddress", "User", "StateDirectory")
    assert [key for key in unit(USER_UNIT)["Service"] if key.startswith(claims)] == []


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
    assert set(found) <= KEYS
    assert found["Label"] == PLIST.stem
    assert found["KeepAlive"] == {"SuccessfulExit": False}
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


def test_the_page_names_the_configurations_that_the_services_use() -> None:
    assert one("Service", "ExecStart").split()[-1] in PAGE
    assert plist()["ProgramArguments"][-1] in PAGE


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


def test_the_page_begins_with_metrics_that_there_are_and_links_to_all_of_them() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| ([a-z, ]*)\|", PAGE, re.MULTILINE)
    told = {name: tuple(filter(None, labels.strip().split(", "))) for name, labels in rows}
    assert len(told) >= 5
    short = {
        name: tuple(label.split("_")[-2 if label.endswith("_name") else -1] for label in METRICS[name].labels)
        for name in told
    }
    assert told == short
    assert "](metrics.md)" in PAGE


def test_the_page_tells_every_exit_code() -> None:
    told = set(map(int, re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)))
    of_single_commands = {ExitCode.TEMPORARY, ExitCode.NOT_RUNNING}  # docs/cli.md tells them
    assert told == set(ExitCode) - of_single_commands
