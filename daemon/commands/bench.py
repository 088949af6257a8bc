"""`askfirst llm bench`: how quick the model is here, measured through the layer that agents use."""

from __future__ import annotations

import secrets
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from daemon.commands.base import Invocation, command_options, examples, pass_invocation, run
from daemon.commands.models import choose
from daemon.render import Column

if TYPE_CHECKING:
    from daemon.settings import Settings
    from llm import LLMClient, LLMResponse

_SENTENCES = (
    "A tool library lends what people seldom need: a drill, a ladder, a press for apples.",
    "The pantry opens on Tuesdays and Fridays, and whoever comes early helps to unpack.",
    "Tomatoes ripen faster beside a banana, and potatoes keep longer beside an apple.",
    "Two neighbours share a van; the third one has the shed in which it winters.",
    "What nobody fetches by six goes to the kitchen, which cooks for forty.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One call, or the medians of several.

    Attributes:
        what: which kind of call.
        first_token: seconds to the first piece.
        seconds: seconds of the whole call.
        prompt_tokens: tokens in.
        cached_tokens: of these, tokens that the engine had already.
        completion_tokens: tokens out.
        tokens_per_second: tokens out per second after the first one, None when the answer came as one piece.
    """

    what: str
    first_token: float
    seconds: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    tokens_per_second: float | None


@click.command(
    epilog=examples("askfirst llm bench", "askfirst llm bench --backend ollama --runs 5 --tokens 100 --json")
)
@click.option("--backend", metavar="NAME", help="Measure this backend instead of the configured one.")
@click.option("--model", metavar="NAME", help="Measure this model instead of the configured one.")
@click.option("--runs", type=click.IntRange(1, 100), default=3, show_default=True, help="Calls of each kind.")
@click.option(
    "--tokens", type=click.IntRange(2, 4096), default=64, show_default=True, help="Most tokens of an answer."
)
@command_options
@pass_invocation
def bench(call: Invocation, /, backend: str | None, model: str | None, runs: int, tokens: int) -> None:
    """Measure the model: its first call, prompts that are new, and prompts that share their beginning.

    Nothing is read from or kept in the response cache. A remote service counts and charges these calls.
    """
    settings = call.settings()
    screen = call.screen()
    with call.logging(settings):
        name, rows = run(_measure(settings, backend, model, runs, tokens))
    if screen.as_json:
        screen.data(
            {"backend": name[0], "model": name[1], "runs": runs, "calls": [_data(row) for row in rows]}
        )
        return
    screen.line(f"{name[0]}, {name[1]}: medians of {runs} calls of up to {tokens} tokens")
    heads = [
        Column("call"),
        *(Column(head, right=True) for head in ("first token s", "whole s", "in", "had", "out", "tokens/s")),
    ]
    screen.table(heads, [_cells(row) for row in rows])


async def _measure(
    settings: Settings, backend: str | None, model: str | None, runs: int, tokens: int
) -> tuple[tuple[str, str], list[Measured]]:
    async with await choose(settings, backend, model) as client:
        first = await _one(client, "first (loads the model)", _prompt("", 0), tokens)
        fresh = [
            await _one(client, "new prompt", _prompt(secrets.token_hex(4), n), tokens) for n in range(runs)
        ]
        beginning = secrets.token_hex(4)
        await _one(client, "", _prompt(beginning, 0), 2)
        shared = [await _one(client, "same beginning", _prompt(beginning, n), tokens) for n in range(runs)]
        return (client.name, client.config.model), [first, _median(fresh), _median(shared)]


def _prompt(mark: str, number: int) -> str:
    """About 100 tokens that begin with `mark`, so that no engine has them, and end with `number`."""
    told = " ".join(_SENTENCES)
    return f"{mark} {told} Question {number}: what would you lend, and to whom? Explain at length."


async def _one(client: LLMClient, what: str, prompt: str, tokens: int) -> Measured:
    started = time.perf_counter()
    pieces = 0
    async with client.stream(prompt, max_tokens=tokens, cache=False, task="bench") as stream:
        async for _ in stream:
            pieces += 1
    response = await stream.collect()
    return _measured(what, response, time.perf_counter() - started, streamed=pieces > 2)


def _measured(what: str, response: LLMResponse, seconds: float, *, streamed: bool) -> Measured:
    first = seconds if response.first_token is None else response.first_token
    after = seconds - first
    enough = streamed and after > 0
    return Measured(
        what=what,
        first_token=first,
        seconds=seconds,
        prompt_tokens=response.prompt_tokens,
        cached_tokens=response.cached_tokens,
        completion_tokens=response.completion_tokens,
        tokens_per_second=(response.completion_tokens - 1) / after if enough else None,
    )


def _median(calls: list[Measured]) -> Measured:
    rates = [call.tokens_per_second for call in calls if call.tokens_per_second is not None]
    return Measured(
        what=calls[0].what,
        first_token=statistics.median(call.first_token for call in calls),
        seconds=statistics.median(call.seconds for call in calls),
        prompt_tokens=round(statistics.median(call.prompt_tokens for call in calls)),
        cached_tokens=round(statistics.median(call.cached_tokens for call in calls)),
        completion_tokens=round(statistics.median(call.completion_tokens for call in calls)),
        tokens_per_second=statistics.median(rates) if rates else None,
    )


def _cells(row: Measured) -> tuple[object, ...]:
    rate = "" if row.tokens_per_second is None else f"{row.tokens_per_second:.1f}"
    return (
        row.what,
        f"{row.first_token:.2f}",
        f"{row.seconds:.2f}",
        row.prompt_tokens,
        row.cached_tokens,
        row.completion_tokens,
        rate,
    )


def _data(row: Measured) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}
