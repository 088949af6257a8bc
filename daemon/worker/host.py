"""Worker: the parent's side of the conversation with one worker, and the model for its agent."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.context import AgentContext, ModelCall
from agents.errors import AgentError
from agents.registry import AgentEntry
from daemon.intake import MAX_NOTES, Refused
from daemon.plain import dumps, loads
from daemon.store.uncancelled import finished
from daemon.worker.limits import Limits
from daemon.worker.process import WorkerProcess, memory_of
from daemon.worker.wire import heard, packed, spoken
from llm import Caller, LLMError, ServerError, calling
from llm.events import ToolFinished, ToolStarted

START_S = 60.0
"""How long a worker may take to load its agent."""

MAX_ASKS = 32
"""Most model calls of one worker at a time; others wait."""

MAX_WAITING = 1_000
"""Most model calls of one worker that may be under way or wait."""

_MAX_CALLS = 10_000
_MAX_NAME = 64
_LOOK_S = 1.0
_GOODBYE_S = 1.0
_DRAIN_S = 0.5
_TURN_S = 0.002
"""After so long without a pause, reading messages lets the loop see to its other work."""

_LEVELS = frozenset({"debug", "info", "warning", "error"})
_OURS = frozenset({"event", "level", "timestamp", "logger", "agent", "run_id", "proposal"})
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a worker is started with.

    Attributes:
        entry: the agent, and where it comes from.
        limits: what the worker may use.
        prompts_dir: the folder of the owner's own prompt templates.
        watch_memory: look at its memory each second, where the system does not hold it to its limit.
    """

    entry: AgentEntry
    limits: Limits
    prompts_dir: Path | None = None
    watch_memory: bool = sys.platform != "linux"


@dataclass(slots=True)
class Answer:
    """What came of one order.

    Attributes:
        message: the worker's last message about it.
        items: what it handed over before that.
    """

    message: Mapping[str, Any]
    items: list[Any] = field(default_factory=list)


class Worker:
    """One worker, started at the first order.

    Args:
        launch: what it is started with.
        context: what the agent is handed; its lists of calls and notes are filled as the worker tells.
    """

    def __init__(self, launch: Launch, context: AgentContext) -> None:
        self._launch = launch
        self.limits = launch.limits
        self._context = context
        self._known = {"agent": launch.entry.name, "run_id": context.run_id}
        self._process = WorkerProcess(launch.limits, self._known, self._said_too_much)
        self._started = self._ready = self._said_goodbye = False
        self._fault: str | None = None
        self._bytes = self._orders = 0
        self._items: list[Any] = []
        self._answer: asyncio.Future[Mapping[str, Any]] | None = None
        self._calls_from = len(context.calls)
        self._notes_from, self._notes = len(context.notes), 0
        self._asks: dict[int, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(MAX_ASKS)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def pid(self) -> int:
        """The worker's process id, 0 before it is started."""
        return self._process.pid

    async def start(self) -> None:
        """Start it and have it load the agent; nothing if it runs already.

        Raises:
            AgentError: the process cannot be started, or the agent cannot be loaded in it.
        """
        if self._ready:
            return
        if self._started:
            raise self._died()
        self._started = True
        try:
            await self._process.start()
        except OSError as error:
            msg = f"no process could be started for the agent {self._launch.entry.name!r}: {error}"
            raise AgentError(msg) from error
        self._answer = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._wait_for_its_end())]
        if self._launch.watch_memory:
            self._tasks.append(asyncio.create_task(self._watch_memory()))
        await self._send(self._first())
        try:
            async with asyncio.timeout(START_S):
                await self._answered()
        except TimeoutError:
            self._break(f"it was not loaded within {START_S:g} s")
            raise self._died() from None
        self._ready = True

    async def order(self, do: str, **values: Any) -> Answer:
        """Have it do something.

        Raises:
            AgentError, LLMError: what the agent raised, or how its process ended.
        """
        await self.start()
        if self._fault is not None or self._process.exited.done():
            raise self._died()
        self._orders += 1
        self._items = []
        self._answer = asyncio.get_running_loop().create_future()
        await self._send({"do": do, "id": self._orders, **values})
        message = await self._answered()
        return Answer(message, self._items)

    async def end(self) -> None:
        """End the worker and everything that it started, whatever it is doing; again is harmless."""
        if self._started and self._process.pid:
            await finished(self._end())

    async def _answered(self) -> Mapping[str, Any]:
        answer = self._answer
        if answer is None:
            raise self._died()
        message = await answer
        self._answer = None
        if message["is"] == "failed":
            if message.get("memory"):
                raise AgentError(self.limits.too_much_memory())
            if message.get("trace"):
                self._tell_trace(message)
            raise heard(message["error"])
        return message

    def _tell_trace(self, message: Mapping[str, Any]) -> None:
        if not message["error"]["kind"]:  # as the runner does for an agent in this process
            trace = {**self._known, "trace": str(message["trace"])}
            _log.error("an agent failed unexpectedly in its process", extra=trace)

    def _first(self) -> dict[str, Any]:
        """The worker's first line: nothing in it is secret."""
        entry, context, llm = self._launch.entry, self._context, self._context.llm
        location = Path(entry.location) if entry.origin == "plugin" else entry.location
        model = None
        if llm is not None:
            config = llm.config.with_values(api_key=None, api_base=None)
            model = {"config": config, "backend": llm.backend, "name": llm.name}
        return {
            "name": entry.name,
            "origin": entry.origin,
            "location": location,
            "memory_mb": self.limits.memory_mb,
            "cpu_seconds": self.limits.cpu_seconds,
            "max_bytes": self.limits.max_bytes,
            "llm": model,
            "prompts_dir": self._launch.prompts_dir,
            "settings": dict(context.settings),
            "base_dir": context.base_dir,
            "data_dir": context.data_dir,
            "now": context.now(),
            "open_proposals": context.open_proposals,
            "turned_down": dict(context.turned_down),
            "run_id": context.run_id,
            "talkative": logging.getLogger(f"agents.{entry.name}").isEnabledFor(logging.DEBUG),
        }

    async def _send(self, message: Mapping[str, Any]) -> None:
        writer = self._process.writer
        if writer is None:
            return
        try:
            writer.write(dumps(message))
            await writer.drain()
        except OSError:  # it is dead, and who waits for it is told so
            return

    # What comes from it.

    async def _listen(self) -> None:
        pause_at = time.monotonic() + _TURN_S
        while True:
            try:
                line = await self._process.reader.readuntil(b"\n")
            except (asyncio.IncompleteReadError, OSError):
                return
            except asyncio.LimitOverrunError:
                self._break(self.limits.too_many_bytes())
                return
            try:
                self._take(loads(line), len(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                self._break(f"its process wrote something that is no message ({type(error).__name__})")
            if self._fault is not None:
                return
            if time.monotonic() > pause_at:
                await asyncio.sleep(0)
                pause_at = time.monotonic() + _TURN_S

    def _take(self, message: Mapping[str, Any], size: int) -> None:
        kind = message["is"]
        if kind not in {"ask", "drop"}:
            self._bytes += size
            if self._bytes > self.limits.max_bytes:
                self._break(self.limits.too_many_bytes())
                return
        if kind == "ask":
            self._begin_ask(message)
        elif kind == "drop":
            if (ask := self._asks.get(message["id"])) is not None:
                ask.cancel()
        else:
            self._keep(kind, message)

    def _begin_ask(self, message: Mapping[str, Any]) -> None:
        if len(self._asks) >= MAX_WAITING:
            self._break(f"it asked its model more than {MAX_WAITING:,} questions at a time")
            return
        number = int(message["id"])
        name = f"model call of {self._launch.entry.name}"
        ask = self._asks[number] = asyncio.create_task(self._ask(number, message), name=name)
        ask.add_done_callback(lambda _: self._asks.pop(number, None))

    def _keep(self, kind: str, message: Mapping[str, Any]) -> None:
        match kind:
            case "item":
                self._items.append(Refused(message["refused"]) if "refused" in message else message["item"])
            case "call":
                self._keep_call(message["index"], message["call"])
            case "notes":
                self._keep_notes(message["notes"])
            case "log":
                self._log_line(message)
            case "tool":
                self._tell_of_tool(message)
            case "bye":
                self._said_goodbye = not message["children"]
            case _:
                self._settle(message)

    def _settle(self, message: Mapping[str, Any]) -> None:
        """The end of an order: done, failed, or ready for the first one."""
        kind, number = message["is"], message.get("id", 0)
        if kind not in {"ready", "done", "failed"} or number != self._orders or self._answer is None:
            msg = f"{kind!r:.40} for {number!r:.40}"
            raise ValueError(msg)
        if kind == "failed":
            heard(message["error"])
        if not self._answer.done():
            self._answer.set_result(message)

    def _keep_call(self, index: int, call: object) -> None:
        calls = self._context.calls
        place = self._calls_from + index
        if not isinstance(call, ModelCall) or not 0 <= index < _MAX_CALLS or place > len(calls):
            msg = f"a model call at {index!r:.40}"
            raise ValueError(msg)
        calls[place : place + 1] = [call]

    def _keep_notes(self, notes: list[str]) -> None:
        kept = [str(note) for note in notes[:MAX_NOTES]]
        self._context.notes[self._notes_from : self._notes_from + self._notes] = kept
        self._notes = len(kept)

    def _log_line(self, message: Mapping[str, Any]) -> None:
        level = message["level"] if message["level"] in _LEVELS else "info"
        log = getattr(self._context.log, level, self._context.log.warning)
        values = {str(key): value for key, value in message["values"].items() if key not in _OURS}
        log(str(message["event"]), **values)

    def _tell_of_tool(self, message: Mapping[str, Any]) -> None:
        """A tool runs, or ran, in the worker: told to the model's observers as if it had been here."""
        llm = self._context.llm
        if llm is None:
            return
        values: dict[str, Any] = {
            "backend": llm.name,
            "model": llm.config.model,
            "caller": Caller(agent=self._launch.entry.name, run_id=self._context.run_id),
            "tool": str(message["tool"])[:_MAX_NAME],
            "execution_id": str(message["execution"])[:_MAX_NAME],
        }
        if "latency" not in message:
            llm.emit(ToolStarted(**values))
            return
        latency = float(message["latency"])
        if not math.isfinite(latency):
            msg = f"a tool that took {latency} s"
            raise ValueError(msg)
        llm.emit(ToolFinished(latency=latency, error=str(message["error"])[:_MAX_NAME], **values))

    # What it is given.

    async def _ask(self, number: int, message: Mapping[str, Any]) -> None:
        """One question to the model: asked here, in the name of the agent and its run."""
        task = str(message.get("task") or "")
        try:
            async with self._room:
                with calling(agent=self._launch.entry.name, run_id=self._context.run_id, task=task):
                    await self._answer_to(number, message)
        except (LLMError, ValueError, TypeError) as error:
            await self._send({"id": number, "error": spoken(error), "last": True})
        except Exception as error:  # noqa: BLE001 - a client may be anybody's code; the agent is told
            _log.exception("a model call of an agent's process failed unexpectedly", extra=self._known)
            fault = ServerError(f"the model call failed unexpectedly ({type(error).__name__})")
            await self._send({"id": number, "error": spoken(fault), "last": True})

    async def _answer_to(self, number: int, message: Mapping[str, Any]) -> None:
        if message["what"] == "stream":
            await self._stream(number, message)
        else:
            value = await self._asked(message)
            await self._send({"id": number, "value": value, "last": True})

    async def _asked(self, message: Mapping[str, Any]) -> Any:
        llm = self._context.llm
        if llm is None:
            msg = "there is no model"
            raise ValueError(msg)
        match message["what"]:
            case "chat":
                return await llm.chat(message["messages"], **message["options"])
            case "embed":
                found = await llm.embed(message["texts"], timeout=message["timeout"], task=message["task"])
                return await asyncio.to_thread(packed, found)
            case "health_check":
                return await llm.health_check()
            case "capabilities":
                return await llm.capabilities()
            case "fingerprint":
                return await llm.fingerprint(str(message["model"]))
        msg = f"there is no question {message['what']!r:.40}"
        raise ValueError(msg)

    async def _stream(self, number: int, message: Mapping[str, Any]) -> None:
        llm = self._context.llm
        if llm is None:
            msg = "there is no model"
            raise ValueError(msg)
        async with llm.stream_chat(message["messages"], **message["options"]) as stream:
            async for chunk in stream:
                await self._send({"id": number, "value": chunk})
                await asyncio.sleep(0)  # a reply from the cache comes without a pause
        await self._send({"id": number, "last": True})

    # How it ends.

    def _break(self, fault: str) -> None:
        """It is of no use any more, and why; whoever waits for it is told."""
        self._fault = self._fault or fault
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(self._died())

    def _said_too_much(self) -> None:
        self._break(self.limits.too_many_bytes())

    def _died(self) -> AgentError:
        if self._fault is not None:
            return AgentError(self._fault)
        code = self._process.exited.result() if self._process.exited.done() else 0
        words = self._process.last_words
        return AgentError(self.limits.death(code) + (f"; it said last: {words}" if words else ""))

    async def _wait_for_its_end(self) -> None:
        await asyncio.wait({self._process.exited})
        # What it sent before its end is still read; what it started may hold the wire open for long.
        await asyncio.wait({self._tasks[0]}, timeout=_DRAIN_S)
        self._fail_waiting()

    async def _watch_memory(self) -> None:
        most = self.limits.memory_mb * 1024 * 1024
        while not self._process.exited.done():
            if await asyncio.to_thread(memory_of, self._process.pid) > most:
                self._break(self.limits.too_much_memory())
                return
            await self._process.ended(_LOOK_S)

    async def _end(self) -> None:
        idle = self._ready and self._answer is None and self._fault is None
        if idle and not self._process.exited.done():
            await self._send({"do": "end"})
            await asyncio.wait({self._tasks[0]}, timeout=_GOODBYE_S)
        await self._process.end(clean=self._said_goodbye)
        for task in (*self._tasks, *self._asks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._asks.values(), return_exceptions=True)
