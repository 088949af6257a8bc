"""`askfirst agents hook`: an address and a token to copy, and the running program that answers there."""

from __future__ import annotations

import re
import shlex
import signal
import stat
from pathlib import Path

import httpx
import pytest

from tests.support.program import Program
from tests.support.waiting import seen_now


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program.with_garden(tmp_path, "leeks dry", settings="webhook = true")


def configure(program: Program, old: str, new: str) -> Path:
    path = program.folder / "config" / "askfirst.toml"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    return path


def test_it_shows_a_line_to_copy_and_the_same_one_again(program: Program) -> None:
    configure(program, "port = 0", "port = 8123")
    first = program.call("agents", "hook", "garden")
    assert first.code == 0, first
    match = re.fullmatch(
        r"curl -X POST -H 'Authorization: Bearer ([\w-]{43})' http://127\.0\.0\.1:8123/hooks/garden\n",
        first.out,
    )
    assert match
    assert program.call("agents", "hook", "garden").out == first.out
    file = program.folder / "data" / "hooks" / "garden"
    assert file.read_text(encoding="utf-8") == f"{match[1]}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    data = program.call("agents", "hook", "garden", "--json").data
    assert data == {
        "agent": "garden",
        "url": "http://127.0.0.1:8123/hooks/garden",
        "token": match[1],
        "made": False,
        "file": str(file),
        "curl": first.out.strip(),
    }


def test_it_makes_a_new_token_on_demand(program: Program) -> None:
    old = program.call("agents", "hook", "garden", "--json").data
    new = program.call("agents", "hook", "garden", "--renew", "--json").data
    assert (old["made"], new["made"]) == (True, True)
    assert old["token"] != new["token"]


def test_it_makes_the_data_folder_where_there_is_none_yet(program: Program) -> None:
    configure(program, '"../data"', '"../fresh/data"\nplugin_dir = "../data/plugins"')
    assert program.call("agents", "hook", "garden").code == 0
    folder = program.folder / "fresh" / "data"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "hooks" / "garden").is_file()


@pytest.mark.parametrize(
    ("web", "address", "said"),
    [
        ('host = "0.0.0.0"\nport = 8123', "http://127.0.0.1:8123/", ""),
        ('host = "::"\nport = 8123', "http://[::1]:8123/", ""),
        ('host = "::1"\nport = 8123', "http://[::1]:8123/", ""),
        ('host = "pi.lan"\nport = 8123', "http://pi.lan:8123/", ""),
        ("port = 0", "http://127.0.0.1:PORT/", "PORT is another one at each start (web.port is 0)"),
        ("enabled = false", "http://127.0.0.1:8484/", "Nobody answers there: web.enabled is false."),
    ],
)
def test_the_address_is_the_one_of_the_settings(program: Program, web: str, address: str, said: str) -> None:
    configure(program, "port = 0", web)
    done = program.call("agents", "hook", "garden")
    assert address in done.out
    assert said in done.out
    assert len(done.out.splitlines()) == (2 if said else 1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("plain", "agents.plain: it takes no webhook; add webhook = true"),
        ("gardn", "agents: there is no table [agents.gardn]; did you mean 'garden'?"),
        ("../x", "agents: there is no table [agents.../x]"),
    ],
)
def test_an_agent_without_a_webhook_gets_no_token(program: Program, name: str, said: str) -> None:
    path = configure(program, "webhook = true", "webhook = true\n[agents.plain]")
    done = program.call("agents", "hook", name)
    assert done.code == 78
    assert said in done.err
    assert str(path) in done.err
    assert not (program.folder / "data" / "hooks").exists()


@pytest.mark.process
def test_the_running_program_runs_the_agent_when_it_is_asked_to(program: Program) -> None:
    data = program.call("agents", "hook", "garden", "--json").data
    lines: list[str] = []
    with program.running("run", ASKFIRST_DAEMON__LOG_FORMAT="json") as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if '"askfirst is running"' in line:
                break
        found = re.search(r'"address": ?"(http://[^"]+)"', lines[-1])
        assert found, lines
        url = f"{found[1]}/hooks/garden"
        headers = {"Authorization": f"Bearer {data['token']}"}
        with httpx.Client(trust_env=False) as client:
            assert client.post(url).status_code == 401
            assert client.post(url, headers=headers).json() == {"agent": "garden", "taken": True}
            seen_now(lambda: '"webhook"' in program.call("runs", "list", "--json").out)
            renewed = program.call("agents", "hook", "garden", "--renew", "--json").data
            assert client.post(url, headers=headers).status_code == 401
            line = shlex.split(renewed["curl"].replace("http://127.0.0.1:PORT", found[1]))
            assert line == ["curl", "-X", "POST", "-H", f"Authorization: Bearer {renewed['token']}", url]
            name, _, value = line[4].partition(": ")
            assert client.post(line[5], headers={name: value}).status_code == 202
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert data["token"] not in "".join(lines) + process.stderr.read()
