# ruff: noqa: ASYNC240 - a test may look at its files while nothing else runs
"""The usage ledger: what is written down, for how long, and that nothing it meets costs a call."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llm import LLMConfig, calling, get_llm_client
from llm.events import CallEvent, CallFinished, CallPriced
from llm.middleware.bookkeeper import Bookkeeper
from llm.pricing import PriceList, parse_prices
from llm.stores.ledger import UsageLedger, read_usage
from llm.stores.usage_tables import (
    CALL_DAYS,
    GROUPINGS,
    SUM_DAYS,
    CallRecord,
    Grouping,
    Question,
    Spent,
    Usage,
)
from llm.testing import Recorder, ScriptedBackend
from tests.support.moody_server import MoodyServer
from tests.support.waiting import seen, seen_now

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "usage.sqlite3"


def record(days_ago: float = 0.0, **values: object) -> CallRecord:
    known = {"backend": "home", "model": "small", "tokens_in": 10, "tokens_out": 5, "seconds": 1.5, "cost": 0}
    at = int((time.time() - days_ago * 86_400) * 1000)
    return CallRecord(at=at, **{**known, **values})  # type: ignore[arg-type]


async def written(file: Path, *records: CallRecord) -> None:
    ledger = UsageLedger(file)
    for each in records:
        ledger.add(each)
    await ledger.aclose()


def rows(file: Path, query: str = "SELECT * FROM calls ORDER BY number") -> list[dict[str, object]]:
    with closing(sqlite3.connect(file)) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(query)]


async def used_in(file: Path, by: Grouping, since: datetime) -> list[Usage]:
    return await asyncio.to_thread(read_usage, file, by, since)


def config(file: Path, **values: object) -> LLMConfig:
    return LLMConfig(backend="mock", cache_dir=str(file.parent / "cache"), usage_file=str(file)).with_values(
        **values
    )


async def test_a_call_is_written_down_with_who_asked_and_what_it_used(file: Path) -> None:
    recorder = Recorder()
    async with get_llm_client(config(file), observers=[recorder]) as client:
        with calling(agent="matchmaker", run_id="r1"):
            response = await client.generate("Name three vegetables", task="title", template="title@1a2b")
    (event,) = recorder.of(CallFinished)
    (row,) = rows(file)
    assert (row["agent"], row["run_id"], row["task"], row["template"]) == (
        *("matchmaker", "r1", "title", "title@1a2b"),
    )
    assert (row["backend"], row["model"], row["operation"], row["error"]) == ("mock", "mock", "chat", "")
    assert (row["tokens_in"], row["tokens_out"]) == (response.prompt_tokens, response.completion_tokens)
    assert (row["call_id"], row["seconds"]) == (response.call_id, event.latency)  # type: ignore[attr-defined]
    assert (row["cost"], row["joules"], row["first_token"]) == (0, None, None)


async def test_streams_say_when_they_began_and_embeddings_are_calls_too(file: Path) -> None:
    async with get_llm_client(config(file)) as client:
        streamed = await client.stream("Name three vegetables").collect()
        await client.embed(["leek", "chard"])
    first, second = rows(file)
    assert first["first_token"] == streamed.first_token
    assert (second["operation"], second["tokens_out"]) == ("embed", 0)


async def test_what_the_cache_answers_is_counted_and_costs_nothing(file: Path) -> None:
    async with get_llm_client(config(file)) as client:
        for _ in range(3):
            await client.generate("Name three vegetables")
    (used,) = await used_in(file, "model", LONG_AGO)
    assert (used.calls, used.hits) == (1, 2)


async def test_failed_and_cancelled_calls_count_with_their_seconds(file: Path) -> None:
    keeper = Bookkeeper.of(str(file))
    prices = PriceList(free=False, named=parse_prices("scripted=1/2"))
    client = ScriptedBackend(
        lambda _: asyncio.sleep(60, "too late"),
        config=LLMConfig(backend="scripted", model="scripted", enable_cache=False, timeout=0.05),
        middleware=keeper.gate((), prices, timeout=1),
        observers=[keeper.observer(prices, here=False)],
    )
    with pytest.raises(Exception, match=r"within 0\.05 s"):
        await client.generate("Hello")
    waiting = asyncio.create_task(client.generate("Hello", timeout=60))
    await seen(lambda: len(client.requests) == 2)
    waiting.cancel()
    await asyncio.wait([waiting])
    await client.aclose()
    late, cut = rows(file)
    assert (late["error"], cut["error"]) == ("timeout", "cancelled")
    assert float(str(late["seconds"])) >= 0.05
    assert (late["cost"], cut["cost"]) == (
        None,
        None,
    )  # a vendor may want money for them, nobody knows how much
    (used,) = await used_in(file, "backend", LONG_AGO)
    assert (used.calls, used.failed, used.unpriced) == (2, 2, 2)


async def test_an_unreachable_vendor_costs_nothing_and_a_price_is_looked_up_later(file: Path) -> None:
    url = {"api_base": "http://127.0.0.1:1/v1", "api_key": "k", "backend": "remote", "model": "gpt-4o"}
    async with get_llm_client(config(file, **url, retries=0)) as client:
        with pytest.raises(Exception, match=r"127\.0\.0\.1"):
            await client.generate("Hello")
    ledger = UsageLedger(file)
    ledger.add(
        record(cost=None, model="mine", tokens_in=1000),
        prices=PriceList(free=False, named=parse_prices("mine=3/6")),
    )
    await ledger.aclose()
    refused, priced = rows(file, "SELECT * FROM calls ORDER BY at")
    assert (refused["error"], refused["cost"]) == ("connection", 0)
    assert priced["cost"] == 1000 * 3 + 5 * 6


async def test_the_file_and_its_folder_are_private(file: Path) -> None:
    await written(file, record())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


async def test_nothing_is_written_before_the_first_call_and_calls_gather(file: Path) -> None:
    ledger = UsageLedger(file, gather=600)
    assert not file.parent.exists()
    for _ in range(50):
        ledger.add(record())
        await asyncio.sleep(0)
    assert not file.exists()
    assert [used.calls for used in await ledger.usage("model", LONG_AGO)] == [50]
    await ledger.aclose()


async def test_records_are_written_by_themselves_after_they_gathered(file: Path) -> None:
    ledger = UsageLedger(file, gather=0.01)
    ledger.add(record())
    await asyncio.to_thread(seen_now, lambda: bool(read_usage(file, "model", LONG_AGO)))
    await ledger.aclose()


def test_a_program_that_forgets_to_close_its_client_loses_nothing(file: Path) -> None:
    script = (
        "import asyncio\n"
        "from llm import LLMConfig, get_llm_client\n"
        f"client = get_llm_client(LLMConfig(backend='mock', enable_cache=False, usage_file={str(file)!r}))\n"
        "asyncio.run(client.generate('Hello'))\n"
    )
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert len(rows(file)) == 1
    assert time.monotonic() - began < 60


def test_programs_that_write_at_once_lose_nothing(file: Path) -> None:
    script = (
        "import asyncio\n"
        "from llm.stores.ledger import UsageLedger\n"
        "from llm.stores.usage_tables import CallRecord\n"
        "import time\n"
        "async def main():\n"
        f"    ledger = UsageLedger({str(file)!r}, gather=0.001)\n"
        "    for _ in range(200):\n"
        "        ledger.add(CallRecord(at=int(time.time() * 1000), backend='b', model='m', seconds=1.0))\n"
        "        await asyncio.sleep(0.0005)\n"
        "    await ledger.aclose()\n"
        "    print(ledger.lost)\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", script]
    programs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    lost = [program.communicate(timeout=100)[0].strip() for program in programs]
    assert lost == ["0", "0", "0"]
    (used,) = read_usage(file, "model", LONG_AGO)
    assert (used.calls, used.seconds) == (600, 600.0)


async def test_sums_are_the_same_however_they_are_grouped(file: Path) -> None:
    records = [
        record(
            days_ago=number % 9,
            agent=f"a{number % 2}",
            task=f"t{number % 3}",
            model=f"m{number % 4}",
            cached=number,
            cost=None if number % 7 == 0 else number,
            error="server" if number % 5 == 0 else "",
        )
        for number in range(40)
    ]
    await written(file, *records)
    for by in GROUPINGS:
        used = await used_in(file, by, LONG_AGO)
        assert sum(each.calls for each in used) == 40
        assert sum(each.failed for each in used) == 8
        assert sum(each.unpriced for each in used) == 6
        assert sum(each.cost for each in used) == sum(each.cost or 0 for each in records)
        assert sum(each.cached for each in used) == sum(range(40))
    days = [each.name for each in await used_in(file, "day", LONG_AGO)]
    assert days == sorted(days)
    assert (
        sum(
            each.calls
            for each in await used_in(file, "day", datetime.now().astimezone() - timedelta(days=4.5))
        )
        == 24
    )


async def test_old_calls_become_sums_of_their_days_and_the_oldest_days_go(file: Path) -> None:
    old = [record(days_ago=CALL_DAYS + 3, agent="a", cost=7, joules=2.5) for _ in range(4)]
    await written(file, *old, record(days_ago=CALL_DAYS + 3, agent="b"), record(agent="a"))
    before = await used_in(file, "agent", LONG_AGO)
    await written(file, record(agent="c"))  # the next program, or the next day
    assert len(rows(file)) == 2
    assert [used for used in await used_in(file, "agent", LONG_AGO) if used.name != "c"] == before
    with closing(sqlite3.connect(file)) as db:
        ancient = (datetime.now().astimezone() - timedelta(days=SUM_DAYS + 1)).date().isoformat()
        db.execute("UPDATE days SET day = ? WHERE agent = 'b'", (ancient,))
        db.commit()
    await written(file, record(agent="c"))
    assert [used.name for used in await used_in(file, "agent", LONG_AGO)] == ["a", "c"]


async def test_rolled_up_twice_a_day_is_still_counted_once(file: Path) -> None:
    late = [record(days_ago=CALL_DAYS + 3) for _ in range(3)]
    await written(file, *late[:2])
    await written(file, late[2])
    await written(file)
    await written(file, record())
    assert [used.calls for used in await used_in(file, "model", LONG_AGO)] == [4]


async def test_budgets_read_what_others_spent_and_what_was_their_own_before(file: Path) -> None:
    await written(file, record(agent="a"), record(agent="b", backend="cloud", cost=9))
    ledger = UsageLedger(file)
    for _ in range(3):
        ledger.add(record(agent="a"))
    questions = [
        Question(since=0, own=0),
        Question(since=0, own=2),
        Question(since=0, own=0, agent="a"),
        Question(since=0, own=0, backend="cloud"),
        Question(since=int(time.time() * 1000) + 60_000, own=3),
    ]
    answers = await asyncio.wrap_future(ledger.spent(questions))
    await ledger.aclose()
    assert answers == [
        Spent(tokens=30, seconds=3.0, cost=9),
        Spent(tokens=60, seconds=6.0, cost=9),
        Spent(tokens=15, seconds=1.5),
        Spent(tokens=15, seconds=1.5, cost=9),
        Spent(),
    ]


async def test_a_damaged_ledger_is_set_aside_and_said(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.parent.mkdir(mode=0o700)
    file.write_bytes(b"this is no database, whatever its name says" * 50)
    await written(file, record())
    assert len(rows(file)) == 1
    moved = file.with_name("usage.sqlite3.damaged-1")
    assert moved.read_bytes().startswith(b"this is no database")
    assert str(moved) in caplog.text


async def test_damage_that_is_met_while_writing_is_set_aside_too(file: Path) -> None:
    await written(file, *(record(run_id=str(n)) for n in range(500)))
    ledger = UsageLedger(file)
    await ledger.flush()  # the file is open, and nothing of it but its head was read
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * (size - 4096))
    ledger.add(record())
    await ledger.flush()
    ledger.add(record())
    await ledger.aclose()
    assert file.with_name("usage.sqlite3.damaged-1").exists()
    assert [used.calls for used in await used_in(file, "model", LONG_AGO)] == [2]
    assert ledger.lost == 0


async def test_a_file_that_another_program_replaced_is_written_anew(file: Path) -> None:
    ledger = UsageLedger(file)
    ledger.add(record())
    await ledger.flush()
    file.rename(file.with_name("moved"))
    for tail in ("-wal", "-shm"):
        file.with_name(f"{file.name}{tail}").unlink(missing_ok=True)
    ledger.add(record())
    await ledger.aclose()
    assert len(rows(file)) == 1


async def test_a_ledger_that_cannot_be_written_costs_no_call_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    file = tmp_path / "taken" / "usage.sqlite3"
    async with get_llm_client(LLMConfig(backend="mock", enable_cache=False, usage_file=str(file))) as client:
        for _ in range(5):
            assert (await client.generate("Hello")).content
    warnings = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert str(file) in warnings[0].getMessage()


async def test_records_wait_for_a_file_that_cannot_be_used_and_are_then_written_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.stores.ledger._PAUSE", 0.01)
    folder = tmp_path / "data"
    folder.write_text("a file where the folder should be")
    ledger = UsageLedger(folder / "usage.sqlite3")
    for _ in range(3):
        ledger.add(record())
    ledger.add_hit(("a", "home", "small", "t"))
    await ledger.flush()
    assert ledger.lost == 0
    folder.unlink()
    await asyncio.to_thread(seen_now, lambda: bool(read_usage(ledger.path, "model", LONG_AGO)))
    await ledger.aclose()
    assert [(used.calls, used.hits) for used in await used_in(ledger.path, "model", LONG_AGO)] == [(3, 1)]


async def test_a_full_disk_loses_records_and_counts_them(file: Path) -> None:
    script = (
        "import asyncio, resource, signal\n"
        "from llm.stores.ledger import UsageLedger\n"
        "from llm.stores.usage_tables import CallRecord\n"
        "async def main():\n"
        f"    ledger = UsageLedger({str(file)!r})\n"
        "    ledger.add(CallRecord(at=1, backend='b', model='m', seconds=1.0))\n"
        "    await ledger.flush()\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "    for n in range(300):\n"
        "        ledger.add(CallRecord(at=2, run_id='x' * 500, backend='b', model='m', seconds=1.0))\n"
        "    await ledger.flush()\n"
        "    await ledger.aclose()\n"
        "    print(ledger.lost)\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr.count("cannot be used")) == ("300", 1), done.stderr
    assert len(rows(file)) == 1


async def test_a_ledger_of_another_format_is_left_alone(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    await written(file, record())
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA user_version = 7")
    await written(file, record())
    assert len(rows(file)) == 1
    assert "its format is 7" in caplog.text
    with pytest.raises(OSError, match="its format is 7"):
        await used_in(file, "model", LONG_AGO)


async def test_names_that_cannot_be_written_cost_their_batch_and_no_more(file: Path) -> None:
    ledger = UsageLedger(file)
    ledger.add(record(model="\ud800"))
    await ledger.flush()
    ledger.add(record())
    await ledger.aclose()
    assert (ledger.lost, len(rows(file))) == (1, 1)


async def test_clients_of_one_program_share_a_ledger_until_the_last_is_closed(file: Path) -> None:
    first, second = get_llm_client(config(file)), get_llm_client(config(file))
    await first.generate("Hello")
    await first.aclose()
    await second.generate("Hello again")
    await second.aclose()
    assert len(rows(file)) == 2
    assert len({row["writer"] for row in rows(file)}) == 1
    async with get_llm_client(config(file)) as third:
        await third.generate("And again")
    assert len({row["writer"] for row in rows(file)}) == 2


def test_a_ledger_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    assert read_usage(tmp_path / "none", "model", LONG_AGO) == []
    assert not any(tmp_path.iterdir())


async def test_what_a_call_costs_is_told_to_the_observers_of_its_client(file: Path) -> None:
    recorder = Recorder()
    async with MoodyServer() as server:
        config = LLMConfig(
            backend="remote", model="stub", api_base=server.url, enable_cache=False, prices="stub=1000/2000"
        )
        async with (
            get_llm_client(config.with_values(usage_file=str(file)), observers=[recorder]) as client,
            asyncio.timeout(20),
        ):
            answer = await client.generate("Hello")
    (priced,) = recorder.of(CallPriced)
    assert isinstance(priced, CallPriced)
    assert (priced.cost, priced.call_id) == (0.022, answer.call_id)
    assert (priced.backend, priced.model) == ("remote", "stub")


async def test_a_cost_that_has_to_be_looked_up_is_told_by_the_end_of_a_flush(file: Path) -> None:
    pytest.importorskip("genai_prices")
    keeper, recorder = Bookkeeper.of(str(file)), Recorder()
    prices = PriceList(free=False, url="https://api.openai.com/v1")
    gate = keeper.gate((), prices, timeout=1)

    def tell(event: CallEvent, /) -> None:
        gate[0].emit(event)

    async with ScriptedBackend(
        "yes",
        config=LLMConfig(backend="scripted", model="gpt-4o", enable_cache=False),
        middleware=gate,
        observers=[keeper.observer(prices, here=False, tell=tell), recorder],
    ) as client:
        await client.generate("Hello")
        assert recorder.of(CallPriced) == []  # nothing waits for the list
        await client.flush()
        (priced,) = recorder.of(CallPriced)
        await client.flush()
        assert len(recorder.of(CallPriced)) == 1
    assert isinstance(priced, CallPriced)
    assert 0 < priced.cost < 0.01
    assert rows(file)[0]["cost"] == round(priced.cost * 1_000_000)
