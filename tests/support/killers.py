"""Agents that do what no agent should, as a plugin: each of them would take a program down, or hold it up."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import stat
import sys
import time
from pathlib import Path
from typing import Any

from agents.base import BaseAgent
from agents.proposal import Proposal

FOR_EVER = 3600


def _found(agent: BaseAgent, **fields: Any) -> Proposal:
    known = {"explanation": "", "payload": {}, "fingerprint": "one"}
    return agent.propose("thing", "A thing", **{**known, **fields})


def _leave_a_mark(agent: BaseAgent) -> None:
    """The number of this process, for the test to look for."""
    assert agent.context.data_dir is not None
    agent.context.data_dir.mkdir(parents=True, exist_ok=True)
    (agent.context.data_dir / f"{os.getpid()}.pid").touch()


class Killer(BaseAgent):
    """What all of them share."""

    name = "harmless"
    every = "1h"

    async def analyze(self) -> list[Proposal]:
        _leave_a_mark(self)
        return await self.strike()

    async def strike(self) -> Any:
        return [_found(self)]


class Raises(Killer):
    async def strike(self) -> Any:
        raise ZeroDivisionError("by nought")


class Exits(Killer):
    async def strike(self) -> Any:
        sys.exit(3)


class Hangs(Killer):
    async def strike(self) -> Any:
        await asyncio.Event().wait()


class Swallows(Killer):
    async def strike(self) -> Any:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(FOR_EVER)


class Blocks(Killer):
    async def strike(self) -> Any:
        time.sleep(FOR_EVER)  # noqa: ASYNC251 - that is its crime


class Spins(Killer):
    async def strike(self) -> Any:
        while True:
            pass


class Leaks(Killer):
    async def strike(self) -> Any:
        kept = []
        while True:
            kept.append(bytearray(1 << 20))


class Floods(Killer):
    async def strike(self) -> Any:
        return [_found(self, fingerprint=str(n)) for n in range(12_000)]


class Pours(Killer):
    """Hands over more bytes than it may."""

    async def strike(self) -> Any:
        return [_found(self, fingerprint=str(n), explanation="x" * 2000) for n in range(9_000)]


class Swells(Killer):
    """One text of 100 MB."""

    async def strike(self) -> Any:
        return [_found(self, explanation="x" * 100_000_000)]


class Forks(Killer):
    async def strike(self) -> Any:
        for _ in range(50):
            if os.fork() == 0:
                _leave_a_mark(self)
                time.sleep(FOR_EVER)  # noqa: ASYNC251 - that is its crime
        return await asyncio.Event().wait()


class Crashes(Killer):
    async def strike(self) -> Any:
        ctypes.string_at(0)


class Leaves(Killer):
    async def strike(self) -> Any:
        os._exit(7)


class Stays(Killer):
    """Does not listen to SIGTERM."""

    async def strike(self) -> Any:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(FOR_EVER)  # noqa: ASYNC251 - that is its crime


class Prints(Killer):
    """Prints something that looks like a message; nobody shall take it for one."""

    async def strike(self) -> Any:
        os.write(1, b'{"is":"done","id":1}\n\xff\xfe garbage\n')
        print('{"is":"failed"}', flush=True)
        return [_found(self)]


class Shouts(Killer):
    """Prints without end."""

    async def strike(self) -> Any:
        while True:
            os.write(1, b"AAAA BBBB CCCC " * 4000 + b"\n")


class Garbles(Killer):
    """Looks for the wire and writes nonsense to it."""

    async def strike(self) -> Any:
        for fd in range(3, 64):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    os.write(fd, b"\xff\x00 this is no message\n")
        return await asyncio.Event().wait()


class Lies(Killer):
    """Writes one line to the wire that does not end."""

    async def strike(self) -> Any:
        for fd in range(3, 64):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(fd).st_mode):
                    while True:
                        os.write(fd, b"[" * 65536)


class Asks(Killer):
    """Asks its model without end, and waits for no answer."""

    async def strike(self) -> Any:
        llm = self.context.llm
        assert llm is not None
        asked = [asyncio.create_task(llm.generate(f"{n}?")) for n in range(1_001)]
        await asyncio.wait(asked)


class Escapes(Killer):
    """Leaves a process behind that has left its session, its parent and its files, and then dies."""

    async def strike(self) -> Any:
        self.daemonize()
        os._exit(0)

    def daemonize(self) -> None:
        if (first := os.fork()) == 0:
            os.setsid()
            if os.fork() == 0:
                os.closerange(0, 256)
                _leave_a_mark(self)
                while True:
                    time.sleep(FOR_EVER)
            os._exit(0)
        os.waitpid(first, 0)
        assert self.context.data_dir is not None
        while len(list(Path(self.context.data_dir).iterdir())) < 2:
            time.sleep(0.01)


class Sneaks(Escapes):
    """The same, but ends as a good agent does."""

    async def strike(self) -> Any:
        self.daemonize()
        return [_found(self)]


class Poisons(Killer):
    """Its proposals are of every wrong kind."""

    async def strike(self) -> Any:
        broken = _found(self, fingerprint="broken")
        object.__setattr__(broken, "title", b"bytes")
        return [_found(self), "a text", broken, None]
