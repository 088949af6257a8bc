"""Offers and needs in a SQLite database: the same promises as over CSV files, in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agents.builtin.matchmaker.agent import Matchmaker
from agents.errors import AgentError, PreconditionFailed, SourceError, UndoConflict
from agents.proposal import Proposal
from agents.testing import NOON, AgentContract, make_agent, run_agent
from tests.support.matchmaker_data import contents, database, kept, pairs_of

OFFERS = [("O1", "rice", 10, "kg"), ("O2", "beans", 2.5, "kg"), ("O3", "milk", "6,0", "l")]
NEEDS = [
    ("N1", "arroz", 4, "kg"),
    ("N2", "alubias", 0.75, "kg"),
    ("N3", "leche", "1.5", "l"),
    ("N4", "rice", 2.25, "kg"),
]


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def world(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    tables = [
        name for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    ]
    return {name: rows(path, f"SELECT rowid, * FROM {name}") for name in tables}


def agent(path: Path, **settings: Any) -> Matchmaker:
    made = make_agent(Matchmaker, settings={"source": "sqlite", "database": str(path), **settings}, now=NOON)
    assert isinstance(made, Matchmaker)
    return made


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    return database(tmp_path / "garden.sqlite3", OFFERS, NEEDS)


async def proposed(path: Path, **settings: Any) -> dict[str, Proposal]:
    return {str(p.payload["need_id"]): p for p in kept(await agent(path, **settings).analyze())}


class TestMatchmakerOverSqlite(AgentContract):
    agent_cls = Matchmaker

    def prepare(self, folder: Path) -> None:
        database(folder / "garden.sqlite3", OFFERS, NEEDS)

    def settings(self, folder: Path) -> Mapping[str, Any]:
        return {"source": "sqlite", "database": str(folder / "garden.sqlite3")}

    def world(self, folder: Path) -> Any:
        return {
            **world(folder / "garden.sqlite3"),
            "matches": world(folder / "garden.sqlite3").get("matches") or [],
        }


async def test_it_proposes_over_a_database_as_over_files(garden: Path) -> None:
    found = await proposed(garden)
    assert pairs_of(found.values()) == {("O1", "N1"), ("O2", "N2"), ("O3", "N3"), ("O1", "N4")}
    assert found["N2"].payload["quantity"] == "0.75"
    assert found["N1"].evidence[0].source == "garden.sqlite3:offers"


async def test_quantities_are_stored_the_way_they_were(garden: Path) -> None:
    for proposal in (await proposed(garden)).values():
        await agent(garden).apply(proposal)
    assert rows(garden, "SELECT id, quantity, typeof(quantity) FROM offers") == [
        ("O1", 3.75, "real"),  # a whole number where it can be one; 3.75 cannot
        ("O2", 1.75, "real"),
        ("O3", "4,5", "text"),
    ]
    assert rows(garden, "SELECT id, quantity, typeof(quantity) FROM needs") == [
        ("N1", 0, "integer"),
        ("N2", 0.0, "real"),
        ("N3", "0.0", "text"),
        ("N4", 0.0, "real"),
    ]
    assert rows(garden, "SELECT offer, need, quantity, unit FROM matches ORDER BY proposal")[0] == (
        "O1",
        "N1",
        "4",
        "kg",
    )


async def test_undone_in_any_order_the_values_are_those_of_before(garden: Path) -> None:
    before = world(garden)
    found = await proposed(garden)
    done = [p.with_changes(undo_data=await agent(garden).apply(p)) for p in found.values()]
    for proposal in (done[0], done[3], done[2], done[1]):
        for _ in range(2):
            await agent(garden).undo(proposal)
    assert {**world(garden)} == {**before, "matches": []}


async def test_applied_twice_it_happens_once_with_the_same_undo_data(garden: Path) -> None:
    proposal = (await proposed(garden))["N1"]
    data = await agent(garden).apply(proposal)
    after = world(garden)
    assert await agent(garden).apply(proposal) == data
    assert world(garden) == after


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("DELETE FROM offers WHERE id = 'O1'", "the offer O1 is gone"),
        ("UPDATE offers SET item = 'wild rice' WHERE id = 'O1'", "was changed since this was proposed"),
        ("UPDATE needs SET quantity = 1 WHERE id = 'N1'", "the need N1 now asks for 1 kg"),
    ],
)
async def test_rows_that_are_not_as_they_were_proposed_are_left_alone(
    garden: Path, change: str, complaint: str
) -> None:
    proposal = (await proposed(garden))["N1"]
    with closing(sqlite3.connect(garden)) as connection:
        connection.execute(change)
        connection.commit()
    before = world(garden)
    with pytest.raises(PreconditionFailed, match=complaint):
        await agent(garden).apply(proposal)
    assert world(garden) == before, "not even the table of matches was made"
    assert complaint in (await agent(garden).recheck(proposal) or "")


async def test_what_somebody_changed_since_is_not_overwritten_by_an_undo(garden: Path) -> None:
    proposal = (await proposed(garden))["N1"]
    done = proposal.with_changes(undo_data=await agent(garden).apply(proposal))
    with closing(sqlite3.connect(garden)) as connection:
        connection.execute("UPDATE offers SET quantity = 50 WHERE id = 'O1'")
        connection.commit()
    before = world(garden)
    with pytest.raises(UndoConflict, match="changed by hand since the match, to 50 kg"):
        await agent(garden).undo(done)
    assert world(garden) == before


async def test_tables_columns_and_queries_can_have_other_names(tmp_path: Path) -> None:
    path = tmp_path / "pantry.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            'CREATE TABLE "what we have" (nr INTEGER PRIMARY KEY, thing TEXT, "how much" REAL, measure TEXT)'
        )
        connection.execute(
            'CREATE TABLE asked (nr INTEGER PRIMARY KEY, thing TEXT, "how much" REAL, measure TEXT, done)'
        )
        connection.execute("""INSERT INTO "what we have" VALUES (1, 'rice', 0.3, 'kg')""")
        connection.execute("INSERT INTO asked VALUES (7, 'arroz', 0.1, 'kg', 0), (8, 'arroz', 9, 'kg', 1)")
        connection.commit()
    columns = 'nr AS id, thing AS item, "how much" AS quantity, measure AS unit'
    settings = {
        "offers_query": f'SELECT {columns} FROM "what we have"',
        "needs_query": f"SELECT {columns} FROM asked WHERE NOT done",
        "offers_table": "what we have",
        "needs_table": "asked",
        "matches_table": 'matched "pairs"',
        "id_column": "nr",
        "quantity_column": "how much",
    }
    (proposal,) = kept(await agent(path, **settings).analyze())
    await agent(path, **settings).apply(proposal)
    assert rows(path, 'SELECT "how much" FROM "what we have"') == [(0.2,)], "no float noise"
    assert rows(path, 'SELECT offer, need, quantity FROM "matched ""pairs"""') == [("1", "7", "0.1")]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"offers_query": "SELECT * FROM elsewhere"}, "no such table: elsewhere; the settings"),
        (
            {"offers_query": "SELECT id, item FROM offers"},
            "offers_query: there is no column for the quantity",
        ),
        ({"offers_query": "DELETE FROM offers RETURNING *"}, "attempt to write a readonly database"),
    ],
)
async def test_a_query_that_cannot_be_used_is_named_and_never_writes(
    garden: Path, settings: dict[str, Any], complaint: str
) -> None:
    before = world(garden)
    with pytest.raises(SourceError, match=complaint):
        await agent(garden, **settings).analyze()
    assert world(garden) == before


async def test_a_database_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere\.db: unable to open database file"):
        await agent(tmp_path / "nowhere.db").analyze()
    assert contents(tmp_path) == {}


async def test_a_row_that_cannot_be_used_is_left_out_and_named(tmp_path: Path) -> None:
    path = database(
        tmp_path / "garden.sqlite3", [("O1", "rice", None, "kg"), ("O2", "rice", 3, "kg")], NEEDS[:1]
    )
    run = await run_agent(Matchmaker, settings={"source": "sqlite", "database": str(path)}, now=NOON)
    assert pairs_of(run.proposals) == {("O2", "N1")}
    (note,) = run.notes
    assert note.startswith("garden.sqlite3:offers:row 1: quantity: the quantity is missing; write a number")


async def test_a_table_that_is_no_place_for_the_quantity_is_refused(garden: Path) -> None:
    proposal = (await proposed(garden))["N1"]
    before = world(garden)
    with pytest.raises(AgentError, match="there are 0 rows whose id is 'O1'"):
        await agent(garden, offers_table="needs").apply(proposal)
    assert world(garden) == before


async def test_the_noise_of_floating_point_is_no_part_of_a_quantity(tmp_path: Path) -> None:
    path = database(
        tmp_path / "garden.sqlite3", [("O1", "rice", 0.1 + 0.2, "kg")], [("N1", "rice", 1e-9 + 2, "kg")]
    )
    (proposal,) = kept(await agent(path).analyze())
    assert proposal.payload["quantity"] == "0.3"
    done = proposal.with_changes(undo_data=await agent(path).apply(proposal))
    assert rows(path, "SELECT quantity FROM offers") == [(0.0,)]
    await agent(path).undo(done)
    assert rows(path, "SELECT quantity FROM offers") == [(0.1 + 0.2,)]


@pytest.mark.parametrize("value", [-1, 1e300, float("inf"), b"3"])
async def test_a_number_that_is_no_quantity_is_left_out(tmp_path: Path, value: Any) -> None:
    path = database(tmp_path / "garden.sqlite3", [("O1", "rice", value, "kg")], NEEDS[:1])
    run = await run_agent(Matchmaker, settings={"source": "sqlite", "database": str(path)}, now=NOON)
    assert run.proposals == ()
    assert len(run.notes) == 1
    assert "row 1: quantity: " in run.notes[0]
