"""What doctor says about the installed service."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.commands.checks import Check
from daemon.commands.service_checks import SOME_RESTARTS, service_checks
from daemon.install.grants import Grants
from daemon.install.machine import Machine
from daemon.install.plan import Carrier
from daemon.install.site import HIDDEN, STATE_DIR, Site, bare
from daemon.install.systemd import install_plan

SHOWN = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "SubState": "running",
    "UnitFileState": "enabled",
    "NRestarts": "0",
    "ExecMainStatus": "0",
    "WatchdogUSec": "1min",
}


class Installed:
    """A folder that stands for a machine on which the service was installed."""

    def __init__(self, folder: Path, scope: str = "system") -> None:
        self.bin = folder / "bin"
        self.root = folder / "machine"
        self.bin.mkdir()
        for path in (self.root / "run/systemd/system", self.root / "sys/fs/cgroup"):
            path.mkdir(parents=True)
        (self.root / "sys/fs/cgroup/cgroup.controllers").write_text("cpu io memory pids\n")
        environ = {"PATH": f"{self.bin}:{os.environ['PATH']}"}
        self.machine = Machine(
            platform="linux", root=self.root, uid=1000, home=Path("/home/ana"), environ=environ
        )
        site = bare(self.machine, "user" if scope == "user" else "system")
        self.site = replace(site, user="ana") if scope == "user" else site
        self.install(Grants(paths=("/srv/exchange",)))
        self.shows()
        self.program("timedatectl", "echo yes")

    def install(self, grants: Grants) -> None:
        Carrier(self.machine, lambda _: None).carry_out(install_plan(self.site, grants, self.machine).steps)

    def shows(self, **values: str) -> None:
        lines = "".join(f"{name}={value}\n" for name, value in {**SHOWN, **values}.items())
        (self.bin / "shown").write_text(lines)
        self.program("systemctl", f"cat {self.bin}/shown")

    def program(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def checks(self) -> dict[str, Check]:
        return {check.name: check for check in service_checks(self.machine)}

    def place(self, path: Path | str) -> Path:
        return self.machine.place(path)


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    return Installed(tmp_path)


def test_a_service_as_it_should_be_is_ok_in_everything(installed: Installed) -> None:
    found = installed.checks()
    assert {name: check.state for name, check in found.items()} == dict.fromkeys(
        (
            *("service", "service runs", "service starts", "service watchdog"),
            *("memory limit", "clock synchronised"),
        ),
        "ok",
    )
    assert "after 60 s of silence" in found["service watchdog"].message


def test_without_a_service_one_line_says_how(tmp_path: Path) -> None:
    (tmp_path / "run/systemd/system").mkdir(parents=True)
    (check,) = service_checks(Machine(platform="linux", root=tmp_path))
    assert (check.state, check.message) == ("ok", "not installed")
    assert "askfirst service install" in check.way_out
    (tmp_path / "run/systemd/system").rmdir()
    assert list(service_checks(Machine(platform="linux", root=tmp_path))) == []


def test_a_unit_that_another_version_wrote_is_to_be_written_anew(installed: Installed) -> None:
    from daemon.install.marked import marked
    from daemon.install.systemd import unit_text

    older = "".join(unit_text(installed.site).splitlines(keepends=True)[1:]).replace(
        "RestartSec=5", "RestartSec=9"
    )
    installed.place(installed.site.unit).write_text(marked(older))
    check = installed.checks()["service"]
    assert (check.state, "is not as this version writes it" in check.message) == ("warn", True)
    assert "askfirst service install --system" in check.way_out


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("RestartSec=5", "RestartSec=9", "was changed by hand"),
        ("Written by", "Made by", "was not written by us"),
    ],
)
def test_a_unit_that_is_not_ours_any_more_is_told(
    old: str, new: str, said: str, installed: Installed
) -> None:
    place = installed.place(installed.site.unit)
    place.write_text(place.read_text().replace(old, new))
    check = installed.checks()["service"]
    assert (check.state, said in check.message) == ("warn", True)


def test_a_service_of_another_installation_is_told(installed: Installed) -> None:
    installed.site = replace(installed.site, program=Path("/opt/other/bin/askfirst"))
    installed.install(Grants())
    check = installed.checks()["service"]
    assert check.state == "warn"
    assert "starts /opt/other/bin/askfirst" in check.message


def test_a_drop_in_of_ours_that_was_changed_is_told(installed: Installed) -> None:
    place = installed.place(installed.site.drop_in)
    place.write_text(place.read_text().replace("ReadWritePaths=-/srv/exchange", "ReadWritePaths=-/srv"))
    assert installed.checks()["service"].state == "warn"


@pytest.mark.parametrize(
    ("shown", "state", "said"),
    [
        ({"ActiveState": "failed", "SubState": "failed", "ExecMainStatus": "78"}, "fail", "it gave up"),
        ({"ActiveState": "failed", "SubState": "failed", "ExecMainStatus": "1"}, "fail", "failed (failed)"),
        ({"LoadState": "not-found"}, "fail", "its manager does not know it"),
        ({"NRestarts": str(SOME_RESTARTS)}, "warn", f"started anew {SOME_RESTARTS} times"),
        ({"NRestarts": str(SOME_RESTARTS - 1)}, "ok", "started anew 2 times"),
    ],
)
def test_how_it_runs_is_told(shown: dict[str, str], state: str, said: str, installed: Installed) -> None:
    installed.shows(**shown)
    check = installed.checks()["service runs"]
    assert (check.state, said in check.message) == (state, True), check
    assert bool(check.way_out) == (state != "ok")


def test_a_service_that_does_not_start_with_the_machine_is_told(installed: Installed) -> None:
    installed.shows(UnitFileState="disabled")
    check = installed.checks()["service starts"]
    assert (check.state, check.way_out) == ("warn", "systemctl enable askfirst")


def test_a_watchdog_that_is_off_is_told(installed: Installed) -> None:
    for off in ("0", "infinity"):
        installed.shows(WatchdogUSec=off)
        assert installed.checks()["service watchdog"].state == "warn"
    installed.shows(WatchdogUSec="1min 30s")
    assert "after 90 s" in installed.checks()["service watchdog"].message


def test_a_users_service_needs_its_user_to_linger(tmp_path: Path) -> None:
    installed = Installed(tmp_path, "user")
    found = installed.checks()
    assert "memory limit" not in found
    from daemon.install.site import bare as site_of

    name = site_of(installed.machine, "user").user
    assert found["service starts"].way_out == f"sudo loginctl enable-linger {name}"
    linger = installed.place(f"/var/lib/systemd/linger/{name}")
    linger.parent.mkdir(parents=True)
    linger.touch()
    assert installed.checks()["service starts"].state == "ok"


def test_a_kernel_that_counts_no_memory_is_told_with_the_file_to_change(installed: Installed) -> None:
    installed.place("/sys/fs/cgroup/cgroup.controllers").write_text("cpu io pids\n")
    line = installed.place("/boot/firmware/cmdline.txt")
    line.parent.mkdir(parents=True)
    line.write_text("console=tty1\n")
    check = installed.checks()["memory limit"]
    assert check.state == "warn"
    assert "add cgroup_enable=memory to /boot/firmware/cmdline.txt" in check.way_out


def test_a_clock_that_nobody_keeps_right_is_told(installed: Installed) -> None:
    installed.program("timedatectl", "echo no")
    assert installed.checks()["clock synchronised"].state == "warn"
    installed.program("timedatectl", "exit 1")
    assert installed.checks()["clock synchronised"].message == "not known: timedatectl does not answer"


def test_a_unit_where_no_systemd_runs_is_told(installed: Installed) -> None:
    installed.place("/run/systemd/system").rmdir()
    found = installed.checks()
    assert found["service runs"].state == "warn"
    assert "service watchdog" not in found


def test_what_is_in_a_home_cannot_be_a_service_of_the_machine(installed: Installed) -> None:
    def site(**places: Path) -> Site:
        known = {"program": Path("/opt/a/bin/askfirst"), "folders": (Path("/opt/a"),), "data_dir": STATE_DIR}
        return replace(installed.site, **{**known, "config": Path("/etc/a.toml"), **places})

    assert list(site().hidden()) == []
    for home in HIDDEN:
        assert list(site(program=home / "ana/askfirst").hidden()) == [home / "ana/askfirst"]
        assert list(site(config=home / "a.toml").hidden()) == [home / "a.toml"]
        assert list(site().hidden(home / "models")) == [home / "models"]
    assert list(replace(site(), scope="user").hidden(Path("/home/x"))) == []
