"""The matchmaker as an agent: the contract of every agent, the shipped examples, and what people read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from agents.builtin.matchmaker.agent import Matchmaker
from agents.builtin.matchmaker.payload import MatchPayload
from agents.builtin.matchmaker.settings import MatchmakerSettings
from agents.errors import AgentSettingsError
from agents.testing import NOON, AgentContract, make_agent, run_agent
from tests.support.matchmaker_data import (
    EXAMPLES,
    contents,
    examples_in,
    folder_with,
    kept,
    matchmaker,
    pairs_of,
    proposals_of,
    simple_folder,
    table,
)


class TestMatchmakerOverCsv(AgentContract):
    agent_cls = Matchmaker

    def prepare(self, folder: Path) -> None:
        simple_folder(
            folder,
            ["O1,tomatoes,10,kg", "O2,mixed vegetables,5,kg", "O3,eggs,2,dozen"],
            ["N1,tomates,8.8,lb", "N2,carrots,2,kg", "N3,huevos,6,piezas"],
        )

    def settings(self, folder: Path) -> Mapping[str, Any]:
        return {"folder": str(folder)}


# --- the examples -------------------------------------------------------------------------------------------


async def test_the_examples_give_a_convincing_table_with_a_few_unclear_pairs(tmp_path: Path) -> None:
    found = await proposals_of(examples_in(tmp_path / "community"))
    assert 18 <= len(found) <= 28
    unclear = [p for p in found if (p.confidence or 0) <= 0.5]
    assert 1 <= len(unclear) <= 6
    assert sum(p.risk == "medium" for p in found) >= 4, "dietary needs are among them"


@pytest.mark.parametrize("year", [2026, 2036, 2046])
async def test_the_examples_work_in_any_year(year: int) -> None:
    settings = {"folder": str(EXAMPLES)}
    run = await run_agent(Matchmaker, settings=settings, now=datetime(year, 2, 17, 6, tzinfo=UTC))
    assert len(run.proposals) >= 18
    assert run.notes == ()


async def test_the_traps_of_the_examples_catch_nobody(tmp_path: Path) -> None:
    pairs = pairs_of(await proposals_of(examples_in(tmp_path / "community")))
    traps = {
        ("O02", "N01"),  # tomate de árbol is no tomato
        ("O07", "N07"),  # Monday morning against Saturday
        ("O09", "N10"),  # bread with gluten for a coeliac
        ("O11", "N11"),  # walnut cake for an allergic child
        ("O18", "N18"),  # a row of 2020 that nobody deleted
        ("O23", "N24"),  # the hospital is not the airport
        ("O01", "N20"),  # tomatoes are no childcare
    }
    assert not pairs & traps
    assert {("O01", "N01"), ("O01", "N02"), ("O01", "N03")} <= pairs, "one offer, three needs"
    assert {("O04", "N05"), ("O05", "N05")} <= pairs, "two offers, one need"
    assert {need for _, need in pairs} >= {"N11", "N10", "N16", "N21", "N22", "N23", "N25", "N29", "N30"}


async def test_the_examples_hold_thirty_offers_and_thirty_needs_in_two_languages() -> None:
    texts = [(EXAMPLES / name).read_text(encoding="utf-8") for name in ("offers.csv", "needs.csv")]
    assert [len(text.splitlines()) for text in texts] == [31, 31]
    assert all(re.search("[áéíóúñ]", text) and " the " in text for text in texts)


# --- proposals ----------------------------------------------------------------------------------------------


async def test_a_second_run_over_the_same_data_proposes_the_same_under_the_same_fingerprints(
    tmp_path: Path,
) -> None:
    folder = examples_in(tmp_path / "community")
    first, second = await proposals_of(folder), await proposals_of(folder)
    assert [p.fingerprint for p in first] == [p.fingerprint for p in second]
    assert len({p.fingerprint for p in first}) == len(first)
    run = await run_agent(Matchmaker, settings={"folder": str(folder)}, now=NOON, open_proposals=kept(first))
    assert pairs_of(run.proposals) & pairs_of(first) == set()


async def test_a_proposal_says_in_plain_sentences_what_where_when_and_who_carries(tmp_path: Path) -> None:
    offers = table(['O1,tomatoes,10,kg,Huerto Norte,,,"mon-sat 9-13",,Ana,can deliver,'])
    needs = table(["N1,tomates,4.5 lb,,Casa Luz,,,sat,,Casa Luz kitchen,,"])
    (found,) = await proposals_of(folder_with(tmp_path, offers, needs))
    assert found.title == "4.5 lb tomatoes: Ana -> Casa Luz kitchen"
    assert found.explanation == (
        "Ana offers 10 kg of tomatoes; Casa Luz kitchen needs 4.5 lb of tomates. "
        "This would be 4.5 lb (2.05 kg); both can: Saturday 09:00-13:00. "
        "Ana can bring it to Casa Luz. "
        "After that 7.95 kg of the offer stay free, and the need is fully served."
    )
    assert found.reasons == ("It is the same thing.",)
    assert "kg and lb are both mass" in found.constraints
    assert (found.decided_by, found.risk, found.reversible, found.expires_at) == ("rule", "low", True, None)


async def test_a_proposal_never_outlives_its_window(tmp_path: Path) -> None:
    row = "O1,tomatoes,10,kg,,,{},,,,,"
    soon = folder_with(tmp_path / "a", table([row.format("2026-05-21")]), table(["N1,tomatoes,1,kg,,,,,,,,"]))
    late = folder_with(tmp_path / "b", table([row.format("2026-08-01")]), table(["N1,tomatoes,1,kg,,,,,,,,"]))
    assert [p.expires_at for p in await proposals_of(soon)] == [datetime(2026, 5, 22, tzinfo=UTC)]
    assert [p.expires_at for p in await proposals_of(late)] == [None]


async def test_the_evidence_stays_the_same_when_rows_move_or_quantities_change(tmp_path: Path) -> None:
    one = simple_folder(tmp_path / "a", ["O1,rice,10,kg"], ["N1,rice,4,kg"])
    other = simple_folder(tmp_path / "b", ["O0,beans,1,kg", "O1,rice,9.5,kg"], ["N1,rice,3,kg"])
    changed = simple_folder(tmp_path / "c", ["O1,brown rice,10,kg"], ["N1,rice,4,kg"])
    hashes = [(await proposals_of(folder))[-1].evidence_hash for folder in (one, other, changed)]
    assert hashes[0] == hashes[1] != hashes[2]
    (proposal,) = await proposals_of(one)
    assert [(e.source, e.locator, e.excerpt) for e in proposal.evidence] == [
        ("offers.csv", "id O1", "line 2: O1,rice,10,kg"),
        ("needs.csv", "id N1", "line 2: N1,rice,4,kg"),
    ]


async def test_an_unclear_pair_without_a_model_says_that_no_model_was_asked(tmp_path: Path) -> None:
    folder = simple_folder(tmp_path, ["O1,mixed vegetables,5,kg"], ["N1,carrots,2,kg", "N2,leeks,1,g"])
    (found, *_) = await proposals_of(folder)
    assert found.confidence is not None
    assert found.confidence <= 0.5
    assert "The rules are not sure, and no model was asked: please look at it yourself." in found.reasons


async def test_pairs_below_the_chosen_likeness_are_not_proposed_without_a_model(tmp_path: Path) -> None:
    folder = simple_folder(tmp_path, ["O1,limes,5,kg"], ["N1,lemons,2,kg"])
    assert await proposals_of(folder) == []
    assert len(await proposals_of(folder, propose_from=0.4)) == 1


async def test_unconfirmed_contents_are_counted_in_the_notes(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, table(["O1,soup,9,l,,,,,,,,"]), table(["N1,soup,4,l,,,,,vegan,,,"]))
    agent = matchmaker(folder)
    assert await agent.analyze() == []
    assert agent.context.notes == [
        "left out because the offer does not say what it contains: 1 pair; fill in its dietary column"
    ]


async def test_looking_needs_no_right_to_write_and_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = simple_folder(tmp_path / "community", ["O1,rice,10,kg"], ["N1,rice,4,kg"])
    before = contents(folder)
    folder.chmod(0o555)
    assert len(await proposals_of(folder)) == 1
    folder.chmod(0o755)
    assert contents(folder) == before


# --- recheck ------------------------------------------------------------------------------------------------


async def test_an_open_match_makes_sense_until_its_rows_change_or_its_time_is_over(tmp_path: Path) -> None:
    header = "id,item,quantity,unit,until,notes"
    offers = f"{header}\nO1,rice,10,kg,2026-05-25,\n"
    folder = folder_with(tmp_path, offers, f"{header}\nN1,rice,4,kg,,\n")
    (proposal,) = kept(await proposals_of(folder))
    assert await matchmaker(folder).recheck(proposal) is None
    (folder / "offers.csv").write_text(offers.replace("10,kg", "4,kg"), encoding="utf-8")
    assert await matchmaker(folder).recheck(proposal) is None, "what is left is still enough"
    later = make_agent(Matchmaker, settings={"folder": str(folder)}, now=NOON + timedelta(days=9))
    assert await later.recheck(proposal) == "the time for it is over (any time)"
    (folder / "offers.csv").write_text(offers.replace(",\n", ",sorry\n", 1), encoding="utf-8")
    assert "changed" in (await matchmaker(folder).recheck(proposal) or "")


# --- settings and payload -----------------------------------------------------------------------------------


def test_every_setting_is_described() -> None:
    assert all(field.description for field in MatchmakerSettings.model_fields.values())
    assert all(field.description for field in MatchPayload.model_fields.values())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "agents.matchmaker.folder: .*name the folder"),
        ({"source": "sqlite"}, "agents.matchmaker.database: .*name the SQLite file"),
        ({"folder": ".", "timezone": "Mars/Olympus"}, "agents.matchmaker.timezone: .*Mars/Olympus"),
        ({"folder": ".", "fodler": "x"}, "agents.matchmaker.fodler"),
        ({"folder": ".", "propose_from": 0.9}, "agents.matchmaker.propose_from"),
        ({"folder": ".", "source": "excel"}, "agents.matchmaker.source"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(AgentSettingsError, match=complaint):
        make_agent(Matchmaker, settings=settings)


async def test_a_relative_folder_starts_at_the_folder_of_the_configuration(tmp_path: Path) -> None:
    simple_folder(tmp_path / "data", ["O1,rice,10,kg"], ["N1,rice,4,kg"])
    run = await run_agent(Matchmaker, settings={"folder": "data"}, base_dir=tmp_path, now=NOON)
    assert pairs_of(run.proposals) == {("O1", "N1")}


MADRID = ZoneInfo("Europe/Madrid")
"""Kept, so that its file is not read in the loop of a test."""


async def test_times_of_the_data_are_meant_in_the_chosen_time_zone(tmp_path: Path) -> None:
    header = "id,item,quantity,unit,until"
    folder = folder_with(
        tmp_path, f"{header}\nO1,rice,10,kg,2026-05-20 13:30\n", f"{header}\nN1,rice,4,kg,\n"
    )
    assert len(await proposals_of(folder, timezone="UTC")) == 1
    assert await proposals_of(folder, timezone=MADRID.key) == [], "13:30 there is 11:30 UTC, and it is noon"


async def test_an_edit_must_keep_both_quantities_the_same_amount(tmp_path: Path) -> None:
    folder = simple_folder(tmp_path, ["O1,rice,10,lb"], ["N1,rice,4,kg"])
    (found,) = await proposals_of(folder)
    payload = dict(found.payload)
    MatchPayload.model_validate({**payload, "quantity": "2", "offer_quantity": "4.41"})
    for wrong in (
        {"quantity": "2"},
        {"quantity": "-1"},
        {"unit": "boxes"},
        {"extra": 1},
        {"quantity": "NaN"},
    ):
        with pytest.raises(ValidationError):
            MatchPayload.model_validate({**payload, **wrong})
