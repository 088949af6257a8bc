"""The command line as a person meets it: help, exit codes, messages instead of tracebacks, quick starts."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click
import pytest

from daemon.cli import COMMANDS, cli
from daemon.render import safe
from tests.support.program import ROOT, Program

pytestmark = pytest.mark.process

HEAVY = (
    "sqlalchemy",
    "apscheduler",
    "httpx",
    "pydantic",
    "rich",
    "structlog",
    "starlette",
    "uvicorn",
    "alembic",
)


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def commands(
    group: click.Group, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and its words, groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


EVERY = dict(commands(cli))


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("--version",), ("proposals", "approve", "--help"), ("doctor", "--help"), ("config", "-h")],
)
def test_help_and_version_load_none_of_the_heavy_libraries(
    program: Program, arguments: tuple[str, ...]
) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-P", "-m", "daemon", *arguments],
        cwd=program.folder,
        env=program.whole_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported = set(re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE))
    assert "daemon.cli" in imported
    assert not {name for name in imported if name.split(".")[0] in HEAVY}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_each_command_says_of_itself(name: str) -> None:
    module, line = COMMANDS[name]
    command = import_module(module).command
    assert command.name == name
    assert command.get_short_help_str(limit=200) == line


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_has_a_help_with_an_example_that_the_command_understands(
    words: tuple[str, ...],
) -> None:
    command = EVERY[words]
    examples = re.findall(r"^\s*askfirst (.+)$", command.epilog or "", re.MULTILINE)
    assert examples, f"{' '.join(words)} has no example"
    for example in examples:
        assert example.startswith(" ".join(words)), example
        assert_understood(example)


def assert_understood(line: str) -> None:
    """The line is one that click can parse, down to the last command."""
    import shlex

    arguments = shlex.split(line.partition(" > ")[0])
    context = cli.make_context("askfirst", list(arguments), resilient_parsing=False)
    command: click.Command = cli
    while isinstance(command, click.Group):
        words = [*context._protected_args, *context.args]
        if not words and command is not cli and command.invoke_without_command:
            return
        name, found, rest = command.resolve_command(context, words)
        assert found is not None
        assert name is not None
        command, context = found, found.make_context(name, rest, parent=context)


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_answers_in_json_on_demand(words: tuple[str, ...]) -> None:
    assert "--json" in [name for option in EVERY[words].params for name in option.opts]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("proposal",), "there is no command 'proposal'; did you mean 'proposals'?"),
        (("xyzzy",), "there is no command 'xyzzy'; the commands are run, proposals,"),
        (("proposals", "aprove", "1"), "No such command 'aprove'. Did you mean 'approve'?"),
        (("proposals", "approve"), "Missing argument 'ID...'"),
        (("proposals", "approve", "one"), "'one' is not a valid integer"),
        (("proposals", "list", "--all", "--status", "applied"), "--all and --status exclude each other"),
        (("proposals", "edit", "1", "--set", "nothing"), "--set nothing: write it as KEY=VALUE"),
        (("proposals", "snooze", "1", "--for", "soon"), "--for: 'soon' is not a duration"),
        (("proposals", "approve", "1", "--nope"), "No such option '--nope'"),
        (("--agent", "matchmaker"), "--agent needs --once"),
        (("--once", "doctor"), "--once stands alone, not before 'doctor'"),
        (("llm", "ask", " "), "the prompt is empty"),
    ],
)
def test_what_is_not_understood_ends_with_64_and_says_what_would_be(
    program: Program, arguments: tuple[str, ...], said: str
) -> None:
    done = program.run(*arguments)
    assert done.code == 64, done
    assert said in done.err
    assert done.out == ""
    assert "Traceback" not in done.err


def test_a_bad_configuration_ends_with_78_and_all_problems_and_nothing_else(program: Program) -> None:
    path = program.folder / "bad.toml"
    path.write_text('[web]\nport = "x"\n[daemon]\nlog_level = 3\n')
    for arguments in (
        (),
        ("run",),
        ("--once",),
        ("--once", "--json"),
        ("proposals", "list"),
        ("llm", "health"),
    ):
        done = program.run("--config", str(path), *arguments)
        assert done.code == 78, done
        assert done.out == ""
        assert done.err.splitlines() == [
            f'{path}:2: web.port: must be a whole number, not "x"',
            f"{path}:4: daemon.log_level: must be 'debug', 'info', 'warning' or 'error', not 3",
        ]


def test_an_option_for_all_commands_may_stand_before_or_after_the_command(program: Program) -> None:
    path = program.folder / "my.toml"
    path.write_text("[web]\nport = 9321\n")
    for arguments in (
        ("--config", str(path), "--json", "config", "explain", "web.port"),
        ("config", "--config", str(path), "explain", "web.port", "--json"),
        ("config", "explain", "web.port", "--json", "--config", str(path)),
    ):
        done = program.run(*arguments)
        assert done.code == 0, done
        assert done.data[0]["value"] == "9321"


def test_what_goes_wrong_unexpectedly_is_a_sentence_and_with_debug_a_traceback(program: Program) -> None:
    # A data folder that cannot be asked about: not a case that any part of the program is prepared for.
    (program.folder / "askfirst.toml").write_text(f'[daemon]\ndata_dir = "/{"x" * 300}"\n')
    plain = program.run("--config", "askfirst.toml", "doctor")
    assert plain.code == 1, plain
    assert "Traceback" not in plain.err
    assert "askfirst failed unexpectedly: OSError" in plain.err
    assert "--debug" in plain.err
    told = program.run("--config", "askfirst.toml", "--debug", "doctor")
    assert told.code == 1
    assert "Traceback" in told.err


def test_no_key_of_the_environment_shows_in_what_goes_wrong(program: Program) -> None:
    key = "sk-verysecretverysecret"
    done = program.run("--debug", "--config", f"/tmp/{key}.toml", "llm", "health", LLM_API_KEY=key)
    assert done.code == 78
    assert key not in done.err + done.out


def test_what_a_person_typed_cannot_act_on_the_terminal_that_complains(program: Program) -> None:
    done = program.run("\x1b[2Jhello")
    assert done.code == 64
    assert done.err == safe(done.err)
    assert "hello" in done.err


def test_a_reader_that_has_gone_away_is_no_error_to_talk_about(program: Program) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{' '.join(program.command('config', 'schema'))} | head -c 1"],
        cwd=program.folder,
        env=program.whole_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "{"
    assert done.stderr == ""


def test_a_terminal_that_knows_no_such_letters_is_no_reason_to_fail(program: Program) -> None:
    done = program.run("llm", "ask", "piñón 日本", LLM_BACKEND="mock", PYTHONIOENCODING="ascii", LANG="C")
    assert done.code == 0, done


def test_ctrl_c_ends_with_130_and_without_a_word(program: Program) -> None:
    with socket.create_server(
        ("127.0.0.1", 0)
    ) as server:  # a model server that takes calls and never answers
        host = f"http://127.0.0.1:{server.getsockname()[1]}"
        ask = ("llm", "ask", "hello", "--no-cache")
        with program.running(*ask, LLM_BACKEND="ollama", OLLAMA_HOST=host) as process:
            server.settimeout(30)
            connection, _ = server.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (out, err.strip()) == ("", "")


def test_the_version_is_that_of_the_distribution(program: Program) -> None:
    from importlib.metadata import version

    assert program.run("--version").out == f"askfirst {version('askfirst')}\n"


def test_a_checkout_that_is_not_installed_says_so_instead_of_a_version(tmp_path: Path) -> None:
    code = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]"
    click_home = Path(click.__file__).parent.parent
    copy = tmp_path / "site"
    copy.mkdir()
    (copy / "click").symlink_to(click_home / "click")
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{code}; from daemon.__main__ import main; main()", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{copy}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "askfirst (not installed, run from its folder)\n", done.stderr


def test_the_console_script_is_the_same_program(program: Program) -> None:
    script = Path(sys.executable).parent / "askfirst"
    done = subprocess.run(
        [script, "config", "explain", "web.port", "--json"],
        cwd=program.folder,
        env=program.whole_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["key"] == "web.port"
