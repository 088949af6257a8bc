"""The worker's own side: it loads one agent, does what the parent says, one thing after the other, and ends.

Standard input is the wire, both ways. It is put out of the agent's reach before anything of the agent's is
loaded: what that reads or prints by the ordinary names is nothing, or standard error. A thread of its own
reads the wire, so that a parent that is gone is noticed while the agent keeps the loop.
"""

from __future__ import annotations

import asyncio
import faulthandler
import itertools
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from agents.base import BaseAgent
from agents.confine import confine, has_descendants
from agents.context import AgentContext, ModelCall, utc_now
from agents.errors import AgentLoadError, InvalidProposal
from agents.prompts import templates_of
from agents.proposal import Proposal
from daemon.intake import MAX_NOTES, MAX_RETURNED, fit_call, fit_notes, fit_proposal, storable
from daemon.parts import QUIET
from daemon.plain import dumps, loads
from daemon.worker.proxy import distant
from daemon.worker.wire import MAX_LINE, MAX_TRACE, heard, spoken
from llm import calling

_ITEM_BYTES = 256 * 1024
"""A proposal that is larger is cut here as it would be there, so that one long text does not cost the run."""

_SMALL_CHANGE = 64 * 1024  # left of the bytes that may be handed over, for notes and the end
_SLACK = timedelta(seconds=1)
_MAX_LOG_TEXT = 2_000
_MAX_LOG_VALUES = 20
_RESERVE = 256 * 1024  # given up when the memory is used up, so that this can still be said


class Wire:
    """The wire to the parent, kept out of the agent's reach.

    Attributes:
        sent: bytes that were sent so far, questions to the model apart.
    """

    def __init__(self) -> None:
        self._fd = os.dup(0)  # not inherited by programs that the agent starts
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._rest = b""
        self.sent = 0
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message, from any thread.

        Raises:
            TypeError: it holds something that has no form on the wire.
        """
        self.send_line(dumps(message), counted=message["is"] not in {"ask", "drop"})

    def send_line(self, line: bytes, *, counted: bool = True) -> None:
        """Send one message that is a line already."""
        if os.getpid() != self._pid:  # a copy of us that the agent made must not answer in our stead
            os._exit(1)
        self.sent += len(line) if counted else 0
        rest = memoryview(line)
        try:
            with self._lock:
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
        except OSError:  # nobody listens any more
            os._exit(1)

    def read(self) -> Any:
        """The next message; None when the parent is gone."""
        pieces = [self._rest]
        while b"\n" not in pieces[-1]:
            piece = os.read(self._fd, 256 * 1024)
            if not piece:
                return None
            pieces.append(piece)
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return loads(line)


class _Told(list[Any]):
    """A list that tells when it is changed in the ways in which agents and `use_llm` change it."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__()
        self._tell = tell

    def append(self, value: Any) -> None:
        super().append(value)
        self._tell()

    def extend(self, values: Iterable[Any]) -> None:
        super().extend(values)
        self._tell()

    def __iadd__(self, values: Iterable[Any]) -> Self:  # type: ignore[misc]  # as of list itself
        self.extend(values)
        return self

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(index, value)
        self._tell()


class WireLog:
    """The agent's log: lines go to the parent, which logs them as the agent's.

    Args:
        wire: the way there.
        bound: values of every line.
        talkative: whether the parent wants lines at DEBUG; they count as bytes that are handed over.
    """

    def __init__(
        self, wire: Wire, bound: Mapping[str, Any] | None = None, *, talkative: bool = False
    ) -> None:
        self._wire = wire
        self._bound = dict(bound or {})
        self._talkative = talkative

    def bind(self, **values: Any) -> WireLog:
        """A log that says these values with every line."""
        return WireLog(self._wire, {**self._bound, **values}, talkative=self._talkative)

    def debug(self, event: str, *args: Any, **values: Any) -> None:
        """Log at DEBUG."""
        if self._talkative:
            self._say("debug", event, args, values)

    def info(self, event: str, *args: Any, **values: Any) -> None:
        """Log at INFO."""
        self._say("info", event, args, values)

    def warning(self, event: str, *args: Any, **values: Any) -> None:
        """Log at WARNING."""
        self._say("warning", event, args, values)

    def error(self, event: str, *args: Any, **values: Any) -> None:
        """Log at ERROR."""
        self._say("error", event, args, values)

    def exception(self, event: str, *args: Any, **values: Any) -> None:
        """Log at ERROR with what is being handled."""
        self._say("error", event, args, {**values, "traceback": _trace(sys.exc_info()[1])})

    def _say(self, level: str, event: str, args: tuple[Any, ...], values: Mapping[str, Any]) -> None:
        text = str(event)
        if args:
            with suppress(TypeError, ValueError):
                text = text % args
        chosen = itertools.islice({**self._bound, **values}.items(), _MAX_LOG_VALUES)
        said = {str(key): _shown(value) for key, value in chosen}
        self._wire.send({"is": "log", "level": level, "event": storable(text, _MAX_LOG_TEXT), "values": said})


class _Records(logging.Handler):
    """What the agent logs by the standard library goes the same way."""

    def __init__(self, log: WireLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one record on."""
        with suppress(Exception):  # a log line that cannot be made must not cost the run
            level = "error" if record.levelno >= logging.ERROR else record.levelname.lower()
            level = level if level in {"debug", "info", "warning", "error"} else "info"
            more = {} if record.exc_info is None else {"traceback": _trace(record.exc_info[1])}
            getattr(self._log, level)(record.getMessage(), module=record.name, **more)


def _shown(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    try:
        return storable(value if isinstance(value, str) else repr(value), _MAX_LOG_TEXT)
    except Exception:  # noqa: BLE001 - its __repr__ is anybody's code
        return f"a {type(value).__name__}"


def _trace(error: BaseException | None) -> str:
    if error is None:
        return ""
    lines = "".join(traceback.format_exception(error))
    return storable(lines[-MAX_TRACE:], MAX_TRACE)


class Parent:
    """The parent as the agent's model sees it: questions go up, answers come down."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Queue[Any]] = {}

    async def ask(self, what: str, **values: Any) -> Any:
        """The answer to one question; raises what the model raised."""
        async for value in self.pieces(what, **values):
            return value
        return None

    async def pieces(self, what: str, **values: Any) -> AsyncGenerator[Any, None]:
        """The answer in pieces."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.Queue()
        self._wire.send({"is": "ask", "id": number, "what": what, **values})
        ended = False
        try:
            while True:
                message = await self._waiting[number].get()
                ended = message.get("last", False)
                if "error" in message:
                    raise heard(message["error"])
                if "value" in message:
                    yield message["value"]
                if ended:
                    return
        finally:
            del self._waiting[number]
            if not ended:
                self._wire.send({"is": "drop", "id": number})

    def tell(self, what: str, **values: Any) -> None:
        """Something that needs no answer."""
        self._wire.send({"is": what, **values})

    def take(self, message: Mapping[str, Any]) -> None:
        """An answer came."""
        queue = self._waiting.get(message["id"])
        if queue is not None:
            queue.put_nowait(message)


class Child:
    """One agent, and what it is told to do."""

    def __init__(self, wire: Wire, start: Mapping[str, Any]) -> None:
        self._wire = wire
        self._start = start
        self._log = WireLog(wire, talkative=bool(start["talkative"]))
        self._parent = Parent(wire)
        self._orders: asyncio.Queue[Mapping[str, Any]] = asyncio.Queue()
        self._sent_calls: list[Any] = []
        self._sent_notes: tuple[str, ...] = ()
        self._agent: BaseAgent | None = None
        self._task: asyncio.Task[BaseException | None] | None = None
        self._stopped = False
        self._reserve = bytearray(_RESERVE)

    async def live(self) -> None:
        """Load the agent, and do what the parent says until it says that this is all."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(loop,), daemon=True).start()
        failure = await _caught(self._load())
        if failure is not None:
            self._failed(0, failure)
            return
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        self._wire.send({"is": "ready"})
        while not self._stopped:
            order = await self._orders.get()
            if order["do"] == "end":
                break
            await self._carry_out(order)

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        while (message := self._wire.read()) is not None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._take, message)
            if message.get("do") == "end":
                return
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)  # the parent is gone: nothing of ours shall outlive it
        os._exit(1)

    def _take(self, message: Mapping[str, Any]) -> None:
        if "do" in message:
            self._orders.put_nowait(message)
        else:
            self._parent.take(message)

    def _stop(self) -> None:
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
        self._orders.put_nowait({"do": "end"})

    async def _load(self) -> None:
        start = self._start
        kind = _class_of(start)
        llm = start["llm"]
        self._agent = kind(
            AgentContext(
                llm=None
                if llm is None
                else distant(llm["config"], llm["backend"], llm["name"], self._parent),
                templates=templates_of(kind, start["prompts_dir"]),
                settings=start["settings"],
                base_dir=start["base_dir"],
                data_dir=start["data_dir"],
                now=_clock(start["now"]),
                log=self._log,
                open_proposals=start["open_proposals"],
                turned_down=start["turned_down"],
                run_id=start["run_id"],
                calls=_Told(self._tell_calls),
                notes=_Told(self._tell_notes),
            )
        )

    async def _carry_out(self, order: Mapping[str, Any]) -> None:
        number = order["id"]
        with calling(agent=self._start["name"], run_id=self._start["run_id"]):
            self._task = asyncio.create_task(_caught(self._done(order)), name=f"run of {self._start['name']}")
        failure = await self._task
        if failure is not None:
            with suppress(Exception):  # what it put there may be anything; why it failed is still said
                self._tell_all()
            self._failed(number, failure)

    async def _done(self, order: Mapping[str, Any]) -> None:
        agent = self._agent
        if agent is None:
            msg = "there is no agent"
            raise AgentLoadError(msg)
        answer: dict[str, Any] = {}
        match order["do"]:
            case "recheck":
                why = await agent.recheck(order["proposal"])
                answer["value"] = None if why is None else storable(str(why), _MAX_LOG_TEXT)
            case "apply":
                answer = _as_answer(await agent.apply(order["proposal"]))
            case "undo":
                await agent.undo(order["proposal"])
            case _:
                still = order["still"]
                agent.context.open_proposals = tuple(p for p in agent.context.open_proposals if p.id in still)
                answer = self._hand_over(await agent.analyze())
        self._tell_all()
        self._wire.send({"is": "done", "id": order["id"], **answer})

    def _hand_over(self, returned: Any) -> dict[str, Any]:
        """Send what `analyze` returned, each on a line of its own, as far as there is room for it."""
        if not isinstance(returned, list | tuple):
            return {"odd": type(returned).__name__}
        looked_at = returned[:MAX_RETURNED]
        most = int(self._start["max_bytes"]) - _SMALL_CHANGE
        sent = 0
        for item in looked_at:
            line = _line_of(item, self._start["name"])
            if self._wire.sent + len(line) > most:
                break
            self._wire.send_line(line)
            sent += 1
        return {"over": len(looked_at) - sent, "more": len(returned) - len(looked_at)}

    def _failed(self, number: int, failure: BaseException) -> None:
        memory = isinstance(failure, MemoryError)
        if memory:
            self._reserve = bytearray()
        self._wire.send(
            {
                "is": "failed",
                "id": number,
                "error": spoken(failure),
                "memory": memory,
                "trace": _trace(failure),
            }
        )

    def _tell_all(self) -> None:
        self._tell_calls()
        self._tell_notes()

    def _tell_calls(self) -> None:
        """Send those calls that are new or have become others since the last time."""
        given: Iterable[Any] = () if self._agent is None else self._agent.context.calls
        for index, call in enumerate(each for each in given if isinstance(each, ModelCall)):
            if index < len(self._sent_calls) and self._sent_calls[index] is call:
                continue
            self._wire.send({"is": "call", "index": index, "call": fit_call(call)})
            self._sent_calls[index : index + 1] = [call]

    def _tell_notes(self) -> None:
        if self._agent is None or not isinstance(self._agent.context.notes, list):
            return
        notes = fit_notes(self._agent.context.notes[:MAX_NOTES])
        if notes != self._sent_notes:
            self._sent_notes = notes
            self._wire.send({"is": "notes", "notes": list(notes)})


def _class_of(start: Mapping[str, Any]) -> type[BaseAgent]:
    """The agent's class, loaded here."""
    if start["origin"] != "plugin":
        from agents.registry import AgentEntry, load_entry  # noqa: PLC0415 - plugins need none of it

        return load_entry(AgentEntry(start["name"], start["origin"], start["location"]))
    from agents.plugins import load_plugin  # noqa: PLC0415 - the others need none of it

    for agent in load_plugin(start["location"]).agents:
        if agent.name == start["name"]:
            return agent
    msg = f"the plugin {start['location']} defines no agent {start['name']!r} any more; start the daemon anew"
    raise AgentLoadError(msg)


def _clock(moment: datetime) -> Callable[[], datetime]:
    """The parent's clock: the system's, unless it was given another one."""
    ahead = moment - utc_now()
    return utc_now if abs(ahead) < _SLACK else lambda: datetime.now(UTC) + ahead


async def _caught(work: Coroutine[Any, Any, None]) -> BaseException | None:
    """What `work` raised, whatever it was."""
    try:
        await work
    except BaseException as error:  # noqa: BLE001 - the parent is told of it
        return error
    return None


def _line_of(item: Any, agent: str) -> bytes:
    """One returned thing as a message: a proposal, or what keeps it from being one."""
    try:
        if isinstance(item, Proposal):
            line = dumps({"is": "item", "item": item})
            if len(line) <= _ITEM_BYTES:
                return line
    except (TypeError, ValueError, RecursionError):
        pass  # a field of another kind than it should be: the check below says which
    try:
        return dumps({"is": "item", "item": fit_proposal(item, agent)})
    except InvalidProposal as error:
        return dumps({"is": "item", "refused": str(error)})
    except (TypeError, ValueError, RecursionError) as error:
        return dumps({"is": "item", "refused": f"it cannot be handed over: {error}"})


def _as_answer(undo_data: Any) -> dict[str, Any]:
    """Undo data as the parent gets them; what it does not get is told, since the change has happened."""
    try:
        plain = None if undo_data is None else dict(undo_data)
        line = dumps({"value": plain})
    except (TypeError, ValueError, RecursionError):
        return {"odd": type(undo_data).__name__}
    return {"large": len(line)} if len(line) > MAX_LINE // 2 else {"value": plain}


def _listen_to_loggers(log: WireLog, *, talkative: bool) -> None:
    """Hand on what is logged by the standard library: as quiet about libraries as the parent itself is."""
    logging.basicConfig(level=logging.INFO, handlers=[_Records(log)])
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    if talkative:
        from agents.plugins import PREFIX  # noqa: PLC0415 - not every agent is a plugin

        for name in ("agents", PREFIX):
            logging.getLogger(name).setLevel(logging.DEBUG)


def work() -> None:
    """Be a worker: from the first line on the wire to the last."""
    wire = Wire()
    start = wire.read()
    if start is None:
        return
    confine(start["memory_mb"], start["cpu_seconds"])
    faulthandler.enable()  # the last words of one that crashes
    if sys.stdout is not None:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a text stream
    _listen_to_loggers(WireLog(wire, talkative=bool(start["talkative"])), talkative=bool(start["talkative"]))
    asyncio.run(Child(wire, start).live())
    wire.send({"is": "bye", "children": has_descendants()})
