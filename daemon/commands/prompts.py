"""`askfirst prompts`: see what the agents' models are asked, try it, and say it in your own words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation
from daemon.commands.shapes import plain
from daemon.errors import DaemonError, ExitCode
from daemon.render import Column, Style

if TYPE_CHECKING:
    from daemon.commands.shelf import Entry, Shelf

_COLUMNS = (
    Column("name", style="bold"),
    Column("agent"),
    Column("version"),
    Column("overridden"),
    Column("variables"),
)
_LINES: dict[str, Style] = {"+": "green", "-": "red", "@": "cyan"}


@click.group(
    "prompts",
    short_help="See and change what the agents' models are asked.",
    epilog=examples("askfirst prompts list", "askfirst prompts show matchmaker/pair"),
)
@command_options
def command() -> None:
    """See and change what the agents' models are asked.

    The prompts of an agent are templates: files with gaps for data. A file of the same name in the folder
    `prompts` beside the configuration counts instead of the one that came with the agent.
    """


@command.command("list", epilog=examples("askfirst prompts list"))
@command_options
@pass_invocation
def list_prompts(call: Invocation) -> None:
    """List the prompt templates of all agents, with their versions."""
    entries = _shelf(call).entries()
    screen = call.screen()
    if screen.as_json:
        screen.data([_described(entry) for entry in entries])
        return
    screen.table(_COLUMNS, [_cells(entry) for entry in entries])
    for entry in entries:
        if entry.problem:
            screen.line(f"{entry.path}: {entry.problem}", "red")


@command.command(epilog=examples("askfirst prompts show matchmaker/pair"))
@click.argument("name")
@command_options
@pass_invocation
def show(call: Invocation, name: str) -> None:
    """Show a template's text, what it wants to be given, and which file it is."""
    entry = _shelf(call).entry(name)
    screen = call.screen()
    if screen.as_json:
        screen.data({**_described(entry), "source": None if entry.found is None else entry.found.source})
        return
    screen.line(entry.name, "bold")
    screen.fields(_details(entry))
    if entry.problem:
        screen.line(f"{entry.path}: {entry.problem}", "red")
    if entry.found is not None:
        screen.line()
        screen.block(entry.found.source.rstrip("\n"))


@command.command(
    epilog=examples(
        'askfirst prompts render matchmaker/pair --set "offer=limes (in kg)" --set "need=lemons (in kg)"',
        "askfirst prompts render matchmaker/pair --file offer=offer.txt --set need=lemons --json",
    )
)
@click.argument("name")
@click.option(
    "--set",
    "values",
    multiple=True,
    metavar="KEY=VALUE",
    help="A variable. A number, a list or an object in JSON is taken as such, all else as text.",
)
@click.option("--file", "files", multiple=True, metavar="KEY=PATH", help="A variable whose text is a file's.")
@command_options
@pass_invocation
def render(call: Invocation, name: str, values: tuple[str, ...], files: tuple[str, ...]) -> None:
    """Fill in a template and print what a model would be sent.

    An agent that wants an answer in fields adds the list of them; nothing else is added. No model is asked.
    """
    shelf = _shelf(call)
    entry = shelf.entry(name)
    given = {key: _value(text) for key, text in _pairs(values, "--set")}
    given |= {key: _text_of(Path(path)) for key, path in _pairs(files, "--file")}
    from llm import TemplateError  # noqa: PLC0415 - beside what it is needed for

    try:
        prompt = shelf.templates(entry.agent).render(name.partition("/")[2], given)
    except TemplateError as error:
        raise DaemonError(str(error)) from error
    screen = call.screen()
    if screen.as_json:
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages()]
        screen.data({**plain(prompt), "template": prompt.template, "messages": turns})
        return
    for turn in prompt.messages():
        screen.line(f"{turn.role}:", "dim")
        screen.line(turn.content)
        screen.line()
    screen.line(f"({prompt.template})", "dim")


@command.command(epilog=examples("askfirst prompts diff matchmaker/pair"))
@click.argument("name")
@command_options
@pass_invocation
def diff(call: Invocation, name: str) -> int:
    """Compare your version of a template with the agent's own. Exits with 1 when they differ."""
    entry = _shelf(call).entry(name)
    if entry.shipped is None:
        msg = f"{entry.name} did not come with the agent; there is nothing to compare {entry.path} with"
        raise DaemonError(msg)
    lines = _differences(entry.shipped, entry.path) if entry.overridden else []
    screen = call.screen()
    if screen.as_json:
        screen.data(
            {"name": entry.name, "overridden": entry.overridden, "differs": bool(lines), "diff": lines}
        )
    elif lines:
        for line in lines:
            screen.line(line, _LINES.get(line[:1], ""))
    else:
        how = f"{entry.path} says the same" if entry.overridden else "you have no version of your own"
        screen.line(f"{entry.name}: {how}.")
    return ExitCode.FAILED if lines else ExitCode.OK


@command.command(epilog=examples("askfirst prompts override matchmaker/pair"))
@click.argument("name")
@command_options
@pass_invocation
def override(call: Invocation, name: str) -> None:
    """Copy a template into your folder, for you to change. A version of yours is never overwritten."""
    shelf = _shelf(call)
    entry = shelf.entry(name)
    if entry.overridden or entry.shipped is None:
        msg = f"{entry.path} is your own version of {entry.name} already; edit it, or remove it to start anew"
        raise DaemonError(msg)
    target = shelf.folder / entry.agent / entry.shipped.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as file:
            file.write(entry.shipped.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"{target} cannot be written: {error.strerror}"
        raise DaemonError(msg) from error
    screen = call.screen()
    if screen.as_json:
        screen.data({"name": entry.name, "path": target})
    else:
        screen.line(
            f"{target} counts from now on; edit it, and `askfirst config check` says whether it fits."
        )


def _shelf(call: Invocation) -> Shelf:
    from daemon.commands.shelf import Shelf  # noqa: PLC0415 - loads the agents

    return Shelf(call.settings())


def _described(entry: Entry) -> dict[str, Any]:
    found = entry.found
    return {
        "name": entry.name,
        "agent": entry.agent,
        "version": None if found is None else found.version,
        "overridden": entry.overridden,
        "path": entry.path,
        "shipped": entry.shipped,
        "variables": [] if found is None else sorted(found.variables.required),
        "optional": [] if found is None else sorted(found.variables.optional),
        "parts": [] if found is None else list(found.parts),
        "problem": entry.problem or None,
    }


def _cells(entry: Entry) -> tuple[object, ...]:
    version = "cannot be used" if entry.found is None else entry.found.version
    return (entry.name, entry.agent, version, "yes" if entry.overridden else "no", _variables(entry))


def _variables(entry: Entry) -> str:
    if entry.found is None:
        return ""
    wanted = entry.found.variables
    return ", ".join([*sorted(wanted.required), *(f"{name} (optional)" for name in sorted(wanted.optional))])


def _details(entry: Entry) -> list[tuple[str, object]]:
    details: list[tuple[str, object]] = [("file", entry.path)]
    if entry.overridden:
        details.append(("instead of", entry.shipped or "nothing: it did not come with the agent"))
    if entry.found is not None:
        details += [("version", entry.found.version), ("variables", _variables(entry) or "none")]
        if entry.found.parts:
            details.append(("includes", ", ".join(entry.found.parts)))
    return details


def _pairs(texts: Iterable[str], option: str) -> Iterable[tuple[str, str]]:
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            msg = f"{option} {text!r} is no KEY=VALUE"
            raise click.UsageError(msg)
        yield key, value


def _value(text: str) -> Any:
    """A number, a list or an object in JSON as itself; a number only where it is written just so again."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    is_number = isinstance(value, int | float) and json.dumps(value) == text and text[-1].isdecimal()
    return value if is_number or isinstance(value, list | dict) else text


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        msg = f"{path} cannot be read: {reason}"
        raise DaemonError(msg) from error


def _differences(shipped: Path, own: Path) -> list[str]:
    before, after = _text_of(shipped).splitlines(), _text_of(own).splitlines()
    return list(difflib.unified_diff(before, after, str(shipped), str(own), lineterm=""))
