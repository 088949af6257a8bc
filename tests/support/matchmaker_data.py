"""Small folders and databases of offers and needs, and the labelled set of the matchmaker."""

from __future__ import annotations

import csv
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from agents.builtin.matchmaker.agent import Matchmaker
from agents.builtin.matchmaker.columns import field_of
from agents.builtin.matchmaker.records import Record, Row, Side, record_from
from agents.builtin.matchmaker.rules import Refusal, judge
from agents.proposal import Proposal, ProposalStatus
from agents.testing import NOON, make_agent, run_agent
from llm import LLMClient

EXAMPLES = Path(__file__).parents[2] / "config" / "examples"
HEADER = "id,item,quantity,unit,place,from,until,times,dietary,person,transport,notes"
COLUMNS = HEADER.split(",")


def record(side: Side, **values: str) -> Record:
    """A record from the texts of its fields; what is not given is empty, but for the id."""
    texts = {name: values.get(name, "") for name in COLUMNS}
    texts["id"] = texts["id"] or f"{side[0].upper()}1"
    row = Row(values=texts, fields=[field_of(name) for name in COLUMNS], locator="line 2", excerpt="")
    return record_from(row, side, f"{side}s.csv", UTC)


def offer(item: str, quantity: str = "10", unit: str = "kg", **values: str) -> Record:
    """An offer."""
    return record("offer", item=item, quantity=quantity, unit=unit, **values)


def need(item: str, quantity: str = "4", unit: str = "kg", **values: str) -> Record:
    """A need."""
    return record("need", item=item, quantity=quantity, unit=unit, **values)


def table(rows: Iterable[str | Mapping[str, str]]) -> str:
    """A CSV text with our header; a row is a line, or the texts of its fields."""
    lines = [row if isinstance(row, str) else ",".join(row.get(name, "") for name in COLUMNS) for row in rows]
    return "\n".join([HEADER, *lines]) + "\n"


def folder_with(path: Path, offers: str, needs: str) -> Path:
    """A folder with the two files."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "offers.csv").write_bytes(offers.encode("utf-8"))
    (path / "needs.csv").write_bytes(needs.encode("utf-8"))
    return path


def simple_folder(path: Path, offers: Iterable[str], needs: Iterable[str]) -> Path:
    """A folder whose rows are "id,item,quantity,unit" each."""
    header = "id,item,quantity,unit"
    return folder_with(path, "\n".join([header, *offers]) + "\n", "\n".join([header, *needs]) + "\n")


def examples_in(path: Path) -> Path:
    """A copy of the example folder."""
    shutil.copytree(EXAMPLES, path, dirs_exist_ok=True)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def matchmaker(folder: Path, llm: LLMClient | None = None, **settings: Any) -> Matchmaker:
    """The agent before a folder."""
    agent = make_agent(Matchmaker, llm=llm, settings={"folder": str(folder), **settings}, now=NOON)
    assert isinstance(agent, Matchmaker)
    return agent


async def proposals_of(folder: Path, llm: LLMClient | None = None, **settings: Any) -> list[Proposal]:
    """What one run proposes."""
    chosen = {"folder": str(folder), **settings}
    return list((await run_agent(Matchmaker, llm=llm, settings=chosen, now=NOON)).proposals)


def kept(proposals: Iterable[Proposal], first: int = 1) -> list[Proposal]:
    """The proposals as a store would give them back."""
    return [
        proposal.with_changes(id=number, run_id="run-1", status=ProposalStatus.APPLYING)
        for number, proposal in enumerate(proposals, start=first)
    ]


def pairs_of(proposals: Iterable[Proposal]) -> set[tuple[str, str]]:
    """Offer and need of each proposal."""
    return {(str(p.payload["offer_id"]), str(p.payload["need_id"])) for p in proposals}


def database(path: Path, offers: Iterable[tuple[Any, ...]], needs: Iterable[tuple[Any, ...]]) -> Path:
    """A SQLite file with the tables offers and needs: id, item, quantity, unit."""
    connection = sqlite3.connect(path)
    for name, rows in (("offers", offers), ("needs", needs)):
        connection.execute(f"CREATE TABLE {name} (id TEXT PRIMARY KEY, item TEXT, quantity, unit TEXT)")
        connection.executemany(f"INSERT INTO {name} VALUES (?, ?, ?, ?)", list(rows))
    connection.commit()
    connection.close()
    return path


@dataclass(frozen=True)
class LabelledPair:
    """One row of the labelled set."""

    offer: Record
    need: Record
    label: str
    part: str
    trap: str


def labelled_pairs() -> Iterator[LabelledPair]:
    """The labelled set that comes with the agent."""
    text = resources.files("agents.builtin.matchmaker").joinpath("labelled.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        yield LabelledPair(
            offer=offer(row["offer"], unit=row["offer_unit"], dietary=row["offer_dietary"]),
            need=need(row["need"], unit=row["need_unit"], dietary=row["need_limits"]),
            label=row["label"],
            part=row["part"],
            trap=row["trap"],
        )


@dataclass(frozen=True)
class Quality:
    """How well the rules do on labelled pairs.

    "yes" pairs should be proposed, "no" pairs must not be; "partly" may be either: to show one is no mistake,
    and to miss one is none.
    """

    precision: float
    recall: float
    wrong: tuple[LabelledPair, ...]
    missed: tuple[LabelledPair, ...]


def quality(pairs: Iterable[LabelledPair], now: datetime = NOON) -> Quality:
    """What the rules alone would propose, as in a run without a model."""
    every = list(pairs)
    shown = [pair for pair in every if would_propose(pair.offer, pair.need, now)]
    wrong = tuple(pair for pair in shown if pair.label == "no")
    wanted = [pair for pair in every if pair.label == "yes"]
    missed = tuple(pair for pair in wanted if pair not in shown)
    return Quality(1 - len(wrong) / len(shown), 1 - len(missed) / len(wanted), wrong, missed)


def would_propose(offered: Record, needed: Record, now: datetime = NOON) -> bool:
    """Whether a run without a model would propose the pair."""
    found = judge(offered, needed, now, UTC)
    if isinstance(found, Refusal):
        return False
    return found.likeness.answer == "yes" or found.likeness.score >= 0.5
