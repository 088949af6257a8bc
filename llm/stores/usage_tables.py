"""The tables of the usage ledger: calls for two months, days of calls for more than a year.

A call's key is its time, so rows are added at the end of the table and no index is kept beside it: a batch of
them changes one or two pages of an SD card. Cache hits cost nothing and are only counted, by day.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from itertools import pairwise
from operator import attrgetter
from typing import Any, Literal

from llm.stores.database import transaction

FORMAT = 1
"""Written into the file as `user_version`; a file of another format is left alone."""

CALL_DAYS = 60
"""Days for which each call is kept; after that only the sums of its day."""

SUM_DAYS = 400
"""Days for which the sums of a day are kept."""

Asker = tuple[str, str, str, str]
"""Agent, backend, model and task of a question that the response cache answered."""

Grouping = Literal["agent", "model", "backend", "day", "task"]
GROUPINGS: tuple[Grouping, ...] = ("agent", "model", "backend", "day", "task")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One call that reached a backend; each attempt of a call that was retried is one.

    Attributes:
        at: when it ended, milliseconds since 1970.
        call_id: names it in logs and in the record of its run.
        operation: "chat" or "embed".
        agent: who asked, empty outside an agent.
        run_id: the agent's run.
        task: what it was for.
        backend: the backend's name.
        model: the model that was asked for.
        tokens_in: tokens of the prompt, 0 when it failed.
        tokens_out: tokens generated, thinking included.
        cached: tokens in that the engine or service had in a cache of its own.
        thinking: tokens out that were thinking.
        seconds: from the request to the end.
        first_token: seconds to the first chunk of a stream, None without one.
        cost: millionths of a USD, None when unknown.
        joules: what the machine used meanwhile, None when it cannot be measured.
        error: `LLMError.code` of a call that failed, empty for one that did not.
        template: name and version of the prompt template.
    """

    at: int
    call_id: str = ""
    operation: str = "chat"
    agent: str = ""
    run_id: str = ""
    task: str = ""
    backend: str
    model: str
    tokens_in: int = 0
    tokens_out: int = 0
    cached: int = 0
    thinking: int = 0
    seconds: float
    first_token: float | None = None
    cost: int | None = None
    joules: float | None = None
    error: str = ""
    template: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one agent, model, backend, day or task used.

    Attributes:
        name: whose sum it is; empty for calls that name none.
        calls: calls that reached a backend, each attempt counted.
        failed: how many of them failed.
        hits: questions that the response cache answered, for nothing.
        tokens_in: tokens of prompts.
        tokens_out: tokens generated.
        cached: tokens in that the engine or service had in a cache of its own.
        thinking: tokens out that were thinking.
        seconds: of models' work.
        cost: millionths of a USD, of the calls whose price is known.
        unpriced: calls whose price is not known.
        joules: None when none of the calls was measured.
    """

    name: str
    calls: int
    failed: int
    hits: int
    tokens_in: int
    tokens_out: int
    cached: int
    thinking: int
    seconds: float
    cost: int
    unpriced: int
    joules: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What the calls of a stretch of time, or of one model in it, used.

    Attributes:
        calls: calls that reached a backend, each attempt counted.
        failed: how many of them failed.
        tokens_in: tokens of prompts.
        tokens_out: tokens generated.
        cost: millionths of a USD, of the calls whose price is known.
        unpriced: calls whose price is not known.
        median: seconds within which half of the answers came, None without an answer; vectors left out.
        slow: seconds within which 19 of 20 answers came, in the same way.
    """

    calls: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost: int = 0
    unpriced: int = 0
    median: float | None = None
    slow: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """What calls used over time.

    Attributes:
        slices: one for each stretch of time.
        models: all of these together, by backend and model, the one with the most tokens first.
        whole: all of it together.
    """

    slices: tuple[Slice, ...]
    models: dict[tuple[str, str], Slice]
    whole: Slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which calls to sum for a budget.

    Attributes:
        since: milliseconds since 1970, the first that count.
        agent: only this agent's, None for all.
        backend: only those of this backend, None for all.
        own: how many of this ledger's own records count; later ones are counted by who asks.
    """

    since: int
    agent: str | None = None
    backend: str | None = None
    own: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """The answer: tokens in and out, seconds, and millionths of a USD."""

    tokens: int = 0
    seconds: float = 0.0
    cost: int = 0


_COLUMNS = tuple(field.name for field in fields(CallRecord))
_values = attrgetter(*_COLUMNS)
_KEY = ("day", "agent", "backend", "model", "task")
_SUMS = (
    ("calls", "count(*)"),
    ("failed", "sum(error != '')"),
    ("hits", "0"),
    ("tokens_in", "sum(tokens_in)"),
    ("tokens_out", "sum(tokens_out)"),
    ("cached", "sum(cached)"),
    ("thinking", "sum(thinking)"),
    ("seconds", "sum(seconds)"),
    ("cost", "coalesce(sum(cost), 0)"),
    ("unpriced", "sum(cost IS NULL)"),
    ("joules", "sum(joules)"),
)
_NAMES = tuple(name for name, _ in _SUMS)
_SLICE_TERMS = ("calls", "failed", "tokens_in", "tokens_out", "cost", "unpriced")
_SUMMED = (
    "SELECT name, count(*), sum(error != ''), sum(tokens_in), sum(tokens_out), coalesce(sum(cost), 0), "
    "sum(cost IS NULL) FROM read GROUP BY name ORDER BY sum(tokens_in) + sum(tokens_out) DESC, name"
)
_RANKED = (
    "SELECT name, min(CASE WHEN place * 2 >= answers THEN seconds END), "
    "min(CASE WHEN place * 20 >= answers * 19 THEN seconds END) FROM ("
    "SELECT name, seconds, row_number() OVER (PARTITION BY name ORDER BY seconds) AS place, "
    "count(*) OVER (PARTITION BY name) AS answers FROM read WHERE error = '' AND operation = 'chat'"
    ") GROUP BY name"
)
_LOCAL_DAY = "date(at / 1000, 'unixepoch', 'localtime')"

_CALLS = """
CREATE TABLE calls (
    at INTEGER NOT NULL, writer INTEGER NOT NULL, number INTEGER NOT NULL,
    call_id TEXT NOT NULL, operation TEXT NOT NULL,
    agent TEXT NOT NULL, run_id TEXT NOT NULL, task TEXT NOT NULL,
    backend TEXT NOT NULL, model TEXT NOT NULL,
    tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
    cached INTEGER NOT NULL, thinking INTEGER NOT NULL,
    seconds REAL NOT NULL, first_token REAL, cost INTEGER, joules REAL,
    error TEXT NOT NULL, template TEXT NOT NULL,
    PRIMARY KEY (at, writer, number)
) WITHOUT ROWID
"""
_DAYS = """
CREATE TABLE days (
    day TEXT NOT NULL, agent TEXT NOT NULL, backend TEXT NOT NULL, model TEXT NOT NULL, task TEXT NOT NULL,
    calls INTEGER NOT NULL, failed INTEGER NOT NULL, hits INTEGER NOT NULL,
    tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
    cached INTEGER NOT NULL, thinking INTEGER NOT NULL,
    seconds REAL NOT NULL, cost INTEGER NOT NULL, unpriced INTEGER NOT NULL, joules REAL,
    PRIMARY KEY (day, agent, backend, model, task)
) WITHOUT ROWID
"""


def prepare(db: sqlite3.Connection) -> None:
    """Set the file's ways and make the tables of a new one.

    NORMAL instead of FULL: a power cut may take the calls of the last half minute, which saves a flush of the
    disk for every batch.

    Raises:
        sqlite3.NotSupportedError: the file is of another format.
        sqlite3.Error: it cannot be used.
    """
    if db.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA journal_size_limit = 1048576")
    if not _is_new(db):
        return
    with transaction(db):
        if _is_new(db):  # another program may have been quicker
            db.execute(_CALLS)
            db.execute(_DAYS)
            db.execute(f"PRAGMA user_version = {FORMAT}")


def _is_new(db: sqlite3.Connection) -> bool:
    (found,) = db.execute("PRAGMA user_version").fetchone()
    if found not in {0, FORMAT}:
        msg = f"its format is {found}, not {FORMAT}; move it away or set another LLM_USAGE_FILE"
        raise sqlite3.NotSupportedError(msg)
    return bool(found == 0)


def insert_calls(db: sqlite3.Connection, writer: int, numbered: Iterable[tuple[int, CallRecord]]) -> None:
    """Add calls; one that is there already stays as it is."""
    names = ", ".join(("writer", "number", *_COLUMNS))
    marks = ", ".join("?" * (len(_COLUMNS) + 2))
    rows = [(writer, number, *_values(record)) for number, record in numbered]
    db.executemany(f"INSERT OR IGNORE INTO calls ({names}) VALUES ({marks})", rows)  # noqa: S608 - our own names


def add_hits(db: sqlite3.Connection, day: date, counted: Iterable[tuple[Asker, int]]) -> None:
    """Add cache hits to the sums of a day."""
    on = day.isoformat()
    rows = [
        (on, *asker, *({"hits": count, "joules": None}.get(n, 0) for n in _NAMES)) for asker, count in counted
    ]
    names = ", ".join((*_KEY, *_NAMES))
    marks = ", ".join("?" * (len(_KEY) + len(_NAMES)))
    db.executemany(
        f"INSERT INTO days ({names}) VALUES ({marks}) "  # noqa: S608 - our own names
        "ON CONFLICT DO UPDATE SET hits = hits + excluded.hits",
        rows,
    )


def roll_up(db: sqlite3.Connection, now: datetime) -> None:
    """Turn old calls into the sums of their days, and forget the oldest days.

    Args:
        db: within a transaction.
        now: the local time; whole days of the local calendar are rolled up.
    """
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    until = int((midnight - timedelta(days=CALL_DAYS)).timestamp() * 1000)
    if db.execute("SELECT 1 FROM calls WHERE at < ? LIMIT 1", (until,)).fetchone():
        names = ", ".join((*_KEY, *_NAMES))
        sums = ", ".join(term for _, term in _SUMS)
        added = ", ".join(f"{name} = {name} + excluded.{name}" for name in _NAMES if name != "joules")
        db.execute(
            f"INSERT INTO days ({names}) "  # noqa: S608 - our own names
            f"SELECT {_LOCAL_DAY} AS local_day, agent, backend, model, task, {sums} "
            "FROM calls WHERE at < ? GROUP BY 1, 2, 3, 4, 5 "
            f"ON CONFLICT DO UPDATE SET {added}, joules = CASE WHEN joules IS NULL THEN excluded.joules "
            "ELSE joules + coalesce(excluded.joules, 0) END",
            (until,),
        )
        db.execute("DELETE FROM calls WHERE at < ?", (until,))
    oldest = (midnight - timedelta(days=SUM_DAYS)).date().isoformat()
    db.execute("DELETE FROM days WHERE day < ?", (oldest,))


def sum_spent(db: sqlite3.Connection, writer: int, question: Question) -> Spent:
    """What was spent, for a budget."""
    row = db.execute(
        "SELECT total(tokens_in + tokens_out), total(seconds), total(cost) FROM calls "
        "WHERE at >= :since AND (:agent IS NULL OR agent = :agent) "
        "AND (:backend IS NULL OR backend = :backend) AND (writer != :writer OR number <= :own)",
        {
            "since": question.since,
            "agent": question.agent,
            "backend": question.backend,
            "writer": writer,
            "own": question.own,
        },
    ).fetchone()
    return Spent(tokens=int(row[0]), seconds=row[1], cost=int(row[2]))


def sum_usage(db: sqlite3.Connection, by: Grouping, since: datetime) -> list[Usage]:
    """What was used since then, days in order, others by their tokens, the most first.

    Args:
        db: the ledger.
        by: what to sum for.
        since: local or aware time; of days that are kept as sums only, whole days count.
    """
    sums = ", ".join(f"{term} AS {name}" for name, term in _SUMS)
    totals = ", ".join(f"sum({name})" for name in _NAMES)
    order = "1" if by == "day" else "sum(tokens_in) + sum(tokens_out) DESC, 1"
    rows: Sequence[tuple[object, ...]] = db.execute(
        f"SELECT {by}, {totals} FROM ("  # noqa: S608 - one of GROUPINGS
        f"SELECT {_LOCAL_DAY} AS day, agent, backend, model, task, {sums} "
        "FROM calls WHERE at >= ? GROUP BY 1, 2, 3, 4, 5 "
        f"UNION ALL SELECT {', '.join((*_KEY, *_NAMES))} FROM days WHERE day >= ?"
        f") GROUP BY 1 ORDER BY {order}",
        (int(since.timestamp() * 1000), since.astimezone().date().isoformat()),
    ).fetchall()
    return [Usage(**dict(zip(("name", *_NAMES), row, strict=True))) for row in rows]  # type: ignore[arg-type]  # SQLite's types


def sum_series(db: sqlite3.Connection, edges: Sequence[datetime]) -> Series:
    """What was used between each moment and the next, of the days for which each call is kept.

    Args:
        db: the ledger.
        edges: aware moments in order, such as local midnights; one more than there are slices.
    """
    stretches = list(pairwise(edges))
    bounds = [
        value
        for number, (since, until) in enumerate(stretches)
        for value in (number, int(since.timestamp() * 1000), int(until.timestamp() * 1000))
    ]
    rows = ", ".join("(?, ?, ?)" for _ in stretches)
    by_stretch = _slices(db, rows, bounds, "stretch")
    models = _slices(db, rows, bounds, "backend || char(0) || model")
    return Series(
        slices=tuple(by_stretch.get(number, Slice()) for number in range(len(stretches))),
        models={_pair(name): used for name, used in models.items()},
        whole=_slices(db, rows, bounds, "0").get(0, Slice()),
    )


def _pair(name: str) -> tuple[str, str]:
    backend, _, model = name.partition("\0")
    return backend, model


def _slices(db: sqlite3.Connection, rows: str, bounds: Sequence[object], key: str) -> dict[Any, Slice]:
    """The sums of all stretches by `key`. SQLite sorts for the percentiles, beside Python's other threads."""
    read = (
        f"WITH stretches (stretch, since, until) AS (VALUES {rows}), "  # noqa: S608 - our own names
        f"read AS (SELECT {key} AS name, tokens_in, tokens_out, seconds, cost, error, operation "
        "FROM stretches CROSS JOIN calls ON at >= since AND at < until) "
    )
    ranked = read + _RANKED
    times = {name: found for name, *found in db.execute(ranked, bounds)}
    return {
        name: Slice(
            **dict(zip(_SLICE_TERMS, used, strict=True)),
            **dict(zip(("median", "slow"), times.get(name, (None, None)), strict=True)),
        )
        for name, *used in db.execute(read + _SUMMED, bounds)
    }
