"""Keeps an engine process running: started when first needed, replaced when it died, ended when idle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from pathlib import Path

from llm.backends.child import EngineProcess, Launch
from llm.errors import ConfigurationError


class EngineHost:
    """Keeps at most one engine process running, for one event loop at a time.

    Args:
        name: the backend's name, for messages.
        script: the engine's program.
        prepare: gives what each start needs; called in a thread.
        idle_seconds: after so long without a call the process is ended, which gives all its memory back, and
            the next call starts a new one; None for never.
    """

    def __init__(
        self, name: str, script: Path, prepare: Callable[[], Launch], *, idle_seconds: float | None = None
    ) -> None:
        self._name = name
        self._script = script
        self._prepare = prepare
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = asyncio.Lock()
        self._process: EngineProcess | None = None
        self._idle_seconds = idle_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: asyncio.Task[None] | None = None

    @property
    def current(self) -> EngineProcess | None:
        """The process if one is running or starting in this event loop, None otherwise."""
        process = self._process
        if process is None or process.ended or self._loop is not asyncio.get_running_loop():
            return None
        return process

    async def running(self) -> EngineProcess:
        """The engine, loaded: started if there is none, waited for if somebody else started it.

        Raises:
            LLMError: it cannot be started.
            ConfigurationError: another event loop that still runs is using this client.
        """
        self._bind()
        if self._leaving is not None:  # two at once might not fit into the memory
            await asyncio.wait({self._leaving})
        process = self.current
        if process is None:
            process = self._process = EngineProcess(self._name, self._script, self._prepare)
        await process.ready()
        process.touch()
        if self._idle_seconds is not None and self._timer is None:
            self._look_again(process, self._idle_seconds)
        return process

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[EngineProcess]:
        """The engine for one caller at a time, in the order of asking.

        Raises:
            LLMError: it cannot be started.
        """
        self._bind()
        async with self._turn:
            yield await self.running()

    async def aclose(self) -> None:
        """End the process, if there is one."""
        self._stop_timer()
        if self._leaving is not None and self._loop is asyncio.get_running_loop():
            await asyncio.wait({self._leaving})
        process, self._process = self._process, None
        if process is None:
            return
        if self._loop is asyncio.get_running_loop():
            await process.aclose()
        else:
            process.abandon()

    def _look_again(self, process: EngineProcess, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        # In a context of its own: it outlives the call that started the process.
        self._timer = loop.call_later(seconds, self._end_if_idle, process, context=Context())

    def _end_if_idle(self, process: EngineProcess) -> None:
        self._timer = None
        if process is not self.current or self._idle_seconds is None:
            return  # it died or was replaced; the next one gets a timer of its own
        left = self._idle_seconds - process.idle_seconds
        if left > 0:
            self._look_again(process, left)
        else:
            self._process = None
            self._leaving = asyncio.get_running_loop().create_task(process.aclose())

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _bind(self) -> None:
        """Belong to the running loop; pipes and locks of a loop that is closed are of no use."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            msg = f"this {self._name} client is in use by another event loop; make one client for each loop"
            raise ConfigurationError(msg)
        if self._process is not None:
            self._process.abandon()
        self._timer = self._leaving = None
        self._loop, self._process, self._turn = loop, None, asyncio.Lock()
