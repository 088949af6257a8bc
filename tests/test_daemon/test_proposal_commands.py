"""Deciding at the command line: a file changes only after an approval, once, and an undo brings it back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from daemon.render import safe
from tests.support.program import Program

BEDS = ("leeks dry", "kale wet", "beans dry")


@pytest.fixture
def garden(tmp_path: Path) -> Program:
    """A garden whose agent has run: proposal 1 is about the leeks, 2 about the beans."""
    program = Program.with_garden(tmp_path, *BEDS)
    done = program.call("--once")
    assert done.code == 0, done
    return program


def status_of(garden: Program, number: int) -> str:
    return str(garden.call("proposals", "show", str(number), "--json").data["status"])


def test_the_list_shows_what_waits_and_on_demand_everything(garden: Program) -> None:
    listed = garden.call("proposals", "list")
    assert [line.split()[:4] for line in listed.out.splitlines()[1:]] == [
        ["2", "Water", "beans", "pending"],
        ["1", "Water", "leeks", "pending"],
    ]
    assert garden.call("proposals", "reject", "2").code == 0
    ids = {
        flags: [p["id"] for p in garden.call("proposals", "list", "--json", *flags).data]
        for flags in (
            (),
            ("--all",),
            ("--status", "rejected"),
            ("--agent", "nobody"),
            ("--all", "--limit", "1"),
        )
    }
    assert ids == {
        (): [1],
        ("--all",): [2, 1],
        ("--status", "rejected"): [2],
        ("--agent", "nobody"): [],
        ("--all", "--limit", "1"): [2],
    }
    assert garden.call("proposals", "reject", "1").code == 0
    assert garden.call("proposals", "list").out == "Nothing waits for a decision.\n"
    assert garden.call("proposals", "list", "--agent", "x", "--all").out == "There are no such proposals.\n"


def test_approving_changes_the_file_and_undoing_restores_it_byte_for_byte(garden: Program) -> None:
    before = garden.beds.read_bytes()
    approved = garden.call("proposals", "approve", "1", "--comment", "it is hot")
    assert approved.code == 0, approved
    assert approved.out == "1 applied: Water leeks  (to take it back: askfirst proposals undo 1)\n"
    assert garden.beds.read_text() == "leeks wet 5\nkale wet\nbeans dry\n"
    undone = garden.call("proposals", "undo", "1")
    assert (undone.code, undone.out) == (0, "1 undone: Water leeks\n")
    assert garden.beds.read_bytes() == before


def test_a_decision_is_kept_with_who_how_and_why(garden: Program) -> None:
    assert garden.call("proposals", "approve", "1", "--comment", "it is hot").code == 0
    assert garden.call("proposals", "reject", "2", "--by", "luis", "--comment", "it rains").code == 0
    first, second = (garden.call("proposals", "show", n, "--json").data["decisions"] for n in "12")
    assert [(d["action"], d["by"], d["via"], d["comment"]) for d in first] == [
        ("approve", "ana", "cli", "it is hot"),
        ("apply", "ana", "cli", ""),
    ]
    assert [(d["action"], d["by"], d["comment"]) for d in second] == [("reject", "luis", "it rains")]


def test_an_approval_without_apply_waits_for_apply(garden: Program) -> None:
    approved = garden.call("proposals", "approve", "1", "--no-apply")
    assert approved.out == "1 approved: Water leeks  (to do it: askfirst proposals apply 1)\n"
    assert "leeks dry" in garden.beds.read_text()
    assert garden.call("proposals", "apply", "1").code == 0
    assert "leeks wet 5" in garden.beds.read_text()


def test_an_edit_changes_what_would_be_done_and_show_says_how(garden: Program) -> None:
    edited = garden.call("proposals", "edit", "1", "--set", "litres=7", "--comment", "big bed")
    assert edited.code == 0, edited
    shown = garden.call("proposals", "show", "1").out
    assert '-   "litres": 5' in shown
    assert '+   "litres": 7' in shown
    assert garden.call("proposals", "approve", "1").code == 0
    assert "leeks wet 7" in garden.beds.read_text()


@pytest.mark.parametrize("change", ["litres=900", "litres=a lot", "colour=red"])
def test_an_edit_that_the_agent_could_not_carry_out_is_refused(garden: Program, change: str) -> None:
    refused = garden.call("proposals", "edit", "1", "--set", change)
    assert refused.code == 1, refused
    assert change.partition("=")[0] in refused.err
    assert "Traceback" not in refused.err
    assert garden.call("proposals", "show", "1", "--json").data["payload"] == {"bed": "leeks", "litres": 5}


def test_a_value_stays_a_text_where_the_old_one_is_a_text(garden: Program) -> None:
    assert garden.call("proposals", "edit", "1", "--set", "bed=12").code == 0
    assert garden.call("proposals", "show", "1", "--json").data["payload"] == {"bed": "12", "litres": 5}


def test_a_snoozed_proposal_is_still_listed_and_can_be_approved(garden: Program) -> None:
    assert garden.call("proposals", "snooze", "1", "--for", "1d").out == "1 snoozed: Water leeks\n"
    assert "snoozed until" in garden.call("proposals", "show", "1").out
    assert status_of(garden, 1) == "snoozed"
    assert garden.call("proposals", "approve", "1").code == 0


def test_an_approval_can_be_bound_to_what_was_shown(garden: Program) -> None:
    digest = garden.call("proposals", "show", "1", "--json").data["digest"]
    assert garden.call("proposals", "edit", "1", "--set", "litres=50").code == 0
    refused = garden.call("proposals", "approve", "1", "--digest", digest)
    assert refused.code == 1, refused
    assert "no longer what that digest stands for" in refused.err
    assert garden.call("proposals", "approve", "1", "--digest", "abc").code == 64
    new = garden.call("proposals", "show", "1", "--json").data["digest"]
    assert garden.call("proposals", "approve", "1", "--digest", new[:12]).code == 0


def test_one_that_cannot_be_decided_does_not_stop_the_others(garden: Program) -> None:
    done = garden.call("proposals", "approve", "99", "1", "2", "1", "--json")
    assert done.code == 1
    assert [(one["id"], one["ok"]) for one in done.data] == [(99, False), (1, True), (2, True)]
    assert "there is no proposal 99" in done.data[0]["error"]
    assert done.data[1]["proposal"]["status"] == "applied"
    again = garden.call("proposals", "approve", "1")
    assert (again.code, again.out) == (1, "")
    assert "is already applied" in again.err


def test_an_apply_that_finds_things_changed_says_so_and_ends_with_1(garden: Program) -> None:
    garden.beds.write_text("leeks wet\n")
    done = garden.call("proposals", "approve", "1")
    assert done.code == 1, done
    assert done.err.startswith("1 withdrawn: Water leeks: ")
    assert "leeks is no longer dry" in done.err
    assert done.out == ""


def test_an_apply_that_fails_can_be_tried_again(garden: Program) -> None:
    beds = garden.beds.read_bytes()
    garden.beds.unlink()
    failed = garden.call("proposals", "approve", "1", "--json")
    assert failed.code == 1
    assert failed.data[0]["proposal"]["status"] == "apply_failed"
    assert "askfirst proposals apply 1" in garden.call("proposals", "show", "1").out
    garden.beds.write_bytes(beds)
    assert garden.call("proposals", "apply", "1").code == 0
    assert "leeks wet 5" in garden.beds.read_text()


def test_approvers_of_the_configuration_are_asked_for_all_of_them(tmp_path: Path) -> None:
    program = Program.with_garden(
        tmp_path, *BEDS, settings='approvers = { mode = "all", people = ["ana", "luis"] }'
    )
    assert program.call("--once").code == 0
    first = program.call("proposals", "approve", "1")
    assert (first.code, first.out) == (0, "1 pending: Water leeks  (more approvals are needed)\n")
    refused = program.call("proposals", "approve", "1", "--by", "eve")
    assert (refused.code, "for ana, luis to decide" in refused.err) == (1, True)
    assert "all of ana, luis" in program.call("proposals", "show", "1").out
    assert program.call("proposals", "approve", "1", "--by", "luis").out.startswith("1 applied")


def test_show_tells_a_decider_everything(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, *BEDS, settings="ask = true")
    assert program.call("--once").code == 0
    shown = program.call("proposals", "show", "1").out
    for words in (
        "1  Water leeks",
        "rules and a model together; look closely",
        "80%",
        "can be undone  yes",
        "anybody",
        "| leeks is dry.",
        '|   "litres": 5',
        "- nobody watered it",
        "- there is water",
        "beds.txt, line 1:",
        "| leeks dry",
        "mock, mock: answered",
        "keep by askfirst",
        "askfirst proposals approve 1",
    ):
        assert words in shown, words
    assert "Is this bed dry?" not in shown
    verbose = program.call("proposals", "show", "1", "--verbose").out
    assert "| Is this bed dry?" in verbose
    assert "| This is a canned answer" in verbose
    data = program.call("proposals", "show", "1", "--json").data
    assert [event["action"] for event in data["history"]] == ["keep"]
    assert data["model_calls"][0]["prompt"].startswith("Is this bed dry?")


def test_a_number_that_is_none_of_ours_is_told(garden: Program) -> None:
    done = garden.call("proposals", "show", "77")
    assert done.code == 1
    assert done.err == "askfirst: there is no proposal 77; 'askfirst proposals list' shows those there are\n"


EVIL = "\x1b[2J\x1b]0;owned\x07\u202ekcab\u2028\x9bm [bold red]x[/] \x00"


def test_nothing_that_a_stored_proposal_holds_can_act_on_the_terminal(garden: Program) -> None:
    # Straight into the database: the way in cleans too, and this is about the way out.
    with closing(sqlite3.connect(garden.folder / "data" / "askfirst.sqlite3")) as db, db:
        db.execute("UPDATE proposals SET title = ?, explanation = ?, error = ?", (EVIL, EVIL, EVIL))
        db.execute("UPDATE proposal_events SET by = ?, comment = ?", (EVIL, EVIL))
    for command in (("list",), ("show", "1"), ("show", "1", "--json"), ("list", "--json"), ("approve", "1")):
        done = garden.call("proposals", *command)
        assert done.code == 0, done
        assert done.out == safe(done.out), command
        assert done.err == safe(done.err), command
    assert garden.call("proposals", "show", "1", "--json").data["title"] == EVIL


def test_the_runs_are_listed_and_shown(tmp_path: Path) -> None:
    program = Program.with_garden(tmp_path, *BEDS, settings="ask = true")
    assert program.call("runs", "list").out.startswith("No runs yet.")
    assert program.call("--once").code == 0
    (run,) = program.call("runs", "list", "--json").data
    assert (run["agent"], run["outcome"], run["proposals"], run["calls"]) == (
        "garden",
        "succeeded",
        [1, 2],
        2,
    )
    assert run["run_id"] in program.call("runs", "list", "--agent", "garden", "--limit", "1").out
    shown = program.call("runs", "show", run["run_id"], "--verbose").out
    for words in ("garden: succeeded", "mock, mock", "Water leeks", "Is this bed dry?"):
        assert words in shown
    data = program.call("runs", "show", run["run_id"], "--json").data
    assert len(data["model_calls"]) == 2
    missing = program.call("runs", "show", "nosuch")
    assert (missing.code, "there is no run 'nosuch'" in missing.err) == (1, True)


def test_the_agents_are_listed_with_where_they_come_from(garden: Program) -> None:
    data = garden.call("agents", "list", "--json").data
    listed = {agent["name"]: agent for agent in data["agents"]}
    assert listed["garden"]["origin"] == "plugin"
    assert listed["garden"]["enabled"] is True
    assert listed["garden"]["every"] == "2h"
    assert listed["matchmaker"]["origin"] == "built-in"
    assert listed["matchmaker"]["enabled"] is False
    assert "Proposes to water the dry beds." in garden.call("agents", "list").out
    (garden.folder / "data" / "plugins" / "broken.py").write_text("import nothing_like_it\n")
    done = garden.call("agents", "list")
    assert done.code == 0
    assert "nothing_like_it" in done.out
