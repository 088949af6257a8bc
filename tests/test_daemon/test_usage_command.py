"""`askfirst llm usage`: what calls used, what is left of budgets, and a run that a budget ended."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from daemon.commands.usage import bar
from daemon.render import columns, safe
from llm.stores.ledger import UsageLedger
from llm.stores.usage_tables import CallRecord
from tests.support.program import Program
from tests.support.terminal import COLOURS, at_a_terminal

LEDGER = "llm_usage.sqlite3"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path, {"LLM_BACKEND": "mock", "ASKFIRST_DAEMON__DATA_DIR": str(tmp_path / "data")})


def fill(program: Program, *records: CallRecord, hits: int = 0) -> None:
    async def fill_in() -> None:
        ledger = UsageLedger(program.folder / "data" / LEDGER)
        for each in records:
            ledger.add(each)
        for _ in range(hits):
            ledger.add_hit(("matchmaker", "ollama", "qwen2.5:1.5b", "title"))
        await ledger.aclose()

    asyncio.run(fill_in())


def call(days_ago: float = 0.0, **values: object) -> CallRecord:
    known = {"backend": "ollama", "model": "qwen2.5:1.5b", "agent": "matchmaker", "cost": 0}
    known |= {"tokens_in": 1200, "tokens_out": 34, "seconds": 2.5}
    return CallRecord(at=int((time.time() - days_ago * 86_400) * 1000), **{**known, **values})  # type: ignore[arg-type]


PAID = {"backend": "remote", "model": "claude-sonnet-4-5-20250929", "agent": "", "cached": 600}


def test_an_empty_ledger_says_what_to_do(program: Program) -> None:
    done = program.call("llm", "usage")
    assert done.code == 0, done
    assert "No model call in the last 30d" in done.out
    assert "askfirst --once" in done.out
    assert not (program.folder / "data").exists()


def test_a_question_that_was_asked_is_in_the_next_report(program: Program) -> None:
    for _ in range(2):
        program.call("llm", "ask", "Name three vegetables")
    report = program.call("llm", "usage", "--json").data
    (used,) = report["usage"]
    assert (used["name"], used["calls"], used["hits"], used["usd"]) == ("mock", 1, 1, 0)
    assert used["tokens_in"] == 3
    assert report["budgets"] == []


def test_the_table_has_sums_unknown_prices_and_a_bar_for_each_row(program: Program) -> None:
    fill(program, call(), call(error="timeout", tokens_in=0, tokens_out=0), call(**PAID, cost=4500), hits=3)
    fill(program, call(**PAID, cost=None, tokens_in=100))
    done = program.call("llm", "usage")
    assert done.code == 0, done
    lines = done.out.splitlines()
    assert lines[1].split() == ["model", "calls", "failed", "hits", "in", "out", "cached", "seconds", "usd"]
    table = {line.split()[0]: line.split()[1:] for line in lines[2:5]}
    assert table["qwen2.5:1.5b"] == ["2", "1", "3", "1,200", "34", "0", "5.0", "0"]
    assert table["claude-sonnet-4-5-20250929"] == ["2", "0", "0", "1,300", "68", "1,200", "5.0", "0.0045+?"]
    assert lines[4].split()[:4] == ["in", "all", "4", "1"]
    bars = [line for line in lines if "█" in line]
    assert [line.split()[-1] for line in bars] == ["1,368", "1,234"]
    assert bars[0].count("█") == 40
    assert "The price of 1 calls is unknown (?)" in done.out
    assert "askfirst[prices]" in done.out


@pytest.mark.parametrize("by", ["agent", "model", "backend", "day", "task"])
def test_it_can_be_added_up_for_anything(program: Program, by: str) -> None:
    fill(program, *(call(days_ago=n, agent=f"a{n}", task="t") for n in range(3)))
    used = program.call("llm", "usage", "--by", by, "--json").data["usage"]
    assert sum(each["calls"] for each in used) == 3
    assert len(used) == (3 if by in {"agent", "day"} else 1)
    recent = program.call("llm", "usage", "--by", by, "--since", "1d12h", "--json").data["usage"]
    assert sum(each["calls"] for each in recent) == 2


def test_a_span_that_is_none_or_too_long_is_refused(program: Program) -> None:
    for span in ("soon", "900d"):
        done = program.call("llm", "usage", "--since", span)
        assert (done.code, "--since" in done.err) == (64, True), done


def test_budgets_are_shown_with_what_is_used_and_left(program: Program) -> None:
    fill(program, call(), call(**PAID, cost=1_500_000))
    config = program.folder / "askfirst.toml"
    config.write_text('[llm]\nbudget = "2 usd/month"\n[llm.budgets]\nagents.matchmaker = "1000 tokens/day"\n')
    done = program.call("llm", "usage", "--config", str(config))
    assert done.code == 0, done
    money, tokens = done.out.splitlines()[-2:]
    assert " 75%, 0.50 usd left until " in money
    assert "agent matchmaker: 1000 tokens/day" in tokens
    assert " 123%, 0 left until " in tokens
    first, second = program.call("llm", "usage", "--config", str(config), "--json").data["budgets"]
    assert (first["used"], first["left"], first["unit"]) == (1.5, 0.5, "usd")
    assert (second["budget"], second["used"], second["left"]) == (
        *("agent matchmaker: 1000 tokens/day", 1234.0, 0.0),
    )


@pytest.mark.process
@pytest.mark.parametrize("wide", [80, 120])
def test_it_fits_a_terminal(program: Program, wide: int) -> None:
    fill(
        program,
        *(call(days_ago=n % 9, tokens_in=90_000) for n in range(40)),
        call(**PAID, cost=None),
        hits=99,
    )
    environment = program.whole_environment(
        {"LLM_BUDGET": "400000 tokens/month, agent matchmaker: 9 usd/day"}
    )
    command = ["/usr/bin/env", f"COLUMNS={wide}", *program.command("llm", "usage")]
    code, text = at_a_terminal(command, environment, program.folder)
    assert code == 0, text
    assert COLOURS.search(text)
    plain = COLOURS.sub("", text)
    assert plain == safe(plain)
    assert [line for line in plain.splitlines() if columns(line.rstrip()) > wide] == []
    assert "…" not in plain if wide > 100 else "claude-sonnet-4…" in plain
    assert ("cached" in plain) is (wide > 100)


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0, ""), (0.0001, "▏"), (0.5, "████"), (0.51, "████▏"), (0.999, "████████"), (1, "████████")],
)
def test_a_bar_is_exact_to_an_eighth_and_shows_what_is_more_than_nothing(share: float, shown: str) -> None:
    assert bar(share, 8) == shown


def test_a_ledger_that_cannot_be_read_is_an_error_that_names_it(program: Program) -> None:
    fill(program, call())
    with closing(sqlite3.connect(program.folder / "data" / LEDGER)) as db:
        db.execute("PRAGMA user_version = 9")
    done = program.call("llm", "usage")
    assert done.code == 1
    assert LEDGER in done.err
    assert "its format is 9" in done.err


def test_a_run_that_its_budget_ended_says_which_and_loses_nothing(tmp_path: Path) -> None:
    beds = [f"bed{n} dry" for n in range(6)]
    program = Program.with_garden(tmp_path, *beds, settings="ask = true\n", LLM_BUDGET="120 tokens/day")
    done = program.call("--once", "--json")
    (run,) = done.data["runs"]
    assert run["outcome"] == "failed"
    assert "the budget 120 tokens/day has no room for this call" in run["error"]
    assert "raise LLM_BUDGET" in run["error"]
    shown = program.call("runs", "show", run["run_id"])
    assert "120 tokens/day" in shown.out
    assert "failed: budget" in shown.out
    calls = program.call("runs", "show", run["run_id"], "--json").data["model_calls"]
    answered = [each for each in calls if each["error"] is None]
    (used,) = program.call("llm", "usage", "--json").data["usage"]
    assert (used["name"], used["calls"], used["failed"]) == ("mock", len(answered), 0)
    assert len(answered) >= 1
    assert len(calls) == len(answered) + 1
    with closing(sqlite3.connect(tmp_path / "data" / LEDGER)) as db:
        ids = {row[0] for row in db.execute("SELECT call_id FROM calls")}
    assert ids == {each["id"] for each in answered}


def test_budgets_of_named_backends_stand_beside_that_of_all(program: Program, tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(
        '[llm]\nbudget = "9000 tokens/day"\n'
        '[llm.backends.small]\nbackend = "mock"\n'
        '[llm.backends.big]\nbackend = "mock"\nbudget = "500 tokens/day"\n'
    )
    environment = {"LLM_BACKEND": "", "LLM_BUDGET": ""}
    program.call("--config", "two.toml", "llm", "ask", "Hello", "--backend", "mock", **environment)
    data = program.call("--config", "two.toml", "llm", "usage", "--json", **environment).data
    assert [each["budget"] for each in data["budgets"]] == ["9000 tokens/day", "backend big: 500 tokens/day"]
