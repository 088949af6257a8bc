"""`--once`: one run of every agent, a table for people, JSON on demand, an exit code for scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.render import safe
from tests.support.program import Program
from tests.support.terminal import COLOURS, at_a_terminal

pytestmark = pytest.mark.process

BEDS = ("leeks dry", "kale wet", "beans dry")


def test_it_says_which_model_what_each_agent_did_what_waits_and_what_to_do_next(tmp_path: Path) -> None:
    done = Program.with_garden(tmp_path, *BEDS, settings="ask = true").run("--once")
    assert done.code == 0, done
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0] == "LLM_BACKEND says mock, so it is used with the model mock."
    assert lines[2].split() == ["agent", "outcome", "new", "duplicates", "calls", "tokens", "seconds"]
    assert lines[3].split()[:5] == ["garden", "succeeded", "2", "0", "2"]
    assert "2 new, 2 open:" in lines
    assert lines[-1] == "Next: askfirst proposals show 1"


def test_at_a_terminal_there_are_colours_and_a_table_that_say_the_same(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, *BEDS)
    code, text = at_a_terminal(program.command("--once"), program.whole_environment({}), tmp_path)
    assert code == 0, text
    assert COLOURS.search(text)
    plain = COLOURS.sub("", text)
    assert plain == safe(plain)
    assert "─" in plain
    assert "Water leeks" in plain
    assert "Next: askfirst proposals show 1" in plain


def test_a_second_run_makes_no_duplicate(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, *BEDS)
    first, second = (program.call("--once", "--json") for _ in range(2))
    assert [(run["proposals"], run["duplicates"]) for run in first.data["runs"]] == [([1, 2], 0)]
    assert [(run["proposals"], run["duplicates"]) for run in second.data["runs"]] == [([], 2)]
    assert [p["new"] for p in first.data["proposals"]] == [True, True]
    assert [p["new"] for p in second.data["proposals"]] == [False, False]
    assert "No new, 2 open:" in program.call("--once").out


def test_json_is_all_there_is_on_standard_output(tmp_path: Path) -> None:
    done = Program.with_garden(tmp_path, *BEDS).run("--once", "--json", "--debug")
    assert done.code == 0, done
    assert done.data.keys() == {"model", "runs", "proposals"}
    assert done.data["model"] == {
        "backend": "mock",
        "model": "mock",
        "reason": "LLM_BACKEND says mock, so it is used with the model mock.",
        "considered": [],
    }
    assert done.err, "--debug logs, and logs belong on standard error"


def test_a_run_that_fails_ends_with_1_and_says_why_while_the_others_run(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, *BEDS, settings="fail = true")
    done = program.run("--once")
    assert done.code == 1, done
    assert "garden: the garden gate is locked; find the key" in done.out
    assert "Traceback" not in done.err
    assert "Nothing waits for a decision." in done.out
    data = program.run("--once", "--json").data
    assert [(run["outcome"], run["error"] is None) for run in data["runs"]] == [("failed", False)]


def test_only_the_agents_that_are_named_run(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, *BEDS, settings="enabled = false")
    assert program.call("--once", "--json").data["runs"] == []
    named = program.call("--once", "--agent", "garden", "--agent", "garden", "--json")
    assert [run["agent"] for run in named.data["runs"]] == ["garden"]


def test_an_agent_that_there_is_not_is_told_with_the_nearest_one(tmp_path: Path) -> None:
    done = Program.with_garden(tmp_path, *BEDS).call("--once", "--agent", "gardn")
    assert done.code == 64
    assert "there is no agent 'gardn'; did you mean 'garden'?" in done.err


def test_without_any_enabled_agent_it_says_how_to_enable_one(tmp_path: Path) -> None:
    done = Program(tmp_path, {"LLM_BACKEND": "mock"}).call("--once")
    assert done.code == 0, done
    assert "No agent is enabled: give one a table such as [agents.matchmaker]" in done.out


def test_a_bad_setting_of_an_agents_own_ends_with_78_and_its_line(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, *BEDS, settings='bedz = "x"\nfail = 3')
    done = program.run("--once")
    path = tmp_path / "config" / "askfirst.toml"
    assert done.code == 78, done
    assert done.out == ""
    lines = done.err.splitlines()
    assert lines[0].startswith(f"{path}:6: agents.garden.bedz: unknown setting; did you mean 'beds'?")
    assert lines[1].startswith(f"{path}:7: agents.garden.fail: ")
    assert len(lines) == 2
    assert not (tmp_path / "data" / "askfirst.sqlite3").exists()


def test_a_warning_about_the_configuration_is_said_on_standard_error(tmp_path: Path) -> None:
    done = Program.with_garden(tmp_path, *BEDS).call("--once", "--json", LLM_MODLE="x")
    assert done.code == 0
    assert "did you mean LLM_MODEL?" in done.err
    assert done.data["runs"]


def test_without_a_model_the_run_is_normal_and_says_so(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, *BEDS, LLM_BACKEND="auto", LLM_MODEL="no-such-model:1b")
    done = program.call("--once", "--json")
    assert done.code == 0, done
    assert done.data["model"]["backend"] is None
    assert done.data["model"]["reason"] == "No model can be used here, so agents work by their rules alone."
    assert len(done.data["proposals"]) == 2
    assert "rules alone" in program.call("--once").out


def test_it_runs_in_a_folder_that_has_agents_of_its_own(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, *BEDS)
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "__init__.py").write_text("raise SystemExit(99)\n")
    assert program.run("--once").code == 0


def test_a_database_of_a_newer_version_is_refused_with_78(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    program = Program.with_garden(tmp_path, *BEDS)
    assert program.call("--once").code == 0
    path = tmp_path / "data" / "askfirst.sqlite3"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    for command in (("--once",), ("proposals", "list"), ("run",)):
        done = program.call(*command)
        assert done.code == 78, done
        assert "newer" in done.err
        assert "Traceback" not in done.err


def test_the_shipped_configuration_runs_as_it_stands(tmp_path: Path) -> None:
    program = Program.copied(tmp_path)
    done = program.run("--once", "--json")
    assert done.code == 0, done
    assert [run["agent"] for run in done.data["runs"]] == ["matchmaker"]
    assert done.data["proposals"], "the examples lead to no proposal"
    assert all(p["decided_by"] == "rule" for p in done.data["proposals"]), (
        "mock must not decide about real data"
    )
    again = program.run("--once", "--json")
    assert [run["proposals"] for run in again.data["runs"]] == [[]]


def test_new_proposals_come_before_those_that_waited_already(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, "leeks dry", "kale wet")
    assert program.call("--once").code == 0
    program.beds.write_text("leeks dry\nkale dry\n")
    found = program.call("--once", "--json").data["proposals"]
    assert [(p["title"], p["new"]) for p in found] == [("Water kale", True), ("Water leeks", False)]
