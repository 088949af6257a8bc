"""`askfirst agents` and `askfirst runs`, as a person and a script see them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest

from daemon.commands import agents as shown
from daemon.commands.base import examples
from daemon.controls import Standing
from daemon.events import AgentState, AgentStatus, DueTime, Fate, RunOutcome
from daemon.render import Screen, columns, safe
from daemon.runtime import Runtime, open_runtime
from daemon.settings import load_settings
from daemon.standing import NO_DAEMON, LocalControls
from tests.support.program import Program
from tests.support.stores import START, run_result
from tests.support.terminal import COLOURS, at_a_terminal

T = TypeVar("T")
BEDS = ("leeks dry", "kale wet", "beans dry")
HOUR = timedelta(hours=1)
ACTIVE = AgentStatus(agent="garden")


@pytest.fixture
def garden(tmp_path: Path) -> Program:
    return Program.with_garden(
        tmp_path, *BEDS, settings='backoff = "10m"\nquarantine_after = 3\nisolation = "none"'
    )


def fail(program: Program, *, fails: bool = True) -> None:
    file = program.folder / "config" / "askfirst.toml"
    text = file.read_text().replace("fail = true\n", "")
    file.write_text(text + "fail = true\n" * fails)


def within(program: Program, work: Callable[[Runtime], Awaitable[T]]) -> T:
    """Do something with what the program keeps."""
    settings = load_settings(program.folder / "config" / "askfirst.toml")

    async def opened() -> T:
        async with open_runtime(settings, with_llm=False) as runtime:
            return await work(runtime)

    return asyncio.run(opened())


def keep(program: Program, status: AgentStatus) -> None:
    within(program, lambda runtime: runtime.states.set(status))


def agent(program: Program, name: str = "garden") -> dict[str, Any]:
    """An agent's row of `agents list --json`."""
    found = program.call("agents", "list", "--json").data["agents"]
    return next(row for row in found if row["name"] == name)


# --- pause, resume, run


def test_pausing_and_resuming_say_what_that_means(garden: Program) -> None:
    done = garden.call("agents", "pause", "garden", "--reason", "on holiday")
    assert done.code == 0, done
    assert done.out == (
        "garden is paused: it is not run on schedule until you resume it: askfirst agents resume garden\n"
    )
    assert agent(garden)["state"] == "paused"
    why = garden.call("agents", "why", "garden", "--json").data
    assert (why["status"]["by"], why["status"]["reason"]) == ("ana", "on holiday")
    done = garden.call("agents", "resume", "garden", "--by", "luis")
    assert done.out == "garden is active. When it runs next: askfirst agents why garden\n"
    assert agent(garden)["state"] == "active"


def test_pausing_and_resuming_answer_in_json(garden: Program) -> None:
    status = garden.call("agents", "pause", "garden", "--by", "luis", "--json").data
    assert (status["agent"], status["state"], status["by"], status["reason"]) == (
        "garden",
        "paused",
        "luis",
        "",
    )
    assert datetime.fromisoformat(status["since"]).tzinfo is not None
    status = garden.call("agents", "resume", "garden", "--json").data
    assert (status["state"], status["by"]) == ("active", "ana")


def test_a_run_by_hand_shows_what_once_shows(garden: Program) -> None:
    garden.call("agents", "pause", "garden")
    done = garden.call("agents", "run", "garden")
    assert done.code == 0, done
    lines = done.out.splitlines()
    assert lines[0].split() == ["agent", "outcome", "new", "duplicates", "calls", "tokens", "seconds"]
    assert lines[1].split()[:4] == ["garden", "succeeded", "2", "0"]
    assert lines[-1] == "Next: askfirst proposals show 1"
    data = garden.call("agents", "run", "garden", "--json").data
    assert data.keys() == garden.call("--once", "--json").data.keys()
    ((run),) = data["runs"]
    assert (run["trigger"], run["duplicates"], run["late_seconds"]) == ("manual", 2, None)
    assert [proposal["new"] for proposal in data["proposals"]] == [False, False]


def test_a_run_by_hand_asks_the_model(garden: Program) -> None:
    file = garden.folder / "config" / "askfirst.toml"
    file.write_text(file.read_text() + "ask = true\n")
    assert garden.call("agents", "run", "garden", "--json").data["runs"][0]["calls"] == 2


def test_a_run_by_hand_that_fails_ends_with_1_and_says_why(garden: Program) -> None:
    fail(garden)
    done = garden.call("agents", "run", "garden")
    assert done.code == 1, done
    assert "garden: the garden gate is locked; find the key" in done.out


@pytest.mark.parametrize("command", ["pause", "resume", "run", "why"])
def test_an_agent_that_there_is_not_is_named_with_the_one_that_may_be_meant(
    garden: Program, command: str
) -> None:
    done = garden.call("agents", command, "gardn")
    assert (done.code, done.out) == (1, "")
    assert done.err == "askfirst: there is no agent 'gardn'; did you mean 'garden'?\n"


# --- the way through failures


@pytest.mark.process
def test_an_agent_that_keeps_failing_is_quarantined_said_once_and_comes_back_when_it_works(
    garden: Program,
) -> None:
    fail(garden)
    errors = [garden.call("agents", "run", "garden").err for _ in range(4)]
    assert [error.count("an agent is quarantined") for error in errors] == [0, 0, 1, 0]
    assert agent(garden)["state"] == "quarantined"
    text = garden.call("agents", "why", "garden").out
    assert text.startswith("garden: quarantined\n")
    assert "it failed 3 times in a row, at last with: the garden gate is locked; find the key" in text
    assert "next run (UTC)  when it is resumed" in text
    fail(garden, fails=False)
    assert garden.run("agents", "run", "garden").code == 0
    assert agent(garden)["state"] == "active"


def test_a_held_agent_says_for_how_long_and_how_to_end_it(garden: Program) -> None:
    fail(garden)
    garden.call("agents", "run", "garden")
    assert re.search("garden +held for (10|9) min ", garden.call("agents", "list").out)
    assert agent(garden)["held_until"] is not None
    text = garden.call("agents", "why", "garden").out
    assert "end the wait: askfirst agents resume garden" in text
    assert "failures        1 in a row" in text
    garden.call("agents", "resume", "garden")
    assert agent(garden)["held_until"] is None


def test_a_hold_of_a_wrong_clock_is_not_shown(garden: Program) -> None:
    keep(
        garden, AgentStatus(agent="garden", failures=1, held_until=datetime.now(UTC) + timedelta(days=9_000))
    )
    assert agent(garden)["held_until"] is None
    assert "left alone" not in garden.call("agents", "why", "garden").out


# --- list


def test_the_list_shows_schedule_and_state(garden: Program) -> None:
    lines = garden.call("agents", "list").out.splitlines()
    assert lines[0].split() == ["agent", "state", "schedule", "next", "run", "what", "it", "does"]
    row = next(line for line in lines if line.startswith("garden"))
    assert row.split() == [
        "garden",
        "active",
        "every",
        "2h",
        "Proposes",
        "to",
        "water",
        "the",
        "dry",
        "beds.",
    ]
    assert lines[-1] == "No daemon is running, so nothing runs on schedule: askfirst run"
    row_of_another = next(line for line in lines if line.startswith("matchmaker"))
    assert "not enabled" in row_of_another


def test_the_list_is_shown_although_the_database_cannot_be_used(garden: Program) -> None:
    (garden.folder / "data" / "askfirst.sqlite3").write_bytes(b"no database " * 1000)
    done = garden.call("agents", "list")
    assert done.code == 0, done
    assert "garden" in done.out
    assert "where they stand is not known" in done.out
    assert "No daemon is running" not in done.out
    data = garden.call("agents", "list", "--json").data
    assert len(data["problems"]) == 1
    assert (agent(garden)["state"], agent(garden)["schedule"]) == (None, "every 2h")


def test_the_list_shows_when_agents_run_next_while_a_daemon_runs_them(
    garden: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the daemon's controls answer: the time of the next run, or that one is under way."""
    soon = datetime.now(UTC) + 3 * HOUR + timedelta(minutes=1)
    standing = Standing(status=ACTIVE, schedule="every 2h", next_run=soon, due_times=())

    async def why(_controls: LocalControls, agent: str) -> Standing:
        assert agent == "garden"  # nobody asks about agents that are not enabled
        return standing

    monkeypatch.setattr(LocalControls, "why", why)
    text = garden.call("agents", "list").out
    assert re.search("garden +active +every 2h +in 3 h +Proposes", text)
    assert "No daemon is running" not in text
    assert datetime.fromisoformat(agent(garden)["next_run"]) == soon
    standing = Standing(status=ACTIVE, schedule="every 2h", running_since=START)
    assert re.search("garden +active +every 2h +running +Proposes", garden.call("agents", "list").out)


# --- why


def test_why_says_everything_in_json(garden: Program) -> None:
    garden.call("agents", "run", "garden")
    within(
        garden,
        lambda runtime: runtime.due_times.settle(
            [DueTime(agent="garden", due=START, last=START, fate=Fate.MISSED, reason="the machine slept")]
        ),
    )
    why = garden.call("agents", "why", "garden", "--json").data
    assert why.keys() == set(Standing.__dataclass_fields__)
    assert (why["schedule"], why["enabled"], why["holds"]) == ("every 2h", True, [NO_DAEMON])
    assert (why["last_run"]["outcome"], why["last_run"]["proposals"]) == ("succeeded", [1, 2])
    assert [(due["fate"], due["reason"]) for due in why["due_times"]] == [("missed", "the machine slept")]


def told(standing: Standing, capsys: pytest.CaptureFixture[str]) -> list[str]:
    shown._show_standing(Screen(), standing, START)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("fields", "head", "next_run"),
    [
        ({"next_run": START + 2 * HOUR}, "garden: active", "2026-03-01 14:00 (in 2 h)"),
        ({}, "garden: active", "by hand, or when something happens"),
        ({"holds": (NO_DAEMON,)}, "garden: active", "when a daemon runs"),
        ({"holds": ("the disk is full",)}, "garden: active", "not as things stand"),
        ({"enabled": False, "holds": ("it is not enabled",)}, "garden: not enabled", "not as things stand"),
        (
            {"status": AgentStatus(agent="garden", state=AgentState.PAUSED), "holds": ("paused", NO_DAEMON)},
            "garden: paused",
            "when it is resumed",
        ),
        (
            {"status": AgentStatus(agent="garden", state=AgentState.QUARANTINED), "enabled": False},
            "garden: quarantined",
            "when it is resumed",
        ),
    ],
)
def test_why_says_in_every_state_when_it_runs_next(
    capsys: pytest.CaptureFixture[str], fields: dict[str, Any], head: str, next_run: str
) -> None:
    standing = Standing(**{"status": ACTIVE, "schedule": "every 2h", **fields})
    lines = told(standing, capsys)
    assert lines[0] == head
    assert f"  next run (UTC)  {next_run}" in lines
    assert "  last run (UTC)  never" in lines
    for hold in standing.holds:
        assert f"  - {hold}" in lines


def test_why_shows_a_run_under_way_the_last_one_and_the_last_due_times(
    capsys: pytest.CaptureFixture[str],
) -> None:
    last = run_result(
        "run7",
        agent="garden",
        outcome=RunOutcome.FAILED,
        error="no water",
        finished_at=START + timedelta(seconds=2),
    )
    due_times = (
        DueTime(agent="garden", due=START, last=START, fate=Fate.RUN, run_id="run7"),
        DueTime(
            agent="garden",
            due=START - 9 * HOUR,
            last=START - HOUR,
            count=5,
            fate=Fate.SKIPPED,
            reason="paused",
        ),
    )
    standing = Standing(
        status=AgentStatus(agent="garden", failures=3, model_failures=1),
        schedule="every 2h",
        running_since=START,
        last_run=last,
        due_times=due_times,
    )
    lines = told(standing, capsys)
    assert "  running since (UTC)  2026-03-01 12:00 (in 0 s)" in lines
    assert "  last run (UTC)       2026-03-01 12:00 (in 0 s): failed after 2.0 s" in lines
    assert "  details              askfirst runs show run7" in lines
    assert "  failures             3 in a row, 1 of them because of its model" in lines
    assert "  - garden: no water" in lines
    assert [line.split() for line in lines[-3:]] == [
        ["due", "(UTC)", "times", "fate", "why,", "or", "the", "run"],
        ["2026-03-01", "12:00", "1", "run", "run7"],
        ["2026-03-01", "11:00", "5", "skipped", "paused"],
    ]


@pytest.mark.process
def test_why_fits_a_terminal_of_80_columns_and_breaks_between_words(garden: Program) -> None:
    fail(garden)
    garden.call("agents", "run", "garden")
    environment = garden.whole_environment({"COLUMNS": "80"})
    command = ["/usr/bin/env", "COLUMNS=80", *garden.command("agents", "why", "garden")]
    code, text = at_a_terminal(command, environment, garden.folder)
    assert code == 0, text
    plain = COLOURS.sub("", text)
    assert plain == safe(plain)
    assert max(map(columns, plain.splitlines())) <= 80
    assert "- left alone until" in plain
    assert "askfirst agents resume garden" in " ".join(plain.split())


# --- runs


def test_a_run_that_was_due_says_how_late_it_was(garden: Program) -> None:
    due = datetime.now(UTC) - 3 * HOUR
    result = within(garden, lambda runtime: runtime.runner.run("garden", "schedule", due=due))
    row = garden.call("runs", "list").out.splitlines()[1]
    assert row.split()[3:6] == ["3", "h", "garden"]
    (data,) = garden.call("runs", "list", "--json").data
    assert datetime.fromisoformat(data["due"]) == due
    assert data["late_seconds"] == pytest.approx(10_800, abs=120)
    text = garden.call("runs", "show", result.run_id).out
    assert "late by      3 h" in text
    assert "attempt" not in text


def test_the_due_times_are_listed_by_agent_and_by_fate(garden: Program) -> None:
    assert garden.call("runs", "due").out == "No due time has passed yet.\n"
    kept = [
        DueTime(
            agent="garden",
            due=START,
            last=START + HOUR,
            count=2,
            fate=Fate.MISSED,
            reason="the machine slept",
        ),
        DueTime(agent="garden", due=START + 2 * HOUR, last=START + 2 * HOUR, fate=Fate.RUN, run_id="run9"),
        DueTime(
            agent="other", due=START + 3 * HOUR, last=START + 3 * HOUR, fate=Fate.SKIPPED, reason="quiet"
        ),
        DueTime(
            agent="garden",
            due=START - HOUR,
            last=START - HOUR,
            fate=Fate.COALESCED,
            reason="one for all",
            run_id="run9",
        ),
    ]
    within(garden, lambda runtime: runtime.due_times.settle(kept))
    lines = garden.call("runs", "due").out.splitlines()
    assert [line.split() for line in lines] == [
        ["due", "(UTC)", "times", "agent", "fate", "why,", "or", "the", "run"],
        ["2026-03-01", "15:00", "1", "other", "skipped", "quiet"],
        ["2026-03-01", "14:00", "1", "garden", "run", "run9"],
        ["2026-03-01", "13:00", "2", "garden", "missed", "the", "machine", "slept"],
        ["2026-03-01", "11:00", "1", "garden", "coalesced", "one", "for", "all", "(run9)"],
    ]
    for option, fates in (
        (("--agent", "garden"), ["run", "missed", "coalesced"]),
        (("--fate", "missed"), ["missed"]),
        (("--agent", "other", "--fate", "run"), []),
        (("--limit", "1"), ["skipped"]),
        (("--fate", "run", "--limit", "1"), ["run"]),
    ):
        data = garden.call("runs", "due", *option, "--json").data
        assert [due["fate"] for due in data] == fates, option
    assert garden.call("runs", "due", "--fate", "run", "--agent", "other").out == (
        "There are no such due times.\n"
    )
    assert garden.call("runs", "due", "--fate", "lost").code == 64


def test_an_attempt_that_was_not_the_first_is_shown(garden: Program) -> None:
    result = run_result("run8", agent="garden", due=START - HOUR, attempt=2)

    async def save(runtime: Runtime) -> None:
        async with runtime.db.write() as connection:
            await runtime.runs.save(connection, result)

    within(garden, save)
    text = garden.call("runs", "show", "run8").out
    assert "due (UTC)    2026-03-01 11:00" in text
    assert "late by      60 min" in text
    assert "attempt      2" in text


@pytest.mark.parametrize(
    "command",
    [("agents", name) for name in ("list", "pause", "resume", "run", "why")] + [("runs", "due")],
)
def test_every_command_has_help_with_an_example(garden: Program, command: tuple[str, ...]) -> None:
    done = garden.call(*command, "--help")
    assert done.code == 0
    assert f"askfirst {' '.join(command)}" in done.out
    assert examples("x").split("\n")[1].rstrip("s:") in done.out
