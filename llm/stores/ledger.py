"""The usage ledger: every call that reached a backend, in one SQLite file that all programs share.

Calls are handed to a thread of its own, which gathers them for some seconds and writes them in one
transaction: an SD card is written to a few times a minute at most, and no call waits for it. Whatever goes
wrong with the file costs records, never a call; how many were lost is said once and counted.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

from llm.pricing import PriceList
from llm.stores import usage_tables
from llm.stores.database import connection, is_damage, transaction
from llm.stores.files import PATIENCE, identity, locked, make_private, set_aside
from llm.stores.usage_tables import (
    Asker,
    CallRecord,
    Grouping,
    Question,
    Series,
    Slice,
    Spent,
    Usage,
)

T = TypeVar("T")

GATHER_S = 5.0
"""Seconds in which calls gather; a program that is killed loses no more than these."""

GATHER_HITS_S = 300.0
"""The same for cache hits, which cost nothing and are only counted."""

_WAITING = 10_000  # calls that may wait for the disk; above that they are lost
_PAUSE = 60.0  # seconds before a file that cannot be used is tried again
_REPLACED = 3  # damaged files that one ledger replaces before it gives up on the disk
_GOODBYE = 2.0  # seconds that a program which forgot to close its client waits for the disk at its end

_log = logging.getLogger(__name__)


class UsageLedger:
    """The ledger in one file. `add` and `add_hit` never wait and never raise.

    Args:
        path: the file; its folder is made with mode 0700 if it is not there.
        gather: seconds in which calls gather before they are written.

    Attributes:
        path: the file.
        lost: how many records could not be written so far.
    """

    def __init__(self, path: str | Path, *, gather: float = GATHER_S) -> None:
        self.path = Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises where there is no home
        self.lost = 0
        self._gather = gather
        self._writer_id = int.from_bytes(os.urandom(7))  # tells this program's records from others'
        self._number = 0
        self._waiting: deque[tuple[int, CallRecord, _Price | None]] = deque()
        self._hits: Counter[Asker] = Counter()
        self._counting = threading.Lock()  # held for one addition
        self._told_of_hits = False
        self._orders: SimpleQueue[_Order] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._not_before = 0.0
        self._replaced = 0
        self._rolled_up: date | None = None
        self._warned = self._closed = False

    # Called from anywhere.

    @property
    def number(self) -> int:
        """How many records were handed in so far."""
        return self._number

    def add(
        self,
        record: CallRecord,
        *,
        prices: PriceList | None = None,
        priced: Callable[[int], None] | None = None,
    ) -> None:
        """Hand a call to the writing thread.

        Args:
            record: the call.
            prices: where its cost is looked up, later and by the thread; None leaves it as it is.
            priced: told the cost that was found there, in millionths of a USD, by the thread.
        """
        self._number += 1
        if self._closed or len(self._waiting) >= _WAITING:
            self._lose(1, "it takes no more records")
            return
        price = None if prices is None else _Price(prices, priced)
        self._waiting.append((self._number, record, price))
        if len(self._waiting) == 1:  # else the thread has been told already
            self._order(_Order(within=self._gather))

    def add_hit(self, asker: Asker) -> None:
        """Count an answer of the response cache, for the day on which it is written."""
        with self._counting:
            self._hits[asker] += 1
        if not self._told_of_hits and not self._closed:
            self._told_of_hits = True
            self._order(_Order(within=max(self._gather, GATHER_HITS_S)))

    def spent(self, questions: Sequence[Question]) -> Future[list[Spent]]:
        """Sums for budgets, as soon as the thread has them; zeros when the file cannot be read."""
        return self._ask(lambda db: [usage_tables.sum_spent(db, self._writer_id, q) for q in questions], [])

    async def usage(self, by: Grouping, since: datetime) -> list[Usage]:
        """What was used since then, records under way included; see `usage_tables.sum_usage`."""
        nothing: list[Usage] = []
        return await asyncio.wrap_future(self._ask(lambda db: usage_tables.sum_usage(db, by, since), nothing))

    async def flush(self) -> None:
        """Write what waits."""
        await asyncio.wrap_future(self._ask(lambda _db: None, None))

    async def aclose(self) -> None:
        """Write what waits, close the file and end the thread."""
        if not self._closed:
            self._closed = True
            if self._thread is not None:
                last = _Order(last=True)
                self._orders.put(last)
                await asyncio.wrap_future(last.done)
                atexit.unregister(self._at_exit)

    def _ask(self, work: Callable[[sqlite3.Connection], T], otherwise: T) -> Future[T]:
        """Have `work` done by the thread, after everything that waits was written."""
        answer: Future[T] = Future()
        answer.set_running_or_notify_cancel()  # whoever waits may give up; the thread must not notice

        def answered(db: sqlite3.Connection | None) -> None:
            found = otherwise
            if db is not None:
                try:
                    found = work(db)
                except Exception as error:  # noqa: BLE001 - whoever waits gets an answer, and the thread lives
                    self._mend(error)
            answer.set_result(found)

        if self._closed:
            answer.set_result(otherwise)
        else:
            self._order(_Order(work=answered))
        return answer

    def _order(self, order: _Order) -> None:
        if self._thread is None:
            # No thread pool: one of those would hold up the end of a program that forgot to close us.
            self._thread = threading.Thread(target=self._serve, name="llm-ledger", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is ending and starts no more threads
                self._thread, self._closed = None, True
                if order.work is not None:
                    order.work(None)
                return
            atexit.register(self._at_exit)
        self._orders.put(order)

    def _at_exit(self) -> None:
        self._closed = True
        self._orders.put(_Order(last=True))
        if self._thread is not None:
            self._thread.join(_GOODBYE)

    # Called on the ledger's own thread.

    def _serve(self) -> None:
        while True:
            order = self._next_order()
            if order.within:
                order = self._wait(order)
            self._drain()
            if order.work is not None:
                order.work(self._connected())
            if order.last:
                self._lose(len(self._waiting))
                self._disconnect()
                order.done.set_result(None)
                return

    def _next_order(self) -> _Order:
        try:
            # What could not be written is tried again after a while, asked for or not.
            return self._orders.get(timeout=_PAUSE if self._waiting else None)
        except Empty:
            return _Order()

    def _wait(self, order: _Order) -> _Order:
        """Let records gather, until it is time or somebody wants something at once."""
        end = time.monotonic() + order.within
        while (left := end - time.monotonic()) > 0:
            try:
                following = self._orders.get(timeout=left)
            except Empty:
                break
            if not following.within:
                return following
            end = min(end, time.monotonic() + following.within)
        return order

    def _drain(self) -> None:
        """Write everything that waits, in one transaction; what cannot be written waits on."""
        while self._waiting or self._hits:
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            with self._counting:
                hits, self._hits = self._hits, Counter()
            self._told_of_hits = False
            rows = [
                (number, record if price is None else price.found(record), None)
                for number, record, price in batch
            ]
            try:
                written = self._write([(number, record) for number, record, _ in rows], hits)
            except Exception as error:  # noqa: BLE001 - a name that is no text costs records, not the thread
                self._lose(len(rows), error)
            else:
                if not written:
                    self._waiting.extendleft(reversed(rows))
                    with self._counting:
                        self._hits.update(hits)
                    return

    def _write(self, numbered: list[tuple[int, CallRecord]], hits: Counter[Asker]) -> bool:
        for _ in range(2):  # again, if the file was damaged and is now another
            db = self._connected()
            if db is None:
                return False
            try:
                with transaction(db):
                    today = datetime.now().astimezone()
                    if self._rolled_up != today.date():
                        usage_tables.roll_up(db, today)
                    usage_tables.insert_calls(db, self._writer_id, numbered)
                    usage_tables.add_hits(db, today.date(), hits.items())
            except (sqlite3.Error, OSError) as error:
                if not self._mend(error):
                    return False
            else:
                self._rolled_up = today.date()
                return True
        return False

    def _connected(self) -> sqlite3.Connection | None:
        """The open file; None when it cannot be used, which is tried again a minute later."""
        if self._db is not None and _identity(self.path) != self._identity:
            self._disconnect()  # another program put the file aside, or a person removed it
        if self._db is None and time.monotonic() >= self._not_before:
            try:
                self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with locked(self.path.parent):
                    self._open_file()
            except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: no file can have that name
                self._not_before = time.monotonic() + _PAUSE
                self._warn(error)
        return self._db

    def _open_file(self) -> None:
        make_private(self.path)
        try:
            self._db = _opened(self.path)
        except sqlite3.DatabaseError as error:
            if not is_damage(error) or _is_whole(self.path):
                raise
            self._put_aside()
            self._db = _opened(self.path)
        self._identity = identity(self.path)

    def _mend(self, error: Exception) -> bool:
        """Close the file after an error, and put it aside if it is damaged; whether to try again at once."""
        self._disconnect()
        if is_damage(error):
            with suppress(OSError, sqlite3.Error), locked(self.path.parent):
                # A failing disk can make a file look damaged that is not: it is looked through first.
                if not _is_whole(self.path):
                    self._put_aside()
                return True
        self._not_before = time.monotonic() + _PAUSE
        self._warn(error)
        return False

    def _put_aside(self) -> None:
        if self._replaced >= _REPLACED:
            msg = "it was damaged again and again, look at the disk"
            raise OSError(msg)
        self._replaced += 1
        moved = set_aside(self.path)
        _log.warning("the usage ledger was damaged; it is now %s, and a new one is begun", moved)

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()

    def _warn(self, error: object) -> None:
        if not self._warned:
            self._warned = True
            text = (
                "the usage ledger %s cannot be used (%s); calls go on, and up to %s of them are "
                "written down once it works again"
            )
            _log.warning(text, self.path, error, f"{_WAITING:,}")

    def _lose(self, count: int, error: object = "it could not be written to") -> None:
        self.lost += count
        if count:
            self._warn(error)


class _Order:
    """What the thread is told: to write within some seconds, to do some work, or to end."""

    __slots__ = ("done", "last", "within", "work")

    def __init__(
        self,
        *,
        within: float = 0.0,
        work: Callable[[sqlite3.Connection | None], None] | None = None,
        last: bool = False,
    ) -> None:
        self.within, self.work, self.last = within, work, last
        self.done: Future[None] = Future()
        self.done.set_running_or_notify_cancel()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        return identity(path)
    except OSError:  # its folder is no folder any more
        return None


def _opened(path: Path) -> sqlite3.Connection:
    db = connection(path, wait=PATIENCE)
    try:
        usage_tables.prepare(db)
    except BaseException:
        db.close()
        raise
    return db


def _is_whole(path: Path) -> bool:
    """Whether the file, opened anew and looked through, is in order after all."""
    try:
        db = connection(path, wait=PATIENCE)
        try:
            return bool(db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
        finally:
            db.close()
    except sqlite3.DatabaseError:
        return False


class _Price:
    """Where the cost of a call is looked up, and who is told of it."""

    __slots__ = ("_prices", "_told")

    def __init__(self, prices: PriceList, told: Callable[[int], None] | None) -> None:
        self._prices, self._told = prices, told

    def found(self, record: CallRecord) -> CallRecord:
        """The record with its cost; as it is if nobody knows that."""
        rates = self._prices.look_up(record.model)
        if rates is None:
            return record
        cost = rates.micros(record.tokens_in, record.tokens_out, record.cached)
        if self._told is not None:
            self._told(cost)
        return replace(record, cost=cost)


def read_usage(path: Path, by: Grouping, since: datetime) -> list[Usage]:
    """What a ledger holds since then, for a report; nothing when there is no ledger yet.

    Raises:
        OSError: the file cannot be read, or is no ledger.
    """
    return _read(path, lambda db: usage_tables.sum_usage(db, by, since), [])


def read_spent(path: Path, questions: Sequence[Question]) -> list[Spent]:
    """What all programs together spent, for each question; zeros when there is no ledger yet.

    Raises:
        OSError: the file cannot be read, or is no ledger.
    """
    nobody = -1  # so that nobody's records are left out
    return _read(
        path,
        lambda db: [usage_tables.sum_spent(db, nobody, q) for q in questions],
        [Spent() for _ in questions],
    )


def read_series(path: Path, edges: Sequence[datetime]) -> Series:
    """What was used between each of these moments and the next; see `usage_tables.sum_series`.

    Raises:
        OSError: the file cannot be read, or is no ledger.
    """
    nothing = Series(slices=tuple(Slice() for _ in edges[1:]), models={}, whole=Slice())
    return _read(path, lambda db: usage_tables.sum_series(db, edges), nothing)


def _read(path: Path, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
    if not path.is_file() or path.stat().st_size == 0:
        return otherwise
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=PATIENCE)
        try:
            usage_tables.prepare(db)
            return work(db)
        finally:
            db.close()
    except sqlite3.Error as error:
        msg = f"the usage ledger {path} cannot be read: {error}"
        raise OSError(msg) from error
