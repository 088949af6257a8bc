"""Health: the sum of small pings, each with a limit, the slow ones remembered."""

from __future__ import annotations

import asyncio
import time

from daemon.observability.health import Answer, Health, Ping, ask


async def works() -> str:
    return "12 ms"


async def breaks() -> str:
    raise OSError("disk is gone")


async def hangs() -> str:
    await asyncio.sleep(3600)
    return "never"


async def test_everything_required_works_so_it_is_ready() -> None:
    health = Health([Ping("database", works), Ping("scheduler", works)])
    ready, answers = await health.check()
    assert ready
    assert [(a.name, a.ok, a.detail) for a in answers] == [
        ("database", True, "12 ms"),
        ("scheduler", True, "12 ms"),
    ]


async def test_one_broken_part_is_named_with_its_reason() -> None:
    ready, answers = await Health([Ping("database", breaks), Ping("scheduler", works)]).check()
    assert not ready
    assert answers[0] == Answer("database", ok=False, detail="disk is gone", required=True)
    assert answers[1].ok


async def test_a_ping_that_hangs_has_failed_after_its_limit() -> None:
    answer = await ask(Ping("database", hangs), limit=0.05)
    assert answer.ok is False
    assert answer.detail == "no answer within 0.05 s"


async def test_pings_are_asked_side_by_side() -> None:
    began = time.monotonic()
    ready, answers = await Health([Ping(f"p{n}", hangs) for n in range(20)], limit=0.2).check()
    assert not ready
    assert len(answers) == 20
    assert time.monotonic() - began < 3  # 4 s one after the other


async def test_an_informative_ping_is_never_waited_for_and_never_decides() -> None:
    async def broken_model() -> str:
        raise ConnectionError("connection refused")

    health = Health([Ping("model", broken_model, required=False), Ping("slow", hangs, required=False)])
    ready, answers = await health.check()
    assert ready
    assert {a.name: a.ok for a in answers} == {"model": None, "slow": None}
    for _ in range(20):
        ready, answers = await health.check()
        await asyncio.sleep(0)
    assert ready
    assert answers[0].as_json() == {"ok": False, "detail": "connection refused", "required": False}
    await health.aclose()


async def test_an_informative_answer_is_remembered_instead_of_asked_each_time() -> None:
    asked = []

    async def count() -> str:
        asked.append(1)
        return "fine"

    health = Health([Ping("model", count, required=False)])
    for _ in range(20):
        _, answers = await health.check()
        await asyncio.sleep(0)
    assert answers[0].detail == "fine"
    assert len(asked) == 1
    await health.aclose()


async def test_closing_ends_what_is_still_being_asked() -> None:
    health = Health([Ping("model", hangs, required=False)])
    await health.check()
    await health.aclose()
    assert [t for t in asyncio.all_tasks() if t.get_name() == "ping model"] == []
