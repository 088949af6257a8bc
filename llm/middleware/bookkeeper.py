"""The bookkeeper: turns what happened to calls into records of the ledger, and keeps the budgets' totals.

Clients of one program that share a usage file share its bookkeeper, so that a budget in total is one total.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from weakref import WeakSet, WeakValueDictionary

from llm.budgets import Budget
from llm.energy import EnergyMeter
from llm.events import CacheHit, CallEvent, CallFailed, CallFinished, CallPriced, CallStarted, Observer
from llm.middleware.accountant import Accountant
from llm.middleware.base import Middleware, unheard
from llm.middleware.budget import BudgetGate
from llm.pricing import PriceList
from llm.stores.ledger import UsageLedger
from llm.stores.usage_tables import CallRecord

# Failures of calls that no model has worked on.
_FREE = frozenset(
    {
        *("configuration", "no_model", "template", "connection", "breaker_open", "authentication"),
        *("rate_limit", "budget", "bad_request", "model_not_found", "not_supported"),
    }
)

_shared: WeakValueDictionary[str, Bookkeeper] = WeakValueDictionary()
_sharing = threading.Lock()


class Bookkeeper:
    """Ledger, accounts and meter of one usage file.

    Args:
        usage_file: the ledger's file, None to keep totals in memory only.

    Attributes:
        ledger: the ledger, None without a file.
        accountant: keeps the budgets' totals.
    """

    def __init__(self, usage_file: str | None) -> None:
        self._key = usage_file
        self._users: WeakSet[_Closer] = WeakSet()  # one that was dropped without being closed counts no more
        self.ledger = None if usage_file is None else UsageLedger(usage_file)
        self.accountant = Accountant(self.ledger)
        self._meter: EnergyMeter | None = None

    @classmethod
    def of(cls, usage_file: str | None) -> Bookkeeper:
        """The one of this file, shared by all clients of the program that are open."""
        if usage_file is None:
            return cls(None)
        path = os.path.expanduser(usage_file)  # noqa: PTH111 - Path.expanduser raises where there is no home
        with _sharing:
            keeper = _shared.get(path)
            if keeper is None:
                keeper = _shared[path] = cls(path)
        return keeper

    def observer(self, prices: PriceList, *, here: bool, tell: Observer = unheard) -> Observer:
        """What a client tells its events to.

        Args:
            prices: what its models cost.
            here: whether its models work on this machine, whose energy is then measured if that is possible.
            tell: told what each call cost.
        """
        if not here or self.ledger is None:
            return _Observer(self, prices, tell, None)
        self._meter = self._meter or EnergyMeter()
        return _Observer(self, prices, tell, self._meter)

    def gate(self, budgets: Sequence[Budget], prices: PriceList, *, timeout: float) -> list[Middleware]:
        """What stands before a client's backend; without budgets nothing that a call passes through."""
        closer = _Closer(self)
        self._users.add(closer)
        if not budgets:
            return [closer]
        return [closer, BudgetGate(self.accountant, budgets, prices, timeout=timeout)]

    async def leave(self, user: _Closer) -> None:
        """A client is closed; with the last one, write down what waits and close the file."""
        with _sharing:
            if user not in self._users:
                return
            self._users.discard(user)
            if self._users:
                return
            if self._key is not None:
                _shared.pop(self._key, None)
        if self._meter is not None:
            self._meter.close()
        if self.ledger is not None:
            await self.ledger.aclose()


class _Closer(Middleware):
    """Closes the bookkeeper with its client; calls do not pass through it."""

    def __init__(self, keeper: Bookkeeper) -> None:
        self._keeper = keeper

    async def flush(self) -> None:
        if self._keeper.ledger is not None:
            await self._keeper.ledger.flush()

    async def aclose(self) -> None:
        await self._keeper.leave(self)


class _Observer:
    """Writes down the calls of one client."""

    def __init__(
        self, keeper: Bookkeeper, prices: PriceList, tell: Observer, meter: EnergyMeter | None
    ) -> None:
        self._accountant, self._ledger = keeper.accountant, keeper.ledger
        self._prices, self._tell, self._meter = prices, tell, meter

    def __call__(self, event: CallEvent) -> None:
        match event:
            case CallStarted():
                if self._meter is not None:
                    self._meter.begin(event.call_id)
            case CallFinished():
                rates = self._prices.at_hand(event.model)
                tokens = (event.prompt_tokens, event.completion_tokens, event.cached_tokens)
                cost = None if rates is None else rates.micros(*tokens)
                self._record(event, cost, *tokens, thinking=event.thinking_tokens)
                if cost is not None:
                    self._priced(event, cost)
            case CallFailed():
                known = event.code in _FREE or self._prices.is_free(event.model)
                self._record(event, 0 if known else None, error=event.code)
            case CacheHit():
                if self._ledger is not None:
                    caller = event.caller
                    self._ledger.add_hit((caller.agent, event.backend, event.model, caller.task))

    def _record(
        self,
        event: CallFinished | CallFailed,
        cost: int | None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cached: int = 0,
        *,
        thinking: int = 0,
        error: str = "",
    ) -> None:
        caller = event.caller
        record = CallRecord(
            at=int(time.time() * 1000),
            call_id=event.call_id,
            operation=event.operation,
            agent=caller.agent,
            run_id=caller.run_id,
            task=caller.task,
            backend=event.backend,
            model=event.model,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cached=cached,
            thinking=thinking,
            seconds=event.latency,
            first_token=event.first_token,
            cost=cost,
            joules=None if self._meter is None else self._meter.end(event.call_id),
            error=error,
            template=event.template,
        )
        self._accountant.count(record)
        if self._ledger is None:
            return
        if isinstance(event, CallFinished) and cost is None and not self._prices.is_settled(event.model):
            self._ledger.add(record, prices=self._prices, priced=self._from_thread(event))
        else:
            self._ledger.add(record)

    def _priced(self, event: CallFinished, micros: int) -> None:
        self._tell(
            CallPriced(
                backend=event.backend,
                model=event.model,
                caller=event.caller,
                call_id=event.call_id,
                cost=micros / 1_000_000,
            )
        )

    def _from_thread(self, event: CallFinished) -> Callable[[int], None]:
        """What another thread tells the cost of this call to; observers are told on their event loop."""
        loop = asyncio.get_running_loop()

        def priced(micros: int) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
                loop.call_soon_threadsafe(partial(self._priced, event, micros))

        return priced
