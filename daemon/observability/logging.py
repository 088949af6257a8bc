"""Log lines: structlog over the standard library, console for people, one JSON object a line for machines.

A line is made where it is logged and written by a thread (`sink.LineSink`), so logging never blocks the event
loop. Modules log through `logging`, with values in `extra`; only this file knows structlog.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TextIO

import structlog
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.typing import EventDict, Processor

from daemon.events import Event, ProposalChanged, RunFinished, RunOutcome, RunResult
from daemon.observability.redact import MAX_TEXT, Cleaner, escaped, secrets_of
from daemon.observability.sink import LineSink

QUIET = ("aiosqlite", "alembic", "apscheduler", "asyncio", "httpcore", "httpx", "sqlalchemy", "uvicorn")
"""Loggers of libraries: WARNING at least, whatever our level; at DEBUG some of them log prompts."""

FLUSH_LIMIT_S = 1.0
"""How long closing waits for lines to be written."""

_TRACEBACK = 8 * MAX_TEXT


class LogHandler(logging.Handler):
    """Formats each record at once and hands the line to the sink."""

    def __init__(self, formatter: logging.Formatter, sink: LineSink) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Make one line of `record`; a record that cannot be formatted is told as such, never raised."""
        try:
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


def configure_logging(
    level: str = "info",
    format: str = "auto",  # noqa: A002 - the name of the setting
    stream: TextIO | None = None,
    *,
    secrets: Iterable[str] = (),
) -> Callable[[], None]:
    """Send all logging of this process to `stream` from now on.

    Args:
        level: "debug", "info", "warning" or "error".
        format: "console" for people, "json" for machines; "auto" looks whether `stream` is a terminal.
        stream: where the lines go, standard error if None.
        secrets: values that must never appear, besides those of the environment (`*_API_KEY` and the like).

    Returns:
        What ends it: writes what waits, for at most a second, and restores what was before.

    Raises:
        ValueError: the level or the format is none of those above.
    """
    target = sys.stderr if stream is None else stream
    levels = logging.getLevelNamesMapping()
    if level.upper() not in levels or format not in ("auto", "console", "json"):
        msg = f"cannot log at level {level!r} in format {format!r}; levels are debug, info, warning and error"
        raise ValueError(msg)
    cleaner = Cleaner((*secrets, *secrets_of()))
    people = format == "console" or (format == "auto" and target.isatty())
    formatter = _formatter(cleaner, _console(target) if people else _json)
    handler = LogHandler(formatter, LineSink(target, notice=lambda n: _lost_notice(formatter, n)))
    return _install(handler, levels[level.upper()])


def dropped_lines() -> int:
    """How many log lines were lost so far because nobody read them fast enough."""
    handlers = logging.getLogger().handlers
    return sum(handler.sink.dropped for handler in handlers if isinstance(handler, LogHandler))


def _install(handler: LogHandler, level: int) -> Callable[[], None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, structlog.get_config())
    quiet = {name: logging.getLogger(name).level for name in QUIET}
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
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
        root.handlers[:], config = before[0], before[2]
        root.setLevel(before[1])
        for name, old in quiet.items():
            logging.getLogger(name).setLevel(old)
        structlog.configure(**config)
        handler.close()

    return restore


def _common() -> tuple[Processor, ...]:
    """What every line gets where it is logged: the run it belongs to, its logger, level and time."""
    return (
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    )


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


def log_event(event: Event) -> None:
    """One rich line per run and per decision: a subscriber of the event bus. New proposals at DEBUG."""
    match event:
        case RunFinished(result=result):
            _log_run(result)
        case ProposalChanged():
            _log_change(event)


def _log_run(result: RunResult) -> None:
    fine = result.outcome in (RunOutcome.SUCCEEDED, RunOutcome.CANCELLED)
    values = {
        "agent": result.agent,
        "run_id": result.run_id,
        "outcome": result.outcome.value,
        "trigger": result.trigger,
        "seconds": round(result.seconds, 3),
        "proposals": len(result.proposals),
        "duplicates": result.duplicates,
        "suppressed": result.suppressed,
        "over_cap": result.over_cap,
        "withdrawn": result.withdrawn,
        "calls": result.calls,
        "cached_calls": result.cached_calls,
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": result.completion_tokens,
        "backend": result.backend,
        "model": result.model,
        "error": result.error,
        "notes": list(result.notes) or None,
    }
    _log(logging.INFO if fine else logging.WARNING, "run finished", values)


def _log_change(event: ProposalChanged) -> None:
    proposal = event.proposal
    decision = proposal.decisions[-1] if proposal.decisions else None
    values = {
        "proposal": proposal.id,
        "agent": proposal.agent,
        "run_id": proposal.run_id,
        "status": proposal.status.value,
        "before": event.before.value if event.before else None,
        "kind": proposal.kind,
        "title": proposal.title,
        "by": decision.by if decision else None,
        "via": decision.via if decision else None,
        "error": proposal.error,
    }
    if event.before is None:  # the run's own line counts them
        _log(logging.DEBUG, "proposal made", values)
    else:
        _log(logging.INFO, "proposal changed", values)


def _log(level: int, text: str, values: dict[str, Any]) -> None:
    told = {name: value for name, value in values.items() if value is not None}
    structlog.stdlib.get_logger("askfirst").log(level, text, **told)
