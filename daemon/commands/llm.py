"""`askfirst llm`: ask the model, or check that it answers."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation, run
from daemon.commands.shapes import plain, selection_data
from daemon.errors import ExitCode

if TYPE_CHECKING:
    from llm import LLMConfig, LLMResponse, Selection


@click.group(
    "llm",
    short_help="Ask the model, or check that it answers.",
    epilog=examples("askfirst llm health", 'askfirst llm ask "Name three vegetables"'),
)
@command_options
def command() -> None:
    """Ask the model, or check that it answers."""


@command.command(
    epilog=examples(
        'askfirst llm ask "Name three vegetables"',
        'askfirst llm ask "Name three vegetables" --temperature 0 --max-tokens 60 --json',
    )
)
@click.argument("prompt")
@click.option("--system", "system_prompt", metavar="TEXT", help="How the model shall behave.")
@click.option("--temperature", type=float, help="0 is greedy and repeatable.")
@click.option("--max-tokens", type=int, help="Most tokens of the answer.")
@click.option("--no-cache", is_flag=True, help="Ask anew, and keep nothing.")
@command_options
@pass_invocation
def ask(call: Invocation, /, prompt: str, no_cache: bool, **options: Any) -> None:
    """Ask the model. A PROMPT of "-" is read from standard input."""
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        msg = "the prompt is empty"
        raise click.UsageError(msg)
    settings = call.settings()
    with call.logging(settings):
        response = run(_ask(settings.llm_environ(), text, cache=not no_cache, **options))
    screen = call.screen()
    if screen.as_json:
        screen.data({**plain(response), "tokens_used": response.tokens_used})
    else:
        screen.line(response.content.rstrip())
        screen.line(_cost(response), "dim")


async def _ask(environ: Mapping[str, str], prompt: str, **options: Any) -> LLMResponse:
    from llm import get_llm_client, select_backend  # noqa: PLC0415 - beside what it is needed for

    async with get_llm_client(_chosen(await select_backend(environ))) as client:
        return await client.generate(prompt, **options)


def _chosen(selection: Selection) -> LLMConfig:
    from llm import NoModel  # noqa: PLC0415 - beside what it is needed for

    if selection.config is None:
        raise NoModel("\n".join((selection.reason, *selection.considered)))
    return selection.config


def _cost(response: LLMResponse) -> str:
    source = "from the cache" if response.cached else f"{response.latency:.1f} s"
    cut = ", cut off at max_tokens" if response.finish_reason == "length" else ""
    return f"({response.backend}, {response.model}: {response.tokens_used} tokens, {source}{cut})"


@command.command(epilog=examples("askfirst llm health"))
@command_options
@pass_invocation
def health(call: Invocation) -> int:
    """Say which model is used and why, and whether it can be reached. Exits with 1 when it cannot."""
    settings = call.settings()
    with call.logging(settings):
        selection, healthy = run(_health(settings.llm_environ()))
    screen = call.screen()
    if screen.as_json:
        screen.data({**selection_data(selection), "healthy": healthy})
    else:
        screen.line(selection.reason)
        for passed in selection.considered:
            screen.line(f"  {passed}", "dim")
        if selection.config is not None:
            screen.line("It is ready." if healthy else "It cannot be reached.", "green" if healthy else "red")
    return ExitCode.OK if healthy else ExitCode.FAILED


async def _health(environ: Mapping[str, str]) -> tuple[Selection, bool]:
    from llm import get_llm_client, select_backend  # noqa: PLC0415 - beside what it is needed for

    selection = await select_backend(environ)
    if selection.config is None:
        return selection, False
    async with get_llm_client(selection.config) as client:
        return selection, await client.health_check()
