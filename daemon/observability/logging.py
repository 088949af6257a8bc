"""Log lines: structlog over the standard library, console for people, one JSON object a line for machines.

A line is made where it is logged and written by a thread (`sink.LineSink`), so logging never blocks the event
loop. Modules log through `logging`, with values in `extra`; only this file knows structlog. What a line is
about (run, proposal, model call) is put into it here, from `context`. Where standard error is journald's,
lines are entries of its own kind (`journal`).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from agents.proposal import Proposal, ProposalStatus
from daemon.lean import without

with without("rich"):  # 3 MB for tracebacks in colour, which are not asked for
    import structlog
    from structlog.dev import ConsoleRenderer, plain_traceback
    from structlog.typing import EventDict, Processor

from daemon.events import (
    AgentStateChanged,
    Event,
    ProposalChanged,
    RunBegun,
    RunFinished,
    RunOutcome,
    RunResult,
)
from daemon.observability.calls import CallLog
from daemon.observability.context import what_it_is_about
from daemon.observability.journal import SOCKET, Journal, entry_of
from daemon.observability.levels import LogLevels
from daemon.observability.redact import MAX_TEXT, Cleaner, escaped, secrets_of
from daemon.observability.sink import LineSink
from daemon.parts import LEVELS

FLUSH_LIMIT_S = 1.0
"""How long closing waits for lines to be written."""

_TRACEBACK = 8 * MAX_TEXT


REPEAT_S = 300.0
"""The same warning is told again after this long at the earliest, with how often it came meanwhile."""

_MOST_REMEMBERED = 200
_S = ProposalStatus
_CARRIED_OUT = frozenset({_S.APPLYING, _S.UNDOING})
_COUNTS = frozenset(
    {
        "cached_calls", "calls", "completion_tokens", "duplicates", "over_cap", "prompt_tokens",
        "suppressed", "withdrawn",
    }
)  # fmt: skip
_SHOWN_BY_JOURNAL = frozenset({"timestamp", "level", "logger"})
_USUAL = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class LogHandler(logging.Handler):
    """Formats each record at once and hands the line to the sink; a warning that repeats is told once.

    Args:
        formatter: makes the line.
        sink: takes it.
        cleaner: what the formatter keeps secrets out of the line with.
        levels: which lines come here at all.
    """

    def __init__(
        self, formatter: logging.Formatter, sink: LineSink, cleaner: Cleaner, levels: LogLevels
    ) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.sink = sink
        self.cleaner = cleaner
        self.levels = levels
        self._repeats = _Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        """Make one line of `record`; a record that cannot be formatted is told as such, never raised."""
        try:
            if self._repeats.tells(record):
                self.sink.put(self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - logging must not fail its caller, nor print to a stalled stderr
            self._tell_unformatted(record)

    def _tell_unformatted(self, record: logging.LogRecord) -> None:
        plain = logging.LogRecord(
            record.name, record.levelno, "", 0, f"unreadable log record: {record.msg!r:.500}", None, None
        )
        try:
            self.sink.put(self.format(plain) + "\n")
        except Exception:  # noqa: BLE001 - as above
            self.sink.lose()

    def close(self) -> None:
        """Write what waits, within a limit."""
        self.sink.close(FLUSH_LIMIT_S)
        super().close()


class _Repeats:
    """Knows which warnings were told lately, so that one fault does not fill the log."""

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[Any, ...], tuple[float, int]] = OrderedDict()

    def tells(self, record: logging.LogRecord) -> bool:
        """Whether to tell it; one that came often meanwhile gets `repeated`, the number of times."""
        if record.levelno < logging.WARNING:
            return True
        known = (record.name, record.levelno, *_marks(record))
        now = time.monotonic()
        told_at, since = self._told.get(known, (-REPEAT_S, 0))
        if now - told_at < REPEAT_S:
            self._told[known] = (told_at, since + 1)
            return False
        if since:
            record.repeated = since
        self._told[known] = (now, 0)
        self._told.move_to_end(known)
        while len(self._told) > _MOST_REMEMBERED:
            self._told.popitem(last=False)
        return True


def _marks(record: logging.LogRecord) -> tuple[Any, ...]:
    """What makes two records of one place differ: what they say, of whom, and what was raised."""
    if isinstance(record.msg, dict):  # structlog's
        return tuple((name, str(value)) for name, value in record.msg.items() if name != "timestamp")
    extras = ((name, str(value)) for name, value in record.__dict__.items() if name not in _USUAL)
    raised = record.exc_info[0] if isinstance(record.exc_info, tuple) else None
    return (record.getMessage(), raised, *extras)


def configure_logging(
    level: str = "info",
    format: str = "auto",  # noqa: A002 - the name of the setting
    stream: TextIO | None = None,
    *,
    secrets: Iterable[str] = (),
    levels: Mapping[str, str] | None = None,
    journal: Path = SOCKET,
) -> Callable[[], None]:
    """Send all logging of this process to `stream` from now on.

    Args:
        level: "debug", "info", "warning" or "error".
        format: "console" for people, "json" for machines; "auto" looks whether `stream` is a terminal.
        stream: where the lines go, standard error if None. If it leads to journald, they go there as entries.
        secrets: values that must never appear, besides those of the environment (`*_API_KEY` and the like).
        levels: levels of single parts, checked by `daemon.parts`.
        journal: journald's socket.

    Returns:
        What ends it: writes what waits, for at most a second, and restores what was before.

    Raises:
        ValueError: the level or the format is none of those above.
    """
    target = sys.stderr if stream is None else stream
    if level.lower() not in LEVELS or format not in ("auto", "console", "json"):
        msg = f"cannot log at level {level!r} in format {format!r}; levels are debug, info, warning and error"
        raise ValueError(msg)
    cleaner = Cleaner((*secrets, *secrets_of()))
    is_journal = _is_journal(target)
    formatter = _formatter(cleaner, _renderer(format, target, is_journal=is_journal))
    sink = LineSink(
        target,
        notice=lambda n: _lost_notice(formatter, n),
        journal=Journal(journal) if is_journal else None,
    )
    return _install(LogHandler(formatter, sink, cleaner, LogLevels(level.lower(), levels)))


def _renderer(form: str, target: TextIO, *, is_journal: bool) -> Processor:
    if is_journal:
        return _entry(_json if form == "json" else _message())
    people = form == "console" or (form == "auto" and target.isatty())
    return _console(target) if people else _json


def _is_journal(stream: TextIO) -> bool:
    """Whether what is written there goes straight to journald: systemd says so in the environment."""
    try:
        state = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM", "") == f"{state.st_dev}:{state.st_ino}"


def adjust_logging(level: str, secrets: Iterable[str] = (), levels: Mapping[str, str] | None = None) -> None:
    """Log from another level on, as `configure_logging` would, and keep more values out of the lines.

    What was asked for by a command stays in force.

    Args:
        level: "debug", "info", "warning" or "error".
        secrets: values that must never appear, besides those that are known.
        levels: levels of single parts; None leaves them as they are.
    """
    for handler in _handlers():
        handler.cleaner.hide(secrets)
        handler.levels.follow(level.lower(), levels)


def dropped_lines() -> int:
    """How many log lines were lost so far because nobody read them fast enough."""
    return sum(handler.sink.dropped for handler in _handlers())


def waiting_lines() -> int:
    """How many log lines wait for whoever reads them."""
    return sum(handler.sink.waiting for handler in _handlers())


def _handlers() -> list[LogHandler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, LogHandler)]


def _install(handler: LogHandler) -> Callable[[], None]:
    root = logging.getLogger()
    before = (root.handlers[:], structlog.get_config())
    root.handlers[:] = [handler]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_common(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    logging.captureWarnings(capture=True)  # they would be printed to a standard error that may be stuck

    ended = False

    def restore() -> None:
        nonlocal ended
        if ended:
            return
        ended = True
        logging.captureWarnings(capture=False)
        root.handlers[:], config = before
        handler.levels.restore()
        structlog.configure(**config)
        handler.close()

    return restore


def _common() -> tuple[Processor, ...]:
    """What every line gets where it is logged: the run it belongs to, its logger, level and time."""
    return (
        structlog.contextvars.merge_contextvars,
        _with_context,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    )


def _with_context(_logger: Any, _method: str, event: EventDict) -> EventDict:
    for name, value in what_it_is_about().items():
        event.setdefault(name, value)
    return event


def _formatter(cleaner: Cleaner, renderer: Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*_common(), structlog.stdlib.ExtraAdder()],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            _Clean(cleaner),
            renderer,
        ],
    )


class _Clean:
    """Puts the fields of a line in order, each without secrets and of bounded length."""

    def __init__(self, cleaner: Cleaner) -> None:
        self._cleaner = cleaner

    def __call__(self, _logger: Any, _method: str, event: EventDict) -> EventDict:
        traceback = event.pop("exception", None)
        first = {name: event.pop(name, "") for name in ("timestamp", "level", "event", "logger")}
        line = self._cleaner.mapping({**first, **event})
        if traceback:
            line["exception"] = self._cleaner.text(str(traceback), _TRACEBACK)
        return line


def _json(_logger: Any, _method: str, event: EventDict) -> str:
    # json escapes the controls below a blank; `escaped` adds the others, in the same notation.
    return escaped(json.dumps(event, ensure_ascii=False))


def _entry(message: Processor) -> Processor:
    """An entry of the journal: what `message` makes of the line for people, and each value as a field."""

    def renderer(logger: Any, method: str, event: EventDict) -> str:
        return entry_of(event, str(message(logger, method, dict(event))))

    return renderer


def _message() -> Processor:
    """As on a console, without what the journal keeps and shows itself: time, level and logger."""
    render = ConsoleRenderer(
        colors=False, sort_keys=False, pad_event_to=0, exception_formatter=plain_traceback
    )

    def renderer(logger: Any, method: str, event: EventDict) -> str:
        shown = {name: value for name, value in event.items() if name not in _SHOWN_BY_JOURNAL}
        return str(render(logger, method, _for_a_terminal(shown)))

    return renderer


def _console(stream: TextIO) -> Processor:
    colors = stream.isatty() and not os.environ.get("NO_COLOR")
    render = ConsoleRenderer(
        colors=colors, sort_keys=False, pad_event_to=24, exception_formatter=plain_traceback
    )

    def renderer(logger: Any, method: str, event: EventDict) -> str:
        event["timestamp"] = _local_time(event["timestamp"])
        return str(render(logger, method, _for_a_terminal(event)))

    return renderer


def _for_a_terminal(event: EventDict) -> EventDict:
    """All on one line, but a traceback, whose lines are indented so that none can pose as a log line."""
    safe: EventDict = {}
    for name, value in event.items():
        if value == 0 and name in _COUNTS:  # what did not happen
            continue
        if name == "exception":
            safe[name] = "\n".join("    " + escaped(line) for line in value.split("\n"))
        else:
            safe[escaped(name)] = escaped(value if isinstance(value, str) else json.dumps(value))
    return safe


def _local_time(stamp: str) -> str:
    return datetime.fromisoformat(stamp).astimezone().strftime("%H:%M:%S")


def _lost_notice(formatter: logging.Formatter, count: int) -> str:
    record = logging.LogRecord(__name__, logging.WARNING, "", 0, "log lines were lost", None, None)
    record.count = count
    return formatter.format(record) + "\n"


class EventLog:
    """One rich line per run and per decision. New proposals at DEBUG.

    An agent's first failure is a warning; the same one again is told as information, with how often it came,
    and so is the run that succeeds after it.

    Args:
        calls: knows what the model calls of a run amount to.
    """

    def __init__(self, calls: CallLog | None = None) -> None:
        self._calls = calls
        self._failures: dict[str, tuple[tuple[RunOutcome, str | None], int]] = {}

    def note(self, event: Event) -> None:
        """Write what happened: a subscriber of the event bus."""
        match event:
            case RunBegun():
                values = {"agent": event.agent, "run_id": event.run_id, "trigger": event.trigger}
                _log(logging.DEBUG, "run began", values)
            case RunFinished(result=result):
                self._run(result)
            case ProposalChanged():
                _log_change(event)
            case AgentStateChanged():
                _log_state(event)
            case _:
                pass

    def _run(self, result: RunResult) -> None:
        calls = {} if self._calls is None else self._calls.taken(result.run_id)
        if result.outcome is RunOutcome.CANCELLED:
            _log_run(result, logging.INFO, calls)
            return
        before, count = self._failures.pop(result.agent, (None, 0))
        if result.outcome is RunOutcome.SUCCEEDED:
            _log_run(result, logging.INFO, calls, failures_before=count or None)
            return
        failure = (result.outcome, result.error)
        self._failures[result.agent] = (failure, count + 1)
        _log_run(result, logging.INFO if failure == before else logging.WARNING, calls, failures=count + 1)


def _log_state(event: AgentStateChanged) -> None:
    status = event.status
    values = {
        "agent": status.agent,
        "state": status.state.value,
        "before": event.before.value,
        "by": status.by or None,
        "reason": status.reason or None,
    }
    _log(logging.INFO, "agent changed", values)


def _log_run(result: RunResult, level: int, calls: Mapping[str, Any], **more: Any) -> None:
    late = None if result.due is None else max(0.0, (result.started_at - result.due).total_seconds())
    values = {
        "agent": result.agent,
        "run_id": result.run_id,
        "outcome": result.outcome.value,
        "trigger": result.trigger,
        "seconds": round(result.seconds, 3),
        "late_seconds": None if late is None else round(late, 3),
        "proposals": len(result.proposals),
        "duplicates": result.duplicates,
        "suppressed": result.suppressed,
        "over_cap": result.over_cap,
        "withdrawn": result.withdrawn,
        "calls": result.calls,
        "cached_calls": result.cached_calls,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        **calls,
        "backend": result.backend,
        "model": result.model,
        "error": result.error,
        "notes": list(result.notes) or None,
        "due": result.due.isoformat() if result.due else None,
        "attempt": result.attempt if result.attempt > 1 else None,
        **more,
    }
    _log(level, "run finished", values)


def _log_change(event: ProposalChanged) -> None:
    proposal = event.proposal
    values = {
        "proposal": proposal.id,
        "agent": proposal.agent,
        "run_id": proposal.run_id,
        "status": proposal.status.value,
        "before": event.before.value if event.before else None,
        "kind": proposal.kind,
        "title": proposal.title,
        **_decided(proposal, event.before),
        "error": proposal.error,
    }
    if event.before is None:  # the run's own line counts them
        _log(logging.DEBUG, "proposal made", {**values, "call_ids": list(proposal.call_ids) or None})
    else:
        _log(logging.INFO, "proposal changed", values)


def _decided(proposal: Proposal, before: ProposalStatus | None) -> dict[str, Any]:
    """Who brought the change, through what and after how long; nothing if time or the agent did."""
    decision = proposal.decisions[-1] if proposal.decisions else None
    changed = proposal.updated_at
    if decision is None or changed is None:
        return {}
    person = {"by": decision.by, "via": decision.via}
    if decision.at == changed:
        made = proposal.created_at or changed
        waited = round(max(0.0, (changed - made).total_seconds()), 3)
        return {"action": decision.action, **person, "waited_seconds": waited}
    if before in _CARRIED_OUT or proposal.status is _S.NEEDS_ATTENTION:  # what was decided then has its end
        return {**person, "seconds": round((changed - decision.at).total_seconds(), 3)}
    return {}


def _log(level: int, text: str, values: dict[str, Any]) -> None:
    told = {name: value for name, value in values.items() if value is not None}
    structlog.stdlib.get_logger("askfirst").log(level, text, **told)
