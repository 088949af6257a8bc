"""The daemon's lock: one holder, seen by everybody, gone with its process and with nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from daemon.control.lock import LOCK, Holder, daemon_lock, holder
from daemon.errors import DaemonRunning, ExitCode, StoreError
from tests.support.program import ROOT
from tests.support.waiting import seen_now

HOLD = """
import asyncio, os, sys, time
from pathlib import Path
from daemon.control.lock import daemon_lock

async def main():
    async with daemon_lock(Path(sys.argv[1])):
        if "fork" in sys.argv and os.fork() == 0:
            if "exec" in sys.argv:
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)"])
            time.sleep(60)
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def seen_by_others(folder: Path) -> Holder | None:
    return await asyncio.to_thread(holder, folder)


async def test_who_holds_it_is_seen_while_it_is_held_and_only_then(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert await seen_by_others(folder) is None
    async with daemon_lock(folder) as own:
        found = await seen_by_others(folder)
        assert found == Holder(os.getpid(), found.since if found else None)
        assert own.pid == os.getpid()
        assert found is not None
        assert found.since is not None
        assert datetime.now(UTC) - found.since < timedelta(minutes=1)
        assert str(found).startswith(f"pid {os.getpid()}, since 20")
        assert (folder / LOCK).stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o700
    assert await seen_by_others(folder) is None


async def test_a_second_one_is_refused_at_once_and_told_who_the_first_is(tmp_path: Path) -> None:
    async with daemon_lock(tmp_path / "data"):
        began = time.monotonic()
        with pytest.raises(DaemonRunning) as caught:
            async with daemon_lock(tmp_path / "data"):
                pass
        assert time.monotonic() - began < 1  # the limit is the requirement
    assert f"another daemon (pid {os.getpid()}, since 20" in str(caught.value)
    assert str(caught.value).endswith(f"uses {tmp_path / 'data'}; stop it or set daemon.data_dir")
    assert caught.value.exit_code is ExitCode.TEMPORARY


async def test_commands_that_look_do_not_keep_a_daemon_from_starting(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with daemon_lock(folder):
        pass
    stop = asyncio.Event()

    async def look() -> None:
        while not stop.is_set():
            await seen_by_others(folder)

    looking = [asyncio.create_task(look()) for _ in range(8)]
    try:
        for _ in range(20):
            async with daemon_lock(folder):
                pass
    finally:
        stop.set()
        await asyncio.gather(*looking)


async def test_a_daemon_that_has_not_written_who_it_is_yet_is_still_seen(tmp_path: Path) -> None:
    async with daemon_lock(tmp_path / "data"):
        (tmp_path / "data" / LOCK).write_bytes(b"\xff nonsense \n")
        assert await seen_by_others(tmp_path / "data") == Holder(None, None)
        with pytest.raises(DaemonRunning, match="just started"):
            async with daemon_lock(tmp_path / "data"):
                pass


async def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(StoreError, match=r"set daemon\.data_dir to a folder"):
        async with daemon_lock(tmp_path / "data"):
            pass
    assert await seen_by_others(tmp_path / "data") is None


@pytest.mark.parametrize("more", [(), ("fork",), ("fork", "exec")])
def test_it_ends_with_its_process_whatever_that_left_behind(tmp_path: Path, more: tuple[str, ...]) -> None:
    folder = tmp_path / "data"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", HOLD, str(folder), *more],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "held\n"
            found = holder(folder)
            assert found is not None
            assert found.pid == process.pid
            process.kill()
            process.wait()
            seen_now(lambda: holder(folder) is None, limit=10)
        finally:
            with suppress(ProcessLookupError):  # nobody is left
                os.killpg(process.pid, signal.SIGKILL)
