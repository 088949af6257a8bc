"""`askfirst service`: what it would write, what it writes into a scratch machine, and what it says."""

from __future__ import annotations

import json
import os
import plistlib
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from daemon.install.launchd import KEYS
from daemon.install.marked import is_untouched
from daemon.install.site import program_of
from tests.support.program import Ended, Program

UNIT = Path("etc/systemd/system/askfirst.service")
DROP_IN = Path("etc/systemd/system/askfirst.service.d/10-install.conf")
CONFIG = Path("etc/askfirst/askfirst.toml")
WORKS = '[daemon]\ndata_dir = "/var/lib/askfirst"\n[llm]\nbackend = "mock"\n'


class Scratch:
    """A folder that stands for a machine, and the program that installs into it."""

    def __init__(self, folder: Path, platform: str = "linux") -> None:
        self.root = folder / "machine"
        self.root.mkdir()
        self.home = folder / "home"
        self.program = Program(folder)
        self.platform = platform

    def service(self, *words: str, **environment: str) -> Ended:
        return self.program.call(
            "service", *words, "--platform", self.platform, "--root", str(self.root), **environment
        )

    def configured(self, text: str = WORKS) -> None:
        self.write(CONFIG, text)

    def write(self, path: Path, text: str, mode: int = 0o644) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)

    def read(self, path: Path) -> str:
        return (self.root / path).read_text()

    def files(self) -> dict[str, tuple[int, str]]:
        """Every file there with its mode and text."""
        return {
            str(path.relative_to(self.root)): (path.stat().st_mode & 0o777, path.read_text())
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path)


@pytest.fixture
def mac(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path, "macos")


def settings_of(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


def test_a_dry_run_prints_the_unit_first_and_changes_nothing(scratch: Scratch) -> None:
    ended = scratch.service("install", "--user", "--dry-run")
    assert ended.code == 0, ended
    assert ended.out.startswith("# Written by `askfirst service install`")
    unit, _, rest = ended.out.partition("\nIt would\n")
    assert settings_of(unit, "Type") == ["notify"]
    config = scratch.home / ".config/askfirst/askfirst.toml"
    assert settings_of(unit, "ExecStart") == [f"{program_of()} run --config {config}"]
    assert f"write {scratch.home}/.config/systemd/user/askfirst.service" in rest
    assert "run systemctl --user enable askfirst, which starts it with the machine" in rest
    assert "sudo loginctl enable-linger" in rest
    assert f"there is no configuration {config}" in rest
    assert scratch.files() == {}


def test_a_dry_run_in_json_is_the_same_as_data(scratch: Scratch) -> None:
    scratch.configured()
    ended = scratch.service("install", "--system", "--dry-run", "--allow-path", "/srv/exchange", "--json")
    told = ended.data
    assert told["files"][0]["path"] == f"/{UNIT}"
    assert "ReadWritePaths=-/srv/exchange" in told["files"][2]["text"] + told["files"][1]["text"]
    assert told["refused_because"] == []
    assert list(scratch.files()) == [str(CONFIG)]


@pytest.mark.process
def test_the_unit_is_printed_by_the_real_program_without_systemd_and_without_root(tmp_path: Path) -> None:
    ended = Program(tmp_path).run("service", "install", "--user", "--dry-run")
    assert ended.code == 0, ended
    assert "WatchdogSec=60" in ended.out.splitlines()
    assert not (tmp_path / "home" / ".config").exists()


def test_the_system_service_is_installed_and_a_second_time_nothing_changes(scratch: Scratch) -> None:
    scratch.configured()
    first = scratch.service("install", "--system")
    assert first.code == 0, first
    assert f"wrote /{UNIT}" in first.out
    unit = scratch.read(UNIT)
    assert settings_of(unit, "ExecStart") == [f"{program_of()} run --config {scratch.root / CONFIG}"] or (
        settings_of(unit, "ExecStart") == [f"{program_of()} run --config /{CONFIG}"]
    )
    assert settings_of(unit, "User") == ["askfirst"]
    assert str(Path(program_of()).parents[1]) in settings_of(unit, "ExecPaths")[0].split()
    assert is_untouched(unit)
    assert (scratch.root / "var/lib/askfirst").stat().st_mode & 0o777 == 0o700
    before = scratch.files()
    assert before[str(UNIT)][0] == 0o644
    second = scratch.service("install", "--system")
    assert second.out.splitlines()[0] == "Installed already, and as it should be."
    assert scratch.files() == before


def test_what_was_allowed_stays_so_until_it_is_forgotten(scratch: Scratch) -> None:
    scratch.configured()
    scratch.write(Path("etc/askfirst/key"), "secret", 0o600)
    words = ("--allow-path", "/srv/ex change", "--allow-device", "/dev/ttyUSB0", "--memory", "3G")
    more = ("--allow-address", "192.168.1.20", "--credential", "llm_api_key=/etc/askfirst/key")
    assert scratch.service("install", "--system", *words).code == 0
    assert scratch.service("install", "--system", *more).code == 0
    drop_in = scratch.read(DROP_IN)
    assert settings_of(drop_in, "ReadWritePaths") == ['"-/srv/ex change"']
    assert settings_of(drop_in, "NoExecPaths") == ['"-/srv/ex change"']
    assert settings_of(drop_in, "DeviceAllow") == ["/dev/ttyUSB0 rw"]
    assert settings_of(drop_in, "PrivateDevices") == ["no"]
    assert settings_of(drop_in, "IPAddressAllow") == ["192.168.1.20"]
    assert settings_of(drop_in, "LoadCredential") == ["llm_api_key:/etc/askfirst/key"]
    assert settings_of(drop_in, "MemoryMax") == ["3G"]
    assert "secret" not in drop_in
    assert scratch.service("install", "--system", "--memory", "2G").code == 0
    assert settings_of(scratch.read(DROP_IN), "MemoryMax") == ["2G"]
    assert settings_of(scratch.read(DROP_IN), "DeviceAllow") == ["/dev/ttyUSB0 rw"]
    assert scratch.service("install", "--system", "--fresh").code == 0
    assert not (scratch.root / DROP_IN).exists()


def test_a_folder_in_a_home_is_shown_alone(scratch: Scratch) -> None:
    scratch.configured()
    assert scratch.service("install", "--system", "--allow-path", "/home/ana/exchange").code == 0
    drop_in = scratch.read(DROP_IN)
    assert settings_of(drop_in, "ProtectHome") == ["tmpfs"]
    assert settings_of(drop_in, "BindPaths") == ["-/home/ana/exchange"]


def test_ones_own_drop_ins_are_kept_and_a_changed_unit_is_put_beside(scratch: Scratch) -> None:
    scratch.configured()
    mine = UNIT.parent / "askfirst.service.d" / "50-mine.conf"
    scratch.write(mine, "[Service]\nNice=5\n")
    scratch.write(UNIT, "[Service]\nExecStart=/bin/true\n")  # copied by hand, before there was an installer
    ended = scratch.service("install", "--system")
    assert f"kept what was there as /{UNIT}.yours" in ended.out
    assert "your own drop-ins count too: 50-mine.conf" in ended.out
    assert "ExecStart=/bin/true" in scratch.read(UNIT.with_name("askfirst.service.yours"))
    scratch.write(UNIT, scratch.read(UNIT).replace("RestartSec=5", "RestartSec=50"))
    assert f"kept what was there as /{UNIT}.yours" in scratch.service("install", "--system").out
    assert "RestartSec=50" in scratch.read(UNIT.with_name("askfirst.service.yours"))
    assert settings_of(scratch.read(UNIT), "RestartSec") == ["5"]
    assert scratch.read(mine) == "[Service]\nNice=5\n"


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, 78, "there is no configuration"),
        ("[web]\nport = 'x'\n", 78, "web.port"),
        ("[agents.nobody]\n", 78, "there is no such agent"),
        ("[llm\n", 78, "askfirst.toml"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    text: str | None, code: int, said: str, scratch: Scratch
) -> None:
    if text is not None:
        scratch.configured(text)
    before = scratch.files()
    ended = scratch.service("install", "--system")
    assert (ended.code, said in ended.err) == (code, True), ended
    assert "the service was not installed" in ended.err
    assert scratch.files() == before


MATCHMAKER = '[agents.matchmaker]\nsource = "{source}"\n{key} = "{path}"\n'


BIG = """
[llm.backends.big]
backend = "remote"
model = "m"
api_key = "k"
api_base = "https://[2001:db8::5]/v1"
"""


@pytest.mark.parametrize(
    ("text", "option", "why"),
    [
        (
            MATCHMAKER.format(source="csv", key="folder", path="/srv/ex"),
            "--allow-path /srv/ex",
            "folder is /srv/ex",
        ),
        (
            MATCHMAKER.format(source="sqlite", key="database", path="/srv/pantry.db"),
            "--allow-path /srv",
            "agents.matchmaker.database is /srv/pantry.db",
        ),
        (
            '[llm]\nbackend = "ollama"\napi_base = "http://192.168.1.20:11434"\n',
            "--allow-address 192.168.1.20",
            "llm is at",
        ),
        (
            '[llm]\nbackend = "ollama"\napi_base = "http://nas.lan:11434"\n',
            "--allow-network",
            "addresses may change",
        ),
        (
            '[llm]\nbackend = "remote"\nmodel = "m"\napi_key = "k"\n',
            "--allow-network",
            "llm is a remote service",
        ),
        (
            BIG,
            "--allow-address 2001:db8::5",
            "llm.backends.big is at 2001:db8::5",
        ),
        ('[daemon]\nping_url = "https://hc.example/secret-id"\n', "--allow-network", "daemon.ping_url"),
        (
            '[backup]\ndir = "/mnt/usb/backups"\n',
            "--allow-path /mnt/usb/backups",
            "backup.dir is /mnt/usb/backups",
        ),
    ],
)
def test_what_the_configuration_needs_is_asked_for_with_the_reason(
    text: str, option: str, why: str, scratch: Scratch
) -> None:
    scratch.configured(text)
    refused = scratch.service("install", "--system")
    assert refused.code == 1, refused
    assert why in refused.err
    assert f"add {option}" in refused.err
    assert "secret-id" not in refused.err
    assert not (scratch.root / UNIT).exists()
    shown = scratch.service("install", "--system", "--dry-run", "--allow-needed")
    assert f"{option}, because" in shown.out
    assert scratch.service("install", "--system", *option.split()).code == 0
    assert scratch.service("install", "--system", "--fresh", "--allow-needed").code == 0
    assert scratch.service("install", "--system").out.startswith("Installed already")


@pytest.mark.parametrize(
    "text",
    [
        '[llm]\nbackend = "ollama"\napi_base = "http://localhost:11434"\n',
        '[llm]\nbackend = "ollama"\napi_base = "http://127.0.0.1:11434"\n',
        '[llm]\nbackend = "llamacpp"\n',
        '[daemon]\nping_url = "http://127.0.0.1:8000/x"\n',
        MATCHMAKER.format(source="csv", key="folder", path="/var/lib/askfirst/exchange"),
    ],
)
def test_what_the_sandbox_allows_anyway_needs_nothing(text: str, scratch: Scratch) -> None:
    if "[daemon]" not in text:
        text = f'[daemon]\ndata_dir = "/var/lib/askfirst"\n{text}'
    scratch.configured(text)
    assert scratch.service("install", "--system").code == 0


def test_a_network_that_holds_the_address_is_enough(scratch: Scratch) -> None:
    scratch.configured('[llm]\nbackend = "ollama"\napi_base = "http://192.168.1.20:11434"\n')
    assert scratch.service("install", "--system", "--allow-address", "10.0.0.0/8").code == 1
    assert scratch.service("install", "--system", "--allow-address", "192.168.1.0/24").code == 0


def test_a_key_that_others_may_read_is_refused(scratch: Scratch) -> None:
    scratch.configured()
    words = ("install", "--system", "--credential", "llm_api_key=/etc/askfirst/key")
    assert "has no file /etc/askfirst/key" in scratch.service(*words).err
    scratch.write(Path("etc/askfirst/key"), "k", 0o644)
    assert "chmod 600 /etc/askfirst/key" in scratch.service(*words).err
    scratch.write(Path("etc/askfirst/key"), "k", 0o600)
    assert scratch.service(*words).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--allow-path", "exchange"), "by its whole path"),
        (("--allow-path", "/srv/../etc"), "by its whole path"),
        (("--allow-path", "/"), "by its whole path"),
        (("--allow-path", "/srv/a\nExecStart=/bin/sh"), "by its whole path"),
        (("--allow-device", "/srv/x"), "such as /dev/ttyUSB0"),
        (("--allow-address", "nas.lan"), "use --allow-network"),
        (("--credential", "/etc/key"), "write NAME=FILE"),
        (("--credential", "a b=/etc/key"), "write NAME=FILE"),
        (("--memory", "lots"), "such as 1536M or 3G"),
    ],
)
def test_what_cannot_be_granted_is_said(words: tuple[str, str], said: str, scratch: Scratch) -> None:
    scratch.configured()
    ended = scratch.service("install", "--system", *words)
    assert (ended.code, said in ended.err) == (1, True), ended


def test_a_key_file_that_the_services_user_cannot_read_is_refused_with_the_better_way(
    scratch: Scratch,
) -> None:
    key = scratch.root / "etc/askfirst/key"
    text = f'[llm]\nbackend = "remote"\nmodel = "m"\napi_key_file = "{key}"\n'
    scratch.write(Path("etc/askfirst/key"), "k", 0o600)
    scratch.configured(text)
    words = ("install", "--system", "--allow-network", "--run-as", "nobody-of-that-name")
    refused = scratch.service(*words)
    assert f"hand the file over with --credential llm_api_key={key}" in refused.err
    key.chmod(0o644)
    assert scratch.service(*words, "--dry-run", "--json").data["refused_because"] == []


def test_variables_of_the_shell_are_not_the_services(scratch: Scratch) -> None:
    scratch.configured()
    said = scratch.service("install", "--system", "--dry-run", LLM_MODEL="m").out
    assert "the service sees no variable of your shell" in said
    assert "LLM_MODEL" in said


def test_a_database_that_commands_would_not_find_is_told(scratch: Scratch) -> None:
    scratch.configured('[llm]\nbackend = "mock"\n')
    said = scratch.service("install", "--system").out
    assert 'write data_dir = "/var/lib/askfirst" into the table [daemon]' in said


def test_a_data_folder_elsewhere_is_opened_and_nothing_in_it_can_be_executed(scratch: Scratch) -> None:
    scratch.configured('[daemon]\ndata_dir = "/srv/ask first"\n[llm]\nbackend = "mock"\n')
    assert scratch.service("install", "--system").code == 0
    unit = scratch.read(UNIT)
    assert settings_of(unit, "ReadWritePaths") == ['"/srv/ask first"']
    assert settings_of(unit, "NoExecPaths")[0].endswith(' "/srv/ask first"')
    assert (scratch.root / "srv/ask first").stat().st_mode & 0o777 == 0o700
    assert scratch.service("install", "--system").out.startswith("Installed already")


def test_uninstalling_removes_what_was_installed_and_keeps_the_rest(scratch: Scratch) -> None:
    scratch.configured()
    mine = UNIT.parent / "askfirst.service.d" / "50-mine.conf"
    scratch.write(mine, "[Service]\nNice=5\n")
    scratch.write(Path("var/lib/askfirst/askfirst.sqlite3"), "data")
    assert scratch.service("install", "--system", "--memory", "2G").code == 0
    shown = scratch.service("uninstall", "--system", "--dry-run")
    assert f"remove /{UNIT}" in shown.out
    assert (scratch.root / UNIT).exists()
    ended = scratch.service("uninstall", "--system")
    assert ended.code == 0, ended
    assert f"removed /{UNIT}" in ended.out
    assert "the data stay: /var/lib/askfirst" in ended.out
    assert f"the configuration stays: /{CONFIG}" in ended.out or str(scratch.root / CONFIG) in ended.out
    assert set(scratch.files()) == {str(mine), str(CONFIG), "var/lib/askfirst/askfirst.sqlite3"}
    assert "It is not installed." in scratch.service("uninstall", "--system").out


def test_a_changed_unit_is_kept_when_it_is_uninstalled_and_a_foreign_one_left_alone(scratch: Scratch) -> None:
    scratch.configured()
    assert scratch.service("install", "--system").code == 0
    scratch.write(UNIT, scratch.read(UNIT) + "# mine\n")
    assert f"kept what was there as /{UNIT}.yours" in scratch.service("uninstall", "--system").out
    scratch.write(UNIT, "[Service]\nExecStart=/bin/true\n")
    assert "It is not installed." in scratch.service("uninstall", "--system").out
    assert (scratch.root / UNIT).exists()


def test_a_mac_gets_a_plist_that_launchd_knows(mac: Scratch) -> None:
    folder = mac.home / "Library/Application Support/askfirst"
    ended = mac.service("install", "--user", "--dry-run")
    text = ended.out.partition("\nIt would\n")[0]
    found = plistlib.loads(text.strip().encode())
    assert set(found) <= KEYS
    assert found["ProgramArguments"] == [
        *(str(program_of()), "run", "--config"),
        str(folder / "askfirst.toml"),
    ]
    assert found["StandardErrorPath"] == str(mac.home / "Library/Logs/askfirst/askfirst.log")
    assert found["ProcessType"] == "Standard"
    assert "UserName" not in found
    paths = [part for part in re.findall(r"<string>(/[^<]*)</string>", text) if "$" in part or "~" in part]
    assert paths == []
    assert f"launchctl bootstrap gui/{os.getuid()}" in ended.out


def test_what_is_allowed_on_a_mac_is_said_to_change_nothing(mac: Scratch) -> None:
    said = mac.service("install", "--user", "--dry-run", "--allow-path", "/srv/exchange").out
    assert "launchd closes nothing off" in said
    assert "launchd closes nothing off" not in mac.service("install", "--user", "--dry-run").out


def test_a_mac_is_given_the_time_that_stopping_takes(mac: Scratch) -> None:
    config = mac.home.relative_to("/") / "Library/Application Support/askfirst/askfirst.toml"
    mac.write(config, '[daemon]\nstop_grace = "5m"\n[llm]\nbackend = "mock"\n')
    assert mac.service("install", "--user").code == 0
    place = mac.home.relative_to("/") / "Library/LaunchAgents/org.askfirst.daemon.plist"
    assert plistlib.loads(mac.read(place).encode())["ExitTimeOut"] == 330
    assert is_untouched(mac.read(place))
    assert mac.service("install", "--user").out.startswith("Installed already")
    assert "the log stays" in mac.service("uninstall", "--user").out
    assert not (mac.root / place).exists()


def test_a_mac_that_nobody_logs_in_to_runs_it_as_who_installed_it(mac: Scratch) -> None:
    ended = mac.service("install", "--system", "--dry-run", SUDO_USER="ana")
    found = plistlib.loads(ended.out.partition("\nIt would\n")[0].strip().encode())
    assert found["UserName"] == "ana"
    assert "/Library/LaunchDaemons/org.askfirst.daemon.plist" in ended.out
    assert "launchctl bootstrap system" in ended.out


SHOWN = """LoadState=loaded
ActiveState={active}
SubState={sub}
UnitFileState=enabled
MainPID=4711
NRestarts={restarts}
Result=success
ExecMainStatus={status}
StatusText=2 agents, mock mock, 1 proposal waiting{address}
ActiveEnterTimestamp=Thu 2026-03-05 10:00:00 UTC
MemoryCurrent=57671680
MemoryMax=1073741824
WatchdogUSec=1min
NeedDaemonReload=no
"""


def manager(folder: Path, name: str, script: str) -> dict[str, str]:
    """A program of that name in the place of the machine's own; the environment that finds it."""
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    (place / name).write_text(f"#!/bin/sh\n{script}\n")
    (place / name).chmod(0o755)
    return {"PATH": f"{place}:{os.environ['PATH']}"}


def systemd_that_shows(folder: Path, **values: object) -> dict[str, str]:
    known = {"active": "active", "sub": "running", "restarts": 0, "status": 0, "address": ""}
    text = SHOWN.format(**{**known, **values})
    (folder / "shown").write_text(text)
    return manager(folder, "systemctl", f"cat {folder}/shown")


@contextmanager
def answering(ready: bool) -> Iterator[str]:
    """The program's own endpoint."""
    checks = {"database": {"ok": ready, "detail": "3 proposals" if ready else "disk is gone"}}

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"status": "ready" if ready else "not ready", "checks": checks}).encode()
            self.send_response(200 if ready else 503)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def installed(scratch: Scratch) -> Scratch:
    scratch.configured(f"{WORKS}[web]\nport = 0\n")
    assert scratch.service("install", "--system").code == 0
    return scratch


def test_the_status_is_the_managers_and_the_programs_own(installed: Scratch, tmp_path: Path) -> None:
    with answering(ready=True) as address:
        environment = systemd_that_shows(tmp_path, address=f", {address}")
        ended = installed.service("status", **environment)
    assert ended.code == 0, ended
    assert "active (running)" in ended.out
    assert "55 MB of 1024 MB" in ended.out
    assert f"ready, {address}" in ended.out
    assert "database: works: 3 proposals" in ended.out


def test_a_program_that_is_not_ready_is_told(installed: Scratch, tmp_path: Path) -> None:
    with answering(ready=False) as address:
        environment = systemd_that_shows(tmp_path, address=f", {address}", restarts=7)
        ended = installed.service("status", **environment)
        told = installed.service("status", "--json", **environment).data
    assert ended.code == 3
    assert "started anew             7 times" in ended.out
    assert "database: does not work: disk is gone" in ended.out
    assert told["state"]["restarts"] == 7
    assert told["health"]["ready"] is False


def test_a_service_that_gave_up_says_the_way_out(installed: Scratch, tmp_path: Path) -> None:
    environment = systemd_that_shows(tmp_path, active="failed", sub="failed", status=78)
    ended = installed.service("status", **environment)
    assert ended.code == 3
    assert "last exit status" in ended.out
    assert "Its configuration cannot work: askfirst config check --config" in ended.out


def test_a_service_that_failed_points_to_its_log(installed: Scratch, tmp_path: Path) -> None:
    environment = systemd_that_shows(tmp_path, active="failed", sub="failed", status=1)
    assert "askfirst service logs --system -n 50" in installed.service("status", **environment).out


def test_a_service_that_is_not_installed_says_so(scratch: Scratch, tmp_path: Path) -> None:
    environment = manager(tmp_path, "systemctl", "echo LoadState=not-found")
    ended = scratch.service("status", "--system", **environment)
    assert ended.code == 3
    assert "askfirst service install --system makes it one." in ended.out


def test_launchds_words_are_understood(mac: Scratch, tmp_path: Path) -> None:
    shown = (
        "gui/501/org.askfirst.daemon = {\n\tactive count = 1\n\tstate = running\n\truns = 3\n\tpid = 812\n"
    )
    (tmp_path / "shown").write_text(shown + "\tlast exit code = 1: failed\n}\n")
    environment = manager(tmp_path, "launchctl", f"cat {tmp_path}/shown")
    told = mac.service("status", "--user", "--json", **environment).data
    assert told["state"]["active"] is True
    assert (told["state"]["pid"], told["state"]["restarts"], told["state"]["exit_status"]) == (812, 2, 1)


@pytest.mark.parametrize(
    ("words", "passed"),
    [
        (("--system",), "--unit askfirst"),
        (("--user", "-f"), "--user-unit askfirst --follow"),
        (("--system", "-n", "5", "--since", "today"), "--unit askfirst --lines 5 --since today"),
        (("--system", "--json"), "--unit askfirst --output json"),
    ],
)
@pytest.mark.process
def test_the_log_is_the_journals(
    words: tuple[str, ...], passed: str, scratch: Scratch, tmp_path: Path
) -> None:
    environment = manager(tmp_path, "journalctl", 'echo "$@"')
    ended = scratch.program.run(
        "service", "logs", *words, "--platform", "linux", "--root", str(scratch.root), **environment
    )
    assert (ended.code, ended.out) == (0, f"{passed}\n")


@pytest.mark.process
def test_the_log_on_a_mac_is_its_file(mac: Scratch) -> None:
    options = ("--platform", "macos", "--root", str(mac.root))
    missing = mac.program.run("service", "logs", "--user", *options)
    assert (missing.code, "was the service ever started?" in missing.err) == (1, True)
    log = mac.home.relative_to("/") / "Library/Logs/askfirst/askfirst.log"
    mac.write(log, "".join(f"line {number}\n" for number in range(10)))
    ended = mac.program.run("service", "logs", "--user", "-n", "2", *options)
    assert ended.out == "line 8\nline 9\n"
    assert mac.program.run("service", "logs", "--since", "today", *options).code == 64


@pytest.mark.process
def test_without_systemd_the_way_out_is_said(tmp_path: Path) -> None:
    """On a machine whose PATH has no systemctl; where there is a systemd this installs nothing either."""
    empty = tmp_path / "bin"
    empty.mkdir()
    ended = Program(tmp_path).run("service", "status", "--platform", "linux", PATH=str(empty))
    assert ended.code == 1
    assert "this machine does not run systemd" in ended.err
    assert "run --config" in ended.err
    assert "unless it ends with 78" in ended.err


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs here")
def test_nothing_is_installed_where_systemd_does_not_run(tmp_path: Path) -> None:
    ended = Program(tmp_path).call("service", "install", "--user", "--platform", "linux")
    assert ended.code in (1, 78)
    assert "this machine does not run systemd" in ended.err
    assert not (tmp_path / "home" / ".config" / "systemd").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have come from sudo")
def test_sudo_does_not_make_it_roots_own_service_by_mistake(tmp_path: Path) -> None:
    ended = Program(tmp_path).call("service", "install", "--user", "--dry-run", SUDO_USER="ana")
    assert "type it without sudo, or use --system" in ended.out


def test_every_unit_that_is_written_is_one_that_systemd_understands(scratch: Scratch, tmp_path: Path) -> None:
    tool = next(
        (path for path in ("/usr/bin/systemd-analyze", "/bin/systemd-analyze") if Path(path).exists()), ""
    )
    if not tool:
        pytest.skip("systemd-analyze is missing; it comes with systemd")
    scratch.configured('[daemon]\ndata_dir = "/srv/as 100% $HOME"\n[llm]\nbackend = "mock"\n')
    scratch.write(Path("etc/askfirst/key"), "k", 0o600)
    words = (
        "--allow-path",
        '/srv/a "b" c%d$e',
        "--allow-path",
        "/home/ana/x",
        "--allow-network",
        "--memory",
        "2G",
    )
    grants = (*words, "--credential", "llm_api_key=/etc/askfirst/key", "--allow-device", "/dev/ttyUSB0")
    assert scratch.service("install", "--system", *grants).code == 0
    folder = tmp_path / "units"
    (folder / "askfirst.service.d").mkdir(parents=True)
    unit = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/sh", scratch.read(UNIT), flags=re.MULTILINE)
    (folder / "askfirst.service").write_text(unit)
    (folder / "askfirst.service.d" / "10-install.conf").write_text(scratch.read(DROP_IN))
    done = subprocess.run(
        [tool, "verify", str(folder / "askfirst.service")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert scratch.service("install", "--system").out.startswith("Installed already")
