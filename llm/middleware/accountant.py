"""Keeps the running totals of budgets: what is used, and what calls under way may still use.

Totals are read from the ledger once and then kept in memory; what other programs spend is looked up again at
a new window and at most once a minute. A call is let through only when its own most (its prompt, `max_tokens`
and the usual time of its backend) fits beside what is used and what the calls under way have reserved, so 64
calls at once cannot all slip through. One that would fit once those have ended waits for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from llm.budgets import Budget, window_around
from llm.errors import BudgetExceeded
from llm.stores.ledger import UsageLedger
from llm.stores.usage_tables import CallRecord, Question, Spent

LOOK_AGAIN_S = 60.0
"""Seconds after which it is looked up again what other programs spent."""

_PATIENCE = 2.0  # seconds that a call waits for the ledger; it goes on with what is known
_WARNED_AT = (1.0, 0.8)
_CENTS = 1_000_000  # millionths of a USD in one

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The most that one call may use.

    Attributes:
        tokens: in and out.
        micros: millionths of a USD, None when the price is unknown.
        seconds: how long such a call usually takes.
    """

    tokens: float
    micros: float | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetStatus:
    """How far a budget is used.

    Attributes:
        budget: the budget.
        used: what is spent since its window began, in its unit.
        reserved: what calls under way may still use.
        resets: when its window ends, seconds since 1970.
    """

    budget: Budget
    used: float
    reserved: float
    resets: float

    @property
    def left(self) -> float:
        """What may still be spent."""
        return max(0.0, float(self.budget.limit) - self.used)


class Account:
    """The running total of one budget.

    Args:
        budget: what it keeps.
        since: how many of the ledger's own records are read from the file; later ones are added here.
    """

    def __init__(self, budget: Budget, since: int = 0) -> None:
        self.budget = budget
        self.text = str(budget)
        self.limit = float(budget.limit)
        self.since = since
        self.start = self.end = 0.0
        self.read = 0.0  # from the ledger: other programs, and this one before `since`
        self.own = 0.0
        self.reserved = 0.0
        self.is_read = False
        self.warned = 0.0

    @property
    def used(self) -> float:
        """What is spent since the window began."""
        return self.read + self.own

    def roll(self, now: float, handed_in: int = 0) -> None:
        """Begin a new window when the old one is over, or when the clock was put back before it.

        Args:
            now: seconds since 1970.
            handed_in: how many records the ledger was handed so far; it is asked for these.
        """
        if not self.start <= now < self.end:
            self.start, self.end = window_around(now, self.budget.window)
            self.since = handed_in
            self.read = self.own = self.warned = 0.0
            self.is_read = False

    def share(self, spent: Spent) -> float:
        """What of `spent` this budget counts, in its unit."""
        match self.budget.unit:
            case "tokens":
                return float(spent.tokens)
            case "usd":
                return spent.cost / _CENTS
        return spent.seconds

    def part(self, need: Need) -> float:
        """What of `need` this budget has to bear; no more time than all of it, since that is only a guess."""
        match self.budget.unit:
            case "tokens":
                return need.tokens
            case "usd":
                return (need.micros or 0.0) / _CENTS
        return min(need.seconds, self.limit)

    def question(self) -> Question:
        """What to ask the ledger."""
        budget = self.budget
        return Question(
            since=int(self.start * 1000),
            agent=budget.name if budget.scope == "agent" else None,
            backend=budget.name if budget.scope == "backend" else None,
            own=self.since,
        )


class Hold:
    """What a call under way has reserved."""

    __slots__ = ("_accountant", "_parts", "is_over")

    def __init__(self, accountant: Accountant, parts: Sequence[tuple[Account, float]]) -> None:
        self._accountant, self._parts = accountant, parts
        self.is_over = False

    def release(self, *, charge_money: bool = False) -> None:
        """Give it back, once; what was used has been counted by then.

        Args:
            charge_money: count the reserved money as spent: nobody said what the call cost.
        """
        if self.is_over:
            return
        self.is_over = True
        for account, part in self._parts:
            account.reserved = max(0.0, account.reserved - part)
            if charge_money and account.budget.unit == "usd":
                account.own += part
        self._accountant.wake()

    def accounts(self) -> Iterator[Account]:
        """The accounts it holds something of."""
        return (account for account, _ in self._parts)


class Accountant:
    """The accounts of all budgets that share a ledger.

    Args:
        ledger: where spending is read from, None to remember only what is counted here.
        now: the clock, seconds since 1970.
    """

    def __init__(self, ledger: UsageLedger | None, now: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._now = now
        self._accounts: dict[Budget, Account] = {}
        self._looked = 0.0
        self._asked: tuple[Future[list[Spent]], list[tuple[Account, Question]]] | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._usual: dict[str, float] = {}  # seconds of a backend's calls, the recent ones weighing more

    def open(self, budgets: Iterable[Budget]) -> tuple[Account, ...]:
        """The accounts of these budgets."""
        return tuple(
            self._accounts.setdefault(budget, Account(budget, self._handed_in)) for budget in budgets
        )

    @property
    def _handed_in(self) -> int:
        return 0 if self._ledger is None else self._ledger.number

    def usual_seconds(self, backend: str, otherwise: float) -> float:
        """How long calls to this backend take; `otherwise` before the first one has ended."""
        return self._usual.get(backend, otherwise)

    def count(self, record: CallRecord) -> None:
        """Add a call that ended to the accounts that it is paid from."""
        usual = self._usual.get(record.backend, record.seconds)
        self._usual[record.backend] = usual + (record.seconds - usual) / 8
        if not self._accounts:
            return
        spent = Spent(
            tokens=record.tokens_in + record.tokens_out, seconds=record.seconds, cost=record.cost or 0
        )
        now = self._now()
        for account in self._accounts.values():
            if account.budget.covers(agent=record.agent, backend=record.backend):
                account.roll(now, self._handed_in)
                account.own += account.share(spent)

    async def admit(self, accounts: Sequence[Account], need: Need) -> Hold:
        """Reserve what a call may use, waiting for calls under way if it fits once they have ended.

        Raises:
            BudgetExceeded: it does not fit.
        """
        while True:
            await self._up_to_date(accounts)
            crowded = False
            for account in accounts:
                over = account.used + account.part(need) - account.limit
                if over > _a_hair(account.limit):
                    raise self._exceeded(account, need)
                crowded = crowded or over + account.reserved > _a_hair(account.limit)
            if not crowded:
                break
            await self._one_ends()
        parts = [(account, account.part(need)) for account in accounts]
        for account, part in parts:
            account.reserved += part
        return Hold(self, parts)

    def wake(self) -> None:
        """Let the calls that wait for room look again."""
        for waiter in tuple(self._waiters):
            with suppress(RuntimeError):  # its loop is closed
                waiter.get_loop().call_soon_threadsafe(_done, waiter)

    async def current(self, accounts: Sequence[Account]) -> tuple[BudgetStatus, ...]:
        """How far these budgets are used; looked up first where nothing is known of one yet."""
        await self._up_to_date(accounts)
        return tuple(_status(account) for account in accounts)

    def status(self) -> tuple[BudgetStatus, ...]:
        """How far each budget is used, as far as is known without looking it up."""
        now = self._now()
        for account in self._accounts.values():
            account.roll(now, self._handed_in)
        return tuple(_status(account) for account in self._accounts.values())

    def warn(self, account: Account) -> None:
        """Say it once in a window when a budget is used up, and before, when four fifths of it are."""
        share = account.used / account.limit
        if share < _WARNED_AT[-1]:
            return
        level = next((level for level in _WARNED_AT if share >= level), 0.0)
        if level > account.warned:
            account.warned = level
            text = "%.0f %% of the budget %s are used; it begins anew %s"
            _log.warning(text, share * 100, account.budget, _moment(account.end))

    async def _one_ends(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    async def _up_to_date(self, accounts: Sequence[Account]) -> None:
        """Look up what others spent when that is due; wait for it only when nothing is known yet."""
        now = self._now()
        for account in accounts:
            account.roll(now, self._handed_in)
        if self._ledger is None:
            return
        for _ in range(2):  # a question that is under way may have been asked before an account was opened
            self._take_answer()
            unread = not all(account.is_read for account in accounts)
            if self._asked is None and (unread or not 0 <= now - self._looked < LOOK_AGAIN_S):
                self._ask(self._ledger, now)
            if not unread or self._asked is None:
                return
            await asyncio.wait([asyncio.wrap_future(self._asked[0])], timeout=_PATIENCE)
        self._take_answer()
        for account in accounts:  # a ledger that does not answer in time is asked again in a minute
            account.is_read = True

    def _ask(self, ledger: UsageLedger, now: float) -> None:
        self._looked = now
        due = list(self._accounts.values())
        for account in due:
            account.roll(now, self._handed_in)
        asked = [(account, account.question()) for account in due]
        self._asked = ledger.spent([question for _, question in asked]), asked

    def _take_answer(self) -> None:
        """Note what the ledger said; nothing when it cannot be read, which it has told of itself."""
        if self._asked is None or not self._asked[0].done():
            return
        (answer, due), self._asked = self._asked, None
        for (account, question), spent in zip(due, answer.result(), strict=False):
            if account.question() == question:  # else another window has begun meanwhile
                account.read = account.share(spent)
                account.is_read = True

    def _exceeded(self, account: Account, need: Need) -> BudgetExceeded:
        budget, used, part = account.budget, account.used, account.part(need)
        amount = _shown(used, budget.unit)
        if used >= account.limit:
            what = f"is used up ({amount})"
        else:
            what = (
                f"has no room for this call: {amount} are used, and it may need {_shown(part, budget.unit)}"
            )
        smaller = "" if used >= account.limit or budget.unit == "seconds" else ", lower max_tokens"
        return BudgetExceeded(
            f"the budget {budget} {what}; it begins anew {_moment(account.end)}. "
            f"Wait until then{smaller}, or raise {budget.setting}",
            retry_after=max(0.0, account.end - self._now()),
            budget=str(budget),
            used=used,
        )


def _status(account: Account) -> BudgetStatus:
    return BudgetStatus(
        budget=account.budget, used=account.used, reserved=account.reserved, resets=account.end
    )


def _a_hair(limit: float) -> float:
    """Sums of fractions may be off by this much."""
    return limit * 1e-9


def _done(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _shown(amount: float, unit: str) -> str:
    match unit:
        case "tokens":
            return f"{amount:,.0f} tokens"
        case "usd":
            return f"{amount:.4f} usd"
    return f"{amount:,.1f} seconds"


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("on %Y-%m-%d at %H:%M")
