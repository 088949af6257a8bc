"""What the ledger and the budgets cost, beside the same call without them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from llm import LLMConfig, get_llm_client
from llm.client import LLMClient
from llm.stores.ledger import UsageLedger
from llm.stores.usage_tables import CallRecord, Question
from tests.benchmarks.measure import compare, show

CALLS = 1000
MONTH = 15_000  # 500 calls a day


def config(**values: object) -> LLMConfig:
    return LLMConfig(backend="mock", enable_cache=False).with_values(**values)


async def calls(client: LLMClient, numbers: Iterator[int]) -> None:
    for _ in range(CALLS):
        await client.generate(f"Does it? {next(numbers)}")


async def test_ledger_and_budgets_cost_microseconds_a_call(tmp_path: Path) -> None:
    numbers = count()
    budget = "1000000000 tokens/day, 1000 usd/month, 100000 seconds/hour, agent a: 1000 tokens/day"
    async with (
        get_llm_client(config()) as plain,
        get_llm_client(config(usage_file=str(tmp_path / "a"))) as written,
        get_llm_client(config(usage_file=str(tmp_path / "b"), budget=budget)) as checked,
    ):
        rows = await compare(
            {
                "generate(), no ledger": lambda: calls(plain, numbers),
                "generate(), ledger": lambda: calls(written, numbers),
                "generate(), ledger and three budgets": lambda: calls(checked, numbers),
            },
            operations=CALLS,
        )
    show("One call of the mock backend (the ledger's own thread included)", rows)
    assert rows[2].micros - rows[0].micros < 300


async def test_a_batch_of_calls_is_written_in_little_time_and_room(tmp_path: Path) -> None:
    file = tmp_path / "usage"
    ledger = UsageLedger(file, gather=600)
    now = int(time.time() * 1000)
    record = CallRecord(
        at=now,
        call_id="0" * 32,
        agent="matchmaker",
        run_id="1" * 32,
        task="title",
        backend="ollama",
        model="qwen2.5:1.5b",
        seconds=2.0,
    )
    started = time.process_time()
    for _ in range(MONTH // 5000):
        for _ in range(5000):
            ledger.add(record)
        await ledger.flush()
    micros = (time.process_time() - started) / MONTH * 1e6
    started = time.process_time()
    await asyncio.wrap_future(ledger.spent([Question(since=0, own=MONTH)] * 3))
    asked = (time.process_time() - started) * 1e3
    await ledger.aclose()
    size = file.stat().st_size
    print(f"\nA record: {micros:.1f} us of CPU, {size / MONTH:.0f} bytes")
    print(f"What three budgets of a month of {MONTH} calls have used: {asked:.1f} ms, at most once a minute")
    assert size / MONTH < 500
