"""The log of a real daemon: a proposal is followed by its ids, and `askfirst log` changes what is told."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.control import Daemon, daemon_of
from tests.support.program import Program

pytestmark = pytest.mark.process

QUESTION = "Is the parsley in Maria's bed dry?"

ASKER = f"""
import logging

from agents import BaseAgent


class AskerAgent(BaseAgent):
    every = "1h"

    async def analyze(self):
        self.context.log.debug("looking closely")
        print("talking to itself", flush=True)
        logging.getLogger(__name__).info("looking")
        logging.getLogger("httpx").info("not wanted")
        response = await self.use_llm({QUESTION!r}, cache=False)
        return [
            self.propose(
                "note", "Look", explanation="", payload={{}}, fingerprint=self.context.run_id,
                call_ids=(response.call_id,),
            )
        ]

    async def apply(self, proposal):
        self.context.log.info("noting it", title=proposal.title)
        return {{}}
"""


@pytest.fixture
def asker(tmp_path: Path) -> Program:
    program = Program.with_garden(tmp_path)
    (tmp_path / "data" / "plugins" / "asker.py").write_text(ASKER)
    path = tmp_path / "config" / "askfirst.toml"
    path.write_text(path.read_text().replace("[agents.garden]", "[agents.asker]"))
    return program


def events(lines: list[dict[str, Any]], **wanted: Any) -> list[str]:
    """The events of those lines that have these values, as grep finds them."""
    return [line["event"] for line in lines if wanted.items() <= line.items()]


def test_a_proposal_is_followed_from_its_run_over_its_call_to_what_came_of_it(asker: Program) -> None:
    with daemon_of(asker) as daemon:
        daemon.wait_for("run finished")
        assert daemon.said("model call finished") == daemon.said("looking closely") == []
        changed = daemon.call(
            "log", "level", "llm=debug", "agents.asker=debug", "askfirst=debug", "--for", "10m"
        )
        assert changed.code == 0, changed
        assert "in 10 min" in changed.out
        assert daemon.call("agents", "run", "asker").code == 0
        assert daemon.call("proposals", "approve", "2").code == 0
        assert daemon.stop() == 0
    lines = daemon.lines
    run = daemon.said("run finished")[1]
    (made,) = [line for line in daemon.said("proposal made") if line["proposal"] == 2]
    (call_id,) = made["call_ids"]
    (printed,) = daemon.said("an agent's process printed a line")  # in a stream of its own
    assert (printed["line"], printed["logger"]) == ("talking to itself", "agents.asker")
    lines.remove(printed)
    assert printed["run_id"] == run["run_id"]
    assert events(lines, run_id=run["run_id"]) == [
        "run began", "looking closely", "looking", "model call finished", "proposal made", "run finished",
        "proposal changed", "proposal changed", "noting it", "proposal changed",
    ]  # fmt: skip
    assert events(lines, call_id=call_id) == ["model call finished"]
    assert events(lines, proposal=2) == [
        "proposal made", "proposal changed", "proposal changed", "noting it", "proposal changed"
    ]  # fmt: skip
    assert {line.get("agent") for line in lines if "run_id" in line} == {"asker"}
    (call,) = daemon.said("model call finished")
    assert (call["backend"], call["model"], call["logger"]) == ("mock", "mock", "llm.events")
    assert call["prompt_tokens"] > 0
    assert run["prompt_tokens"] == call["prompt_tokens"]
    (noted,) = daemon.said("noting it")
    assert (noted["logger"], noted["run_id"]) == ("agents.asker", run["run_id"])
    assert daemon.said("looking")[0]["module"].endswith("asker")
    assert daemon.said("not wanted") == []
    assert "parsley" not in daemon.log.read_text()  # whatever the level, no line has what was asked
    changed_line = daemon.said("a log level was changed")[0]
    assert (changed_line["part"], changed_line["log_level"], changed_line["by"]) == ("llm", "debug", "ana")
    assert changed_line["for_seconds"] == 600


def test_levels_are_shown_changed_and_taken_back_and_go_back_by_themselves(running: Daemon) -> None:
    assert running.call("log", "level").out.split() == [
        "part", "level", "from", "until", "everything", "else", "info", "configuration",
    ]  # fmt: skip
    refused = running.call("log", "level", "daemon=debug", "agents.gardn=debug")
    assert refused.code == 1
    assert "there is nothing called 'agents.gardn' that logs" in refused.err
    running.call("log", "level", "daemon.store=warning", "llm=debug")
    assert running.call("reload").out == "Nothing changed.\n"
    kept = running.call("log", "level", "--json").data["parts"]
    assert [(part["part"], part["level"], part["from"]) for part in kept] == [
        ("daemon.store", "warning", "command"),
        ("llm", "debug", "command"),
    ]
    path = running.program.folder / "config" / "askfirst.toml"
    path.write_text(path.read_text().replace("[daemon]", '[daemon]\nlog_levels = { daemon.store = "error" }'))
    assert 'daemon.log_levels: {} -> {"daemon.store": "error"}' in running.call("reload").out
    back = running.call("log", "level", "daemon.store=", "--json").data["parts"]
    assert [(part["part"], part["level"], part["from"]) for part in back] == [
        ("daemon.store", "error", "configuration"),
        ("llm", "debug", "command"),
    ]
    assert [part["from"] for part in running.call("log", "level", "--reset", "--json").data["parts"]] == [
        "configuration"
    ]
    running.call("log", "level", "llm=debug", "--for", "1s")
    running.wait_for("a log level is as the configuration has it again")
    (left,) = running.call("log", "level", "--json").data["parts"]
    assert left == {"part": "daemon.store", "level": "error", "from": "configuration", "seconds_left": None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("llm",), "'llm' is no part with its level, such as llm=debug"),
        (("llm=loud",), "llm: 'loud' is no level; levels are debug, info, warning, error"),
        (("httpcore=debug",), "httpcore is never logged at debug"),
        (("llm=debug", "--reset"), "--reset stands alone"),
        (("--for", "10m"), "--for needs a PART=LEVEL that it is about"),
        (("llm=debug", "--for", "soon"), "--for: 'soon' is not a duration"),
    ],
)
def test_what_is_not_understood_needs_no_daemon_to_be_told(
    garden: Program, words: tuple[str, ...], said: str
) -> None:
    done = garden.call("log", "level", *words)
    assert done.code == 64
    assert said in done.err


def test_without_a_daemon_there_is_no_log_to_change(garden: Program) -> None:
    done = garden.call("log", "level", "llm=debug")
    assert done.code == 1
    assert "no daemon runs on" in done.err


def test_the_format_of_the_command_line_wins_over_terminal_and_configuration(garden: Program) -> None:
    controller, terminal = pty.openpty()
    command = garden.command("run", "--log-format", "json")
    environment = garden.whole_environment({"ASKFIRST_DAEMON__LOG_FORMAT": "console"})
    with subprocess.Popen(command, cwd=garden.folder, env=environment, stderr=terminal) as process:
        os.close(terminal)
        with os.fdopen(controller, encoding="utf-8") as shown:
            assert json.loads(shown.readline())["event"] == "askfirst is running"
            process.kill()
