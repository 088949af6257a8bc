"""Budgets at work: what is refused, what waits, what is counted, and that nothing slips past them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from llm import (
    BudgetExceeded,
    ConfigurationError,
    LLMConfig,
    LLMResponse,
    ServerError,
    calling,
    get_llm_client,
)
from llm.budgets import parse_budgets
from llm.events import BudgetRefused, BudgetUsed, CallStarted
from llm.middleware.accountant import LOOK_AGAIN_S, Accountant, Need
from llm.middleware.bookkeeper import Bookkeeper
from llm.middleware.budget import BudgetGate
from llm.pricing import PriceList, parse_prices
from llm.stores.ledger import UsageLedger
from llm.stores.usage_tables import CallRecord
from llm.testing import Recorder, ScriptedBackend
from tests.support.waiting import seen


class Bank:
    """Makes clients that share one ledger, and closes them."""

    def __init__(self, file: Path, stack: AsyncExitStack) -> None:
        self.file = str(file)
        self.stack = stack
        self.recorder = Recorder()

    def client(
        self, *replies: Any, budget: str, prices: str = "", free: bool = True, **values: Any
    ) -> ScriptedBackend:
        config = LLMConfig(backend="scripted", model="small", enable_cache=False, max_tokens=20)
        keeper = Bookkeeper.of(self.file)
        listed = PriceList(free=free, url="https://gateway.example/v1", named=parse_prices(prices))
        made = ScriptedBackend(
            *replies,
            config=config.with_values(**values),
            middleware=keeper.gate(parse_budgets(budget), listed, timeout=30),
            observers=[keeper.observer(listed, here=False), self.recorder],
        )
        self.stack.push_async_callback(made.aclose)
        return made


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Bank]:
    async with AsyncExitStack() as stack:
        yield Bank(tmp_path / "usage.sqlite3", stack)


def answer(tokens_in: int = 10, tokens_out: int = 10) -> LLMResponse:
    return LLMResponse(
        content="yes",
        model="small",
        backend="scripted",
        prompt_tokens=tokens_in,
        completion_tokens=tokens_out,
    )


def always(**tokens: int) -> Any:
    return lambda _: answer(**tokens)


async def test_a_call_beyond_the_budget_is_refused_and_says_when_it_is_free_again(bank: Bank) -> None:
    client = bank.client(always(tokens_out=90), budget="100 tokens/day")
    await client.generate("Hello")
    with pytest.raises(BudgetExceeded) as caught:
        await client.generate("Hello")
    error = caught.value
    assert (error.budget, error.used) == ("100 tokens/day", 100.0)
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 25 * 3600
    assert "100 tokens/day is used up (100 tokens)" in str(error)
    assert "LLM_BUDGET" in str(error)
    assert len(client.requests) == 1
    (refused,) = bank.recorder.of(BudgetRefused)
    assert refused.budget == "100 tokens/day"  # type: ignore[attr-defined]
    assert len(bank.recorder.of(CallStarted)) == 1


async def test_a_call_that_could_cross_it_by_its_own_max_tokens_is_refused(bank: Bank) -> None:
    client = bank.client(always(), budget="100 tokens/day")
    with pytest.raises(BudgetExceeded, match="lower max_tokens"):
        await client.generate("Hello", max_tokens=100)
    assert (await client.generate("Hello", max_tokens=50)).content == "yes"


async def test_64_calls_at_once_cannot_all_slip_through(bank: Bank) -> None:
    client = bank.client(always(tokens_in=10, tokens_out=20), budget="300 tokens/hour")
    results = await asyncio.gather(
        *(client.generate(f"Hello {n}") for n in range(64)), return_exceptions=True
    )
    spent = 30 * sum(isinstance(each, LLMResponse) for each in results)
    assert 200 <= spent <= 300
    assert {type(each) for each in results} == {LLMResponse, BudgetExceeded}


async def test_a_call_that_fits_once_others_have_ended_waits_for_them(bank: Bank) -> None:
    go_on = asyncio.Event()

    async def slowly(_: object) -> LLMResponse:
        await go_on.wait()
        return answer(tokens_in=1, tokens_out=1)

    client = bank.client(slowly, budget="50 tokens/hour")
    calls = [asyncio.create_task(client.generate("Hello")) for _ in range(4)]
    await seen(lambda: len(client.requests) == 1)
    await asyncio.sleep(0)
    assert len(client.requests) == 1
    go_on.set()
    assert [each.content for each in await asyncio.gather(*calls)] == ["yes"] * 4


async def test_a_call_that_waits_can_be_given_up(bank: Bank) -> None:
    never = asyncio.Event()

    async def slowly(_: object) -> LLMResponse:
        await never.wait()
        return answer()

    client = bank.client(slowly, budget="50 tokens/hour")
    first = asyncio.create_task(client.generate("Hello"))
    await seen(lambda: len(client.requests) == 1)
    with pytest.raises(Exception, match="no whole answer"):
        await client.generate("Hello", timeout=0.05)
    never.set()
    await first
    assert (await client.generate("Hello")).content == "yes"


async def test_each_agent_has_its_own_budget_beside_that_of_all(bank: Bank) -> None:
    client = bank.client(always(), budget="1000 tokens/day, agent a: 45 tokens/day")
    with calling(agent="a"):
        await client.generate("Hello")
        with pytest.raises(BudgetExceeded, match=r"llm\.budgets\.agents\.a"):
            await client.generate("Hello")
    with calling(agent="b"):
        assert (await client.generate("Hello")).content == "yes"


async def test_targets_of_a_route_are_checked_each_for_itself_and_in_total(bank: Bank) -> None:
    home = bank.client(always(), budget="85 tokens/day, backend scripted: 2000 tokens/day")
    paid = bank.client(always(), budget="85 tokens/day", free=False, prices="small=1/1")
    await home.generate("Hello")
    await paid.generate("Hello")
    await home.generate("Hello")
    with pytest.raises(BudgetExceeded):  # the third one's tokens count here too
        await paid.generate("Hello")
    assert len(paid.requests) == 1


async def test_money_is_counted_by_price_and_an_unknown_price_is_refused(bank: Bank) -> None:
    budget = "0.001 usd/day"
    paid = bank.client(always(tokens_in=200, tokens_out=20), budget=budget, free=False, prices="small=2/10")
    assert (await paid.generate("Hello")).content == "yes"  # 600 of 1000 millionths
    (used,) = bank.recorder.of(BudgetUsed)
    assert used.used == pytest.approx(0.0006)  # type: ignore[attr-defined]
    with pytest.raises(BudgetExceeded):
        await paid.generate("Hello " * 500)
    unknown = bank.client(always(), budget=budget, free=False)
    with pytest.raises(ConfigurationError, match=r"price of small .* unknown.*\[llm\.prices\]"):
        await unknown.generate("Hello")
    assert unknown.requests == []
    at_home = bank.client(always(), budget=budget)
    assert (await at_home.generate("Hello")).content == "yes"


async def test_a_paid_call_that_broke_off_is_counted_as_the_most_it_can_have_cost(bank: Bank) -> None:
    client = bank.client(
        ServerError("it broke"),
        answer(),
        budget="0.0009 usd/day",
        free=False,
        prices="small=10/30",
    )
    with pytest.raises(ServerError):
        await client.generate("Hello")
    with pytest.raises(BudgetExceeded):
        await client.generate("Hello")


async def test_seconds_of_failed_calls_count_and_every_attempt_does(bank: Bank) -> None:
    client = bank.client(
        *[ServerError("it broke")] * 3, budget="5 tokens/day, 1000 seconds/day", max_tokens=1
    )
    with pytest.raises(BudgetExceeded):
        await client.generate("Hello " * 100)
    client = bank.client(*[ServerError("it broke")] * 3, budget="1000 seconds/day")
    for _ in range(3):
        with pytest.raises(ServerError):
            await client.generate("Hello")
    used = [event.used for event in bank.recorder.of(BudgetUsed)]  # type: ignore[attr-defined]
    assert used == sorted(used)
    assert used[0] > 0
    assert len(used) == 3


async def test_streams_are_checked_held_and_counted(bank: Bank) -> None:
    client = bank.client(always(tokens_out=50), budget="100 tokens/day")
    assert (await client.stream("Hello").collect()).content == "yes"
    with pytest.raises(BudgetExceeded):
        await client.stream("Hello", max_tokens=60).collect()
    async with client.stream("Hello") as stream:
        async for _ in stream:
            break  # dropped before its end: what it had reserved is free again
    keeper = Bookkeeper.of(bank.file)
    assert [status.reserved for status in keeper.accountant.status()] == [0.0]


async def test_embeddings_are_checked_and_counted(tmp_path: Path) -> None:
    config = LLMConfig(
        backend="mock", enable_cache=False, usage_file=str(tmp_path / "u"), budget="40 tokens/day"
    )
    async with get_llm_client(config) as client:
        await client.embed(["leek"])
        with pytest.raises(BudgetExceeded):
            await client.embed(["a text about leeks " * 20])


async def test_what_the_cache_answers_costs_no_budget(tmp_path: Path) -> None:
    config = LLMConfig(
        backend="mock",
        cache_dir=str(tmp_path / "cache"),
        usage_file=str(tmp_path / "u"),
        budget="60 tokens/day",
        max_tokens=30,
    )
    async with get_llm_client(config) as client:
        await client.generate("Hello")
        with pytest.raises(BudgetExceeded):
            await client.generate("Hello again")
        assert (await client.generate("Hello")).cached


async def test_a_budget_holds_over_a_restart_and_without_a_ledger_for_one_client(tmp_path: Path) -> None:
    values: dict[str, Any] = {"backend": "mock", "enable_cache": False, "budget": "60 tokens/day"}
    kept = LLMConfig(**values, max_tokens=30, usage_file=str(tmp_path / "u"))
    async with get_llm_client(kept) as client:
        await client.generate("Hello")
    async with get_llm_client(kept) as client:
        with pytest.raises(BudgetExceeded):
            await client.generate("Hello again")
    forgotten = LLMConfig(**values, max_tokens=30)
    for _ in range(2):
        async with get_llm_client(forgotten) as client:
            await client.generate("Hello")
            with pytest.raises(BudgetExceeded):
                await client.generate("Hello again")


async def test_a_budget_that_is_nearly_used_up_is_said_once_and_again_at_its_end(
    bank: Bank, caplog: pytest.LogCaptureFixture
) -> None:
    client = bank.client(always(tokens_in=35, tokens_out=5), budget="100 tokens/day", max_tokens=5)
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        await client.generate("Hello")
    with pytest.raises(BudgetExceeded):
        await client.generate("Hello")
    said = [each.getMessage() for each in caplog.records]
    assert len(said) == 2
    assert said[0].startswith("80 % of the budget 100 tokens/day are used")
    assert said[1].startswith("120 % of")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = time.mktime((2026, 5, 14, 10, 30, 0, 0, 0, -1))

    def __call__(self) -> float:
        return self.now


def record(clock: Clock, tokens: int, **values: Any) -> CallRecord:
    known = {"backend": "b", "model": "m", "seconds": 1.0, "tokens_in": tokens, "cost": 0}
    return CallRecord(at=int(clock.now * 1000), **{**known, **values})


async def admitted(accountant: Accountant, budget: str, tokens: int) -> bool:
    """Whether a call that may need so many tokens is let through; it ends at once."""
    accounts = accountant.open(parse_budgets(budget))
    try:
        hold = await accountant.admit(accounts, Need(tokens=tokens, micros=0.0, seconds=1.0))
    except BudgetExceeded:
        return False
    hold.release()
    return True


async def test_what_another_program_spent_is_seen_within_a_minute(tmp_path: Path) -> None:
    clock, budget = Clock(), "100 tokens/day"
    mine, other = UsageLedger(tmp_path / "u"), UsageLedger(tmp_path / "u")
    accountant = Accountant(mine, clock)
    assert await admitted(accountant, budget, 90)
    other.add(record(clock, 50))
    await other.flush()
    assert await admitted(accountant, budget, 90)  # not looked up for every call
    clock.now += LOOK_AGAIN_S
    await admitted(accountant, budget, 90)  # asks, and does not wait for the answer
    await mine.flush()
    assert not await admitted(accountant, budget, 90)
    assert await admitted(accountant, budget, 50)
    await mine.aclose()
    await other.aclose()


async def test_own_calls_are_not_counted_twice_when_the_ledger_is_read_again(tmp_path: Path) -> None:
    clock, budget = Clock(), "100 tokens/day"
    ledger = UsageLedger(tmp_path / "u")
    ledger.add(record(clock, 10))  # before the budget was opened
    accountant = Accountant(ledger, clock)
    assert await admitted(accountant, budget, 10)
    for _ in range(5):
        spent = record(clock, 10)
        accountant.count(spent)
        ledger.add(spent)
        clock.now += LOOK_AGAIN_S
        await admitted(accountant, budget, 1)
        await ledger.flush()
    assert await admitted(accountant, budget, 40)
    assert not await admitted(accountant, budget, 41)
    await ledger.aclose()


async def test_a_new_window_begins_with_nothing_used(tmp_path: Path) -> None:
    clock, budget = Clock(), "100 tokens/hour"
    ledger = UsageLedger(tmp_path / "u")
    accountant = Accountant(ledger, clock)
    accountant.open(parse_budgets(budget))
    spent = record(clock, 100)
    accountant.count(spent)
    ledger.add(spent)
    assert not await admitted(accountant, budget, 1)
    clock.now += 1800
    assert await admitted(accountant, budget, 100)
    clock.now -= 1800  # the clock is put back: what the hour before used is looked up again
    assert not await admitted(accountant, budget, 1)
    await ledger.aclose()


async def test_a_budget_opened_while_the_ledger_is_asked_is_read_too(tmp_path: Path) -> None:
    clock = Clock()
    other = UsageLedger(tmp_path / "u")
    other.add(record(clock, 50, agent="a"))
    await other.aclose()
    ledger = UsageLedger(tmp_path / "u")
    accountant = Accountant(ledger, clock)
    budgets = ("1000 tokens/day", "60 tokens/day", "70 tokens/month")
    results = await asyncio.gather(*(admitted(accountant, budget, 30) for budget in budgets))
    assert results == [True, False, False]
    await ledger.aclose()


async def test_a_ledger_that_cannot_be_read_leaves_what_is_known(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    clock = Clock()
    ledger = UsageLedger(tmp_path / "taken" / "u")
    accountant = Accountant(ledger, clock)
    assert await admitted(accountant, "100 tokens/day", 100)
    accountant.count(record(clock, 90))
    assert not await admitted(accountant, "100 tokens/day", 20)
    await ledger.aclose()


async def test_time_is_guessed_from_the_calls_before_and_one_call_is_always_possible() -> None:
    clock = Clock()
    accountant = Accountant(None, clock)
    assert accountant.usual_seconds("b", 30.0) == 30.0
    accountant.count(record(clock, 0, seconds=2.0))
    assert accountant.usual_seconds("b", 30.0) == 2.0
    gate = BudgetGate(accountant, parse_budgets("5 seconds/hour"), PriceList(free=True), timeout=30)
    client = ScriptedBackend(always(), middleware=[gate])
    assert (await client.generate("Hello")).content == "yes"
    await client.aclose()


async def test_a_client_says_how_far_its_budgets_are_used_before_its_first_call_too(bank: Bank) -> None:
    first = bank.client(always(), budget="100 tokens/day, 2 usd/day")
    await first.generate("Hello")
    await first.aclose()  # with the last client the totals are forgotten, and read from the file again
    second = bank.client(budget="100 tokens/day")
    (status,) = await second.budgets()
    assert (str(status.budget), status.used, status.left) == ("100 tokens/day", 20.0, 80.0)
    assert await bank.client(budget="9 seconds/hour").budgets() != ()


async def test_a_budget_begins_anew_with_its_window_though_nobody_calls(bank: Bank) -> None:
    client = bank.client(always(), budget="100 tokens/month")
    await client.generate("Hello")
    (account,) = Bookkeeper.of(bank.file).accountant.open(parse_budgets("100 tokens/month"))
    account.own, account.start, account.end = 99.0, 1.0, 2.0  # as if that had been spent long ago
    (status,) = await client.budgets()
    assert status.resets > time.time()
    assert status.used == 20.0  # as the ledger says of this month
