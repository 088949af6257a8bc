"""AgentContext: what a run is handed, complete enough to try an agent by hand."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agents.context import AgentContext, PlainLog, utc_now


def test_everything_but_the_model_has_a_value_to_work_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    context = AgentContext()
    assert context.base_dir == tmp_path
    assert (context.llm, context.data_dir, context.run_id) == (None, None, "")
    assert (dict(context.settings), context.open_proposals) == ({}, ())


def test_the_clock_is_utc_and_tells_the_time() -> None:
    before = datetime.now(UTC)
    now = AgentContext().now()
    assert now.utcoffset() == timedelta()
    assert before <= now <= utc_now()


def test_two_runs_share_nothing() -> None:
    one, other = AgentContext(), AgentContext()
    one.notes.append("read 3 files")
    assert other.notes == []
    assert one.calls is not other.calls


@pytest.mark.parametrize("level", ["debug", "info", "warning"])
def test_the_plain_log_says_the_event_and_its_values(level: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "agents"):
        getattr(AgentContext().log, level)("file read", rows=30)
    (record,) = caplog.records
    assert record.levelname == level.upper()
    assert record.getMessage() == "file read {'rows': 30}"


def test_a_plain_log_has_the_name_it_was_given(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mine"):
        PlainLog("mine").info("100% done")
    assert [record.name for record in caplog.records] == ["mine"]
    assert "100% done" in caplog.text
