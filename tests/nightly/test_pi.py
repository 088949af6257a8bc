"""The whole program on a Raspberry Pi's userland: aarch64, Debian's Python, the wheels that a Pi gets."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.support.pi import ROOT, Pi, a_pi
from tests.support.waiting import seen_now

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3600)]

CONFIGURATION = """
[daemon]
data_dir = "/var/lib/askfirst/data"

[web]
port = 0

[agents.matchmaker]
every = "1s"
source = "csv"
folder = "/var/lib/askfirst/examples"
"""
CONFIG = ("--config", "/var/lib/askfirst/askfirst.toml")


@pytest.fixture(scope="module")
def pi() -> Pi:
    made = a_pi()
    home = made.root / "var" / "lib" / "askfirst"
    home.mkdir(parents=True, exist_ok=True)
    for name in ("data", "examples"):
        shutil.rmtree(home / name, ignore_errors=True)
    shutil.copytree(ROOT / "config" / "examples", home / "examples")
    (home / "askfirst.toml").write_text(CONFIGURATION)
    return made


def test_it_proposes_applies_and_takes_back(pi: Pi) -> None:
    once = pi.run("--once", *CONFIG)
    assert once.returncode == 0, once.stderr
    listed = pi.run("proposals", "list", "--json", *CONFIG)
    proposals = json.loads(listed.stdout)
    assert proposals, listed.stderr
    number = str(proposals[-1]["id"])
    for command in ("approve", "undo"):
        done = pi.run("proposals", command, number, "--by", "ana", *CONFIG)
        assert done.returncode == 0, done.stderr


def test_the_daemon_runs_its_agents_answers_and_stops(pi: Pi, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def lines(event: str) -> list[dict[str, object]]:
        text = log.read_text().splitlines()
        found = [json.loads(line) for line in text if line.startswith("{") and line.endswith("}")]
        return [line for line in found if line["event"] == event]

    with log.open("wb") as stream:
        process = subprocess.Popen(pi.command("run", *CONFIG), stderr=stream)
    try:
        seen_now(lambda: len(lines("run finished")) >= 3, limit=600)
        address = lines("askfirst is running")[0]["address"]
        with urllib.request.urlopen(f"{address}/readyz", timeout=60) as response:
            assert json.loads(response.read())["status"] == "ready"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        if process.poll() is None:
            process.kill()
    assert lines("stopping")


def test_the_doctor_finds_nothing_wrong(pi: Pi) -> None:
    done = pi.run("doctor", "--json", *CONFIG)
    failed = [check for check in json.loads(done.stdout)["checks"] if check["state"] == "fail"]
    assert failed == []
