"""Schedules in the configuration: what does not fit is named with its line, what holds is explained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from daemon.errors import SettingsError
from daemon.settings import load_settings
from tests.support.program import Program


def problems_of(folder: Path, text: str, **environ: str) -> list[tuple[str, int | str | None, str]]:
    path = folder / "askfirst.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(path, environ)
    return [(each.key, each.line or each.variable, each.message) for each in caught.value.problems]


def test_an_agent_after_nobody_is_refused_with_its_line_and_the_nearest_name(tmp_path: Path) -> None:
    text = (
        '[agents.collect]\n[agents.sort]\nafter = ["colect", "collect"]\n[agents.print]\nafter = "nobody"\n'
    )
    assert problems_of(tmp_path, text) == [
        (
            "agents.sort.after",
            3,
            "there is no table [agents.colect], so 'colect' never runs; did you mean 'collect'?",
        ),
        (
            "agents.print.after",
            5,
            "there is no table [agents.nobody], so 'nobody' never runs; known are collect, print, sort",
        ),
    ]


@pytest.mark.parametrize(
    ("tables", "circle", "line"),
    [
        ({"a": "a"}, "a after a", 2),
        ({"a": "b", "b": "a"}, "a after b after a", 2),
        ({"x": "a", "a": "b", "b": "c", "c": "a"}, "a after b after c after a", 4),
        ({"a": ["x", "b"], "b": ["x", "a"], "x": []}, "a after b after a", 2),
    ],
)
def test_agents_in_a_circle_are_refused_once_with_the_circle(
    tmp_path: Path, tables: dict[str, Any], circle: str, line: int
) -> None:
    text = "".join(f"[agents.{name}]\nafter = {after!r}\n" for name, after in tables.items())
    (problem,) = problems_of(tmp_path, text)
    assert problem[1] == line
    assert problem[2] == f"a circle, in which each run would bring the next for ever: {circle}"


def test_two_circles_are_two_problems_and_a_fork_is_none(tmp_path: Path) -> None:
    two = "".join(f'[agents.{name}]\nafter = "{other}"\n' for name, other in ("ab", "ba", "cd", "dc"))
    assert [line for _, line, _ in problems_of(tmp_path, two)] == [2, 6]
    fork = '[agents.a]\n[agents.b]\nafter = "a"\n[agents.c]\nafter = "a"\n[agents.d]\nafter = ["b", "c"]\n'
    (tmp_path / "askfirst.toml").write_text(fork, encoding="utf-8")
    assert load_settings(tmp_path / "askfirst.toml", {}).agent_config("d").after == ("b", "c")


def test_a_circle_that_a_variable_closes_names_the_variable(tmp_path: Path) -> None:
    text = '[agents.a]\n[agents.b]\nafter = "a"\n'
    (problem,) = problems_of(tmp_path, text, ASKFIRST_AGENTS__A__AFTER="b")
    assert problem[:2] == ("agents.a.after", "ASKFIRST_AGENTS__A__AFTER")


def test_a_long_chain_is_read_quickly(tmp_path: Path) -> None:
    links = "".join(f'[agents.a{n}]\nafter = ["a{n - 1}", "a0"]\n' for n in range(1, 300))
    (tmp_path / "askfirst.toml").write_text(f"[agents.a0]\n{links}", encoding="utf-8")
    assert len(load_settings(tmp_path / "askfirst.toml", {}).agents) == 300


NEW_KEYS = """
cron = "0 7 * * mon-fri"
schedule_timezone = "Europe/Berlin"
watch = "inbox"
webhook = true
before = { calendar = "events.ics", lead = "2h", title = "party" }
jitter = "5m"
quiet = ["22:00-07:00", "sat,sun 00:00-24:00"]
catch_up = "skip"
max_lateness = "1h30m"
priority = 5
backoff = ["1m", "1h"]
ping_url = "https://hc.example/s3cret"
isolation = "process"
max_cpu = "30s"
"""


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program.with_garden(tmp_path, "leeks dry", settings=NEW_KEYS)


def test_what_holds_is_explained_as_it_would_be_written(program: Program) -> None:
    done = program.call("config", "explain", "agents.garden", "--json")
    assert "s3cret" not in done.out
    found = {one["key"].removeprefix("agents.garden."): one["value"] for one in done.data}
    expected = {
        "every": "not set",
        "cron": "0 7 * * mon-fri",
        "at": "[]",
        "schedule_timezone": "Europe/Berlin",
        "after": "[]",
        "watch": '["inbox"]',
        "webhook": "true",
        "before": '{"calendar": "events.ics", "lead": "2h", "title": "party"}',
        "jitter": "5m",
        "quiet": '["22:00-07:00", "sat,sun 00:00-24:00"]',
        "catch_up": "skip",
        "max_lateness": "1h30m",
        "priority": "5",
        "backoff": '["1m", "1h"]',
        "quarantine_after": "10",
        "ping_url": "set (hidden)",
        "isolation": "process",
        "max_memory_mb": "1024",
        "max_cpu": "30s",
        "max_bytes": "8388608",
    }
    assert {key: found[key] for key in expected} == expected


def test_moments_are_explained_as_they_would_be_written(tmp_path: Path) -> None:
    at = 'at = ["07:30", 18:00:00, 2026-12-24T18:00:00Z, 2026-12-31]'
    program = Program.with_garden(tmp_path, settings=f"{at}\nbefore = {{ calendar = 'a.ics', lead = 0 }}")
    (at_,) = program.call("config", "explain", "agents.garden.at", "--json").data
    assert at_["value"] == '["07:30", "18:00", "2026-12-24 18:00:00+00:00", "2026-12-31 00:00:00"]'
    (before,) = program.call("config", "explain", "agents.garden.before", "--json").data
    assert before["value"] == '{"calendar": "a.ics", "lead": "0s"}'


def test_what_the_whole_program_says_of_schedules_holds_for_an_agent(program: Program) -> None:
    path = program.folder / "config" / "askfirst.toml"
    text = '[daemon]\ndata_dir = "../data"\ntimezone = "Europe/Madrid"\nquiet = ["22:00-07:00"]\n'
    text += "[agents.garden]\n"
    path.write_text(text, encoding="utf-8")
    found = {one["key"]: one for one in program.call("config", "explain", "agents.garden", "--json").data}
    zone, quiet = found["agents.garden.schedule_timezone"], found["agents.garden.quiet"]
    assert (zone["value"], zone["origin"]) == ("Europe/Madrid", f"{path}:3")
    assert (quiet["value"], quiet["origin"]) == ('["22:00-07:00"]', f"{path}:4")


def test_check_names_file_and_line_of_each_key_that_cannot_work(program: Program) -> None:
    path = program.folder / "config" / "askfirst.toml"
    lines = [
        "[daemon]", 'data_dir = "../data"', "[agents.garden]", 'every = "1h"', 'cron = "0 7 * *"',
        'at = "soon"', 'after = "nobody"', 'before = { calendar = "events.ics" }', 'quiet = "at night"',
        'catch_up = "twice"', "priority = 5000", 'ping_url = "s3cret"', 'isolation = "thread"',
    ]  # fmt: skip
    path.write_text("\n".join(lines), encoding="utf-8")
    done = program.call("config", "check")
    assert done.code == 78
    assert "s3cret" not in done.out
    named = [line.split(": ")[:2] for line in done.out.splitlines()]
    keys = [
        "cron",
        "cron",
        "at",
        "after",
        "before.lead",
        "quiet",
        "catch_up",
        "priority",
        "ping_url",
        "isolation",
    ]
    numbers = [5, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    assert named == [[f"{path}:{n}", f"agents.garden.{key}"] for n, key in zip(numbers, keys, strict=True)]


def test_without_the_packages_for_calendars_the_configuration_cannot_work(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program.call("config", "check").code == 0
    monkeypatch.setitem(sys.modules, "icalendar", None)  # as if it were not installed
    done = program.call("config", "check")
    assert done.code == 78
    assert "agents.garden.before: calendars need packages" in done.out
    assert "pip install 'askfirst[agents]'" in done.out
