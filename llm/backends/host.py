"""Keeps an engine process running: started when first needed, replaced when it died, ended with us."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from llm.backends.child import EngineProcess, Launch
from llm.errors import ConfigurationError


class EngineHost:
    """Keeps at most one engine process running, for one event loop at a time.

    Args:
        name: the backend's name, for messages.
        script: the engine's program.
        prepare: gives what each start needs; called in a thread.
    """

    def __init__(self, name: str, script: Path, prepare: Callable[[], Launch]) -> None:
        self._name = name
        self._script = script
        self._prepare = prepare
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = asyncio.Lock()
        self._process: EngineProcess | None = None

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
        process = self.current
        if process is None:
            process = self._process = EngineProcess(self._name, self._script, self._prepare)
        await process.ready()
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
        process, self._process = self._process, None
        if process is None:
            return
        if self._loop is asyncio.get_running_loop():
            await process.aclose()
        else:
            process.abandon()

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
        self._loop, self._process, self._turn = loop, None, asyncio.Lock()
