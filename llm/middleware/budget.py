"""The budget gate: no call goes to a backend that its budgets do not pay for.

It stands behind the cache, so what the cache answers costs nothing, and before breaker and retries, whose
attempts are each counted by the observer that writes the ledger. A routed client has one gate for each
target: a free model that falls back to a paid one is checked again before the paid one is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager

from llm.budgets import Budget
from llm.errors import BudgetExceeded, ConfigurationError, LLMError
from llm.events import BudgetRefused, BudgetUsed
from llm.middleware.accountant import Account, Accountant, BudgetStatus, Hold, Need
from llm.middleware.base import EmbedHandler, Handler, Middleware, StreamHandler
from llm.pricing import EXTRA, PriceList
from llm.types import Caller, Chunk, Embeddings, EmbedRequest, LLMRequest, LLMResponse

# Failures after which a vendor may well want money, but nobody said how much.
_MAY_HAVE_COST = frozenset({"timeout", "cancelled", "server", "bad_reply", "schema"})
_BYTES_PER_TOKEN = 3  # English has four, Spanish three and a half, Chinese three
_TOKENS_PER_TURN = 8  # the marks round each turn


class BudgetGate(Middleware):
    """Refuses calls whose budgets are used up.

    Args:
        accountant: keeps the totals.
        budgets: those that may pay for calls to this backend, of whichever agent.
        prices: what its models cost.
        timeout: seconds that a call may take, its most before the first one has ended.
    """

    def __init__(
        self, accountant: Accountant, budgets: Sequence[Budget], prices: PriceList, *, timeout: float
    ) -> None:
        self._accountant = accountant
        self._accounts = accountant.open(budgets)
        self._prices = prices
        self._timeout = timeout

    async def complete(self, request: LLMRequest, call_next: Handler) -> LLMResponse:
        """Ask on, if the budgets pay for it.

        Raises:
            BudgetExceeded: they do not.
            ConfigurationError: a budget counts money and the price of the model is unknown.
        """
        hold = await self._admitted(request, _prompt_tokens(request), request.max_tokens)
        with self._held(hold, request):
            return await call_next(request)

    async def stream(self, request: LLMRequest, call_next: StreamHandler) -> AsyncGenerator[Chunk, None]:
        """The same in pieces; checked when the first one is asked for.

        Raises:
            BudgetExceeded: the budgets do not pay for it.
            ConfigurationError: a budget counts money and the price of the model is unknown.
        """
        hold = await self._admitted(request, _prompt_tokens(request), request.max_tokens)
        with self._held(hold, request):
            async with aclosing(call_next(request)) as source:
                async for chunk in source:
                    yield chunk

    async def embed(self, request: EmbedRequest, call_next: EmbedHandler) -> Embeddings:
        """The same for texts that become vectors.

        Raises:
            BudgetExceeded: the budgets do not pay for it.
            ConfigurationError: a budget counts money and the price of the model is unknown.
        """
        hold = await self._admitted(request, sum(map(_tokens, request.texts)), 0)
        with self._held(hold, request):
            return await call_next(request)

    async def budgets(self) -> tuple[BudgetStatus, ...]:
        """How far its budgets are used."""
        return await self._accountant.current(self._accounts)

    async def _admitted(self, request: LLMRequest | EmbedRequest, tokens_in: int, tokens_out: int) -> Hold:
        accounts = self._paying(request.caller)
        micros: float | None = 0.0
        if any(account.budget.unit == "usd" for account in accounts):
            micros = await self._price(request.model, tokens_in, tokens_out)
        need = Need(
            tokens=tokens_in + tokens_out,
            micros=micros,
            seconds=self._accountant.usual_seconds(self.backend, self._timeout),
        )
        try:
            if micros is None:
                raise self._unpriced(request.model, accounts)
            return await self._accountant.admit(accounts, need)
        except BudgetExceeded as error:
            budget, caller = error.budget, request.caller
            self.emit(BudgetRefused(backend=self.backend, model=request.model, caller=caller, budget=budget))
            raise

    def _paying(self, caller: Caller) -> tuple[Account, ...]:
        return tuple(
            each for each in self._accounts if each.budget.covers(agent=caller.agent, backend=self.backend)
        )

    async def _price(self, model: str, tokens_in: int, tokens_out: int) -> float | None:
        if not self._prices.is_settled(model):
            await asyncio.to_thread(self._prices.look_up, model)
        rates = self._prices.at_hand(model)
        return None if rates is None else rates.micros(tokens_in, tokens_out)

    def _unpriced(self, model: str, accounts: Sequence[Account]) -> ConfigurationError:
        budget = next(account.budget for account in accounts if account.budget.unit == "usd")
        return ConfigurationError(
            f"the price of {model} ({self.backend}) is unknown, so the budget {budget} cannot be kept; set "
            f'it in LLM_PRICES or [llm.prices], such as "{model}" = {{ input = 2.5, output = 10 }} in USD '
            f"per million tokens, or install the vendors' list prices: {EXTRA}"
        )

    @contextmanager
    def _held(self, hold: Hold, request: LLMRequest | EmbedRequest) -> Iterator[None]:
        unknown = False
        try:
            yield
        except BaseException as error:
            # A cancelled call and a stream that nobody reads on are paid for as well.
            unknown = not isinstance(error, LLMError) or error.code in _MAY_HAVE_COST
            raise
        finally:
            hold.release(charge_money=unknown)
            for account in hold.accounts():
                self._accountant.warn(account)
                self.emit(
                    BudgetUsed(
                        backend=self.backend,
                        model=request.model,
                        caller=request.caller,
                        budget=account.text,
                        used=account.used,
                        limit=account.limit,
                    )
                )


def _prompt_tokens(request: LLMRequest) -> int:
    """About how many tokens the prompt has, rather too many."""
    turns = request.messages
    said = sum(_tokens(turn.content) + _TOKENS_PER_TURN for turn in turns)
    return said + sum(_tokens(f"{tool.name}{tool.description}{tool.parameters}") for tool in request.tools)


def _tokens(text: str) -> int:
    # A surrogate that stands alone is refused elsewhere, and must not fail here.
    return len(text.encode(errors="replace")) // _BYTES_PER_TOKEN + 1
