"""Signals, word to systemd, and stopping in stages that have a limit each."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from daemon.lifecycle import EXIT_LIMIT_S, HURRIED_LIMIT_S, Lifecycle, notify, run_process

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
