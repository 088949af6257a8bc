"""Housekeeping: backups when something changed, old things forgotten, failures told once."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from daemon.errors import StoreError, StoreFull
from daemon.housekeeping import RETRY_S, SWEEP_EVERY_S, Housekeeping
from daemon.settings import DaemonSettings, Settings
from daemon.settings.model import BackupSettings, RetentionSettings
from daemon.store.backups import backups_in
from daemon.store.contents import contents_of
from tests.support.stores import START, Bench, bench, run_result
from tests.support.waiting import seen

WEEK = timedelta(days=7)


async def settings_of(folder: Path, **backup: object) -> Settings:
    def made() -> Settings:
        return Settings(
            daemon=DaemonSettings(data_dir=folder / "data", min_free_bytes=0),
            backup=BackupSettings(**{"every": WEEK, "keep": 2, **backup}),
            retention=RetentionSettings(),
            base_dir=folder,
        )

    return await asyncio.to_thread(made)


async def house_of(it: Bench, folder: Path, **backup: object) -> Housekeeping:
    return Housekeeping(it.db, await settings_of(folder, **backup), now=it.clock)


async def count(house: Housekeeping) -> int:
    return len(await asyncio.to_thread(backups_in, house.folder))


async def test_a_backup_is_made_when_one_is_due_and_something_has_changed(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        house = await house_of(it, tmp_path)
        assert await house.back_up_if_due() == RETRY_S
        assert await count(house) == 0  # there is nothing yet
        await it.one()
        await house.back_up_if_due()
        assert await count(house) == 1
        assert await house.back_up_if_due() == WEEK.total_seconds()
        await it.one(text="two")
        it.clock.move(days=6)
        assert await house.back_up_if_due() == timedelta(days=1).total_seconds()
        assert await count(house) == 1
        it.clock.move(days=1)
        await house.back_up_if_due()
        assert await count(house) == 2
        it.clock.move(days=70)
        assert await house.back_up_if_due() == RETRY_S
        assert await count(house) == 2  # nothing has changed
        for text in ("three", "four"):
            it.clock.move(days=7)
            await it.one(text=text)
            await house.back_up_if_due()
        assert await count(house) == 2


async def test_a_backup_from_a_clock_that_was_wrong_holds_up_no_other(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        house = await house_of(it, tmp_path)
        await it.one()
        it.clock.time = datetime(2080, 1, 1, tzinfo=UTC)
        await house.back_up_if_due()
        it.clock.time = START
        await it.one(text="two")
        await house.back_up_if_due()
        made = await asyncio.to_thread(backups_in, house.folder)
        assert [each.made_at.year for each in made] == [2080, 2026]


async def test_a_damaged_backup_is_followed_by_another_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(tmp_path) as it:
        house = await house_of(it, tmp_path)
        await it.one()
        path = await house.backup()
        await asyncio.to_thread(path.write_bytes, b"x" * 9000)
        it.clock.move(days=8)
        await house.back_up_if_due()
        assert await count(house) == 2
        assert "the newest backup cannot be read" in caplog.text


async def test_none_are_made_by_themselves_when_none_are_to_be_kept(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        house = await house_of(it, tmp_path, keep=0)
        await it.one()
        assert await house.back_up_if_due() == RETRY_S
        assert await count(house) == 0
        await house.backup()
        assert await count(house) == 1


async def test_one_made_by_hand_goes_where_it_shall(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        house = await house_of(it, tmp_path)
        await it.one()
        path = await house.backup(tmp_path / "mine.sqlite3")
        assert path == tmp_path / "mine.sqlite3"
        assert await count(house) == 0
        found = await asyncio.to_thread(contents_of, path)
        assert found.instance_id == it.db.instance_id


async def test_a_backup_does_not_take_the_room_that_the_agents_need(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        house = await house_of(it, tmp_path)
        await it.one()
        greedy = house._settings.model_copy(
            update={"daemon": house._settings.daemon.model_copy(update={"min_free_bytes": 10**18})}
        )
        house.follow(greedy)
        with pytest.raises(StoreFull):
            await house.back_up_if_due()
        await house.backup()  # a person may


async def test_what_is_old_is_forgotten_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with bench(tmp_path) as it:
        house = await house_of(it, tmp_path)
        assert await house.sweep() == SWEEP_EVERY_S
        await _run(it, "r1")
        it.clock.move(days=400)
        await _run(it, "r2")
        await house.sweep()
        assert [run.run_id for run in await it.runs.list()] == ["r2"]
        record = next(each for each in caplog.records if each.message == "what is old was forgotten")
        assert record.__dict__["runs"] == 1
        caplog.clear()
        await house.sweep()
        assert caplog.records == []


async def _run(it: Bench, name: str) -> None:
    async with it.db.write() as connection:
        await it.runs.save(connection, run_result(name, started_at=it.clock(), finished_at=it.clock()))


async def test_a_clock_that_jumps_decades_ahead_makes_nothing_old(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        for name in ("r1", "r2"):
            await _run(it, name)
            it.clock.move(days=1)
        house = await house_of(it, tmp_path)
        it.clock.time = datetime(2080, 1, 1, tzinfo=UTC)
        await _run(it, "r3")
        fresh = await house_of(it, tmp_path)
        fresh._known = START  # as one that was started before the jump
        await fresh.sweep()
        assert len(await it.runs.list()) == 3
        await house.sweep()  # started after it: then the clock must be right
        assert [run.run_id for run in await it.runs.list()] == ["r3"]


async def test_a_failure_is_told_once_and_so_is_the_recovery(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with bench(tmp_path) as it:
        house = await house_of(it, tmp_path)
        await it.one()
        house.folder.write_text("in the way")
        for _ in range(3):
            assert await house._tried("backup", house.back_up_if_due) == RETRY_S
        assert caplog.text.count("backup failed and is tried again each hour") == 1
        assert house.failing("backup")
        await asyncio.to_thread(house.folder.unlink)
        await house._tried("backup", house.back_up_if_due)
        assert caplog.text.count("backup works again") == 1
        assert not house.failing("backup")


async def test_it_works_by_itself_and_ends_when_told(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        house = await house_of(it, tmp_path)
        await it.one()
        task = asyncio.create_task(house.run(first_after=0))
        await seen(lambda: _exists(house.folder))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await house.aclose()
        before = await count(house)
        with pytest.raises(StoreError, match="being stopped"):
            await house.backup()
        assert await count(house) == before


def _exists(folder: Path) -> bool:
    return any(path.suffix == ".sqlite3" for path in folder.glob("*"))
