"""Signals, word to systemd, and stopping in stages that have a limit each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from daemon.lifecycle import (
    EXIT_LIMIT_S,
    HURRIED_LIMIT_S,
    STATUS_DELAY_S,
    UNIT_STOP_LIMIT_S,
    Lifecycle,
    StatusLine,
    Watchdog,
    notify,
    run_process,
    watchdog_interval,
)
from tests.support.waiting import seen

ROOT = Path(__file__).parents[2]


async def until(lifecycle: Lifecycle) -> None:
    async with asyncio.timeout(30):
        await lifecycle.stopping.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_asks_to_stop_and_a_second_one_to_hurry(number: signal.Signals) -> None:
    lifecycle = Lifecycle()
    told: list[str] = []
    lifecycle.on_hurry(lambda: told.append("hurry"))
    with lifecycle.signals():
        os.kill(os.getpid(), number)
        await until(lifecycle)
        assert lifecycle.reason == number.name
        assert not lifecycle.hurried.is_set()
        os.kill(os.getpid(), number)
        async with asyncio.timeout(30):
            await lifecycle.hurried.wait()
        os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
    assert told == ["hurry"]


async def test_a_hang_up_is_ignored_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lifecycle = Lifecycle()
    with lifecycle.signals():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        await until(lifecycle)
    assert lifecycle.reason == "SIGTERM"
    assert "SIGHUP is ignored" in caplog.text


async def test_a_hang_up_reads_the_configuration_again_and_once_more_for_those_that_come_meanwhile(
    systemd: Systemd,
) -> None:
    lifecycle, released, began = Lifecycle(), asyncio.Event(), []

    async def reload() -> None:
        began.append(time.monotonic())
        await released.wait()

    lifecycle.on_reload(reload)
    with lifecycle.signals():
        os.kill(os.getpid(), signal.SIGHUP)
        await seen(lambda: len(began) == 1)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.02)
        assert len(began) == 1
        released.set()
        await seen(lambda: len(began) == 2)
        await seen(lambda: len(systemd.words) == 4)
    told = [word.splitlines()[0] for word in systemd.words]
    assert told == ["RELOADING=1", "READY=1"] * 2
    name, _, moment = systemd.words[0].splitlines()[1].partition("=")
    assert name == "MONOTONIC_USEC"
    assert abs(int(moment) / 1e6 - began[0]) < 30


async def test_a_reload_that_fails_is_logged_and_the_program_is_ready_nevertheless(
    systemd: Systemd, caplog: pytest.LogCaptureFixture
) -> None:
    lifecycle = Lifecycle()

    async def reload() -> None:
        msg = "askfirst.toml is gone"
        raise OSError(msg)

    lifecycle.on_reload(reload)
    with lifecycle.signals():
        os.kill(os.getpid(), signal.SIGHUP)
        await seen(lambda: systemd.words[-1:] == ["READY=1"])
    assert "askfirst.toml is gone" in caplog.text


async def test_no_configuration_is_read_any_more_once_the_program_stops(
    systemd: Systemd, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    lifecycle, began = Lifecycle(), []

    async def reload() -> None:
        began.append(1)

    lifecycle.on_reload(reload)
    with lifecycle.signals():
        lifecycle.ask_to_stop("the test")
        os.kill(os.getpid(), signal.SIGHUP)
        await seen(lambda: "SIGHUP is ignored: the program is stopping" in caplog.text)
    assert (began, systemd.words) == ([], [])


async def test_one_reload_inside_another_is_told_as_one(systemd: Systemd) -> None:
    lifecycle = Lifecycle()
    with lifecycle.reloading(), lifecycle.reloading():
        pass
    assert [word.splitlines()[0] for word in systemd.words] == ["RELOADING=1", "READY=1"]


async def test_the_handlers_of_before_are_back_afterwards() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with Lifecycle().signals():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


async def test_a_stage_that_ends_in_time_is_let_finish() -> None:
    done: list[str] = []

    async def stop() -> None:
        await asyncio.sleep(0.05)
        done.append("closed")

    assert await Lifecycle().stage("database", 30.0, stop)
    assert done == ["closed"]


async def test_a_stage_that_hangs_is_left_behind_and_told_with_who_is_still_running(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def hang() -> None:
        await asyncio.sleep(3600)

    straggler = asyncio.create_task(hang(), name="run of matchmaker")
    assert not await Lifecycle().stage("runs", 0.05, hang)
    straggler.cancel()
    (record,) = [r for r in caplog.records if "did not end in time" in r.message]
    assert "runs" in record.message
    assert "run of matchmaker" in record.__dict__["still_running"]


async def test_a_stage_that_swallows_its_cancellation_does_not_hold_up_the_rest() -> None:
    released = asyncio.Event()

    async def stubborn() -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    began = time.monotonic()
    assert not await Lifecycle().stage("web", 0.05, stubborn)
    assert time.monotonic() - began < HURRIED_LIMIT_S + 5
    released.set()


async def test_a_stage_that_fails_is_logged_and_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise OSError("disk is gone")

    assert not await Lifecycle().stage("database", 1.0, fail)
    assert "disk is gone" in caplog.text


async def test_a_second_signal_shortens_a_stage_that_is_under_way() -> None:
    lifecycle = Lifecycle()

    async def hang() -> None:
        await asyncio.sleep(3600)

    stage = asyncio.create_task(lifecycle.stage("runs", 3600.0, hang))
    lifecycle.ask_to_stop("SIGINT")
    await asyncio.sleep(0)
    lifecycle.ask_to_stop("SIGINT")
    async with asyncio.timeout(HURRIED_LIMIT_S * 2 + 20):
        assert not await stage


class Systemd:
    """The other end of sd_notify."""

    def __init__(self, path: Path) -> None:
        self._channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._channel.bind(str(path))
        self._channel.setblocking(False)
        self._words: list[str] = []

    @property
    def words(self) -> list[str]:
        """Every datagram so far."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._words.append(self._channel.recv(4096).decode())
        return self._words

    def takes_another(self) -> bool:
        """Whether the socket still takes a datagram; sends one."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.connect(self._channel.getsockname())
            try:
                channel.send(b"STATUS=full")
            except BlockingIOError:
                return False
        return True

    def count(self, word: str) -> int:
        return self.words.count(word)

    def close(self) -> None:
        self._channel.close()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    found = Systemd(tmp_path / "systemd.sock")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "systemd.sock"))
    yield found
    found.close()


async def test_systemd_is_told_that_all_is_well_at_half_its_interval(systemd: Systemd) -> None:
    watchdog = Watchdog(lambda: 0.0, 1.0, {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": str(os.getpid())})
    assert watchdog.interval == 0.05
    began = time.monotonic()
    watchdog.start()
    assert systemd.count("WATCHDOG=1") == 1  # at once: systemd counts from READY
    await seen(lambda: systemd.count("WATCHDOG=1") == 5)
    assert time.monotonic() - began >= 4 * 0.05 - 0.01
    watchdog.close()
    told = systemd.count("WATCHDOG=1")
    await asyncio.sleep(0.2)
    assert systemd.count("WATCHDOG=1") == told


async def test_a_blocked_loop_is_silent(systemd: Systemd) -> None:
    watchdog = Watchdog(lambda: 0.0, 1.0, {"WATCHDOG_USEC": "40000"})
    watchdog.start()
    await seen(lambda: systemd.count("WATCHDOG=1") >= 3)
    told = systemd.count("WATCHDOG=1")
    time.sleep(0.3)  # noqa: ASYNC251 - this is what is tested
    assert systemd.count("WATCHDOG=1") == told
    await seen(lambda: systemd.count("WATCHDOG=1") > told)
    watchdog.close()


@pytest.mark.parametrize("silent_for", [90.5, None])
async def test_a_stuck_scheduler_is_silent_and_told_once_each_way(
    silent_for: float | None, systemd: Systemd, caplog: pytest.LogCaptureFixture
) -> None:
    ages: list[float | None] = [0.0]
    looked: list[float | None] = []

    def age() -> float | None:
        looked.append(ages[-1])
        return ages[-1]

    watchdog = Watchdog(age, 90.0, {"WATCHDOG_USEC": "20000"})
    watchdog.start()
    await seen(lambda: systemd.count("WATCHDOG=1") >= 2)
    ages.append(silent_for)
    told = systemd.count("WATCHDOG=1")
    await seen(lambda: looked.count(silent_for) >= 5)
    assert systemd.count("WATCHDOG=1") == told
    ages.append(1.0)
    await seen(lambda: systemd.count("WATCHDOG=1") > told)
    ages.append(silent_for)
    watchdog.stopping()  # from here on the loop alone counts
    told = systemd.count("WATCHDOG=1")
    await seen(lambda: systemd.count("WATCHDOG=1") > told)
    watchdog.close()
    assert caplog.text.count("the scheduler is stuck") == 1
    assert caplog.text.count("looks for due agents again") == 1


@pytest.mark.parametrize(
    ("environ", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 30.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "\u0665"}, None),  # a digit elsewhere
    ],
)
def test_the_watchdogs_interval_is_read_as_systemd_writes_it(
    environ: dict[str, str], interval: float | None
) -> None:
    assert watchdog_interval(environ) == interval


async def test_a_systemd_that_is_slow_to_read_keeps_nobody_waiting_and_is_told_later(
    systemd: Systemd, caplog: pytest.LogCaptureFixture
) -> None:
    while systemd.takes_another():
        pass
    assert notify("READY=1")  # the word waits, the loop does not
    assert "READY=1" not in systemd.words  # which reads everything
    await seen(lambda: "READY=1" in systemd.words)
    assert "could not be told" not in caplog.text


async def test_without_a_watchdog_nothing_is_told(systemd: Systemd) -> None:
    watchdog = Watchdog(lambda: 0.0, 1.0, {})
    watchdog.start()
    await asyncio.sleep(0.05)
    assert systemd.words == []


async def test_the_status_is_told_when_it_changes_and_many_changes_are_one(systemd: Systemd) -> None:
    texts = ["1 agent, 0 proposals\nwaiting"]
    status = StatusLine(lambda: texts[-1])
    status.tell("READY=1")
    assert systemd.words == ["READY=1\nSTATUS=1 agent, 0 proposals waiting"]
    began = time.monotonic()
    for number in range(100):
        texts.append(f"1 agent, {number} waiting")
        status.changed()
    await seen(lambda: len(systemd.words) == 2)
    assert time.monotonic() - began >= STATUS_DELAY_S - 0.05
    assert systemd.words[1] == "STATUS=1 agent, 99 waiting"
    status.tell()
    status.changed()
    status.close()
    await asyncio.sleep(STATUS_DELAY_S + 0.1)
    assert len(systemd.words) == 2


async def test_stopping_that_takes_longer_than_the_unit_gives_says_so(systemd: Systemd) -> None:
    async def stop() -> None:
        ended.append(1)

    for limit, more in ((10.0, ""), (300.0, "\nEXTEND_TIMEOUT_USEC=")):
        ended: list[int] = []
        lifecycle = Lifecycle()
        async with AsyncExitStack() as stack:
            lifecycle.add_stage(stack, "agents", limit, stop)
            lifecycle.add_stage(stack, "web", 5.0, stop)
            assert lifecycle.stop_limit_s == limit + 5.0 + 2 * HURRIED_LIMIT_S + EXIT_LIMIT_S
            lifecycle.ask_to_stop("SIGTERM")
            lifecycle.say_stopping()
        assert ended == [1, 1]
        value = f"{lifecycle.stop_limit_s * 1e6:.0f}" if more else ""
        assert systemd.words[-1] == f"STOPPING=1\nSTATUS=stopping: SIGTERM{more}{value}"
    assert UNIT_STOP_LIMIT_S < 300


@pytest.fixture
def systemd_socket(tmp_path: Path) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    channel.bind(str(tmp_path / "notify.sock"))
    channel.settimeout(10)
    return channel


def test_systemd_is_told_through_its_socket(
    systemd_socket: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with systemd_socket:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify.sock"))
        assert notify("READY=1\nSTATUS=2 agents")
        assert systemd_socket.recv(4096) == b"READY=1\nSTATUS=2 agents"


@pytest.mark.skipif(not Path("/proc/net/unix").exists(), reason="abstract sockets exist on Linux only")
def test_systemd_is_told_through_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"askfirst-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + name)
        channel.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        assert notify("STOPPING=1")
        assert channel.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("address", ["", "relative", "vsock:1:2"])
def test_without_systemd_nothing_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not notify("READY=1")


def test_a_systemd_that_is_gone_is_logged_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone.sock"))
    assert not notify("READY=1")
    assert "could not be told 'READY=1'" in caplog.text


STRAGGLERS = {
    "nobody": "pass",
    "a task that ignores being cancelled": """
        async def stubborn():
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    pass
        global task
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
    """,
    "a thread that never returns": """
        global task
        task = asyncio.create_task(asyncio.to_thread(time.sleep, 3600))
        await asyncio.sleep(0.1)
    """,
}

PROGRAM = """
import asyncio, sys, time
from daemon.lifecycle import run_process

async def main():
    try:
        {straggler}
    finally:
        print("closed", flush=True)
    return 7

sys.exit(run_process(main()))
"""


@pytest.mark.process
@pytest.mark.parametrize("straggler", STRAGGLERS)
def test_the_process_ends_with_its_code_whoever_is_left_behind(straggler: str) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(straggler=STRAGGLERS[straggler].strip())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "closed\n"), done.stderr
    assert time.monotonic() - began < EXIT_LIMIT_S + 20


def test_a_program_that_ends_by_an_error_shows_it() -> None:
    async def fail() -> int:
        raise OSError("disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        run_process(fail())
