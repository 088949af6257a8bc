"""`askfirst llm ask`: one question to the model: whole, as it comes, or held to a schema."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation, run
from daemon.commands.models import choose
from daemon.commands.shapes import plain

if TYPE_CHECKING:
    from daemon.render import Screen
    from daemon.settings import Settings
    from llm import LLMResponse


@click.command(
    epilog=examples(
        'askfirst llm ask "Name three vegetables"',
        'askfirst llm ask "Name three vegetables" --stream',
        'askfirst llm ask "Is a leek a vegetable?" --schema \'{"properties": {"yes": {"type": "boolean"}}}\'',
        'askfirst llm ask "Name three vegetables" --temperature 0 --max-tokens 60 --json',
    )
)
@click.argument("prompt")
@click.option("--system", "system_prompt", metavar="TEXT", help="How the model shall behave.")
@click.option("--stream", is_flag=True, help="Show the answer as it comes; with --json, one line a piece.")
@click.option(
    "--schema", metavar="JSON|FILE", help="JSON schema that the answer must fit, as text or as a file's path."
)
@click.option("--backend", metavar="NAME", help="Ask this backend instead of the configured one.")
@click.option("--model", metavar="NAME", help="Ask this model instead of the configured one.")
@click.option("--temperature", type=float, help="0 is greedy and repeatable.")
@click.option("--max-tokens", type=int, help="Most tokens of the answer.")
@click.option(
    "--think",
    type=click.Choice(["yes", "no", "low", "medium", "high"]),
    help="Whether, and how hard, a model that can think does so first.",
)
@click.option("--timeout", type=float, metavar="SECONDS", help="Total time of the call.")
@click.option("--no-cache", is_flag=True, help="Ask anew, and keep nothing.")
@command_options
@pass_invocation
def ask(
    call: Invocation,
    /,
    *,
    prompt: str,
    stream: bool,
    schema: str | None,
    backend: str | None,
    model: str | None,
    think: str | None,
    no_cache: bool,
    **options: Any,
) -> None:
    """Ask the model. A PROMPT of "-" is read from standard input."""
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        msg = "the prompt is empty"
        raise click.UsageError(msg)
    if stream and schema is not None:
        msg = "--stream and --schema do not go together: a reply is checked when it is whole"
        raise click.UsageError(msg)
    options |= {"cache": not no_cache, "task": "ask"}
    if think is not None:
        options["think"] = {"yes": True, "no": False}.get(think, think)
    asked = _Question(call.settings(), text, backend=backend, model=model, options=options)
    with call.logging(asked.settings):
        if schema is not None:
            _show_object(call.screen(), run(asked.held_to(_read_schema(schema))))
        elif stream:
            run(asked.as_it_comes(call.screen()))
        else:
            _show(call.screen(), run(asked.whole()))


class _Question:
    """What is asked, and of which model."""

    def __init__(
        self,
        settings: Settings,
        prompt: str,
        *,
        backend: str | None,
        model: str | None,
        options: dict[str, Any],
    ) -> None:
        self.settings = settings
        self._backend, self._model = backend, model
        self._prompt, self._system = prompt, options.pop("system_prompt")
        self._options = options

    async def whole(self) -> LLMResponse:
        """The answer, when it is there."""
        async with await choose(self.settings, self._backend, self._model) as client:
            return await client.generate(self._prompt, self._system, **self._options)

    async def held_to(self, schema: dict[str, Any]) -> LLMResponse:
        """The answer that fits a schema, after at most one repair."""
        from llm import LLMMessage  # noqa: PLC0415 - beside what it is needed for
        from llm.structured import ask as ask_model  # noqa: PLC0415 - the same

        turns = [LLMMessage("system", self._system)] if self._system else []
        turns.append(LLMMessage("user", self._prompt))
        async with await choose(self.settings, self._backend, self._model) as client:
            return await ask_model(client, turns, schema, **self._options)

    async def as_it_comes(self, screen: Screen) -> None:
        """Write the answer piece by piece."""
        from llm import StreamEnd, TextChunk  # noqa: PLC0415 - beside what it is needed for

        async with (
            await choose(self.settings, self._backend, self._model) as client,
            client.stream(self._prompt, self._system, **self._options) as stream,
        ):
            async for chunk in stream:
                if isinstance(chunk, StreamEnd):
                    _show_end(screen, chunk.response)
                elif screen.as_json:
                    kind = "text" if isinstance(chunk, TextChunk) else "thinking"
                    screen.record({"type": kind, "text": chunk.text})
                else:
                    screen.piece(chunk.text, "" if isinstance(chunk, TextChunk) else "dim")


def _read_schema(given: str) -> dict[str, Any]:
    """A JSON schema from the command line or from a file.

    Raises:
        click.UsageError: it is neither a JSON object nor the path of one.
    """
    text = given
    if not given.lstrip().startswith("{"):
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"--schema is neither a JSON object nor a file that can be read: {given}"
            raise click.UsageError(msg) from error
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        msg = f"--schema is no JSON: {error}"
        raise click.UsageError(msg) from error
    if not isinstance(schema, dict):
        msg = '--schema must be a JSON object, such as {"properties": {"yes": {"type": "boolean"}}}'
        raise click.UsageError(msg)
    return {"type": "object", **schema} if "properties" in schema else schema


def _show(screen: Screen, response: LLMResponse) -> None:
    if screen.as_json:
        screen.data(_data(response))
    else:
        screen.line(response.content.rstrip())
        screen.line(_cost(response), "dim")


def _show_object(screen: Screen, response: LLMResponse) -> None:
    if screen.as_json:
        screen.data({**_data(response), "object": response.json()})
    else:
        screen.data(response.json())
        screen.line(_cost(response), "dim")


def _show_end(screen: Screen, response: LLMResponse) -> None:
    if screen.as_json:
        screen.record({"type": "end", **_data(response)})
    else:
        screen.line("")
        screen.line(_cost(response), "dim")


def _data(response: LLMResponse) -> dict[str, Any]:
    return {**plain(response), "tokens_used": response.tokens_used}


def _cost(response: LLMResponse) -> str:
    source = "from the cache" if response.cached else f"{response.latency:.1f} s"
    if response.first_token is not None and not response.cached:
        source += f", first token after {response.first_token:.1f} s"
    cut = ", cut off at max_tokens" if response.finish_reason == "length" else ""
    return f"({response.backend}, {response.model}: {response.tokens_used} tokens, {source}{cut})"
