"""`askfirst reload` and `askfirst status`: a daemon that is asked about itself."""

from __future__ import annotations

import signal
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.control import Daemon, daemon_of
from tests.support.program import Program
from tests.support.waiting import seen_now

pytestmark = pytest.mark.process


def test_reload_says_what_changed_takes_it_over_and_nothing_when_nothing_did(running: Daemon) -> None:
    assert running.call("reload").out == "Nothing changed.\n"
    path = running.program.folder / "config" / "askfirst.toml"
    path.write_text(path.read_text() + 'every = "3h"\n')
    changed = running.call("reload", "--json")
    assert changed.code == 0, changed
    (text,) = changed.data["changes"]
    assert "garden" in text
    assert running.wait_for(f"the configuration was read again: {text}")["level"] == "info"
    assert running.call("reload").out == "Nothing changed.\n"


@pytest.mark.parametrize(("line", "place"), [("bedz = 3", "7: "), ("every = 3 3", "7:11: ")])
def test_reload_of_what_cannot_work_names_file_and_line_and_changes_nothing(
    running: Daemon, line: str, place: str
) -> None:
    path = running.program.folder / "config" / "askfirst.toml"
    before = path.read_text()
    path.write_text(f"{before}{line}\n")
    refused = running.call("reload")
    assert refused.code == 78, refused
    assert refused.out == ""
    assert f"{path}:{place}" in refused.err
    assert "Traceback" not in refused.err
    path.write_text(before)
    assert running.call("reload").out == "Nothing changed.\n"
    assert running.call("--once").code == 0


def test_reload_by_signal_does_the_same_and_tells_systemd(garden: Program) -> None:
    path = garden.folder / "config" / "askfirst.toml"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(garden.folder / "notify"))
        systemd.settimeout(60)

        def told(word: str) -> list[str]:
            while True:
                lines = systemd.recv(4096).decode().splitlines()
                if word in lines:
                    return lines

        with daemon_of(garden, NOTIFY_SOCKET=str(garden.folder / "notify")) as daemon:
            told("READY=1")
            before = now_in_us()
            daemon.process.send_signal(signal.SIGHUP)
            lines = told("RELOADING=1")
            (stamp,) = [line for line in lines if line.startswith("MONOTONIC_USEC=")]
            assert (
                before <= int(stamp.partition("=")[2]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            )
            told("READY=1")
            daemon.wait_for("the configuration was read again: nothing changed")
            text = path.read_text()
            path.write_text(f"{text}bedz = 3\n")
            daemon.process.send_signal(signal.SIGHUP)
            told("RELOADING=1")
            told("READY=1")
            seen_now(lambda: f"{path}:7: agents.garden.bedz: unknown setting" in daemon.log.read_text())
            path.write_text(text)
            assert daemon.call("--once").code == 0
            path.write_text(text.replace("[web]", 'log_level = "debug"\n[web]'))
            assert daemon.call("reload").code == 0
            told("RELOADING=1")
            told("READY=1")
            moved = 'plugin_dir = "../data/plugins"\ndata_dir = "../other"'
            path.write_text(text.replace('data_dir = "../data"', moved))
            daemon.process.send_signal(signal.SIGHUP)
            seen_now(lambda: "daemon.data_dir" in daemon.log.read_text())
            path.write_text(text)
            assert daemon.call("status").code == 0
            assert "Traceback" not in daemon.log.read_text()
            assert daemon.stop() == 0
    assert not (garden.folder / "other").exists()


def now_in_us() -> int:
    """The clock that systemd compares with, in microseconds."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_new_log_level_takes_effect_at_once(garden: Program) -> None:
    path = garden.folder / "config" / "askfirst.toml"
    text = path.read_text()
    with daemon_of(garden) as daemon:
        daemon.wait_for("run finished")
        assert [line for line in daemon.lines if line["level"] == "debug"] == []
        path.write_text(text.replace("[web]", 'log_level = "debug"\n[web]'))
        assert daemon.call("reload").code == 0
        garden.beds.write_text("leeks dry\nkale dry\n")
        assert daemon.call("--once").code == 0
        assert daemon.wait_for("proposal made")["level"] == "debug"
        assert not [line for line in daemon.lines if line["logger"].startswith(("sqlalchemy", "aiosqlite"))]


def test_a_key_that_came_with_a_reload_is_nowhere_in_the_log(garden: Program) -> None:
    key = "canary-2718281828"
    path = garden.folder / "config" / "askfirst.toml"
    text = path.read_text()
    path.chmod(0o600)
    with daemon_of(garden) as daemon:
        daemon.wait_for("run finished")
        path.write_text(f'{text}bed = "{key}"\n[llm]\napi_key = "{key}"\n')  # a setting that there is not
        refused = daemon.call("reload")
        assert refused.code == 78, refused
        path.write_text(f'{text}beds = "{key}"\n[llm]\napi_key = "{key}"\n')  # a file that there is not
        assert daemon.call("reload").code == 0
        assert daemon.call("--once").code == 1
        failed = daemon.wait_for("run finished", 2)
        assert "[redacted]" in failed["error"]
        assert key not in daemon.log.read_text()


def test_status_shows_everything_on_one_screen(running: Daemon) -> None:
    shown = running.call("status")
    assert shown.code == 0, shown
    for words in (
        "Running since 20",
        f"pid      {running.process.pid}",
        f"data     {running.program.folder / 'data'}",
        "address  http://127.0.0.1:",
        "model    mock mock",
        "Proposals: 2 pending; see them: askfirst proposals list",
    ):
        assert words in shown.out, shown.out
    (row,) = [line for line in shown.out.splitlines() if line.startswith("garden")]
    assert row.split() == ["garden", "active", "in", "2", "h", "succeeded"] or "min" in row
    data = running.call("status", "--json").data
    assert data["running"] is True
    assert data["open"]["database"]["ok"] is True
    assert data["waiting"]["pending"] == 2
    assert datetime.now(UTC) - datetime.fromisoformat(data["since"]) < timedelta(minutes=5)


def test_without_a_daemon_status_ends_with_3_and_reload_says_so(garden: Program) -> None:
    status = garden.call("status")
    assert status.code == 3
    assert status.out.startswith(f"Not running: no daemon runs on {garden.folder / 'data'}")
    assert garden.call("status", "--json").data == {"running": False}
    reload = garden.call("reload")
    assert (reload.code, reload.out) == (1, "")
    assert "no daemon runs on" in reload.err
    assert sorted(path.name for path in (garden.folder / "data").iterdir()) == ["plugins"]
