"""Entries for journald, at a socket like its own: a line to read, and each value as a field to search by."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from daemon.observability.context import about
from daemon.observability.journal import SOCKET, Journal, datagram_of, entry_of
from daemon.observability.logging import configure_logging, dropped_lines, waiting_lines
from tests.support.journald import Journald, fields_of, journald_at, leading_to_the_journal
from tests.support.waiting import seen_now

KEY = "canary-2718281828"

Start = Callable[..., Callable[[], None]]


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    with journald_at(tmp_path / "socket") as receiver:
        yield receiver


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Begins logging to a standard error that leads to the journal; the text that it got is in "stderr"."""
    with leading_to_the_journal(tmp_path / "stderr", monkeypatch) as stream:
        closes: list[Callable[[], None]] = []

        def begin(level: str = "debug", form: str = "auto", **more: Any) -> Callable[[], None]:
            close = configure_logging(
                level, form, stream, secrets=[KEY], **{"journal": tmp_path / "socket", **more}
            )
            closes.append(close)
            return close

        yield begin
        for close in closes:
            close()


def test_each_value_is_a_field_and_the_message_is_for_people(journald: Journald, start: Start) -> None:
    close = start()
    values = {"proposal": 3, "call_id": "c9", "outcome": "succeeded", "seconds": 1.5, "notes": ["a", "b"]}
    with about(agent="garden", run_id="r7"):
        logging.getLogger("daemon.test").warning("run finished", extra=values)
    entry = journald.entry()
    close()
    assert entry.pop("ASKFIRST_TIMESTAMP").endswith("Z")
    assert entry == {
        "MESSAGE": "run finished agent=garden run_id=r7 proposal=3 call_id=c9 outcome=succeeded seconds=1.5 "
        """notes='["a", "b"]'""",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "askfirst",
        "LOGGER": "daemon.test",
        "AGENT": "garden",
        "RUN_ID": "r7",
        "PROPOSAL_ID": "3",
        "CALL_ID": "c9",
        "ASKFIRST_EVENT": "run finished",
        "ASKFIRST_OUTCOME": "succeeded",
        "ASKFIRST_SECONDS": "1.5",
        "ASKFIRST_NOTES": '["a", "b"]',
    }
    assert Path("/run/systemd/journal/socket") == SOCKET


def test_nothing_goes_to_standard_error_meanwhile(journald: Journald, start: Start, tmp_path: Path) -> None:
    close = start()
    logging.getLogger("daemon.test").info("told")
    assert journald.entry()["MESSAGE"] == "told"
    close()
    assert (tmp_path / "stderr").read_text() == ""


def test_who_asks_for_json_has_it_in_the_message(journald: Journald, start: Start) -> None:
    close = start(form="json")
    logging.getLogger("daemon.test").info("told", extra={"n": 1})
    entry = journald.entry()
    close()
    assert entry["MESSAGE"].startswith('{"timestamp": "')
    assert '"event": "told", "logger": "daemon.test", "n": 1}' in entry["MESSAGE"]
    assert entry["ASKFIRST_N"] == "1"


def test_priorities_are_syslogs(journald: Journald, start: Start) -> None:
    close = start()
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.getLogger("daemon.test").log(level, "told at %d", level)
    assert [entry["PRIORITY"] for entry in journald.entries(5)] == ["7", "6", "4", "3", "2"]
    close()


def test_no_secret_is_in_any_field_and_no_value_makes_a_field_of_its_own(
    journald: Journald, start: Start
) -> None:
    close = start()
    evil = f"x\nAGENT=root\n{KEY}\x1b[2J"
    structlog.stdlib.get_logger("daemon.test").warning(
        evil, **{"text": evil, "a\nAGENT=root": 1, "_pid": 1, "ünï": 2, "api_key": "short", "x" * 90: 3}
    )
    try:
        int(evil)
    except ValueError:
        logging.getLogger("daemon.test").exception("it broke")
    first, second = journald.entries(2)
    close()
    told = f"{first}{second}"
    assert KEY not in told
    assert "[redacted]" in first["ASKFIRST_TEXT"]
    assert first["ASKFIRST_TEXT"].startswith("x\nAGENT=root\n")  # as a value of several lines
    assert first["ASKFIRST_API_KEY"] == "[redacted]"
    assert "AGENT" not in first
    assert first["ASKFIRST_A_AGENT_ROOT"] == first["ASKFIRST__PID"] == "1"
    assert all(len(name) <= 64 and not name.startswith("_") for name in first)
    assert "\x1b" not in told
    assert "\n" not in first["MESSAGE"]
    assert second["ASKFIRST_EXCEPTION"].startswith("Traceback")
    assert second["MESSAGE"].startswith("it broke\n    Traceback")


def test_what_is_too_large_for_a_datagram_goes_in_a_file_in_memory(
    journald: Journald, tmp_path: Path
) -> None:
    sender = Journal(tmp_path / "socket")
    sender._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    large = {f"v{n}": "y" * 2_000 for n in range(50)}
    assert sender.send(entry_of({"level": "info", **large}, "large").encode())
    entry = journald.entry()
    sender.close()
    assert journald.files == 1
    assert entry["MESSAGE"] == "large"
    assert {name: entry[f"ASKFIRST_{name.upper()}"] for name in large} == large


def test_a_datagram_is_read_back_as_what_was_written() -> None:
    fields = {"MESSAGE": "one", "A": "two\nlines\n", "B": "", "C": "=", "D": "\n"}
    assert fields_of(datagram_of(fields)) == fields


def test_lines_are_text_while_journald_is_away_and_entries_when_it_is_back(
    tmp_path: Path, start: Start
) -> None:
    close = start()
    log = logging.getLogger("daemon.test")
    path = tmp_path / "socket"
    with journald_at(path) as first:
        log.info("one")
        assert first.entry()["MESSAGE"] == "one"
    log.warning("two", extra={"agent": "garden"})
    seen_now(lambda: "two" in (tmp_path / "stderr").read_text())
    with journald_at(path) as second:
        log.info("three")
        assert second.entry()["MESSAGE"] == "three"
    close()
    assert (tmp_path / "stderr").read_text() == "<4>two agent=garden\n"
    assert dropped_lines() == 0


def test_a_journald_that_reads_nothing_never_stops_who_logs(
    journald: Journald, start: Start, tmp_path: Path
) -> None:
    close = start("info")
    log = logging.getLogger("daemon.test")
    for n in range(2_000):
        log.info("line", extra={"n": n, "text": "y" * 400})
    lost = dropped_lines()
    assert lost > 100
    assert waiting_lines() > 100
    told: list[dict[str, str]] = []
    while not any("lost" in entry["MESSAGE"] for entry in told):
        told.append(journald.entry())
    kept = [int(entry["ASKFIRST_N"]) for entry in told if entry["MESSAGE"].startswith("line")]
    assert kept == sorted(set(kept))
    assert [entry["ASKFIRST_COUNT"] for entry in told if "lost" in entry["MESSAGE"]] == [str(lost)]
    assert len(kept) + lost == 2_000
    assert waiting_lines() == 0
    close()
    assert (tmp_path / "stderr").read_text() == ""


def test_closing_gives_up_on_a_journald_that_reads_nothing(journald: Journald, start: Start) -> None:
    close = start("info")
    for n in range(1_500):
        logging.getLogger("daemon.test").info("line", extra={"n": n})
    began = time.monotonic()
    close()
    assert time.monotonic() - began < 10
    journald.close()  # the writer is let go


def test_elsewhere_nothing_is_sent_to_journald(
    journald: Journald, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")  # of a parent whose standard error was another
    with (tmp_path / "log").open("w") as stream:
        close = configure_logging("info", "auto", stream, journal=journald.path)
        logging.getLogger("daemon.test").info("told")
        close()
    assert (tmp_path / "log").read_text().startswith('{"timestamp"')
