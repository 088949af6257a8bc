"""`askfirst llm cache`: what is kept can be seen, taken along and forgotten, also while it is in use."""

from __future__ import annotations

import json
import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from llm import LLMConfig, get_llm_client
from tests.support.program import Program

HOSTILE = "Hello \x1b[2J\x1b]52;c;cGF5bG9hZA==\x07 \u202egnp.exe"


@pytest.fixture
def program(tmp_path: Path) -> Program:
    folder = str(tmp_path / "cache")
    return Program(
        tmp_path, {"LLM_BACKEND": "mock", "LLM_CACHE_DIR": folder, "ASKFIRST_DAEMON__DATA_DIR": "data"}
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "responses.sqlite3"


def age(file: Path, label: str, seconds: float) -> None:
    """Make a reply older."""
    with sqlite3.connect(file) as db:
        db.execute("UPDATE replies SET created = created - ? WHERE label LIKE ?", (seconds, f"{label}%"))
    db.close()


def test_stats_say_how_many_replies_are_kept_and_in_which_file(program: Program, file: Path) -> None:
    program.call("llm", "ask", "Hello")
    program.call("llm", "ask", "Bye")
    found = program.call("llm", "cache", "stats", "--json").data
    assert (found["replies"], found["path"], found["limit"]) == (2, str(file), 64 * 1024 * 1024)
    assert 0 < found["bytes"] < found["limit"]
    assert found["oldest"] <= found["newest"]
    shown = program.call("llm", "cache", "stats")
    assert shown.code == 0
    assert str(file) in shown.out
    assert "0.0 of 67.1 MB" in shown.out


def test_looking_at_a_cache_that_is_not_there_makes_none(program: Program, file: Path) -> None:
    assert program.call("llm", "cache", "stats", "--json").data["replies"] == 0
    assert program.call("llm", "cache", "list").out == "No reply is kept.\n"
    assert program.call("llm", "cache", "clear").out == "0 replies forgotten.\n"
    assert program.call("llm", "cache", "export").out == ""
    assert not file.parent.exists()


def test_the_list_shows_the_newest_question_first(program: Program) -> None:
    program.call("llm", "ask", "Hello", "--system", "Be brief")
    program.call("llm", "ask", "Bye")
    found = program.call("llm", "cache", "list", "--json").data
    assert [entry["label"] for entry in found] == ["Bye::None", "Hello::Be brief"]
    assert {entry["model"] for entry in found} == {"mock"}
    assert found[0]["reply"]["content"].startswith("This is a canned answer")
    shown = program.call("llm", "cache", "list", "--limit", "1").out.splitlines()
    assert len(shown) == 2
    assert "Bye::None" in shown[1]


def test_what_was_asked_cannot_speak_to_the_terminal(program: Program) -> None:
    program.call("llm", "ask", HOSTILE)
    for arguments in (["list"], ["list", "--json"], ["export"]):
        shown = program.call("llm", "cache", *arguments)
        assert shown.code == 0, shown
        assert all(character == "\n" or character.isprintable() for character in shown.out), shown
    assert "\\x1b[2J" in program.call("llm", "cache", "list").out


def test_clear_forgets_everything(program: Program) -> None:
    program.call("llm", "ask", "Hello")
    assert program.call("llm", "cache", "clear").out == "1 reply forgotten.\n"
    assert program.call("llm", "cache", "stats", "--json").data["replies"] == 0
    assert not program.call("llm", "ask", "Hello", "--json").data["cached"]
    assert program.call("llm", "cache", "clear", "--json").data == {"cleared": 1}


def test_clear_can_forget_the_old_ones_only(program: Program, file: Path) -> None:
    for prompt in ("old", "new"):
        program.call("llm", "ask", prompt)
    age(file, "old", 8 * 86400)
    assert program.call("llm", "cache", "clear", "--older-than", "7d", "--json").data == {"cleared": 1}
    assert [entry["label"] for entry in program.call("llm", "cache", "list", "--json").data] == ["new::None"]
    wrong = program.call("llm", "cache", "clear", "--older-than", "soon")
    assert wrong.code == 64
    assert "--older-than" in wrong.err


async def test_a_client_that_is_open_notices_that_another_program_cleared_the_cache(
    program: Program, file: Path
) -> None:
    async with get_llm_client(LLMConfig(backend="mock", cache_dir=str(file.parent))) as client:
        await client.generate("Hello")
        assert (await client.generate("Hello")).cached
        assert program.run("llm", "cache", "clear").out == "1 reply forgotten.\n"
        end = time.monotonic() + 10
        while (await client.generate("Hello", cache="read")).cached:
            assert time.monotonic() < end, "it still answers what was forgotten"
        await client.generate("Hello")
        assert (await client.generate("Hello")).cached


def test_the_export_holds_each_reply_on_a_line_for_its_owner_alone(program: Program, tmp_path: Path) -> None:
    for number in range(3):
        program.call("llm", "ask", f"Hello {number}")
    target = tmp_path / "replies.jsonl"
    target.write_text("what was there before")
    target.chmod(0o644)
    assert program.call("llm", "cache", "export", str(target)).out == f"3 replies written to {target}.\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    lines: list[dict[str, Any]] = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["label"] for line in lines] == [f"Hello {number}::None" for number in (2, 1, 0)]
    assert set(lines[0]) == {"label", "created", "model", "backend", "reply"}
    assert lines[0]["reply"]["content"]
    assert program.call("llm", "cache", "export").out == target.read_text()
    assert program.call("llm", "cache", "export", str(target), "--json").data["replies"] == 3


def test_an_export_that_fails_leaves_what_was_there(program: Program, tmp_path: Path, file: Path) -> None:
    program.call("llm", "ask", "Hello")
    target = tmp_path / "no-such-folder" / "replies.jsonl"
    failed = program.call("llm", "cache", "export", str(target))
    assert (failed.code, "cannot be written" in failed.err) == (1, True), failed
    target = tmp_path / "replies.jsonl"
    target.write_text("what was there before")
    with sqlite3.connect(file) as db:
        db.execute("DROP TABLE replies")
    db.close()
    failed = program.call("llm", "cache", "export", str(target))
    assert (failed.code, "no such table" in failed.err) == (1, True), failed
    assert target.read_text() == "what was there before"
    assert not list(tmp_path.glob(".replies*"))


def test_a_cache_of_a_newer_version_is_left_alone_and_named(program: Program, file: Path) -> None:
    file.parent.mkdir()
    with sqlite3.connect(file) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    for command in ("stats", "list", "clear", "export"):
        failed = program.call("llm", "cache", command)
        assert failed.code == 1, failed
        assert str(file) in failed.err
        assert "format is 99" in failed.err
