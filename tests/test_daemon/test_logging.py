"""Log lines: one a line, without secrets, and never a reason for the event loop to wait."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import itertools
import json
import logging
import os
import pty
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from agents.proposal import Decision, Proposal, ProposalStatus
from daemon.events import ProposalChanged, RunFinished, RunOutcome, RunResult
from daemon.observability.logging import EventLog, configure_logging, dropped_lines, waiting_lines
from daemon.parts import QUIET
from tests.support.journald import leading_to_the_journal

ROOT = Path(__file__).parents[2]
BEGAN = datetime(2026, 11, 1, 12, tzinfo=UTC)

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def json_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Logging as JSON into memory; calling the fixture ends it and gives the lines."""
    monkeypatch.setenv("LLM_API_KEY", "canary-2718281828")
    stream = io.StringIO()
    close = configure_logging("debug", "json", stream)

    def lines() -> list[dict[str, Any]]:
        close()
        return [json.loads(line) for line in stream.getvalue().split("\n") if line]

    yield lines
    close()


def console_text(log: Callable[[], None]) -> str:
    stream = io.StringIO()
    close = configure_logging("info", "console", stream)
    try:
        log()
    finally:
        close()
    return stream.getvalue()


def fail(text: str) -> None:
    raise ValueError(text)


def a_result(**changes: Any) -> RunResult:
    fields: dict[str, Any] = {
        "run_id": "r1",
        "agent": "matchmaker",
        "trigger": "schedule",
        "outcome": RunOutcome.SUCCEEDED,
        "started_at": BEGAN,
        "finished_at": BEGAN + timedelta(seconds=1.25),
    }
    return RunResult(**(fields | changes))


def test_a_line_is_one_json_object_with_time_level_event_and_values(json_lines: Lines) -> None:
    structlog.stdlib.get_logger("askfirst").info(
        "hello", count=3, share=0.5, tags=["a", "b"], nested={"x": None}
    )
    (line,) = json_lines()
    assert datetime.fromisoformat(line.pop("timestamp")).utcoffset() == timedelta(0)
    assert line == {
        "level": "info",
        "event": "hello",
        "logger": "askfirst",
        "count": 3,
        "share": 0.5,
        "tags": ["a", "b"],
        "nested": {"x": None},
    }


def test_lines_of_the_standard_library_look_the_same_with_their_extra_values(json_lines: Lines) -> None:
    logging.getLogger("some.module").warning("clock was set by %d s", 5, extra={"step": 5})
    (line,) = json_lines()
    assert line["event"] == "clock was set by 5 s"
    assert (line["level"], line["logger"], line["step"]) == ("warning", "some.module", 5)


def test_what_is_bound_to_the_context_is_on_every_line_of_it(json_lines: Lines) -> None:
    with structlog.contextvars.bound_contextvars(agent="matchmaker", run_id="r7"):
        structlog.stdlib.get_logger("a").info("one")
        logging.getLogger("b").info("two")
    logging.getLogger("b").info("three")
    one, two, three = json_lines()
    assert (one["agent"], one["run_id"]) == (two["agent"], two["run_id"]) == ("matchmaker", "r7")
    assert "run_id" not in three


HOSTILE = "a\nb\rc\x1b[2Jd\x00e\x7f\x9bf\u2028g\u202eh\ud800i"


def test_control_characters_cannot_begin_a_new_line_nor_drive_a_terminal(json_lines: Lines) -> None:
    structlog.stdlib.get_logger("x").info(HOSTILE, **{"key\n": HOSTILE, "list": [HOSTILE]})
    stream_text = json_lines()
    assert len(stream_text) == 1
    assert stream_text[0]["event"] == HOSTILE


@pytest.mark.parametrize("form", ["json", "console"])
def test_only_printable_characters_and_line_ends_are_written(form: str) -> None:
    stream = io.StringIO()
    close = configure_logging("info", form, stream)
    structlog.stdlib.get_logger("x").info(
        HOSTILE, **{"key\n": HOSTILE, "list": [HOSTILE], "map": {HOSTILE: 1}}
    )
    try:
        fail(HOSTILE)
    except ValueError:
        logging.getLogger("y").exception(HOSTILE)
    close()
    written = stream.getvalue()
    assert "ValueError" in written
    assert [c for c in written if not (c.isprintable() or c == "\n")] == []


def test_a_forged_line_in_an_exception_stays_indented_on_the_console() -> None:
    def log() -> None:
        try:
            fail("bad\n12:00:00 [info     ] proposal approved by=you")
        except ValueError:
            logging.getLogger("y").exception("run failed")

    lines = console_text(log).rstrip("\n").split("\n")
    assert len([line for line in lines if not line.startswith("    ")]) == 1
    assert any("proposal approved" in line for line in lines)


def test_secrets_of_the_environment_are_nowhere_in_the_lines(json_lines: Lines) -> None:
    secret = os.environ["LLM_API_KEY"]
    try:
        fail(f"401 for key {secret}")
    except ValueError:
        logging.getLogger("x").exception("refused %s", secret, extra={"detail": [secret, {secret: secret}]})
    (line,) = json_lines()
    assert "2718281828" not in json.dumps(line)
    assert "[redacted]" in line["event"]
    assert "[redacted]" in line["exception"]


@pytest.mark.parametrize(
    "text",
    [
        "sk-ant-api03-abcdefghijklmnopqrstuvwxyz",
        "Authorization: Bearer abcdefghijklmnop",
        "hf_abcdefghijklmnopqrstuvwxyz",
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "http://user:abcdefghijklmnop@host/",
    ],
)
def test_what_looks_like_a_key_is_hidden_though_nobody_named_it(json_lines: Lines, text: str) -> None:
    logging.getLogger("x").info("sent %s", text)
    (line,) = json_lines()
    assert "abcdefghijklmnop" not in line["event"]
    assert "[redacted]" in line["event"]


def test_a_value_whose_name_says_that_it_is_secret_is_hidden(json_lines: Lines) -> None:
    values = {"api_key": "short", "headers": {"X-Api-Key": "k", "Authorization": "v"}, "prompt_tokens": 12}
    structlog.stdlib.get_logger("x").info("call", **values)
    (line,) = json_lines()
    assert line["api_key"] == "[redacted]"
    assert line["headers"] == {"X-Api-Key": "[redacted]", "Authorization": "[redacted]"}
    assert line["prompt_tokens"] == 12


def test_a_secret_of_the_configuration_file_is_hidden_too() -> None:
    stream = io.StringIO()
    close = configure_logging("info", "json", stream, secrets=["from-the-file-1", "ollama"])
    logging.getLogger("x").info("key from-the-file-1 for ollama")
    close()
    assert json.loads(stream.getvalue())["event"] == "key [redacted] for ollama"


def test_long_values_are_cut_and_say_so(json_lines: Lines) -> None:
    logging.getLogger("x").info("y" * 1_000_000, extra={"many": list(range(10_000))})
    (line,) = json_lines()
    assert len(line["event"]) < 2_100
    assert line["event"].endswith("(998000 more characters)")
    assert len(line["many"]) == 50


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def test_a_record_that_cannot_be_formatted_is_told_and_raises_nothing() -> None:
    stream = io.StringIO()
    close = configure_logging("info", "json", stream)
    logging.getLogger("x").info("%d apples", "five")
    logging.getLogger("x").info("odd", extra={"thing": Unprintable(), "nan": float("nan"), "big": 10**5000})
    close()
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert "%d apples" in first["event"]
    assert second["thing"] == "<Unprintable>"
    assert second["nan"] == "nan"
    assert second["big"] == "<int>"


def test_levels_hold_and_libraries_stay_quiet() -> None:
    stream = io.StringIO()
    close = configure_logging("debug", "json", stream)
    logging.getLogger("askfirst").debug("ours")
    for name in QUIET:
        logging.getLogger(name).info("theirs")
        logging.getLogger(f"{name}.part").debug("theirs")
    logging.getLogger("httpx").warning("worth knowing")
    close()
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["ours", "worth knowing"]


def test_warnings_become_lines(json_lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old habit", DeprecationWarning, stacklevel=1)
    (line,) = json_lines()
    assert line["logger"] == "py.warnings"
    assert "old habit" in line["event"]


def test_everything_is_as_before_once_it_is_closed() -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, structlog.get_config(), logging.getLogger("httpx").level)
    close = configure_logging("debug", "json", io.StringIO())
    assert root.handlers != before[0]
    close()
    assert (root.handlers[:], root.level, structlog.get_config(), logging.getLogger("httpx").level) == before


@pytest.mark.parametrize(("level", "form"), [("loud", "json"), ("info", "xml")])
def test_an_unknown_level_or_format_is_refused(level: str, form: str) -> None:
    with pytest.raises(ValueError, match="cannot log at level"):
        configure_logging(level, form)


def at_a_terminal() -> str:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream:
        close = configure_logging("info", "auto", stream)
        EventLog().note(RunFinished(result=a_result(calls=1)))
        close()
        shown = os.read(controller, 10_000).decode()
    os.close(controller)
    return shown


def test_a_terminal_has_colours_and_nothing_that_did_not_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in at_a_terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = at_a_terminal().rstrip()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d \[info +\] run finished +\[askfirst\] agent=matchmaker run_id=r1 outcome=succeeded "
        r"trigger=schedule seconds=1.25 proposals=0 calls=1",
        plain,
    ), plain


def test_auto_means_console_at_a_terminal_and_json_elsewhere(tmp_path: Path) -> None:
    assert not at_a_terminal().startswith("{")
    with (tmp_path / "log").open("w+") as stream:
        close = configure_logging("info", "auto", stream)
        logging.getLogger("x").info("for machines")
        close()
        stream.seek(0)
        assert json.loads(stream.read())["event"] == "for machines"


def test_one_rich_line_per_run(json_lines: Lines) -> None:
    EventLog().note(
        RunFinished(result=a_result(calls=2, cached_calls=1, prompt_tokens=90, backend="ollama", model="m"))
    )
    EventLog().note(RunFinished(result=a_result(outcome=RunOutcome.FAILED, error="SourceError: needs.csv:3")))
    good, bad = json_lines()
    assert (good["level"], good["event"], good["outcome"]) == ("info", "run finished", "succeeded")
    assert (good["agent"], good["run_id"], good["seconds"]) == ("matchmaker", "r1", 1.25)
    assert (good["calls"], good["cached_calls"], good["prompt_tokens"]) == (2, 1, 90)
    assert (good["backend"], good["model"]) == ("ollama", "m")
    assert {"error", "late_seconds", "usd", "retries"}.isdisjoint(good)
    assert (bad["level"], bad["outcome"]) == ("warning", "failed")
    assert bad["error"] == "SourceError: needs.csv:3"


def test_one_rich_line_per_change_of_a_proposal(json_lines: Lines) -> None:
    proposal = Proposal(
        id=3,
        agent="matchmaker",
        kind="match",
        title="Tomatoes for\nMaria",
        explanation="",
        payload={},
        fingerprint="f",
        run_id="r1",
        call_ids=("c1", "c2"),
        created_at=BEGAN,
        updated_at=BEGAN,
    )
    EventLog().note(ProposalChanged(proposal=proposal, before=None))
    later = BEGAN + timedelta(minutes=2)
    decided = proposal.with_changes(
        status=ProposalStatus.APPROVED,
        updated_at=later,
        decisions=(Decision(action="approve", by="ana", via="cli", at=later),),
    )
    EventLog().note(ProposalChanged(proposal=decided, before=ProposalStatus.PENDING))
    done = decided.with_changes(status=ProposalStatus.APPLIED, updated_at=later + timedelta(seconds=0.25))
    EventLog().note(ProposalChanged(proposal=done, before=ProposalStatus.APPLYING))
    gone = decided.with_changes(
        status=ProposalStatus.WITHDRAWN, updated_at=later + timedelta(days=1), error="too late"
    )
    EventLog().note(ProposalChanged(proposal=gone, before=ProposalStatus.APPROVED))
    made, approved, applied, expired = json_lines()
    # The run's own line counts the proposals that it made, so that each is told at DEBUG only.
    assert (made["level"], approved["level"]) == ("debug", "info")
    assert (made["event"], made["proposal"], made["status"]) == ("proposal made", 3, "pending")
    assert made["title"] == "Tomatoes for\nMaria"
    assert (approved["event"], approved["before"], approved["status"]) == (
        "proposal changed",
        "pending",
        "approved",
    )
    assert made["call_ids"] == ["c1", "c2"]
    decision = ("action", "by", "via", "waited_seconds")
    assert [approved[name] for name in decision] == ["approve", "ana", "cli", 120.0]
    # What came of the decision names who decided, and how long it took; what time does, nobody decided.
    assert (applied["by"], applied["via"], applied["seconds"]) == ("ana", "cli", 0.25)
    assert {"action", "waited_seconds"}.isdisjoint(applied)
    assert {*decision, "seconds"}.isdisjoint(expired)
    assert expired["error"] == "too late"


def read_all(fd: int) -> str:
    """What a pipe holds, without waiting for more."""
    os.set_blocking(fd, False)
    parts: list[bytes] = []
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            part = os.read(fd, 1 << 20)
        except BlockingIOError:
            if parts and b"log lines were lost" in b"".join(parts):
                break
            time.sleep(0.01)  # the writer thread is at work
            continue
        if not part:
            break
        parts.append(part)
    return b"".join(parts).decode()


async def test_a_pipe_that_nobody_reads_never_stops_the_event_loop() -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    worst = 0.0

    async def heartbeat() -> None:
        nonlocal worst
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.01)
            worst = max(worst, time.perf_counter() - began - 0.01)

    with os.fdopen(writing, "w") as stream:
        close = await asyncio.to_thread(configure_logging, "info", "json", stream)
        pulse = asyncio.create_task(heartbeat())
        for n in range(6_000):
            logging.getLogger("x").info("line", extra={"n": n, "text": "y" * 400})
            if n % 10 == 0:
                await asyncio.sleep(0)
        pulse.cancel()
        lost = dropped_lines()
        assert lost > 1_000
        assert worst < 1.0  # blocked for good without the queue

        lines = [json.loads(line) for line in (await asyncio.to_thread(read_all, reading)).splitlines()]
        kept = [line["n"] for line in lines if line["event"] == "line"]
        # In their order; which ones depends on when the writer thread first got its turn.
        assert kept == sorted(set(kept))
        assert len(kept) + lost == 6_000
        assert [line["count"] for line in lines if line["event"] == "log lines were lost"] == [lost]
        await asyncio.to_thread(close)
    os.close(reading)


def test_closing_gives_up_on_a_pipe_that_nobody_reads() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        close = configure_logging("info", "json", stream)
        for n in range(3_000):
            logging.getLogger("x").info("line", extra={"n": n, "text": "y" * 400})
        began = time.monotonic()
        close()
        assert time.monotonic() - began < 10
        os.close(reading)  # the writer thread wakes with a broken pipe and ends


def test_a_reader_that_went_away_costs_lines_and_nothing_else() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        close = configure_logging("info", "json", stream)
        os.close(reading)
        for _ in range(5):
            logging.getLogger("x").info("into the void")
        handler = logging.getLogger().handlers[0]
        close()
    assert handler.sink.dropped == 5  # type: ignore[attr-defined]


def test_a_non_blocking_pipe_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(writing, "w") as stream:
        close = configure_logging("info", "json", stream)
        for n in range(400):
            logging.getLogger("x").info("line", extra={"n": n, "text": "y" * 400})
        text = ""
        while text.count("\n") < 400:
            text += os.read(reading, 1 << 16).decode()
        close()
    os.close(reading)
    assert [json.loads(line)["n"] for line in text.splitlines()] == list(range(400))


STUCK = """
import logging
from daemon.observability.logging import configure_logging
configure_logging("info", "json")
for _ in range(5000):
    logging.getLogger("x").info("z" * 400)
print("done", flush=True)
"""


@pytest.mark.process
def test_a_program_whose_standard_error_is_stuck_still_exits_with_its_own_code() -> None:
    reading, writing = os.pipe()
    program = subprocess.Popen(
        [sys.executable, "-c", STUCK], stderr=writing, stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    out, _ = program.communicate(timeout=60)
    os.close(writing)
    os.close(reading)
    assert out == "done\n"
    assert program.returncode == 0


NUMBERS = itertools.count()


def run_result(outcome: RunOutcome, error: str | None = None, agent: str = "garden") -> RunFinished:
    result = RunResult(
        run_id=f"r{next(NUMBERS)}",
        agent=agent,
        trigger="schedule",
        outcome=outcome,
        started_at=BEGAN,
        finished_at=BEGAN,
        error=error,
    )
    return RunFinished(result=result)


def test_a_failure_warns_once_and_every_run_has_its_line(json_lines: Lines) -> None:
    log = EventLog()
    failed, other = RunOutcome.FAILED, RunOutcome.TIMED_OUT
    told = [
        run_result(failed, "no file"),
        run_result(failed, "no file"),
        run_result(failed, "no file", agent="pantry"),
        run_result(RunOutcome.CANCELLED),
        run_result(failed, "no rights"),
        run_result(other, "no rights"),
        run_result(RunOutcome.SUCCEEDED),
        run_result(RunOutcome.SUCCEEDED),
        run_result(failed, "no file"),
    ]
    for event in told:
        log.note(event)
    lines = [line for line in json_lines() if line["event"] == "run finished"]
    assert [line["level"] for line in lines] == [
        "warning", "info", "warning", "info", "warning", "warning", "info", "info", "warning",
    ]  # fmt: skip
    assert [line.get("failures") for line in lines] == [1, 2, 1, None, 3, 4, None, None, 1]
    assert [line.get("failures_before") for line in lines] == [None] * 6 + [4, None, None]


def test_the_same_warning_again_is_told_later_with_how_often_it_came(
    json_lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("daemon.test")
    for number in range(5):
        log.warning("the disk %s is slow", "sda")
        log.warning("the disk %s is slow", "sdb")
        log.info("round %d", number)
    monkeypatch.setattr("daemon.observability.logging.REPEAT_S", 0.0)
    log.warning("the disk %s is slow", "sda")
    told = [(line["event"], line.get("repeated")) for line in json_lines() if line["level"] == "warning"]
    assert told == [
        ("the disk sda is slow", None),
        ("the disk sdb is slow", None),
        ("the disk sda is slow", 4),
    ]


def test_warnings_of_two_agents_are_two(json_lines: Lines) -> None:
    for agent in ("garden", "pantry", "garden"):
        logging.getLogger("daemon.test").warning("it is stuck", extra={"agent": agent})
        structlog.get_logger("askfirst.agent").bind(agent=agent).warning("no data")
    told = [(line["event"], line["agent"]) for line in json_lines()]
    assert sorted(told) == [
        ("it is stuck", "garden"), ("it is stuck", "pantry"), ("no data", "garden"), ("no data", "pantry"),
    ]  # fmt: skip


def test_lines_of_a_journal_that_takes_no_entries_begin_with_their_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leading_to_the_journal(tmp_path / "log", monkeypatch) as stream:
        close = configure_logging("debug", "json", stream, journal=tmp_path / "nobody")
        log = logging.getLogger("daemon.test")
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            log.log(level, "told")
        close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line[:3] for line in lines] == ["<7>", "<6>", "<4>", "<3>", "<2>"]
    assert all(json.loads(line[3:])["event"] == "told" for line in lines)


def test_each_line_of_a_traceback_that_goes_to_such_a_journal_has_a_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with leading_to_the_journal(tmp_path / "log", monkeypatch) as stream:
        close = configure_logging("info", "auto", stream, journal=tmp_path / "nobody")
        try:
            fail("broken")
        except ValueError:
            logging.getLogger("daemon.test").exception("it broke")
        close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) > 3
    assert all(line.startswith("<3>") for line in lines)


def test_lines_that_wait_for_their_reader_are_counted() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb"), os.fdopen(writing, "w") as stream:
        close = configure_logging("info", "json", stream)
        try:
            for _ in range(2000):  # more than a pipe takes
                logging.getLogger("x").info("a line of some length %s", "x" * 100)
            assert waiting_lines() > 100
        finally:
            os.set_blocking(reading, False)
            while waiting_lines():
                with contextlib.suppress(BlockingIOError):
                    os.read(reading, 65536)
            close()
    assert waiting_lines() == 0
