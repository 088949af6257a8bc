"""`askfirst llm cache`: how full the response cache is, what is in it, and how to empty it.

All of it works while the daemon runs: the file is shared, and a running client notices within a second that
it was cleared.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from agents.durations import parse_duration
from daemon.commands.base import Invocation, command_options, examples, pass_invocation, run
from daemon.commands.shapes import moment
from daemon.errors import DaemonError
from daemon.render import Column, shortened

if TYPE_CHECKING:
    from llm.stores.base import ResponseStore, StoredReply, StoreStats

T = TypeVar("T")

_QUESTION = 70  # columns of a question in the list
_AT_ONCE = 200  # replies that are written to a file at a time


@click.group(
    "cache",
    short_help="See, export and clear the kept replies.",
    epilog=examples("askfirst llm cache stats", "askfirst llm cache clear --older-than 7d"),
)
@command_options
def cache() -> None:
    """See, export and clear the replies that the response cache keeps. The daemon may run meanwhile."""


@cache.command(epilog=examples("askfirst llm cache stats"))
@command_options
@pass_invocation
def stats(call: Invocation) -> None:
    """Say how many replies are kept, and how much room they take."""
    found = _with_store(call, lambda store: store.stats())
    screen = call.screen()
    if screen.as_json:
        screen.data(_stats_data(found))
        return
    screen.fields(
        [
            ("file", found.path),
            ("replies", found.entries),
            ("room", f"{found.bytes / 1e6:.1f} of {found.limit / 1e6:.1f} MB"),
            ("oldest", f"{moment(_time(found.oldest))} UTC" if found.oldest is not None else "none"),
            ("newest", f"{moment(_time(found.newest))} UTC" if found.newest is not None else "none"),
        ]
    )


def _stats_data(found: StoreStats) -> dict[str, Any]:
    return {
        "path": found.path,
        "replies": found.entries,
        "bytes": found.bytes,
        "limit": found.limit,
        "oldest": _time(found.oldest),
        "newest": _time(found.newest),
    }


@cache.command(
    "list", epilog=examples("askfirst llm cache list", "askfirst llm cache list --limit 100 --json")
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="Most replies to show."
)
@command_options
@pass_invocation
def list_(call: Invocation, /, limit: int) -> None:
    """List the kept replies, the newest first: when, from which model, to which question."""
    found = _with_store(call, lambda store: _collected(store.entries(limit)))
    screen = call.screen()
    if screen.as_json:
        screen.data([_entry(each) for each in found])
        return
    rows = []
    for entry in map(_entry, found):
        answer = entry["reply"].get("content", "")
        rows.append(
            (moment(entry["created"]), entry["model"], shortened(entry["label"], _QUESTION), len(answer))
        )
    heads = [
        Column("answered (UTC)"),
        Column("model"),
        Column("question::system"),
        Column("characters", right=True),
    ]
    if rows:
        screen.table(heads, rows)
    else:
        screen.line("No reply is kept.")


@cache.command(epilog=examples("askfirst llm cache clear", "askfirst llm cache clear --older-than 7d"))
@click.option("--older-than", metavar="DURATION", help="Only those answered longer ago, such as 12h or 7d.")
@command_options
@pass_invocation
def clear(call: Invocation, /, older_than: str | None) -> None:
    """Forget the kept replies, or the old ones among them. They can be asked for again."""
    age = None if older_than is None else _duration(older_than).total_seconds()
    gone = _with_store(call, lambda store: store.clear(age))
    screen = call.screen()
    if screen.as_json:
        screen.data({"cleared": gone})
    else:
        screen.line(f"{gone} {'reply' if gone == 1 else 'replies'} forgotten.")


@cache.command(epilog=examples("askfirst llm cache export replies.jsonl", "askfirst llm cache export --json"))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), required=False)
@command_options
@pass_invocation
def export(call: Invocation, /, file: Path | None) -> None:
    """Write all kept replies as JSON Lines to FILE, readable by you alone, or to standard output.

    Each line holds label (the question), created, model, backend and reply.
    """
    if file is None:
        _with_store(call, lambda store: _export(store, sys.stdout))
        return
    count = _export_to_file(call, file)
    screen = call.screen()
    if screen.as_json:
        screen.data({"file": file, "replies": count})
    else:
        screen.line(f"{count} {'reply' if count == 1 else 'replies'} written to {file}.")


def _export_to_file(call: Invocation, file: Path) -> int:
    """The whole export under its name, or nothing."""
    made: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # with mode 0600
        made = Path(name)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            count = _with_store(call, lambda store: _export(store, stream))
            stream.flush()
            os.fsync(stream.fileno())
        made.replace(file)
    except OSError as error:
        msg = f"{file} cannot be written: {error.strerror or error}"
        raise DaemonError(msg) from error
    finally:
        if made is not None:
            with suppress(OSError):
                made.unlink()
    return count


async def _export(store: ResponseStore, stream: TextIO) -> int:
    count = 0
    lines: list[str] = []
    async with aclosing(store.entries()) as entries:
        async for entry in entries:
            lines.append(_line(entry))
            count += 1
            if len(lines) == _AT_ONCE:
                await _write(stream, lines)
                lines = []
    await _write(stream, lines)
    return count


async def _write(stream: TextIO, lines: Iterable[str]) -> None:
    import asyncio  # noqa: PLC0415 - a third of what `--help` would cost

    await asyncio.to_thread(stream.writelines, lines)


def _line(kept: StoredReply) -> str:
    entry = _entry(kept)
    created = entry["created"].isoformat()
    return json.dumps({**entry, "created": created}) + "\n"  # in ASCII: it may go to a terminal


def _entry(kept: StoredReply) -> dict[str, Any]:
    reply = _reply(kept.reply)
    return {
        "label": kept.label,
        "created": _time(kept.created),
        "model": reply.get("model", ""),
        "backend": reply.get("backend", ""),
        "reply": reply,
    }


def _reply(text: str) -> dict[str, Any]:
    """The kept reply, empty when a worn disk has changed it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _duration(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError as error:
        msg = f"--older-than: {error}"
        raise click.UsageError(msg) from error


async def _collected(entries: AsyncGenerator[StoredReply, None]) -> list[StoredReply]:
    async with aclosing(entries) as each:
        return [entry async for entry in each]


def _with_store(call: Invocation, work: Callable[[ResponseStore], Coroutine[Any, Any, T]]) -> T:
    """Do `work` with the kept replies of the configured cache.

    Raises:
        DaemonError: the file is there and cannot be used.
    """
    from llm import LLMConfig  # noqa: PLC0415 - beside what it is needed for

    settings = call.settings()
    config = LLMConfig.from_env(settings.llm_environ())

    async def opened() -> T:
        async with _store(config) as store:
            done = await work(store)
            if store.trouble:
                path = (await store.stats()).path
                msg = f"the response cache {path} does not work: {store.trouble}"
                raise DaemonError(msg)
            return done

    with call.logging(settings):
        return run(opened())


@asynccontextmanager
async def _store(config: Any) -> AsyncIterator[ResponseStore]:
    from llm import get_response_store  # noqa: PLC0415 - beside what it is needed for

    store = get_response_store(config)
    try:
        yield store
    finally:
        await store.aclose()
